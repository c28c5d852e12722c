"""Chunks of an output array as files: written whole, and known again by their checksums."""

from __future__ import annotations

import errno
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore, WrapperStore

from itkstream.errors import BusyOutputError, InputError, MissingDataError, OutputError
from itkstream.io.storage.disk import LEDGER_FOLDER
from itkstream.io.storage.locations import Location

__all__ = ["ChunkFiles", "Region", "Sums", "location_of", "remove_partial_files", "writing_to"]

Region = tuple[slice, ...]
Sums = list[str | None]
"""Size and checksum of each file of a block; None where it holds fill values and is left out."""


@dataclass(frozen=True)
class ChunkFiles:
    """The files of a Zarr array, for writers of whole chunks (or shards); it pickles as its
    address."""

    location: Location

    @cached_property
    def _stored(self) -> dict[str, str | None]:
        """Checksums by name of what was stored (None: left out), until `write` fetches them."""
        return {}

    @cached_property
    def array(self) -> zarr.Array[Any]:
        """The array of this process."""
        place = self.location.store()
        store = LocalStore(place) if isinstance(place, str) else place
        return zarr.open_array(_Recording(store, self._stored), mode="r+")

    def write(self, region: Region, block: NDArray[Any]) -> Sums:
        """Write a block that owns its chunks (or shards); return its files' checksums."""
        names = self.names(region)
        with writing_to(self.location):
            self.array[region] = block
        return [self._stored.pop(name) for name in names]

    def found(self, region: Region) -> Sums:
        """Compute the checksums of the files of a block as they are; None for a missing file."""
        return [self._sum_of(name) for name in self.names(region)]

    def remove(self, region: Region) -> None:
        """Remove the files of a block, so that nothing of them can be taken for a result."""
        for name in self.names(region):
            self.location.child(name).remove()

    def names(self, region: Region) -> list[str]:
        """List the files of a block, relative to the array, in index order."""
        size = self.array.shards or self.array.chunks
        spans = (
            range(span.start // n, -(-span.stop // n)) for span, n in zip(region, size, strict=True)
        )
        return [self.array.metadata.encode_chunk_key(at) for at in product(*spans)]

    def _sum_of(self, name: str) -> str | None:
        try:
            return _checksum(self.location.child(name).read_bytes())
        except MissingDataError:
            return None

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class _Recording(WrapperStore[Any]):
    """A store that notes size and checksum of what passes through it."""

    def __init__(self, store: Any, stored: dict[str, str | None]) -> None:
        super().__init__(store)
        self._stored = stored

    def _with_store(self, store: Any) -> _Recording:
        return _Recording(store, self._stored)

    async def set(self, key: str, value: Any) -> None:
        await super().set(key, value)
        self._stored[key] = _checksum(memoryview(value.as_buffer_like()).cast("B"))

    async def delete(self, key: str) -> None:
        await super().delete(key)
        self._stored[key] = None


def location_of(array: zarr.Array[Any]) -> Location:
    """Find where an open Zarr array lies; `InputError` for one in memory or a ZIP file."""
    place = Location.of_store(array.store)
    if place is None:
        raise InputError(
            f"results are stored on a disk or in an object store; got a Zarr array in {array.store}"
        )
    return Location.parse(place.address).child(array.path)


def remove_partial_files(location: Location) -> None:
    """Remove what killed writers of an array left behind; in object stores nothing is left."""
    if not location.is_local:
        return
    for partial in Path(location.address).rglob("*.partial"):
        if LEDGER_FOLDER not in partial.parts:
            partial.unlink(missing_ok=True)


@contextmanager
def writing_to(location: Location) -> Iterator[None]:
    """Turn any `OSError` of the with block into an `OutputError` that says what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if isinstance(error, BusyOutputError):
            raise
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"{location} cannot be written: {error}") from error
        raise OutputError(
            f"the disk of {location} is full ({_free(location)}{error.strerror}): make space and "
            "run the same again; it continues from here"
        ) from error


def _free(location: Location) -> str:
    if not location.is_local:
        return ""
    there = next(p for p in (location.path, *location.path.parents) if p.exists())
    return f"{shutil.disk_usage(there).free / 1e6:.1f} MB free, "


def _checksum(content: bytes | memoryview) -> str:
    return f"{len(content)}-{zlib.crc32(content):08x}"
