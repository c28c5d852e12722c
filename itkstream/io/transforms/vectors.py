"""Displacement fields in files: read in any order of axes, walked slab by slab.

A file holds the vectors of ITK's formats x fastest, components innermost, x first.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import DisplacementField, Grid, LazyArray, Slices, array_axes, default_axes

__all__ = ["OrderedVectors", "as_in_files", "slabs", "wanted_axes"]


class OrderedVectors(LazyArray):
    """Vectors that stay in their file, with axes and components in the wanted order.

    A subclass is a frozen dataclass that says how one file is read, and has the attribute
    `order`: which of the stored axes, and of the components, the wanted ones are.
    """

    order: tuple[int, ...]

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    @abstractmethod
    def stored_shape(self) -> tuple[int, ...]:
        """Vectors per stored axis.

        Returns
        -------
        tuple of int
            Without the components.
        """

    @abstractmethod
    def read_box(self, box: Slices) -> NDArray[Any]:
        """Read some of the vectors.

        Parameters
        ----------
        box : tuple of slice
            Of the stored axes, in their order; with start and stop, without step.

        Returns
        -------
        ndarray, box + (n,)
            Axes and components as stored, components last.
        """

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis, components last."""
        sizes = self.stored_shape()
        return (*(sizes[k] for k in self.order), len(self.order))

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box of vectors, of which only some components may be wanted.

        Parameters
        ----------
        start, stop : tuple of int
            First element, and one past the last, per axis, components last.

        Returns
        -------
        ndarray, stop - start
            The vectors.
        """
        n = len(self.order)
        cut = [slice(None)] * n
        for axis, *ends in zip(self.order, start[:n], stop[:n], strict=True):
            cut[axis] = slice(*ends)
        wanted = list(self.order[start[n] : stop[n]])
        moved = self.read_box(tuple(cut)).transpose(*self.order, n)
        return np.ascontiguousarray(moved[..., wanted])


def slabs(field: DisplacementField, numbers: int) -> Iterator[Slices]:
    """Cut a field into slabs across the axis that is slowest in files: runs of the disk.

    Parameters
    ----------
    field : DisplacementField
        Of any order of axes.
    numbers : int
        So many, components counted, or one plane if that is more, make a slab.

    Yields
    ------
    tuple of slice
        The next slab, in the field's order of axes, without its components.
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
    """Vectors with axes and components as ITK's formats have them.

    Parameters
    ----------
    vectors : ndarray, shape + (n,)
        With the axes of the grid.
    grid : Grid
        Whose axes count, whatever its shape.

    Returns
    -------
    ndarray, (z,) y, x, component
        A view or a copy; components x first.
    """
    order = grid.axis_order(default_axes(grid.ndim))
    return vectors.transpose(*reversed(order), grid.ndim)[..., list(order)]


def wanted_axes(
    path: str | os.PathLike[str], ndim: int, axes: Sequence[str] | None
) -> tuple[str, ...]:
    """The order of axes in which a transform is wanted.

    Parameters
    ----------
    path : path
        Where the transform is, for the message.
    ndim : int
        Its dimensions.
    axes : sequence of str, optional
        What was asked for; default z, y, x.

    Returns
    -------
    tuple of str
        As many as there are dimensions.

    Raises
    ------
    InputError
        Where these are other axes than x, y (, z).
    """
    known = array_axes(ndim)
    wanted = tuple(axes or known)
    if sorted(wanted) != sorted(known):
        raise InputError(
            f"{path} holds a {ndim}-D transform; it cannot have the axes {wanted}: give "
            f"{', '.join(known)}, in any order"
        )
    return wanted
