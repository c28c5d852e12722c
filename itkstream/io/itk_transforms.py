"""Transforms to ITK's transform files, and back, through SimpleITK: in memory.

Fields in HDF5 files, which may be larger than memory, are read and written by
`itkstream.io.itk_hdf5`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.io import loadmat

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Transform,
    axis_order,
    default_axes,
)
from itkstream.itk_bridge import from_itk_transform, to_itk_transform

__all__ = [
    "as_field_and_affine",
    "check_whole",
    "largest_difference",
    "read_itk_transform",
    "write_itk_transform",
]

# What ITK says of a kind of transform that it does not know.
_UNKNOWN = re.compile(r'create an instance of "(\w+?)(_(?:double|float)_\d_\d)?"')


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
        ``.tfm``, ``.txt``, ``.mat`` or ``.h5``.
    axes : sequence of str, optional
        The wanted axis order of points; default x first.

    Returns
    -------
    Transform
        An affine, a displacement field, B-splines, or a composite of these, in memory.

    Raises
    ------
    MissingDataError
        Where there is no such file.
    InputError
        Where it is no transform file, is cut off, or holds another kind of transform.
    """
    if not Path(path).is_file():
        raise MissingDataError(f"there is no transform file {path}")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown:
            raise InputError(
                f"{path} holds ITK's {unknown[1]}, which is not read: convert it to a displacement "
                "field (in 3D Slicer's module Transforms, Convert) and store that as .h5 or .nrrd"
            ) from error
        raise InputError(
            f"{path} is no transform that ITK can read: expected .tfm, .txt, .mat or .h5, whole "
            "(ITK writes composites to .mat, but cannot read them)"
        ) from error
    check_whole(Path(path))
    return from_itk_transform(transform, axes)


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


def check_whole(path: Path) -> None:
    """Refuse a file that is cut off: ITK takes what it lacks for 0, and says nothing.

    Parameters
    ----------
    path : Path
        A transform file that ITK reads; text and ``.mat`` are looked at, others are not.

    Raises
    ------
    InputError
        Where a transform lacks its parameters or fixed parameters.
    """
    kind = path.suffix.lower()
    whole = True
    if kind in (".tfm", ".txt"):
        whole = _is_whole_text(path)
    elif kind == ".mat":
        try:
            whole = "fixed" in loadmat(path)
        except (ValueError, TypeError, OSError):
            whole = False
    if not whole:
        raise InputError(f"{path} is cut off: it lacks the fixed parameters of a transform")


def _is_whole_text(path: Path) -> bool:
    needs: set[bytes] = set()
    with path.open("rb") as file:
        for line in file:
            key, _, value = line.partition(b":")
            if key.strip() == b"Transform":
                if needs:
                    return False
                composite = value.strip().startswith(b"CompositeTransform")
                needs = set() if composite else {b"Parameters", b"FixedParameters"}
            needs.discard(key.strip())
    return not needs
