"""The array operations of a scale space: what differs from one engine to another, and nothing else.

`scale_space` and `blobs` decide; an engine holds the images, and filters them. The results of all
have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from itkstream.numerics.checks import floating_dtype
from itkstream.numerics.compiling import compiled, helper, inlined
from itkstream.numerics.gpu.arrays import Array, Arrays, HostArrays
from itkstream.numerics.gpu.backend import Backend
from itkstream.numerics.gpu.dispatch import on_engine
from itkstream.numerics.gpu.filters import FILTER_BYTES, DeviceFilters
from itkstream.numerics.lift import around_axis
from itkstream.numerics.sampling.pyramid import filter_axis
from itkstream.numerics.threads import over_slabs

__all__ = ["HOST", "Filters", "HostFilters", "find_maxima", "with_filters"]

Result = TypeVar("Result")


class Filters(Arrays, Protocol):
    """Operations of an engine on images of two or three axes, float32 once they are filtered."""

    def load(self, image: NDArray[np.generic]) -> Array:
        """An image as an array of the engine, of the type in which it is filtered first."""

    def convolve(self, image: Array, axis: int, weights: NDArray[np.float32]) -> Array:
        """Convolve along one axis, see `filter_axis`."""

    def halve(self, image: Array, axis: int) -> Array:
        """Keep every second voxel along one axis, after a (1, 3, 3, 1) / 8 filter."""

    def laplacian(self, image: Array, weights: tuple[np.float32, ...]) -> Array:
        """Minus the Laplacian by the weights of the axes, 0 on the border."""

    def maxima(self, below: Array, here: Array, above: Array) -> NDArray[np.intp]:
        """See `find_maxima`."""


class HostFilters(HostArrays):
    """The operations of the processors, on numpy arrays."""

    def load(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """The image itself, whatever its type."""
        return image

    def convolve(
        self, image: NDArray[np.float32], axis: int, weights: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """As `Filters.convolve`."""
        return filter_axis(image, axis, weights)

    def halve(self, image: NDArray[Any], axis: int) -> NDArray[np.float32]:
        """As `Filters.halve`."""
        before, length, after = around_axis(image.shape, axis)
        half = length // 2
        values = np.ascontiguousarray(image, floating_dtype(image.dtype))
        lines = values.reshape(before, length, after)
        out = np.empty((before, half, after), np.float32)
        if after == 1:
            flat, result = lines[:, :, 0], out[:, :, 0]
            over_slabs(lambda a, b: _halve_along(flat, result, a, b), before)
        else:
            over_slabs(lambda a, b: _halve_across(lines, out, a, b), before * half)
        return out.reshape((*image.shape[:axis], half, *image.shape[axis + 1 :]))

    def laplacian(
        self, image: NDArray[np.float32], weights: tuple[np.float32, ...]
    ) -> NDArray[np.float32]:
        """As `Filters.laplacian`."""
        data = np.ascontiguousarray(image)
        out = np.zeros_like(data)
        values, result = _rows_of(data), _rows_of(out)
        over_slabs(lambda a, b: _laplacian(values, weights, result, a, b), data.shape[0] - 2)
        return out

    def maxima(
        self, below: NDArray[np.float32], here: NDArray[np.float32], above: NDArray[np.float32]
    ) -> NDArray[np.intp]:
        """As `Filters.maxima`."""
        return find_maxima(below, here, above)


HOST = HostFilters()
"""The engine of an image that is told no other."""


def with_filters(image: NDArray[np.generic], compute: Callable[[Filters], Result]) -> Result:
    """Call a function with the filters of this process's engine, for images as large as this one.

    Integers of 64 bits, which doubles do not hold, are filtered by the processors.
    """

    def on_device(gpu: Backend) -> Result:
        return compute(DeviceFilters(gpu))

    def on_processors() -> Result:
        return compute(HOST)

    if image.dtype.kind in "iu" and image.dtype.itemsize == 8:
        return on_processors()
    return on_engine(on_device, on_processors, FILTER_BYTES * image.size)


def find_maxima(
    below: NDArray[np.float32], here: NDArray[np.float32], above: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Positive voxels larger than all their neighbours in space and scale.

    Of equal neighbours the first in index order counts, so that a peak between two voxels is
    found, and once.

    Returns (m, n).
    """
    if min(here.shape) < 3:
        return np.empty((0, here.ndim), np.intp)
    keep = np.zeros(here.shape, bool)
    scales = tuple(_rows_of(np.ascontiguousarray(values)) for values in (below, here, above))
    kept = _rows_of(keep)
    over_slabs(lambda a, b: _mark_maxima(scales, kept, a, b), here.shape[0] - 2)
    return np.stack(np.unravel_index(np.flatnonzero(keep), keep.shape), axis=-1)


def _rows_of(image: NDArray[Any]) -> NDArray[Any]:
    """An image in three dimensions; a plane as one row after the other, for threads to share."""
    return image[:, None] if image.ndim == 2 else image


@inlined
def _neighbours(values, i, j, edge):  # type: ignore[no-untyped-def]
    """A row without its ends, and those before and after it: above, in the plane, and along it.

    Rows, not indices k - 1, which might be negative: LLVM would not use vector operations.
    """
    plane = values[i]
    return (
        plane[j, 1:-1],
        (values[i - 1, j, 1:-1], values[i + 1, j, 1:-1]),
        (plane[j - edge, 1:-1], plane[j + edge, 1:-1]),
        (plane[j, :-2], plane[j, 2:]),
    )


@compiled
def _halve_across(planes, out, start, stop):  # type: ignore[no-untyped-def]
    """Weighted sums of four lines; at the ends of an image the last line stands for the next."""
    half, last = out.shape[1], planes.shape[1] - 1
    for row in range(start, stop):
        i, g = row // half, row % half
        first, fourth = planes[i, max(2 * g - 1, 0)], planes[i, min(2 * g + 2, last)]
        second, third = planes[i, 2 * g], planes[i, 2 * g + 1]
        total = out[i, g]
        for k in range(total.shape[0]):
            total[k] = _halved(first[k], second[k], third[k], fourth[k])


@compiled
def _halve_along(lines, out, start, stop):  # type: ignore[no-untyped-def]
    """The same within each line."""
    half, last = out.shape[1], lines.shape[1] - 1
    for i in range(start, stop):
        line, total = lines[i], out[i]
        for g in range(half):
            before, after = line[max(2 * g - 1, 0)], line[min(2 * g + 2, last)]
            total[g] = _halved(before, line[2 * g], line[2 * g + 1], after)


@inlined
def _halved(first, second, third, fourth):  # type: ignore[no-untyped-def]
    return np.float32(0.375) * (second + third) + np.float32(0.125) * (first + fourth)


@compiled
def _laplacian(values, weights, out, start, stop):  # type: ignore[no-untyped-def]
    first, second, third = weights
    middle = np.float32(2) * (first + second + third)
    edge = min(1, values.shape[1] - 1)  # 0 where a plane lies row by row
    for i in range(start + 1, stop + 1):
        for j in range(edge, values.shape[1] - edge):
            row, (above, below), (front, back), (left, right) = _neighbours(values, i, j, edge)
            total = out[i, j, 1:-1]
            for k in range(row.shape[0]):
                total[k] = middle * row[k]
                total[k] -= first * (above[k] + below[k])
                total[k] -= second * (front[k] + back[k])
                total[k] -= third * (left[k] + right[k])


@compiled
def _mark_maxima(scales, keep, start, stop):  # type: ignore[no-untyped-def]
    """Those that no face neighbour exceeds, which are few, are compared with all the others."""
    values = scales[1]
    edge = min(1, values.shape[1] - 1)  # 0 where a plane lies row by row
    for i in range(start + 1, stop + 1):
        for j in range(edge, values.shape[1] - edge):
            row, (above, below), (front, back), (left, right) = _neighbours(values, i, j, edge)
            found = keep[i, j, 1:-1]
            for k in range(row.shape[0]):
                here = row[k]
                largest = (here > above[k]) & (here >= below[k]) & (here > left[k])
                largest &= (here >= right[k]) & (here > 0)
                largest &= (edge == 0) | ((here > front[k]) & (here >= back[k]))
                found[k] = largest
            for k in range(row.shape[0]):
                if found[k]:
                    found[k] = _exceeds_all(scales, (i, j, k + 1), edge)


@helper
def _exceeds_all(scales, place, edge):  # type: ignore[no-untyped-def]
    """Whether a voxel exceeds all its neighbours; of those that follow in order, none is larger."""
    below, values, above = scales
    i, j, k = place
    here = values[i, j, k]
    for a in range(i - 1, i + 2):
        for b in range(j - edge, j + edge + 1):
            for c in range(k - 1, k + 2):
                if not (here > below[a, b, c] and here >= above[a, b, c]):
                    return False
                is_before = (a, b, c) < (i, j, k)
                if here < values[a, b, c] or (is_before and here == values[a, b, c]):
                    return False
    return True
