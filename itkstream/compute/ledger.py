"""The notes themselves: what is computed, which blocks are done, which failed and why."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from itkstream.compute.lock import BEAT_SECONDS, Lock
from itkstream.errors import BlockFailure, MissingDataError
from itkstream.io.storage.chunk_files import Sums, writing_to
from itkstream.io.storage.disk import LEDGER_FOLDER
from itkstream.io.storage.locations import Location

__all__ = ["Header", "Ledger", "Records"]

logger = logging.getLogger(__name__)

_HEADER = "header.json"
_FAILURES = "failures.json"
_LOCK = "lock.json"
_PREFIX = "blocks-"
_FLUSH_SECONDS = 0.25
# So many small files of notes are joined into one.
_JOINED = 64


@dataclass(frozen=True)
class Header:
    """A note of which computation an array is for.

    `fingerprint` is of inputs, parameters, code and layout, `total` counts blocks. Before the empty
    array is `ready`, whatever is beside the notes is left over; `finished` means that all blocks
    were done once. `engine` computed what is there, 'auto' where each worker of other machines
    decided; several are joined by a plus.
    """

    fingerprint: str
    total: int
    ready: bool = False
    finished: bool = False
    version: str = ""
    engine: str = "cpu"


class Ledger:
    """The notes beside one array, or beside where it will be."""

    def __init__(self, array: Location) -> None:
        self.array = array
        self.place = array.child(LEDGER_FOLDER)

    @property
    def lock_place(self) -> Location:
        """The file that says who writes."""
        return self.place.child(_LOCK)

    def header(self) -> Header | None:
        """The computation that the array is for; None where no notes can be understood."""
        try:
            return Header(**json.loads(self.place.child(_HEADER).read_bytes()))
        except (MissingDataError, ValueError, TypeError):
            return None

    def begin(self, header: Header) -> None:
        """Note a new computation; notes of another are forgotten."""
        for name in self._notes():
            self.place.child(name).remove()
        self.place.child(_FAILURES).remove()
        self.note(header)

    def note(self, header: Header) -> None:
        """Note how far the computation is."""
        self.place.child(_HEADER).write_bytes(json.dumps(asdict(header)).encode())

    def done(self) -> dict[int, Sums]:
        """Size and checksum of the files of each block that was written, by number."""
        found: dict[int, Sums] = {}
        for name in self._notes():
            try:
                lines = json.loads(self.place.child(name).read_bytes())
                found.update({int(number): list(sums) for number, sums in lines})
            except (ValueError, TypeError):
                # Their blocks are computed again.
                logger.warning("the notes %s cannot be read", self.place.child(name))
        return found

    def failures(self) -> list[BlockFailure]:
        """The blocks that failed when the computation ran last."""
        try:
            lines = json.loads(self.place.child(_FAILURES).read_bytes())
            return [
                BlockFailure(
                    tuple(line["index"]),
                    tuple(map(tuple, line["region"])),
                    str(line["reason"]),
                    tuple(line.get("axes", ())),
                )
                for line in lines
            ]
        except (MissingDataError, ValueError, TypeError, KeyError):
            return []

    def note_failures(self, failures: Sequence[BlockFailure]) -> None:
        """Note the blocks that failed in this run; none removes those of the run before."""
        place = self.place.child(_FAILURES)
        if failures:
            place.write_bytes(json.dumps([asdict(f) for f in failures], indent=1).encode())
        else:
            place.remove()

    @contextmanager
    def recording(self, lock: Lock, kept: Mapping[int, Sums]) -> Iterator[Records]:
        """Note blocks as they are done, beside the `kept` ones of earlier runs.

        The lock is signed from time to time, and all notes are on disk at the end.
        """
        self.place.remove_partial_files()
        records = Records(self.place, lock, dict(kept), self._notes())
        try:
            yield records
        except BaseException:
            # What is being raised matters more than that the last notes could not be written.
            with suppress(OSError):
                records.close()
            raise
        records.close()

    def _notes(self) -> list[str]:
        return [name for name in self.place.names() if name.startswith(_PREFIX)]


class Records:
    """Takes the blocks that are done and writes them down, many at a time."""

    def __init__(
        self, place: Location, lock: Lock, done: dict[int, Sums], names: list[str]
    ) -> None:
        self._place = place
        self._lock = lock
        self._done = done
        self._names = names
        self._fresh: dict[int, Sums] = {}
        self._serial = max((int(n[len(_PREFIX) : -len(".json")]) for n in names), default=0)
        self._error: Exception | None = None
        self._mutex = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ledger", daemon=True)
        # Notes of blocks that are not kept must go, and one file is quicker to read than many.
        self._join()
        self._thread.start()

    def add(self, number: int, sums: Sums) -> None:
        """Note that a block is written, with size and checksum of its files; raises as `check`."""
        self.check()
        with self._mutex:
            self._fresh[number] = sums

    def check(self) -> None:
        """Raise `OutputError` where notes cannot be written any more, or another run took over."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Write down what is not yet."""
        self._closing.set()
        self._thread.join()
        self.check()
        self._flush()

    def _keep(self) -> None:
        signed = time.monotonic()
        while not self._closing.wait(_FLUSH_SECONDS):
            try:
                self._flush()
                if time.monotonic() - signed > BEAT_SECONDS:
                    self._lock.sign()
                    signed = time.monotonic()
            except Exception as error:
                self._error = error
                return

    def _flush(self) -> None:
        with self._mutex:
            fresh, self._fresh = self._fresh, {}
        if not fresh:
            return
        self._done.update(fresh)
        if len(self._names) >= _JOINED:
            self._join()
        else:
            self._write(fresh)

    def _join(self) -> None:
        before, self._names = self._names, []
        if self._done:
            self._write(self._done)
        for name in before:
            self._place.child(name).remove()

    def _write(self, done: Mapping[int, Sums]) -> None:
        self._serial += 1
        name = f"{_PREFIX}{self._serial:08d}.json"
        content = json.dumps(list(done.items()), separators=(",", ":")).encode()
        with writing_to(self._place):
            self._place.child(name).write_bytes(content)
        self._names.append(name)
