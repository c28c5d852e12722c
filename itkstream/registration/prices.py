"""What every step of a registration costs: blocks, tasks, memory, disk, work.

A price is a number of bytes per voxel, measured once and checked by a test against a run, times the
voxels a step holds at a time. No voxel is read. `itkstream.registration.plan` compares the sum with
the memory there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from itkstream.apply.coarsening import DECIMATION_BLOCK, ERROR_BLOCK, MAX_FIELD_FACTOR
from itkstream.blocks.inputs import block_grid
from itkstream.blocks.levels import coarse_blocks, factors_to_fit
from itkstream.estimate.coarse import plan_levels
from itkstream.estimate.deformation import deform_blocks, field_factors
from itkstream.geometry import BlockGrid, Grid
from itkstream.io.storage.stored import KEPT_BYTES
from itkstream.registration.steps import (
    Deformable,
    IntensityAffine,
    LocalAffines,
    Method,
    RansacAffine,
    RegisterSettings,
    Step,
    step_name,
)

__all__ = ["Pair", "StepPrice", "price_steps"]

PROCESS_BYTES = 480e6
"""A process with this package's libraries, compiled functions and what the allocator keeps."""

_FLOAT = 4
# Bytes per voxel that a step holds, beyond what is held all along.
_COARSE = 5.0
# As a block of an image is averaged: as float32, half of it after one axis, and where it is NaN.
_AVERAGING = 7.0
_KEY_POINTS = 10.0
_INTENSITIES = 24.0
_QUALITY = 52.0
# A block of 96^3 voxels that starts from a field took 56, 120, 187, 187 and 227; the rest is for
# blending it.
_DEFORM: dict[Method, float] = {
    "lcc": 62.0,
    "bspline": 130.0,
    "demons": 200.0,
    "symmetric-demons": 200.0,
    "diffeomorphic-demons": 240.0,
}
# At least so much in planes: "lcc" took 91 there, as coarser levels are a quarter and no eighth.
_DEFORM_PLANE = 98.0
_WARP = 24.0
# Bytes per number of a field: where its coarser lattices are measured, and where nodes are kept.
_MEASURE, _DECIMATE = 32.0, 10.0
# Blobs are at least so many voxels apart in all, as nuclei are.
_VOXELS_PER_POINT = 4000

# A block that is blended needs those around it and what stands for them where they fail.
_TASKS_BLENDED = 3
_TASKS_WRITTEN = 1


@dataclass(frozen=True)
class Pair:
    """Two images to be registered, without their voxels.

    Parameters
    ----------
    fixed, moving : Grid
        Their lattices.
    dtype : dtype
        Voxel type of the moving image.
    settings : RegisterSettings
        Of the run.
    chunks : tuple of (tuple of int or None)
        Voxels that are stored together in both images, None where they are not known.
    """

    fixed: Grid
    moving: Grid
    dtype: DTypeLike
    settings: RegisterSettings
    chunks: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None)

    @property
    def itemsize(self) -> int:
        """Bytes of a moving voxel."""
        return np.dtype(self.dtype).itemsize

    @property
    def image_bytes(self) -> tuple[float, float]:
        """Of the voxels of both images, which are taken to be of one type."""
        return float(self.fixed.size * self.itemsize), float(self.moving.size * self.itemsize)

    @property
    def coarse(self) -> tuple[Grid, Grid]:
        """The level that is held in memory, of both."""
        voxels = self.settings.coarse_voxels
        fixed, moving = (g.shrink(factors_to_fit(g, voxels)) for g in (self.fixed, self.moving))
        return fixed, moving

    @property
    def held(self) -> float:
        """Bytes the coarse levels take all along."""
        return sum(grid.size for grid in self.coarse) * _COARSE

    @property
    def judged(self) -> float:
        """Bytes for the coarse levels and for comparing them, as after every step."""
        return self.held + self.coarse[0].size * _QUALITY

    def blocks(self, size: int) -> BlockGrid:
        """Blocks of the fixed image without overlap.

        Parameters
        ----------
        size : int
            Voxels per axis.

        Returns
        -------
        BlockGrid
            At full resolution.
        """
        return block_grid(self.fixed.shape, (size,) * self.fixed.ndim, 0)


@dataclass(frozen=True)
class StepPrice:
    """What one step costs.

    Parameters
    ----------
    name : str
        Of the step.
    blocks : int
        Blocks it is cut into.
    blocksize : tuple of int
        Voxels of a block per axis, without its overlap.
    tasks : int
        Tasks given to the workers.
    once : float
        Bytes held once in the process that runs the step, beside the blocks.
    per_block : float
        Bytes of every block that is computed at a time.
    kept : float
        Bytes of the chunks of stored arrays that a process of up to four threads keeps.
    disk : float
        Bytes of the results before compression; what is written is seldom more.
    work : float
        Voxels computed, overlaps included.
    kind : {'', 'read', 'points', 'deform', 'warp'}
        Which measured rate tells the time.
    """

    name: str
    blocks: int = 1
    blocksize: tuple[int, ...] = ()
    tasks: int = 1
    once: float = 0.0
    per_block: float = 0.0
    kept: float = 0.0
    disk: float = 0.0
    work: float = 0.0
    kind: str = ""


def price_steps(pair: Pair, steps: Sequence[Step]) -> tuple[StepPrice, ...]:
    """The price of everything `itkstream.register` does.

    Parameters
    ----------
    pair : Pair
        The images and the settings of the run.
    steps : sequence of Step
        Of the registration.

    Returns
    -------
    tuple of StepPrice
        In the order in which they run.
    """
    prices = [_price_reading(pair)]
    prices += [_PRICES[type(step)](pair, step) for step in steps]
    if not steps or not isinstance(steps[-1], Deformable):
        prices.append(_price_sampled(pair))
    field = _computed_on(pair, steps[-1] if steps else None)
    if pair.settings.field_tolerance_vox:
        prices.append(_price_field(pair, field))
    return (*prices, _price_aligned(pair, field), _price_files(pair, field))


def _price_reading(pair: Pair) -> StepPrice:
    work = float(pair.fixed.size + pair.moving.size)
    large = [
        coarse_blocks(grid.shape, chunks, factors_to_fit(grid, pair.settings.coarse_voxels))
        for grid, small, chunks in zip(
            (pair.fixed, pair.moving), pair.coarse, pair.chunks, strict=True
        )
        if small.size < grid.size
    ]
    if not large:
        return StepPrice("read", once=pair.judged, work=work, kind="read")
    counts = [_counts(blocks, 1 + _TASKS_WRITTEN) for blocks in large]
    return StepPrice(
        "read",
        sum(count for count, _, _ in counts),
        max(size for _, size, _ in counts),
        sum(tasks for _, _, tasks in counts),
        once=pair.judged,
        per_block=max(map(_largest, large)) * (pair.itemsize + _AVERAGING),
        disk=float(sum(_FLOAT * grid.size for grid in pair.coarse)),
        work=work,
        kind="read",
    )


def _price_ransac(pair: Pair, step: RansacAffine) -> StepPrice:
    size = float(sum(grid.size for grid in pair.coarse))
    once = pair.held + size * _KEY_POINTS + _contexts(step, size, pair.fixed.ndim)
    return StepPrice(step_name(step), once=max(once, pair.judged), work=size, kind="points")


def _price_intensity(pair: Pair, step: IntensityAffine) -> StepPrice:
    once = pair.held + sum(grid.size for grid in pair.coarse) * _INTENSITIES
    return StepPrice(step_name(step), once=max(once, pair.judged))


def _price_local(pair: Pair, step: LocalAffines) -> StepPrice:
    coarse = pair.coarse[0]
    blocks = block_grid(coarse.shape, (step.blocksize,) * coarse.ndim, step.overlap)
    size = _largest(blocks)
    return StepPrice(
        step_name(step),
        *_counts(blocks, _TASKS_BLENDED),
        once=pair.held,
        per_block=2 * size * _KEY_POINTS + _contexts(step, 2 * size, coarse.ndim),
        work=2 * _work(blocks),
        kind="points",
    )


def _price_deformable(pair: Pair, step: Deformable) -> StepPrice:
    grid, voxels = pair.fixed, pair.settings.coarse_voxels
    blocks = deform_blocks(grid, step.blocksize, step.overlap, voxels)
    coarse, bytes_per_voxel = 0.0, _DEFORM[step.method]
    if grid.ndim == 2:
        bytes_per_voxel = max(bytes_per_voxel, _DEFORM_PLANE)
    if len(blocks) > 1:
        plan = plan_levels(grid, step.settings_for(grid.spacing), voxels)
        coarse = grid.shrink(plan.factors).size * bytes_per_voxel
    return StepPrice(
        step_name(step),
        *_counts(blocks, _TASKS_BLENDED + _TASKS_WRITTEN),
        once=pair.held + coarse,
        per_block=_largest(blocks) * bytes_per_voxel,
        kept=_kept(*pair.image_bytes) if len(blocks) > 1 else 0.0,
        disk=_field_bytes(_computed_on(pair, step)),
        work=_work(blocks),
        kind="deform",
    )


def _price_sampled(pair: Pair) -> StepPrice:
    blocks = pair.blocks(pair.settings.blocksize)
    return StepPrice(
        "sampled field",
        *_counts(blocks, 1 + _TASKS_WRITTEN),
        once=pair.held,
        per_block=_largest(blocks) * _WARP,
        # Of the last deformation, where affines follow it.
        kept=_kept(_field_bytes(_computed_on(pair, None))),
        disk=_field_bytes(_computed_on(pair, None)),
        work=float(pair.fixed.size),
        kind="warp",
    )


def _price_field(pair: Pair, field: Grid) -> StepPrice:
    blocks = block_grid(field.shape, (DECIMATION_BLOCK,) * field.ndim, 0)
    measured = block_grid(field.shape, (ERROR_BLOCK,) * field.ndim, 0)
    around = prod(min(n, ERROR_BLOCK + 2 * MAX_FIELD_FACTOR) for n in field.shape)
    number, size, tasks = _counts(blocks, 1 + _TASKS_WRITTEN)
    return StepPrice(
        "field",
        number,
        size,
        tasks + len(measured),
        once=pair.held,
        kept=_kept(_field_bytes(field)),
        per_block=field.ndim * max(around * _MEASURE, _largest(blocks) * _DECIMATE),
        # How coarse it may be is not known before.
        disk=_field_bytes(field),
    )


def _price_aligned(pair: Pair, field: Grid) -> StepPrice:
    blocks = pair.blocks(pair.settings.blocksize)
    # The levels of the pyramid below full resolution.
    lower = 1.0 / (2**pair.fixed.ndim - 1)
    return StepPrice(
        "aligned image",
        *_counts(blocks, 1 + _TASKS_WRITTEN),
        once=pair.held,
        per_block=_largest(blocks) * (_WARP + 4 * pair.itemsize),
        kept=_kept(pair.image_bytes[1], _field_bytes(field)),
        disk=pair.fixed.size * pair.itemsize * (1.0 + lower),
        work=float(pair.fixed.size),
        kind="warp",
    )


def _price_files(pair: Pair, field: Grid) -> StepPrice:
    # ITK holds fields as doubles.
    return StepPrice("ITK files", once=pair.held, disk=2 * _field_bytes(field))


_PRICES: dict[type[Any], Callable[..., StepPrice]] = {
    RansacAffine: _price_ransac,
    IntensityAffine: _price_intensity,
    LocalAffines: _price_local,
    Deformable: _price_deformable,
}


def _contexts(step: RansacAffine | LocalAffines, voxels: float, ndim: int) -> float:
    """The neighbourhoods of all key points."""
    points = min(2 * step.nspots, voxels / _VOXELS_PER_POINT)
    return points * (2 * step.cc_radius + 1) ** ndim * _FLOAT


def _counts(blocks: BlockGrid, tasks: int) -> tuple[int, tuple[int, ...], int]:
    return len(blocks), tuple(lengths[0] for lengths in blocks.chunks), tasks * len(blocks)


def _largest(blocks: BlockGrid) -> float:
    """Voxels of the largest block with its overlap."""
    spans = zip(blocks.chunks, blocks.overlap, blocks.shape, strict=True)
    return float(prod(min(n, max(c) + 2 * o) for c, o, n in spans))


def _work(blocks: BlockGrid) -> float:
    """Voxels of all blocks with their overlaps; there is none beyond the image's border."""
    spans = zip(blocks.shape, blocks.numblocks, blocks.overlap, strict=True)
    return float(prod(n + 2 * o * (count - 1) for n, count, o in spans))


def _kept(*sizes: float) -> float:
    """Chunks of arrays of these sizes."""
    return sum(min(size, KEPT_BYTES) for size in sizes)


def _computed_on(pair: Pair, last: Step | None) -> Grid:
    """The lattice of a field as it is computed: half the resolution, where no deformation is."""
    grid = pair.fixed
    if not isinstance(last, Deformable):
        return grid.shrink((2,) * grid.ndim)
    blocks = deform_blocks(grid, last.blocksize, last.overlap, pair.settings.coarse_voxels)
    return grid.shrink(field_factors(last.settings_for(grid.spacing), grid, blocks))


def _field_bytes(field: Grid) -> float:
    """A float32 displacement field."""
    return float(_FLOAT * field.ndim * field.size)
