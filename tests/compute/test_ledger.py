"""Notes of a run: complete or not there, believed only as far as they can be read; one writer."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from itkstream.compute.ledger import Header, Ledger
from itkstream.compute.lock import Lock, still_held
from itkstream.errors import BlockFailure, BusyOutputError
from itkstream.io.storage.locations import Location

FAILURE = BlockFailure((0, 2), ((0, 8), (16, 20)), "ValueError: no")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Location.parse(tmp_path / "a.zarr"))


def locked(ledger: Ledger) -> Lock:
    return Lock(ledger.lock_place, ledger.array)


def sign(ledger: Ledger, **facts: object) -> None:
    """A lock as another process would leave it."""
    host = f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    holder = {"token": "other", "host": host, "pid": 1, "started": 0.0, "signed": time.time()}
    ledger.lock_place.write_bytes(json.dumps(holder | facts).encode())


def test_one_run_at_a_time(ledger: Ledger) -> None:
    first = locked(ledger)
    with pytest.raises(
        BusyOutputError, match=f"process {os.getpid()} on .* is writing to .*a.zarr"
    ):
        locked(ledger)
    assert still_held(ledger.lock_place, first.token)
    first.release()
    assert not still_held(ledger.lock_place, first.token)
    second = locked(ledger)
    assert not still_held(ledger.lock_place, first.token)
    first.release()  # does not take away what is not its own
    assert still_held(ledger.lock_place, second.token)
    second.sign()
    assert sorted(ledger.place.names()) == ["lock.json"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOSYS])
def test_one_run_at_a_time_without_hard_links(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As on FAT disks, for which every system has an error number of its own."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", refuse)
    first = locked(ledger)
    with pytest.raises(BusyOutputError, match=f"process {os.getpid()} on "):
        locked(ledger)
    first.release()
    assert not list(ledger.place.names())


def test_a_lock_dies_with_its_process(ledger: Ledger) -> None:
    take = (
        "from itkstream.compute.lock import Lock; from itkstream.compute.ledger import Ledger\n"
        "from itkstream.io.storage.locations import Location; import sys\n"
        "ledger = Ledger(Location(sys.argv[1])); Lock(ledger.lock_place, ledger.array)"
    )
    subprocess.run([sys.executable, "-c", take, ledger.array.address], check=True)
    assert ledger.lock_place.exists()
    locked(ledger).release()


def test_a_process_that_got_the_number_of_a_dead_one_holds_nothing(ledger: Ledger) -> None:
    sign(ledger, pid=os.getpid(), started=12345.0)
    locked(ledger)


@pytest.mark.parametrize("shift", [-3600.0, 3600.0])
def test_a_lock_is_held_when_the_clock_is_set(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    """The system tells all times since 1970 by the new clock, those of old processes too."""
    first = locked(ledger)
    clock, boot, create = time.time, psutil.boot_time, psutil.Process.create_time
    monkeypatch.setattr(time, "time", lambda: clock() + shift)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot() + shift)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create(self) + shift)
    with pytest.raises(BusyOutputError, match=f"process {os.getpid()} on"):
        locked(ledger)
    assert still_held(ledger.lock_place, first.token)


def test_a_lock_dies_with_the_system(ledger: Ledger) -> None:
    """The same number, as long after the system was switched on, but another time."""
    locked(ledger)
    holder = json.loads(ledger.lock_place.read_bytes())
    ledger.lock_place.write_bytes(json.dumps(holder | {"boot": "the time before"}).encode())
    locked(ledger)


def test_other_hosts_must_sign_from_time_to_time(ledger: Ledger) -> None:
    sign(ledger, host="elsewhere 4711", pid=7)
    with pytest.raises(BusyOutputError, match=r"process 7 on elsewhere .* wait 2 minutes"):
        locked(ledger)
    sign(ledger, host="elsewhere 4711", pid=7, signed=time.time() - 121)
    locked(ledger)


def test_an_unreadable_lock_holds_nothing(ledger: Ledger) -> None:
    ledger.lock_place.write_bytes(b"{")
    locked(ledger)


def test_a_lock_that_was_taken_over_is_noticed(ledger: Ledger) -> None:
    lock = locked(ledger)
    sign(ledger)
    with pytest.raises(BusyOutputError):
        lock.sign()


def test_notes_come_back(ledger: Ledger) -> None:
    assert ledger.header() is None
    assert ledger.done() == {}
    assert ledger.failures() == []
    ledger.begin(Header("abc", 4))
    with ledger.recording(locked(ledger), {0: ["5-0"]}) as records:
        records.add(3, ["1-ff", None])
        assert ledger.done() == {0: ["5-0"]}
    assert ledger.header() == Header("abc", 4)
    assert ledger.done() == {0: ["5-0"], 3: ["1-ff", None]}
    ledger.note_failures([FAILURE])
    assert ledger.failures() == [FAILURE]
    ledger.note_failures([])
    assert ledger.failures() == []
    ledger.begin(Header("def", 4))
    assert ledger.done() == {}


def test_notes_are_written_while_the_run_goes_on(ledger: Ledger) -> None:
    with ledger.recording(locked(ledger), {}) as records:
        records.add(1, ["1-1"])
        deadline = time.monotonic() + 10
        while not ledger.done() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ledger.done() == {1: ["1-1"]}


def test_notes_of_blocks_that_are_not_kept_go(ledger: Ledger) -> None:
    with ledger.recording(locked(ledger), {}) as records:
        records.add(1, ["1-1"])
        records.add(2, ["2-2"])
    with ledger.recording(Lock(ledger.place.child("l2"), ledger.array), {2: ["2-2"]}):
        assert ledger.done() == {2: ["2-2"]}


def test_many_notes_become_one(ledger: Ledger) -> None:
    with ledger.recording(locked(ledger), {}) as records:
        for number in range(200):
            records.add(number, [f"1-{number}"])
            records._flush()
            assert len(ledger.place.names()) < 70
    assert ledger.done() == {number: [f"1-{number}"] for number in range(200)}


def test_notes_are_kept_after_an_error(ledger: Ledger) -> None:
    def interrupted() -> None:
        with ledger.recording(locked(ledger), {}) as records:
            records.add(1, ["1-1"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ledger.done() == {1: ["1-1"]}


def test_a_run_that_lost_its_lock_stops(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itkstream.compute.ledger.BEAT_SECONDS", 0.0)

    def run() -> None:
        with ledger.recording(locked(ledger), {}) as records:
            sign(ledger)
            for number in range(1000):
                records.add(number, [])
                time.sleep(0.01)

    with pytest.raises(BusyOutputError):
        run()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"other": 1}', b"[[1]]", b'{"1": 2}'])
def test_what_cannot_be_read_is_as_if_it_were_not_there(ledger: Ledger, content: bytes) -> None:
    for name in ("header.json", "blocks-00000001.json", "failures.json"):
        ledger.place.child(name).write_bytes(content)
    assert ledger.header() is None
    assert ledger.done() == {}
    assert ledger.failures() == []
