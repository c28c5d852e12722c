"""Filters of images on a GPU, and the maxima they find: the bits that the processors give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.numerics.checks import floating_dtype
from itkstream.numerics.gpu.arrays import DeviceArrays
from itkstream.numerics.gpu.backend import Backend
from itkstream.numerics.lift import around_axis

__all__ = ["FILTER_BYTES", "DeviceFilters", "filter_axis"]

FILTER_BYTES = 48.0
"""Memory that blobs of several widths take on a device, at most, per voxel of an image.

The image and the one that is blurred, its next two, the Laplacians of three widths and one of the
lowest value are eight times 4 bytes; marks of the maxima and their positions 9; a first image in
double precision 4 more.
"""


class DeviceFilters(DeviceArrays):
    """As `itkstream.numerics.matching.filters.Filters`, on a device."""

    def load(self, image: NDArray[np.generic]) -> Any:
        """Send an image; it becomes float32 where that holds its values, else float64."""
        return self.send(image, floating_dtype(image.dtype))

    def convolve(self, image: Any, axis: int, weights: NDArray[np.float32]) -> Any:
        """As `Filters.convolve`."""
        return filter_axis(self.backend, image, axis, weights)

    def halve(self, image: Any, axis: int) -> Any:
        """As `Filters.halve`."""
        before, length, after = around_axis(image.shape, axis)
        half = length // 2
        out = self.xp.empty((*image.shape[:axis], half, *image.shape[axis + 1 :]), np.float32)
        kernel = f"halve_{8 * image.dtype.itemsize}"
        self.backend.launch(kernel, (out.size,), image, before, length, after, half, out)
        return out

    def laplacian(self, image: Any, weights: tuple[np.float32, ...]) -> Any:
        """As `Filters.laplacian`."""
        out, shape = self.xp.empty(image.shape, np.float32), _rows(image.shape)
        factors = self.backend.put(np.array(weights, np.float32))
        self.backend.launch("laplacian", shape[::-1], image, *shape, factors, out)
        return out

    def maxima(self, below: Any, here: Any, above: Any) -> NDArray[np.intp]:
        """As `Filters.maxima`; only their places leave the device."""
        keep, shape = self.xp.empty(here.shape, np.uint8), _rows(here.shape)
        self.backend.launch("mark_maxima", shape[::-1], below, here, above, *shape, keep)
        found = self.backend.get(self.xp.flatnonzero(keep))
        return np.stack(np.unravel_index(found, here.shape), axis=-1)


def filter_axis(
    backend: Backend, image: Any, axis: int, weights: NDArray[np.float32], factor: int = 1
) -> Any:
    """Convolve along one axis and keep one sample of every `factor` voxels."""
    before, length, after = around_axis(image.shape, axis)
    groups = -(-length // factor)
    out = backend.xp.empty((*image.shape[:axis], groups, *image.shape[axis + 1 :]), np.float32)
    taps = len(weights)
    backend.launch(
        "filter_axis",
        (out.size,),
        *(image, before, length, after, groups, backend.put(weights)),
        *(taps, factor, (taps - factor) // 2, out),
    )
    return out


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an image in three dimensions, a plane as one row after the other."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape
