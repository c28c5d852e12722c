"""Transforms to ITK's transform files, and back.

Affines and B-splines are ITK text files (``.tfm``). Displacement fields, and chains with them, are
HDF5 (``.h5``), streamed plane by plane: memory does not grow with the field. ITK, 3D Slicer and
ANTs read both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.io import loadmat

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
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
    "write_chain",
    "write_small",
]

# What ITK says of a kind of transform that it does not know.
_UNKNOWN = re.compile(r'create an instance of "(\w+?)(_(?:double|float)_\d_\d)?"')
# One HDF5 chunk: 64 Ki doubles, 512 KiB, as ITK's own writers have it.
_CHUNK = 65536
# The order of B-splines that ITK does not write down.
_CUBIC = 3


def write_small(
    path: str | os.PathLike[str],
    transform: Transform,
    axes: Sequence[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write an affine, B-splines, or a chain of these, as ITK does.

    Parameters
    ----------
    path : path
        Ending in ``.tfm``, ``.txt`` (text) or ``.mat`` (binary).
    transform : Transform
        Fixed to moving points; only an affine goes to ``.mat``.
    axes : sequence of str
        The axis order of its points.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputError
        For another ending, or what it cannot hold.
    ExistingOutputError
        Where the file exists.
    """
    target = Location.parse(path)
    if target.suffix not in (".tfm", ".txt", ".mat"):
        raise InputError(f"an ITK affine is written as .tfm, .txt or .mat; got {target.name}")
    if target.suffix == ".mat" and not isinstance(transform, AffineTransform):
        raise InputError(f"{target.name} can hold an affine only: write .tfm, .txt or .h5")
    with claim_file(target, overwrite) as partial:
        sitk.WriteTransform(to_itk_transform(transform, axes), str(partial))


def write_chain(
    path: str | os.PathLike[str],
    steps: Sequence[Transform],
    axes: Sequence[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write affines, displacement fields and B-splines, one after the other, as HDF5.

    Parameters
    ----------
    path : path
        Ending in ``.h5``.
    steps : sequence of Transform
        The first acts first. Fields may be stored and larger than memory.
    axes : sequence of str
        The axis order of all points, fields and B-splines.
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
    if not steps:
        raise InputError("there is no transform to write")
    with claim_file(target, overwrite) as partial, h5py.File(partial, "w") as file:
        groups = file.create_group("TransformGroup")
        if len(steps) > 1:
            _add(groups, "CompositeTransform", len(axes))
        # ITK applies the transform added last first.
        for step in reversed(steps):
            if isinstance(step, DisplacementField):
                entry = _add(groups, "DisplacementFieldTransform", len(axes))
                entry["TransformFixedParameters"] = _geometry(step.grid)
                _stream(entry, step)
                continue
            itk = to_itk_transform(step, axes)
            order = step.order if isinstance(step, BSplineTransform) else _CUBIC
            entry = _add(groups, itk.GetName(), len(axes), "" if order == _CUBIC else f"_{order}")
            entry["TransformFixedParameters"] = np.array(itk.GetFixedParameters())
            entry["TransformParameters"] = np.array(itk.GetParameters())


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
    _check_whole(Path(path))
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
    order = [tuple(axes).index(a) for a in default_axes(transform.ndim)]
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


def _check_whole(path: Path) -> None:
    """ITK takes what a file lacks at its end for 0, and says nothing."""
    whole = True
    if path.suffix.lower() in (".tfm", ".txt"):
        needs: set[bytes] = set()
        with path.open("rb") as file:
            for line in file:
                key, _, value = line.partition(b":")
                if key.strip() == b"Transform":
                    whole = whole and not needs
                    composite = value.strip().startswith(b"CompositeTransform")
                    needs = set() if composite else {b"Parameters", b"FixedParameters"}
                needs.discard(key.strip())
        whole = whole and not needs
    elif path.suffix.lower() == ".mat":
        try:
            whole = "fixed" in loadmat(path)
        except (ValueError, TypeError, OSError):
            whole = False
    if not whole:
        raise InputError(f"{path} is cut off: it lacks the fixed parameters of a transform")


def _add(groups: h5py.Group, name: str, ndim: int, variant: str = "") -> h5py.Group:
    entry = groups.create_group(str(len(groups)))
    text = h5py.string_dtype("ascii")
    kind = f"{name}_double_{ndim}_{ndim}{variant}"
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
