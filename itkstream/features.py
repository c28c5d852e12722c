"""Key points of images and their matches, as `itkstream.affine.ransac_affine` finds them."""

from __future__ import annotations

from itkstream.numerics.matching.keypoints import (
    Contexts,
    ContextWindow,
    Correspondences,
    KeyPoints,
    KeyPointSettings,
    MatchSettings,
    find_key_points,
    match,
    sample_contexts,
)

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
