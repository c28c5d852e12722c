"""Deformations of a pair, judged by voxels that are hidden from them, and their stiffness.

Both are found on samples of both images.

An image of up to a million voxels is one sample. Of a larger one, the second finest level is used:
all of it, or a few blocks that show tissue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.inputs import block_grid
from itkstream.blocks.levels import read_coarse
from itkstream.estimate.coarse import (
    coarse_channels,
    factors_per_axis,
    moving_factors,
    relative_levels,
)
from itkstream.geometry import ChannelPair, Grid, Image, Landmarks, Slices, Transform
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.engines import deform_block
from itkstream.numerics.evidence.quality import tissue_mask
from itkstream.numerics.evidence.stiffness import (
    climb,
    for_trial,
    gain_in_cubes,
    hidden_correlation,
    hide_cubes,
    mean_score,
    number_cubes,
    stiffened,
)
from itkstream.numerics.itk.settings import DeformSettings
from itkstream.numerics.sampling.mapping import GridMap, map_on
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_mapped
from itkstream.numerics.threads import each_of, threads_for, using_threads

__all__ = ["SAMPLED_VOXELS", "Foretold", "choose_stiffness", "foretell"]

SAMPLED_VOXELS = 1.2e6
"""Voxels of all samples together, about, and of each while it is read."""

_BLOCKS, _BLOCK = 4, 48
# Blocks with less of the tissue than this share of what the fullest block has are not sampled.
_LEAST_TISSUE = 0.5
# Standard errors over hidden cubes that a gain must have, as neighbouring cubes gain together, or
# the share it must take of what hidden voxels left unexplained. Unrelated images reach 2.4 and
# 0.03; pairs that belong together 5.5 and more, or, where few cubes show anything (a neuron), 0.28.
_CHANCE, _CHANCE_SHARE = 4.0, 0.1


@dataclass(frozen=True, eq=False)
class Foretold:
    """Likeness, foretold by deformations, of voxels that are hidden from them.

    `stiffness` is the one that foretells most, None where it was given; `correlations` are the mean
    squared correlations of hidden voxels by each that was tried, and `start` that without a
    deformation. `kept` is that by the deformation that would be kept, which is damped more than
    those that are compared, and `deviations` its gain in standard errors over hidden cubes; NaN
    where there are too few.
    """

    stiffness: float | None
    correlations: dict[float, float]
    start: float
    kept: float
    deviations: float

    @property
    def is_chance(self) -> bool:
        """The deformation foretells hidden voxels no better than none does, but by chance."""
        if self.start == 0 == self.kept:
            return False
        # In few cubes, whose deviations tell nothing, the share alone does.
        is_sure = self.deviations >= _CHANCE
        return not is_sure and self.kept - self.start < _CHANCE_SHARE * (1 - self.start)

    @property
    def facts(self) -> dict[str, Any]:
        """Facts for the report."""
        told = {f"{tried:g}": round(value, 4) for tried, value in self.correlations.items()}
        chosen = {} if self.stiffness is None else {"stiffness": self.stiffness}
        return {
            **chosen,
            "hidden_correlation": {"none": round(self.start, 4), **told},
            "hidden_correlation_kept": round(self.kept, 4),
            "hidden_gain_deviations": None
            if math.isnan(self.deviations)
            else round(self.deviations, 1),
        }


@dataclass(frozen=True, eq=False)
class _Sample:
    """A part of both images; the descent does not see the fixed voxels that are hidden.

    Those of its further channels are hidden in the same places.
    """

    fixed: Image
    moving: Image
    seen: Image
    hidden: NDArray[np.bool_]
    others: tuple[ChannelPair, ...] = ()

    def correlations(self, mapping: GridMap) -> NDArray[np.float64]:
        """Squared correlation of the hidden voxels through a mapping that did not see them."""
        warped = warp_mapped(self.moving, mapping, NAN_OUTSIDE)
        grid = self.fixed.grid
        return hidden_correlation(self.fixed.read(), warped, self.hidden, grid.spacing)

    @property
    def cubes(self) -> NDArray[np.int64]:
        """The number of the cube of each hidden voxel."""
        grid = self.fixed.grid
        return number_cubes(grid.shape, grid.spacing)[self.hidden]


@dataclass(frozen=True, eq=False)
class _Samples:
    """Samples of a pair, where its deformation starts, and settings for their voxels."""

    parts: tuple[_Sample, ...]
    start: Transform
    settings: DeformSettings

    @property
    def threads(self) -> int:
        """Threads that all parts together are worth."""
        return threads_for(sum(part.fixed.grid.size for part in self.parts))

    def foretell(
        self, settings: DeformSettings, landmarks: Landmarks | None = None
    ) -> NDArray[np.float64]:
        """Squared correlation of all hidden voxels after deformations that do not see them."""
        return _joined(
            each_of(lambda part: _foretold(part, self.start, settings, landmarks), self.parts)
        )

    def compare(
        self,
        kept: NDArray[np.float64],
        stiffness: float | None = None,
        correlations: dict[float, float] | None = None,
    ) -> Foretold:
        """Compare what the deformation that would be kept foretells with what none does."""
        before = _joined([p.correlations(map_on(self.start, p.fixed.grid)) for p in self.parts])
        cubes, count = np.empty(0, np.int64), 0
        for part in self.parts:
            cubes = np.concatenate([cubes, part.cubes + count])
            count += part.fixed.grid.size
        deviations = gain_in_cubes(before, kept, cubes)
        known = correlations or {}
        return Foretold(stiffness, known, mean_score(before), mean_score(kept), deviations)


def choose_stiffness(
    fixed: Image,
    moving: Image,
    start: Transform,
    settings: DescentSettings,
    tissue: NDArray[np.bool_],
    others: Sequence[ChannelPair] = (),
) -> Foretold:
    """Choose the stiffness by which hidden voxels of the fixed image are foretold best.

    `tissue` is a mask of the whole fixed image, at any resolution. Further channels drive the
    deformations that are tried; they are judged by the leading one.
    """
    samples = _samples(ChannelPair(fixed, moving), start, settings, tissue, others)
    levels = samples.settings
    assert isinstance(levels, DescentSettings)
    foretold = cache(samples.foretell)
    with using_threads(samples.threads):
        best, correlations = climb(lambda tried: foretold(for_trial(levels, tried)))
        # A field that is no softer is kept as it was tried.
        kept = foretold(stiffened(levels, best))
        return samples.compare(kept, best, correlations)


def foretell(
    fixed: Image,
    moving: Image,
    start: Transform,
    settings: DeformSettings,
    tissue: NDArray[np.bool_],
    others: Sequence[ChannelPair] = (),
    landmarks: Landmarks | None = None,
) -> Foretold:
    """Find what a deformation with these settings, of any kind, foretells of hidden voxels.

    Landmarks pull it, where there are any. The rest is as for `choose_stiffness`.
    """
    samples = _samples(ChannelPair(fixed, moving), start, settings, tissue, others)
    with using_threads(samples.threads):
        return samples.compare(samples.foretell(samples.settings, landmarks))


def _samples(
    pair: ChannelPair,
    start: Transform,
    settings: DeformSettings,
    tissue: NDArray[np.bool_],
    others: Sequence[ChannelPair],
) -> _Samples:
    """Read samples of a pair and its further channels."""
    grid, factor = pair.fixed.grid, 1
    if grid.size > SAMPLED_VOXELS and len(settings.shrink_factors) > 1:
        factor = settings.shrink_factors[-2]
        settings = relative_levels(settings.select(slice(-1)), factor)
    factors = factors_per_axis(grid, factor, settings.isotropic)
    read = (
        _sample(replace(pair, fixed=pair.fixed[box]), start, factors, [o[box] for o in others])
        for box in _boxes(grid, factors, tissue)
    )
    return _Samples(tuple(part for part in read if part is not None), start, settings)


def _joined(found: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([np.empty(0), *found])


def _boxes(grid: Grid, factors: tuple[int, ...], tissue: NDArray[np.bool_]) -> list[Slices]:
    """The parts of the fixed image that are sampled: all of it, or blocks in the tissue."""
    shrunk = grid.shrink(factors)
    if shrunk.size <= SAMPLED_VOXELS:
        return [tuple(slice(0, n) for n in grid.shape)]
    cubes = factors_per_axis(shrunk, _BLOCK)
    blocks = block_grid(grid.shape, [f * n for f, n in zip(factors, cubes, strict=True)], 0)
    boxes = [block.core for block in blocks]
    shares = np.array([_share(tissue, grid.shape, box) for box in boxes])
    full = np.flatnonzero(shares >= _LEAST_TISSUE * shares.max())
    picked = np.linspace(0, len(full) - 1, _BLOCKS + 2).round().astype(int)[1:-1]
    return [boxes[full[i]] for i in np.unique(picked)]


def _share(tissue: NDArray[np.bool_], shape: Sequence[int], box: Slices) -> float:
    """Voxels of tissue in a box of the fixed image, in those of the mask."""
    spans = zip(box, shape, tissue.shape, strict=True)
    there = tuple(slice(s.start * m // n, -(-s.stop * m // n)) for s, n, m in spans)
    return float(np.count_nonzero(tissue[there]))


def _sample(
    pair: ChannelPair, start: Transform, factors: tuple[int, ...], others: Sequence[ChannelPair]
) -> _Sample | None:
    """Read a part of both images; None where the moving one does not reach it."""
    small = read_coarse(pair.fixed, factors)
    mapping = map_on(start, small.grid)
    crop = mapping.crop_of(pair.moving.grid, float(_BLOCK / 2 * max(small.spacing)))
    if crop is None:
        return None
    part = pair.moving[crop]
    by = factors, moving_factors(pair.fixed.grid, part.grid, factors)
    other = read_coarse(part, by[1])
    voxels = np.asarray(small.read(), np.float32)
    hidden = hide_cubes(voxels.shape, small.spacing)
    cut = [replace(o, moving=o.moving[crop]) for o in others]
    further = tuple(
        replace(o, fixed=_without(np.asarray(o.fixed.read(), np.float32), hidden, small.grid))
        for o in coarse_channels(cut, by)
    )
    shown, seen = Image(voxels, small.grid), _without(voxels, hidden, small.grid)
    return _Sample(shown, other, seen, hidden & tissue_mask(voxels), further)


def _without(voxels: NDArray[np.float32], hidden: NDArray[np.bool_], grid: Grid) -> Image:
    """An image without the voxels that are hidden."""
    return Image(np.where(hidden, np.float32(np.nan), voxels), grid)


def _foretold(
    sample: _Sample, start: Transform, settings: DeformSettings, landmarks: Landmarks | None
) -> NDArray[np.float64]:
    """Squared correlation of the hidden voxels after a deformation that does not see them."""
    found = deform_block(
        sample.seen, sample.moving, start, settings, landmarks, others=sample.others
    )
    mapping = found.mapping
    if mapping is None:
        return np.full(np.count_nonzero(sample.hidden), np.nan)
    return sample.correlations(mapping)
