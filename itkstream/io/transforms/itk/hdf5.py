"""ITK's HDF5 transforms, whose fields stay on disk: ITK itself reads and writes them whole.

Displacement fields are written slab by slab and read box by box, so that memory does not grow with
them. ITK, 3D Slicer and ANTs read what is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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
from itkstream.io.transforms.itk.entries import Entry, is_composite, transform_of
from itkstream.io.transforms.itk.text import CANNOT_READ
from itkstream.io.transforms.vectors import OrderedVectors, as_in_files, slabs

__all__ = ["HDF5_ENDINGS", "Hdf5Vectors", "open_hdf5_transform", "write_hdf5_transform"]

HDF5_ENDINGS = (".h5", ".hdf5")
"""Names of the files that hold transforms as HDF5."""

_ROOT = "TransformGroup"
_PARAMETERS, _FIXED = "TransformParameters", "TransformFixedParameters"
# One chunk: 64 Ki doubles, 512 KiB, as ITK's own writers have it.
_CHUNK = 65536
# Chunks that are written together.
_TOGETHER = 16
# The order of B-splines that ITK does not write down.
_CUBIC = 3


@dataclass(frozen=True)
class Hdf5Vectors(OrderedVectors):
    """The vectors of a field in an HDF5 transform, whose stored axes are x, y (, z).

    Parameters
    ----------
    path : str
        Absolute path of the file.
    name : str
        The data set in it: one axis, x fastest, components innermost.
    sizes : tuple of int
        Vectors along x, y (, z).
    order : tuple of int
        Which of these axes, and of the components, the wanted ones are.
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
        """Vectors per stored axis.

        Returns
        -------
        tuple of int
            Along x, y (, z).
        """
        return self.sizes

    def read_box(self, box: Slices) -> NDArray[np.float64]:
        """Read some of the vectors, plane by plane of constant z.

        Parameters
        ----------
        box : tuple of slice
            Along x, y (, z).

        Returns
        -------
        ndarray, box + (n,)
            Components x first.

        Raises
        ------
        UnreadableDataError
            Where the file is damaged.
        """
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


def open_hdf5_transform(path: Path, axes: Sequence[str] | None = None) -> Transform:
    """Open an HDF5 transform without reading its fields.

    Parameters
    ----------
    path : Path
        The file.
    axes : sequence of str, optional
        The wanted order of axes; default x first.

    Returns
    -------
    Transform
        Everything the file holds.

    Raises
    ------
    InputError
        Where the file is damaged, no transform of ITK's, or holds a kind that is not read.
    """
    try:
        with h5py.File(path, "r") as file:
            groups = file[_ROOT]
            if sorted(groups) != sorted(str(k) for k in range(len(groups))):
                raise InputError(f"its transforms are called {sorted(groups)}, not 0, 1, ...")
            entries = [_entry(groups[str(k)], path) for k in range(len(groups))]
            if not entries:
                raise InputError(CANNOT_READ)
            return transform_of(entries, axes)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(CANNOT_READ) from error


@dataclass(frozen=True, eq=False)
class _StoredEntry(Entry):
    """A displacement field whose numbers stay in the file: `parameters` is a data set of it."""

    path: str

    def vectors(self, grid: Grid, order: tuple[int, ...]) -> Hdf5Vectors:
        return Hdf5Vectors(self.path, self.parameters.name, grid.shape, order)


def _entry(group: h5py.Group, path: Path) -> Entry:
    kind = group["TransformType"][0]
    kind = kind.decode("latin-1") if isinstance(kind, bytes) else str(kind)
    if is_composite(kind):
        return Entry(kind, np.empty(0), np.empty(0))
    values, fixed = (_numbers(group, name) for name in (_PARAMETERS, _FIXED))
    if "DisplacementField" in kind:
        return _StoredEntry(kind, values, fixed[...].astype(np.float64), os.path.abspath(path))
    return Entry(kind, values[...].astype(np.float64), fixed[...].astype(np.float64))


def _numbers(group: h5py.Group, name: str) -> h5py.Dataset:
    # ITK 4 misspelt the names.
    found = group[name] if name in group else group[name.replace("Transform", "Tranform")]
    if not isinstance(found, h5py.Dataset) or found.ndim != 1 or found.dtype.kind not in "fiu":
        raise InputError(f"{found.name} is no list of numbers")
    return found


def write_hdf5_transform(path: Path, steps: Sequence[Transform], axes: Sequence[str]) -> None:
    """Write affines, displacement fields and B-splines, one after the other.

    Parameters
    ----------
    path : Path
        Ending in ``.h5``; replaced if it is there.
    steps : sequence of Transform
        At least one; the first acts first. Fields may be stored and larger than memory.
    axes : sequence of str
        The axis order of all points, fields and B-splines.

    Raises
    ------
    InputError
        For a kind of transform ITK has no counterpart of.
    """
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
    length = field.grid.size * field.ndim
    values = entry.create_dataset(
        _PARAMETERS,
        (length,),
        np.float64,
        chunks=(min(_CHUNK, length),),
        compression="gzip",
        compression_opts=1,
    )
    start = 0
    for box in slabs(field, _CHUNK * _TOGETHER):
        part = np.asarray(field.data[(*box, slice(None))], np.float64)
        values[start : start + part.size] = as_in_files(part, field.grid).ravel()
        start += part.size
