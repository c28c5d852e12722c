"""Arrays whose slices become numpy arrays inside a task, whatever the images are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Image, LazyArray
from itkstream.geometry.lazy_array import DerivedArray, chunk_shape_of

__all__ = ["DaskSource", "inverted", "readable", "readable_source"]


@dataclass(frozen=True, eq=False)
class DaskSource(LazyArray):
    """A dask array that computes, inside the task that asks, only the part asked for.

    Its graph travels; its voxels do not.
    """

    array: da.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(self.array.dtype)

    @property
    def chunk_shape(self) -> tuple[tuple[int, ...], ...]:
        """Elements of every chunk, per axis."""
        return tuple(self.array.chunks)

    def transpose(self, *order: Any) -> DaskSource:
        """The array with its axes in another order; reads nothing."""
        return DaskSource(self.array.transpose(*order))

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, str(self.array.name))

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Compute a box."""
        # The caller may be a task of any scheduler: this part runs in its own thread.
        part = self.array[tuple(map(slice, start, stop))]
        return np.asarray(part.compute(scheduler="synchronous"))


def readable(image: Image) -> Image:
    """The same image, numpy, stored or dask, with data that a task can slice."""
    data = readable_source(image.data)
    return image if data is image.data else replace(image, data=data)


def readable_source(source: Any) -> Any:
    """The same array, numpy, stored or dask, as a task can slice it."""
    return DaskSource(source) if isinstance(source, da.Array) else source


@dataclass(frozen=True, eq=False)
class _Inverted(DerivedArray):
    """An array with dark for bright."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Negative numbers are none of most types of images."""
        return np.dtype(np.float32)

    @property
    def chunk_shape(self) -> tuple[Any, ...] | None:
        """Those of the source."""
        return chunk_shape_of(self.source)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box of the source, and turn its sign."""
        return -super().read(start, stop).astype(np.float32)


def inverted(image: Image) -> Image:
    """The same image with dark for bright, in memory where it is there; else nothing is read."""
    derived = _Inverted(readable_source(image.data))
    data = np.asarray(derived[...]) if isinstance(image.data, np.ndarray) else derived
    return Image(data, image.grid, image.name)
