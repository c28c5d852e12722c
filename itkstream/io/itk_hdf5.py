"""Displacement fields in ITK's HDF5 transforms, left on disk: ITK itself reads them whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.fingerprint import files_stamp
from itkstream.geometry import (
    CompositeTransform,
    DisplacementField,
    Transform,
)
from itkstream.io.itk_entries import affine_entry, bspline_entry, landmark_entry, lattice

__all__ = ["Hdf5Vectors", "open_hdf5_transform"]

_ROOT = "TransformGroup"


@dataclass(frozen=True)
class Hdf5Vectors:
    """A stored field, read with its components last and its axes in the wanted order.

    Parameters
    ----------
    path : str
        Absolute path of the file.
    name : str
        The data set in it: one axis, x fastest, components innermost.
    sizes : tuple of int
        Voxels along x, y (, z).
    order : tuple of int
        Which of these axes the array axes are.
    """

    path: str
    name: str
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis."""
        return (*(self.sizes[k] for k in self.order), len(self.order))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(np.float64)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        kept = (self.path, self.name, self.sizes, self.order)
        return (type(self).__name__, *map(str, kept), files_stamp(self.path))

    def __getitem__(self, key: Any) -> NDArray[np.float64]:
        n = len(self.order)
        cut = [slice(None)] * n
        for axis, part in zip(self.order, key[:n], strict=True):
            cut[axis] = part
        box = self._read([c.indices(size)[:2] for c, size in zip(cut, self.sizes, strict=True)])
        # From (..., y, x, component) to the wanted order.
        moved = box.transpose(*(n - 1 - k for k in self.order), n)[..., list(self.order)]
        return np.ascontiguousarray(moved[..., key[n] if len(key) > n else slice(None)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[(slice(None),) * len(self.shape)], dtype=dtype)

    def _read(self, spans: list[tuple[int, int]]) -> NDArray[np.float64]:
        """Planes of constant z: each is one run of numbers from its first row to its last."""
        n = len(spans)
        (x0, x1), (y0, y1) = spans[:2]
        planes = spans[2] if n == 3 else (0, 1)
        row = self.sizes[0] * n
        box = np.empty((planes[1] - planes[0], y1 - y0, x1 - x0, n))
        with h5py.File(self.path, "r") as file:
            values = file[self.name]
            for place, z in enumerate(range(*planes)):
                first = (z * self.sizes[1] + y0) * row
                rows = values[first : first + (y1 - y0) * row]
                box[place] = rows.reshape(y1 - y0, self.sizes[0], n)[:, x0:x1]
        return box if n == 3 else box[0]


def open_hdf5_transform(
    path: str | os.PathLike[str], axes: Sequence[str] | None = None
) -> Transform | None:
    """Open an HDF5 transform of fields, affines and splines without reading the fields.

    Parameters
    ----------
    path : path
        The file.
    axes : sequence of str, optional
        The wanted order of axes; default x first.

    Returns
    -------
    Transform or None
        None where the file holds anything else, or is damaged: ITK can tell.

    Raises
    ------
    InputError
        Where an affine is singular, or landmarks make no spline.
    """
    try:
        with h5py.File(path, "r") as file:
            groups = [file[_ROOT][str(k)] for k in range(len(file[_ROOT]))]
            steps = [_step(group, os.path.abspath(path), axes) for group in groups]
            # ITK applies the transform added last first; the composite's own group holds nothing.
            chain = [step for step in reversed(steps) if step is not None]
            whole = len(chain) == len(groups) - (len(groups) > 1)
    except InputError:
        raise
    except (OSError, KeyError, ValueError):
        return None
    if not chain or not whole:
        return None
    return chain[0] if len(chain) == 1 else CompositeTransform(tuple(chain))


def _step(group: h5py.Group, path: str, axes: Sequence[str] | None) -> Transform | None:
    kind = group["TransformType"][0].decode()
    name, _, variant = kind.partition("_")
    if name == "CompositeTransform":
        return None
    fixed, values = group["TransformFixedParameters"], group["TransformParameters"]
    if name == "AffineTransform":
        return affine_entry(values[:], fixed[:], axes)
    if name not in ("BSplineTransform", "DisplacementFieldTransform"):
        return landmark_entry(kind, values, fixed, axes)
    grid = lattice(fixed[:])
    if values.shape != (grid.size * grid.ndim,):
        numbers = grid.size * grid.ndim
        raise ValueError(f"{values.name} has {values.shape} numbers; {numbers} expected")
    if name == "BSplineTransform":
        # ``double_3_3``, and the order of the splines unless they are cubic.
        order = int(next(iter(variant.split("_")[3:]), 3))
        return bspline_entry(values[:], grid, order, axes)
    turn = grid.axis_order(axes or grid.axes)
    stored = Hdf5Vectors(path, values.name, grid.shape, turn)
    return DisplacementField(stored, grid.reorder(axes or grid.axes))
