"""Arrays that stay in their store until they are sliced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import ItkstreamError, UnreadableDataError
from itkstream.geometry import LazyArray
from itkstream.io.storage.locations import Location

__all__ = ["StoredArray", "tiles"]


@dataclass(frozen=True)
class StoredArray(LazyArray):
    """A lazy array in a store or file, at an absolute path or URL; an heir has `read`.

    It pickles as its path; every process opens the store for itself when it first reads.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Elements per axis of what is decoded together; None where any box costs its own size."""
        return None

    def files(self) -> tuple[str, ...]:
        """Return the files and folders that hold the elements."""
        return (self.path,)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # The same array read again after its store was written is another array.
        # What is in a draft is known by the place that it will have.
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {**own, "path": Location(self.path).settled}.values()
        prints = (Location(file).fingerprint() for file in self.files())
        return (type(self).__name__, *map(str, values), *prints)

    def _read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box; whatever a library raises over broken data says where they are."""
        try:
            return super()._read(start, stop)
        except (ItkstreamError, MemoryError):
            raise
        except Exception as error:
            spans = ", ".join(f"{a}:{b}" for a, b in zip(start, stop, strict=True))
            raise UnreadableDataError(
                f"{self.path} cannot be read at [{spans}]: {error}. The file is cut short, corrupt "
                "or on a broken disk: restore it from its source"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        # Open stores are cached on the instance and stay in their own process.
        return {field.name: getattr(self, field.name) for field in fields(self)}


def tiles(shape: Sequence[int], size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Cut an array into boxes at multiples of a size, in index order, smaller at the ends."""
    per_axis = (
        [slice(a, min(a + step, n)) for a in range(0, n, step)]
        for n, step in zip(shape, size, strict=True)
    )
    return product(*per_axis)
