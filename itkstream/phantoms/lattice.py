"""Extents and points of a grid, in three coordinates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Grid

__all__ = ["extent_of", "in_three"]


def extent_of(grid: Grid) -> tuple[float, ...]:
    """Distance from the first to the last voxel centre.

    Parameters
    ----------
    grid : Grid
        A lattice.

    Returns
    -------
    tuple of float
        Per axis, in µm.
    """
    return tuple((n - 1) * s for n, s in zip(grid.shape, grid.spacing, strict=True))


def in_three(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points with a third coordinate, 0 where it is new.

    Parameters
    ----------
    points : ndarray, (k, 2) or (k, 3)
        In µm.

    Returns
    -------
    ndarray, (k, 3)
        A copy.
    """
    out = np.zeros((len(points), 3))
    out[:, : points.shape[1]] = points
    return out
