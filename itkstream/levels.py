"""Coarse sees everything: what is solved on a level of the whole image that fits in memory.

Blocks alone fail where the displacement exceeds their overlap or where they hold no texture. The
coarse levels of a deformation are therefore solved on the whole image, shrunk until it fits, and
the blocks start from that with the levels that are left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.block_kernels import WarpSettings, deform_block, warp_block
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    Block,
    BlockGrid,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Transform,
)
from itkstream.lazy import Result, map_blocks, once, readable
from itkstream.numerics.fields import shrink_field
from itkstream.numerics.itk_settings import DeformSettings
from itkstream.numerics.mapping import affine_part
from itkstream.numerics.pyramid import shrink
from itkstream.numerics.quality import content_mask
from itkstream.numerics.threads import processors, using_threads

__all__ = [
    "LevelPlan",
    "Levels",
    "after_coarse",
    "coarse_blocks",
    "factors_to_fit",
    "find_content",
    "plan_levels",
    "prepare_coarse",
    "prepare_content",
    "prepare_levels",
    "prepare_start",
    "read_coarse",
    "solve_coarse",
]

logger = logging.getLogger(__name__)

Levels = tuple[Image | Delayed, Image | Delayed]
"""The levels of the fixed and the moving image that fit in memory; they may have to be computed."""

# An image is averaged in blocks of about so many voxels, 128 MB of float32 while they are; or more,
# up to the second number, where its chunks would else be read by several blocks.
_BLOCK_VOXELS = 2**24
_WHOLE_CHUNKS_VOXELS = 2**26
# A level is as good as one that is wanted where its voxels are not so many times longer.
_TOO_COARSE = 2.0
# Where the moving image is much larger than the fixed one, a level as fine may be so much larger.
_LARGER_LEVEL = 8


@dataclass(frozen=True)
class LevelPlan:
    """Which levels of a deformation see the whole image.

    Parameters
    ----------
    factors : tuple of int
        By how much the whole image is shrunk, per axis.
    coarse : DeformSettings
        The levels solved on it, relative to it.
    fine : DeformSettings
        The levels left to the blocks; the finest one at least.
    """

    factors: tuple[int, ...]
    coarse: DeformSettings
    fine: DeformSettings


def factors_to_fit(grid: Grid, voxels: float) -> tuple[int, ...]:
    """By how much to shrink an image so that it has at most so many voxels.

    The axis of finest spacing is halved first, so voxels become as near to cubes as they can.

    Parameters
    ----------
    grid : Grid
        The image's lattice.
    voxels : float
        Wanted voxels, at most.

    Returns
    -------
    tuple of int
        A power of 2 per axis; 1 for a small image.
    """
    factors = [1] * grid.ndim
    while np.prod(grid.shrink(factors).shape, dtype=float) > voxels:
        coarse = grid.shrink(factors)
        long = [axis for axis in range(grid.ndim) if coarse.shape[axis] > 1]
        finest = min(long, key=lambda axis: (coarse.spacing[axis], -coarse.shape[axis]))
        factors[finest] *= 2
    return tuple(factors)


def coarse_blocks(
    shape: Sequence[int], chunks: Sequence[int] | None, factors: Sequence[int]
) -> BlockGrid:
    """In which blocks an image is read to be averaged.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the image per axis.
    chunks : sequence of int or None
        Of its store.
    factors : sequence of int
        Voxels per group and axis.

    Returns
    -------
    BlockGrid
        No group, and if that is possible no chunk, lies in two blocks.
    """
    groups = [min(f, n) for f, n in zip(factors, shape, strict=True)]
    steps = [math.lcm(f, c) for f, c in zip(groups, chunks or groups, strict=True)]
    if math.prod(map(min, steps, shape)) > _WHOLE_CHUNKS_VOXELS:
        steps = groups
    size = [min(step, n) for step, n in zip(steps, shape, strict=True)]
    while growing := [k for k, n in enumerate(shape) if size[k] < n]:
        axis = min(growing, key=lambda k: size[k])
        larger = [min(2 * n, shape[k]) if k == axis else n for k, n in enumerate(size)]
        if math.prod(larger) > _BLOCK_VOXELS:
            break
        size = larger
    return BlockGrid(tuple(shape), tuple(size), (0,) * len(size))


def prepare_coarse(image: Image, factors: Sequence[int]) -> da.Array:
    """Prepare an image averaged in groups of voxels, block by block.

    Parameters
    ----------
    image : Image
        Numpy, stored or dask.
    factors : sequence of int
        Voxels per group and axis.

    Returns
    -------
    dask.array.Array, ceil(shape / factors), float32
        Lazy; its lattice is ``image.grid.shrink(factors)``.
    """
    blocks = coarse_blocks(image.shape, image.together, factors)
    groups = tuple(min(f, n) for f, n in zip(factors, image.shape, strict=True))
    result = Result(np.float32, factors=groups)
    return map_blocks(_average_block, blocks, image.data, {"factors": groups}, result)


def read_coarse(image: Image, factors: Sequence[int]) -> Image:
    """Read an image into memory, averaged in groups of voxels, block by block.

    Parameters
    ----------
    image : Image
        Numpy, stored or dask.
    factors : sequence of int
        Voxels per group and axis.

    Returns
    -------
    Image
        In memory, float32 where it was averaged; never more than one block at full resolution was
        held beside it.
    """
    image = readable(image)
    if max(factors) == 1:
        return Image(image.read(), image.grid, image.name)
    groups = tuple(min(f, n) for f, n in zip(factors, image.shape, strict=True))
    grid = image.grid.shrink(factors)
    out = np.empty(grid.shape, np.float32)
    for block in coarse_blocks(image.shape, image.together, factors):
        spans = zip(block.core, groups, strict=True)
        region = tuple(slice(s.start // f, -(-s.stop // f)) for s, f in spans)
        out[region] = _average_block(image[block.core].read(), block, factors=groups)
    return Image(out, grid, image.name)


def prepare_levels(fixed: Image, moving: Image, voxels: float) -> Levels:
    """Prepare the level of both images that fits in memory.

    Parameters
    ----------
    fixed, moving : Image
        Numpy, stored or dask.
    voxels : float
        Most voxels of each level.

    Returns
    -------
    Levels
        Each the image itself where it is small enough, else to be computed: once, whatever needs
        it.
    """
    first, second = (_level(i, factors_to_fit(i.grid, voxels)) for i in (fixed, moving))
    return first, second


def plan_levels(grid: Grid, settings: DeformSettings, voxels: float) -> LevelPlan:
    """Share the levels of a deformation between the whole image and its blocks.

    The whole image takes the levels on which it has at most so many voxels, but never the finest:
    that is for the blocks, side by side. Where no level fits, it gets one of its own, shrunk until
    it does, and the blocks get all.

    Parameters
    ----------
    grid : Grid
        The fixed image's lattice.
    settings : DeformSettings
        All levels.
    voxels : float
        Most voxels of the level the whole image is shrunk to.

    Returns
    -------
    LevelPlan
        Levels for both.

    Raises
    ------
    InputError
        For less than one voxel.
    """
    if not voxels >= 1:
        raise InputError(
            f"coarse_voxels must be at least 1, or 0 for blocks that start alone; got {voxels}"
        )
    shrinks = [int(f) for f in np.ravel(settings.shrink_factors)]
    fitting = [f for f in shrinks[:-1] if _shrunk(grid, f, settings).size <= voxels]
    if fitting:
        count, factor = len(fitting), fitting[-1]
        coarse = _relative(settings.select(slice(count)), factor)
        fine = settings.select(slice(count, None))
        return LevelPlan(_per_axis(grid, factor, settings), coarse, fine)
    factor = 2 * shrinks[0]
    while _shrunk(grid, factor, settings).size > voxels:
        factor *= 2
    first = _relative(settings.select(slice(1)), shrinks[0])
    coarse = first.scaled(factor / shrinks[0])
    return LevelPlan(_per_axis(grid, factor, settings), coarse, settings)


def solve_coarse(
    fixed: Image, moving: Image, initial: Transform, plan: LevelPlan
) -> DisplacementField:
    """Solve the coarse levels of a deformation on the whole image.

    Parameters
    ----------
    fixed, moving : Image
        Numpy or stored; read once, shrunk.
    initial : Transform
        Where to start.
    plan : LevelPlan
        From `plan_levels`.

    Returns
    -------
    DisplacementField
        In front of the initial transform's affine, on half the coarse level's resolution.

    Raises
    ------
    RegistrationError
        Where the images do not overlap or hold no texture.
    """
    with using_threads(processors()):
        small = read_coarse(fixed, plan.factors)
        other = read_coarse(moving, _moving_factors(fixed, moving, plan))
        estimate = deform_block(small, other, initial, plan.coarse)
    if estimate.displacement is None:
        raise RegistrationError(f"no deformation could be found: {estimate.reason}")
    logger.info("coarse levels on %s voxels: %s", small.shape, estimate.levels)
    halved = (2,) * fixed.ndim
    return DisplacementField(shrink_field(estimate.displacement, halved), small.grid.shrink(halved))


def prepare_start(
    images: tuple[Image, Image],
    initial: Transform | Delayed,
    plan: LevelPlan,
    voxels: float,
    levels: Levels,
) -> Delayed:
    """Prepare where the blocks of a deformation start: what the whole image shows.

    Parameters
    ----------
    images : (Image, Image)
        Fixed and moving; averaged only where the levels are too coarse for the plan.
    initial : Transform or Delayed
        From fixed to moving points.
    plan : LevelPlan
        From `plan_levels`.
    voxels : float
        Most voxels of each level.
    levels : Levels
        Of the images, from `prepare_levels` with so many voxels.

    Returns
    -------
    Delayed
        A `Transform` from fixed to moving points.
    """
    wanted = plan.factors, _moving_factors(*images, plan)
    sources: list[Image | Delayed] = []
    rest: list[tuple[int, ...]] = []
    for image, level, factors in zip(images, levels, wanted, strict=True):
        there = factors_to_fit(image.grid, voxels)
        fine = all(b < _TOO_COARSE * f for b, f in zip(there, factors, strict=True))
        fine = fine or image.grid.shrink(factors).size > _LARGER_LEVEL * voxels
        sources.append(level if fine else _level(image, factors))
        known = there if fine else factors
        rest.append(tuple(max(1, round(f / b)) for f, b in zip(factors, known, strict=True)))
    return once(_start, *sources, initial, replace(plan, factors=rest[0]))


def prepare_content(
    images: tuple[Image, Image],
    initial: Transform | Delayed,
    blocks: BlockGrid,
    voxels: float,
    levels: Levels | None = None,
) -> Delayed:
    """Prepare which blocks show anything in either image, see `find_content`.

    Parameters
    ----------
    images : (Image, Image)
        Fixed and moving.
    initial : Transform or Delayed
        From fixed to moving points, roughly.
    blocks : BlockGrid
        Of the fixed image.
    voxels : float
        Most voxels of each level.
    levels : Levels, optional
        Of the images, from `prepare_levels` with so many voxels; default they are computed.

    Returns
    -------
    Delayed
        An ndarray of bool, blocks.numblocks.
    """
    levels = levels or prepare_levels(*images, voxels)
    factors = factors_to_fit(images[0].grid, voxels)
    return once(find_content, *levels, initial, blocks, factors)


def find_content(
    fixed: Image, moving: Image, initial: Transform, blocks: BlockGrid, factors: Sequence[int]
) -> NDArray[np.bool_]:
    """Which blocks show anything in either image.

    Parameters
    ----------
    fixed, moving : Image
        Coarse levels of the images.
    initial : Transform
        From fixed to moving points, roughly.
    blocks : BlockGrid
        Of the fixed image at full resolution.
    factors : sequence of int
        By how much the fixed image was shrunk.

    Returns
    -------
    ndarray of bool, blocks.numblocks
        False where neither image has content in the padded block, nor within the overlap around
        it and one coarse voxel.
    """
    content = content_mask(fixed.read())
    seen = Image(content_mask(moving.read()).astype(np.float32), moving.grid)
    # Any part of a moving voxel with content counts.
    content |= warp_block(seen, initial, fixed.grid, WarpSettings(dtype=np.float32)) > 0
    keep = np.zeros(blocks.numblocks, bool)
    for block in blocks:
        near = tuple(
            slice(max(0, (s.start - halo) // f - 1), -(-(s.stop + halo) // f) + 1)
            for s, halo, f in zip(block.padded, blocks.overlap, factors, strict=True)
        )
        keep[block.index] = content[near].any()
    logger.info("%d of %d blocks hold content", keep.sum(), len(blocks))
    return keep


def after_coarse(field: DisplacementField, initial: Transform) -> Transform:
    """Where blocks start: the coarse displacement, then the initial transform's affine part.

    Parameters
    ----------
    field : DisplacementField
        From `solve_coarse`.
    initial : Transform
        What it was solved on.

    Returns
    -------
    Transform
        From fixed to moving points.
    """
    return CompositeTransform((field, affine_part(initial)))


def _level(image: Image, factors: tuple[int, ...]) -> Image | Delayed:
    image = readable(image)
    if max(factors) == 1:
        return image
    return once(_as_image, prepare_coarse(image, factors), image.grid.shrink(factors), image.name)


def _as_image(voxels: NDArray[Any], grid: Grid, name: str) -> Image:
    return Image(voxels, grid, name)


def _average_block(part: NDArray[Any], block: Block, *, factors: Sequence[int]) -> NDArray[Any]:
    """Means of the groups of a block; a group that sticks out repeats the last voxel."""
    room = [(0, -n % f) for n, f in zip(part.shape, factors, strict=True)]
    if np.any(room):
        part = np.pad(part, room, mode="edge")
    return shrink(part, Grid(part.shape, (1.0,) * part.ndim), factors)[0]


def _start(fixed: Image, moving: Image, initial: Transform, plan: LevelPlan) -> Transform:
    return after_coarse(solve_coarse(fixed, moving, initial, plan), initial)


def _per_axis(grid: Grid, factor: int, settings: DeformSettings) -> tuple[int, ...]:
    if not settings.isotropic:
        return (factor,) * grid.ndim
    finest = min(grid.spacing)
    return tuple(max(1, round(factor * finest / h)) for h in grid.spacing)


def _shrunk(grid: Grid, factor: int, settings: DeformSettings) -> Grid:
    return grid.shrink(_per_axis(grid, factor, settings))


def _moving_factors(fixed: Image, moving: Image, plan: LevelPlan) -> tuple[int, ...]:
    """Moving voxels as long as the coarse voxels of the fixed image, axis by axis."""
    coarse = [h * f for h, f in zip(fixed.spacing, plan.factors, strict=True)]
    return tuple(max(1, round(c / h)) for c, h in zip(coarse, moving.spacing, strict=True))


def _relative(settings: DeformSettings, factor: int) -> DeformSettings:
    """The levels as an image that is shrunk by `factor` already has them."""
    shrinks = np.ravel(settings.shrink_factors)
    return replace(settings, shrink_factors=tuple(max(1, round(f / factor)) for f in shrinks))
