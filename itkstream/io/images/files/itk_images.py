"""Image files of the ITK world: NIfTI, NRRD and MetaImage, through SimpleITK."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError, UnknownSpacingError
from itkstream.geometry import Grid, Image
from itkstream.geometry.itk_bridge import to_itk_image
from itkstream.io.images.files.headers import FileHeader, check_streams
from itkstream.io.images.files.meta_headers import read_meta_header
from itkstream.io.images.files.nifti_headers import read_nifti_header, state_no_unit
from itkstream.io.images.files.nrrd_headers import read_nrrd_header
from itkstream.io.images.locate import Dataset
from itkstream.io.images.selection import Opened, Selection
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_file
from itkstream.io.storage.stored import StoredArray

__all__ = ["WRITTEN_SUFFIXES", "ItkFile", "open_itk", "write_itk"]

WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Endings of the files that `write_itk` writes."""

_NAMES = ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64")
_TYPES = {
    getattr(sitk, f"sitk{prefix}{name}"): np.dtype(name.lower())
    for prefix in ("", "Vector")
    for name in (*_NAMES, "Float32", "Float64")
}
_HEADERS = {
    **dict.fromkeys((".nii", ".gz", ".hdr", ".img"), read_nifti_header),
    **dict.fromkeys((".nrrd", ".nhdr"), read_nrrd_header),
    **dict.fromkeys((".mha", ".mhd"), read_meta_header),
}
# Axes in numpy's order; NIfTI knows a fifth of components.
_AXES = ("c", "t", "z", "y", "x")
# Of files that ITK writes; its headers are shorter.
_HEADER_BYTES = 4096
_reading = Lock()  # threads that want the same file wait for one of them to read it


@dataclass(frozen=True)
class ItkFile(StoredArray):
    """A lazy image file, axes in numpy's order: (t,) z, y, x (, component).

    Uncompressed NIfTI (of scalars), MetaImage and NRRD files are read region by region. ITK can
    read the others only whole: a process that slices one keeps it in memory, two files at most.
    """

    components: int = 1

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box."""
        cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        header = _header(self.path)
        if header.raw_offset is not None:
            mapped = np.memmap(self.path, self.dtype, "r", header.raw_offset, self.shape)
            return np.array(mapped[cut])
        if not header.streams:
            stamps = (os.stat(file) for file in self.files())
            with _reading:
                whole = _whole(self.path, tuple((s.st_mtime_ns, s.st_size) for s in stamps))
            return whole[cut].copy()
        spatial = cut[:-1] if self.components > 1 else cut
        reader = _reader(self.path)
        reader.SetExtractIndex([s.start for s in reversed(spatial)])
        reader.SetExtractSize([s.stop - s.start for s in reversed(spatial)])
        box = sitk.GetArrayFromImage(reader.Execute())
        return np.asarray(box[..., cut[-1]] if self.components > 1 else box)

    def files(self) -> tuple[str, ...]:
        """Return the file, and the files that its header names."""
        beside = (str(file) for file in _header(self.path).files)
        return tuple(dict.fromkeys((self.path, *beside)))


def open_itk(dataset: Dataset, selection: Selection) -> Opened:
    """Open an image file that ITK reads, with axes z, y, x.

    Direction and origin are kept, and the unit that the file states: NIfTI's comes as millimeters,
    into which ITK converts; NRRD's ``space units`` and MetaImage's ``DistanceUnits`` as they are.
    Where none is stated, numbers count as µm.
    """
    name = str(dataset.location)
    header = _read_header(name)
    try:
        reader = _reader(name)
    except InputError:
        check_streams(header)  # which may know better why
        raise
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    most = 5 if _HEADERS[dataset.location.suffix.lower()] is read_nifti_header else 4
    if reader.GetPixelID() not in _TYPES or not 2 <= len(size) <= most:
        voxels = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise InputError(
            f"images of real numbers on 2 or 3 axes (and time) are read; {name} holds {voxels} on "
            f"{len(size)} axes"
        )
    names, shape = _AXES[-len(size) :], size[::-1]
    if components > 1:
        names, shape = (*names, "c"), (*shape, components)
    source = ItkFile(name, shape, _TYPES[reader.GetPixelID()], components)
    names = selection.axes_of(names, name)
    grid = _grid(reader, header, names, selection)
    stated = grid.spacing if header.spaced else None
    selection.choose_level([stated], grid.unit, name)
    if not header.spaced and selection.voxel_spacing is None:
        raise UnknownSpacingError(
            f"{name} does not say how far its voxels lie apart; pass voxel_spacing=, one number "
            f"per axis in the order {', '.join(grid.axes)}"
        )
    return selection.image(source, names, grid, name)


def write_itk(path: str | os.PathLike[str], image: Image, *, overwrite: bool = False) -> None:
    """Write an image as ``.nrrd``, ``.mha``, ``.nii`` or ``.nii.gz``; it is read into memory.

    Numbers of its grid are kept as they are; the file states their unit where it is millimeter, and
    else none, since ITK takes all numbers for millimeters.
    """
    name = Location.parse(path).name
    if not name.lower().endswith(WRITTEN_SUFFIXES):
        raise InputError(f"images are written as {', '.join(WRITTEN_SUFFIXES)}; got {name}")
    check_apart(path, image)
    if not image.grid.axes_stated:
        raise InputError(
            f"nothing says which axis of this image is x, so that {path} could be transposed: give "
            "its grid axes=('z', 'y', 'x') if its array is indexed so"
        )
    with claim_file(path, overwrite) as partial:
        wrapped = to_itk_image(image.read(), image.grid)
        sitk.WriteImage(wrapped, str(partial), useCompression=partial.suffix == ".gz")
        if ".nii" not in partial.name.lower():
            if image.grid.unit == "millimeter":
                _state_millimeters(partial, image.ndim)
        elif image.grid.unit != "millimeter":
            state_no_unit(partial)


def _state_millimeters(path: Path, ndim: int) -> None:
    """Add the unit to the header of a file of ITK's, which writes none."""
    before, line = b"\nspace directions:", "\nspace units:" + ' "mm"' * ndim
    if path.suffix.lower() == ".mha":
        before, line = b"\nElementDataFile", "\nDistanceUnits = mm"
    longer = path.with_name(f"{path.name}.longer")
    with path.open("rb") as file, longer.open("wb") as out:
        head = file.read(_HEADER_BYTES)
        out.write(head.replace(before, line.encode() + before, 1))
        shutil.copyfileobj(file, out)
    longer.replace(path)


def _grid(
    reader: sitk.ImageFileReader, header: FileHeader, names: Sequence[str], selection: Selection
) -> Grid:
    """Make the grid as ITK has it, in the unit that the file or the caller states."""
    size = reader.GetSize()
    space = [k for k, axis in enumerate(names[: len(size)]) if axis in ("x", "y", "z")]
    kept = [len(size) - 1 - k for k in space]
    matrix = np.reshape(reader.GetDirection(), (len(size), len(size)))[np.ix_(kept, kept)]
    # What is stated by hand is in the file's own numbers, which ITK may have converted.
    own = selection.unit is not None or selection.voxel_spacing is not None
    scale = header.itk_scale if own else 1.0
    unit = (header.own_unit if own else None) or header.unit
    try:
        return Grid(
            shape=tuple(size[k] for k in kept),
            spacing=tuple(reader.GetSpacing()[k] / scale for k in kept),
            origin=tuple(reader.GetOrigin()[k] / scale for k in kept),
            direction=tuple(map(tuple, matrix + 0.0)),  # NIfTI comes with negative zeros
            axes=tuple(names[k] for k in space),
            unit=selection.unit_of(unit),
        )
    except InputError as error:
        raise InputError(f"{reader.GetFileName()}: {error}") from error


def _read_header(path: str) -> FileHeader:
    place = Path(path)
    return _HEADERS[place.suffix.lower()](place)


def _header(path: str) -> FileHeader:
    """Read a header again from the cache; that its files are there was checked before."""
    stamp = os.stat(path)
    return _known_header(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=64)
def _known_header(path: str, _modified: int, _size: int) -> FileHeader:
    return _read_header(path)


def _reader(path: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = str(error).rpartition("ERROR:")[2] or str(error)
        raise InputError(f"ITK cannot read {path}: {' '.join(reason.split())}") from error
    return reader


@lru_cache(maxsize=2)
def _whole(path: str, _stamps: tuple[tuple[int, int], ...]) -> NDArray[Any]:
    # Times and sizes are part of the key: a file that was written anew is read anew.
    check_streams(_header(path))
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(path)))
