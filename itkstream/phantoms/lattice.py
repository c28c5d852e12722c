"""Extents and points of a grid, in three coordinates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Grid

__all__ = ["extent_of", "in_three"]


def extent_of(grid: Grid) -> tuple[float, ...]:
    """Distance in µm from the first to the last voxel centre, per axis."""
    return tuple((n - 1) * s for n, s in zip(grid.shape, grid.spacing, strict=True))


def in_three(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Copy points (k, 2) or (k, 3) into three coordinates, 0 where one is new."""
    out = np.zeros((len(points), 3))
    out[:, : points.shape[1]] = points
    return out
