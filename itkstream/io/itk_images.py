"""Image files of the ITK world: NIfTI, NRRD, MetaImage and TIFF, through SimpleITK."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid, Image
from itkstream.io.outputs import claim_file
from itkstream.io.paths import Dataset
from itkstream.io.selection import Selection
from itkstream.io.stored import StoredArray
from itkstream.itk_bridge import to_itk_image

__all__ = ["ItkFile", "open_itk", "write_itk"]

_NAMES = ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64")
_TYPES = {
    getattr(sitk, f"sitk{prefix}{name}"): np.dtype(name.lower())
    for prefix in ("", "Vector")
    for name in (*_NAMES, "Float32", "Float64")
}
_HEADER_BYTES = 4096
_reading = Lock()  # threads that want the same file wait for one of them to read it


@dataclass(frozen=True)
class ItkFile(StoredArray):
    """A lazy image file, axes in numpy's order: (t,) z, y, x (, component).

    Uncompressed NIfTI (of scalars), MetaImage and NRRD files are read region by region. ITK can
    read the others only whole: a process that slices one keeps it in memory, two files at most.

    Parameters
    ----------
    path : str
        Absolute path of the file.
    shape : tuple of int
        Elements per axis, components last where there are several.
    dtype : numpy.dtype
        Element type.
    components : int
        Components per voxel.
    """

    components: int = 1

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box.

        Parameters
        ----------
        start, stop : tuple of int
            First element, and one past the last, per axis.

        Returns
        -------
        ndarray, stop - start
            The elements.
        """
        cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        offset = self._raw_nrrd()
        if offset:
            return np.array(np.memmap(self.path, self.dtype, "r", offset, self.shape)[cut])
        if not self._streams():
            stamp = Path(self.path).stat()
            with _reading:
                whole = _whole(self.path, stamp.st_mtime_ns, stamp.st_size)
            return whole[cut].copy()
        spatial = cut[:-1] if self.components > 1 else cut
        reader = _reader(self.path)
        reader.SetExtractIndex([s.start for s in reversed(spatial)])
        reader.SetExtractSize([s.stop - s.start for s in reversed(spatial)])
        box = sitk.GetArrayFromImage(reader.Execute())
        return np.asarray(box[..., cut[-1]] if self.components > 1 else box)

    def files(self) -> tuple[str, ...]:
        """The file, and the files that a header of its own names.

        Returns
        -------
        tuple of str
            Absolute paths.
        """
        place = Path(self.path)
        if place.suffix.lower() not in (".mhd", ".nhdr"):
            return (self.path,)
        with open(place, "rb") as file:
            words = file.read(_HEADER_BYTES).decode("utf-8", "replace").split()
        named = (place.parent / word for word in dict.fromkeys(words))
        return (self.path, *(str(file) for file in named if file.is_file()))

    def _raw_nrrd(self) -> int:
        """Where the voxels of an uncompressed NRRD file begin, which ITK reads whole; else 0."""
        if Path(self.path).suffix.lower() != ".nrrd":
            return 0
        with open(self.path, "rb") as file:
            header, end, _ = file.read(_HEADER_BYTES).partition(b"\n\n")
        words = header.lower().splitlines()
        as_numpy = b"encoding: raw" in words and b"endian: little" in words
        if not end or not as_numpy or (self.components > 1 and b"kinds: vector" not in header):
            return 0
        # Anything that says more about where the data are makes the lengths differ.
        start = len(header) + len(end)
        length = math.prod(self.shape) * self.dtype.itemsize
        return start if Path(self.path).stat().st_size == start + length else 0

    def _streams(self) -> bool:
        """Whether ITK reads a region without reading the whole file."""
        suffix = Path(self.path).suffix.lower()
        if suffix in (".mha", ".mhd"):
            with open(self.path, "rb") as file:
                return b"compresseddata = true" not in file.read(_HEADER_BYTES).lower()
        # ITK 5.4 aborts the process where it reads a region of a NIfTI file of vectors.
        return suffix == ".nii" and self.components == 1


def open_itk(dataset: Dataset, selection: Selection) -> Image:
    """Open an image file that ITK reads.

    Direction and origin are kept. The formats carry no unit that can be relied on: numbers are
    kept as they are and count as micrometers unless the selection states another unit. TIFF has
    no spacing along z, so it must be stated.

    Parameters
    ----------
    dataset : Dataset
        The file.
    selection : Selection
        Channel, time, and what to believe instead of the metadata.

    Returns
    -------
    Image
        Lazy, with axes z, y, x.

    Raises
    ------
    InputError
        Where ITK cannot read the file or the selection does not fit.
    """
    name = str(dataset.location)
    reader = _reader(name)
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    if reader.GetPixelID() not in _TYPES or len(size) not in (2, 3, 4):
        voxels = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise InputError(
            f"images of real numbers on 2 or 3 axes (and time) are read; {name} holds {voxels} on "
            f"{len(size)} axes"
        )
    names = ("t", "z", "y", "x")[-len(size) :]
    shape = size[::-1]
    if components > 1:
        names, shape = (*names, "c"), (*shape, components)
    source = ItkFile(name, shape, _TYPES[reader.GetPixelID()], components)
    stated = None if name.lower().endswith((".tif", ".tiff")) else _grid(reader, selection)
    spacing = stated.spacing if stated else None
    selection.choose_level([spacing], selection.unit_of(None), name)
    return selection.image(source, names, stated, name)


def write_itk(path: str | os.PathLike[str], image: Image, *, overwrite: bool = False) -> None:
    """Write an image as a file that ITK, 3D Slicer and ANTs read.

    Parameters
    ----------
    path : path
        Ending in ``.nrrd``, ``.mha``, ``.nii`` or ``.nii.gz``; a path or a URL.
    image : Image
        Read into memory. Numbers of its grid are kept as they are.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputError
        Where nothing says what the image's axes are.
    ExistingOutputError
        Where the file exists.
    """
    if not image.grid.axes_stated:
        raise InputError(
            f"nothing says which axis of this image is x, so that {path} could be transposed: give "
            "its grid axes=('z', 'y', 'x') if its array is indexed so"
        )
    with claim_file(path, overwrite) as partial:
        sitk.WriteImage(to_itk_image(image.read(), image.grid), str(partial))


def _grid(reader: sitk.ImageFileReader, selection: Selection) -> Grid:
    size = reader.GetSize()
    n = min(len(size), 3)
    matrix = np.reshape(reader.GetDirection(), (len(size), len(size)))[:n, :n]
    flipped = matrix[::-1, ::-1] + 0.0  # + 0.0: NIfTI comes with negative zeros
    return Grid(
        shape=size[:n][::-1],
        spacing=reader.GetSpacing()[:n][::-1],
        origin=reader.GetOrigin()[:n][::-1],
        direction=tuple(map(tuple, flipped)),
        axes=("z", "y", "x")[-n:],
        unit=selection.unit_of(None),
    )


def _reader(path: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"ITK cannot read {path}: {error}") from error
    return reader


@lru_cache(maxsize=2)
def _whole(path: str, _modified: int, _size: int) -> NDArray[Any]:
    # Time and size are part of the key: a file that was written anew is read anew.
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(path)))
