"""Images of two axes as images of three: a leading axis of one plane that maps to itself.

Compiled loops are written once, for three axes; what they take is lifted here, in front of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.geometry import Grid

__all__ = [
    "around_axis",
    "lift_field",
    "lift_grid",
    "lift_homogeneous",
    "lift_matrix",
    "lift_values",
    "lift_vectors",
]


def around_axis(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Places before an axis, along it, and after it: of any image as one of three axes."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def lift_values(values: Iterable[Any], fill: Any) -> tuple[Any, Any, Any]:
    """One value per axis, with `fill` for the axes that are missing."""
    given = tuple(values)
    a, b, c = (fill,) * (3 - len(given)) + given
    return a, b, c


def lift_matrix(matrix: ArrayLike, fill: float = 1.0) -> NDArray[np.float64]:
    """Matrices (..., n, n), or (..., n, n + 1) with a shift, with `fill` on the new diagonal."""
    given = np.asarray(matrix, np.float64)
    n = given.shape[-2]
    lifted = np.tile(fill * np.eye(3, 3 + given.shape[-1] - n), (*given.shape[:-2], 1, 1))
    lifted[..., 3 - n :, 3 - n :] = given
    return lifted


def lift_homogeneous(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """An (n + 1) x (n + 1) matrix as one of 4 x 4."""
    lifted = np.eye(4)
    lead = 4 - len(matrix)
    lifted[lead:, lead:] = matrix
    return lifted


def lift_grid(grid: Grid) -> Grid:
    """The lattice in coordinates along its own axes; a new plane is as thick as the finest."""
    spacing = lift_values(grid.spacing, min(grid.spacing))
    return Grid(lift_values(grid.shape, 1), spacing, unit=grid.unit)


def lift_vectors(vectors: ArrayLike, dtype: Any = np.float64) -> NDArray[Any]:
    """Vectors (..., n) as contiguous vectors (..., 3) whose new components are 0."""
    given = np.asarray(vectors, dtype)
    lead = 3 - given.shape[-1]
    if lead:
        given = np.pad(given, [(0, 0)] * (given.ndim - 1) + [(lead, 0)])
    return np.ascontiguousarray(given)


def lift_field(field: NDArray[Any], dtype: Any = np.float32) -> NDArray[Any]:
    """A field of vectors on its lattice, shape + (n,), both lifted."""
    return lift_vectors(field, dtype).reshape((*lift_values(field.shape[:-1], 1), 3))
