"""ITK's HDF5 transforms, whose fields stay on disk: ITK itself reads and writes them whole.

Displacement fields are written slab by slab and read box by box, so that memory does not grow with
them. ITK, 3D Slicer and ANTs read what is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, UnreadableDataError
from itkstream.geometry import (
    BSplineTransform,
    DisplacementField,
    Grid,
    Slices,
    Transform,
    default_axes,
)
from itkstream.geometry.itk_bridge import to_itk_transform
from itkstream.io.storage.disk import files_stamp
from itkstream.io.transforms.itk.parameters import Entry, is_composite
from itkstream.io.transforms.itk.small_files import CANNOT_READ
from itkstream.io.transforms.vectors import OrderedVectors, as_in_files, slabs

__all__ = ["HDF5_ENDINGS", "Hdf5Vectors", "read_hdf5_entries", "write_hdf5_transform"]

HDF5_ENDINGS = (".h5", ".hdf5")
"""Names of the files that hold transforms as HDF5."""

_ROOT = "TransformGroup"
_PARAMETERS, _FIXED = "TransformParameters", "TransformFixedParameters"
# One chunk: 64 Ki doubles, 512 KiB, as ITK's own writers have it.
_CHUNK = 65536
# Chunks that are written at a time.
_CHUNKS_AT_ONCE = 16
# How hard they are compressed: more takes longer and saves little of a field.
_LEVEL = 1
# The order of B-splines that ITK does not write down.
_CUBIC = 3


@dataclass(frozen=True)
class Hdf5Vectors(OrderedVectors):
    """The vectors of a field in an HDF5 transform, whose stored axes are x, y (, z).

    `name` is a data set with one axis, x fastest and components innermost; `sizes` are vectors
    along x, y (, z).
    """

    path: str
    name: str
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(np.float64)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        kept = (self.path, self.name, self.sizes, self.order)
        return (type(self).__name__, *map(str, kept), files_stamp(self.path))

    def stored_shape(self) -> tuple[int, ...]:
        """Vectors along x, y (, z)."""
        return self.sizes

    def read_box(self, box: Slices) -> NDArray[np.float64]:
        """Read some of the vectors, components x first, plane by plane of constant z."""
        try:
            return self._planes(box)
        except (OSError, KeyError, RuntimeError) as error:
            raise UnreadableDataError(
                f"{self.path} cannot be read at {self.name}: it is damaged ({error})"
            ) from error

    def _planes(self, box: Slices) -> NDArray[np.float64]:
        n = len(box)
        along_x, y0, y1 = box[0], box[1].start, box[1].stop
        planes = range(box[2].start, box[2].stop) if n == 3 else range(1)
        row = self.sizes[0] * n
        found = np.empty((len(planes), y1 - y0, along_x.stop - along_x.start, n))
        with h5py.File(self.path, "r") as file:
            values = file[self.name]
            for place, z in enumerate(planes):
                # A plane is one run of numbers from its first row to its last.
                first = (z * self.sizes[1] + y0) * row
                rows = values[first : first + (y1 - y0) * row]
                found[place] = rows.reshape(y1 - y0, self.sizes[0], n)[:, along_x]
        vectors = found if n == 3 else found[0]
        return vectors.transpose(*reversed(range(n)), n)


def read_hdf5_entries(path: Path) -> list[Entry]:
    """Read the entries of an HDF5 transform; the vectors of fields stay there."""
    try:
        with h5py.File(path, "r") as file:
            groups = file[_ROOT]
            if sorted(groups) != sorted(str(k) for k in range(len(groups))):
                raise InputError(f"its transforms are called {sorted(groups)}, not 0, 1, ...")
            entries = [_entry(groups[str(k)], path) for k in range(len(groups))]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(CANNOT_READ) from error
    if not entries:
        raise InputError(CANNOT_READ)
    return entries


@dataclass(frozen=True, eq=False)
class _StoredEntry(Entry):
    """A displacement field whose parameters stay in the file, in a data set."""

    path: str
    name: str
    stored: int

    @property
    def count(self) -> int:
        return self.stored

    def vectors(self, grid: Grid, order: tuple[int, ...]) -> Hdf5Vectors:
        return Hdf5Vectors(self.path, self.name, grid.shape, order)


def _entry(group: h5py.Group, path: Path) -> Entry:
    kind = group["TransformType"][0]
    kind = kind.decode("latin-1") if isinstance(kind, bytes) else str(kind)
    if is_composite(kind):
        return Entry(kind, np.empty(0), np.empty(0))
    values, fixed = (_numbers(group, name) for name in (_PARAMETERS, _FIXED))
    if "DisplacementField" in kind:
        place = os.path.abspath(path), values.name, len(values)
        return _StoredEntry(kind, np.empty(0), fixed[...].astype(np.float64), *place)
    return Entry(kind, values[...].astype(np.float64), fixed[...].astype(np.float64))


def _numbers(group: h5py.Group, name: str) -> h5py.Dataset:
    # ITK 4 misspelt the names.
    found = group[name] if name in group else group[name.replace("Transform", "Tranform")]
    if not isinstance(found, h5py.Dataset) or found.ndim != 1 or found.dtype.kind not in "fiu":
        raise InputError(f"{found.name} is no list of numbers")
    return found


def write_hdf5_transform(path: Path, steps: Sequence[Transform], axes: Sequence[str]) -> None:
    """Write affines, fields and B-splines of points with these axes; the first acts first."""
    with h5py.File(path, "w") as file:
        groups = file.create_group(_ROOT)
        if len(steps) > 1:
            _add(groups, "CompositeTransform", len(axes))
        # ITK applies the transform added last first.
        for step in reversed(steps):
            if isinstance(step, DisplacementField):
                entry = _add(groups, "DisplacementFieldTransform", len(axes))
                entry[_FIXED] = _geometry(step.grid)
                _stream(entry, step)
                continue
            itk = to_itk_transform(step, axes)
            order = step.order if isinstance(step, BSplineTransform) else _CUBIC
            entry = _add(groups, itk.GetName(), len(axes), "" if order == _CUBIC else f"_{order}")
            entry[_FIXED] = np.array(itk.GetFixedParameters())
            entry[_PARAMETERS] = np.array(itk.GetParameters())


def _add(groups: h5py.Group, name: str, ndim: int, variant: str = "") -> h5py.Group:
    entry = groups.create_group(str(len(groups)))
    text = h5py.string_dtype("ascii")
    kind = f"{name}_double_{ndim}_{ndim}{variant}"
    entry.create_dataset("TransformType", data=np.array([kind], dtype=object), dtype=text)
    return entry


def _geometry(grid: Grid) -> NDArray[np.float64]:
    """ITK's fixed parameters of a field: size, origin, spacing, direction, x first."""
    itk = grid.reorder(default_axes(grid.ndim))
    return np.array([*itk.shape, *itk.origin, *itk.spacing, *np.ravel(itk.direction)], float)


def _stream(entry: h5py.Group, field: DisplacementField) -> None:
    import imagecodecs

    length = field.grid.size * field.ndim
    values = entry.create_dataset(
        _PARAMETERS,
        (length,),
        np.float64,
        chunks=(min(_CHUNK, length),),
        compression="gzip",
        compression_opts=_LEVEL,
    )
    (chunk,) = values.chunks
    for number, part in enumerate(_in_chunks(field, chunk)):
        # By libdeflate and not by HDF5's zlib: 7 million numbers take 0.35 instead of 1.25 s, and
        # less room.
        packed = imagecodecs.deflate_encode(part.tobytes(), _LEVEL)
        values.id.write_direct_chunk((number * chunk,), packed)


def _in_chunks(field: DisplacementField, chunk: int) -> Iterator[NDArray[np.float64]]:
    """Yield the numbers of a field, so many at a time; zeros follow the last ones."""
    left = np.empty(0)
    for box in slabs(field, chunk * _CHUNKS_AT_ONCE):
        part = np.asarray(field.data[(*box, slice(None))], np.float64)
        left = np.concatenate([left, as_in_files(part, field.grid).ravel()])
        whole = len(left) // chunk * chunk
        yield from left[:whole].reshape(-1, chunk)
        left = left[whole:]
    if left.size:
        yield np.pad(left, (0, chunk - left.size))
