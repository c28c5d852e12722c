"""Filling a stored array with blocks, so that a run that was killed can be continued.

The notes of `itkstream.compute.records` say which blocks are written; what their files do not bear
out is computed again. Blocks are written by whoever computes them, each its own files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.tokenize import tokenize
from numpy.typing import NDArray

from itkstream.compute.lock import Lock, still_held
from itkstream.compute.records import Header, Ledger, Records
from itkstream.compute.schedule import Failure
from itkstream.errors import (
    BlockErrors,
    BlockFailure,
    ExistingOutputError,
    InterruptedRunError,
    OutputError,
    RefusedInputError,
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

__all__ = ["BlockSink", "Blocks", "Output", "Progress", "Tally", "belongs", "fill"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called as ``progress(blocks_done, blocks_in_all)``, at the start and after every block."""

_READERS = 8


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a lazy array, by number.

    Parameters
    ----------
    array : dask.array.Array
        Chunked by block.
    """

    array: da.Array

    def __len__(self) -> int:
        return int(np.prod(self.array.numblocks))

    def index(self, number: int) -> tuple[int, ...]:
        """Position of a block in the block grid.

        Parameters
        ----------
        number : int
            Of the block, in index order.

        Returns
        -------
        tuple of int
            One per axis.
        """
        return tuple(int(k) for k in np.unravel_index(number, self.array.numblocks))

    def key(self, number: int) -> tuple[Any, ...]:
        """What dask calls a block.

        Parameters
        ----------
        number : int
            Of the block, in index order.

        Returns
        -------
        tuple
            Its key.
        """
        return (self.array.name, *self.index(number))

    def region(self, number: int) -> Region:
        """The elements of a block.

        Parameters
        ----------
        number : int
            Of the block, in index order.

        Returns
        -------
        tuple of slice
            One per axis.
        """
        spans = zip(self.index(number), self._borders, strict=True)
        return tuple(slice(borders[k], borders[k + 1]) for k, borders in spans)

    def failure(self, number: int, reason: str) -> BlockFailure:
        """A note that a block failed.

        Parameters
        ----------
        number : int
            Of the block, in index order.
        reason : str
            Why.

        Returns
        -------
        BlockFailure
            With its place.
        """
        region = tuple((span.start, span.stop) for span in self.region(number))
        return BlockFailure(self.index(number), region, reason)

    def by_columns(self, numbers: Sequence[int]) -> list[int]:
        """Blocks in an order in which neighbours follow soon: what they share is read once.

        Parameters
        ----------
        numbers : sequence of int
            Of the blocks.

        Returns
        -------
        list of int
            The same, along columns of two by two blocks (2.3 chunks of their size are decoded for
            a block if a process keeps 18; in index order 4.1, in any order 8).
        """
        longest = int(np.argmax(self.array.numblocks))

        def place(number: int) -> tuple[list[int], int, list[int]]:
            index = list(self.index(number))
            along = index.pop(longest)
            return [k // 2 for k in index], along, index

        return sorted(numbers, key=place)

    @cached_property
    def _borders(self) -> list[list[int]]:
        return [np.cumsum([0, *lengths]).tolist() for lengths in self.array.chunks]


class Tally:
    """Counts blocks that are done and collects those that fail.

    Parameters
    ----------
    blocks : Blocks
        All.
    progress : callable
        Told.
    kept : int
        Blocks that are done already.
    """

    def __init__(self, blocks: Blocks, progress: Progress, kept: int = 0) -> None:
        self._blocks = blocks
        self._progress = progress
        self.done = kept
        self._failures: list[BlockFailure] = []
        self._lasting = 0
        self._error: BaseException | None = None
        progress(kept, len(blocks))

    def succeeded(self) -> None:
        """A block is done."""
        self.done += 1
        self._progress(self.done, len(self._blocks))

    def failed(self, number: int, failure: Failure) -> None:
        """A block failed, for a reason that may be its own.

        Parameters
        ----------
        number : int
            Of the block.
        failure : Failure
            What is left of it.

        Raises
        ------
        OutputError, RefusedInputError
            Where the reason is not its own: nothing can be written, or an input is refused.
        """
        if isinstance(failure.error, (OutputError, RefusedInputError)):
            raise failure.error
        noted = self._blocks.failure(number, failure.reason)
        logger.info("%s; the others go on", noted)
        self._failures.append(noted)
        self._lasting += failure.lasting
        self._error = self._error or failure.error

    @property
    def failures(self) -> list[BlockFailure]:
        """Those that failed, in the order of blocks."""
        return sorted(self._failures, key=lambda failure: failure.index)

    def conclude(self, advice: str) -> None:
        """Raise if any block failed.

        Parameters
        ----------
        advice : str
            What to do then, unless that would fail in the same way.

        Raises
        ------
        BlockErrors
            With all that failed.
        """
        if self.failures:
            if self._lasting == len(self._failures):
                advice = "a second run would fail alike: change the input or the parameters"
            raise BlockErrors(self.failures, len(self._blocks), advice) from self._error


@dataclass(frozen=True)
class BlockSink:
    """Writes blocks for one run, as long as this is the run that may write.

    Parameters
    ----------
    files : ChunkFiles
        The array.
    lock : Location
        The file that says which run may write.
    token : str
        Of this run.
    """

    files: ChunkFiles
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
    """A stored array to be filled.

    Parameters
    ----------
    location : Location
        Where.
    chunks : tuple of int
        Its chunks.
    shards : tuple of int, optional
        Its shards.
    create : callable, optional
        Makes the empty array in a place cleared for it, which it is given; None where the array is
        there, to be filled.
    overwrite : bool
        Whether finished results, or those of another computation, may be replaced.
    """

    location: Location
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    create: Callable[[Location], Any] | None = None
    overwrite: bool = False

    def fingerprint(self, array: da.Array) -> str:
        """What tells this computation and layout from others.

        Parameters
        ----------
        array : dask.array.Array
            The computation.

        Returns
        -------
        str
            A token.
        """
        token: str = tokenize(array.name, array.chunks, str(array.dtype), self.chunks, self.shards)
        return token


Run = Callable[[Blocks, Sequence[int], BlockSink, Callable[[int, Any], None]], None]
"""Computes some blocks: ``run(blocks, numbers, sink, done)``."""


def fill(array: da.Array, output: Output, run: Run, progress: Progress) -> None:
    """Compute what is not there yet of a stored array.

    What replaces a complete array is written beside it and gets its place when it is complete; it
    is continued there, too.

    Parameters
    ----------
    array : dask.array.Array
        The computation.
    output : Output
        Where its values go.
    run : callable
        Computes blocks and tells of each.
    progress : callable
        Told the blocks done, those of earlier runs included, and the blocks in all.

    Raises
    ------
    InputError
        Where the array would lie in, on or around one that the computation reads, or has a name
        that does not end like that of a store.
    ExistingOutputError
        Where something else is there that may not be replaced.
    BusyOutputError
        Where another process is writing there.
    OutputError
        Where nothing can be written, as on a full disk.
    BlockErrors
        Where blocks failed; all others are written.
    InterruptedRunError
        After Ctrl-C.
    """
    check_apart(output.location, array)
    fingerprint = output.fingerprint(array)
    _check_place(output, fingerprint)
    with _locked(Ledger(output.location)) as lock:
        _check_place(output, fingerprint)  # another run may have ended meanwhile
        work = _workplace(output, fingerprint)
        _fill(Blocks(array), work, lock, run, progress)
        if work.location != output.location:
            with writing_to(output.location):
                lock.go_along(work.location)
                output.location.take(work.location)


def _fill(blocks: Blocks, output: Output, lock: Lock, run: Run, progress: Progress) -> None:
    """Compute what is not there yet, by the run that holds the lock of the result."""
    ledger = Ledger(output.location)
    with writing_to(output.location):
        fingerprint = output.fingerprint(blocks.array)
        wanted = Header(fingerprint, len(blocks), version=version("itkstream"))
        header = _prepared(ledger, output, wanted)
    files = ChunkFiles(output.location)
    kept = _verified(ledger, files, blocks)
    tally = Tally(blocks, progress, len(kept))
    missing = [number for number in range(len(blocks)) if number not in kept]
    if missing:
        sink = BlockSink(files, lock.place, lock.token)
        with ledger.recording(lock, kept) as records, _told(tally, len(blocks)):
            run(blocks, missing, sink, _noting(records, tally))
    with writing_to(output.location):
        ledger.note_failures(tally.failures)
        ledger.note(replace(header, finished=not tally.failures))
    tally.conclude("run the same again to compute only these")


def belongs(array: da.Array, output: Output) -> bool:
    """Whether what is at a place was made, or begun, by the same computation.

    Parameters
    ----------
    array : dask.array.Array
        The computation.
    output : Output
        The place and layout.

    Returns
    -------
    bool
        Then `fill` continues it.
    """
    header = Ledger(output.location).header()
    return header is not None and header.ready and header.fingerprint == output.fingerprint(array)


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
    """Where to write: in the place of the result, or beside it where a complete one is there."""
    found = Ledger(output.location).header()
    if output.create is None or (found is not None and not found.finished):
        return output
    if found is not None and found.fingerprint == fingerprint and not output.overwrite:
        return output
    if found is None and not _holds_other(output.location):
        return _left_beside(output, fingerprint) or output
    return replace(output, location=output.location.draft, overwrite=False)


def _left_beside(output: Output, fingerprint: str) -> Output | None:
    """What a run left that was killed between two renames, where the system has no exchange."""
    if not output.location.is_replaceable:
        return None
    beside = replace(output, location=output.location.draft, overwrite=False)
    begun = Ledger(beside.location).header()
    return beside if begun is not None and begun.fingerprint == fingerprint else None


def _prepared(ledger: Ledger, output: Output, wanted: Header) -> Header:
    """The notes and the array of this computation: found, or made anew."""
    found = ledger.header()
    same = found is not None and found.fingerprint == wanted.fingerprint
    if output.create is None:
        header = replace(wanted, ready=True)
        if not same:
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


def _opens(location: Location) -> bool:
    try:
        zarr.open_array(location.store(), mode="r")
    except (OSError, ValueError, KeyError):
        return False
    return True


def _verified(ledger: Ledger, files: ChunkFiles, blocks: Blocks) -> dict[int, Sums]:
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
            "block %s of %s is not as it was written; it is computed again",
            blocks.index(number),
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


def _noting(records: Records, tally: Tally) -> Callable[[int, Any], None]:
    def done(number: int, value: Any) -> None:
        if isinstance(value, Failure):
            tally.failed(number, value)
        else:
            records.add(number, value)
            tally.succeeded()

    return done


@contextmanager
def _told(tally: Tally, total: int) -> Iterator[None]:
    """Say after Ctrl-C how far the run was."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"stopped: {tally.done} of {total} blocks are done; run the same again to continue"
        ) from None
