"""Images blurred to a known width, on grids no finer than that blur needs.

A Gaussian of several voxels costs time in proportion to its width and to the number of voxels, yet
what it leaves behind can be held on a far coarser grid. So an image is halved, with an
anti-aliasing filter whose blur is accounted for, before it is blurred.

References
----------
.. [1] T. Lindeberg, "Feature detection with automatic scale selection", International Journal of
   Computer Vision 30 (1998) 79-116, :doi:`10.1023/A:1008045108935`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Grid
from itkstream.numerics.compiling import compiled, inlined
from itkstream.numerics.sampling.pyramid import filter_axis, gaussian_weights
from itkstream.numerics.threads import over_slabs

__all__ = [
    "BlurredImage",
    "blur",
    "halve",
    "halvings",
    "laplacian",
    "neighbours",
    "rows_of",
    "shrink_for",
]

# The blur of a halving, (1, 3, 3, 1) / 8, in squared voxels of the finer grid.
_HALVING_VARIANCE = 0.75
# Standard deviations at which a Gaussian is cut.
_CUT = 4.0
# At 1.25 coarse voxels a Gaussian passes 0.05 % at the coarse Nyquist frequency, and halving folds
# back about 1 % of white noise.
_LEAST_SIGMA_VOX = 1.25
# Fewer voxels than this along an axis hold no blob away from its borders.
_LEAST_LENGTH = 16


@dataclass(frozen=True, eq=False)
class BlurredImage:
    """An image blurred to a known width.

    Parameters
    ----------
    data : ndarray
        Voxels, any real type at first, float32 once blurred or halved.
    grid : Grid
        Where they lie.
    variance : tuple of float
        Squared standard deviation of the blur so far per axis, in squared grid units; empty: none.
    """

    data: NDArray[np.generic]
    grid: Grid
    variance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.variance:
            object.__setattr__(self, "variance", (0.0,) * self.grid.ndim)


def halvings(grid: Grid, sigma: Iterable[float]) -> tuple[int, ...]:
    """Halvings of each axis that a blur of `sigma` allows without aliasing."""
    counts = []
    for width, spacing, length in zip(sigma, grid.spacing, grid.shape, strict=True):
        room = width / (_LEAST_SIGMA_VOX * spacing)
        # The slack keeps widths that were computed from the spacing on their side of the step.
        by_width = int(np.floor(np.log2(max(room * (1 + 1e-9), 1.0))))
        by_length = int(np.log2(max(length // _LEAST_LENGTH, 1)))
        counts.append(min(by_width, by_length))
    return tuple(counts)


def shrink_for(image: BlurredImage, sigma: Iterable[float]) -> BlurredImage:
    """Halve an image as often as a blur of `sigma` allows without aliasing."""
    for axis, count in enumerate(halvings(image.grid, sigma)):
        for _ in range(count):
            image = halve(image, axis)
    return image


def blur(image: BlurredImage, sigma: Iterable[float]) -> BlurredImage:
    """Blur an image further, to a Gaussian of standard deviation `sigma` in all."""
    data, widths = np.asarray(image.data, np.float32), tuple(map(float, sigma))
    for axis, (wanted, had) in enumerate(zip(widths, image.variance, strict=True)):
        missing = wanted**2 - had
        if missing > 0:
            data = _blur_axis(data, float(np.sqrt(missing)) / image.grid.spacing[axis], axis)
    variance = tuple(max(s**2, v) for s, v in zip(widths, image.variance, strict=True))
    return BlurredImage(data, image.grid, variance)


def halve(image: BlurredImage, axis: int) -> BlurredImage:
    """Keep every second voxel along one axis, after a (1, 3, 3, 1) / 8 filter."""
    grid = image.grid
    count = grid.shape[axis] // 2
    factors = tuple(2 if k == axis else 1 for k in range(grid.ndim))
    cut = tuple(slice(0, 2 * count if k == axis else n) for k, n in enumerate(grid.shape))
    coarse = grid.crop(cut).shrink(factors)
    # Plane by plane of another axis: each fits into the processor's cache, however it is cut.
    across = 0 if axis else 1
    out = np.empty(coarse.shape, np.float32)
    planes, halved = (np.moveaxis(x, (across, axis), (0, 1)) for x in (image.data, out))

    def slab(start: int, stop: int) -> None:
        for k in range(start, stop):
            halved[k] = _halved(planes[k], count)

    over_slabs(slab, len(planes))
    added = _HALVING_VARIANCE * grid.spacing[axis] ** 2
    variance = tuple(v + added * (k == axis) for k, v in enumerate(image.variance))
    return BlurredImage(out, coarse, variance)


def _halved(lines: NDArray[Any], count: int) -> NDArray[np.floating]:
    """Weighted sums of two lines and those beside them; at the ends of an image, of the ends."""
    end, last = 2 * count, min(2 * count, len(lines) - 1)
    before = np.concatenate([lines[:1], lines[1 : end - 2 : 2]])
    after = np.concatenate([lines[2:end:2], lines[last : last + 1]])
    inner = lines[:end:2].astype(np.float32) + lines[1:end:2]
    outer = before.astype(np.float32) + after
    return np.asarray(0.375 * inner + 0.125 * outer)


def laplacian(image: BlurredImage) -> NDArray[np.float32]:
    """Minus the scale-normalised Laplacian: how much of a bright blob of this width there is.

    It is largest, over all widths, at the centre of a bright ball of radius R when the standard
    deviation of the blur is ``R / sqrt(n)`` in n dimensions.
    """
    data = np.ascontiguousarray(image.data, np.float32)
    out = np.zeros_like(data)
    if min(data.shape) < 3:
        return out
    first, *others = (
        np.float32(v / h**2) for v, h in zip(image.variance, image.grid.spacing, strict=True)
    )
    weights = (first, *([np.float32(0)] * (3 - data.ndim)), *others)
    values, result = rows_of(data), rows_of(out)
    over_slabs(lambda a, b: _laplacian(values, weights, result, a, b), data.shape[0] - 2)
    return out


def rows_of(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """An image in three dimensions; a plane as one row after the other, for threads to share."""
    return image[:, None] if image.ndim == 2 else image


@inlined
def neighbours(values, i, j, edge):  # type: ignore[no-untyped-def]
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
def _laplacian(values, weights, out, start, stop):  # type: ignore[no-untyped-def]
    first, second, third = weights
    middle = np.float32(2) * (first + second + third)
    edge = min(1, values.shape[1] - 1)  # 0 where a plane lies row by row
    for i in range(start + 1, stop + 1):
        for j in range(edge, values.shape[1] - edge):
            row, (above, below), (front, back), (left, right) = neighbours(values, i, j, edge)
            total = out[i, j, 1:-1]
            for k in range(row.shape[0]):
                total[k] = middle * row[k]
                total[k] -= first * (above[k] + below[k])
                total[k] -= second * (front[k] + back[k])
                total[k] -= third * (left[k] + right[k])


def _blur_axis(data: NDArray[np.float32], sigma_vox: float, axis: int) -> NDArray[np.float32]:
    return filter_axis(data, axis, gaussian_weights(sigma_vox, int(_CUT * sigma_vox + 0.5)))
