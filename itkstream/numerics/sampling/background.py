"""Background of an image: the value that stands where there is no image.

Light on a dark ground ends in 0. Air around a body is far below 0 in a tomograph's numbers, and
the slide around a stained section is the brightest there is: 0 would draw an edge of its own.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Image

__all__ = ["background_of"]

# Voxels per axis of a place that is looked at: a few chunks of a store, whatever its size.
_PLACE = 16

# The border of a bright field lies so high between the darkest and the brightest of the image.
_BRIGHT = 0.75

_ENDS_PERCENT = (1.0, 99.0)


def background_of(image: Image) -> float:
    """Tell an image's background from a few places on its border and inside."""
    if image.dtype.kind not in "iuf":
        return 0.0
    whole = image.dtype.kind in "iu"
    border, inside = _looked_at(image)
    border = border[np.isfinite(border)]
    if not border.size:
        return 0.0
    everything = np.concatenate([border, inside[np.isfinite(inside)]])
    middle = float(np.median(border))
    darkest, brightest = np.percentile(everything, _ENDS_PERCENT).tolist()
    if middle < 0:
        value = middle
    elif darkest < 0:
        value = darkest
    else:
        bright = brightest > darkest and middle - darkest > _BRIGHT * (brightest - darkest)
        value = middle if bright else 0.0
    return float(round(value)) if whole else value


def _looked_at(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxels of the corners, edges and faces, and of places inside."""
    border: list[NDArray[np.float64]] = []
    inside: list[NDArray[np.float64]] = []
    for place in product((0.0, 0.5, 1.0), repeat=image.ndim):
        found = _part(image, place)
        (inside if set(place) == {0.5} else border).append(found)
    inside += [_part(image, place) for place in product((0.25, 0.75), repeat=image.ndim)]
    return np.concatenate(border), np.concatenate(inside)


def _part(image: Image, place: tuple[float, ...]) -> NDArray[np.float64]:
    spans = []
    for n, share in zip(image.shape, place, strict=True):
        # Of a small image, no more than a quarter: else the middle would count as border.
        size = max(1, min(_PLACE, n // 4))
        start = round(share * (n - size))
        spans.append(slice(start, start + size))
    return image[tuple(spans)].read().astype(np.float64).ravel()
