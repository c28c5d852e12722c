"""Compiling ahead, in a process beside the first registration after an installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from itkstream import rehearsal
from itkstream.numerics.compiled import is_compiled, kept_in
from itkstream.progress.reporters import LogReporter
from itkstream.rehearsal import rehearsing

TYPE = np.dtype(np.uint16)


class Listener(LogReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Commands that were begun, where nothing is compiled yet and there are two processors."""
    commands: list[list[str]] = []

    class Begun(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], **how: object) -> None:
            commands.append(command)
            super().__init__([sys.executable, "-c", "input()"], **how)  # type: ignore[call-overload]

    monkeypatch.setattr(rehearsal.subprocess, "Popen", Begun)
    monkeypatch.setattr(rehearsal, "processors", lambda: 2)
    monkeypatch.setattr(rehearsal, "is_compiled", lambda: False)
    monkeypatch.setattr(rehearsal, "kept_in", lambda: tmp_path / "cache")
    return commands


def test_the_first_registration_says_so_and_one_process_compiles(begun: list[list[str]]) -> None:
    listener = Listener()
    with rehearsing(TYPE, listener), rehearsing(TYPE, listener):
        pass
    assert len(begun) == len(listener.told) == 1
    assert begun[0][1:] == ["-m", "itkstream.rehearsal", "<u2"]
    assert "compiling for this machine, once" in listener.told[0]


def test_a_rehearsal_that_was_killed_is_begun_again(begun: list[list[str]], tmp_path: Path) -> None:
    with rehearsing(TYPE, Listener()):
        pass
    os.utime(tmp_path / "cache" / "rehearsal", (1e9, 1e9))
    with rehearsing(TYPE, Listener()):
        pass
    assert len(begun) == 2


@pytest.mark.parametrize("what", ["compiled", "one processor", "no room"])
def test_nothing_is_begun_where_it_would_not_help(
    begun: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    if what == "compiled":
        monkeypatch.setattr(rehearsal, "is_compiled", lambda: True)
    elif what == "one processor":
        monkeypatch.setattr(rehearsal, "processors", lambda: 1)
    else:
        (tmp_path / "cache").write_text("a file")
    listener = Listener()
    with rehearsing(TYPE, listener):
        pass
    assert not begun
    # One processor compiles as it goes.
    assert len(listener.told) == (what == "one processor")


@pytest.mark.slow
def test_it_compiles_what_a_deformation_needs(tmp_path: Path) -> None:
    known = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "itkstream.rehearsal", "<u2"], env=known, check=True)
    kept = {file.name.partition("-")[0] for file in (tmp_path / "cache").rglob("*.nbi")}
    assert {"force._warp_planes", "force._solve_planes", "correlation._residual"} <= kept
    # One for each type that it is called with: 16-bit integers are read as floats, as all else is.
    compiled = [file.name.partition("-")[0] for file in (tmp_path / "cache").rglob("*.nbc")]
    assert sorted(set(compiled)) == sorted(compiled)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_this_suite_finds_what_it_compiled() -> None:
    assert not is_compiled() or any(kept_in().glob("force.*.nbi"))
