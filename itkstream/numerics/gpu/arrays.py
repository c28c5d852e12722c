"""Arrays of the two engines: those of numpy, and those of a device."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from itkstream.numerics.gpu.backend import Backend

__all__ = ["Array", "Arrays", "DeviceArrays", "HostArrays"]

Array: TypeAlias = Any
"""An array of an engine: numpy's, or one that takes the same arithmetic."""


class Arrays(Protocol):
    """Access to the arrays of an engine; its operations stand beside that."""

    @property
    def xp(self) -> Any:
        """The namespace of the engine's arrays, as numpy."""

    def put(self, array: NDArray[Any]) -> Array:
        """An array of the engine with these values."""

    def send(self, array: NDArray[Any], dtype: DTypeLike) -> Array:
        """A contiguous array of the engine with these values, in a type that it computes with."""

    def get(self, array: Array) -> NDArray[Any]:
        """The values of an array of the engine."""


class HostArrays:
    """Arrays of numpy, in the memory of the processors."""

    xp = np

    def put(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array itself."""
        return array

    def send(self, array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        """The array itself, where it is contiguous and of that type."""
        return np.ascontiguousarray(array, dtype)

    def get(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array itself."""
        return array


class DeviceArrays:
    """Arrays on a device."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.xp = backend.xp

    def put(self, array: NDArray[Any]) -> Array:
        """Send an array to the device."""
        return self.backend.put(array)

    def send(self, array: NDArray[Any], dtype: DTypeLike) -> Array:
        """Send an array to the device, as the narrower of its own type and the wanted one."""
        wanted = np.dtype(dtype)
        native = array.dtype.newbyteorder("=")
        narrow = wanted if native.itemsize > wanted.itemsize else native
        return self.backend.put(array.astype(narrow, copy=False)).astype(wanted, copy=False)

    def get(self, array: Array) -> NDArray[Any]:
        """Fetch an array from the device."""
        return self.backend.get(array)
