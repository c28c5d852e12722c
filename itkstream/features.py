"""Key points of images and their matches, as `itkstream.affine.ransac_affine` finds them."""

from __future__ import annotations

from itkstream.numerics.matching.contexts import Contexts, ContextWindow, sample_contexts
from itkstream.numerics.matching.keypoints import KeyPoints, KeyPointSettings, find_key_points
from itkstream.numerics.matching.matches import Correspondences, MatchSettings, match

__all__ = [
    "ContextWindow",
    "Contexts",
    "Correspondences",
    "KeyPointSettings",
    "KeyPoints",
    "MatchSettings",
    "find_key_points",
    "match",
    "sample_contexts",
]


def __dir__() -> list[str]:
    return __all__
