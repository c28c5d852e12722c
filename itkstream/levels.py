"""A level of an image that fits in memory."""

from __future__ import annotations

import numpy as np

from itkstream.geometry import Grid, Image
from itkstream.lazy import readable
from itkstream.numerics.pyramid import shrink

__all__ = ["factors_to_fit", "read_coarse"]

# Planes are read in slabs of about this many voxels: 256 MB of float32 while they are averaged.
_SLAB_VOXELS = 64_000_000


def factors_to_fit(grid: Grid, voxels: float) -> tuple[int, ...]:
    """By how much to shrink an image so that it has at most so many voxels.

    The axis of finest spacing is halved first, so voxels become as near to cubes as they can.

    Parameters
    ----------
    grid : Grid
        The image's lattice.
    voxels : float
        Wanted voxels, at most.

    Returns
    -------
    tuple of int
        A power of 2 per axis; 1 for a small image.
    """
    factors = [1] * grid.ndim
    while np.prod(grid.shrink(factors).shape, dtype=float) > voxels:
        coarse = grid.shrink(factors)
        # An axis of one voxel cannot shrink; the longest breaks ties, for the same result always.
        order = [
            (s, -n) if n > 1 else (np.inf, 0)
            for s, n in zip(coarse.spacing, coarse.shape, strict=True)
        ]
        finest = min(range(grid.ndim), key=lambda axis: order[axis])
        factors[finest] *= 2
    return tuple(factors)


def read_coarse(image: Image, factors: tuple[int, ...]) -> Image:
    """Read an image into memory, averaged in groups of voxels, slab by slab.

    Parameters
    ----------
    image : Image
        Numpy, stored or dask.
    factors : tuple of int
        Voxels per group and axis.

    Returns
    -------
    Image
        In memory, float32 where it was averaged; never more than one slab at full resolution was
        held beside it.
    """
    image = readable(image)
    if max(factors) == 1:
        return Image(image.read(), image.grid, image.name)
    plane = image.grid.size // image.shape[0]
    thickness = max(1, _SLAB_VOXELS // (plane * factors[0])) * factors[0]
    rest = (slice(None),) * (image.ndim - 1)
    slabs = []
    for start in range(0, image.shape[0], thickness):
        part = image[(slice(start, min(image.shape[0], start + thickness)), *rest)]
        slabs.append(shrink(part.read(), part.grid, factors)[0])
    return Image(np.concatenate(slabs), image.grid.shrink(factors), image.name)
