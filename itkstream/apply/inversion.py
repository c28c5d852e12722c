"""Inverses of transforms, from moving to fixed points: in memory, and block by block.

An inverse has the form of what it inverts: a displacement on a grid of the moving image, then the
inverse affine. It is stored, exported and applied as any other transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, map_blocks, once
from itkstream.blocks.inputs import block_grid
from itkstream.blocks.sources import readable_source
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Block, DisplacementField, Grid, Transform, compose
from itkstream.geometry.chains import FieldChain, kinds_of, links_of
from itkstream.numerics.sampling.fields import displacement_bounds
from itkstream.numerics.sampling.inverse import InverseProblem

__all__ = ["invert_transform", "invertible_links", "prepare_bounds", "prepare_invert"]

_NOT_BLOCK_BY_BLOCK = (
    "a displacement field, or one followed by affines, can be inverted block by block; got "
    "{kinds}: use invert_transform, or make it one field by itkstream.transform.as_field"
)
# Voxels per block and axis where the bounds of a field are found.
_PART = 128


def prepare_invert(
    transform: Transform,
    grid: Grid,
    blocksize: Sequence[int],
    *,
    tolerance_vox: float = 0.01,
    max_iterations: int = 50,
) -> da.Array:
    """Prepare the inverse of a displacement field and the affine after it, block by block.

    With v the result and A the affine, the inverse is ``CompositeTransform((DisplacementField(v,
    grid), A.inverse()))``.

    Parameters
    ----------
    transform : DisplacementField or CompositeTransform
        A field, or a field followed by an affine; it may be stored.
    grid : Grid
        Where the inverse is wanted: the moving image's lattice, or a coarser one.
    blocksize : sequence of int
        Voxels of a block per axis.
    tolerance_vox : float
        Greatest error, in the smallest voxel spacing of `grid`.
    max_iterations : int
        Bound on the evaluations of one voxel.

    Returns
    -------
    dask.array.Array, grid.shape + (n + 1,), float32
        Lazy. The vectors v, then the estimated error in voxels. Each block reads the part of the
        field that it can come from; the blocks together give the bits that one gives.

    Raises
    ------
    InputError
        For another kind of transform, or a grid of other axes or unit.

    Examples
    --------
    >>> lazy = itkstream.transform.prepare_invert(
    ...     registration.transform, moving.grid, (64, 64, 64)
    ... )
    >>> lazy.shape == (*moving.shape, 4)
    True
    """
    invertible_links(transform)
    chain = FieldChain.of(transform, _NOT_BLOCK_BY_BLOCK)
    field = chain.field
    problem = InverseProblem(field.grid, grid, chain.affine, tolerance_vox, max_iterations)
    blocks = block_grid(grid.shape, blocksize, 0)
    source = readable_source(field.data)
    shared = {"problem": problem, "source": source, "bounds": prepare_bounds(field)}
    result = Result(np.float32, (grid.ndim + 1,))
    return map_blocks(_invert_block, blocks, None, shared, result)


def invert_transform(
    transform: Transform,
    grid: Grid | None = None,
    *,
    tolerance_vox: float = 0.01,
    max_iterations: int = 50,
) -> Transform:
    """Invert a transform in memory.

    Parameters
    ----------
    transform : AffineTransform, DisplacementField or CompositeTransform
        Affines, also several in turn, are inverted exactly; of a chain with displacement fields,
        the inverse is the chain of inverses.
    grid : Grid, optional
        Where the inverse field is wanted, in moving space; affines need none. An inner field of a
        chain is inverted on the lattice of the field after it.
    tolerance_vox : float
        Greatest error, in the smallest voxel spacing of `grid`.
    max_iterations : int
        Bound on the evaluations of one voxel.

    Returns
    -------
    Transform
        From moving to fixed points.

    Raises
    ------
    InputError
        For another kind of transform, or a field without `grid`.

    Examples
    --------
    >>> inverse = itkstream.transform.invert_transform(registration.transform, moving.grid)
    >>> back = inverse.apply(registration.transform.apply([[20.0, 40.0, 40.0]]))
    >>> bool(np.allclose(back, [[20.0, 40.0, 40.0]], atol=0.2))
    True
    """
    simple = compose(transform)
    if isinstance(simple, AffineTransform):
        return simple.inverse()
    links = invertible_links(simple)
    if grid is None:
        raise InputError("the inverse of a displacement field needs a grid to be sampled on")
    fields = [link.field for link in links if isinstance(link, FieldChain)]
    lattices = iter([*(field.grid for field in fields[1:]), grid])
    inverses = [
        _invert_chain(link, next(lattices), tolerance_vox, max_iterations)
        if isinstance(link, FieldChain)
        else link.inverse()
        for link in links
    ]
    return compose(*reversed(inverses))


def _invert_chain(
    chain: FieldChain, grid: Grid, tolerance_vox: float, max_iterations: int
) -> Transform:
    field = chain.field
    problem = InverseProblem(field.grid, grid, chain.affine, tolerance_vox, max_iterations)
    found = problem.solve_whole(np.asarray(field.data))
    return compose(DisplacementField(found.displacement, grid), chain.affine.inverse())


def invertible_links(transform: Transform) -> list[AffineTransform | FieldChain]:
    """The links of a chain of affines and fields, each of which can be inverted for itself."""
    links = links_of(transform)
    invertible = [link for link in links if isinstance(link, AffineTransform | FieldChain)]
    if len(invertible) < len(links):
        raise InputError(
            f"affines and displacement fields can be inverted; got {kinds_of(transform)}: make "
            "it a field first, by itkstream.transform.as_field or `itkstream export --like`"
        )
    return invertible


def prepare_bounds(field: DisplacementField) -> Any:
    """Prepare the least and greatest displacement of a whole field, in voxels: (2, n)."""
    blocks = block_grid(field.grid.shape, (_PART,) * field.ndim, 0)
    shared, result = {"grid": field.grid}, Result(np.float64, (2, field.ndim), "block")
    return once(_overall, map_blocks(_bounds_block, blocks, field.data, shared, result))


def _bounds_block(part: NDArray[Any], block: Block, *, grid: Grid) -> NDArray[np.float64]:
    return displacement_bounds(part, grid).reshape((1,) * grid.ndim + (2, grid.ndim))


def _overall(each: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = each.reshape(-1, *each.shape[-2:])
    return np.stack([flat[:, 0].min(axis=0), flat[:, 1].max(axis=0)])


def _invert_block(
    _part: None,
    block: Block,
    *,
    problem: InverseProblem,
    source: Any,
    bounds: NDArray[np.float64],
) -> NDArray[np.float32]:
    region = problem.reach(block.core, bounds)
    part = np.asarray(source[(*region, slice(None))])
    found = problem.solve(part, region, block.core, bounds)
    return np.concatenate([found.displacement, found.error[..., None]], axis=-1)
