"""Transforms from and to any file of the ITK world, or a folder of this package.

One reader and one writer. Whatever is written is read back by SimpleITK and compared at points
before it gets its name: a file that is there is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, ItkstreamError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Transform,
    default_axes,
    steps_of,
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
    write_chain,
    write_small,
)
from itkstream.io.landmark_transforms import read_landmark_text
from itkstream.io.locations import Location
from itkstream.io.ngff_scenes import read_scene
from itkstream.io.ngff_transforms import write_store
from itkstream.io.outputs import claim_file, claim_store

__all__ = ["read_transform", "write_transform"]

_SMALL = (".tfm", ".txt", ".mat")
_HDF5 = (".h5", ".hdf5")
_IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha")
_STORES = (".zarr",)
_STORE = "transform.ome.zarr"
_POINTS = 100
# How often points are drawn anew where none passes through every lattice of a chain.
_ROUNDS = 20
_ON_A_GRID = (BSplineTransform, DisplacementField)
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
) -> Transform:
    """Read a transform, whatever it is stored in.

    Parameters
    ----------
    path : path
        The folder `register` wrote, a ``transform.ome.zarr`` or any other OME-Zarr 0.6 scene or
        image with coordinate transformations, by path or URL; or a file: an ITK transform
        (``.tfm``, ``.txt``, ``.mat``, ``.h5``), a displacement image (``.nii.gz``, ``.nii``,
        ``.nrrd``, ``.mha``), or a transform parameter file of elastix (``.txt``).
    axes : sequence of str, optional
        The wanted order of axes and components; default z, y, x, as arrays of images have them.
    name : str, optional
        Which transformation, where an OME-Zarr lists several: its name, or its ends as
        ``fixed -> moving``; the other way round it is inverted, if it can be.

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
        ``.tfm`` or ``.txt`` for affines, B-splines and chains of these; ``.mat`` for affines;
        ``.h5`` for affines, displacement fields, B-splines and chains of these (fields are
        streamed: memory does not grow with them);
        ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha`` for a displacement image, float32, in which
        the affine is folded into the field (``.nrrd`` and ``.mha`` are streamed, uncompressed);
        ``.zarr`` for a field and the affines after it as an OME-Zarr 0.6 scene, float32, streamed.
    transform : Transform
        What to write.
    axes : sequence of str, optional
        The axis order of its points; default that of its field or B-splines, else z, y, x.
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
    steps = _steps(transform)
    order = _axes(steps, axes)
    kind = _ending(target)
    _check_kind(target, kind, steps)
    if kind in _STORES:
        claim_store(target, overwrite)
    with claim_file(target, overwrite) as partial:
        if kind in _SMALL:
            write_small(partial, steps[0] if len(steps) == 1 else CompositeTransform(steps), order)
        elif kind in _HDF5:
            write_chain(partial, steps, order)
        else:
            field, affine = _field_and_affine(steps)
            if kind in _STORES:
                write_store(partial, field, affine or AffineTransform(np.eye(field.ndim + 1)))
            else:
                write_displacement_image(partial, field, affine)
        return _compare(partial, transform, order, steps, kind)


def _ending(path: Path | Location) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _steps(transform: Transform) -> tuple[Transform, ...]:
    """What a file has to hold: composites taken apart, affines in a row multiplied."""
    steps: list[Transform] = []
    for step in steps_of(transform):
        before = steps[-1] if steps else None
        if isinstance(step, AffineTransform) and isinstance(before, AffineTransform):
            steps[-1] = AffineTransform(step.matrix @ before.matrix)
        else:
            steps.append(step)
    strange = [type(s).__name__ for s in steps if not isinstance(s, (AffineTransform, *_ON_A_GRID))]
    if strange:
        raise InputError(
            f"affines, displacement fields and B-splines can be written; got {strange[0]}: sample "
            "it to a DisplacementField first (itkstream.transform.sample_transform)"
        )
    return tuple(steps)


def _axes(steps: Sequence[Transform], axes: Sequence[str] | None) -> tuple[str, ...]:
    grids = [step.grid for step in steps if isinstance(step, _ON_A_GRID)]
    order = tuple(axes or (grids[0].axes if grids else reversed(default_axes(steps[0].ndim))))
    for grid in grids:
        if grid.axes != order:
            raise InputError(f"the field has axes {grid.axes}, not {order}")
    return order


def _check_kind(target: Location, kind: str, steps: Sequence[Transform]) -> None:
    if kind not in (*_SMALL, *_HDF5, *_IMAGES, *_STORES):
        raise InputError(
            f"no transform format ends like {target.name}: affines and B-splines go to .tfm, .txt "
            "or .h5, affines to .mat too, fields to .h5, .ome.zarr, .nii.gz, .nii, .nrrd or .mha"
        )
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


def _compare(
    path: Path,
    transform: Transform,
    axes: tuple[str, ...],
    steps: Sequence[Transform],
    kind: str,
) -> float:
    points = _points(steps)
    # One point at a time, so that little of a stored field is read.
    wanted = np.concatenate([transform.apply(p[None]) for p in points])
    grids = [step.grid for step in steps if isinstance(step, _ON_A_GRID)]
    spacing = min((min(grid.spacing) for grid in grids), default=1.0)
    numbers = max((grid.size * grid.ndim for grid in grids), default=0)
    try:
        reader = _LAZY.get(kind)
        if reader is not None and (kind not in _HDF5 or numbers > _LARGE):
            written = reader(path, axes)
            found = np.concatenate([written.apply(p[None]) for p in points])
            error = float(np.abs(found - wanted).max())
        else:
            error = largest_difference(path, transform, points, axes)
    except (InputError, RuntimeError) as reason:
        raise ItkstreamError(f"{path.name} was written but cannot be read: {reason}") from reason
    size = float(max(np.abs(points).max(), np.abs(wanted).max()))
    allowed = (_SINGLE if kind in (*_IMAGES, *_STORES) else _EXACT) * max(size, spacing)
    if not error <= allowed:
        unit = grids[0].unit if grids else "micrometer"
        raise ItkstreamError(
            f"{path.name} was written but maps points {error:.3g} {unit} off, where "
            f"{allowed:.3g} was expected: the disk or the ITK library is faulty"
        )
    return error


def _points(steps: Sequence[Transform]) -> NDArray[np.float64]:
    """Points that stay within every lattice on their way; beyond them ITK continues otherwise."""
    rng = np.random.default_rng(0)
    ndim = steps[0].ndim
    first = next((k for k, step in enumerate(steps) if isinstance(step, _ON_A_GRID)), None)
    if first is None:
        return rng.uniform(0, 100, (_POINTS, ndim))
    before = steps[0].inverse() if isinstance(steps[0], AffineTransform) else None
    for _ in range(_ROUNDS):
        points = _inside(steps[first], rng)
        if before is not None:
            points = before.apply(points)
        points = points[_stay(steps, points)]
        if len(points):
            return points
    raise InputError(
        "no point passes through all lattices of this transform, so that nothing could be "
        "compared: are its steps in the right order, and in one unit?"
    )


def _inside(step: Transform, rng: np.random.Generator) -> NDArray[np.float64]:
    assert isinstance(step, _ON_A_GRID)
    low, high = _reach(step)
    return step.grid.to_physical(low + rng.uniform(0, 1, (_POINTS, step.ndim)) * (high - low))


def _reach(step: DisplacementField | BSplineTransform) -> NDArray[np.float64]:
    """First and last index at which all clients agree on a step."""
    last = np.asarray(step.grid.shape) - 1.0
    edge = np.zeros(step.ndim)
    if isinstance(step, BSplineTransform):
        edge += 0.5 * (step.order - 1)
    # The outermost cells may lie beyond the grid once a format has rounded its geometry.
    edge += np.minimum(0.01, (last - 2 * edge) / 2)
    return np.stack([edge, last - edge])


def _stay(steps: Sequence[Transform], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    inside = np.ones(len(points), bool)
    if sum(isinstance(step, _ON_A_GRID) for step in steps) < 2:
        return inside
    for step in steps:
        if isinstance(step, _ON_A_GRID):
            index, (low, high) = step.grid.to_index(points), _reach(step)
            inside &= ((index >= low) & (index <= high)).all(axis=-1)
        points = np.concatenate([step.apply(p[None]) for p in points])
    return inside


def _read_store(path: Path, axes: Sequence[str] | None) -> Transform:
    return read_scene(Location.parse(path), axes)


def _read_hdf5(path: Path, axes: Sequence[str] | None) -> Transform:
    return open_hdf5_transform(path, axes) or read_itk_transform(path, axes)


def _read_text(path: Path, axes: Sequence[str] | None) -> Transform:
    if is_elastix(path):
        return read_elastix_transform(path, axes)
    return read_landmark_text(path, axes) or read_itk_transform(path, axes)


_LAZY: dict[str, Callable[[Path, Sequence[str] | None], Transform]] = {
    **dict.fromkeys(_IMAGES, read_displacement_image),
    **dict.fromkeys(_HDF5, _read_hdf5),
    **dict.fromkeys(_STORES, _read_store),
}
_READERS = {**_LAZY, ".txt": _read_text, ".tfm": _read_text}


def _check_finite(transform: Transform, path: Path) -> None:
    for step in steps_of(transform):
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
