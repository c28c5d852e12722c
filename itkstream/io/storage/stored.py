"""Arrays that stay in their store until they are sliced, and the chunks of them that are kept.

A block rarely begins and ends where chunks do: what it reads of a moving image or of a field
touches up to eight chunks of its own size, and decoding all of them for every block takes as long
as all else. A process keeps those it decoded last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from itertools import product
from threading import Lock, get_ident
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import ItkstreamError, UnreadableDataError
from itkstream.geometry import ArraySource, LazyArray
from itkstream.io.storage.locations import Location

__all__ = ["KEPT_BYTES", "KeptChunks", "StoredArray", "keeping_chunks", "kept_times", "tiles"]

KEPT_BYTES = 128_000_000
"""At most, of each array, by a process of up to four threads: 30 chunks of 128³ uint16 voxels."""

# Blocks are walked in columns of two by two. Where one block touches eight chunks of its size, a
# layer of four touches nine in each of two layers of chunks.
_COLUMN = 4
_MORE = 9 / 8

# Chunks of an object store that are fetched at a time.
_FETCHED = 8


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


@dataclass(eq=False)
class _Slot:
    """A chunk that is read once, by whoever asks first."""

    lock: Lock = field(default_factory=Lock)
    values: NDArray[Any] | None = None


@dataclass(eq=False)
class _Recent:
    """The chunks asked for last: as many as the blocks at work and the next ones share."""

    most: int
    room: int = 0
    lock: Lock = field(default_factory=Lock)
    slots: dict[tuple[int, ...], _Slot] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)

    def widen(self, touched: int) -> bool:
        """Make room for boxes of so many chunks; False where that is too much."""
        with self.lock:
            self.threads.add(get_ident())
            times = kept_times(len(self.threads))
            room = math.ceil(times * min(self.most, 2 * _MORE * touched))
            self.room = max(self.room, room)
        return touched <= self.most

    def slot(self, index: tuple[int, ...]) -> _Slot:
        with self.lock:
            # The last of a dict is what was put into it last.
            slot = self.slots.pop(index) if index in self.slots else _Slot()
            self.slots[index] = slot
            while len(self.slots) > self.room:
                del self.slots[next(iter(self.slots))]
            return slot


@dataclass(frozen=True, eq=False)
class KeptChunks(StoredArray):
    """A stored array that keeps the chunks it decoded last; it pickles without them.

    For one computation: what is written to the array meanwhile may not be seen. An array that is
    `far`, in an object store, has several chunks fetched at a time.
    """

    source: ArraySource
    chunk: tuple[int, ...]
    far: bool = False

    @classmethod
    def of(cls, source: ArraySource, chunks: tuple[int, ...]) -> KeptChunks:
        """Wrap a `StoredArray` or an open Zarr array with its chunks; read nothing."""
        place = Location.of_store(getattr(source, "store", None))
        if isinstance(source, StoredArray):
            place = Location(source.path)
        far = place is not None and not place.is_local
        shape = tuple(source.shape)
        return cls(str(place or source), shape, np.dtype(source.dtype), source, chunks, far)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box."""
        spans = zip(start, stop, self.chunk, strict=True)
        touched = list(product(*(range(a // c, -(-b // c)) for a, b, c in spans)))
        if self._is_whole(start, stop) or not self._recent.widen(len(touched)):
            return self._direct(start, stop)
        self._fetch(touched)
        box = np.empty(tuple(b - a for a, b in zip(start, stop, strict=True)), self.dtype)
        for index in touched:
            first = [i * c for i, c in zip(index, self.chunk, strict=True)]
            chunk = self._chunk(index)
            ends = zip(start, stop, first, chunk.shape, strict=True)
            common = [(max(a, f), min(b, f + n)) for a, b, f, n in ends]
            into = tuple(slice(p - a, q - a) for (p, q), a in zip(common, start, strict=True))
            out_of = tuple(slice(p - f, q - f) for (p, q), f in zip(common, first, strict=True))
            box[into] = chunk[out_of]
        return box

    @cached_property
    def _recent(self) -> _Recent:
        return _Recent(KEPT_BYTES // (math.prod(self.chunk) * self.dtype.itemsize))

    def _is_whole(self, start: Sequence[int], stop: Sequence[int]) -> bool:
        """Whether the box begins and ends with chunks, and so shares none with the next."""
        spans = zip(start, stop, self.chunk, self.shape, strict=True)
        return all(a % c == 0 and (b % c == 0 or b == n) for a, b, c, n in spans)

    def _chunk(self, index: tuple[int, ...]) -> NDArray[Any]:
        slot = self._recent.slot(index)
        with slot.lock:
            if slot.values is None:
                start = tuple(i * c for i, c in zip(index, self.chunk, strict=True))
                ends = zip(start, self.chunk, self.shape, strict=True)
                slot.values = self._direct(start, tuple(min(a + c, n) for a, c, n in ends))
            return slot.values

    def _fetch(self, touched: Iterable[tuple[int, ...]]) -> None:
        """Fetch several chunks at a time of what is far away."""
        if not self.far:
            return
        with ThreadPoolExecutor(_FETCHED) as pool:
            list(pool.map(self._chunk, touched))

    def _direct(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.asarray(self.source[box])


def keeping_chunks(value: Any) -> Any:
    """Wrap all stored arrays in an argument; return the same object where it holds none."""
    if isinstance(value, dict):
        kept = {key: keeping_chunks(inner) for key, inner in value.items()}
        return value if all(kept[key] is value[key] for key in value) else kept
    if type(value) in (tuple, list):
        inside = type(value)(map(keeping_chunks, value))
        same = all(a is b for a, b in zip(inside, value, strict=True))
        return value if same else inside
    if isinstance(value, KeptChunks):
        return value
    chunks = getattr(value, "chunks", None)
    if isinstance(value, ArraySource) and _is_regular(chunks):
        return KeptChunks.of(value, chunks)
    if isinstance(value, (StoredArray, type)) or not is_dataclass(value):
        return value
    before = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
    after = {name: keeping_chunks(inner) for name, inner in before.items()}
    changed = {name: inner for name, inner in after.items() if inner is not before[name]}
    return replace(value, **changed) if changed else value  # type: ignore[type-var]


def kept_times(threads: int) -> float:
    """Multiple of `KEPT_BYTES` that a process with so many threads may keep of an array."""
    return (1 + max(1.0, threads / _COLUMN)) / 2


def _is_regular(chunks: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether chunks are one length per axis, as stores have; dask has a length per chunk."""
    return isinstance(chunks, tuple) and all(isinstance(n, int) for n in chunks)
