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
from dataclasses import dataclass, replace

import numpy as np

from itkstream.geometry import Grid
from itkstream.numerics.gpu.arrays import Array
from itkstream.numerics.matching.filters import HOST, Filters
from itkstream.numerics.sampling.pyramid import gaussian_weights, normalised

__all__ = [
    "BlurredImage",
    "blur",
    "halve",
    "halvings",
    "laplacian",
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
        Voxels, any real type at first, float32 once blurred or halved; an array of an engine.
    grid : Grid
        Where they lie.
    variance : tuple of float
        Squared standard deviation of the blur so far per axis, in squared grid units; empty: none.
    filters : Filters
        The engine.
    """

    data: Array
    grid: Grid
    variance: tuple[float, ...] = ()
    filters: Filters = HOST

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
    data, widths = image.data.astype(np.float32, copy=False), tuple(map(float, sigma))
    for axis, (wanted, had) in enumerate(zip(widths, image.variance, strict=True)):
        missing = wanted**2 - had
        if missing > 0:
            deviation = float(np.sqrt(missing)) / image.grid.spacing[axis]
            weights = gaussian_weights(deviation, int(_CUT * deviation + 0.5))
            data = image.filters.convolve(data, axis, normalised(weights))
    variance = tuple(max(s**2, v) for s, v in zip(widths, image.variance, strict=True))
    return replace(image, data=data, variance=variance)


def halve(image: BlurredImage, axis: int) -> BlurredImage:
    """Keep every second voxel along one axis, after a (1, 3, 3, 1) / 8 filter."""
    grid = image.grid
    count = grid.shape[axis] // 2
    factors = tuple(2 if k == axis else 1 for k in range(grid.ndim))
    cut = tuple(slice(0, 2 * count if k == axis else n) for k, n in enumerate(grid.shape))
    coarse = grid.crop(cut).shrink(factors)
    data = image.filters.halve(image.data, axis)
    added = _HALVING_VARIANCE * grid.spacing[axis] ** 2
    variance = tuple(v + added * (k == axis) for k, v in enumerate(image.variance))
    return replace(image, data=data, grid=coarse, variance=variance)


def laplacian(image: BlurredImage) -> Array:
    """Minus the scale-normalised Laplacian: how much of a bright blob of this width there is.

    It is largest, over all widths, at the centre of a bright ball of radius R when the standard
    deviation of the blur is ``R / sqrt(n)`` in n dimensions.
    """
    data = image.data.astype(np.float32, copy=False)
    if min(data.shape) < 3:
        return image.filters.xp.zeros(data.shape, np.float32)
    first, *others = (
        np.float32(v / h**2) for v, h in zip(image.variance, image.grid.spacing, strict=True)
    )
    weights = (first, *([np.float32(0)] * (3 - data.ndim)), *others)
    return image.filters.laplacian(data, weights)
