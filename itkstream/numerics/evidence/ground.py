"""Grounds that are brighter than the tissue on them, as of light that shines through a slide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from itkstream.numerics.blurring import gaussian_blur
from itkstream.numerics.checks import TO_DEVIATION

__all__ = ["bright_ground"]

Floats = NDArray[np.float32]

# The ground around stained tissue is brighter than so much of the image's range, and even: half of
# the border differs by less than this share of the range. So it is where noise and slopes are taken
# away, if less is left: 0 to 0.02 on grounds, 0.04 and more where tissue fills the image.
_BRIGHT, _EVEN, _NEARLY_EVEN = 0.75, 0.05, 0.03
# Noise makes a range wider: a first look may be so far off.
_FIRST_LOOK = 0.35
# Noise of a voxel is no unevenness: the blur leaves a seventh of it in planes.
_SIGMA_VOX = 2.0
# Points of the border a ground is fitted to, and how often those that lie off it are left out.
_POINTS, _ROUNDS, _OFF = 20_000, 5, 3.0


def bright_ground(image: NDArray[np.floating]) -> Floats | None:
    """The bright ground on which tissue is dark, without the tissue; None where there is none.

    A ground is as bright all along the border, but for noise and light that is uneven on a large
    scale, to second order. Voxels that are not finite do not count.
    """
    known = np.isfinite(image)
    index = _border_index(known)
    if not len(index):
        return None
    first, middle, third = np.percentile(image[tuple(index.T)], (25, 50, 75))
    low, high = np.percentile(image if known.all() else image[known], (1, 99))
    bright = (middle - low) / max(high - low, 1e-30)
    if bright > _BRIGHT and third - first < _EVEN * (high - low):
        return np.full(image.shape, middle, np.float32)
    return _sloping(image, known, index) if bright > _FIRST_LOOK else None


def _sloping(
    image: NDArray[np.floating], known: NDArray[np.bool_], index: NDArray[np.intp]
) -> Floats | None:
    """A bright ground that noise and uneven light hide; None where there is none."""
    middle = np.median(image[tuple(index.T)])
    smooth = gaussian_blur(np.where(known, image, middle).astype(np.float32), _SIGMA_VOX)
    ground = _fitted(smooth, index)
    flat = smooth - ground
    low, high = np.percentile(flat[known], (1, 99))
    first, third = np.percentile(flat[tuple(index.T)], (25, 75))
    bright = -low > _BRIGHT * (high - low)
    return ground if bright and third - first < _NEARLY_EVEN * (high - low) else None


def _border_index(known: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Some voxels (m, n) of the faces of an image, of those that are known."""
    faces = np.zeros(known.shape, bool)
    for axis in range(known.ndim):
        np.moveaxis(faces, axis, 0)[[0, -1]] = True
    index = np.flatnonzero(faces & known)
    some = index[:: max(1, len(index) // _POINTS)]
    return np.stack(np.unravel_index(some, known.shape), axis=-1)


def _fitted(smooth: Floats, index: NDArray[np.intp]) -> Floats:
    """The polynomial of second order through most of some voxels, everywhere."""
    values, powers = smooth[tuple(index.T)], _powers(list(index.T), smooth.shape)
    kept = np.ones(len(values), bool)
    for _ in range(_ROUNDS):
        factors = np.linalg.lstsq(powers[kept], values[kept], rcond=None)[0]
        off = values - powers @ factors
        off = np.abs(off - np.median(off))
        kept = off <= _OFF * TO_DEVIATION * np.median(off) + 1e-6 * np.abs(values)
    axes = np.ogrid[tuple(slice(n) for n in smooth.shape)]
    out = np.zeros(smooth.shape, np.float32)
    for factor, term in zip(factors, _terms(axes, smooth.shape), strict=True):
        out += np.float32(factor) * term.astype(np.float32)
    return out


def _powers(axes: Sequence[NDArray[np.intp]], shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.stack(_terms(axes, shape), -1)


def _terms(axes: Sequence[NDArray[np.intp]], shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Products of no, one and two coordinates, which go from -1 to 1."""
    places = [2 * a / max(n - 1, 1) - 1.0 for a, n in zip(axes, shape, strict=True)]
    pairs = combinations_with_replacement(places, 2)
    return [np.ones_like(places[0]), *places, *(a * b for a, b in pairs)]
