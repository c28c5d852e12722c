"""Stored arrays filled with blocks, so that a run that was killed can be continued.

The notes of `itkstream.compute.ledger` say which blocks are written; what their files do not bear
out is computed again. Blocks are written by whoever computes them, each its own files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import dask.array as da
import zarr
from dask.tokenize import tokenize
from numpy.typing import NDArray

from itkstream.compute.ledger import Header, Ledger
from itkstream.compute.lock import Lock, still_held
from itkstream.compute.progress import Blocks
from itkstream.compute.sinks import Work
from itkstream.errors import (
    BlockFailure,
    ExistingOutputError,
    OutputError,
    describe_region,
)
from itkstream.io.storage.chunk_files import (
    ChunkFiles,
    Region,
    Sums,
    remove_partial_files,
    writing_to,
)
from itkstream.io.storage.disk import LEDGER_FOLDER
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_store, check_store_name
from itkstream.numerics.gpu.engine import Engine, join_engines
from itkstream.workers import Resources

__all__ = ["BlockSink", "Output"]

logger = logging.getLogger(__name__)

_READERS = 8


@dataclass(frozen=True)
class _SplitFiles:
    """The files of two arrays: for the last elements along the first axis, and for the others."""

    first: ChunkFiles
    last: ChunkFiles

    @property
    def location(self) -> Location:
        return self.first.location

    def write(self, region: Region, block: NDArray[Any]) -> Sums:
        """Write a block to both; sizes and checksums of its files."""
        for_first, for_last = _split(region)
        return self.first.write(for_first, block[:-1]) + self.last.write(for_last, block[-1])

    def found(self, region: Region) -> Sums:
        """Sizes and checksums of the files of a block as they are."""
        for_first, for_last = _split(region)
        return self.first.found(for_first) + self.last.found(for_last)

    def remove(self, region: Region) -> None:
        """Remove the files of a block."""
        for_first, for_last = _split(region)
        self.first.remove(for_first)
        self.last.remove(for_last)


def _split(region: Region) -> tuple[Region, Region]:
    return (slice(0, region[0].stop - 1), *region[1:]), region[1:]


@dataclass(frozen=True)
class BlockSink:
    """Writes blocks for one run, as long as this is the run that may write.

    The file at `lock` says which run may, and `token` is the one of this run.
    """

    files: ChunkFiles | _SplitFiles
    lock: Location
    token: str

    def __call__(self, region: Region, block: NDArray[Any]) -> Sums:
        # A worker may outlive its run by the time of one block.
        with writing_to(self.files.location):
            held = still_held(self.lock, self.token)
        if not held:
            raise OutputError(f"this run may not write to {self.files.location} any more")
        return self.files.write(region, block)


@dataclass(frozen=True)
class Output:
    """A stored array to be filled: a sink whose runs are continued.

    What replaces a complete array is written beside it and gets its place when it is complete; it
    is continued there, too.

    Parameters
    ----------
    location : Location
        The array.
    chunks : tuple of int
        Its chunks.
    shards : tuple of int, optional
        Its shards.
    create : callable, optional
        Makes the empty array in a place cleared for it, which it is given; None where the array is
        there, to be filled.
    overwrite : bool
        Whether finished results, or those of another computation, may be replaced.
    last : Location, optional
        Another array, for the last element of the first axis; the one at `location` then holds the
        others.
    """

    location: Location
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    create: Callable[[Location], Any] | None = None
    overwrite: bool = False
    last: Location | None = None

    continued = True

    def fingerprint(self, array: da.Array) -> str:
        """A token that tells this computation and layout from others."""
        token: str = tokenize(array.name, array.chunks, str(array.dtype), self.chunks, self.shards)
        return token

    def is_of(self, array: da.Array) -> bool:
        """Whether what is there was made, or begun, by the same computation: it is continued."""
        header = Ledger(self.location).header()
        return header is not None and header.ready and header.fingerprint == self.fingerprint(array)

    def files(self) -> ChunkFiles | _SplitFiles:
        """The files of blocks, to be written and known again."""
        first = ChunkFiles(self.location)
        return first if self.last is None else _SplitFiles(first, ChunkFiles(self.last))

    @contextmanager
    def opened(self, blocks: Blocks, resources: Resources) -> Iterator[Work]:
        """Lock the place, and ask for the blocks that are not there yet as they were written.

        Raises `InputError` where the place lies in, on or around an array that is read, has
        another format's ending, or was begun with another engine, `ExistingOutputError` where
        something else is there that may not be replaced, `BusyOutputError` where another process is
        writing there, and `OutputError` where nothing can be written, as on a full disk.
        """
        check_apart(self.location, blocks.array)
        fingerprint = self.fingerprint(blocks.array)
        _check_place(self, fingerprint)
        with _locked(Ledger(self.location)) as lock:
            _check_place(self, fingerprint)  # another run may have ended meanwhile
            place = _workplace(self, fingerprint)
            yield _begin(blocks, place, lock, resources)
            if place.location != self.location:
                with writing_to(self.location):
                    lock.go_along(place.location)
                    self.location.take(place.location)


def _begin(blocks: Blocks, output: Output, lock: Lock, resources: Resources) -> Work:
    """Find out what is not there yet, for the run that holds the lock of the result."""
    ledger, files = Ledger(output.location), output.files()
    engine = resources.choose_engine()
    with writing_to(output.location):
        fingerprint = output.fingerprint(blocks.array)
        known = version("itkstream")
        wanted = Header(fingerprint, len(blocks), version=known, engine=engine)
        header = _prepare(ledger, output, wanted)
    blocks = replace(blocks, axes=_axes(output.location))
    kept = _verify(ledger, files, blocks)
    missing = [number for number in range(len(blocks)) if number not in kept]
    if missing:
        engine = resources.choose_engine(header.engine, output.location)
        header = _with_engine(ledger, header, engine)
    return Work(
        missing=missing,
        deliver=BlockSink(files, lock.place, lock.token),
        by_workers=True,
        recording=partial(_recording, ledger, lock, kept),
        finish=partial(_finish, ledger, header),
        engine=engine,
        axes=blocks.axes,
    )


def _with_engine(ledger: Ledger, header: Header, engine: Engine) -> Header:
    """Note what computes from here on, beside what did before."""
    joined = replace(header, engine=join_engines(header.engine, engine))
    if joined != header:
        with writing_to(ledger.array):
            ledger.note(joined)
    return joined


@contextmanager
def _recording(
    ledger: Ledger, lock: Lock, kept: dict[int, Sums]
) -> Iterator[Callable[[int, Sums], None]]:
    with ledger.recording(lock, kept) as records:
        yield records.add


def _finish(ledger: Ledger, header: Header, failures: Sequence[BlockFailure]) -> None:
    with writing_to(ledger.array):
        ledger.note_failures(failures)
        ledger.note(replace(header, finished=not failures))


def _check_place(output: Output, fingerprint: str) -> None:
    """Refuse a place that holds what may not be replaced, before anything is changed."""
    if output.create is None:
        return
    check_store_name(output.location, "a Zarr array")
    ledger = Ledger(output.location)
    header = ledger.header()
    if header is None:
        if _holds_other(output.location) or not output.location.is_dir():
            check_store(output.location, output.overwrite)
    elif header.fingerprint != fingerprint and not output.overwrite:
        if not header.finished and not ledger.done():
            return  # begun and stopped before its first block: nothing is lost
        if header.finished:
            raise ExistingOutputError(
                f"{output.location} is there already, of other inputs, parameters or code; choose "
                "another path or pass overwrite=True to replace it"
            )
        raise ExistingOutputError(
            f"{output.location} holds an unfinished run of other inputs, parameters or code "
            f"({len(ledger.done())} of {header.total} blocks): run that again to continue it, "
            "choose another path or pass overwrite=True to replace it"
        )


def _holds_other(location: Location) -> bool:
    """Whether there is more than what a run notes."""
    if not location.exists():
        return False
    return bool(set(location.names()) - {LEDGER_FOLDER}) or not location.is_dir()


def _workplace(output: Output, fingerprint: str) -> Output:
    """The array to write: in the place of the result, or beside it where one is complete."""
    found = Ledger(output.location).header()
    if output.create is None or (found is not None and not found.finished):
        return output
    if found is not None and found.fingerprint == fingerprint and not output.overwrite:
        return output
    if found is None and not _holds_other(output.location):
        return _left_beside(output, fingerprint) or output
    return replace(output, location=output.location.draft, overwrite=False)


def _left_beside(output: Output, fingerprint: str) -> Output | None:
    """The draft of a run that was killed between two renames, on a system without exchange."""
    if not output.location.is_replaceable:
        return None
    beside = replace(output, location=output.location.draft, overwrite=False)
    begun = Ledger(beside.location).header()
    return beside if begun is not None and begun.fingerprint == fingerprint else None


def _prepare(ledger: Ledger, output: Output, wanted: Header) -> Header:
    """The notes and the array of this computation: found, or made anew."""
    found = ledger.header()
    same = found is not None and found.fingerprint == wanted.fingerprint
    if output.create is None:
        header = replace(wanted, ready=True)
        if found is not None and same:
            return replace(header, engine=found.engine)
        ledger.begin(header)
        return header
    replaced = found is not None and found.finished and output.overwrite
    if same and found is not None and found.ready and not replaced and _opens(output.location):
        return found
    # Noted first: a run killed from here on leaves a place that is known to be its own.
    ledger.begin(wanted)
    for name in output.location.names():
        if name != LEDGER_FOLDER:
            output.location.child(name).remove()
    output.create(output.location)
    header = replace(wanted, ready=True)
    ledger.note(header)
    return header


def _axes(location: Location) -> tuple[str, ...]:
    """Names of the axes of an array, where its store has them."""
    names = getattr(zarr.open_array(location.store(), mode="r").metadata, "dimension_names", None)
    return tuple(str(name) for name in names or ())


def _opens(location: Location) -> bool:
    try:
        zarr.open_array(location.store(), mode="r")
    except (OSError, ValueError, KeyError):
        return False
    return True


def _verify(ledger: Ledger, files: ChunkFiles | _SplitFiles, blocks: Blocks) -> dict[int, Sums]:
    """The noted blocks whose files are as noted; the files of others are removed."""
    remove_partial_files(files.location)
    noted = {number: sums for number, sums in ledger.done().items() if number < len(blocks)}
    if not noted:
        return {}
    logger.info("checking %d blocks of %s", len(noted), files.location)
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda number: files.found(blocks.region(number)), noted)
        kept = {
            number: noted[number]
            for number, sums in zip(noted, found, strict=True)
            if sums == noted[number]
        }
    for number in noted.keys() - kept.keys():
        logger.warning(
            "the block at %s of %s is not as it was written; it is computed again",
            describe_region(blocks.region(number), blocks.axes),
            files.location,
        )
        files.remove(blocks.region(number))
    state = "complete" if len(kept) == len(blocks) else "continues"
    logger.info("%s %s: %d of %d blocks are there", files.location, state, len(kept), len(blocks))
    return kept


@contextmanager
def _locked(ledger: Ledger) -> Iterator[Lock]:
    with writing_to(ledger.array):
        lock = Lock(ledger.lock_place, ledger.array)
    try:
        yield lock
    finally:
        lock.release()
        if ledger.array.is_local:
            # Nothing of ours stays in an array of somebody else that was to be replaced.
            with suppress(OSError):
                ledger.place.path.rmdir()
