"""Camera patterns: what a sensor adds to every plane, told from tissue by its staying where it is.

Hot and dead pixels, columns, rows and fixed noise lie at the same place of each plane, whatever
tissue passes there. Two images of one camera match by them at no displacement at all. They are
found in a few places along a stack, far apart, as differences from the local median:

- that come again, with one sign, at nearly all places;
- that are sharp: a lens spreads light over several pixels, electronics do not;
- that stand out of the noise and the texture around them (single pixels and lines), or that are as
  a whole alike at places far apart (fixed noise).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from itkstream.numerics.checks import TO_DEVIATION

__all__ = ["MARGIN", "PatternCount", "count_pattern", "find_pattern", "repair_planes"]

Floats = NDArray[np.float32]

MARGIN = 2
"""Pixels around each that tell what it should have been."""

# A pixel that does not belong there comes again at all places but so many of eight.
_EXCEPTIONS = 2
# At each it differs so many times as much as all but one of its eight neighbours: light of a lens
# spreads over several pixels. The least difference is this share of the image's range.
_SHARP = 2.5
_LEAST = 1e-3
# Fewer pixels, or a smaller share of all, cost nothing; tissue that stands across planes has some.
_FEW, _FEW_SHARE = 4, 2e-5
# Lines are seen in so many bands of the plane; of all bands and places, so many may differ. They
# stand out by so many standard deviations of all lines.
_BANDS = 4
_LINE_EXCEPTIONS = 0.1
# Where all lines add something, the level they are compared to is a Gaussian of so many of them.
_LEVEL_SIGMA = 5.0
_OUTLYING = 4.0
# Fixed noise is so much alike at places far apart, and so much less alike one pixel further. One
# of a smaller share of the deviation of pixels than this makes no images alike.
_ALIKE, _BLUNT = 0.1, 0.3
_LEAST_SHARE = 0.25


@dataclass(frozen=True)
class PatternCount:
    """Parts of a pattern: single pixels, lines along each axis, the deviation of what all add."""

    pixels: int
    lines: tuple[int, int]
    noise: float


def find_pattern(stack: NDArray[np.floating]) -> Floats:
    """Find what a camera adds to every plane: to be subtracted; NaN where a pixel says nothing.

    Shapes: `stack` (places, y, x), each the mean of neighbouring planes; returns (y, x).
    """
    known = np.isfinite(stack)
    filled = np.where(known, stack, 0).astype(np.float32)
    rest = filled - _median_of_5(_median_of_5(filled, 2), 1)
    rest -= rest.mean(where=known) if known.any() else 0
    rest[~known] = 0
    low, high = np.percentile(filled, (1, 99.5)).tolist()
    least = max(_LEAST * (high - low), 1e-30)
    deviation = max(TO_DEVIATION * float(np.median(np.abs(rest))), least)
    columns, rows = (_find_lines(filled, rest, axis, (least, deviation)) for axis in (2, 1))
    pattern = columns[None, :] + rows[:, None]
    rest = np.where(np.isnan(pattern), 0, rest - np.nan_to_num(pattern))
    pattern[_find_pixels(rest, least)] = np.nan
    rest[:, np.isnan(pattern)] = 0
    return pattern + _fixed_part(rest[:, None], deviation)


def count_pattern(pattern: Floats) -> PatternCount:
    """Count what a pattern holds; lines are those of which most pixels say nothing."""
    bad = np.isnan(pattern)
    first, second = bad.mean(axis=1) > 0.5, bad.mean(axis=0) > 0.5
    single = bad & ~first[:, None] & ~second[None, :]
    noise = float(np.std(pattern[~bad])) if not bad.all() else 0.0
    # Lines of the second axis are seen as one element of the first.
    return PatternCount(int(single.sum()), (int(second.sum()), int(first.sum())), noise)


def repair_planes(planes: NDArray[Any], pattern: Floats) -> NDArray[Any]:
    """Subtract a pattern from planes; a pixel that says nothing becomes the median around it.

    Voxels that are not finite stay so.

    Shapes: `planes` (n, y, x), `pattern` (y, x).
    """
    bad, whole = np.isnan(pattern), planes.dtype.kind in "iu"
    offset = np.where(bad, 0, pattern)
    out = planes - offset if offset.any() else np.array(planes)
    if bad.any():
        given, middle = out[:, bad], _medians_around(out, bad)
        out[:, bad] = np.where(np.isfinite(given), np.rint(middle) if whole else middle, given)
    if whole and out.dtype != planes.dtype:
        bounds = np.iinfo(planes.dtype)
        out = np.clip(np.rint(out), bounds.min, bounds.max)
    return out.astype(planes.dtype, copy=False)


def _medians_around(planes: NDArray[Any], bad: NDArray[np.bool_]) -> NDArray[Any]:
    """Medians (n, bad pixels) of good pixels around bad ones; themselves where there are none."""
    room = ((MARGIN, MARGIN),) * 2
    unusable = np.pad(bad, room, constant_values=True)
    padded = np.pad(planes, ((0, 0), *room), mode="edge")
    y, x = np.nonzero(bad)
    around = list(product(range(2 * MARGIN + 1), repeat=2))
    values = np.stack([padded[:, y + i, x + j] for i, j in around]).astype(np.float64)
    good = np.stack([~unusable[y + i, x + j] for i, j in around])[:, None] & np.isfinite(values)
    values = np.sort(np.where(good, values, np.inf), axis=0)
    count = good.sum(axis=0)
    low, high = (np.maximum(count - k, 0) // 2 for k in (1, 0))
    high = np.minimum(high, np.maximum(count - 1, 0))
    middle = (_pick(values, low) + _pick(values, high)) / 2
    return np.where(count > 0, middle, planes[:, bad])


def _pick(values: NDArray[np.float64], which: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.asarray(np.take_along_axis(values, which[None], axis=0)[0])


def _median_of_5(stack: Floats, axis: int) -> Floats:
    """Median of each pixel and two on either side: neither one pixel nor a pair changes it."""
    room = [(0, 0)] * stack.ndim
    room[axis] = (2, 2)
    padded = np.moveaxis(np.pad(stack, room, mode="symmetric"), axis, 0)
    a, b, e, c, d = (padded[k : k + stack.shape[axis]] for k in range(5))
    low = np.maximum(np.minimum(a, b), np.minimum(c, d))
    high = np.minimum(np.maximum(a, b), np.maximum(c, d))
    middle = np.maximum(np.minimum(low, high), np.minimum(e, np.maximum(low, high)))
    return np.moveaxis(middle, 0, axis)


def _find_lines(stack: Floats, rest: Floats, axis: int, sizes: tuple[float, float]) -> Floats:
    """Offsets of the lines across an axis, seen as their medians; NaN where they say nothing."""
    # The least difference that counts, and the deviation of pixels.
    least, deviation = sizes
    seen = _medians_of_lines(rest, axis)
    every = (seen - _fixed_part(seen, deviation)).reshape(-1, seen.shape[-1])
    noise = max(least, TO_DEVIATION * float(np.median(np.abs(every))))
    # Two lines side by side may be bad; light spreads further.
    padded = np.pad(np.abs(every), ((0, 0), (2, 2)))
    beside = np.maximum(padded[:, :-4], padded[:, 4:])
    stands_out = np.abs(every) > np.maximum(_OUTLYING * noise, _SHARP * beside)
    bad = _comes_again(every, stands_out, int(_LINE_EXCEPTIONS * len(every)))
    offset = np.zeros(bad.shape, np.float32)
    seen[..., bad] = 0
    if _fixed_part(seen, deviation).any():
        # The median of five took away much of what lines add.
        level, line = _medians_of_lines(stack, axis).mean(axis=(0, 1)), np.arange(len(bad))
        level = np.interp(line, line[~bad], level[~bad])
        offset = (level - gaussian_filter1d(level, _LEVEL_SIGMA)).astype(np.float32)
    return np.where(bad, np.float32(np.nan), offset)


def _medians_of_lines(stack: Floats, axis: int) -> Floats:
    """Medians (places, bands, lines) of the lines across an axis, in bands of the plane."""
    bands = np.array_split(stack, _BANDS, axis=3 - axis)
    return np.stack([np.median(band, axis=3 - axis) for band in bands], axis=1)


def _find_pixels(rest: Floats, least: float) -> NDArray[np.bool_]:
    """Single pixels that say nothing."""
    size, (ny, nx) = np.abs(rest), rest.shape[1:]
    padded = np.pad(size, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    largest, second = np.zeros_like(size), np.zeros_like(size)
    for i, j in product(range(3), repeat=2):
        if (i, j) != (1, 1):
            beside = padded[:, i : i + ny, j : j + nx]
            second = np.maximum(second, np.minimum(largest, beside))
            largest = np.maximum(largest, beside)
    bad = _comes_again(rest, size > np.maximum(_SHARP * second, least), _EXCEPTIONS)
    return bad if bad.sum() >= max(_FEW, _FEW_SHARE * bad.size) else np.zeros_like(bad)


def _comes_again(seen: Floats, stands_out: NDArray[np.bool_], exceptions: int) -> NDArray[np.bool_]:
    """Mark what stands out with one sign at all places but some."""
    needed = len(seen) - exceptions
    signs = (stands_out & (seen > 0), stands_out & (seen < 0))
    return np.asarray(np.maximum(*(sign.sum(axis=0) for sign in signs)) >= needed)


def _fixed_part(seen: Floats, deviation: float) -> Floats:
    """The part of (places, bands, ...) that is alike at all places, sharp, and not too little."""
    # Tissue that stands out in one of them tells nothing of the others.
    most = 3 * TO_DEVIATION * np.median(np.abs(seen))
    usual = np.clip(seen, -most, most)
    some = 3 * len(seen) // 8
    halves = usual[:some, ::2], usual[-some:, 1::2] if seen.shape[1] > 1 else usual[-some:]
    first, last = (half.mean(axis=(0, 1)) for half in halves)
    first, last = first - first.mean(), last - last.mean()
    common = float((first * last).mean())
    apart = float(np.sqrt((first**2).mean() * (last**2).mean()))
    blunt = max(_shifted_product(first, last, axis) for axis in range(first.ndim))
    alike = max(_ALIKE, 5 / np.sqrt(first.size))
    middle = np.asarray(usual.mean(axis=(0, 1)), np.float32)
    weak = common < (_LEAST_SHARE * deviation) ** 2
    if weak or common <= alike * apart or blunt > _BLUNT * common:
        return np.zeros_like(middle)
    middle -= middle.mean()
    # The share that noise has not made, as of a Wiener filter.
    return middle * np.float32(min(1.0, common / float((middle**2).mean())))


def _shifted_product(a: Floats, b: Floats, axis: int) -> float:
    """Mean product of an array with another one, an element further along an axis."""
    a, b = np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0)
    return float((a[:-1] * b[1:]).mean())
