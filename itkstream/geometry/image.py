"""An image: an array, in memory or not, and the grid its voxels lie on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry.grid import Grid, Slices

__all__ = ["ArraySource", "ArrayView", "Image", "stored_together", "transposed"]


@runtime_checkable
class ArraySource(Protocol):
    """What an image needs of its data: a shape, a type, and slicing.

    numpy arrays, zarr arrays, dask arrays and the readers of `itkstream.io` all fit.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    def __getitem__(self, key: Any, /) -> Any:
        """A part of the array; what comes may be lazy, and becomes numpy by ``np.asarray``."""


@dataclass(frozen=True)
class ArrayView:
    """A lazy window on a stored array: some axes fixed at an index, the others cut and reordered.

    Nothing is read before it is sliced; only the part asked for is read then. Pickles when its
    source does.

    Parameters
    ----------
    source : ArraySource
        The stored array.
    picks : tuple of (int or slice)
        One per source axis: an index drops the axis (a channel, a time point), a slice keeps it.
    order : tuple of int
        Which of the kept axes, counted in source order, becomes each axis of the view.
    """

    source: ArraySource
    picks: tuple[int | slice, ...]
    order: tuple[int, ...]

    @classmethod
    def whole(cls, source: ArraySource) -> ArrayView:
        """A view of all of `source`.

        Parameters
        ----------
        source : ArraySource
            The stored array.

        Returns
        -------
        ArrayView
            With the source's shape and axis order.
        """
        shape = source.shape
        return cls(source, tuple(slice(0, n) for n in shape), tuple(range(len(shape))))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis of the view."""
        kept = [p for p in self.picks if isinstance(p, slice)]
        return tuple(kept[k].stop - kept[k].start for k in self.order)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(self.source.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes of the view."""
        return len(self.order)

    @property
    def together(self) -> tuple[int, ...] | None:
        """Voxels per axis that are decoded together; None where the source does not know."""
        sizes = stored_together(self.source)
        if sizes is None:
            return None
        kept = [n for n, p in zip(sizes, self.picks, strict=True) if isinstance(p, slice)]
        return tuple(kept[k] for k in self.order)

    def __getitem__(self, key: Slices) -> NDArray[Any]:
        part = self.crop(key)
        return np.asarray(part.source[part.picks]).transpose(part.order)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[(slice(None),) * self.ndim], dtype=dtype)

    def crop(self, slices: Slices) -> ArrayView:
        """A smaller window; reads nothing.

        Parameters
        ----------
        slices : tuple of slice
            One per axis of the view, step 1.

        Returns
        -------
        ArrayView
            The part of this view inside `slices`.
        """
        kept = [axis for axis, pick in enumerate(self.picks) if isinstance(pick, slice)]
        picks = list(self.picks)
        for view_axis, cut in enumerate(slices):
            axis = kept[self.order[view_axis]]
            base = picks[axis]
            assert isinstance(base, slice)
            start, stop, _ = cut.indices(base.stop - base.start)
            picks[axis] = slice(base.start + start, base.start + max(start, stop))
        return ArrayView(self.source, tuple(picks), self.order)

    def transpose(self, order: Sequence[int]) -> ArrayView:
        """The view with its axes in another order; reads nothing.

        Parameters
        ----------
        order : sequence of int
            Axis ``order[k]`` becomes axis k.

        Returns
        -------
        ArrayView
            The reordered view.
        """
        return ArrayView(self.source, self.picks, tuple(self.order[k] for k in order))


@dataclass(frozen=True)
class Image:
    """Voxels and where they lie.

    Parameters
    ----------
    data : ArraySource
        numpy, dask or stored array of 2 or 3 axes; never read before it is asked for.
    grid : Grid
        Its lattice; the shapes must agree.
    name : str
        How messages call the image; a path, say.

    Raises
    ------
    InputError
        Where the shapes of data and grid differ.
    """

    data: Any
    grid: Grid
    name: str = ""

    def __post_init__(self) -> None:
        if tuple(self.data.shape) != self.grid.shape:
            raise InputError(
                f"data of shape {tuple(self.data.shape)} do not fit a grid of shape "
                f"{self.grid.shape}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.grid.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.grid.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type."""
        return np.dtype(self.data.dtype)

    @property
    def together(self) -> tuple[int, ...] | None:
        """Voxels per axis that are decoded, or computed, together; None for those in memory."""
        return stored_together(self.data)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel spacing per axis, in the grid's unit."""
        return self.grid.spacing

    def __getitem__(self, slices: Slices) -> Image:
        """The part of the image inside `slices`, one per axis; lazy where the data are."""
        whole = tuple(slice(*s.indices(n)) for s, n in zip(slices, self.shape, strict=True))
        cut = self.data.crop(whole) if isinstance(self.data, ArrayView) else self.data[whole]
        return Image(cut, self.grid.crop(whole), self.name)

    def read(self) -> NDArray[Any]:
        """Load the voxels.

        Returns
        -------
        ndarray
            The whole image in memory.
        """
        return np.asarray(self.data)

    def reorder(self, axes: Sequence[str]) -> Image:
        """The image with its array axes in another order; reads nothing.

        Parameters
        ----------
        axes : sequence of str
            The wanted order of the axis names.

        Returns
        -------
        Image
            Data and grid reordered together.
        """
        if tuple(axes) == self.grid.axes:
            return self
        order = self.grid.axis_order(axes)
        return Image(transposed(self.data, order), self.grid.reorder(axes), self.name)

    def in_unit(self, unit: str) -> Image:
        """The image with its lengths in another unit.

        Parameters
        ----------
        unit : str
            A length unit, see `Grid`.

        Returns
        -------
        Image
            The same data on the converted grid.
        """
        return Image(self.data, self.grid.in_unit(unit), self.name)


def transposed(data: Any, order: Sequence[int]) -> Any:
    """An array with its axes in another order; reads nothing.

    Parameters
    ----------
    data : ArraySource
        numpy, dask or stored; Zarr's own arrays cannot transpose, so they are wrapped.
    order : sequence of int
        Axis ``order[k]`` becomes axis k.

    Returns
    -------
    ArraySource
        Lazy where the array is.
    """
    view = data if hasattr(data, "transpose") else ArrayView.whole(data)
    return view.transpose(tuple(order))


def stored_together(data: Any) -> tuple[int, ...] | None:
    """The chunks of an array.

    Parameters
    ----------
    data : ArraySource
        numpy, dask or stored.

    Returns
    -------
    tuple of int or None
        Elements per axis; None where they are all in memory or the source does not know.
    """
    # A view has no chunks, which would be kept beside its source's, but knows of these.
    chunks = getattr(data, "together", None) or getattr(data, "chunks", None)
    if not chunks:
        return None
    # dask tells the length of every chunk.
    return tuple(n[0] if isinstance(n, tuple) else int(n) for n in chunks)
