"""ITK's transform files of any kind, read; and small ones, written.

Fields in HDF5 files, which may be larger than memory, stay there:
`itkstream.io.transforms.itk.hdf5_files` reads and writes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import Transform, axis_order, default_axes
from itkstream.geometry.itk_bridge import to_itk_transform
from itkstream.io.transforms.itk.hdf5_files import HDF5_ENDINGS, read_hdf5_entries
from itkstream.io.transforms.itk.parameters import EntryList
from itkstream.io.transforms.itk.small_files import read_entries
from itkstream.io.transforms.vectors import NameAxes

__all__ = ["largest_difference", "open_itk_transform", "read_itk_transform", "write_itk_transform"]


def write_itk_transform(path: Path, transform: Transform, axes: Sequence[str]) -> None:
    """Write an affine, B-splines, or a chain of these, as ITK does: ``.tfm``, ``.txt``, ``.mat``.

    ITK can read nothing but a single affine back from ``.mat``.
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

    Examples
    --------
    >>> itkstream.read_itk_transform("registered/itk/affine.tfm").axes
    ('x', 'y', 'z')
    """
    return open_itk_transform(Path(path), lambda ndim: tuple(axes or default_axes(ndim)))


def open_itk_transform(path: Path, name_axes: NameAxes) -> Transform:
    """Read an ITK transform file, of points with the axes that are named for its dimension."""
    if not path.is_file():
        raise MissingDataError(f"there is no transform file {path}")
    stored = path.suffix.lower() in HDF5_ENDINGS
    with _naming(path):
        entries = EntryList.of(read_hdf5_entries(path) if stored else read_entries(path))
    axes = name_axes(entries.ndim)
    with _naming(path):
        return entries.transform(axes)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the name of the file to errors over what it holds."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def largest_difference(
    path: str | os.PathLike[str],
    transform: Transform,
    points: NDArray[np.float64],
    axes: Sequence[str],
) -> float:
    """Read a file with SimpleITK: how far it maps points from what was meant, at most."""
    order = list(axis_order(axes, default_axes(transform.ndim)))
    read = sitk.ReadTransform(str(path))
    mapped = np.array([read.TransformPoint(p.tolist()) for p in points[:, order]])
    return float(np.abs(mapped - transform.apply(points)[:, order]).max())
