"""Parameters and work shared by all steps that match key points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from attrs import frozen

from itkstream.errors import InputError
from itkstream.geometry import Image, Transform
from itkstream.numerics.itk.settings import Model
from itkstream.numerics.matching.affine import (
    ALIGN_THRESHOLD_VOX,
    AffineSettings,
    best_affine_block,
)
from itkstream.numerics.matching.contexts import ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings, find_key_points
from itkstream.numerics.matching.matches import MatchSettings
from itkstream.numerics.matching.ransac import AffineEstimate, RansacSettings
from itkstream.numerics.parameters import check, finite, one_of, whole
from itkstream.registration.scene import Radii
from itkstream.registration.steps.step import Step

__all__ = [
    "COMMON_RADII",
    "KEY_POINT_BYTES",
    "MatchingStep",
    "best_affine",
    "checked_radii",
    "find_timed_points",
]

COMMON_RADII: tuple[Radii, ...] = ((6.0, 20.0), (3.0, 10.0), (2.0, 6.0))
"""Radii of the blobs of a whole image, tried one pair after the other."""

KEY_POINT_BYTES = 10.0
"""Per voxel in which key points are sought."""

# Blobs are at least so many voxels apart in all, as nuclei are.
_VOXELS_PER_POINT = 4000
_FLOAT = 4
_TIMED_RADII = (3.0, 10.0)

_positive_or_none = check(
    lambda v: v is None or (finite(v) and v > 0), "be a positive number or None"
)


@frozen(kw_only=True)
class MatchingStep(Step):
    """A step that matches key points, and the parameters of matching."""

    match_threshold: float = attrs.field(
        default=0.7, validator=check(lambda v: finite(v) and -1 <= v <= 1, "lie between -1 and 1")
    )
    cc_radius: int = attrs.field(default=12, validator=whole(1))
    nspots: int = attrs.field(default=5000, validator=whole(1))
    num_sigma_max: int = attrs.field(default=10, validator=whole(1))
    align_threshold: float | None = attrs.field(default=None, validator=_positive_or_none)
    max_distance: float | None = attrs.field(default=None, validator=_positive_or_none)
    max_ambiguity: float | None = attrs.field(default=None, validator=_positive_or_none)
    model: Model = attrs.field(default="affine", validator=one_of(Model))
    seed: int = attrs.field(default=0, validator=whole(0))

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
            ContextWindow.from_voxels(self.cc_radius, spacing),
            MatchSettings(
                self.match_threshold,
                self.max_distance,
                self.max_ambiguity,
                self.cc_radius * voxel,
            ),
            RansacSettings(self.model, threshold_um=threshold, seed=self.seed),
        )

    def context_bytes(self, voxels: float, ndim: int) -> float:
        """Bytes of the contexts of all key points in so many voxels."""
        points = min(2 * self.nspots, voxels / _VOXELS_PER_POINT)
        return points * (2 * self.cc_radius + 1) ** ndim * _FLOAT

    def works(self, moving: Image, start: Transform) -> Mapping[str, Callable[[Image], Any]]:
        return {"points": find_timed_points}


def find_timed_points(block: Image) -> None:
    """Find key points as the time of all that matches them is told by."""
    settings = KeyPointSettings.from_voxels(*_TIMED_RADII, block.spacing)
    find_key_points(block.read(), block.grid, settings)


def best_affine(
    fixed: Image, moving: Image, choices: Sequence[AffineSettings]
) -> tuple[AffineEstimate, int]:
    """Find an affine with the settings that find most matches, and which these are."""
    estimate, _, best = best_affine_block(fixed, moving, choices)
    return estimate, list(choices).index(best)


def checked_radii(given: Any) -> tuple[Radii, ...]:
    """Pairs of (least, greatest) radius."""
    try:
        pairs = tuple((float(low), float(high)) for low, high in given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"radii must be pairs (min_radius, max_radius), such as ((6, 20),); got {given!r}"
        ) from error
    if not pairs or not all(0 < low <= high < np.inf for low, high in pairs):
        raise InputError(
            f"radii needs at least one pair with 0 < min_radius <= max_radius; got {given!r}"
        )
    return pairs
