"""Costs of a step of a registration: blocks, tasks, memory, disk, work.

A price is a number of bytes per voxel, measured once and checked by a test against a run, times the
voxels a step holds at a time. No voxel is read. A step's own price stands beside it, those of what
every run does here; `itkstream.registration.plan` compares the sum with the memory there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import DTypeLike

from itkstream.apply.coarsening import DECIMATION_BLOCK, ERROR_BLOCK, MAX_FIELD_FACTOR
from itkstream.blocks.inputs import block_grid
from itkstream.blocks.levels import coarse_blocks, factors_to_fit
from itkstream.geometry import BlockGrid, Grid
from itkstream.io.storage.stored import KEPT_BYTES
from itkstream.judge.error_map import OVERVIEW_BYTES, ErrorLattice
from itkstream.registration.settings import RegisterSettings

__all__ = [
    "COMPILE_SECONDS",
    "COMPILING",
    "PROCESS_BYTES",
    "RATES",
    "TASKS_BLENDED",
    "TASKS_WRITTEN",
    "Pair",
    "StepPrice",
    "count_blocks",
    "field_bytes",
    "kept_bytes",
    "largest_block",
    "price_aligned",
    "price_certificate",
    "price_compiling",
    "price_error",
    "price_field",
    "price_files",
    "price_reading",
    "price_report",
    "price_sampled",
    "price_verdict",
    "share_of",
    "work_of",
]

PROCESS_BYTES = 520e6
"""A process with this package's libraries, compiled functions and what the allocator keeps.

With 480e6, registrations of 176 x 160 x 112 voxels took up to 26e6 more than their price, the
most where functions were compiled in the same process.
"""

TASKS_BLENDED = 3
"""A block that is blended needs those around it and what stands for them where they fail."""

TASKS_WRITTEN = 1
"""A block that is written."""

COMPILING = "first compile"
"""The name of what is priced where functions were not compiled yet."""

COMPILE_SECONDS = 15.0
"""The first run after an installation compiles; seconds of one core."""

RATES: dict[str, float] = {
    "read": 6.5e-8,
    "points": 7.5e-8,
    "deform": 5.8e-7,
    "field": 9e-8,
    "warp": 7e-8,
    "certificate": 3e-8,
    "error": 1.35e-7,
    "verdict": 1.3e-7,
    "files": 1.3e-7,
    "report": 5e-8,
}
"""Seconds per voxel of each kind of work, of one core: `python tests/benchmarks/prices.py`."""

# What a part takes beside that, the median over pairs. The sum is 1.1 (demo), 1.2 (easifish), 1.25
# (neuron) and 0.85 times (membranes) what was measured; of 14 pairs, before key points were found
# quicker, half of it where directions were searched or an intensity affine was tried again: neither
# is known before.
_READ_SECONDS, _REPORT_SECONDS = 0.1, 0.2
# Of the overview by which the error map is read, on a level of at most so many voxels.
_OVERVIEW_SECONDS, _OVERVIEW_VOXELS = 1.5, 2.5e5

_FLOAT = 4
# Bytes per voxel that a step holds, beyond what is held all along.
_COARSE = 5.0
# As a block of an image is averaged: as float32, half of it after one axis, and where it is NaN.
_AVERAGING = 7.0
_QUALITY = 52.0
_WARP = 24.0
# Bytes per number of a field: where its coarser lattices are measured, and where nodes are kept.
_MEASURE, _DECIMATE = 32.0, 10.0
# Bytes of a block in which patches are compared: per fixed voxel beside it, per voxel of the level,
# and of the patches that are compared at a time.
_SLAB, _BANDS, _BATCH = 2.0, 88.0, 32e6


@dataclass(frozen=True)
class Pair:
    """Two images to be registered, without their voxels, and the settings of the run.

    `dtype` is that of the moving image; `chunks` are the voxels that are stored together in both
    images, None where they are not known; so many `channels` of both are compared.
    """

    fixed: Grid
    moving: Grid
    dtype: DTypeLike
    settings: RegisterSettings
    chunks: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None)
    channels: int = 1

    @property
    def itemsize(self) -> int:
        """Bytes of a moving voxel."""
        return np.dtype(self.dtype).itemsize

    @property
    def image_bytes(self) -> tuple[float, float]:
        """Bytes of the voxels of both images, which are taken to be of one type."""
        return float(self.fixed.size * self.itemsize), float(self.moving.size * self.itemsize)

    @property
    def coarse(self) -> tuple[Grid, Grid]:
        """The lattices of the levels that are held in memory."""
        voxels = self.settings.coarse_voxels
        fixed, moving = (g.shrink(factors_to_fit(g, voxels)) for g in (self.fixed, self.moving))
        return fixed, moving

    @property
    def half(self) -> Grid:
        """The fixed lattice at half the resolution."""
        return self.fixed.shrink((2,) * self.fixed.ndim)

    @property
    def held(self) -> float:
        """Bytes the coarse levels take all along."""
        return self.channels * sum(grid.size for grid in self.coarse) * _COARSE

    @property
    def judged(self) -> float:
        """Bytes for the coarse levels and for comparing them, as after every step."""
        return self.held + self.coarse[0].size * _QUALITY

    def blocks(self, size: int) -> BlockGrid:
        """Blocks of the fixed image at full resolution without overlap, of `size` per axis."""
        return block_grid(self.fixed.shape, (size,) * self.fixed.ndim, 0)


@dataclass(frozen=True)
class StepPrice:
    """Costs of one step.

    It is cut into `blocks` of `blocksize` voxels without their overlaps, and gives `tasks` to the
    workers. Bytes: `once` in the process that runs the step; `per_block` for every block that is
    computed at a time; `kept` of the chunks of stored arrays that a process of up to four threads
    keeps; `disk` of the results before compression, which seldom grows them. `work` counts the
    voxels computed, overlaps included, at the rate of their `kind` (of `RATES`; '' for none), and
    `seconds` what it takes beside them. Its `title` is that on the screen, its name if empty.
    `device` are the bytes that a block takes on a GPU, 0 where the step uses none.
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
    seconds: float = 0.0
    title: str = ""
    device: float = 0.0


def price_compiling() -> StepPrice:
    """Price the first run after an installation, in which functions are compiled."""
    return StepPrice(COMPILING, seconds=COMPILE_SECONDS)


def price_reading(pair: Pair) -> StepPrice:
    """Price the averaging of both images to their coarse levels."""
    work = float(pair.channels * (pair.fixed.size + pair.moving.size))
    large = [
        coarse_blocks(grid.shape, chunks, factors_to_fit(grid, pair.settings.coarse_voxels))
        for grid, small, chunks in zip(
            (pair.fixed, pair.moving), pair.coarse, pair.chunks, strict=True
        )
        if small.size < grid.size
    ]
    if not large:
        return StepPrice("read", once=pair.judged, work=work, kind="read", seconds=_READ_SECONDS)
    counts = [count_blocks(blocks, 1 + TASKS_WRITTEN) for blocks in large]
    return StepPrice(
        "read",
        pair.channels * sum(count for count, _, _ in counts),
        max(size for _, size, _ in counts),
        pair.channels * sum(tasks for _, _, tasks in counts),
        once=pair.judged,
        per_block=max(map(largest_block, large)) * (pair.itemsize + _AVERAGING),
        disk=float(pair.channels * sum(_FLOAT * grid.size for grid in pair.coarse)),
        work=work,
        kind="read",
        seconds=_READ_SECONDS,
    )


def price_sampled(pair: Pair) -> StepPrice:
    """Price the sampling of a transform that is no field."""
    blocks = pair.blocks(pair.settings.blocksize)
    return StepPrice(
        "sampled field",
        *count_blocks(blocks, 1 + TASKS_WRITTEN),
        once=pair.held,
        per_block=largest_block(blocks) * _WARP,
        # Of the last deformation, where affines follow it.
        kept=kept_bytes(field_bytes(pair.half)),
        disk=field_bytes(pair.half),
        work=float(pair.fixed.size),
        kind="warp",
    )


def price_field(pair: Pair, field: Grid) -> StepPrice:
    """Price the thinning of a field to the tolerance."""
    blocks = block_grid(field.shape, (DECIMATION_BLOCK,) * field.ndim, 0)
    measured = block_grid(field.shape, (ERROR_BLOCK,) * field.ndim, 0)
    around = prod(min(n, ERROR_BLOCK + 2 * MAX_FIELD_FACTOR) for n in field.shape)
    number, size, tasks = count_blocks(blocks, 1 + TASKS_WRITTEN)
    return StepPrice(
        "field",
        number,
        size,
        tasks + len(measured),
        once=pair.held,
        kept=kept_bytes(field_bytes(field)),
        per_block=field.ndim * max(around * _MEASURE, largest_block(blocks) * _DECIMATE),
        work=float(field.size),
        kind="field",
        # How coarse it may be is not known before.
        disk=field_bytes(field),
    )


def price_aligned(pair: Pair, field: Grid) -> StepPrice:
    """Price the aligned image."""
    blocks = pair.blocks(pair.settings.blocksize)
    # The levels of the pyramid below full resolution.
    lower = 1.0 / (2**pair.fixed.ndim - 1)
    return StepPrice(
        "aligned image",
        *count_blocks(blocks, 1 + TASKS_WRITTEN),
        once=pair.held,
        per_block=largest_block(blocks) * (_WARP + 4 * pair.itemsize),
        kept=kept_bytes(pair.image_bytes[1], field_bytes(field)),
        disk=pair.fixed.size * pair.itemsize * (1.0 + lower),
        work=float(pair.fixed.size),
        kind="warp",
    )


def price_error(pair: Pair, field: Grid) -> StepPrice:
    """Price the error map."""
    lattice = ErrorLattice.of(pair.fixed, pair.settings.blocksize)
    blocks = lattice.blocks
    per_voxel = pair.itemsize + _SLAB + _BANDS / prod(lattice.factors)
    per_block = _BATCH + lattice.most_voxels * per_voxel
    return StepPrice(
        "error map",
        *count_blocks(blocks, 2 + TASKS_WRITTEN),
        # The overview is done when blocks are computed.
        once=pair.held + max(0.0, OVERVIEW_BYTES - per_block),
        per_block=per_block,
        kept=kept_bytes(pair.image_bytes[1], field_bytes(field)),
        disk=float(2 * _FLOAT * lattice.nodes.size),
        work=lattice.most_voxels * len(blocks),
        kind="error",
        seconds=_OVERVIEW_SECONDS * share_of(pair.fixed, _OVERVIEW_VOXELS),
    )


def price_certificate(pair: Pair) -> StepPrice:
    """Price the proof that the transform does not fold and can be inverted."""
    return StepPrice("certificate", once=pair.held, work=float(pair.half.size), kind="certificate")


def price_verdict(pair: Pair) -> StepPrice:
    """Price the verdict, which compares the coarse levels once more."""
    size = float(pair.coarse[0].size)
    return StepPrice("verdict", once=pair.held, work=size, kind="verdict")


def price_files(pair: Pair, field: Grid) -> StepPrice:
    """Price the files for ITK, which holds fields as doubles."""
    return StepPrice(
        "ITK files",
        once=pair.held,
        disk=2 * field_bytes(field),
        work=float(field.size),
        kind="files",
    )


def price_report(pair: Pair) -> StepPrice:
    """Price the page of pictures, which shows the coarse levels."""
    size = float(sum(grid.size for grid in pair.coarse))
    return StepPrice("report", work=size, kind="report", seconds=_REPORT_SECONDS)


def count_blocks(blocks: BlockGrid, tasks: int) -> tuple[int, tuple[int, ...], int]:
    """Blocks, voxels of one without its overlap, and tasks, so many a block, as `StepPrice`."""
    return len(blocks), tuple(lengths[0] for lengths in blocks.chunks), tasks * len(blocks)


def share_of(grid: Grid, most: float) -> float:
    """Share of what a part takes that is left where it looks at so many voxels at most."""
    return min(1.0, grid.size / most)


def largest_block(blocks: BlockGrid) -> float:
    """Voxels of the largest block with its overlap."""
    spans = zip(blocks.chunks, blocks.overlap, blocks.shape, strict=True)
    return float(prod(min(n, max(c) + 2 * o) for c, o, n in spans))


def work_of(blocks: BlockGrid) -> float:
    """Voxels of all blocks with their overlaps; there is none beyond the image's border."""
    spans = zip(blocks.shape, blocks.numblocks, blocks.overlap, strict=True)
    return float(prod(n + 2 * o * (count - 1) for n, count, o in spans))


def kept_bytes(*sizes: float) -> float:
    """Bytes of the chunks that a process keeps of stored arrays of these sizes."""
    return sum(min(size, KEPT_BYTES) for size in sizes)


def field_bytes(field: Grid) -> float:
    """Bytes of a float32 displacement field."""
    return float(_FLOAT * field.ndim * field.size)
