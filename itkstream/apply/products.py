"""Resampled images and inverses, written block by block into OME-Zarr stores.

Images may become N5 and OME-TIFF as well and, where they fit in memory, files of ITK's.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.utils import format_bytes
from numpy.typing import NDArray

from itkstream.apply.fields import axes_of
from itkstream.apply.inversion import prepare_invert
from itkstream.apply.resampling import prepare_apply_to_series, prepare_apply_transform
from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import block_grid
from itkstream.blocks.levels import prepare_level_below
from itkstream.compute.drafts import drafted, staged
from itkstream.compute.execute import compute, open_or_create, run, store
from itkstream.compute.resume import Output
from itkstream.errors import ExistingOutputError, InputError, PlanError
from itkstream.geometry import Block, Grid, Image, Transform, default_axes
from itkstream.io import create_ome_zarr, open_series
from itkstream.io.images.files.itk_images import WRITTEN_SUFFIXES, write_itk
from itkstream.io.images.files.tiff_writer import (
    TIFF_WRITTEN,
    TiffLayout,
    planes_at_once,
    write_tiff,
)
from itkstream.io.images.looks import show_channels, spread_hues
from itkstream.io.images.stores.n5 import check_n5, write_n5_levels
from itkstream.io.images.stores.ome_zarr_writer import begin_levels
from itkstream.io.images.units import itk_unit
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_file, check_store
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.io.transforms.ngff.inverses import ERROR_ARRAY, create_inverse
from itkstream.io.transforms.ngff.store import FIELD_ARRAY, as_stored, stored_axes
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.workers import Resources, free_memory

__all__ = [
    "Series",
    "check_resampled_output",
    "compute_pyramid",
    "write_inverse",
    "write_resampled",
]

logger = logging.getLogger(__name__)

# Copies of a file's voxels in memory while it is written: ours, and ITK's on its way.
_COPIES = 3
# Voxels per axis of the chunks of an inverse.
_CHUNK = 64


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

    Examples
    --------
    >>> genes = itkstream.io.open_series("examples/round2.ome.zarr", "channel")
    >>> itkstream.Series(tuple(genes), (("c", 3),)).axes
    (('c', 3),)
    """

    images: tuple[Image, ...]
    axes: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        if len(self.images) != math.prod(n for _, n in self.axes):
            raise InputError(
                f"a series along {dict(self.axes)} has as many images; got {len(self.images)}"
            )


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

    The store is written beside its place and gets it when it is complete. If the run fails or is
    killed, the same call goes on with the blocks that are done. Until then vectors and errors take
    their space on the disk twice.

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

    Examples
    --------
    >>> error = itkstream.write_inverse("inverse.ome.zarr", registration.transform, moving.grid)
    >>> error < 0.1
    True
    >>> itkstream.read_transform("inverse.ome.zarr", "zyx").ndim
    3
    """
    if not Location.parse(out).name.endswith(".zarr"):
        raise InputError(
            f"the inverse of a field goes to a store, such as inverse.ome.zarr; got {out}: make "
            "other files of the store by `itkstream export`"
        )
    check_apart(out, transform)
    place = check_store(out, overwrite)
    if blocksize < _CHUNK or blocksize % _CHUNK:
        raise InputError(f"blocksize must be a multiple of {_CHUNK}; got {blocksize}")
    chunks = tuple(min(_CHUNK, n) for n in grid.shape)
    lazy = as_stored(prepare_invert(transform, grid, (blocksize,) * grid.ndim), grid)
    affine = affine_part(transform).inverse()
    with drafted(place) as draft:
        create = partial(create_inverse, draft, affine, grid, chunks)
        target = open_or_create(lazy, draft, FIELD_ARRAY, create)
        errors = draft / ERROR_ARRAY
        run(lazy, Output(draft / FIELD_ARRAY, target.chunks, last=errors), resources)
        return _largest(ZarrArray.open(errors), blocksize, resources)


def _largest(errors: ZarrArray, blocksize: int, resources: Resources | None) -> float:
    """The largest of the stored errors."""
    blocks = block_grid(errors.shape, (blocksize,) * len(errors.shape), 0)
    lazy = map_blocks(_largest_of_block, blocks, errors, {}, Result(np.float32, (), "block"))
    return float(compute(lazy, resources).max())


def _largest_of_block(part: NDArray[np.float32], block: Block) -> NDArray[np.float32]:
    return part.max(keepdims=True)


def check_resampled_output(out: str | os.PathLike[str], overwrite: bool) -> Location:
    """Refuse a place that a resampled image cannot be written to, before any work is done for it.

    Gives the place.
    """
    place = Location.parse(out)
    if _is_file(place):
        return check_file(place, overwrite)
    ending = place.suffix.lower()
    if ending == ".n5":
        if not place.is_vacant():
            raise ExistingOutputError(
                f"{place} is there, and an N5 container may hold many images, so that it is never "
                "replaced; choose another path"
            )
        return place
    if ending != ".zarr":
        raise InputError(
            f"images are written as OME-Zarr (.ome.zarr, .zarr), N5 (.n5), OME-TIFF "
            f"({', '.join(TIFF_WRITTEN)}) and, where they fit in memory, as "
            f"{', '.join(WRITTEN_SUFFIXES)}; got {place.name}: choose one of these endings"
        )
    return check_store(place, overwrite)


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
    """Resample an image, or a series of them, through a transform into an OME-Zarr or a file.

    The result is written beside its place and gets it when it is complete. If the run fails or is
    killed, the same call goes on with the blocks of a store that are done.

    Parameters
    ----------
    out : path
        The new OME-Zarr 0.5, ending in ``.zarr``, multiscale, its axes z, y, x after those of a
        series; an N5 container, ending in ``.n5``, its levels ``s0``, ``s1`` and so on, for one
        image; an OME-TIFF, ending in ``.tif`` or ``.tiff``, tiled, with coarser levels, a BigTIFF
        where that is needed; or a file that ITK, 3D Slicer and ANTs read, ending in ``.nii.gz``,
        ``.nii``, ``.nrrd`` or ``.mha``, for one image that fits in memory; in µm, but NIfTI
        in millimeters where `grid` is. N5 and TIFF take their space on the disk twice until they
        are complete.
    moving : Image or Series
        In moving space. For a series, the transform is evaluated once.
    transform : Transform
        From fixed to moving points; without a displacement field, its axes are z, y, x.
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
        Where dimensions or units of transform and images differ, for another ending, where the
        format does not hold such an image, or where `out` touches what is read.
    PlanError
        Where the image does not fit in memory and a file was asked for.
    ExistingOutputError
        Where something is there.

    Examples
    --------
    >>> gene = itkstream.open_image("examples/round2.ome.zarr", channel="GeneA")
    >>> settings = itkstream.WarpSettings(background=None)
    >>> itkstream.write_resampled(
    ...     "gene_a.nrrd", gene, registration.transform, registration.aligned.grid, settings
    ... )
    >>> itkstream.open_image("gene_a.nrrd").shape == registration.aligned.shape
    True
    """
    check_apart(out, moving, transform)
    place = check_resampled_output(out, overwrite)
    resampling = _Resampling(moving, transform, grid, settings, blocksize, labels)
    if place.name.lower().endswith(TIFF_WRITTEN):
        _write_tiff(place, resampling, resources, overwrite)
    elif _is_file(place):
        _write_file(place, resampling, resources, overwrite)
    elif place.suffix.lower() == ".n5":
        _write_n5(place, resampling, resources)
    else:
        with drafted(place) as draft:
            _fill_store(draft, resampling, resampling.prepare(), resources)
            compute_pyramid(draft, labels=labels, resources=resources)
            if resampling.series_axes.get("c") and any(resampling.channels):
                show_channels(draft, spread_hues(resampling.channels), resampling.stored_axes)


def _is_file(place: Location) -> bool:
    return place.name.lower().endswith((*WRITTEN_SUFFIXES, *TIFF_WRITTEN))


@dataclass(frozen=True)
class _Resampling:
    """An image or a series, resampled through a transform on the voxels of a grid."""

    moving: Image | Series
    transform: Transform
    grid: Grid
    settings: WarpSettings
    blocksize: int
    labels: bool = False

    @property
    def stored_grid(self) -> Grid:
        """The grid as it is stored: axes z, y, x, in µm."""
        return self.grid.reorder(stored_axes(self.grid)).in_unit("micrometer")

    @property
    def series_axes(self) -> dict[str, int]:
        """Names and lengths of the axes before those of the grid."""
        return dict(self.moving.axes) if isinstance(self.moving, Series) else {}

    @property
    def stored_axes(self) -> tuple[str, ...]:
        """Names of all axes as they are stored."""
        return (*self.series_axes, *self.stored_grid.axes)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, as the files of the moving images have them."""
        if isinstance(self.moving, Image):
            return (self.moving.channel,)
        count = self.series_axes.get("c", 1)
        last = list(self.series_axes)[-1:] == ["c"]
        return tuple(image.channel for image in self.moving.images[:count]) if last else ()

    def check_single(self, name: str) -> None:
        """Refuse a series for a format of one image."""
        if isinstance(self.moving, Series):
            raise InputError(
                f"{name} would hold one image, and {len(self.moving.images)} channels or times are "
                "to be written: choose one, or write an .ome.zarr or .ome.tif"
            )

    def prepare(self) -> da.Array:
        """Prepare the voxels, axes as they are stored, those of a series first."""
        wanted, axes = self.stored_grid, axes_of(self.transform)
        lazy = self._prepare_on(wanted.reorder(axes))
        first = len(self.series_axes)
        order = wanted.reorder(axes).axis_order(wanted.axes)
        return lazy.transpose(*range(first), *(first + k for k in order))

    def _prepare_on(self, grid: Grid) -> da.Array:
        moving, size = self.moving, (self.blocksize,) * grid.ndim
        if isinstance(moving, Image):
            return prepare_apply_transform(grid, moving, self.transform, size, self.settings)
        lazy = prepare_apply_to_series(grid, moving.images, self.transform, size, self.settings)
        return lazy.reshape(*self.series_axes.values(), *grid.shape)


def _fill_store(
    place: Location,
    resampling: _Resampling,
    lazy: da.Array,
    resources: Resources | None,
    planes: int = 0,
) -> None:
    """Write the finest level of a new OME-Zarr, or finish it; with chunks of `planes`, if any."""
    grid, series = resampling.stored_grid, resampling.series_axes
    chunks = tuple(min(c[0], resampling.blocksize) for c in lazy.chunks[len(series) :])
    layout: dict[str, Any] = {"chunks": chunks}
    if len(chunks) == 3 and 0 < planes < chunks[0]:
        layout = {"chunks": (math.gcd(planes, chunks[0]), *chunks[1:]), "shards": chunks}
    create = partial(create_ome_zarr, place, grid, lazy.dtype, series=series, **layout)
    store(lazy, open_or_create(lazy, place, "0", create), resources)


def _write_tiff(
    place: Location, resampling: _Resampling, resources: Resources | None, overwrite: bool
) -> None:
    lazy, grid, series = resampling.prepare(), resampling.stored_grid, resampling.series_axes
    layout = TiffLayout(grid, lazy.dtype, series, resampling.channels, resampling.labels)
    if any(grid.origin):
        logger.warning(
            "%s: TIFF has no word for the place of the first voxel, %s µm: readers will put it at "
            "0. An .ome.zarr, .nrrd or .nii.gz says it",
            place.name,
            tuple(round(float(o), 6) for o in grid.origin),
        )
    with staged(place) as draft:
        _fill_store(draft, resampling, lazy, resources, planes_at_once(grid, lazy.dtype))
        write_tiff(str(place), ZarrArray.open(draft / "0"), layout, overwrite=overwrite)


def _write_n5(place: Location, resampling: _Resampling, resources: Resources | None) -> None:
    resampling.check_single(place.name)
    lazy, grid = resampling.prepare(), resampling.stored_grid
    axes = default_axes(grid.ndim)
    check_n5(grid.reorder(axes), lazy.dtype)
    with staged(place) as draft:
        _fill_store(draft, resampling, lazy, resources)
        compute_pyramid(draft, labels=resampling.labels, resources=resources)
        levels = open_series(str(draft), "level", axes=grid.axes)
        write_n5_levels(place, [level.reorder(axes) for level in levels])


def _write_file(
    place: Location, resampling: _Resampling, resources: Resources | None, overwrite: bool
) -> None:
    resampling.check_single(place.name)
    lazy = resampling.prepare()
    needed, free = _COPIES * lazy.nbytes, free_memory()
    if needed > free:
        raise PlanError(
            f"writing {place.name} takes {format_bytes(needed)} of memory, {_COPIES} times the "
            f"image, and {format_bytes(int(free))} are free: write an .ome.zarr, .n5 or .ome.tif, "
            "which are written block by block"
        )
    # Other programs lay it over the file of the fixed image, whose numbers it must have.
    grid = resampling.grid
    lattice = grid.reorder(stored_axes(grid)).in_unit(itk_unit(grid))
    write_itk(place, Image(compute(lazy, resources), lattice), overwrite=overwrite)


def compute_pyramid(
    path: str | os.PathLike[str], *, labels: bool = False, resources: Resources | None = None
) -> None:
    """Compute the levels below the finest of an image made by `create_ome_zarr`.

    They have the bytes that `itkstream.io.write_pyramid` writes in this process.
    """
    levels = begin_levels(path, labels=labels)
    next(levels)
    for level in levels:
        store(prepare_level_below(ZarrArray.open(level.above), level), level.array, resources)
