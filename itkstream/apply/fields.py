"""Fields made of transforms: affines folded in, sampled, cropped; and local volume.

A displacement field may be stored and larger than memory: then what is made of it is lazy, a dask
array in a `DisplacementField`. `itkstream.geometry.compose` puts transforms one after the other,
`itkstream.apply.coarsening` thins fields out, and `itkstream.apply.inversion` inverts chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import block_grid
from itkstream.blocks.sources import readable_source
from itkstream.geometry import (
    AffineTransform,
    ArrayView,
    Block,
    CompositeTransform,
    DisplacementField,
    Grid,
    LazyArray,
    Transform,
    array_axes,
    compose,
    steps_of,
)
from itkstream.geometry.chains import FieldChain
from itkstream.numerics.sampling.fields import (
    affine_to_displacement,
    jacobian_determinant,
    to_displacement,
    to_positions,
)
from itkstream.numerics.sampling.mapping import map_on

__all__ = [
    "as_field",
    "axes_of",
    "crop_transform",
    "fold_affine",
    "prepare_jacobian",
    "prepare_sample",
    "sample_transform",
]

# Voxels of a field per axis of a block that one task folds.
_PART = 96
_A_FIELD = (
    "a displacement field, or one followed by affines; got {kinds}: make it a field first, by "
    "sample_transform in memory or by as_field"
)


def fold_affine(transform: Transform) -> DisplacementField:
    """Make a displacement field and the affines after it one field, exactly.

    An affine of a linear interpolation is the linear interpolation of affines, so within the
    field's lattice the result maps points as the two did, but for rounding.

    Parameters
    ----------
    transform : DisplacementField or CompositeTransform
        A field, or one followed by affines.

    Returns
    -------
    DisplacementField
        On the same lattice; lazy where the field is not in memory.

    Raises
    ------
    InputError
        For other transforms.

    Examples
    --------
    >>> itkstream.transform.fold_affine(registration.transform)
    DisplacementField(zyx ...)
    """
    chain = FieldChain.of(transform, f"an affine can be folded into {_A_FIELD}")
    field, affine = chain.field, chain.affine
    if affine.is_identity:
        return field
    data = field.data
    if isinstance(data, np.ndarray):
        return DisplacementField(_fold(data, field.grid, affine), field.grid)
    shared = {"source": readable_source(data), "grid": field.grid, "affine": affine}
    blocks = block_grid(field.grid.shape, (_PART,) * field.ndim, 0)
    folded = map_blocks(_fold_block, blocks, None, shared, Result(data.dtype, (field.ndim,)))
    return DisplacementField(folded, field.grid)


def prepare_sample(transform: Transform, grid: Grid, blocksize: Sequence[int]) -> da.Array:
    """Prepare the displacement of any transform on the voxels of a grid, block by block.

    Parameters
    ----------
    transform : Transform
        From fixed to moving points.
    grid : Grid
        The voxels, in fixed space.
    blocksize : sequence of int
        Voxels of a block per axis.

    Returns
    -------
    dask.array.Array, grid.shape + (n,), float32
        Lazy; ``T(p) - p``, affines included.

    Examples
    --------
    >>> lazy = itkstream.transform.prepare_sample(registration.transform, fixed.grid, (64, 64, 64))
    >>> lazy.shape == (*fixed.shape, 3)
    True
    """
    shared = {"transform": transform, "grid": grid}
    return map_blocks(
        _sample_block,
        block_grid(grid.shape, blocksize, 0),
        None,
        shared,
        Result(np.float32, (grid.ndim,)),
    )


def sample_transform(transform: Transform, grid: Grid) -> DisplacementField:
    """Turn any transform into a displacement field, in memory.

    Parameters
    ----------
    transform : Transform
        From fixed to moving points.
    grid : Grid
        Where its vectors are wanted, in fixed space.

    Returns
    -------
    DisplacementField
        float32. Between the voxels of `grid` it is linear, whatever the transform is.

    Examples
    --------
    >>> grid = itkstream.Grid((4, 4, 4), (8, 8, 8), axes=("z", "y", "x"))
    >>> itkstream.transform.sample_transform(registration.transform, grid).data.shape
    (4, 4, 4, 3)
    """
    return DisplacementField(_sample(transform, grid), grid)


def as_field(transform: Transform, grid: Grid) -> DisplacementField:
    """Any transform as a displacement field of which each part is computed when it is read.

    Parameters
    ----------
    transform : Transform
        From fixed to moving points, with the axes of `grid`.
    grid : Grid
        Where its vectors are wanted, in fixed space.

    Returns
    -------
    DisplacementField
        float32; as `sample_transform` gives, but never in memory as a whole.

    Examples
    --------
    >>> shift = np.eye(4)
    >>> shift[:3, 3] = 1, 2, 3
    >>> grid = itkstream.Grid((4, 4, 4), (8, 8, 8), axes=("z", "y", "x"))
    >>> field = itkstream.transform.as_field(itkstream.AffineTransform(shift, "zyx"), grid)
    >>> np.asarray(field.data[0, 0, 0])
    array([1., 2., 3.], dtype=float32)
    """
    return DisplacementField(_Sampled(transform, grid), grid)


def axes_of(transform: Transform, default: Sequence[str] = ()) -> tuple[str, ...]:
    """The axes of a transform, of its first field's grid, the default, or z, y, x: what is known.

    `itkstream.read_transform` gives transforms of other programs in the order z, y, x.
    """
    first = steps_of(transform)[0]
    known = transform.axes
    if known is None and isinstance(first, DisplacementField):
        return first.grid.axes
    return known or tuple(default) or array_axes(transform.ndim)


def crop_transform(transform: Transform, region: Grid) -> Transform:
    """Leave out of the first displacement field what the points of a region do not need.

    Parameters
    ----------
    transform : Transform
        From fixed to moving points. Later fields of a chain are kept whole.
    region : Grid
        Holds the points, in fixed space.

    Returns
    -------
    Transform
        Maps the points of `region` as `transform` does; nothing is read.

    Examples
    --------
    >>> region = fixed[:8, :8, :8].grid
    >>> part = itkstream.transform.crop_transform(registration.transform, region)
    >>> part.ndim
    3
    """
    steps = steps_of(compose(transform))
    first = steps[0]
    if not isinstance(first, DisplacementField):
        return transform
    index = first.grid.to_index(region.corners())
    shape = np.asarray(first.grid.shape)
    low = np.clip(np.floor(index.min(axis=0)), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(index.max(axis=0)) + 1, low + 1, shape).astype(int)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    whole = (*box, slice(0, first.ndim))
    data = first.data
    if isinstance(data, (np.ndarray, da.Array)):
        data = data[whole]
    else:
        data = ArrayView.whole(data).crop(whole)
    cropped = DisplacementField(data, first.grid.crop(box))
    return CompositeTransform((cropped, *steps[1:])) if len(steps) > 1 else cropped


def prepare_jacobian(transform: Transform, blocksize: Sequence[int]) -> da.Array:
    """Prepare how much a field, and the affines after it, stretch volume, block by block.

    Parameters
    ----------
    transform : DisplacementField or CompositeTransform
        A field, or one followed by affines.
    blocksize : sequence of int
        Voxels of the field per block and axis.

    Returns
    -------
    dask.array.Array, shape of the field's lattice, float32
        Lazy: the Jacobian determinant; 1 where volume is kept, 0 or less at folds.

    Raises
    ------
    InputError
        For other transforms.

    Examples
    --------
    >>> lazy = itkstream.transform.prepare_jacobian(registration.transform, (64, 64, 64))
    >>> bool((lazy > 0).all().compute())
    True
    """
    chain = FieldChain.of(transform, f"local volume is known of {_A_FIELD}")
    field, ratio = chain.field, float(np.linalg.det(chain.affine.matrix))
    shared = {"grid": field.grid, "ratio": ratio}
    blocks = block_grid(field.grid.shape, blocksize, 1)
    return map_blocks(_jacobian_block, blocks, field.data, shared, Result(np.float32))


def _fold(vectors: NDArray[Any], grid: Grid, affine: AffineTransform) -> NDArray[Any]:
    return (to_positions(vectors, grid, affine.matrix) - grid.positions()).astype(vectors.dtype)


def _fold_block(
    _part: None, block: Block, *, source: Any, grid: Grid, affine: AffineTransform
) -> NDArray[Any]:
    return _fold(np.asarray(source[(*block.core, slice(None))]), grid.crop(block.core), affine)


@dataclass(frozen=True, eq=False)
class _Sampled(LazyArray):
    """The displacement of a transform on a grid, computed where it is sliced."""

    transform: Transform
    grid: Grid

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.grid.shape, self.grid.ndim)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[np.float32]:
        n = self.grid.ndim
        box = self.grid.crop(tuple(map(slice, start[:n], stop[:n])))
        return _sample(self.transform, box)[..., start[n] : stop[n]]


def _sample(transform: Transform, grid: Grid) -> NDArray[np.float32]:
    found = map_on(transform, grid)
    if found.displacement is None:
        return affine_to_displacement(found.affine, grid)
    return to_displacement(to_positions(found.displacement, grid, found.affine), grid)


def _sample_block(
    _part: None, block: Block, *, transform: Transform, grid: Grid
) -> NDArray[np.float32]:
    return _sample(transform, grid.crop(block.core))


def _jacobian_block(
    part: NDArray[Any], block: Block, *, grid: Grid, ratio: float
) -> NDArray[np.float32]:
    determinant = jacobian_determinant(part, grid.crop(block.padded))[block.core_in_padded]
    return (determinant * ratio).astype(np.float32)
