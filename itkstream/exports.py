"""What is made with a transform: bundles for 3D Slicer and ANTs, its inverse, resampled images."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dask.array as da

from itkstream.block_kernels import WarpSettings
from itkstream.cluster import store
from itkstream.coarsening import coarsen_field
from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import (
    DisplacementField,
    Grid,
    Image,
    Transform,
    compose,
    default_axes,
    steps_of,
)
from itkstream.io import create_ome_zarr, open_image, write_pyramid
from itkstream.io.itk_images import write_itk
from itkstream.io.locations import Location
from itkstream.io.ngff_transforms import (
    as_stored,
    create_error_map,
    create_transform,
    stored_axes,
)
from itkstream.io.outputs import claim_folder, write_text
from itkstream.io.transform_files import write_transform
from itkstream.levels import factors_to_fit, read_coarse
from itkstream.numerics.interpolate import round_to
from itkstream.numerics.mapping import affine_part
from itkstream.transform import (
    prepare_apply_to_series,
    prepare_apply_transform,
    prepare_invert,
)
from itkstream.workers import Resources, connected

__all__ = [
    "Bundle",
    "Series",
    "coarsened",
    "export_ants",
    "export_slicer",
    "registered_grids",
    "registered_images",
    "write_inverse",
    "write_resampled",
]

REPORT = "registration.json"
_PROOF = "bundle.json"
_CHUNK = 64
_NODE_BYTES = 8
# Headers of the images, and HDF5's tables, with room.
_OVERHEAD = 2**15
_LEAST_MB = 0.1

_SLICER_TEXT = """\
How to see the registration in 3D Slicer

1. Drag fixed.nrrd, moving.nrrd and transform.h5 into Slicer's window, and press OK.
2. Open the module "Transforms" and choose the transform "transform".
3. Under "Apply transform", move "moving" to the right (->). It now lies on "fixed".

All lengths are {unit}s; Slicer calls them mm. The images are {factors} times coarser than the
originals, along the axes {axes}. The transform is within {error:.2g} voxels of the original one,
voxels of its displacement field.
"""

_ANTS_TEXT = """\
#!/bin/sh
# moving.nii.gz and fixed.nii.gz stand for your images, with voxel spacings in {unit}s as in these
# files. What is listed first acts first on points of the fixed image; ANTs' names of files must
# not end in .mat, which it would invert.
antsApplyTransforms -d {ndim} -i moving.nii.gz -r fixed.nii.gz -o aligned.nii.gz -n Linear \\
    {files} --float 0
"""


@dataclass(frozen=True)
class Bundle:
    """What a folder for another program holds.

    Parameters
    ----------
    folder : str
        Where it is.
    files : tuple of str
        Their names.
    field_factors : tuple of int
        Voxels of the stored field per voxel of the exported one, per array axis.
    field_error_vox : float
        How far the exported transform is from the stored one, at most, in voxels of the field it
        was made of.
    """

    folder: str
    files: tuple[str, ...]
    field_factors: tuple[int, ...]
    field_error_vox: float


@dataclass(frozen=True)
class Series:
    """Images of one lattice: the channels of an image, its time points, or both.

    Parameters
    ----------
    images : tuple of Image
        All of them, the last axis fastest.
    axes : tuple of (str, int)
        ``t`` or ``c`` or both, and how many there are.

    Raises
    ------
    InputError
        Where the numbers do not agree.
    """

    images: tuple[Image, ...]
    axes: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        if len(self.images) != math.prod(n for _, n in self.axes):
            raise InputError(
                f"a series along {dict(self.axes)} has as many images; got {len(self.images)}"
            )


def export_slicer(
    out: str | os.PathLike[str],
    transform: Transform,
    images: tuple[Image, Image],
    *,
    limit_mb: float = 300.0,
    tolerance_vox: float = 0.05,
    overwrite: bool = False,
) -> Bundle:
    """Write a folder that 3D Slicer opens at once: two images, a transform, and what to click.

    Parameters
    ----------
    out : path
        New or empty folder.
    transform : Transform
        An affine, a displacement field, or a field followed by affines.
    images : (Image, Image)
        Fixed and moving; averaged to a third of the limit each.
    limit_mb : float
        Most megabytes of the images and the field together.
    tolerance_vox : float
        How far the field may be off where it is thinned out, in its own smallest voxel spacing;
        the limit goes before it.
    overwrite : bool
        Replace an earlier bundle.

    Returns
    -------
    Bundle
        Its files, and the error of the transform.

    Raises
    ------
    InputError
        For another kind of transform, or a limit too small.
    ExistingOutputError
        Where the folder holds something already.
    """
    if not limit_mb >= _LEAST_MB:
        raise InputError(f"limit_mb must be at least {_LEAST_MB}; got {limit_mb}")
    share = (limit_mb * 2**20 - _OVERHEAD) / 3
    max_nodes = share / (_NODE_BYTES * transform.ndim)
    begun = _begin(out, transform, tolerance_vox, max_nodes, overwrite)
    axes = _axes(transform, images[0])
    shrunk = []
    for name, image in zip(("fixed", "moving"), images, strict=True):
        turned = image.reorder(axes).in_unit("micrometer")
        by = factors_to_fit(turned.grid, share / turned.dtype.itemsize)
        coarse = read_coarse(turned, by)
        kept = Image(round_to(coarse.read(), turned.dtype), coarse.grid, name)
        write_itk((begun.folder / f"{name}.nrrd").path, kept)
        shrunk.append(by)
    write_transform(begun.folder / "transform.h5", begun.transform, axes)
    text = _SLICER_TEXT.format(
        unit="micrometer",
        factors=" and ".join("x".join(map(str, by)) for by in shrunk),
        axes=", ".join(axes),
        error=begun.error_vox,
    )
    return begun.finish(("fixed.nrrd", "moving.nrrd", "transform.h5"), "READ ME.txt", text)


def export_ants(
    out: str | os.PathLike[str],
    transform: Transform,
    *,
    tolerance_vox: float = 0.05,
    overwrite: bool = False,
) -> Bundle:
    """Write a folder for ANTs: the displacement, the affine, and the call that applies them.

    Parameters
    ----------
    out : path
        New or empty folder.
    transform : Transform
        An affine, a displacement field, or a field followed by affines.
    tolerance_vox : float
        How far the field may be off where it is thinned out, in its own smallest voxel spacing.
    overwrite : bool
        Replace an earlier bundle.

    Returns
    -------
    Bundle
        Its files, and the error of the transform.

    Raises
    ------
    InputError
        For another kind of transform.
    ExistingOutputError
        Where the folder holds something already.
    """
    begun = _begin(out, transform, tolerance_vox, None, overwrite)
    thin, axes = begun.transform, _axes(transform, None)
    files = []
    for step in steps_of(thin):
        name, order = "affine.tfm", axes
        if isinstance(step, DisplacementField):
            # NIfTI has no 2-D vectors.
            name, order = f"displacement.{'nii.gz' if step.ndim == 3 else 'nrrd'}", step.grid.axes
        write_transform(begun.folder / name, step, order)
        files.append(name)
    words = " ".join(f"-t {name}" for name in files)
    text = _ANTS_TEXT.format(unit="micrometer", ndim=thin.ndim, files=words)
    return begun.finish(files, "apply.sh", text)


def coarsened(
    transform: Transform, tolerance_vox: float = 0.05, max_nodes: float | None = None
) -> tuple[Transform, tuple[int, ...], float]:
    """A transform with its displacement field on the coarsest lattice that will do.

    Parameters
    ----------
    transform : Transform
        An affine, a displacement field, or a field followed by affines.
    tolerance_vox : float
        How far the field may be off, in its smallest voxel spacing.
    max_nodes : float, optional
        Bound on the field's voxels, which goes before the tolerance.

    Returns
    -------
    transform : Transform
        With the coarser field.
    factors : tuple of int
        Voxels of the field per voxel of the coarser one; 1 where there is no field.
    error_vox : float
        Greatest difference of the two fields, in the smallest voxel spacing of the finer.

    Raises
    ------
    InputError
        For another kind of transform, or a bound that cannot be kept.
    """
    simple = compose(transform)
    steps = steps_of(simple)
    field = steps[0]
    if not isinstance(field, DisplacementField):
        return simple, (1,) * simple.ndim, 0.0
    voxel = min(field.grid.spacing)
    thin = coarsen_field(field, tolerance_vox * voxel, max_nodes=max_nodes)
    return compose(thin.field, *steps[1:]), thin.factors, thin.error / voxel


def write_inverse(
    out: str | os.PathLike[str],
    transform: Transform,
    grid: Grid,
    *,
    blocksize: int = 128,
    resources: Resources | None = None,
    overwrite: bool = False,
) -> float:
    """Invert a transform block by block into a store, with an error for every voxel.

    Parameters
    ----------
    out : path
        The new store, an OME-Zarr 0.6 scene; its array ``inverse_error`` has the estimated error
        of each voxel in voxels (float32, axes as the field's).
    transform : Transform
        A displacement field, or one followed by affines; it may be stored.
    grid : Grid
        Where the inverse is wanted: the moving image's lattice, or a coarser one.
    blocksize : int
        Voxels of a block per axis, a multiple of 64.
    resources : Resources, optional
        Workers and threads.
    overwrite : bool
        Replace a store that is there.

    Returns
    -------
    float
        The largest error, in the smallest voxel spacing of `grid`.

    Raises
    ------
    InputError
        For another kind of transform, another ending or blocksize, or a grid of other axes or
        unit.
    ExistingOutputError
        Where something is there.
    """
    if not Location.parse(out).name.endswith(".zarr"):
        raise InputError(
            f"the inverse of a field goes to a store, such as inverse.ome.zarr; got {out}: make "
            "other files of the store by `itkstream export`"
        )
    if blocksize < _CHUNK or blocksize % _CHUNK:
        raise InputError(f"blocksize must be a multiple of {_CHUNK}; got {blocksize}")
    packed = prepare_invert(transform, grid, (blocksize,) * grid.ndim)
    chunks = tuple(min(_CHUNK, n) for n in grid.shape)
    affine = affine_part(transform).inverse()
    target = create_transform(out, affine, grid, chunks=chunks, overwrite=overwrite)
    errors = create_error_map(out, grid, chunks=chunks)
    lazy = as_stored(packed, grid)
    with connected(resources or Resources()):
        da.store([lazy[:-1], lazy[-1]], [target, errors], lock=False)
    return float(da.from_array(errors, chunks=errors.chunks).max().compute())


def write_resampled(
    out: str | os.PathLike[str],
    moving: Image | Series,
    transform: Transform,
    grid: Grid,
    settings: WarpSettings,
    *,
    labels: bool = False,
    blocksize: int = 128,
    resources: Resources | None = None,
    overwrite: bool = False,
) -> None:
    """Resample an image, or a series of them, through a transform into an OME-Zarr.

    Parameters
    ----------
    out : path
        The new OME-Zarr 0.5, multiscale, its axes z, y, x after those of a series.
    moving : Image or Series
        In moving space. For a series, the transform is evaluated once.
    transform : Transform
        From fixed to moving points.
    grid : Grid
        The wanted lattice, in fixed space: the fixed image's, or any other.
    settings : WarpSettings
        Interpolation, background, type.
    labels : bool
        Coarser levels keep every second voxel instead of averaging.
    blocksize : int
        Voxels of a block and chunk per axis.
    resources : Resources, optional
        Workers and threads.
    overwrite : bool
        Replace a store that is there.

    Raises
    ------
    InputError
        Where dimensions or units of transform and images differ.
    ExistingOutputError
        Where something is there.
    """
    wanted = grid.reorder(stored_axes(grid)).in_unit("micrometer")
    axes = _axes(transform, None)
    lazy = _resampled(moving, transform, wanted.reorder(axes), settings, blocksize)
    first = lazy.ndim - grid.ndim
    order = wanted.reorder(axes).axis_order(wanted.axes)
    stored = lazy.transpose(*range(first), *(first + k for k in order))
    chunks = tuple(min(c[0], blocksize) for c in stored.chunks[first:])
    series = dict(moving.axes) if isinstance(moving, Series) else {}
    target = create_ome_zarr(
        out, wanted, stored.dtype, chunks=chunks, series=series, overwrite=overwrite
    )
    store(stored, target, resources)
    write_pyramid(out, labels=labels)


def _resampled(
    moving: Image | Series,
    transform: Transform,
    grid: Grid,
    settings: WarpSettings,
    blocksize: int,
) -> da.Array:
    """Axes of a series, then those of the grid."""
    size = (blocksize,) * grid.ndim
    if isinstance(moving, Image):
        return prepare_apply_transform(grid, moving, transform, size, settings)
    lazy = prepare_apply_to_series(grid, moving.images, transform, size, settings)
    return lazy.reshape(*(n for _, n in moving.axes), *grid.shape)


def registered_images(folder: str | os.PathLike[str]) -> tuple[Image, Image]:
    """Open the two images of a registration.

    Parameters
    ----------
    folder : path
        What `register` wrote.

    Returns
    -------
    fixed, moving : Image
        Lazy.

    Raises
    ------
    MissingDataError
        Where there is no report, or the images are no longer where they were.
    """
    report = _report(folder)
    images = []
    for side in ("fixed", "moving"):
        name = str(report[side]["name"])
        try:
            images.append(open_image(name))
        except (MissingDataError, InputError) as error:
            raise MissingDataError(
                f"the {side} image of {folder} was {name or 'an array'}, which cannot be opened: "
                f"say where it is ({error})"
            ) from error
    return images[0], images[1]


def registered_grids(folder: str | os.PathLike[str]) -> tuple[Grid, Grid]:
    """The lattices of the two images of a registration.

    Parameters
    ----------
    folder : path
        What `register` wrote.

    Returns
    -------
    fixed, moving : Grid
        As they were registered.

    Raises
    ------
    MissingDataError
        Where there is no report.
    """
    report = _report(folder)
    return Grid(**report["fixed"]["grid"]), Grid(**report["moving"]["grid"])


def _report(folder: str | os.PathLike[str]) -> dict[str, Any]:
    file = Location.parse(folder) / REPORT
    if not file.is_file():
        raise MissingDataError(f"{folder} is no folder that register wrote: it has no {REPORT}")
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found


def _axes(transform: Transform, image: Image | None) -> tuple[str, ...]:
    first = steps_of(transform)[0]
    if isinstance(first, DisplacementField):
        return first.grid.axes
    return image.grid.axes if image else default_axes(transform.ndim)[::-1]


@dataclass(frozen=True, eq=False)
class _Export:
    """A folder for another program, claimed, and the transform that goes there."""

    folder: Location
    transform: Transform
    factors: tuple[int, ...]
    error_vox: float

    def finish(self, files: Sequence[str], guide: str, text: str) -> Bundle:
        """Say what to do with the files, and then that the folder is complete."""
        write_text(self.folder / guide, text)
        bundle = Bundle(str(self.folder), (*files, guide), self.factors, self.error_vox)
        write_text(self.folder / _PROOF, json.dumps(asdict(bundle), indent=2) + "\n")
        return bundle


def _begin(
    out: str | os.PathLike[str],
    transform: Transform,
    tolerance_vox: float,
    max_nodes: float | None,
    overwrite: bool,
) -> _Export:
    """Thin a transform out and claim the folder it goes to."""
    thin, factors, error = coarsened(transform, tolerance_vox, max_nodes)
    return _Export(claim_folder(out, _PROOF, overwrite), thin, factors, error)
