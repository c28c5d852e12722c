"""One run at a time: a file that says who writes to a place."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import psutil

from itkstream.errors import BusyOutputError, MissingDataError
from itkstream.io.storage.disk import this_host
from itkstream.io.storage.locations import Location

__all__ = ["Lock", "holding", "still_held"]

logger = logging.getLogger(__name__)

# A process of another host counts as dead when it has not signed its lock for so long.
_PATIENCE_SECONDS = 120.0
BEAT_SECONDS = 15.0
# Of several that take over a lock, or make one in an object store, the last wins: each looks again
# after a time that is long for writing so small a file, to see whether it was the last.
_SETTLE_LOCAL_SECONDS = 0.1
_SETTLE_REMOTE_SECONDS = 1.0
# Of the start of a process since the system booted; that since 1970 moves when the clock is set.
_SAME_START_SECONDS = 1.5


@dataclass(frozen=True)
class _Holder:
    """The holder of a lock, from its file."""

    token: str
    host: str
    pid: int
    started: float
    signed: float
    boot: str = ""

    @classmethod
    def here(cls) -> _Holder:
        """This process, with a new token."""
        pid = os.getpid()
        return cls(uuid4().hex, this_host(), pid, _started(pid), time.time(), _boot())

    @classmethod
    def read(cls, place: Location) -> _Holder | None:
        """Read the holder; None where nobody holds it, or the file makes no sense."""
        try:
            return cls(**json.loads(place.read_bytes()))
        except (MissingDataError, ValueError, TypeError):
            return None

    def alive(self) -> bool:
        """Whether the process may still write."""
        if self.host != this_host():
            return time.time() - self.signed < _PATIENCE_SECONDS
        try:
            started = _started(self.pid)
        except psutil.NoSuchProcess:
            return False
        return self.boot == _boot() and abs(started - self.started) < _SAME_START_SECONDS

    def sign(self, place: Location) -> None:
        """Write the file anew, with the time."""
        place.write_bytes(json.dumps({**asdict(self), "signed": time.time()}).encode())


class Lock:
    """The right to write to a place, held by one process through the file `place`.

    A lock whose process is dead is taken over: on the same host as soon as it is dead, else when it
    has not been signed for two minutes. Raises `BusyOutputError` where another process holds it;
    messages name `what` it guards.
    """

    def __init__(self, place: Location, what: Location) -> None:
        self._place = place
        self._holder = _Holder.here()
        self._what = what
        if _create(place, self._holder):
            return
        before = _Holder.read(place)
        if before is not None and before.alive():
            raise self._busy(before)
        self._holder.sign(place)
        time.sleep(_SETTLE_LOCAL_SECONDS if place.is_local else _SETTLE_REMOTE_SECONDS)
        now = _Holder.read(place)
        if now is None or now.token != self.token:
            raise self._busy(now)

    @property
    def place(self) -> Location:
        """The lock's file."""
        return self._place

    @property
    def token(self) -> str:
        """A word by which the writers of this run prove that they are still wanted."""
        return self._holder.token

    def sign(self) -> None:
        """Sign that this process is alive; raise where another took over, as after a long pause."""
        if not still_held(self._place, self.token):
            raise self._busy(_Holder.read(self._place))
        self._holder.sign(self._place)

    def go_along(self, folder: Location) -> None:
        """Copy the lock's file into a folder that will be put in the place of the one it guards."""
        inside = self._place.relative_to(self._what)
        (folder / inside).write_bytes(self._place.read_bytes())

    def release(self) -> None:
        """Let others write. Writers of this run that are still under way write no more."""
        with suppress(OSError):  # without its process the lock counts for nothing
            if still_held(self._place, self.token):
                self._place.remove()

    def _busy(self, holder: _Holder | None) -> BusyOutputError:
        who, gone = "another process", ""
        if holder is not None:
            who = f"process {holder.pid} on {holder.host.split()[0]}"
        if holder is not None and holder.host != this_host():
            gone = f"; if it died there, wait {_PATIENCE_SECONDS / 60:.0f} minutes"
        return BusyOutputError(
            f"{who} is writing to {self._what}: wait until it is done, or stop it{gone}"
        )


def still_held(place: Location, token: str) -> bool:
    """Whether a run may still write: no longer when it has ended or another has begun."""
    holder = _Holder.read(place)
    return holder is not None and holder.token == token


@contextmanager
def holding(place: Location, what: Location) -> Iterator[Lock]:
    """Hold a lock for the time of a with block, and sign it from time to time.

    Raises `BusyOutputError` where another process holds it.
    """
    lock = Lock(place, what)
    ended = threading.Event()
    signing = threading.Thread(target=_sign_until, args=(lock, ended), name="lock", daemon=True)
    signing.start()
    try:
        yield lock
    finally:
        ended.set()
        signing.join()
        lock.release()


def _sign_until(lock: Lock, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        try:
            lock.sign()
        except OSError as error:
            # Whoever holds it signs before every note, and there this is raised.
            logger.warning("%s", error)


def _create(place: Location, holder: _Holder) -> bool:
    """Make the file where there is none, at once with its content; False where this fails."""
    if not place.is_local:
        return False
    target = Path(place.address)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".partial-{holder.token}")
    try:
        draft.write_text(json.dumps(asdict(holder)), encoding="utf-8")
        with suppress(OSError):  # it is there, or the file system has no hard links
            os.link(draft, target)
            return True
    finally:
        draft.unlink(missing_ok=True)
    return False


def _started(pid: int) -> float:
    """When a process began, in seconds since the system booted."""
    return psutil.Process(pid).create_time() - psutil.boot_time()


def _boot() -> str:
    """The name of this run of the operating system; empty where it has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
