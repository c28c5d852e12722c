"""Faults of a pair whose key points do not match: each is mended for a trial, and matched again.

A wrong voxel spacing and an inverted contrast leave an image whole: with the fault mended, key
points match, by far more than before and by more than chance. What lies turned or mirrored is the
search's part (`itkstream.numerics.search`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from itkstream.blocks.sources import inverted
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import ChannelPair, Grid, Image
from itkstream.numerics.matching.affine import (
    AffineSettings,
    MatchedAffine,
    Stages,
    best_affine_block,
)
from itkstream.numerics.matching.keypoints import KnownPoints, sought_once
from itkstream.numerics.search.witnesses import Witnesses

__all__ = [
    "FAULTS",
    "MIRRORED",
    "Lost",
    "Misfit",
    "Stage",
    "find_loss",
    "find_misfits",
    "name_stretches",
    "usual_remedies",
]

Floats = NDArray[np.float64]
Kind: TypeAlias = Literal["contrast", "spacing", "mirrored", "turned", "content", "settings"]
FAULTS: tuple[Kind, ...] = ("contrast", "spacing", "mirrored")
"""Kinds that say what is wrong with a pair, and bear it out."""

Stage: TypeAlias = Literal["blobs", "contexts", "matches", "inliers", "held out"]

# A trial is borne out by so many agreeing matches, and so many times those of the pair as it is. Of
# unrelated phantoms none has any; a pair with planes twice as far apart as it says has 4 % of those
# that it has with the right spacing.
_LEAST, _TIMES = 20, 3.0
# Faults of a spacing: along one axis or all, one number for another, or units.
_FACTORS = (0.25, 1 / 3, 0.5, 2.0, 3.0, 4.0)
_TRIED = 4
# Texture is compared after what is larger than so many voxels was taken out, over so many lags.
_LARGE_VOX, _LAGS = 8.0, 16
# No tissue is stretched by more along one axis.
_STRETCH = 1.25
_IN_WORDS: dict[Stage, str] = {
    "blobs": "blobs were found",
    "contexts": "blobs have a context",
    "matches": "contexts match",
    "inliers": "matches agree",
    "held out": "blobs that were held out bear the affine out",
}
# Fewer of each stage are too few to find an affine by, and this share of the one before is little.
_FEW: dict[Stage, int] = {"blobs": 40, "contexts": 40, "matches": 20, "inliers": 10}
_HALF, _SHARE = 0.5, 0.1


@frozen
class Misfit:
    """A fault of a pair and its remedy, in words.

    Parameters
    ----------
    kind : str
        'contrast', 'spacing', 'mirrored', 'turned', 'content' or 'settings'.
    said : str
        The fault, with what bears it out.
    remedy : str
        The change, with the option of the command line.
    """

    kind: Kind
    said: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.said}: {self.remedy}"


@frozen
class Lost:
    """The stage of matching at which too few key points were left, and what was seen there.

    Parameters
    ----------
    stage : {'blobs', 'contexts', 'matches', 'inliers', 'held out'}
        Found in the images, enough of the image around them, mutually most alike, agreeing on an
        affine, or borne out by those held out of its fit.
    said : str
        The numbers, in words.
    """

    stage: Stage
    said: str

    def __str__(self) -> str:
        return f"too few {_IN_WORDS[self.stage]} ({self.said})"


def find_loss(stages: Stages | None) -> Lost:
    """Find the first stage that left too few key points for an affine that is borne out.

    `stages` are the `Stages` of the best settings, None where the images do not suit any.
    """
    if stages is None:
        return Lost("blobs", "the images are too small or too even for blobs of any radius tried")
    found, contexts = stages.found, stages.contexts
    if min(found) < _FEW["blobs"]:
        return Lost("blobs", f"{found[0]} found in the fixed and {found[1]} in the moving image")
    if min(contexts) < max(_FEW["contexts"], _HALF * min(found)):
        return Lost(
            "contexts",
            f"of {found[0]} and {found[1]} blobs, {contexts[0]} and {contexts[1]} have enough of "
            "the image around them",
        )
    if stages.matches < max(_FEW["matches"], _SHARE * min(contexts)):
        return Lost(
            "matches",
            f"of {contexts[0]} and {contexts[1]} contexts, {stages.matches} are each other's best",
        )
    if stages.inliers < max(_FEW["inliers"], _SHARE * stages.matches):
        return Lost("inliers", f"of {stages.matches} matches, {stages.inliers} agree on an affine")
    return Lost("held out", f"{stages.inliers} matches agree, and others do not bear them out")


def find_misfits(
    fixed: Image, moving: Image, choices: Sequence[AffineSettings]
) -> tuple[Misfit, ...]:
    """Try what would mend a pair in memory that does not match as it is."""
    trials = _Trials.of(fixed, choices)
    as_it_is = trials.match(moving)
    bar = max(_LEAST, _TIMES * (as_it_is.stages.inliers if as_it_is else 0))
    return tuple(_tried_contrast(trials, moving, bar)) or tuple(_tried_spacing(trials, moving, bar))


def name_stretches(
    fixed: Image, moving: Image, linear: Floats, choices: Sequence[AffineSettings]
) -> tuple[Misfit, ...]:
    """Say along which axes an affine, by its linear part, stretches as no tissue is stretched.

    Contexts that were stretched match ill, so the spacing is told by another match without that.
    """
    lengths = np.linalg.norm(linear, axis=0)
    # What all axes share may be swelling, as of expanded tissue.
    relative = lengths / np.median(lengths)
    if not (np.maximum(relative, 1 / relative) > _STRETCH).any():
        return ()
    spacing = np.asarray(moving.spacing) / lengths
    grid = replace(moving.grid, spacing=tuple(spacing))
    again = _Trials.of(fixed, choices).match(Image(moving.read(), grid, moving.name))
    if again is not None and again.estimate.matrix is not None:
        spacing = spacing / np.linalg.norm(again.estimate.matrix[:-1, :-1], axis=0)
    return (_wrong_spacing(moving.grid, spacing, "so the affine stretches"),)


MIRRORED = Misfit(
    "mirrored",
    "a mirrored copy of the moving image fits better than the image itself",
    "check the order of its axes and slices; if one of the images is a mirror image, give --mirror",
)
"""Fault that a search finds, see `itkstream.numerics.search`."""

_CHANNEL = Misfit(
    "content",
    "the images may show different tissue or stains",
    "give --fixed-channel N or --moving-channel N for the stain that both show",
)
_START = Misfit(
    "content",
    "they may be too unlike to be matched as they lie",
    "give a start: --initial FILE, --landmarks FILE or --orient FIXED MOVING",
)
_REMEDIES: dict[Stage, tuple[Misfit, ...]] = {
    "blobs": (
        Misfit("settings", "blobs of other radii may be there", "give --radii MIN MAX, in voxels"),
        Misfit("content", "the tissue may be in another channel", "give --channel N"),
    ),
    "contexts": (
        Misfit("settings", "windows reach out of the images", "give --context-radius 6 or less"),
    ),
    "matches": (
        Misfit("settings", "contexts may be less alike", "give --match-threshold 0.5 or less"),
        _CHANNEL,
        _START,
    ),
    "inliers": (_CHANNEL, _START),
    "held out": (_CHANNEL, _START),
}


def usual_remedies(lost: Lost) -> tuple[Misfit, ...]:
    """Changes for the stage that lost key points, where no fault of the pair was found."""
    return _REMEDIES[lost.stage]


@frozen(eq=False)
class _Trials:
    """A fixed image with its key points, to which moving images are matched."""

    fixed: Image
    choices: tuple[AffineSettings, ...]
    points: KnownPoints

    @classmethod
    def of(cls, fixed: Image, choices: Sequence[AffineSettings]) -> _Trials:
        return cls(fixed, tuple(choices), sought_once(fixed))

    def match(self, moving: Image) -> MatchedAffine | None:
        """The settings by which most matches agree, of all."""
        try:
            pair = [ChannelPair(self.fixed, moving)]
            found = best_affine_block(pair, self.choices, math.inf, self.points)
        except (InputError, RegistrationError):
            return None
        return found.best

    def borne_out(self, moving: Image, bar: float) -> MatchedAffine | None:
        """The best match where enough agree and those held out of it bear it out."""
        found = self.match(moving)
        if found is None or found.estimate.matrix is None or found.stages.inliers < bar:
            return None
        spent = found.pairs.fixed_points[found.estimate.inliers]
        evidence = Witnesses(self.fixed, moving).evidence(found.estimate.matrix, spent)
        return None if evidence.outcome == "chance" else found


def _tried_contrast(trials: _Trials, moving: Image, bar: float) -> Iterator[Misfit]:
    found = trials.borne_out(inverted(moving), bar)
    if found is not None:
        yield Misfit(
            "contrast",
            "the moving image is bright where the fixed one is dark: inverted, "
            f"{found.stages.inliers} matches agree",
            "give --contrast inverted",
        )


def _tried_spacing(trials: _Trials, moving: Image, bar: float) -> Iterator[Misfit]:
    for spacing in _spacings(trials.fixed, moving)[:_TRIED]:
        grid = replace(moving.grid, spacing=tuple(spacing))
        found = trials.borne_out(Image(moving.read(), grid, moving.name), bar)
        if found is None or found.estimate.matrix is None:
            continue
        stretch = np.linalg.norm(found.estimate.matrix[:-1, :-1], axis=0)
        off = np.maximum(stretch, 1 / stretch) > _STRETCH
        told = np.where(off, spacing / stretch, spacing)
        yield _wrong_spacing(moving.grid, told, f"with it {found.stages.inliers} matches agree")
        return


def _wrong_spacing(grid: Grid, spacing: Floats, evidence: str) -> Misfit:
    """A spacing that should be another one."""
    times = spacing / np.asarray(grid.spacing)
    wrong = [f"{grid.axes[k]} {t:.2g} times" for k, t in enumerate(times) if not 0.8 < t < _STRETCH]
    numbers = ",".join(f"{s:.3g}" for s in spacing)
    return Misfit(
        "spacing",
        f"the voxel spacing of the moving image looks wrong ({', '.join(wrong) or 'all axes'} as "
        f"large would fit the fixed one; {evidence})",
        f"give --moving-spacing {numbers} ({','.join(grid.axes)}), or if the fixed image's is "
        "wrong, --fixed-spacing",
    )


def _spacings(fixed: Image, moving: Image) -> list[Floats]:
    """Other spacings of the moving image, those first by which its texture is as the fixed one's.

    Only those under which it is more so than as it is.
    """
    own = np.asarray(moving.spacing)
    ratio = np.log(_texture_vox(fixed) * fixed.spacing) - np.log(_texture_vox(moving) * own)
    n = len(own)
    changes = [np.asarray(fixed.spacing) / own, own[::-1] / own]
    for factor in _FACTORS:
        changes += [np.where(np.arange(n) == k, factor, 1.0) for k in range(n)]
        changes.append(np.full(n, factor))
    decades = round(float(ratio.mean() / np.log(10)))
    changes.append(np.full(n, 10.0**decades))
    misses = np.array([np.abs(ratio - np.log(change)).sum() for change in changes])
    order = np.argsort(misses, kind="stable")
    better = [changes[k] for k in order if misses[k] < np.abs(ratio).sum()]
    kept: list[Floats] = []
    for change in better:
        if not np.allclose(change, 1) and not any(np.allclose(change, k) for k in kept):
            kept.append(change)
    return [change * own for change in kept]


def _texture_vox(image: Image) -> Floats:
    """Lag per axis, in voxels, at which the correlation of an image with itself is halved.

    Against that of neighbours, to which noise adds nothing.
    """
    voxels = np.asarray(image.read(), np.float32)
    finite = np.isfinite(voxels)
    voxels = np.where(finite, voxels, voxels[finite].mean() if finite.any() else 0)
    fine = voxels - gaussian_filter(voxels, _LARGE_VOX)
    return np.array([_half_lag(np.moveaxis(fine, axis, 0)) for axis in range(fine.ndim)])


def _half_lag(fine: NDArray[np.float32]) -> float:
    lags = np.arange(1, min(_LAGS, len(fine) // 2) + 1)
    if len(lags) < 2:
        return 1.0
    products = np.array([np.mean(fine[lag:] * fine[:-lag], dtype=np.float64) for lag in lags])
    if products[0] <= 0:
        return 1.0
    low = np.flatnonzero(products <= products[0] / 2)
    if not low.size:
        return float(lags[-1])
    after = int(low[0])
    drop = products[after - 1] - products[after]
    return float(lags[after - 1] + (products[after - 1] - products[0] / 2) / drop)
