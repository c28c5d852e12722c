"""Write OME-Zarr images: an empty finest level for block writers to fill, then its pyramid."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import Grid, box_shape
from itkstream.io.images.locate import locate
from itkstream.io.images.selection import Selection
from itkstream.io.images.stores.ngff_metadata import (
    ChannelLook,
    level_axes,
    level_paths,
    multiscales_of,
)
from itkstream.io.images.stores.ome_zarr import OWN_ATTRIBUTES, open_zarr, space_axes
from itkstream.io.storage.attributes import zarr_metadata
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_store
from itkstream.io.storage.stored import tiles
from itkstream.io.storage.zarr_arrays import written_codecs
from itkstream.numerics.sampling.interpolate import round_to

__all__ = [
    "PyramidLevel",
    "begin_levels",
    "coarsen",
    "coarser_grids",
    "create_ome_zarr",
    "name_channels",
    "pyramid_factors",
    "write_pyramid",
]

_LOG = logging.getLogger(__name__)
_ZARR_FORMATS: dict[str, Literal[2, 3]] = {"0.4": 2, "0.5": 3, "0.6": 3}
# Coordinate systems of a turned image: along its axes from its first voxel, and that of its grid.
_ALONG, _PHYSICAL = "intrinsic", "physical"
_SERIES = {"t": "time", "c": "channel"}
_SMALLEST = 256
Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def create_ome_zarr(
    path: str | os.PathLike[str],
    grid: Grid,
    dtype: DTypeLike,
    *,
    chunks: Sequence[int],
    shards: Sequence[int] | None = None,
    series: Mapping[str, int] | None = None,
    overwrite: bool = False,
    version: str | None = None,
) -> zarr.Array[Any]:
    """Create an OME-Zarr image whose finest level is empty, for block writers to fill.

    Scale, translation (the origin) and unit go into the NGFF metadata. A direction matrix other
    than the identity is an affine of OME-Zarr 0.6, from the coordinate system along the image's
    axes to its physical one. Before 0.6 NGFF has no word for it: it stands in the group attribute
    ``itkstream``, where `open_image` finds it and other readers do not.

    Parameters
    ----------
    path : str or PathLike
        The new store, a path or a URL; a group inside a store works too.
    grid : Grid
        Lattice of the finest level; its axis order is the stored one.
    dtype : dtype
        Element type.
    chunks : sequence of int
        Voxels per chunk and axis.
    shards : sequence of int, optional
        Voxels per shard file and axis, multiples of `chunks`; not in version 0.4. Blocks written
        at the same time must not share a chunk, nor a shard where there are shards.
    series : mapping, optional
        Axes before those of the grid, and how long they are: ``{"t": 5, "c": 3}``. A chunk or
        shard holds one time point and channel.
    overwrite : bool
        Replace a Zarr array or OME-Zarr image that is there, at once. Nothing else
        is ever replaced.
    version : str, optional
        OME-Zarr "0.4" (Zarr 2), "0.5" or "0.6" (Zarr 3); default "0.5", which most programs read,
        and "0.6" for a grid whose direction is not the identity.

    Returns
    -------
    zarr.Array
        Level 0, compressed, with checksums but in version 0.4.

    Raises
    ------
    ExistingOutputError
        Where something is there that may not be replaced.
    InputError
        Where chunks, series or version cannot be.

    Examples
    --------
    >>> grid = itkstream.Grid((4, 8, 8), (2, 0.5, 0.5), axes=("z", "y", "x"))
    >>> array = itkstream.io.create_ome_zarr("new.ome.zarr", grid, "uint8", chunks=(4, 8, 8))
    >>> array[...] = 7
    >>> itkstream.open_image("new.ome.zarr").spacing
    (2.0, 0.5, 0.5)
    """
    folder = Location.parse(path)
    further = tuple((series or {}).items())
    version = version or ("0.6" if _is_turned(grid) else "0.5")
    layout = _Layout(tuple(chunks), tuple(shards) if shards else None, version, further)
    layout.check(grid)
    claim_store(folder, overwrite)
    attributes = _ngff([grid], layout, folder)
    if _is_turned(grid):
        attributes[OWN_ATTRIBUTES] = _own_word(grid, version, folder)
    group = zarr.create_group(
        folder.store(), zarr_format=_ZARR_FORMATS[version], attributes=attributes
    )
    return _create_level(group, 0, grid, np.dtype(dtype), layout)


def write_pyramid(
    path: str | os.PathLike[str],
    *,
    labels: bool = False,
    mapper: Mapper = map,
) -> list[Grid]:
    """Write the coarser levels of an image made by `create_ome_zarr`, from its finest level.

    Each level averages 2 voxels of the one before along every axis that is not already much
    coarser than the finest, so that voxels become nearly cubic, until no axis is longer than 256
    voxels. Averaging moves the centre of the first voxel, and the translations say so. Levels
    that are there are written anew. A level appears in the metadata when it is complete.

    Parameters
    ----------
    path : str or PathLike
        The image.
    labels : bool
        Keep every second voxel instead of averaging: averages of labels mean nothing.
    mapper : callable
        Called as ``mapper(function, tasks)`` with one task per chunk or shard of a level, in any
        order; default the builtin `map`. A thread pool's ``map`` works, and so does a function
        that submits to a cluster: function and tasks pickle. A task holds one shard (or chunk)
        and the voxels under one chunk in memory.

    Returns
    -------
    list of Grid
        Grid of every level, the finest first.

    Raises
    ------
    MissingDataError
        Where there is no OME-Zarr image.

    Examples
    --------
    >>> grid = itkstream.Grid((4, 600, 600), (2, 0.5, 0.5), axes=("z", "y", "x"))
    >>> array = itkstream.io.create_ome_zarr("levels.ome.zarr", grid, "uint8", chunks=(4, 64, 64))
    >>> [level.shape for level in itkstream.io.write_pyramid("levels.ome.zarr")][:2]
    [(4, 600, 600), (4, 300, 300)]
    """
    levels = begin_levels(path, labels=labels)
    grids = [next(levels).grid]
    for level in levels:
        boxes = tiles(level.array.shape, level.array.shards or level.array.chunks)
        job = _Job(level.above, level.place, level.factors, level.labels)
        for _ in mapper(partial(_fill, job), boxes):
            pass
        grids.append(level.grid)
    return grids


@dataclass(frozen=True)
class PyramidLevel:
    """A level of an image, and how it comes from the one above, the finer one.

    `factors` are voxels of the level above per voxel, on every axis of the array. `labels` are
    thinned out, others averaged: see `coarsen`.
    """

    place: Location
    grid: Grid
    array: zarr.Array[Any]
    factors: tuple[int, ...]
    labels: bool

    @property
    def above(self) -> Location:
        """The level above."""
        return self.place.parents[0] / str(int(self.place.name) - 1)


def begin_levels(path: str | os.PathLike[str], *, labels: bool = False) -> Iterator[PyramidLevel]:
    """Go down the pyramid of an image made by `create_ome_zarr`: its finest level, then new ones.

    Each new level is empty, to be filled from the one above; the metadata name it as soon as the
    next one is asked for.
    """
    folder = Location.parse(path)
    attributes = zarr_metadata(folder)
    multiscale = next(iter(multiscales_of(attributes)), None)
    if multiscale is None or level_paths(multiscale)[0] != "0":
        raise MissingDataError(f"{folder} is no image made by create_ome_zarr; make it with that")
    version = str((attributes.below("ome") or multiscale).text("version"))
    group = zarr.open_group(folder.store(), mode="r+")
    axes = [axis.name for axis in level_axes(multiscale)]
    # Stated, so that a single plane keeps its axis z.
    grids = [open_zarr(locate(folder / "0"), Selection(axes=axes, channel=0)).image.grid]
    finest = zarr.open_array(folder.child("0").store(), mode="r")
    layout = _Layout.of(finest, axes, version)
    labels = labels or finest.dtype == bool
    group.attrs.update(_ngff(grids, layout, folder))
    yield PyramidLevel(folder / "0", grids[0], finest, (1,) * finest.ndim, labels)
    for factors, grid in coarser_grids(grids[0], labels):
        array = _create_level(group, len(grids), grid, finest.dtype, layout)
        place = folder / str(len(grids))
        yield PyramidLevel(place, grid, array, (*layout.single, *factors), labels)
        grids.append(grid)
        group.attrs.update(_ngff(grids, layout, folder))


def name_channels(path: str | os.PathLike[str], looks: Sequence[ChannelLook]) -> None:
    """Say the names of the channels of a complete image of Zarr 3, and how viewers show them."""
    group = zarr.open_group(Location.parse(path).store(), mode="r+")
    ome: Any = group.attrs["ome"]
    rendering: dict[str, Any] = {"model": "color", "defaultZ": 0, "defaultT": 0}
    omero: dict[str, Any] = {"channels": [look.facts for look in looks], "rdefs": rendering}
    group.attrs["ome"] = {**ome, "omero": omero}


def coarser_grids(grid: Grid, labels: bool = False) -> Iterator[tuple[tuple[int, ...], Grid]]:
    """Go down the lattices of a pyramid: voxels of the one above per voxel, and the lattice."""
    while max(grid.shape) > _SMALLEST:
        factors = pyramid_factors(grid)
        grid = _shrink(grid, factors, labels)
        yield factors, grid


def pyramid_factors(grid: Grid) -> tuple[int, ...]:
    """Choose by how much, 1 or 2, each axis shrinks from a level of a pyramid to the next.

    Axes within a factor of the square root of 2 of the finest shrink, which is what brings the
    spacings closest to each other. Axes of one voxel have nothing to average.
    """
    long = [n > 1 for n in grid.shape]
    finest = min((s for s, n in zip(grid.spacing, grid.shape, strict=True) if n > 1), default=0.0)
    return tuple(
        2 if many and s <= sqrt(2) * finest else 1
        for s, many in zip(grid.spacing, long, strict=True)
    )


@dataclass(frozen=True)
class _Layout:
    """The cut of an image's arrays into files, and their axes before the spatial ones."""

    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    version: str
    series: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, finest: zarr.Array[Any], names: Sequence[str], version: str) -> _Layout:
        """Find what an image was made with."""
        axes = [name for name in names if name in _SERIES]
        first = len(axes)
        shards = finest.shards and finest.shards[first:]
        series = tuple(zip(axes, finest.shape, strict=False))
        return cls(finest.chunks[first:], shards, version, series)

    @property
    def single(self) -> tuple[int, ...]:
        """One of every axis before the spatial ones."""
        return (1,) * len(self.series)

    def check(self, grid: Grid) -> None:
        """Refuse what Zarr or NGFF cannot hold."""
        if self.version not in _ZARR_FORMATS:
            raise InputError(
                f"OME-Zarr versions {', '.join(_ZARR_FORMATS)} are written; got {self.version!r}"
            )
        if any(name not in _SERIES or n < 1 for name, n in self.series):
            raise InputError(
                f"a series has axes {' and '.join(_SERIES)} of positive length; got "
                f"{dict(self.series)}"
            )
        if len(self.chunks) != grid.ndim or min(self.chunks) < 1:
            raise InputError(f"chunks needs {grid.ndim} positive numbers; got {self.chunks}")
        if self.shards is None:
            return
        if self.version == "0.4":
            raise InputError('OME-Zarr 0.4 has no shards; leave them out or write version "0.5"')
        if len(self.shards) != grid.ndim or any(
            s < c or s % c for s, c in zip(self.shards, self.chunks, strict=True)
        ):
            raise InputError(
                f"shards must be multiples of the chunks {self.chunks} on all {grid.ndim} axes; "
                f"got {self.shards}"
            )


@dataclass(frozen=True)
class _Job:
    """Making one level of an image from the level above it."""

    source: Location
    target: Location
    factors: tuple[int, ...]
    labels: bool


def _fill(job: _Job, box: tuple[slice, ...]) -> None:
    """Compute one chunk or shard of a level and write it."""
    source = zarr.open_array(job.source.store(), mode="r")
    target = zarr.open_array(job.target.store(), mode="r+")
    out = np.empty(box_shape(box), target.dtype)
    for piece in tiles(out.shape, target.chunks):  # a whole shard of fine voxels may not fit
        fine = tuple(
            slice((b.start + p.start) * f, (b.start + p.stop) * f)
            for b, p, f in zip(box, piece, job.factors, strict=True)
        )
        out[piece] = coarsen(np.asarray(source[fine]), job.factors, job.labels)
    target[box] = out


def coarsen(fine: NDArray[Any], factors: tuple[int, ...], labels: bool) -> NDArray[Any]:
    """Average groups of voxels, or keep the first of each."""
    if labels:
        return fine[tuple(slice(None, None, f) for f in factors)]
    # A group of two that sticks out holds one voxel: repeating it leaves the average unchanged.
    padding = [(0, -n % f) for n, f in zip(fine.shape, factors, strict=True)]
    padded = np.pad(fine, padding, mode="edge")
    offsets = list(np.ndindex(*factors))
    mean = np.zeros([n // f for n, f in zip(padded.shape, factors, strict=True)])
    for offset in offsets:
        mean += padded[tuple(slice(k, None, f) for k, f in zip(offset, factors, strict=True))]
    mean /= len(offsets)
    return round_to(mean, fine.dtype)


def _shrink(grid: Grid, factors: tuple[int, ...], labels: bool) -> Grid:
    coarse = grid.shrink(factors)
    return replace(coarse, origin=grid.origin) if labels else coarse


def _create_level(
    group: zarr.Group, level: int, grid: Grid, dtype: np.dtype[Any], layout: _Layout
) -> zarr.Array[Any]:
    options: dict[str, Any] = {
        "shards": layout.shards and (*layout.single, *layout.shards),
        "dimension_names": (*(name for name, _ in layout.series), *grid.axes),
        "compressors": written_codecs(),
    }
    if layout.version == "0.4":
        options = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    return group.create_array(
        str(level),
        shape=(*(n for _, n in layout.series), *grid.shape),
        dtype=dtype,
        chunks=(*layout.single, *layout.chunks),
        fill_value=0,
        overwrite=True,
        **options,
    )


def _is_turned(grid: Grid) -> bool:
    return not np.array_equal(grid.direction, np.eye(grid.ndim))


def _own_word(grid: Grid, version: str, folder: Location) -> dict[str, Any]:
    """Return what NGFF does not say of a turned image, for this package; tell the user."""
    if version == "0.6":
        _LOG.info(
            "%s is turned or flipped: it is OME-Zarr 0.6 with an affine to its coordinate system "
            "%r, which programs that read 0.5 alone do not open",
            *(folder, _PHYSICAL),
        )
        return {"system": _PHYSICAL}
    _LOG.warning(
        "%s is turned or flipped, and OME-Zarr %s has no word for that: other programs show it "
        'along its own axes from its origin; write version "0.6" for them',
        *(folder, version),
    )
    return {"direction": grid.direction}


def _ngff(grids: Sequence[Grid], layout: _Layout, folder: Location) -> dict[str, Any]:
    """Describe an image with these levels by group attributes."""
    further = [{"name": name, "type": _SERIES[name]} for name, _ in layout.series]
    axes = further + space_axes(grids[0])
    name = folder.settled.name.removesuffix(".zarr").removesuffix(".ome")
    if layout.version == "0.6":
        multiscale = {"name": name, **_systems(grids, layout, axes)}
        return {"ome": {"version": layout.version, "multiscales": [multiscale]}}
    datasets = [
        {"path": str(level), "coordinateTransformations": _steps(grid, grid.origin, layout)}
        for level, grid in enumerate(grids)
    ]
    multiscale = {"name": name, "axes": axes, "datasets": datasets}
    if layout.version == "0.4":
        return {"multiscales": [{"version": layout.version, **multiscale}]}
    return {"ome": {"version": layout.version, "multiscales": [multiscale]}}


def _steps(grid: Grid, origin: Sequence[float], layout: _Layout) -> list[dict[str, Any]]:
    """Scale and translation of a level."""
    ones = [1.0 for _ in layout.series]
    return [
        {"type": "scale", "scale": ones + list(grid.spacing)},
        {"type": "translation", "translation": [0.0 for _ in ones] + list(origin)},
    ]


def _systems(
    grids: Sequence[Grid], layout: _Layout, axes: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """Describe levels, coordinate systems and what leads between them in the words of 0.6."""
    first = grids[0]
    direction, turned = np.asarray(first.direction), _is_turned(first)
    start = np.asarray(first.origin) if turned else np.zeros(first.ndim)
    datasets = []
    for level, grid in enumerate(grids):
        origin = (direction.T @ (np.asarray(grid.origin) - start)).tolist()
        step = {
            "type": "sequence",
            "input": {"path": str(level)},
            "output": {"name": _ALONG},
            "transformations": _steps(grid, origin, layout),
        }
        datasets.append({"path": str(level), "coordinateTransformations": [step]})
    systems = [{"name": _ALONG, "axes": list(axes)}]
    found: dict[str, Any] = {"coordinateSystems": systems, "datasets": datasets}
    if turned:
        systems.append({"name": _PHYSICAL, "axes": list(axes)})
        affine = np.eye(len(axes), len(axes) + 1)
        k = len(layout.series)
        affine[k:, k:-1], affine[k:, -1] = direction, start
        found["coordinateTransformations"] = [
            {
                "type": "affine",
                "name": _PHYSICAL,
                "input": {"name": _ALONG},
                "output": {"name": _PHYSICAL},
                "affine": affine.tolist(),
            }
        ]
    return found
