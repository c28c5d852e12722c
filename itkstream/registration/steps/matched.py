"""Parameters of matching, chosen by the matches that agree in a sample of an aligned pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.blocks.sources import readable
from itkstream.errors import RegistrationError
from itkstream.geometry import AffineTransform, ChannelPair, Image, Slices, Transform
from itkstream.numerics.evidence.one_sided import lay_mask
from itkstream.numerics.matching.affine import MatchedAffine, Stages, affine_block
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.registration.scene import Radii
from itkstream.registration.steps.matching import MatchingStep, choose_radii

__all__ = ["MatchingChoice", "align_channel", "choose_matching", "said_of"]

Floats = NDArray[np.float64]
Outcomes = Mapping[Any, Stages | None]

# Parameters of matching are tried on so many voxels of the level that `register` matches, and on
# a share of its key points: 4 of the 16 million of an expansion microscopy pair.
_SAMPLE = 4e6
_LEAST_SPOTS = 300
# Voxels around where the affine puts the sample in the moving level.
_MARGIN = 16
# Half widths of contexts, beside the default of 12 voxels, and thresholds. On that pair, shrunk 1,
# 2 and 4 times, and on the demo, all contexts of 8 to 18 voxels had 0.96 to 1 of the inliers of the
# best but on the smallest (0.45 to 1, the more the smaller they were); threshold 0.5 had
# 0.99 and more, 0.7 had 0.83 to 1.
_CONTEXTS, _SMALLEST = (8, 18), 6
_THRESHOLDS = (0.7, 0.6, 0.5)
# Another value is taken for this gain; of thresholds, the highest with this share of all inliers.
_GAIN, _NEARLY = 1.02, 0.98


@frozen(eq=False)
class MatchingChoice:
    """Parameters of matching by which most key points of a sample agree, and all that were tried.

    `context` is the half width of contexts in voxels; `sampled` are the voxels of the sample.
    """

    radii: Radii
    context: int
    threshold: float
    found: MatchedAffine
    by_radii: Outcomes
    by_context: Outcomes
    by_threshold: Outcomes
    sampled: int

    @property
    def density(self) -> float:
        """Matches that agree, per voxel."""
        return self.found.stages.inliers / self.sampled

    @property
    def facts(self) -> dict[str, str]:
        """Counts of matches of the sample that agreed, by each value that was tried."""
        return {
            "radii": said_of(self.by_radii),
            "context_radius": said_of(self.by_context),
            "match_threshold": said_of(self.by_threshold),
        }


def choose_matching(
    pairs: Sequence[ChannelPair],
    step: MatchingStep,
    radii: Sequence[Radii],
    matrix: Floats,
    as_they_lie: bool,
) -> MatchingChoice:
    """Choose radii of blobs, then contexts, then the threshold, by the matches that agree.

    The pairs are the levels that `register` matches, perhaps not in memory. Of these, a part is
    matched, where the affine of the matrix lays it; where images do not match as they lie, the
    moving one is laid there before. What a step was given is kept. A `RegistrationError` where too
    few of a sample agree.
    """
    parts, share = _sample(pairs, matrix)
    if not as_they_lie:
        parts = [align_channel(part, AffineTransform(matrix)) for part in parts]
    spots = min(step.nspots, max(_LEAST_SPOTS, round(step.nspots * share)))
    thresholds = _THRESHOLDS if step.match_threshold is None else (step.match_threshold,)
    usual = step.evolve(match_threshold=thresholds[-1], nspots=spots)
    size = parts[0].fixed.grid.size
    chosen = choose_radii(parts, usual, radii, plenty=size)
    if chosen.found.best.estimate.matrix is None:
        raise RegistrationError(f"a sample does not match: {chosen.found.best.estimate.reason}")
    tries = _Tries(parts, chosen.radii)
    contexts = _CONTEXTS if step.cc_radius is None else ()
    best, found, by_context = tries.with_context(usual, chosen.found.best, contexts)
    found, by_threshold = tries.with_threshold(found, thresholds)
    outcomes = dict(chosen.outcomes), by_context, by_threshold
    threshold = found.settings.matching.threshold
    return MatchingChoice(chosen.radii, best.context, threshold, found, *outcomes, size)


def align_channel(pair: ChannelPair, start: Transform) -> ChannelPair:
    """Resample the moving image of a channel, and where it is searched, through a start."""
    grid, (here, there) = pair.fixed.grid, pair.sought
    moving = Image(warp_block(pair.moving, start, grid, NAN_OUTSIDE), grid)
    laid = None if there is None else lay_mask(there, start, grid)
    return replace(pair, moving=moving, sought=(here, laid))


def said_of(outcomes: Outcomes) -> str:
    """Say how many matches agreed by each value that was tried."""
    return "; ".join(
        f"{_shown(value)}: {stages.inliers} of {stages.matches}"
        if stages
        else f"{_shown(value)}: none"
        for value, stages in outcomes.items()
    )


@frozen(eq=False)
class _Tries:
    """A sample of both images, whose key points are matched by one parameter or another."""

    parts: Sequence[ChannelPair]
    radii: Radii

    def with_context(
        self, step: MatchingStep, found: MatchedAffine, contexts: Sequence[int]
    ) -> tuple[MatchingStep, MatchedAffine, Outcomes]:
        """The half width of contexts by which most matches agree, and what was tried."""
        tried: dict[Any, Stages | None] = {step.context: found.stages}
        for width in (*contexts, *((_SMALLEST,) if contexts else ())):
            if width == _SMALLEST and step.context != contexts[0]:
                break
            other = step.evolve(cc_radius=width)
            again = self._matched(other, found)
            tried[width] = again.stages
            if again.stages.inliers > _GAIN * found.stages.inliers:
                step, found = other, again
        return step, found, tried

    def with_threshold(
        self, found: MatchedAffine, thresholds: Sequence[float]
    ) -> tuple[MatchedAffine, Outcomes]:
        """The highest threshold that keeps nearly all matches that agree, and what was tried."""
        tried: dict[Any, Stages | None] = {}
        for threshold in thresholds:
            fewer = found.above(threshold, self.parts[0].fixed.grid)
            tried[threshold] = fewer.stages
            if fewer.stages.inliers >= _NEARLY * found.stages.inliers:
                return fewer, tried
        return found, tried

    def _matched(self, step: MatchingStep, known: MatchedAffine) -> MatchedAffine:
        """Match by other contexts; key points of one channel need not be sought again."""
        points = (None, None) if len(self.parts) > 1 else known.points
        settings = step.settings_for(self.parts[0].fixed.spacing, self.radii)
        return affine_block(self.parts, settings, points)


def _sample(pairs: Sequence[ChannelPair], matrix: Floats) -> tuple[list[ChannelPair], float]:
    """The middle of the fixed level, where the moving one lies for it, and its share of the whole.

    All are read.
    """
    fixed, moving = pairs[0].fixed.grid, pairs[0].moving.grid
    edge = min(1.0, (_SAMPLE / fixed.size) ** (1 / fixed.ndim))
    box = tuple(_middle(n, edge) for n in fixed.shape)
    part = fixed.crop(box)
    corners = AffineTransform(matrix).apply(part.corners())
    index = moving.to_index(corners)
    low = np.clip(np.floor(index.min(axis=0)).astype(int) - _MARGIN, 0, moving.shape)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1 + _MARGIN, 0, moving.shape)
    if edge == 1 or (high - low < _MARGIN).any():
        box = other = (slice(None),) * fixed.ndim
    else:
        other = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    read = [_read(pair, box, other) for pair in pairs]
    return read, read[0].fixed.grid.size / fixed.size


def _read(pair: ChannelPair, box: Slices, other: Slices) -> ChannelPair:
    """Parts of both images of a channel, and where these are searched, in memory."""
    here, there = pair.sought
    sought = (
        None if here is None else _part(here, box),
        None if there is None else _part(there, other),
    )
    return replace(
        pair, fixed=_part(pair.fixed, box), moving=_part(pair.moving, other), sought=sought
    )


def _part(image: Image, box: Slices) -> Image:
    part = readable(image)[box]
    return Image(part.read(), part.grid, part.name)


def _middle(length: int, share: float) -> slice:
    size = max(1, round(share * length))
    first = (length - size) // 2
    return slice(first, first + size)


def _shown(value: Any) -> str:
    return " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"
