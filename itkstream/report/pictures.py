"""Arrays made into pictures that stand in a page: files of their own, as data URIs."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONTRAST", "Scale", "Window", "colour_bar", "coloured", "grey"]

CONTRAST = (0.5, 99.8)
"""Percentiles of an image's values in all planes that become black and white."""

_JPEG_QUALITY = 90
_STRIPES = 8  # pixels
_STRIPE_GREY = 128
# Maps of matplotlib at even steps, straight in between. To import matplotlib for them took longer
# than to draw everything else: a tenth of a second of two that small images take.
_COLOURS = {
    "viridis": "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725",
    "magma": "000004 140e36 3b0f70 641a80 8c2981 b73779 de4968 f7705c fe9f6d fecf92 fcfdbf",
    "inferno": "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4",
    "RdBu_r": "053061 2065ab 4393c3 90c4dd d1e5f0 f7f6f6 fddbc7 f3a481 d6604d b1182b 67001f",
    "autumn": "ff0000 ffff00",
}


@dataclass(frozen=True)
class Window:
    """The intensities that become black and white; linear in between."""

    low: float
    high: float

    @classmethod
    def of(cls, *pictures: NDArray[np.float32]) -> Window:
        """Find the window of an image from all pictures of it."""
        values = np.concatenate([p[np.isfinite(p)] for p in pictures])
        if not values.size:
            return cls(0.0, 1.0)
        low, high = np.percentile(values, CONTRAST)
        return cls(float(low), float(high if high > low else low + 1.0))


@dataclass(frozen=True)
class Scale:
    """A colour map, by matplotlib's name, and the values at its ends."""

    colours: str
    low: float
    high: float


def grey(picture: NDArray[np.float32], window: Window) -> str:
    """Encode a picture in shades of grey; black where there is no value."""
    import imagecodecs

    known = np.where(np.isfinite(picture), picture, window.low)
    shades = np.clip((known - window.low) / (window.high - window.low), 0, 1)
    file = imagecodecs.jpeg8_encode(_bytes(shades), level=_JPEG_QUALITY)
    return _uri("jpeg", file)


def coloured(picture: NDArray[np.float32], scale: Scale, *, stripes: bool = False) -> str:
    """Encode values in colours; clear, or striped, where there is no value."""
    import imagecodecs

    known = np.isfinite(picture)
    shares = np.where(known, (picture - scale.low) / (scale.high - scale.low), 0.0)
    table = _table(scale.colours)
    colours = table[np.minimum(np.clip(shares, 0, 1) * len(table), len(table) - 1).astype(np.uint8)]
    colours[~known] = 0
    if stripes and not known.all():
        rows, columns = (np.arange(n) for n in picture.shape)
        colours[~known & (np.add.outer(rows, columns) % _STRIPES < 2)] = (*(_STRIPE_GREY,) * 3, 255)
    return _uri("png", imagecodecs.png_encode(colours))


def colour_bar(scale: Scale) -> str:
    """Write a colour map as the stops of a CSS gradient."""
    return ", ".join(f"#{colour}" for colour in _COLOURS[scale.colours].split())


@cache
def _table(colours: str) -> NDArray[np.uint8]:
    """A colour map of 256 colours, red, green, blue and opaque."""
    stops = np.array([list(bytes.fromhex(colour)) for colour in _COLOURS[colours].split()])
    at, steps = np.arange(256), np.linspace(0, 255, len(stops))
    shares = [np.interp(at, steps, part) / 255 for part in stops.T]
    return _bytes(np.stack([*shares, np.ones(256)], axis=-1))


def _bytes(shares: Any) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rint(np.asarray(shares) * 255), np.uint8)


def _uri(kind: str, file: Any) -> str:
    return f"data:image/{kind};base64,{b64encode(bytes(file)).decode()}"
