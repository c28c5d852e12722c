"""Transforms from and to any file of the ITK world, or a folder of this package.

One reader and one writer. Whatever is written is read back by SimpleITK and compared at points
before it gets its name: a file that is there is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from itkstream.errors import InputError, ItkstreamError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Transform,
    default_axes,
)
from itkstream.io.displacement_images import (
    read_displacement_image,
    write_displacement_image,
)
from itkstream.io.elastix_transforms import is_elastix, read_elastix_transform
from itkstream.io.itk_hdf5 import open_hdf5_transform
from itkstream.io.itk_transforms import (
    largest_difference,
    read_itk_transform,
    write_affine,
    write_chain,
)
from itkstream.io.locations import Location
from itkstream.io.ngff_transforms import read_transform as read_store
from itkstream.io.ngff_transforms import write_store
from itkstream.io.outputs import claim_file, claim_store

__all__ = ["read_transform", "write_transform"]

_AFFINES = (".tfm", ".txt", ".mat")
_HDF5 = (".h5", ".hdf5")
_IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha")
_STORES = (".zarr",)
_STORE = "transform.ome.zarr"
_POINTS = 100
# Numbers in a field beyond which ITK, which reads it whole, is not asked to check it.
_LARGE = 2**24
# Numbers that are looked at together.
_SLAB = 2**22
# An affine goes through doubles or their decimal text; displacement images hold float32.
_EXACT, _SINGLE = 1e-9, 1e-6


def read_transform(path: str | os.PathLike[str], axes: Sequence[str] | None = None) -> Transform:
    """Read a transform, whatever it is stored in.

    Parameters
    ----------
    path : path
        The folder `register` wrote or a ``transform.ome.zarr``, by path or URL; or a file: an ITK
        transform (``.tfm``, ``.txt``, ``.mat``, ``.h5``), a displacement image (``.nii.gz``,
        ``.nii``, ``.nrrd``, ``.mha``), or a transform parameter file of elastix (``.txt``).
    axes : sequence of str, optional
        The wanted order of axes and components; default z, y, x, as arrays of images have them.

    Returns
    -------
    Transform
        From fixed to moving points. Fields of a store, an HDF5 file or an uncompressed NRRD or
        MetaImage stay on disk; other files are read into memory.

    Raises
    ------
    MissingDataError
        Where nothing is there.
    InputError
        Where it is no transform, is cut off, holds NaN, has other dimensions than `axes`, or is
        of a kind that is not read. (A store is not searched for NaN here.)
    """
    location = Location.parse(path)
    if not location.exists():
        raise MissingDataError(f"there is no transform {path}")
    if location.is_dir():
        return read_store(location / _STORE if (location / _STORE).is_dir() else location, axes)
    place = location.path
    read = _READERS.get(_ending(place), read_itk_transform)
    transform = read(place, None)
    wanted = tuple(axes or reversed(default_axes(transform.ndim)))
    if sorted(wanted) != sorted(default_axes(transform.ndim)):
        raise InputError(
            f"{path} holds a {transform.ndim}-D transform; it cannot have the axes {wanted}"
        )
    _check_finite(transform, place)
    return read(place, wanted)


def write_transform(
    path: str | os.PathLike[str],
    transform: Transform,
    axes: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
) -> float:
    """Write a transform as a file that ITK, 3D Slicer and ANTs read, and check it.

    Parameters
    ----------
    path : path
        ``.tfm``, ``.txt`` or ``.mat`` for affines; ``.h5`` for affines, displacement fields and
        fields with affines after them (streamed: memory does not grow with the field);
        ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha`` for a displacement image, float32, in which
        the affine is folded into the field (``.nrrd`` and ``.mha`` are streamed, uncompressed);
        ``.zarr`` for a field and the affines after it as an OME-Zarr 0.6 scene, float32, streamed.
    transform : Transform
        What to write.
    axes : sequence of str, optional
        The axis order of its points; default that of its field, else z, y, x.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    float
        Largest difference at the points that were compared, in the unit of the transform.

    Raises
    ------
    InputError
        Where the format cannot hold this transform; the message says which can.
    ExistingOutputError
        Where the file exists.
    ItkstreamError
        Where what was written does not map points as it should; nothing is left behind.
    """
    target = Location.parse(path)
    field, affine = _parts(transform)
    if field is not None and axes is not None and tuple(axes) != field.grid.axes:
        raise InputError(f"the field has axes {field.grid.axes}, not {tuple(axes)}")
    order = field.grid.axes if field else tuple(axes or reversed(default_axes(transform.ndim)))
    kind = _ending(target)
    _check_kind(target, kind, field)
    if kind in _STORES:
        claim_store(target, overwrite)
    with claim_file(target, overwrite) as partial:
        if kind in _STORES and field is not None:
            write_store(partial, field, affine or AffineTransform(np.eye(field.ndim + 1)))
        elif kind in _AFFINES and affine is not None:
            write_affine(partial, affine, order)
        elif kind in _HDF5:
            write_chain(partial, field, affine, order)
        elif field is not None:
            write_displacement_image(partial, field, affine)
        return _compare(partial, transform, order, field, kind)


def _ending(path: Path | Location) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _check_kind(target: Location, kind: str, field: DisplacementField | None) -> None:
    if kind not in (*_AFFINES, *_HDF5, *_IMAGES, *_STORES):
        raise InputError(
            f"no transform format ends like {target.name}: affines go to .tfm, .txt, .mat or .h5, "
            "fields to .h5, .ome.zarr, .nii.gz, .nii, .nrrd or .mha"
        )
    if kind in _AFFINES and field is not None:
        raise InputError(
            f"{target.name} would hold an affine only, and this transform has a displacement "
            "field: write it as .h5, or as a displacement image (.nii.gz, .nrrd, .mha)"
        )
    if kind in (*_IMAGES, *_STORES) and field is None:
        raise InputError(
            f"{target.name} would hold a displacement field, and this transform is an affine: "
            "write it as .tfm, .txt, .mat or .h5"
        )
    if kind in (".nii.gz", ".nii") and field is not None and field.ndim == 2:
        raise InputError(
            f"2-D displacement fields are read with wrong values from NIfTI ({target.name}): "
            "write .h5, .nrrd or .mha"
        )


def _parts(transform: Transform) -> tuple[DisplacementField | None, AffineTransform | None]:
    """A displacement field and the affine after it; either may lack."""
    steps = transform.transforms if isinstance(transform, CompositeTransform) else (transform,)
    field = steps[0] if isinstance(steps[0], DisplacementField) else None
    matrix = np.eye(transform.ndim + 1)
    affines = steps if field is None else steps[1:]
    for step in affines:
        if not isinstance(step, AffineTransform):
            kinds = ", ".join(type(s).__name__ for s in steps)
            raise InputError(
                f"an affine, a displacement field, or a field followed by affines can be written; "
                f"got {kinds}: sample it to a DisplacementField first"
            )
        matrix = step.matrix @ matrix
    return field, AffineTransform(matrix) if affines else None


def _compare(
    path: Path,
    transform: Transform,
    axes: tuple[str, ...],
    field: DisplacementField | None,
    kind: str,
) -> float:
    grid = (
        field.grid if field else Grid((100,) * transform.ndim, (1.0,) * transform.ndim, axes=axes)
    )
    inside = np.random.default_rng(0).uniform(0, 1, (_POINTS, grid.ndim))
    # The outermost cells may lie beyond the grid once a format has rounded its geometry.
    edge = np.minimum(0.01, (np.asarray(grid.shape) - 1) / 2)
    points = grid.to_physical(edge + inside * (np.asarray(grid.shape) - 1 - 2 * edge))
    # One point at a time, so that little of a stored field is read.
    wanted = np.concatenate([transform.apply(p[None]) for p in points])
    try:
        reader = _LAZY.get(kind)
        if reader is not None and (kind not in _HDF5 or grid.size * grid.ndim > _LARGE):
            written = reader(path, axes)
            found = np.concatenate([written.apply(p[None]) for p in points])
            error = float(np.abs(found - wanted).max())
        else:
            error = largest_difference(path, transform, points, grid)
    except (InputError, RuntimeError) as reason:
        raise ItkstreamError(f"{path.name} was written but cannot be read: {reason}") from reason
    size = float(max(np.abs(points).max(), np.abs(wanted).max()))
    allowed = (_SINGLE if kind in (*_IMAGES, *_STORES) else _EXACT) * max(size, min(grid.spacing))
    if not error <= allowed:
        raise ItkstreamError(
            f"{path.name} was written but maps points {error:.3g} {grid.unit} off, where "
            f"{allowed:.3g} was expected: the disk or the ITK library is faulty"
        )
    return error


def _read_hdf5(path: Path, axes: Sequence[str] | None) -> Transform:
    return open_hdf5_transform(path, axes) or read_itk_transform(path, axes)


def _read_text(path: Path, axes: Sequence[str] | None) -> Transform:
    return (read_elastix_transform if is_elastix(path) else read_itk_transform)(path, axes)


_LAZY: dict[str, Callable[[Path, Sequence[str] | None], Transform]] = {
    **dict.fromkeys(_IMAGES, read_displacement_image),
    **dict.fromkeys(_HDF5, _read_hdf5),
    **dict.fromkeys(_STORES, read_store),
}
_READERS = {**_LAZY, ".txt": _read_text}


def _check_finite(transform: Transform, path: Path) -> None:
    steps = transform.transforms if isinstance(transform, CompositeTransform) else (transform,)
    for step in steps:
        if not isinstance(step, DisplacementField):
            continue
        # Along the axis that is slowest in files, a slab is one run of the disk.
        slowest = step.grid.axes.index(default_axes(step.ndim)[-1])
        planes = step.grid.shape[slowest]
        deep = max(1, _SLAB * planes // (step.grid.size * step.ndim))
        for start in range(0, planes, deep):
            slab = [slice(None)] * (step.ndim + 1)
            slab[slowest] = slice(start, min(planes, start + deep))
            if not np.isfinite(step.data[tuple(slab)]).all():
                raise InputError(f"the displacement field in {path} holds NaN or infinity")
