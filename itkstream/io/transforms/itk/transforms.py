"""Transforms from ITK's transform files of any kind, and small ones to them.

Fields in HDF5 files, which may be larger than memory, are read and written by
`itkstream.io.transforms.itk.hdf5`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Transform,
    axis_order,
    default_axes,
)
from itkstream.geometry.itk_bridge import to_itk_transform
from itkstream.io.transforms.itk.entries import transform_of
from itkstream.io.transforms.itk.hdf5 import HDF5_ENDINGS, open_hdf5_transform
from itkstream.io.transforms.itk.text import read_entries

__all__ = [
    "as_field_and_affine",
    "largest_difference",
    "read_itk_transform",
    "write_itk_transform",
]


def write_itk_transform(path: Path, transform: Transform, axes: Sequence[str]) -> None:
    """Write an affine, B-splines, or a chain of these, as ITK does.

    Parameters
    ----------
    path : Path
        Ending in ``.tfm``, ``.txt`` (text) or ``.mat`` (binary); replaced if it is there.
    transform : Transform
        Fixed to moving points; ITK can read nothing but a single affine back from ``.mat``.
    axes : sequence of str
        The axis order of its points.

    Raises
    ------
    InputError
        For a kind of transform ITK has no counterpart of.
    """
    sitk.WriteTransform(to_itk_transform(transform, axes), str(path))


def read_itk_transform(
    path: str | os.PathLike[str], axes: Sequence[str] | None = None
) -> Transform:
    """Read an ITK transform file.

    Parameters
    ----------
    path : path
        ``.tfm``, ``.txt``, ``.mat``, ``.h5``, or an ``.xfm`` that ITK wrote.
    axes : sequence of str, optional
        The wanted axis order of points; default x first.

    Returns
    -------
    Transform
        Everything the file holds: an affine (every kind of matrix ITK has becomes one), a
        displacement field, B-splines, a landmark spline, or a composite of these. Fields of
        ``.h5`` stay on disk.

    Raises
    ------
    MissingDataError
        Where there is no such file.
    InputError
        Where it is no transform file, is cut off, holds another kind of transform, or lists
        several without saying in which order they act.
    """
    place = Path(path)
    if not place.is_file():
        raise MissingDataError(f"there is no transform file {path}")
    try:
        if place.suffix.lower() in HDF5_ENDINGS:
            return open_hdf5_transform(place, axes)
        return transform_of(read_entries(place), axes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def largest_difference(
    path: str | os.PathLike[str],
    transform: Transform,
    points: NDArray[np.float64],
    axes: Sequence[str],
) -> float:
    """Read a transform file back with SimpleITK and compare it with what was meant.

    Parameters
    ----------
    path : path
        The file.
    transform : Transform
        What it should hold.
    points : ndarray, (m, n)
        Fixed points.
    axes : sequence of str
        Their axis order.

    Returns
    -------
    float
        Largest difference between the mapped points, in the unit of the transform.
    """
    order = list(axis_order(axes, default_axes(transform.ndim)))
    read = sitk.ReadTransform(str(path))
    mapped = np.array([read.TransformPoint(p.tolist()) for p in points[:, order]])
    return float(np.abs(mapped - transform.apply(points)[:, order]).max())


def as_field_and_affine(transform: Transform) -> tuple[DisplacementField, AffineTransform]:
    """Take apart a displacement field followed by an affine.

    Parameters
    ----------
    transform : Transform
        A composite of the two, in this order.

    Returns
    -------
    field : DisplacementField
        What acts first.
    affine : AffineTransform
        What acts second.

    Raises
    ------
    InputError
        For anything else.
    """
    if isinstance(transform, CompositeTransform) and len(transform.transforms) == 2:
        field, affine = transform.transforms
        if isinstance(field, DisplacementField) and isinstance(affine, AffineTransform):
            return field, affine
    raise InputError("expected a displacement field followed by an affine")
