"""Displacement fields in files: read in any order of axes, walked slab by slab.

A file holds the vectors of ITK's formats x fastest, components innermost, x first.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import DisplacementField, Grid, LazyArray, Slices, array_axes, default_axes

__all__ = ["NameAxes", "OrderedVectors", "as_in_files", "slabs", "wanted_axes"]

NameAxes = Callable[[int], tuple[str, ...]]
"""Names the axes of the points that are wanted, once the number of dimensions is known."""


class OrderedVectors(LazyArray):
    """Vectors that stay in their file, with axes and components in the wanted order.

    A subclass is a frozen dataclass that reads one kind of file. Its `order` says which of the
    stored axes, and of the components, the wanted ones are.
    """

    order: tuple[int, ...]

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    @abstractmethod
    def stored_shape(self) -> tuple[int, ...]:
        """Vectors per stored axis, without the components."""

    @abstractmethod
    def read_box(self, box: Slices) -> NDArray[Any]:
        """Read the vectors in a box of the stored axes: box + (n,), components as stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis, components last."""
        sizes = self.stored_shape()
        return (*(sizes[k] for k in self.order), len(self.order))

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box of vectors, of which only some components may be wanted."""
        n = len(self.order)
        cut = [slice(None)] * n
        for axis, *ends in zip(self.order, start[:n], stop[:n], strict=True):
            cut[axis] = slice(*ends)
        wanted = list(self.order[start[n] : stop[n]])
        moved = self.read_box(tuple(cut)).transpose(*self.order, n)
        return np.ascontiguousarray(moved[..., wanted])


def slabs(field: DisplacementField, numbers: int) -> Iterator[Slices]:
    """Cut a field into slabs across the axis that is slowest in files: runs of the disk.

    A slab has that many numbers, components counted, or one plane if that is more.
    """
    grid = field.grid
    slowest = grid.axis_order(default_axes(grid.ndim))[-1]
    planes = grid.shape[slowest]
    step = max(1, numbers * planes // (grid.size * grid.ndim))
    for start in range(0, planes, step):
        box = [slice(0, n) for n in grid.shape]
        box[slowest] = slice(start, min(planes, start + step))
        yield tuple(box)


def as_in_files(vectors: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Vectors with axes and components as ITK's formats have them: (z,) y, x, component x first.

    The axes of `grid` count, not its shape; a view or a copy.
    """
    order = grid.axis_order(default_axes(grid.ndim))
    return vectors.transpose(*reversed(order), grid.ndim)[..., list(order)]


def wanted_axes(
    path: str | os.PathLike[str], ndim: int, axes: Sequence[str] | None
) -> tuple[str, ...]:
    """The order of axes in which the transform at `path` is wanted, checked; default z, y, x."""
    known = array_axes(ndim)
    wanted = tuple(axes or known)
    if sorted(wanted) != sorted(known):
        raise InputError(
            f"{path} holds a {ndim}-D transform; it cannot have the axes {wanted}: give "
            f"{', '.join(known)}, in any order"
        )
    return wanted
