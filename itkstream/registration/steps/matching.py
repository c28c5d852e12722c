"""Parameters and work shared by all steps that match key points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import attrs
import numpy as np
from attrs import frozen
from attrs.validators import optional

from itkstream.blocks.sources import inverted
from itkstream.errors import InputError
from itkstream.geometry import ChannelPair, Image, Transform
from itkstream.numerics.itk.settings import Model
from itkstream.numerics.matching.affine import (
    ALIGN_THRESHOLD_VOX,
    PLENTY_OF_INLIERS,
    AffineSettings,
    BestAffine,
    Stages,
    best_affine_block,
)
from itkstream.numerics.matching.contexts import ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings, KnownPoints, find_key_points
from itkstream.numerics.matching.matches import MatchSettings
from itkstream.numerics.matching.ransac import RansacSettings
from itkstream.numerics.parameters import check, finite, one_of, whole
from itkstream.registration.scene import Radii
from itkstream.registration.steps.step import Step

__all__ = [
    "COMMON_RADII",
    "KEY_POINT_BYTES",
    "ChosenRadii",
    "Contrast",
    "MatchingStep",
    "checked_radii",
    "choose_radii",
    "find_timed_points",
]

Contrast: TypeAlias = Literal["same", "inverted"]
"""Contrast of the moving image, against the fixed one."""

COMMON_RADII: tuple[Radii, ...] = ((6.0, 20.0), (3.0, 10.0), (2.0, 6.0))
"""Radii of the blobs of a whole image, tried one pair after the other."""

KEY_POINT_BYTES = 15.0
"""Per voxel of both images, in which key points are sought at the same time."""

# Blobs are at least so many voxels apart in all, as nuclei are.
_VOXELS_PER_POINT = 4000
_FLOAT = 4
# Where nothing is given: of contexts the half width in voxels.
_USUAL_THRESHOLD, _USUAL_CONTEXT = 0.7, 12
_TIMED_RADII = (3.0, 10.0)

_positive_or_none = check(
    lambda v: v is None or (finite(v) and v > 0), "be a positive number or None"
)


@frozen(kw_only=True, repr=False)
class MatchingStep(Step):
    """A step that matches key points, and the parameters of matching."""

    match_threshold: float | None = attrs.field(
        default=None,
        validator=optional(check(lambda v: finite(v) and -1 <= v <= 1, "lie between -1 and 1")),
    )
    cc_radius: int | None = attrs.field(default=None, validator=optional(whole(1)))
    nspots: int = attrs.field(default=5000, validator=whole(1))
    num_sigma_max: int = attrs.field(default=10, validator=whole(1))
    align_threshold: float | None = attrs.field(default=None, validator=_positive_or_none)
    max_distance: float | None = attrs.field(default=None, validator=_positive_or_none)
    max_ambiguity: float | None = attrs.field(default=None, validator=_positive_or_none)
    model: Model = attrs.field(default="affine", validator=one_of(Model))
    seed: int = attrs.field(default=0, validator=whole(0))
    contrast: Contrast = attrs.field(default="same", validator=one_of(Contrast))

    @property
    def threshold(self) -> float:
        """Least correlation of two contexts that match: as given, or the usual."""
        return _USUAL_THRESHOLD if self.match_threshold is None else self.match_threshold

    @property
    def context(self) -> int:
        """Half width of contexts, in voxels: as given, or the usual."""
        return _USUAL_CONTEXT if self.cc_radius is None else self.cc_radius

    def compared(self, moving: Image) -> Image:
        """The moving image as its key points are compared, inverted where its contrast is.

        Parameters
        ----------
        moving : Image
            As it is.

        Returns
        -------
        Image
            In memory where the image is; of another, nothing is read.
        """
        return inverted(moving) if self.contrast == "inverted" else moving

    def compared_channels(self, pairs: Sequence[ChannelPair]) -> tuple[ChannelPair, ...]:
        """All channels as their key points are compared; nothing is read.

        Parameters
        ----------
        pairs : sequence of ChannelPair
            As they are.

        Returns
        -------
        tuple of ChannelPair
            With the moving images as `compared` gives them.
        """
        return tuple(replace(pair, moving=self.compared(pair.moving)) for pair in pairs)

    def matching_facts(self, radii: Radii) -> dict[str, Any]:
        """Name the parameters of matching, with blobs of these radii, for a report.

        Parameters
        ----------
        radii : (float, float)
            Least and greatest radius of the blobs, in voxels.

        Returns
        -------
        dict of str to object
            Radii, the context's and the threshold.
        """
        return {
            "radii": list(radii),
            "context_radius": self.context,
            "match_threshold": self.threshold,
        }

    def settings_for(self, spacing: Sequence[float], radii: Radii) -> AffineSettings:
        """The settings for blobs of these radii, in voxels of an image of this spacing in µm.

        Parameters
        ----------
        spacing : sequence of float
            Of the fixed image, in µm.
        radii : (float, float)
            Least and greatest radius of the blobs, in voxels of the fixed image.

        Returns
        -------
        AffineSettings
            With all lengths in µm.
        """
        voxel = float(np.median(spacing))
        threshold = self.align_threshold or ALIGN_THRESHOLD_VOX * voxel
        return AffineSettings(
            KeyPointSettings.from_voxels(
                *radii, spacing, nspots=self.nspots, num_sigma_max=self.num_sigma_max
            ),
            ContextWindow.from_voxels(self.context, spacing),
            MatchSettings(
                self.threshold, self.max_distance, self.max_ambiguity, self.context * voxel
            ),
            RansacSettings(self.model, threshold_um=threshold, seed=self.seed),
        )

    def context_bytes(self, voxels: float, ndim: int) -> float:
        """Bytes of the contexts of all key points in so many voxels."""
        points = min(2 * self.nspots, voxels / _VOXELS_PER_POINT)
        return points * (2 * self.context + 1) ** ndim * _FLOAT

    def works(self, moving: Image, start: Transform) -> Mapping[str, Callable[[Image], Any]]:
        return {"points": find_timed_points}


def find_timed_points(block: Image) -> None:
    """Find key points as the time of all that matches them is told by."""
    settings = KeyPointSettings.from_voxels(*_TIMED_RADII, block.spacing)
    find_key_points(block.read(), block.grid, settings)


@frozen(eq=False)
class ChosenRadii:
    """The radii of blobs by which most matches agree, and all that were tried for it."""

    radii: Radii
    found: BestAffine
    step: MatchingStep
    tried: tuple[Radii, ...]

    @property
    def why(self) -> str:
        """The reason of the choice, in words."""
        inliers, count = self.found.best.stages.inliers, len(self.found.tried)
        if count == 1 == len(self.tried):
            return "they were given"
        if inliers >= PLENTY_OF_INLIERS and count < len(self.tried):
            return f"{inliers} matches agree by them, which is plenty: no others were tried"
        return f"{inliers} matches agree by them, the most of {count} that were tried"

    @property
    def outcomes(self) -> list[tuple[Radii, Stages | None]]:
        """Stages by the radii that were tried, in turn; None where the images do not suit them."""
        told = zip(self.tried, self.found.tried, strict=False)
        return [(radii, stages) for radii, (_, stages) in told]

    @property
    def facts(self) -> dict[str, Any]:
        """Parameters of matching, why they were taken, and what was left stage by stage."""
        return {
            **self.step.matching_facts(self.radii),
            "why": self.why,
            "tried": [
                {"radii": list(radii), **(attrs.asdict(stages) if stages else {})}
                for radii, stages in self.outcomes
            ],
        }


def choose_radii(
    pairs: Sequence[ChannelPair],
    step: MatchingStep,
    radii: Sequence[Radii],
    plenty: int = PLENTY_OF_INLIERS,
    fixed_points: KnownPoints | None = None,
) -> ChosenRadii:
    """Choose those radii of blobs, tried in turn until matches are plenty, by which most agree.

    `fixed_points` as for `best_affine_block`.
    """
    choices = [step.settings_for(pairs[0].fixed.spacing, pair) for pair in radii]
    found = best_affine_block(pairs, choices, plenty, fixed_points)
    chosen = radii[choices.index(found.best.settings)]
    return ChosenRadii(chosen, found, step, tuple(radii))


def checked_radii(given: Any) -> tuple[Radii, ...]:
    """Pairs of (least, greatest) radius."""
    try:
        pairs = tuple((float(low), float(high)) for low, high in given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"radii must be pairs of smallest and largest, such as ((6, 20),); got {given!r}"
        ) from error
    if not pairs or not all(0 < low <= high < np.inf for low, high in pairs):
        said = ", ".join(f"{low:g} and {high:g}" for low, high in pairs) or "none"
        raise InputError(
            "radii must be pairs of smallest and largest, above 0 and in this order, such as 6 and "
            f"20; got {said}"
        )
    return pairs
