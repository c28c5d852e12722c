"""Transforms back from moving to fixed points: as fields, block by block, and at single points.

An inverse has the form of what it inverts: a displacement on a grid of the moving image, then the
inverse affine. It is stored, exported and applied as any other transform.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import dask
import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.blocks.graph import Result, map_blocks, once
from itkstream.blocks.inputs import block_grid
from itkstream.blocks.sources import readable_source
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    Block,
    BSplineTransform,
    DisplacementField,
    Grid,
    PiecewiseAffine,
    Transform,
    compose,
    steps_of,
)
from itkstream.numerics.sampling.inverse import InverseProblem, Inversion, displacement_bounds

__all__ = ["MappedPoints", "apply_to_points", "invert_transform", "prepare_invert"]

_Link: TypeAlias = AffineTransform | tuple[DisplacementField, AffineTransform]

# Voxels per block and axis where a field is read part by part.
_PART = 128


@dataclass(frozen=True, eq=False)
class MappedPoints:
    """Points, mapped, and which of them the transform says nothing about.

    Parameters
    ----------
    points : ndarray, (m, n), float64
        Where they lead to.
    outside : ndarray, (m,), bool
        Points that some transform of the chain says nothing about: beyond a displacement field,
        where its edge value was taken, beyond the lattice of B-splines or of piecewise affines;
        and, of an inverse, points no solution was found for.
    """

    points: NDArray[np.float64]
    outside: NDArray[np.bool_]


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
    """
    field, affine = _field_then_affine(transform)
    problem = InverseProblem(field.grid, grid, affine.matrix, tolerance_vox, max_iterations)
    blocks = block_grid(grid.shape, blocksize, 0)
    source = readable_source(field.data)
    shared = {"problem": problem, "source": source, "bounds": _delayed_bounds(field)}
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
    """
    links = _links(transform)
    lattices = [link[0].grid for link in links if isinstance(link, tuple)][1:]
    if grid is None and any(isinstance(link, tuple) for link in links):
        raise InputError("the inverse of a displacement field needs a grid to be sampled on")
    inverses: list[Transform] = []
    for link in links:
        if isinstance(link, AffineTransform):
            inverses.insert(0, link.inverse())
        else:
            on = lattices.pop(0) if lattices else grid
            assert on is not None
            inverses.insert(0, _inverse_of_link(*link, on, tolerance_vox, max_iterations))
    return compose(*inverses) if inverses else transform


def _inverse_of_link(
    field: DisplacementField,
    affine: AffineTransform,
    grid: Grid,
    tolerance_vox: float,
    max_iterations: int,
) -> Transform:
    problem = InverseProblem(field.grid, grid, affine.matrix, tolerance_vox, max_iterations)
    whole = tuple(slice(0, m) for m in grid.shape)
    data = np.asarray(field.data)
    everywhere = tuple(slice(0, m) for m in field.grid.shape)
    found = problem.solve(data, everywhere, whole, displacement_bounds(data, field.grid))
    return compose(DisplacementField(found.displacement, grid), affine.inverse())


def apply_to_points(
    transform: Transform, points: ArrayLike, *, inverse: bool = False
) -> MappedPoints:
    """Map points, forward or back; stored fields are read part by part.

    Parameters
    ----------
    transform : Transform
        Fixed to moving points. Back go affines, displacement fields, and chains of these.
    points : array_like, (m, n)
        Fixed points; moving ones for the inverse.
    inverse : bool
        Find the fixed points that map to these.

    Returns
    -------
    MappedPoints
        The mapped points, in the order given.

    Raises
    ------
    InputError
        Where the points have another dimension or are not finite.
    """
    p = np.asarray(points, float)
    if p.ndim != 2 or p.shape[1] != transform.ndim:
        raise InputError(
            f"a {transform.ndim}-D transform maps points of shape (m, {transform.ndim}); got "
            f"{p.shape}"
        )
    if not np.isfinite(p).all():
        raise InputError(f"points must be finite; {int((~np.isfinite(p)).any(1).sum())} are not")
    matrix = _as_matrix(transform)
    if matrix is not None:
        affine = AffineTransform(matrix)
        return MappedPoints(
            (affine.inverse() if inverse else affine).apply(p), np.zeros(len(p), bool)
        )
    return _back(transform, p) if inverse else _forth(transform, p)


def _forth(transform: Transform, p: NDArray[np.float64]) -> MappedPoints:
    lost = np.zeros(len(p), bool)
    for step in steps_of(compose(transform)):
        if isinstance(step, BSplineTransform):
            lost |= ~step.reaches(p)
        elif isinstance(step, DisplacementField | PiecewiseAffine):
            lost |= _outside(step.grid, p)
        if isinstance(step, DisplacementField):
            mapped = np.empty_like(p)
            for some in _groups(step.grid, p):
                mapped[some] = step.apply(p[some])
            p = mapped
        else:
            p = step.apply(p)
    return MappedPoints(p, lost)


def _back(transform: Transform, p: NDArray[np.float64]) -> MappedPoints:
    lost = np.zeros(len(p), bool)
    for link in reversed(_links(transform)):
        if isinstance(link, AffineTransform):
            p = link.inverse().apply(p)
        else:
            before = _back_through(*link, p)
            p, lost = before.points, lost | before.outside
    return MappedPoints(p, lost)


def _back_through(
    field: DisplacementField, affine: AffineTransform, p: NDArray[np.float64]
) -> MappedPoints:
    problem = InverseProblem(field.grid, field.grid, affine.matrix)
    bounds = dask.compute(_delayed_bounds(field))[0]
    origins, lost = np.empty_like(p), np.zeros(len(p), bool)
    for some in _groups(field.grid, affine.inverse().apply(p)):
        region = problem.reach_points(p[some], bounds)
        part = np.asarray(field.data[(*region, slice(None))])
        origins[some], error = problem.solve_points(part, region, p[some], bounds)
        lost[some] = error > 10 * problem.tolerance_vox
    return MappedPoints(origins, lost | _outside(field.grid, origins))


def _groups(grid: Grid, points: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
    """Points that lie together, so that each group reads a small part of a field."""
    if not len(points):
        return
    top = np.asarray(grid.shape) - 1
    cells = np.clip(grid.to_index(points), 0, top).astype(np.int64) // _PART
    _, which = np.unique(cells, axis=0, return_inverse=True)
    order = np.argsort(which.ravel(), kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(which.ravel()[order])) + 1)


def _outside(grid: Grid, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    index = grid.to_index(points)
    inside = (index >= -0.5) & (index < np.asarray(grid.shape) - 0.5)
    return np.asarray(~inside.all(axis=1))


def _as_matrix(transform: Transform) -> NDArray[np.float64] | None:
    """The matrix of an affine or of several in turn; None where anything else is in the chain."""
    simple = compose(transform)
    return simple.matrix if isinstance(simple, AffineTransform) else None


def _field_then_affine(transform: Transform) -> tuple[DisplacementField, AffineTransform]:
    links = _links(transform)
    if len(links) != 1 or isinstance(links[0], AffineTransform):
        raise InputError(
            "a displacement field, or one followed by affines, can be inverted block by block; got "
            f"{_kinds(transform)}: use invert_transform, or make it one field by "
            "itkstream.transform.as_field"
        )
    return links[0]


def _links(transform: Transform) -> list[_Link]:
    """The links of a chain that can be inverted one by one: a field takes the affine after it."""
    steps = steps_of(compose(transform))
    links: list[_Link] = []
    for k, step in enumerate(steps):
        if isinstance(step, DisplacementField):
            after = steps[k + 1] if k + 1 < len(steps) else None
            identity = AffineTransform(np.eye(step.ndim + 1))
            links.append((step, after if isinstance(after, AffineTransform) else identity))
        elif not isinstance(step, AffineTransform):
            raise InputError(
                f"affines and displacement fields can be inverted; got {_kinds(transform)}: make "
                "it a field first, by itkstream.transform.as_field or `itkstream export --like`"
            )
        elif not links:
            links.append(step)
    return links


def _kinds(transform: Transform) -> str:
    return ", ".join(type(step).__name__ for step in steps_of(compose(transform)))


def _delayed_bounds(field: DisplacementField) -> Any:
    """Least and greatest displacement of the whole field, in voxels: a lazy pass over it."""
    blocks = block_grid(field.grid.shape, (_PART,) * field.ndim, 0)
    n = field.ndim
    each = map_blocks(
        _bounds_block,
        blocks,
        field.data,
        {"grid": field.grid},
        Result(np.float64, (2, n), "block"),
    )
    return once(_overall, each)


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
    found: Inversion = problem.solve(part, region, block.core, bounds)
    return np.concatenate([found.displacement, found.error[..., None]], axis=-1)
