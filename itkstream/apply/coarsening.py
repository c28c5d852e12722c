"""Displacement fields on coarser lattices: how coarse may one be, and what is it there?

A smooth field needs far fewer vectors than voxels. The nodes of a coarser lattice are nodes of the
finer one and keep their vectors; how far the field is off between them is measured at every node
that was left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import block_grid
from itkstream.blocks.sources import readable_source
from itkstream.errors import InputError
from itkstream.geometry import Block, DisplacementField, Grid, Slices
from itkstream.geometry.lazy_array import DerivedArray

__all__ = [
    "DECIMATION_BLOCK",
    "ERROR_BLOCK",
    "MAX_FIELD_FACTOR",
    "CoarseField",
    "CoarseLattices",
    "coarsen_field",
    "decimate",
    "prepare_decimated",
]

MAX_FIELD_FACTOR = 16
"""Nodes of a field as it was computed, per node and axis of the one that is handed out, at most."""


DECIMATION_BLOCK, ERROR_BLOCK = 128, 64
"""Voxels per axis of the blocks of a field that are thinned out, and whose error is measured."""


# Spacings that are tried, in spacings of the finest axis.
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True, eq=False)
class CoarseField:
    """A field on a coarser lattice, and how far it is from the one it was made of.

    Its nodes are nodes of the finer field, one in `factors` along each axis, with their vectors.
    `error` is the greatest distance between the two, at the nodes of the finer lattice and between
    them, in the unit of the grid.
    """

    field: DisplacementField
    factors: tuple[int, ...]
    error: float


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

    Examples
    --------
    >>> grid = itkstream.Grid((16, 16, 16), (1, 1, 1), axes=("z", "y", "x"))
    >>> still = itkstream.DisplacementField(np.zeros((16, 16, 16, 3), np.float32), grid)
    >>> itkstream.transform.coarsen_field(still, 0.01).field.grid.shape
    (2, 2, 2)
    """
    if not isinstance(field, DisplacementField):
        raise InputError(
            f"coarsen_field takes a DisplacementField; got {type(field).__name__}. Of a field "
            "followed by affines, itkstream.coarsened makes one with a coarser field; of "
            "anything else, make a field first, by itkstream.transform.as_field"
        )
    allowed = 0.05 * min(field.grid.spacing) if tolerance is None else tolerance
    choice = CoarseLattices(field, allowed, max_factor, max_nodes)
    return choice.best(choice.prepare_errors().compute())


@dataclass(frozen=True, eq=False)
class CoarseLattices:
    """The coarser lattices for a field that `coarsen_field` chooses from.

    `tolerance` is in the unit of the grid, `max_factor` at most 32; the bound `max_nodes` goes
    before the tolerance.
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
        """Prepare to measure the error of the field on each lattice, finer to coarser.

        Block grid + (lattices,), float64: the greatest error in each block; infinite beyond the
        first lattice that is out of tolerance there.
        """
        grid, ladder = self.field.grid, self._rungs
        shared = {
            "source": readable_source(self.field.data),
            "ladder": ladder,
            "allowed": float(self.tolerance),
            "least": self._least(),
        }
        blocks = block_grid(grid.shape, (ERROR_BLOCK,) * grid.ndim, 0)
        return map_blocks(
            _error_block, blocks, None, shared, Result(np.float64, (len(ladder),), "block")
        )

    def best(self, errors: NDArray[np.float64]) -> CoarseField:
        """Put the field on the coarsest lattice whose error will do; lazy where it is stored."""
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


def decimate(field: DisplacementField, factors: Sequence[int]) -> DisplacementField:
    """Keep one node in so many along each axis of a field, and both ends, as it is read.

    Lazy, on ``ceil((n - 1) / factor) + 1`` nodes per axis.
    """
    by = tuple(int(f) for f in factors)
    if len(by) != field.ndim or min(by) < 1 or by != tuple(factors):
        raise InputError(f"factors must be {field.ndim} whole numbers >= 1; got {factors}")
    coarse = _decimated_grid(field.grid, by)
    return DisplacementField(_Decimated(readable_source(field.data), by), coarse)


def prepare_decimated(kept: DisplacementField, factors: Sequence[int]) -> da.Array:
    """Prepare to read a decimated field, in blocks of so many nodes of the finer one."""
    shared = {"source": readable_source(kept.data)}
    edges = tuple(max(1, DECIMATION_BLOCK // f) for f in factors)
    blocks = block_grid(kept.grid.shape, edges, 0)
    return map_blocks(_read_block, blocks, None, shared, Result(kept.data.dtype, (kept.ndim,)))


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
        return decimate(field, factors)
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


@dataclass(frozen=True, eq=False)
class _Decimated(DerivedArray):
    """Every so many nodes of a field, and both ends."""

    factors: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        *nodes, n = self.source.shape
        return (*_coarse_shape(tuple(nodes), self.factors), n)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        n = len(self.factors)
        box = tuple(map(slice, start[:n], stop[:n]))
        vectors = _nodes(self.source, box, self.factors, tuple(self.source.shape[:n]))
        return vectors[..., start[n] : stop[n]]


def _read_block(_part: None, block: Block, *, source: Any) -> NDArray[Any]:
    return np.asarray(source[(*block.core, slice(None))])
