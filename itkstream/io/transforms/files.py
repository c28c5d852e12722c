"""Transforms from and to any file of the ITK world, or a folder of this package.

One reader and one writer. Whatever is written is read back and compared at points before it gets
its name: a file that is there is right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    DisplacementField,
    Transform,
    array_axes,
    compose,
    default_axes,
    named_axes,
    steps_of,
    with_axes,
)
from itkstream.io.images.units import micrometers, rescaled
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_file, check_store, claim_file, claim_whole_store
from itkstream.io.transforms.check import TransformReader, check_written, grids_of
from itkstream.io.transforms.displacement_images import (
    read_displacement_image,
    write_displacement_image,
)
from itkstream.io.transforms.elastix import is_elastix, read_elastix_transform
from itkstream.io.transforms.itk.hdf5 import HDF5_ENDINGS, write_hdf5_transform
from itkstream.io.transforms.itk.transforms import read_itk_transform, write_itk_transform
from itkstream.io.transforms.ngff.scene import read_scene
from itkstream.io.transforms.ngff.store import write_store
from itkstream.io.transforms.vectors import slabs, wanted_axes

__all__ = ["check_transform_output", "read_transform", "write_transform"]

_SMALL = (".tfm", ".txt", ".mat")
_IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha")
_STORES = (".zarr",)
_STORE = "transform.ome.zarr"
# Numbers in a field beyond which ITK, which reads it whole, is not asked to check it.
_LARGE = 2**24
# Numbers that are looked at together.
_SLAB = 2**22
# Affines and B-splines go through doubles or their decimal text; displacement images hold float32.
_EXACT, _SINGLE = 1e-9, 1e-6


def read_transform(
    path: str | os.PathLike[str],
    axes: Sequence[str] | None = None,
    *,
    name: str | None = None,
    unit: str = "micrometer",
) -> Transform:
    """Read a transform, whatever it is stored in.

    Parameters
    ----------
    path : path
        The folder `register` wrote, a ``transform.ome.zarr`` or any other OME-Zarr 0.6 scene or
        image with coordinate transformations, by path or URL; or a file: an ITK transform
        (``.tfm``, ``.txt``, ``.mat``, ``.h5``), a displacement image (``.nii.gz``, ``.nii``,
        ``.nrrd``, ``.mha``), or a transform parameter file of elastix (``.txt``, ``.toml``).
    axes : sequence of str, optional
        The wanted order of axes and components; default the one in which this package wrote it
        (that of the fixed image, for the folder of a registration), and z, y, x for files of
        others, as arrays of images have them. `axes` of what is returned tells it.
    name : str, optional
        Which transformation, where an OME-Zarr lists several: its name, or its ends as
        ``fixed -> moving``; the other way round it is inverted, if it can be.
    unit : str
        Unit of the numbers of a file that states none, all but OME-Zarr: "millimeter" for
        transforms of images that ITK knows in millimeters, as NIfTI.

    Returns
    -------
    Transform
        From fixed to moving points; of an OME-Zarr, from the input to the output, in micrometers.
        Fields of a store, an HDF5 file or an uncompressed NRRD or MetaImage stay on disk; other
        files are read into memory.

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
        inner = location / _STORE
        return read_scene(inner if inner.is_dir() else location, axes, name)
    if name is not None:
        raise InputError(f"name chooses among the transforms of an OME-Zarr; {path} is a file")
    place = location.path
    read = _READERS.get(_ending(place), read_itk_transform)
    wanted = wanted_axes(path, read(place, None).ndim, axes)
    # What is looked through is what is handed out: a compressed image is read once.
    transform = read(place, wanted)
    _check_finite(transform, place)
    return rescaled(transform, 1.0 if _ending(place) in _STORES else micrometers(unit))


def write_transform(
    path: str | os.PathLike[str],
    transform: Transform,
    axes: Sequence[str] | None = None,
    *,
    unit: str = "micrometer",
    overwrite: bool = False,
) -> float:
    """Write a transform as a file that ITK, 3D Slicer and ANTs read, and check it.

    Parameters
    ----------
    path : path
        ``.tfm`` or ``.txt`` for affines, B-splines and chains of these; ``.mat`` for affines;
        ``.h5`` for affines, displacement fields, B-splines and chains of these (fields are
        streamed: memory does not grow with them);
        ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha`` for a displacement image, float32, in which
        the affine is folded into the field (``.nrrd`` and ``.mha`` are streamed, uncompressed);
        ``.zarr`` for a field and the affines after it as an OME-Zarr 0.6 scene, float32, streamed.
    transform : Transform
        What to write.
    axes : sequence of str, optional
        What the coordinates of its points are called, first to last; needed where the transform
        does not know it (its `axes` are None).
    unit : str
        Unit of the numbers in the file, which all files but OME-Zarr do not state: "millimeter"
        for images that ITK knows in millimeters, as NIfTI.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    float
        Largest difference at the points that were compared, in the unit of the transform.

    Raises
    ------
    InputError
        Where the format cannot hold this transform (the message says which can), or nothing says
        what its axes are.
    ExistingOutputError
        Where the file exists.
    ItkstreamError
        Where what was written does not map points as it should; nothing is left behind.
    """
    target = check_transform_output(path, overwrite, transform)
    order = _axes(transform, axes)
    factor = 1.0 if _ending(target) in _STORES else micrometers(unit)
    transform = rescaled(with_axes(transform, order), 1 / factor)
    steps = _steps(transform)
    kind = _ending(target)
    claim = claim_whole_store if kind in _STORES else claim_file
    with claim(target, overwrite) as partial:
        if kind in _SMALL:
            write_itk_transform(partial, compose(*steps), order)
        elif kind in HDF5_ENDINGS:
            write_hdf5_transform(partial, steps, order)
        else:
            field, affine = _field_and_affine(steps)
            if kind in _STORES:
                write_store(partial, field, affine or AffineTransform(np.eye(field.ndim + 1)))
            else:
                write_displacement_image(partial, field, affine)
        tolerance = _SINGLE if kind in (*_IMAGES, *_STORES) else _EXACT
        read_back = _reader_back(kind, transform)
        return check_written(partial, transform, order, read_back, tolerance) * factor


def check_transform_output(
    path: str | os.PathLike[str], overwrite: bool, transform: Transform | None = None
) -> Location:
    """See whether a transform can be written to a place, before any work is done for it.

    Parameters
    ----------
    path : path
        As for `write_transform`.
    overwrite : bool
        Whether an existing file may be replaced.
    transform : Transform, optional
        Of the kind that will be written, if that is known.

    Returns
    -------
    Location
        The place.

    Raises
    ------
    InputError
        Where no format ends so, the format cannot hold this transform, or the transform reads its
        fields from there.
    ExistingOutputError
        Where the file exists.
    """
    target = Location.parse(path)
    kind = _ending(target)
    _check_ending(target, kind)
    if transform is not None:
        _check_kind(target, kind, _steps(transform))
    check_apart(target, transform)
    (check_store if kind in _STORES else check_file)(target, overwrite)
    return target


def _ending(path: Path | Location) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _steps(transform: Transform) -> tuple[Transform, ...]:
    """What a file has to hold, in the simplest form."""
    steps = steps_of(compose(transform))
    known = (AffineTransform, BSplineTransform, DisplacementField)
    strange = [type(step).__name__ for step in steps if not isinstance(step, known)]
    if strange:
        raise InputError(
            f"affines, displacement fields and B-splines can be written; got {strange[0]}: sample "
            "it to a DisplacementField first (itkstream.transform.sample_transform)"
        )
    return steps


def _axes(transform: Transform, axes: Sequence[str] | None) -> tuple[str, ...]:
    """What the coordinates of the points are called: a file in x, y, z needs to know."""
    order = tuple(axes or named_axes(transform) or ())
    if not order:
        raise InputError(
            "nothing says which coordinate of this transform's points is x, so that a file of it "
            f"could be transposed: pass axes={array_axes(transform.ndim)} if arrays are indexed "
            f"so, or axes={default_axes(transform.ndim)}; grids and affines take axes= as well"
        )
    return wanted_axes("this", transform.ndim, order)


def _check_ending(target: Location, kind: str) -> None:
    if kind not in (*_SMALL, *HDF5_ENDINGS, *_IMAGES, *_STORES):
        raise InputError(
            f"no transform format ends like {target.name}: affines and B-splines go to .tfm, .txt "
            "or .h5, affines to .mat too, fields to .h5, .ome.zarr, .nii.gz, .nii, .nrrd or .mha"
        )


def _check_kind(target: Location, kind: str, steps: Sequence[Transform]) -> None:
    if kind in _SMALL and any(isinstance(step, DisplacementField) for step in steps):
        raise InputError(
            f"{target.name} would hold affines and B-splines, and this transform has a "
            "displacement field: write it as .h5, or as a displacement image (.nii.gz, .nrrd, "
            ".mha)"
        )
    if kind == ".mat" and any(isinstance(step, BSplineTransform) for step in steps):
        raise InputError(
            f"{target.name} would hold an affine only, and this transform has B-splines: write it "
            "as .tfm, .txt or .h5"
        )
    if kind in (*_IMAGES, *_STORES):
        field, _ = _field_and_affine(steps)
        if kind.startswith(".nii") and field.ndim == 2:
            raise InputError(
                f"2-D displacement fields are read with wrong values from NIfTI ({target.name}): "
                "write .h5, .nrrd or .mha"
            )


def _field_and_affine(
    steps: Sequence[Transform],
) -> tuple[DisplacementField, AffineTransform | None]:
    """A displacement field and the affine after it, which may lack."""
    field, *after = steps
    if all(isinstance(step, AffineTransform) for step in steps):
        raise InputError(
            "the file would hold a displacement field, and this transform is an affine: write it "
            "as .tfm, .txt, .mat or .h5"
        )
    affine = after[0] if after else None
    if (
        isinstance(field, DisplacementField)
        and len(after) < 2
        and (affine is None or isinstance(affine, AffineTransform))
    ):
        return field, affine
    kinds = ", ".join(type(step).__name__ for step in steps)
    raise InputError(
        f"the file would hold a displacement field, or one followed by affines; got {kinds}: write "
        "it as .h5 (B-splines and affines as .tfm too), or sample it to a DisplacementField first "
        "(itkstream.transform.sample_transform)"
    )


def _read_store(path: Path, axes: Sequence[str] | None) -> Transform:
    return read_scene(Location.parse(path), axes)


def _read_text(path: Path, axes: Sequence[str] | None) -> Transform:
    if is_elastix(path):
        return read_elastix_transform(path, axes)
    return read_itk_transform(path, axes)


_LAZY: dict[str, TransformReader] = {
    **dict.fromkeys(_IMAGES, read_displacement_image),
    **dict.fromkeys(HDF5_ENDINGS, read_itk_transform),
    **dict.fromkeys(_STORES, _read_store),
}
_READERS = {**_LAZY, **dict.fromkeys((".txt", ".tfm", ".toml"), _read_text)}


def _reader_back(kind: str, transform: Transform) -> TransformReader | None:
    """What reads a written file without reading its fields whole; None where SimpleITK should."""
    numbers = max((grid.size * grid.ndim for grid in grids_of(transform)), default=0)
    return None if kind in HDF5_ENDINGS and numbers <= _LARGE else _LAZY.get(kind)


def _check_finite(transform: Transform, path: Path) -> None:
    for step in steps_of(transform):
        if isinstance(step, DisplacementField):
            for box in slabs(step, _SLAB):
                if not np.isfinite(step.data[(*box, slice(None))]).all():
                    raise InputError(f"the displacement field in {path} holds NaN or infinity")
