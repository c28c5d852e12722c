"""Transforms from and to any file of the ITK world, or a folder of this package.

One reader and one writer. Whatever is written is read back and compared at points before it gets
its name: a file that is there is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
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
    steps_of,
    with_axes,
)
from itkstream.geometry.chains import FieldChain
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
from itkstream.io.transforms.itk.hdf5_files import HDF5_ENDINGS, write_hdf5_transform
from itkstream.io.transforms.itk.transform_files import open_itk_transform, write_itk_transform
from itkstream.io.transforms.ngff.scene import read_scene
from itkstream.io.transforms.ngff.store import write_store
from itkstream.io.transforms.vectors import NameAxes, slabs, wanted_axes

__all__ = ["check_transform_output", "read_transform", "write_transform"]

_SMALL = (".tfm", ".txt", ".mat")
_IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha")
_STORES = (".zarr",)
_STORE = "transform.ome.zarr"
# Numbers in a field beyond which ITK, which reads it whole, is not asked to check it.
_LARGE = 2**24
# Numbers of a field that are in memory at a time.
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
        From fixed to moving points; of an OME-Zarr, from the input to the output, in µm.
        Fields of a store, an HDF5 file or an uncompressed NRRD or MetaImage stay on disk; other
        files are read into memory.

    Raises
    ------
    MissingDataError
        Where nothing is there.
    InputError
        Where it is no transform, is cut off, holds NaN, has other dimensions than `axes`, or is
        of a kind that is not read. (A store is not searched for NaN here.)

    Examples
    --------
    >>> transform = itkstream.read_transform("registered", axes="zyx")
    >>> transform.ndim
    3
    >>> itkstream.read_transform("registered/itk/affine.tfm", axes="zyx").axes
    ('z', 'y', 'x')
    """
    location = Location.parse(path)
    if not location.exists():
        raise MissingDataError(f"there is no transform {path}")
    if location.is_dir() or _ending(location) in _STORES:
        inner = location / _STORE
        return read_scene(inner if inner.is_dir() else location, axes, name)
    if name is not None:
        raise InputError(f"name chooses among the transforms of an OME-Zarr; {path} is a file")
    place = location.path
    read = _READERS.get(_ending(place), open_itk_transform)
    transform = read(place, partial(wanted_axes, path, axes=axes))
    # The fields that are looked through are handed out: a compressed image is read once.
    _check_finite(transform, place)
    return rescaled(transform, micrometers(unit))


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
        Names of the coordinates of its points, first to last; needed where its own `axes` are
        None.
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

    Examples
    --------
    >>> shift = np.eye(4)
    >>> shift[:3, 3] = 1, 2, 3
    >>> transform = itkstream.AffineTransform(shift, axes=("z", "y", "x"))
    >>> itkstream.write_transform("shift.tfm", transform)
    0.0
    """
    target = check_transform_output(path, overwrite, transform)
    order, kind = _axes(transform, axes), _ending(target)
    factor = 1.0 if kind in _STORES else micrometers(unit)
    transform = rescaled(with_axes(transform, order), 1 / factor)
    steps = _steps(transform)
    claim = claim_whole_store if kind in _STORES else claim_file
    with claim(target, overwrite) as draft:
        if kind in _SMALL:
            write_itk_transform(draft, compose(*steps), order)
        elif kind in HDF5_ENDINGS:
            write_hdf5_transform(draft, steps, order)
        else:
            write = write_store if kind in _STORES else write_displacement_image
            write(draft, _field_chain(transform))
        tolerance = _SINGLE if kind in (*_IMAGES, *_STORES) else _EXACT
        read_back = _reader_back(kind, transform, order)
        return check_written(draft, transform, order, read_back, tolerance) * factor


def check_transform_output(
    path: str | os.PathLike[str], overwrite: bool, transform: Transform | None = None
) -> Location:
    """Refuse a place that a transform, or one of this kind, cannot be written to.

    Called before any work is done for it; gives the place.
    """
    target = Location.parse(path)
    kind = _ending(target)
    _check_ending(target, kind)
    if transform is not None:
        _check_kind(target, kind, transform)
    check_apart(target, transform)
    (check_store if kind in _STORES else check_file)(target, overwrite)
    return target


def _ending(path: Path | Location) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _steps(transform: Transform) -> tuple[Transform, ...]:
    """The steps that a file has to hold, in the simplest form."""
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
    """Names of the coordinates of the points, which a file in x, y, z needs."""
    order = tuple(axes or transform.axes or ())
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


def _check_kind(target: Location, kind: str, transform: Transform) -> None:
    steps = _steps(transform)
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
        _field_chain(transform)
        if kind.startswith(".nii") and transform.ndim == 2:
            raise InputError(
                f"2-D displacement fields are read with wrong values from NIfTI ({target.name}): "
                "write .h5, .nrrd or .mha"
            )


def _field_chain(transform: Transform) -> FieldChain:
    if isinstance(compose(transform), AffineTransform):
        raise InputError(
            "the file would hold a displacement field, and this transform is an affine: write it "
            "as .tfm, .txt, .mat or .h5"
        )
    return FieldChain.of(
        transform,
        "the file would hold a displacement field, or one followed by affines; got {kinds}: write "
        "it as .h5 (B-splines and affines as .tfm too), or sample it to a DisplacementField first "
        "(itkstream.transform.sample_transform)",
    )


def _read_text(path: Path, name_axes: NameAxes) -> Transform:
    read = read_elastix_transform if is_elastix(path) else open_itk_transform
    return read(path, name_axes)


_LAZY = {
    **dict.fromkeys(_IMAGES, read_displacement_image),
    **dict.fromkeys(HDF5_ENDINGS, open_itk_transform),
}
_READERS: dict[str, Callable[[Path, NameAxes], Transform]] = {
    **_LAZY,
    **dict.fromkeys((".txt", ".tfm", ".toml"), _read_text),
}


def _reader_back(kind: str, transform: Transform, axes: tuple[str, ...]) -> TransformReader | None:
    """A reader of a written file that does not read its fields whole; None for SimpleITK's."""
    if kind in _STORES:
        return lambda path: read_scene(Location.parse(path), axes)
    numbers = max((grid.size * grid.ndim for grid in grids_of(transform)), default=0)
    if kind not in _LAZY or (kind in HDF5_ENDINGS and numbers <= _LARGE):
        return None
    return lambda path: _LAZY[kind](path, lambda _: axes)


def _check_finite(transform: Transform, path: Path) -> None:
    for step in steps_of(transform):
        if isinstance(step, DisplacementField):
            for box in slabs(step, _SLAB):
                if not np.isfinite(step.data[(*box, slice(None))]).all():
                    raise InputError(f"the displacement field in {path} holds NaN or infinity")
