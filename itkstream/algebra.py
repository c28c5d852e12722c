"""Calculating with transforms: fold affines into fields, sample, crop, coarsen, local volume.

A displacement field may be stored and larger than memory: then what is made of it is lazy, a dask
array in a `DisplacementField`. `itkstream.geometry.compose` puts transforms one after the other,
and `itkstream.inversion` inverts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from itkstream.doors import block_grid
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    ArrayView,
    Block,
    CompositeTransform,
    DisplacementField,
    Grid,
    Slices,
    Transform,
    compose,
    steps_of,
)
from itkstream.lazy import DaskSource, Result, map_blocks
from itkstream.numerics.fields import (
    affine_to_displacement,
    jacobian_determinant,
    to_displacement,
    to_positions,
)
from itkstream.numerics.mapping import map_on

__all__ = [
    "DECIMATED",
    "MEASURED",
    "CoarseField",
    "CoarseLattices",
    "as_field",
    "coarsen_field",
    "crop_transform",
    "fold_affine",
    "prepare_decimation",
    "prepare_jacobian",
    "prepare_sample",
    "sample_transform",
]

_PART = 96
_AS_FIELD = "make it a field first, by sample_transform in memory or by as_field"

DECIMATED, MEASURED = 128, 64
"""Voxels per axis of a field's blocks: that are thinned out, and whose error is measured."""

# Spacings that are tried, in spacings of the finest axis.
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True, eq=False)
class CoarseField:
    """A field on a coarser lattice, and how far it is from the one it was made of.

    Parameters
    ----------
    field : DisplacementField
        Its nodes are nodes of the finer field and have their vectors.
    factors : tuple of int
        Voxels of the finer field per voxel, per axis.
    error : float
        Greatest distance between what the two say of any point of the finer lattice and between
        its nodes, in the unit of the grid.
    """

    field: DisplacementField
    factors: tuple[int, ...]
    error: float


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
    """
    field, affine = _field_and_affine(transform, "an affine can be folded into")
    if affine is None:
        return field
    data = field.data
    if isinstance(data, np.ndarray):
        return DisplacementField(_fold(data, field.grid, affine), field.grid)
    shared = {"source": _source(data), "grid": field.grid, "affine": affine}
    return DisplacementField(_map(_fold_block, field.grid, shared, data.dtype), field.grid)


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
    """
    return DisplacementField(_Sampled(transform, grid), grid)


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
    """
    field, affine = _field_and_affine(transform, "local volume is known of")
    ratio = 1.0 if affine is None else float(np.linalg.det(affine.matrix))
    shared = {"grid": field.grid, "ratio": ratio}
    blocks = block_grid(field.grid.shape, blocksize, 1)
    return map_blocks(_jacobian_block, blocks, field.data, shared, Result(np.float32))


def coarsen_field(
    field: DisplacementField,
    tolerance: float | None = None,
    *,
    max_factor: int = 32,
    max_nodes: float | None = None,
) -> CoarseField:
    """Put a field on the coarsest lattice that keeps it within a tolerance.

    The nodes of the coarse lattice are nodes of the fine one, about equally far apart along all
    axes. The error is measured at every node of the fine field, block by block; as both are
    linear between these, it is no larger elsewhere.

    Parameters
    ----------
    field : DisplacementField
        In memory or stored.
    tolerance : float, optional
        Greatest error, in the unit of the grid; default 0.05 of the least spacing.
    max_factor : int
        Bound on the factors, at most 32.
    max_nodes : float, optional
        Bound on the nodes that goes before the tolerance: `CoarseField.error` says at what price.

    Returns
    -------
    CoarseField
        Lazy where the field is not in memory. The error is 0 where no coarser lattice will do.

    Raises
    ------
    InputError
        For another kind of transform, a tolerance that is not positive, a field with NaN, or a
        bound that even the largest factor does not keep.
    """
    if not isinstance(field, DisplacementField):
        raise InputError(
            f"coarsen_field takes a DisplacementField; got {type(field).__name__}. Of a field "
            f"followed by affines, itkstream.exports.coarsened makes one with a coarser field; of "
            f"anything else, {_AS_FIELD}"
        )
    allowed = 0.05 * min(field.grid.spacing) if tolerance is None else tolerance
    choice = CoarseLattices(field, allowed, max_factor, max_nodes)
    return choice.best(choice.prepare_errors().compute())


@dataclass(frozen=True, eq=False)
class CoarseLattices:
    """The coarser lattices for a field that `coarsen_field` chooses from.

    Parameters
    ----------
    field : DisplacementField
        In memory or stored.
    tolerance : float
        Greatest error, in the unit of the grid.
    max_factor : int
        Bound on the factors, at most 32.
    max_nodes : float, optional
        Bound on the nodes that goes before the tolerance.

    Raises
    ------
    InputError
        For values out of range, or a bound on the nodes that even the largest factor does not keep.
    """

    field: DisplacementField
    tolerance: float
    max_factor: int = 32
    max_nodes: float | None = None

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or not 1 <= self.max_factor <= _LADDER[-1]:
            raise InputError(
                f"tolerance must be positive and max_factor between 1 and {_LADDER[-1]}; got "
                f"{self.tolerance} and {self.max_factor}"
            )
        self._least()

    def prepare_errors(self) -> da.Array:
        """Prepare to measure how far the field would be from itself on each lattice.

        Returns
        -------
        dask.array.Array, block grid + (lattices,), float64
            Lazy: the greatest error in each block, finer to coarser; infinite beyond the first
            that is out of tolerance there.
        """
        grid, ladder = self.field.grid, self._rungs
        shared = {
            "source": _source(self.field.data),
            "ladder": ladder,
            "allowed": float(self.tolerance),
            "least": self._least(),
        }
        blocks = block_grid(grid.shape, (MEASURED,) * grid.ndim, 0)
        return map_blocks(
            _error_block, blocks, None, shared, Result(np.float64, (len(ladder),), "block")
        )

    def best(self, errors: NDArray[np.float64]) -> CoarseField:
        """Put the field on the coarsest lattice that will do.

        Parameters
        ----------
        errors : ndarray, block grid + (lattices,)
            What `prepare_errors` gives.

        Returns
        -------
        CoarseField
            Lazy where the field is not in memory.

        Raises
        ------
        InputError
            For a field with NaN.
        """
        ladder = self._rungs
        worst = errors.reshape(-1, len(ladder)).max(axis=0)
        if np.isnan(worst).any():
            raise InputError("the displacement field holds NaN or infinity: it is no transform")
        best = max(self._least(), int(np.flatnonzero(worst <= self.tolerance)[-1]))
        return CoarseField(_decimated(self.field, ladder[best]), ladder[best], float(worst[best]))

    @property
    def _rungs(self) -> tuple[tuple[int, ...], ...]:
        return _ladder(self.field.grid, self.max_factor)

    def _least(self) -> int:
        """The finest lattice that keeps the bound on the nodes."""
        return _first_that_fits(self.field.grid, self._rungs, self.max_nodes)


def prepare_decimation(field: DisplacementField, factors: Sequence[int]) -> DisplacementField:
    """Prepare to keep one node in so many along each axis of a field, and both ends.

    Parameters
    ----------
    field : DisplacementField
        In memory or stored.
    factors : sequence of int
        Voxels of the field per voxel of the result, per axis.

    Returns
    -------
    DisplacementField
        Lazy, on ``ceil((n - 1) / factor) + 1`` nodes per axis.

    Raises
    ------
    InputError
        For factors that are not whole numbers >= 1, one per axis.
    """
    by = tuple(int(f) for f in factors)
    if len(by) != field.ndim or min(by) < 1 or by != tuple(factors):
        raise InputError(f"factors must be {field.ndim} whole numbers >= 1; got {factors}")
    coarse = _decimated_grid(field.grid, by)
    shared = {"source": _source(field.data), "factors": by, "shape": field.grid.shape}
    size = tuple(max(1, DECIMATED // f) for f in by)
    return DisplacementField(_map(_nodes_block, coarse, shared, field.data.dtype, size), coarse)


def _ladder(grid: Grid, max_factor: int) -> tuple[tuple[int, ...], ...]:
    """Factors per axis, finer to coarser: from the finest axis on, all come to equal spacing."""
    rungs: list[tuple[int, ...]] = [(1,) * grid.ndim]
    for multiple in _LADDER:
        wanted = multiple * min(grid.spacing)
        rung = tuple(
            max(1, min(int(wanted / s + 1e-6), max_factor, n - 1))
            for s, n in zip(grid.spacing, grid.shape, strict=True)
        )
        if rung != rungs[-1]:
            rungs.append(rung)
    return tuple(rungs)


def _coarse_shape(shape: tuple[int, ...], factors: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-(n - 1) // f) + 1 for n, f in zip(shape, factors, strict=True))


def _first_that_fits(
    grid: Grid, ladder: tuple[tuple[int, ...], ...], max_nodes: float | None
) -> int:
    sizes = [math.prod(_coarse_shape(grid.shape, rung)) for rung in ladder]
    fitting = [k for k, size in enumerate(sizes) if max_nodes is None or size <= max_nodes]
    if not fitting:
        raise InputError(
            f"a field of shape {grid.shape} has at least {sizes[-1]} nodes on the coarsest "
            f"lattice that is tried; at most {max_nodes} were asked for"
        )
    return fitting[0]


def _error_block(
    _part: None,
    block: Block,
    *,
    source: Any,
    ladder: tuple[tuple[int, ...], ...],
    allowed: float,
    least: int,
) -> NDArray[np.float64]:
    """Greatest error of each rung in a block; infinite beyond the first that is too coarse.

    The rung `least` is measured in any case.
    """
    errors = np.full(len(ladder), np.inf)
    held: tuple[int, ...] = (-1,) * len(block.core)
    for k, factors in enumerate(ladder):
        if any(f > h for f, h in zip(factors, held, strict=True)):
            # No more than the next rungs need: most fields fail one of the first.
            held = tuple(1 << (f - 1).bit_length() for f in factors)
            region = _around(block.core, held, source.shape)
            part = np.asarray(source[(*region, slice(None))], np.float64)
        errors[k] = _error(part, block.core, region, factors, source.shape)
        if k >= least and not errors[k] <= allowed:
            break
    return errors.reshape((1,) * len(block.core) + (-1,))


def _error(
    part: NDArray[np.float64],
    core: Slices,
    region: Slices,
    factors: tuple[int, ...],
    shape: tuple[int, ...],
) -> float:
    """Greatest distance in a box between a field and its decimation; `part` is a larger region."""
    rough = part
    for axis, factor in enumerate(factors):
        rough = _reinterpolated(rough, axis, factor, (region[axis], core[axis]), shape[axis])
    inside = tuple(
        slice(c.start - r.start, c.stop - r.start) for c, r in zip(core, region, strict=True)
    )
    rough -= part[inside]
    return float(np.sqrt(np.einsum("...k,...k->...", rough, rough).max()))


def _around(core: Slices, factors: tuple[int, ...], shape: tuple[int, ...]) -> Slices:
    """Fine nodes between which all coarse nodes around a box lie, for factors up to these."""
    return tuple(
        slice(max(0, c.start - f), min(n, c.stop + f))
        for c, f, n in zip(core, factors, shape, strict=False)
    )


def _reinterpolated(
    part: NDArray[np.float64], axis: int, factor: int, spans: tuple[slice, slice], length: int
) -> NDArray[np.float64]:
    """Keep every factor-th node along an axis, and the last, and interpolate between them.

    `part` has the first span of the axis, whose length is given; the second is wanted.
    """
    have, want = spans
    index = np.arange(want.start, want.stop)
    low = index // factor * factor
    high = np.minimum(low + factor, length - 1)
    share = (index - low) / np.maximum(high - low, 1)
    left = np.take(part, low - have.start, axis)
    right = np.take(part, high - have.start, axis)
    return left + share.reshape((-1,) + (1,) * (part.ndim - axis - 1)) * (right - left)


def _decimated(field: DisplacementField, factors: tuple[int, ...]) -> DisplacementField:
    if max(factors) == 1:
        return field
    if not isinstance(field.data, np.ndarray):
        return prepare_decimation(field, factors)
    coarse = _decimated_grid(field.grid, factors)
    whole = tuple(slice(0, n) for n in coarse.shape)
    return DisplacementField(_nodes(field.data, whole, factors, field.grid.shape), coarse)


def _decimated_grid(grid: Grid, factors: tuple[int, ...]) -> Grid:
    spacing = tuple(s * f for s, f in zip(grid.spacing, factors, strict=True))
    return replace(grid, shape=_coarse_shape(grid.shape, factors), spacing=spacing)


def _nodes(
    source: Any, box: Slices, factors: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[Any]:
    """The nodes of the coarse lattice in a box.

    A node beyond the end of the fine lattice continues the line through the last two places, so
    that the end itself keeps its vector.
    """
    spans = zip(box, factors, shape, strict=True)
    fine = tuple(
        slice(max(0, min(b.start * f, (n - 1) // f * f)), min(n, (b.stop - 1) * f + 1))
        for b, f, n in spans
    )
    part = np.asarray(source[(*fine, slice(None))])
    for axis, (b, f, n) in enumerate(zip(box, factors, shape, strict=True)):
        if f > 1:
            part = _kept(part, axis, np.arange(b.start, b.stop) * f, (fine[axis].start, n, f))
    return np.asarray(part, source.dtype)


def _kept(
    part: NDArray[Any], axis: int, places: NDArray[np.intp], span: tuple[int, int, int]
) -> NDArray[Any]:
    """The vectors at places of an axis; `span` has its first place, its length and the factor."""
    first, length, factor = span
    last = length - 1
    kept = part.take(np.minimum(places, last) - first, axis)
    if places[-1] > last:
        low = last // factor * factor
        stretch = (places[-1] - low) / max(last - low, 1)
        before = part.take(low - first, axis)
        end = (slice(None),) * axis + (-1,)
        kept[end] = before + stretch * (kept[end] - before)
    return kept


def _nodes_block(
    _part: None,
    block: Block,
    *,
    source: Any,
    factors: tuple[int, ...],
    shape: tuple[int, ...],
) -> NDArray[Any]:
    return _nodes(source, block.core, factors, shape)


def _fold(vectors: NDArray[Any], grid: Grid, affine: AffineTransform) -> NDArray[Any]:
    return (to_positions(vectors, grid, affine.matrix) - grid.positions()).astype(vectors.dtype)


def _fold_block(
    _part: None, block: Block, *, source: Any, grid: Grid, affine: AffineTransform
) -> NDArray[Any]:
    return _fold(np.asarray(source[(*block.core, slice(None))]), grid.crop(block.core), affine)


@dataclass(frozen=True, eq=False)
class _Sampled:
    """The displacement of a transform on a grid, computed where it is sliced."""

    transform: Transform
    grid: Grid

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.grid.shape, self.grid.ndim)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[np.float32]:
        box = tuple(slice(*k.indices(n)[:2]) for k, n in zip(key, self.grid.shape, strict=False))
        part = _sample(self.transform, self.grid.crop(box))
        return part[..., key[self.grid.ndim]] if len(key) > self.grid.ndim else part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[(slice(None),) * self.grid.ndim], dtype=dtype)


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


def _source(data: Any) -> Any:
    return DaskSource(data) if isinstance(data, da.Array) else data


def _map(
    function: Any, grid: Grid, shared: dict[str, Any], dtype: Any, size: Sequence[int] = ()
) -> da.Array:
    blocks = block_grid(grid.shape, size or (_PART,) * grid.ndim, 0)
    return map_blocks(function, blocks, None, shared, Result(dtype, (grid.ndim,)))


def _field_and_affine(
    transform: Transform, purpose: str
) -> tuple[DisplacementField, AffineTransform | None]:
    steps = steps_of(compose(transform))
    field, affine = steps[0], steps[1] if len(steps) == 2 else None
    if (
        not isinstance(field, DisplacementField)
        or len(steps) > 2
        or not (affine is None or isinstance(affine, AffineTransform))
    ):
        kinds = ", ".join(type(step).__name__ for step in steps)
        raise InputError(
            f"{purpose} a displacement field, or one followed by affines; got {kinds}: {_AS_FIELD}"
        )
    return field, affine
