"""Coarse sees everything: what is solved on a level of the whole image that fits in memory.

Blocks alone fail where the displacement exceeds their overlap or where they hold no texture. The
coarse levels of a deformation are therefore solved on the whole image, and the blocks start from
that with the levels that are left; which blocks show anything at all is seen there too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from attrs import evolve
from dask.delayed import Delayed

from itkstream.blocks.graph import once
from itkstream.blocks.levels import Levels, factors_to_fit, prepare_level, read_coarse
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    ChannelPair,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Landmarks,
    Transform,
)
from itkstream.geometry.grid import voxels_spanning
from itkstream.numerics.deformation.continuation import Beyond
from itkstream.numerics.engines import deform_block
from itkstream.numerics.itk.settings import DeformSettings
from itkstream.numerics.sampling.fields import shrink_field
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.numerics.threads import threads_for, using_threads

__all__ = [
    "Aids",
    "LevelPlan",
    "LevelledPair",
    "after_coarse",
    "coarse_channels",
    "factors_per_axis",
    "moving_factors",
    "plan_levels",
    "prepare_start",
    "relative_levels",
    "solve_coarse",
]

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=DeformSettings)

# A level is as good as one that is wanted where its voxels are not so many times longer.
_TOO_COARSE = 2.0
# Where the moving image is much larger than the fixed one, a level as fine may be so much larger.
_LARGER_LEVEL = 8


@dataclass(frozen=True, eq=False)
class Aids:
    """Aids of a deformation beside two images: landmarks, where it goes on, further channels."""

    landmarks: Landmarks | None = None
    beyond: Beyond | None = None
    others: tuple[ChannelPair, ...] = ()


@dataclass(frozen=True)
class LevelPlan:
    """Levels of a deformation that see the whole image, shrunk by so many voxels per axis.

    `coarse` are the levels solved on it, relative to it; `fine` are those left to the blocks, the
    finest one at least.
    """

    factors: tuple[int, ...]
    coarse: DeformSettings
    fine: DeformSettings


def plan_levels(grid: Grid, settings: DeformSettings, voxels: float) -> LevelPlan:
    """Share the levels of a deformation between the whole image and its blocks.

    The whole image takes the levels on which it has at most so many voxels, but never the finest:
    that is for the blocks, side by side. Where no level fits, it gets one of its own, shrunk until
    it does, and the blocks get all.
    """
    if not voxels >= 1:
        raise InputError(
            f"coarse_voxels must be at least 1, or 0 for blocks that start alone; got {voxels}"
        )
    shrinks = [int(f) for f in np.ravel(settings.shrink_factors)]
    fitting = [f for f in shrinks[:-1] if _shrunk(grid, f, settings).size <= voxels]
    if fitting:
        count, factor = len(fitting), fitting[-1]
        coarse = relative_levels(settings.select(slice(count)), factor)
        fine = settings.select(slice(count, None))
        return LevelPlan(factors_per_axis(grid, factor, settings.isotropic), coarse, fine)
    factor = 2 * shrinks[0]
    while _shrunk(grid, factor, settings).size > voxels:
        factor *= 2
    first = relative_levels(settings.select(slice(1)), shrinks[0])
    coarse = first.scaled(factor / shrinks[0])
    return LevelPlan(factors_per_axis(grid, factor, settings.isotropic), coarse, settings)


def solve_coarse(
    fixed: Image,
    moving: Image,
    initial: Transform,
    plan: LevelPlan,
    aids: Aids | None = None,
) -> DisplacementField:
    """Solve the coarse levels of a deformation on the whole images, which are read once, shrunk.

    The field lies in front of the initial transform's affine, on half the coarse level's
    resolution. Raises a `RegistrationError` where the images do not overlap or hold no texture.
    """
    aids = aids or Aids()
    factors = plan.factors, moving_factors(fixed.grid, moving.grid, plan.factors)
    with using_threads(threads_for(fixed.grid.shrink(factors[0]).size)):
        small, other = read_coarse(fixed, factors[0]), read_coarse(moving, factors[1])
        others = coarse_channels(aids.others, factors)
        estimate = deform_block(
            small, other, initial, plan.coarse, aids.landmarks, aids.beyond, others
        )
    if estimate.displacement is None:
        raise RegistrationError(f"no deformation could be found: {estimate.reason}")
    logger.info("coarse levels on %s voxels: %s", small.shape, estimate.levels)
    halved = (2,) * fixed.ndim
    return DisplacementField(shrink_field(estimate.displacement, halved), small.grid.shrink(halved))


def coarse_channels(
    pairs: Sequence[ChannelPair], factors: tuple[Sequence[int], Sequence[int]]
) -> tuple[ChannelPair, ...]:
    """Read channels into memory, the fixed and the moving one averaged by so many voxels."""
    return tuple(
        replace(
            pair,
            fixed=read_coarse(pair.fixed, factors[0]),
            moving=read_coarse(pair.moving, factors[1]),
        )
        for pair in pairs
    )


@dataclass(frozen=True, eq=False)
class LevelledPair:
    """A channel of both images, and both with as many voxels as a level has at most."""

    fixed: Image
    moving: Image
    levels: Levels
    weight: float = 1.0


def prepare_start(
    pairs: Sequence[LevelledPair],
    initial: Transform | Delayed,
    plan: LevelPlan,
    voxels: float,
    aids: Aids,
) -> Delayed:
    """Prepare where the blocks of a deformation start: what the whole image shows.

    The first pair leads. Images are averaged only where the levels, of at most so many voxels, are
    too coarse.
    """
    first = pairs[0]
    wanted = plan.factors, moving_factors(first.fixed.grid, first.moving.grid, plan.factors)
    sources = [
        _prepare_source(image, level, factors, voxels)
        for pair in pairs
        for image, level, factors in zip(
            (pair.fixed, pair.moving), pair.levels, wanted, strict=True
        )
    ]
    left = replace(plan, factors=sources[0].factors)
    weights = tuple(pair.weight for pair in pairs[1:])
    return once(_start, initial, left, aids, weights, *(source.image for source in sources))


@dataclass(frozen=True, eq=False)
class _Source:
    """An image, averaged already, and by how much it is still to be shrunk."""

    image: Image | Delayed
    factors: tuple[int, ...]


def _prepare_source(
    image: Image, level: Image | Delayed, factors: tuple[int, ...], voxels: float
) -> _Source:
    """The known level where it is about as fine as wanted, or the wanted one were too large."""
    there = factors_to_fit(image.grid, voxels)
    fine = all(b < _TOO_COARSE * f for b, f in zip(there, factors, strict=True))
    if not fine and image.grid.shrink(factors).size <= _LARGER_LEVEL * voxels:
        return _Source(prepare_level(image, factors), (1,) * len(factors))
    left = (max(1, round(f / b)) for f, b in zip(factors, there, strict=True))
    return _Source(level, tuple(left))


def after_coarse(field: DisplacementField, initial: Transform) -> Transform:
    """Compose the coarse displacement with the affine part of the transform it was solved on."""
    return CompositeTransform((field, affine_part(initial)))


def _start(
    initial: Transform, plan: LevelPlan, aids: Aids, weights: tuple[float, ...], *images: Image
) -> Transform:
    """The coarse solution of pairs of images, the first of which leads; the others have weights."""
    fixed, moving, *rest = images
    others = map(ChannelPair, rest[::2], rest[1::2], weights)
    known = replace(aids, others=tuple(others))
    return after_coarse(solve_coarse(fixed, moving, initial, plan, known), initial)


def factors_per_axis(grid: Grid, factor: int, isotropic: bool = True) -> tuple[int, ...]:
    """The factor on every axis, or so many voxels as span the same length."""
    if not isotropic:
        return (factor,) * grid.ndim
    return voxels_spanning(factor * min(grid.spacing), grid.spacing)


def _shrunk(grid: Grid, factor: int, settings: DeformSettings) -> Grid:
    return grid.shrink(factors_per_axis(grid, factor, settings.isotropic))


def moving_factors(fixed: Grid, moving: Grid, factors: Sequence[int]) -> tuple[int, ...]:
    """Moving voxels as long as so many of the fixed image, axis by axis."""
    coarse = [h * f for h, f in zip(fixed.spacing, factors, strict=True)]
    return tuple(max(1, round(c / h)) for c, h in zip(coarse, moving.spacing, strict=True))


def relative_levels(settings: S, factor: int) -> S:
    """The levels as an image that is shrunk by `factor` already has them."""
    shrinks = np.ravel(settings.shrink_factors)
    return evolve(settings, shrink_factors=tuple(max(1, round(f / factor)) for f in shrinks))
