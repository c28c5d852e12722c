"""Coarse sees everything: what is solved on a level of the whole image that fits in memory.

Blocks alone fail where the displacement exceeds their overlap or where they hold no texture. The
coarse levels of a deformation are therefore solved on the whole image, shrunk until it fits, and
the blocks start from that with the levels that are left.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from itkstream.block_kernels import WarpSettings, deform_block, warp_block
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    BlockGrid,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Transform,
)
from itkstream.lazy import readable
from itkstream.numerics.fields import shrink_field
from itkstream.numerics.itk_settings import DeformSettings
from itkstream.numerics.mapping import affine_part
from itkstream.numerics.pyramid import shrink
from itkstream.numerics.quality import content_mask
from itkstream.numerics.threads import processors, using_threads

__all__ = [
    "LevelPlan",
    "after_coarse",
    "factors_to_fit",
    "find_content",
    "plan_levels",
    "read_coarse",
    "solve_coarse",
]

logger = logging.getLogger(__name__)

# Planes are read in slabs of about this many voxels: 256 MB of float32 while they are averaged.
SLAB_VOXELS = 64_000_000


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


def read_coarse(image: Image, factors: Sequence[int]) -> Image:
    """Read an image into memory, averaged in groups of voxels, slab by slab.

    Parameters
    ----------
    image : Image
        Numpy, stored or dask.
    factors : sequence of int
        Voxels per group and axis.

    Returns
    -------
    Image
        In memory, float32 where it was averaged; never more than one slab at full resolution was
        held beside it.
    """
    image = readable(image)
    if max(factors) == 1:
        return Image(image.read(), image.grid, image.name)
    plane = image.grid.size // image.shape[0]
    thickness = max(1, SLAB_VOXELS // (plane * factors[0])) * factors[0]
    rest = (slice(None),) * (image.ndim - 1)
    slabs = []
    for start in range(0, image.shape[0], thickness):
        part = image[(slice(start, min(image.shape[0], start + thickness)), *rest)]
        slabs.append(shrink(part.read(), part.grid, factors)[0])
    return Image(np.concatenate(slabs), image.grid.shrink(factors), image.name)


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


def find_content(
    fixed: Image, moving: Image, initial: Transform, blocks: BlockGrid, voxels: float
) -> NDArray[np.bool_]:
    """Which blocks show anything in either image.

    Parameters
    ----------
    fixed, moving : Image
        Numpy, stored or dask; read once, shrunk.
    initial : Transform
        From fixed to moving points, roughly.
    blocks : BlockGrid
        Of the fixed image.
    voxels : float
        Most voxels of the shrunk images.

    Returns
    -------
    ndarray of bool, blocks.numblocks
        False where neither image has content in the padded block, nor within the overlap around
        it and one coarse voxel.
    """
    factors = factors_to_fit(fixed.grid, voxels)
    small = read_coarse(fixed, factors)
    other = read_coarse(moving, factors_to_fit(moving.grid, voxels))
    content = content_mask(small.read())
    seen = Image(content_mask(other.read()).astype(np.float32), other.grid)
    # Any part of a moving voxel with content counts.
    content |= warp_block(seen, initial, small.grid, WarpSettings(dtype=np.float32)) > 0
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
