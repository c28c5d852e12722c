"""What stands in transform files: lists of numbers of a named kind, made into transforms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    Grid,
    LandmarkSpline,
    axis_order,
    default_axes,
)
from itkstream.itk_bridge import from_itk_geometry

__all__ = ["LANDMARK_KINDS", "affine_entry", "bspline_entry", "landmark_entry", "lattice"]

# ITK's kernel, and whether the file holds the inverse of what is meant, as 3D Slicer has it.
LANDMARK_KINDS = {
    "ThinPlateSplineKernelTransform": ("r", False),
    "ThinPlateR2LogRSplineKernelTransform": ("r2logr", False),
    "VolumeSplineKernelTransform": ("r3", False),
    "InverseThinPlateSplineKernelTransform": ("r", True),
}


def lattice(fixed: NDArray[np.float64]) -> Grid:
    """The lattice of a displacement field or of B-splines.

    Parameters
    ----------
    fixed : ndarray
        ITK's fixed parameters: size, origin, spacing, direction, x first.

    Returns
    -------
    Grid
        Axes x, y (, z).
    """
    n = 2 if len(fixed) == 10 else 3
    size, origin, spacing, direction = np.split(fixed, [n, 2 * n, 3 * n])
    return from_itk_geometry(size.astype(int).tolist(), spacing, origin, direction)


def bspline_entry(
    parameters: NDArray[np.float64], grid: Grid, order: int, axes: Sequence[str] | None
) -> BSplineTransform:
    """B-splines out of the numbers of a transform file.

    Parameters
    ----------
    parameters : ndarray, (n * grid.size,)
        Coefficients component by component, x fastest.
    grid : Grid
        The lattice of control points, axes x first.
    order : int
        Of the B-splines.
    axes : sequence of str, optional
        The wanted order of axes; default x first.

    Returns
    -------
    BSplineTransform
        Maps the same points.
    """
    n = grid.ndim
    stored = parameters.reshape(n, *reversed(grid.shape)).transpose(*reversed(range(n + 1)))
    turn = list(grid.axis_order(axes or grid.axes))
    turned = stored.transpose(*turn, n)[..., turn]
    return BSplineTransform(turned, grid.reorder(axes or grid.axes), order)


def affine_entry(
    parameters: NDArray[np.float64], centre: NDArray[np.float64], axes: Sequence[str] | None
) -> AffineTransform:
    """An affine out of the numbers of a transform file.

    Parameters
    ----------
    parameters : ndarray, (n * n + n,)
        Matrix row by row, then translation, x first.
    centre : ndarray, (n,)
        ITK turns about it: ``matrix (p - centre) + centre + translation``.
    axes : sequence of str, optional
        The wanted order of axes; default x first.

    Returns
    -------
    AffineTransform
        Maps the same points.

    Raises
    ------
    InputError
        Where there are more or fewer numbers, or the matrix is singular.
    """
    n = len(centre)
    if n not in (2, 3) or len(parameters) != n * n + n:
        raise InputError(
            f"an affine has 6 numbers and a centre of 2, or 12 and a centre of 3; got "
            f"{len(parameters)} and {n}: is the file whole?"
        )
    names = default_axes(n)
    matrix = np.eye(n + 1)
    matrix[:n, :n] = parameters[: n * n].reshape(n, n)
    matrix[:n, n] = parameters[n * n :] + centre - matrix[:n, :n] @ centre
    return AffineTransform(matrix).reorder(names, axes or names)


def landmark_entry(
    kind: str, parameters: ArrayLike, fixed: ArrayLike, axes: Sequence[str] | None
) -> LandmarkSpline | None:
    """A landmark spline out of the numbers of a transform file.

    Parameters
    ----------
    kind : str
        As in the file: ``ThinPlateSplineKernelTransform_double_3_3``.
    parameters, fixed : array_like
        Where landmarks are, and where they go, point by point, x first.
    axes : sequence of str, optional
        The wanted order of axes; default x first.

    Returns
    -------
    LandmarkSpline or None
        None for another kind of transform.

    Raises
    ------
    InputError
        Where the landmarks make no spline, or are of no 2-D or 3-D points.
    """
    name, _, size = kind.partition("_")
    if name not in LANDMARK_KINDS:
        return None
    if not size.endswith(("_2_2", "_3_3")):
        raise InputError(f"landmark splines of 2-D or 3-D points are read; got a {kind}")
    kernel, inverse = LANDMARK_KINDS[name]
    names = default_axes(int(size[-1]))
    order = list(axis_order(names, axes or names))
    flat = np.ravel(parameters), np.ravel(fixed)
    if len(flat[0]) != len(flat[1]) or len(flat[0]) % len(names):
        raise InputError(
            f"a {name} has as many source as target landmarks; got {len(flat[0])} and "
            f"{len(flat[1])} coordinates: is the file whole?"
        )
    start, end = (numbers.reshape(-1, len(names))[:, order] for numbers in flat)
    return LandmarkSpline(*((end, start) if inverse else (start, end)), kernel, inverse)
