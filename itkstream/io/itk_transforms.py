"""Transforms to ITK's transform files, and back.

Affines are ITK text files (``.tfm``). A displacement field with an affine after it is an ITK
composite in HDF5 (``.h5``), streamed plane by plane: memory does not grow with the field. ITK, 3D
Slicer and ANTs read both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Transform,
    default_axes,
)
from itkstream.io.locations import Location
from itkstream.io.outputs import claim_file
from itkstream.itk_bridge import from_itk_transform, to_itk_transform

__all__ = [
    "as_field_and_affine",
    "largest_difference",
    "read_itk_transform",
    "write_affine",
    "write_chain",
    "write_composite",
]

# One HDF5 chunk: 64 Ki doubles, 512 KiB, as ITK's own writers have it.
_CHUNK = 65536


def write_affine(
    path: str | os.PathLike[str],
    affine: AffineTransform,
    axes: Sequence[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write an affine as an ITK transform.

    Parameters
    ----------
    path : path
        Ending in ``.tfm``, ``.txt`` (text) or ``.mat`` (binary).
    affine : AffineTransform
        Fixed to moving points.
    axes : sequence of str
        The axis order of its points.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputError
        For another ending.
    ExistingOutputError
        Where the file exists.
    """
    target = Location.parse(path)
    if target.suffix not in (".tfm", ".txt", ".mat"):
        raise InputError(f"an ITK affine is written as .tfm, .txt or .mat; got {target.name}")
    with claim_file(target, overwrite) as partial:
        sitk.WriteTransform(to_itk_transform(affine, axes), str(partial))


def write_composite(
    path: str | os.PathLike[str],
    field: DisplacementField,
    affine: AffineTransform,
    *,
    overwrite: bool = False,
) -> None:
    """Write a displacement field and the affine after it as an ITK composite transform.

    Parameters
    ----------
    path : path
        Ending in ``.h5``.
    field : DisplacementField
        Acts first; it may be stored and larger than memory.
    affine : AffineTransform
        Acts on what the field gives; points in the field's axis order.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputError
        For another ending.
    ExistingOutputError
        Where the file exists.
    """
    write_chain(path, field, affine, field.grid.axes, overwrite=overwrite)


def write_chain(
    path: str | os.PathLike[str],
    field: DisplacementField | None,
    affine: AffineTransform | None,
    axes: Sequence[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a displacement field, an affine, or the two one after the other, as HDF5.

    Parameters
    ----------
    path : path
        Ending in ``.h5``.
    field : DisplacementField or None
        Acts first; it may be stored and larger than memory.
    affine : AffineTransform or None
        Acts on what the field gives.
    axes : sequence of str
        The axis order of the affine's points, and of the field.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputError
        For another ending, or nothing to write.
    ExistingOutputError
        Where the file exists.
    """
    target = Location.parse(path)
    if target.suffix not in (".h5", ".hdf5"):
        raise InputError(f"an ITK composite is written as .h5; got {target.name}")
    if field is None and affine is None:
        raise InputError("there is neither a displacement field nor an affine to write")
    kind = f"double_{len(axes)}_{len(axes)}"
    with claim_file(target, overwrite) as partial, h5py.File(partial, "w") as file:
        groups = file.create_group("TransformGroup")
        if field is not None and affine is not None:
            _add(groups, f"CompositeTransform_{kind}")
        # ITK applies the transform added last first.
        if affine is not None:
            itk_affine = to_itk_transform(affine, axes)
            entry = _add(groups, f"AffineTransform_{kind}")
            entry["TransformFixedParameters"] = np.array(itk_affine.GetFixedParameters())
            entry["TransformParameters"] = np.array(itk_affine.GetParameters())
        if field is not None:
            entry = _add(groups, f"DisplacementFieldTransform_{kind}")
            entry["TransformFixedParameters"] = _geometry(field.grid)
            _stream(entry, field)


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
        An affine, a displacement field, or a composite of these, in memory.

    Raises
    ------
    MissingDataError
        Where there is no such file.
    InputError
        Where it is no transform file, or holds another kind of transform.
    """
    if not Path(path).is_file():
        raise MissingDataError(f"there is no transform file {path}")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise InputError(
            f"{path} is no transform that ITK can read: expected .tfm, .txt, .mat or .h5, whole "
            "(ITK writes composites to .mat, but cannot read them)"
        ) from error
    return from_itk_transform(transform, axes)


def largest_difference(
    path: str | os.PathLike[str], transform: Transform, points: NDArray[np.float64], grid: Grid
) -> float:
    """Read a transform file back with SimpleITK and compare it with what was meant.

    Parameters
    ----------
    path : path
        The file.
    transform : Transform
        What it should hold.
    points : ndarray, (m, n)
        Fixed points, in the grid's axis order.
    grid : Grid
        Names the axis order.

    Returns
    -------
    float
        Largest distance between the mapped points, in the unit of the grid.
    """
    order = list(grid.axis_order(default_axes(grid.ndim)))
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


def _add(groups: h5py.Group, kind: str) -> h5py.Group:
    entry = groups.create_group(str(len(groups)))
    text = h5py.string_dtype("ascii")
    entry.create_dataset("TransformType", data=np.array([kind], dtype=object), dtype=text)
    return entry


def _geometry(grid: Grid) -> NDArray[np.float64]:
    """ITK's fixed parameters of a field: size, origin, spacing, direction, x first."""
    itk = grid.reorder(default_axes(grid.ndim))
    return np.array([*itk.shape, *itk.origin, *itk.spacing, *np.ravel(itk.direction)], float)


def _stream(entry: h5py.Group, field: DisplacementField) -> None:
    grid = field.grid
    order = grid.axis_order(default_axes(grid.ndim))
    slowest, planes = order[-1], grid.shape[order[-1]]
    length = grid.size * grid.ndim
    values = entry.create_dataset(
        "TransformParameters",
        (length,),
        np.float64,
        chunks=(min(_CHUNK, length),),
        compression="gzip",
        compression_opts=1,
    )
    plane = length // planes
    step = max(1, _CHUNK * 16 // plane)
    for start in range(0, planes, step):
        stop = min(planes, start + step)
        region = [slice(None)] * (grid.ndim + 1)
        region[slowest] = slice(start, stop)
        slab = np.asarray(field.data[tuple(region)], np.float64)
        ordered = slab.transpose(*reversed(order), grid.ndim)[..., list(order)]
        values[start * plane : stop * plane] = ordered.ravel()
