"""An affine between two images in memory, from their key points."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import AffineTransform, ChannelPair, Grid
from itkstream.numerics.matching.contexts import Contexts, ContextWindow, sample_contexts
from itkstream.numerics.matching.keypoints import (
    KeyPointSettings,
    KnownPoints,
    find_key_points,
)
from itkstream.numerics.matching.matches import (
    REACH_VOX,
    Correspondences,
    MatchSettings,
    find_supported,
    joined_matches,
    match,
)
from itkstream.numerics.matching.ransac import (
    AffineEstimate,
    RansacSettings,
    fit_in_planes,
    fit_ransac,
    fit_robustly,
)
from itkstream.numerics.threads import each_of

__all__ = [
    "ALIGN_THRESHOLD_VOX",
    "MAJORITY",
    "MINORITY",
    "PLENTY_OF_INLIERS",
    "AffineSettings",
    "BestAffine",
    "Elsewhere",
    "MatchedAffine",
    "Stages",
    "affine_block",
    "best_affine_block",
    "find_elsewhere",
    "has_few_planes",
]

ALIGN_THRESHOLD_VOX = 1.5
"""A match may be so many voxels, of the median spacing, from its affine."""


Known: TypeAlias = NDArray[np.float64] | KnownPoints | None
"""Key points of an image, in µm, or what gives them by settings; None where they are sought."""

PLENTY_OF_INLIERS = 200
"""Enough agreeing matches that no other settings need be tried."""

MAJORITY = 0.3
"""Share of all matches that, agreeing with an affine, are no chance, however few.

One with which fewer agree is matched again from where it leads: of turned nuclei, 48 of 326 agreed
with one that was 4.7 degrees and 3.1 voxels off, and from there 235 of 239 with one 1.0 off.
"""

MINORITY = 0.2
"""Share of all matches below which tissue bends too much for those that agree to tell its affine.

Of two people's brains, lungs and heads 0.02 to 0.2 agree within 1.5 voxels.
"""

# So many matches never support one another by chance.
_FEWEST = 20

# So many other affines are looked for at most.
_PLACES = 4

# Matches in so few planes may not tell how an affine acts across them.
_FEW_PLANES = 12


@dataclass(frozen=True)
class AffineSettings:
    """Parameters of an affine from key points.

    Parameters
    ----------
    key_points : KeyPointSettings
        Which blobs are key points.
    window : ContextWindow
        The contexts that are compared.
    matching : MatchSettings
        Which pairs correspond.
    ransac : RansacSettings
        How the transform is fitted to them.
    """

    key_points: KeyPointSettings
    window: ContextWindow
    matching: MatchSettings = field(default_factory=MatchSettings)
    ransac: RansacSettings = field(default_factory=RansacSettings)


@frozen
class Elsewhere:
    """Matches that agree on another affine than the one that was found: parts that lie elsewhere.

    `inliers` are so many, beside `agree` with the one that was found; both affines put their points
    `apart_um` apart, in the median.
    """

    inliers: int
    apart_um: float
    agree: int


@frozen
class Stages:
    """Key points that are left stage by stage: found, with a context, matched, agreeing.

    The first two are of the fixed and of the moving image.
    """

    found: tuple[int, int]
    contexts: tuple[int, int]
    matches: int
    inliers: int


@frozen(eq=False)
class MatchedAffine:
    """Matches of key points by some settings, and the affine that most agree on, if any.

    `points` are all key points of both images; `matches_per_channel` counts the pairs of each
    channel, in their order.
    """

    settings: AffineSettings
    stages: Stages
    pairs: Correspondences
    estimate: AffineEstimate
    points: tuple[NDArray[np.float64], NDArray[np.float64]]
    matches_per_channel: tuple[int, ...] = ()

    @property
    def inliers_per_channel(self) -> tuple[int, ...]:
        """Matches of each channel that agree."""
        ends = np.cumsum(self.matches_per_channel)[:-1]
        return tuple(int(part.sum()) for part in np.split(self.estimate.inliers, ends))

    def settled(self, grid: Grid) -> AffineEstimate:
        """The estimate; of roughly aligned images of which few matches agree closely, another.

        That is fitted to all matches that support one another, however far they lie from it, where
        these are more. Its inliers are these. `grid` is the fixed one.
        """
        estimate, pairs = self.estimate, self.pairs
        agreeing = int(estimate.inliers.sum())
        if agreeing >= MINORITY * len(pairs) or has_few_planes(grid):
            return estimate
        p, q = pairs.fixed_points, pairs.moving_points
        reach_um = REACH_VOX * float(np.median(grid.spacing))
        which = np.linalg.norm(q - p, axis=1) < reach_um
        which[which] = find_supported(p[which], q[which], reach_um)
        if which.sum() < max(_FEWEST, agreeing):
            return estimate
        try:
            matrix = fit_robustly(p[which], q[which], self.settings.ransac.model)
        except RegistrationError:
            return estimate
        residuals = np.linalg.norm(AffineTransform(matrix).apply(p) - q, axis=1)
        return AffineEstimate(matrix, which, residuals)

    def above(self, threshold: float, grid: Grid) -> MatchedAffine:
        """Those matches that a higher threshold leaves, fitted again; `grid` is the fixed one."""
        kept = self.pairs.select(self.pairs.correlations > threshold)
        settings = replace(
            self.settings, matching=replace(self.settings.matching, threshold=threshold)
        )
        estimate = _fit(kept, grid, settings.ransac)
        stages = evolve(self.stages, matches=len(kept), inliers=int(estimate.inliers.sum()))
        return MatchedAffine(settings, stages, kept, estimate, self.points)


@frozen(eq=False)
class BestAffine:
    """The affine of the settings by which most matches agree, and all that were tried for it.

    Of settings that the images do not suit there are no stages.
    """

    best: MatchedAffine
    tried: tuple[tuple[AffineSettings, Stages | None], ...]

    @property
    def furthest(self) -> Stages:
        """Stages of the settings that led furthest, also where they led to no affine."""
        known = (stages for _, stages in self.tried if stages is not None)
        return max(known, key=lambda s: (s.inliers, s.matches, min(s.contexts)))


def find_elsewhere(
    pairs: Correspondences, estimate: AffineEstimate, settings: RansacSettings
) -> Elsewhere | None:
    """Look for other affines among the matches that do not agree with the one that was found.

    The farthest: of tissue that bends, the next most agree on nearly the same.
    """
    if estimate.matrix is None:
        return None
    found: list[Elsewhere] = []
    rest = np.flatnonzero(~estimate.inliers)
    for _ in range(_PLACES):
        points = pairs.fixed_points[rest]
        other = fit_ransac(points, pairs.moving_points[rest], settings)
        if other.matrix is None:
            break
        both = [AffineTransform(m).apply(points) for m in (estimate.matrix, other.matrix)]
        apart = np.linalg.norm(both[0] - both[1], axis=1)[other.inliers]
        counts = int(other.inliers.sum()), float(np.median(apart)), int(estimate.inliers.sum())
        found.append(Elsewhere(*counts))
        rest = rest[~other.inliers]
    return max(found, key=lambda place: place.apart_um, default=None)


def affine_block(
    channels: Sequence[ChannelPair],
    settings: AffineSettings,
    points: tuple[Known, Known] = (None, None),
) -> MatchedAffine:
    """Find the affine between two images in memory from their key points.

    Key points are matched channel by channel, and all matches are fitted together. A channel that
    has none, as a constant one, is left out where another has some. Points may be known of the
    channel that leads, which is the first.
    """
    lead, *others = channels
    found = []
    try:
        found.append(_match_channel(lead, settings, points))
    except (InputError, RegistrationError):
        if not others:
            raise
    for pair in others:
        with suppress(InputError, RegistrationError):
            found.append(_match_channel(pair, settings, (None, None)))
    if not found:
        raise RegistrationError("no channel shows key points in both images")
    return _fit_channels(found, settings, lead.fixed.grid)


@frozen(eq=False)
class _Matched:
    """Matches of one channel, key points and contexts they were made of, and what is left out."""

    pairs: Correspondences
    points: tuple[NDArray[np.float64], NDArray[np.float64]]
    contexts: tuple[int, int]
    doubts: list[str]


def _fit_channels(found: Sequence[_Matched], settings: AffineSettings, grid: Grid) -> MatchedAffine:
    """Fit the affine that most matches of all channels agree on."""
    pairs = joined_matches([(one.pairs, len(one.points[0]), len(one.points[1])) for one in found])
    estimate = _fit(pairs, grid, settings.ransac)
    points = tuple(np.concatenate([one.points[side] for one in found]) for side in (0, 1))
    contexts = tuple(sum(one.contexts[side] for one in found) for side in (0, 1))
    counts = (len(points[0]), len(points[1])), (contexts[0], contexts[1])
    stages = Stages(*counts, len(pairs), int(estimate.inliers.sum()))
    if not estimate:
        reason = _reason(stages, found[0].doubts, settings, estimate)
        estimate = replace(estimate, reason=reason)
    per_channel = tuple(len(one.pairs) for one in found)
    return MatchedAffine(settings, stages, pairs, estimate, (points[0], points[1]), per_channel)


def _match_channel(
    pair: ChannelPair, settings: AffineSettings, points: tuple[Known, Known]
) -> _Matched:
    """Match the key points of one channel of both images, in which they are sought together."""
    window = settings.window.within(pair.fixed.grid, pair.moving.grid)
    images, which = (pair.fixed, pair.moving), ("fixed", "moving")

    def described(side: int) -> tuple[NDArray[np.float64], Contexts]:
        image, mask, known = images[side], pair.sought[side], points[side]
        voxels = image.read()
        try:
            if known is None:
                sought = None if mask is None else mask.read()
                own = find_key_points(voxels, image.grid, settings.key_points, sought).positions
            else:
                own = known(settings.key_points) if callable(known) else known
            return own, sample_contexts(voxels, image.grid, own, window)
        except (InputError, RegistrationError) as error:
            raise type(error)(f"{which[side]} image: {error}") from None

    (first, fixed), (second, moving) = each_of(described, (0, 1))
    doubts = [
        _what_is_left_out(name, image.read()) for name, image in zip(which, images, strict=True)
    ]
    pairs = match(fixed, moving, settings.matching)
    return _Matched(pairs, (first, second), (len(fixed), len(moving)), doubts)


def _reason(
    stages: Stages, doubts: list[str], settings: AffineSettings, estimate: AffineEstimate
) -> str:
    """Why no affine was found, with what was left stage by stage."""
    found, kept = stages.found, stages.contexts
    if kept != found:
        doubts = [
            *doubts,
            f"{kept[0]} and {kept[1]} of them have enough of the image around them: a smaller "
            "cc_radius, the half width of the window, keeps more",
        ]
    said = "; ".join(filter(None, doubts))
    return (
        f"{found[0]} key points in the fixed and {found[1]} in the moving image"
        f"{f' ({said})' if said else ''} gave {stages.matches} matches above "
        f"{settings.matching.threshold}: {estimate.reason}"
    )


def _what_is_left_out(which: str, voxels: NDArray[Any]) -> str:
    """The share of an image that counts, in words; empty where all does."""
    share = float(np.isfinite(voxels).mean()) if voxels.dtype.kind == "f" else 1.0
    if share == 1:
        return ""
    return (
        f"{share:.2g} of the {which} image counts, the rest is NaN, infinite or left out by the "
        f"{which} mask"
    )


def _fit(pairs: Correspondences, grid: Grid, settings: RansacSettings) -> AffineEstimate:
    """The transform of matches; in a stack of a few planes one that keeps these, if need be."""
    estimate = fit_ransac(pairs.fixed_points, pairs.moving_points, settings)
    if estimate or not has_few_planes(grid):
        return estimate
    normal = np.asarray(grid.direction)[:, int(np.argmin(grid.shape))]
    return fit_in_planes(pairs.fixed_points, pairs.moving_points, normal, settings) or estimate


def has_few_planes(grid: Grid) -> bool:
    """Whether matches in a stack may not tell how an affine acts across its planes."""
    return grid.ndim > 2 and min(grid.shape) <= _FEW_PLANES


def best_affine_block(
    channels: Sequence[ChannelPair],
    choices: Sequence[AffineSettings],
    plenty: float = PLENTY_OF_INLIERS,
    fixed_points: KnownPoints | None = None,
) -> BestAffine:
    """Find the affine between two images in memory with the settings that find most matches.

    Where so many agree that these are plenty, no other settings are tried. `fixed_points` gives the
    key points of the fixed image, where they are sought once for many matches (`sought_once`).
    """
    best: MatchedAffine | None = None
    failure: InputError | RegistrationError | None = None
    tried: list[tuple[AffineSettings, Stages | None]] = []
    for settings in choices:
        try:
            found = affine_block(channels, settings, (fixed_points, None))
        except (InputError, RegistrationError) as error:
            failure = failure or error
            tried.append((settings, None))
            continue
        tried.append((settings, found.stages))
        if best is None or found.stages.inliers > best.stages.inliers:
            best = found
        if best.stages.inliers >= plenty:
            break
    if best is None:
        raise failure or InputError("choices needs at least one AffineSettings; got none")
    return BestAffine(best, tuple(tried))
