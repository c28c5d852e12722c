"""Folders of TIFF files, one plane each: a stack along z, in the order of their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile

from itkstream.errors import InputError, MissingDataError
from itkstream.io.images.files.tiff_images import (
    array_of,
    believed,
    explained,
    lattice,
    open_tiff,
    unknown_spacing,
)
from itkstream.io.images.files.tiff_metadata import statement
from itkstream.io.images.files.tiff_pages import TiffArray
from itkstream.io.images.locate import Dataset, planes_inside
from itkstream.io.images.selection import Opened, Selection
from itkstream.io.storage.locations import Location
from itkstream.io.storage.stored import StoredArray

__all__ = ["PlaneStack", "open_planes"]

_AXES = {"YX": ("z", "y", "x"), "YXS": ("z", "y", "x", "c")}
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class PlaneStack(StoredArray):
    """A lazy stack of the planes of a folder, each in a file: `names`, read like `plane` is."""

    names: tuple[str, ...]
    plane: TiffArray

    @property
    def chunks(self) -> tuple[int, ...]:
        """Elements per axis that are decoded together."""
        return (1, *(self.plane.chunks or self.plane.shape))

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box, plane by plane."""
        box = np.empty([b - a for a, b in zip(start, stop, strict=True)], self.dtype)
        for out, name in zip(box, self.names[start[0] : stop[0]], strict=True):
            file = str(Location(self.path) / name)
            out[...] = replace(self.plane, path=file, parts=()).read(start[1:], stop[1:])
        return box


def open_planes(dataset: Dataset, selection: Selection) -> Opened:
    """Open a folder of planes, axes z, y, x, and c last for colours.

    Spacing and unit are those of the first file, which rarely knows how far planes lie apart. A set
    of OME-TIFF is opened as that.
    """
    folder = str(dataset.location)
    names = in_order(planes_inside(dataset.location), folder)
    first = dataset.location / names[0]
    with explained(str(first)), TiffFile(str(first)) as tif:
        series = tif.series[0]
        if tif.is_ome and len(series) > 1:
            return open_tiff(Dataset(first, first, "tiff"), selection)
        if series.axes not in _AXES or len(tif.series) > 1:
            raise InputError(
                f"{folder} holds TIFF files that are no single planes: {names[0]} has axes "
                f"{tuple(series.axes)} of shape {series.shape}. Name the file that is meant"
            )
        plane = array_of(str(first), series, series)
        said = statement(tif, series)
        axes = selection.axes_of(_AXES[series.axes], folder)
    _check_alike(dataset.location, names, plane)
    source = PlaneStack(folder, (len(names), *plane.shape), plane.dtype, names, plane)
    shape = dict(zip(axes, source.shape, strict=True))
    stated = believed(said, selection)
    grid = lattice(stated, shape, shape)
    selection.choose_level([grid.spacing if grid else None], stated.unit or "micrometer", folder)
    if grid is None and selection.voxel_spacing is None:
        raise unknown_spacing(said, shape, folder)
    return selection.image(source, axes, grid, folder, said.unit)


def in_order(names: Sequence[str], folder: str) -> tuple[str, ...]:
    """Sort files by the one number in their names that counts planes.

    It is another one in each, in equal steps, since a plane that is missing would move all others.
    """
    if len(names) == 1:
        return tuple(names)
    groups = [_DIGITS.findall(name) for name in names]
    jumps = ""
    for column in zip(*groups, strict=False) if len({len(g) for g in groups}) == 1 else ():
        numbers = sorted(map(int, column))
        steps = np.diff(numbers)
        if steps.min() == steps.max() > 0:
            order = sorted(range(len(names)), key=lambda k: int(column[k]))
            return tuple(names[k] for k in order)
        if steps.min() > 0:
            wide = int(np.argmax(steps))
            jumps = f": numbers go from {numbers[wide]} to {numbers[wide + 1]}"
    if jumps:
        raise MissingDataError(
            f"{folder} lacks planes{jumps}. Put the missing ones beside the others"
        )
    raise InputError(
        f"no number in the names of the {len(names)} TIFF files of {folder} counts planes, as in "
        f"plane_001.tif; got {names[0]}, {names[1]}, ...: put the planes of one channel and time "
        "into a folder of their own, or save them as one file"
    )


def _check_alike(folder: Location, names: Sequence[str], plane: TiffArray) -> None:
    for name in names:
        path = str(folder / name)
        with explained(path), TiffFile(path) as tif:
            page = tif.pages.first
            kind = (tuple(page.shape), np.dtype(page.dtype), len(tif.pages))
        if kind != (plane.shape, plane.dtype, 1):
            raise InputError(
                f"{path} holds {kind[2]} planes of shape {kind[0]} and {kind[1]}, and {names[0]} "
                f"one of {plane.shape} and {plane.dtype}: all planes of a folder must be alike"
            )
