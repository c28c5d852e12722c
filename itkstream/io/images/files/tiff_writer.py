"""OME-TIFF, tiled, with coarser levels: written one row of tiles after the other."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffWriter

from itkstream.errors import InputError
from itkstream.geometry import ArraySource, Grid, default_axes
from itkstream.io.images.stores.ome_zarr_writer import coarsen
from itkstream.io.storage.outputs import claim_file
from itkstream.numerics.threads import get_threads

__all__ = ["TIFF_WRITTEN", "TiffLayout", "planes_at_once", "write_tiff"]

TIFF_WRITTEN = (".tif", ".tiff")
"""Endings of the files that `write_tiff` writes."""

# Rows and columns of a tile, and of the coarsest level at most.
_TILE = 256
# Of planes that are read together.
_SLAB_BYTES = 2**27
# Classic TIFF counts bytes in 32 bits; the rest is for headers, as tifffile has it.
_CLASSIC_BYTES = 2**32 - 2**25
# The pixel types of OME-XML that are real numbers.
_TYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")


@dataclass(frozen=True)
class TiffLayout:
    """The contents of an OME-TIFF: voxels of a type on a grid (z,) y, x, after axes of a series.

    `channels` are their names, as many as there are or none. Coarser levels keep every second
    voxel of `labels`, and average others; they have all planes, as OME-TIFF wants it.
    """

    grid: Grid
    dtype: np.dtype[Any]
    series: Mapping[str, int] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    labels: bool = False

    def __post_init__(self) -> None:
        if self.grid.axes != default_axes(self.grid.ndim)[::-1]:
            raise InputError(f"TIFF has axes z, y, x; got {self.grid.axes}: reorder the image")
        if self.dtype.name not in _TYPES:
            raise InputError(
                f"OME-TIFF holds {', '.join(_TYPES)}; got {self.dtype}: choose one of these by "
                "dtype (--dtype), or write an .ome.zarr"
            )
        if not np.allclose(self.grid.direction, np.eye(self.grid.ndim)):
            raise InputError(
                "TIFF cannot say that a grid is turned: write an .ome.zarr, .nrrd or .nii.gz"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along t, c, z, y and x, one where there is no such axis."""
        lengths = {**self.series, **dict(zip(self.grid.axes, self.grid.shape, strict=True))}
        return tuple(lengths.get(axis, 1) for axis in "tczyx")

    @property
    def levels(self) -> int:
        """Levels beside the finest, each half as wide and high, until one tile holds a plane."""
        longest = max(self.shape[-2:])
        return max(0, math.ceil(math.log2(longest / _TILE)))

    @property
    def metadata(self) -> dict[str, Any]:
        """Statements of the OME-XML, as tifffile takes them."""
        placed = self.grid.in_unit("micrometer")
        said: dict[str, Any] = {"axes": "TCZYX"}
        for axis, spacing in zip(placed.axes, placed.spacing, strict=True):
            said |= {
                f"PhysicalSize{axis.upper()}": spacing,
                f"PhysicalSize{axis.upper()}Unit": "µm",
            }
        if any(self.channels):
            said["Channel"] = {"Name": list(self.channels)}
        return said

    def level_shape(self, level: int) -> tuple[int, ...]:
        """Elements of a level along t, c, z, y and x."""
        return (*self.shape[:-2], *(math.ceil(n / 2**level) for n in self.shape[-2:]))


def write_tiff(
    path: str | os.PathLike[str],
    voxels: ArraySource,
    layout: TiffLayout,
    *,
    overwrite: bool = False,
) -> None:
    """Write voxels, as a layout says, as OME-TIFF; a BigTIFF where it may exceed 4 GB.

    In memory are as many planes as `planes_at_once` says, or rows of one of them.
    """
    # Levels are a third of the finest together; data that zlib cannot pack grow a little.
    size = math.prod(layout.shape) * layout.dtype.itemsize * 1.4
    shared: dict[str, Any] = {
        "dtype": layout.dtype,
        "tile": (_TILE, _TILE),
        "compression": "zlib",
        "photometric": "minisblack",
        "maxworkers": get_threads(),
    }
    with (
        claim_file(path, overwrite) as partial,
        TiffWriter(partial, ome=True, bigtiff=size > _CLASSIC_BYTES) as file,
    ):
        for level in range(layout.levels + 1):
            kind: dict[str, Any] = {"subfiletype": 1}
            if not level:
                said = {**layout.metadata, "UUID": _identifier(path, layout)}
                kind = {"subifds": layout.levels, "metadata": said}
            shape = layout.level_shape(level)
            file.write(_tiles(voxels, layout, level), shape=shape, **kind, **shared)


def _identifier(path: str | os.PathLike[str], layout: TiffLayout) -> str:
    """Make the identifier that OME-XML has: the same for the same file, unlike tifffile's own."""
    said = f"{Path(path).name} {layout.shape} {layout.dtype} {layout.metadata}"
    return uuid5(NAMESPACE_URL, said).urn


def planes_at_once(grid: Grid, dtype: np.dtype[Any]) -> int:
    """Count the planes that are read together: a power of two, 128 MB or one plane at most.

    Chunks of so many planes are decoded once a level.
    """
    plane = math.prod(grid.shape[-2:]) * dtype.itemsize
    return 2 ** max(0, int(math.log2(max(_SLAB_BYTES / plane, 1))))


def _tiles(voxels: ArraySource, layout: TiffLayout, level: int) -> Iterator[NDArray[Any]]:
    """Cut a level into tiles: of each plane, row by row."""
    depth = planes_at_once(layout.grid, layout.dtype)
    times, channels, count, height = layout.shape[:-1]
    # Of planes so large that they are read alone, only the rows under a row of tiles.
    step = _TILE * 2**level if depth == 1 else height
    starts = product(range(times), range(channels), range(0, count, depth), range(0, height, step))
    for time, channel, z, row in starts:
        box = _box(
            voxels,
            layout,
            {"t": slice(time, time + 1), "c": slice(channel, channel + 1)}
            | {"z": slice(z, min(z + depth, count)), "y": slice(row, min(row + step, height))},
        )
        for plane in box:
            yield from _cut(plane, layout, level)


def _box(voxels: ArraySource, layout: TiffLayout, spans: Mapping[str, slice]) -> NDArray[Any]:
    """Read whole rows of some planes of a time and channel, (planes, rows, columns)."""
    axes = (*layout.series, *layout.grid.axes[:-1])
    key = (*(spans[axis] for axis in axes), slice(0, layout.shape[-1]))
    rows = spans["y"]
    return np.asarray(voxels[key]).reshape(-1, rows.stop - rows.start, layout.shape[-1])


def _cut(plane: NDArray[Any], layout: TiffLayout, level: int) -> Iterator[NDArray[Any]]:
    """Cut rows of a plane into the tiles of a level."""
    for _ in range(level):
        plane = coarsen(plane, (2, 2), layout.labels)
    for row, column in product(*(range(0, n, _TILE) for n in plane.shape)):
        yield np.ascontiguousarray(plane[row : row + _TILE, column : column + _TILE])
