"""The folder of a run: one run at a time, nobody else's results, nothing left of nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from itkstream.errors import BusyOutputError, ExistingOutputError
from itkstream.registration.folder import REPORT, Foreign, Ours, RunFolder, Vacant

# A registration that says when it deforms, and then waits to be let go on.
REGISTERING = """
import sys, time
from itkstream.phantoms import PhantomSettings, make_pair
from itkstream.pipelines import register
from itkstream.registration.steps import Deformable, IntensityAffine, RegisterSettings

class Waiting:
    def step(self, title):
        print(title, flush=True)
        if title == sys.argv[2]:
            sys.stdin.readline()
    def expect(self, parts):
        pass

    def blocks(self, done, total):
        pass
    def note(self, text):
        pass

pair = make_pair(PhantomSettings((48, 48, 40), (1.0, 1.0, 1.0), 3))
steps = IntensityAffine(iterations=(5,), shrink_factors=(2,), smooth_sigmas=(1,)), Deformable()
settings = RegisterSettings(error_map=False, report=False)
more = {"initial_transform": pair.truth.matrix, "reporter": Waiting()}
register(pair.fixed, pair.moving, sys.argv[1], steps, settings, **more)
"""


def started(out: Path, wait_at: str = "") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", REGISTERING, str(out), wait_at]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def hear(program: subprocess.Popen[str], title: str) -> None:
    assert program.stdout is not None
    while (line := program.stdout.readline()) and line.strip() != title:
        pass
    assert line


@pytest.mark.parametrize("left", [[], [".partial-1-run.json"]])
def test_a_run_killed_as_it_began_is_no_hindrance(tmp_path: Path, left: list[str]) -> None:
    notes = tmp_path / "out" / "steps"
    notes.mkdir(parents=True)
    for name in left:
        (notes / name).write_text("{")
    folder = RunFolder(tmp_path / "out", ("a", "b"), False)
    with folder.locked():
        folder.settle("key")
        folder.note("1", "key", {})
    assert {path.name for path in notes.iterdir()} == {"run.json", "1.json"}


@pytest.mark.parametrize("name", ["steps/mine.txt", "steps"])
def test_what_only_looks_like_notes_is_not_touched(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    folder = RunFolder(tmp_path / "out", ("a", "b"), False)
    with pytest.raises(ExistingOutputError, match="something other"), folder.locked():
        pass
    assert mine.read_text() == "keep"


@pytest.mark.nightly
def test_two_registrations_do_not_write_to_one_folder(tmp_path: Path) -> None:
    """Real processes: the second is refused at once, and has the folder when the first is dead."""
    out = tmp_path / "out"
    first = started(out, "deformation")
    hear(first, "deformation")
    notes = {path.name: path.read_bytes() for path in (out / "steps").glob("*.json")}
    second = started(out)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 1
    assert f"BusyOutputError: process {first.pid} on " in errors
    assert f"is writing to {out}: wait until it is done, or stop it" in errors
    assert {path.name: path.read_bytes() for path in (out / "steps").glob("*.json")} == notes
    first.kill()
    first.communicate()
    third = started(out)
    heard, errors = third.communicate(timeout=120)
    assert third.returncode == 0, errors
    assert "certificate" in heard
    assert json.loads((out / REPORT).read_text())["certificate"]["passed"]
    assert list((out / ".itkstream").iterdir()) == []


def folder(out: Path, *images: str, overwrite: bool = False) -> RunFolder:
    return RunFolder(out, images or ("fixed", "moving"), overwrite)


def test_a_lock_is_held_while_the_run_lasts(tmp_path: Path) -> None:
    out, first = tmp_path / "out", folder(tmp_path / "out")
    with first.locked():
        with pytest.raises(BusyOutputError, match="is writing to"), folder(out).locked():
            pass
        first.note("1", "key", {"found": 1})
    with folder(out).locked():
        pass
    assert sorted(path.name for path in out.iterdir()) == [".itkstream", "steps"]


@pytest.mark.parametrize("there", [False, True])
def test_of_a_run_that_wrote_nothing_nothing_is_left(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(ValueError, match="no affine"), folder(out).locked():
        raise ValueError("no affine")
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if there else [])
    assert not there or not list(out.iterdir())


def test_a_folder_with_the_lock_of_a_dead_run_is_empty(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".itkstream").mkdir(parents=True)
    (out / ".itkstream/run.json").write_text("{")
    with folder(out).locked():
        pass
    assert list(tmp_path.iterdir()) == [out]


def test_a_run_that_lost_its_folder_notes_nothing(tmp_path: Path) -> None:
    first = folder(tmp_path / "out")
    with first.locked():
        first.note("1", "key", {})
        lock = tmp_path / "out/.itkstream/run.json"
        holder = json.loads(lock.read_text())
        lock.write_text(json.dumps(holder | {"token": "another"}))
        with pytest.raises(BusyOutputError, match="is writing to"):
            first.note("2", "key", {})
        assert not (tmp_path / "out/steps/2.json").exists()
    assert lock.exists()  # it is another's


def test_a_lock_is_signed_from_time_to_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of other hosts count as dead when they have not signed for two minutes."""
    monkeypatch.setattr("itkstream.compute.lock.BEAT_SECONDS", 0.05)
    lock = tmp_path / "out/.itkstream/run.json"
    with folder(tmp_path / "out").locked():
        before, deadline = json.loads(lock.read_text())["signed"], time.monotonic() + 20
        while json.loads(lock.read_text())["signed"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_overwriting_keeps_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "steps").mkdir(parents=True)
    (out / "steps/run.json").write_text(json.dumps({"key": "old", "images": ["a", "b"]}))
    (out / "old.txt").write_text("of the run before")
    with pytest.raises(ExistingOutputError, match="unfinished run of a and b"):
        folder(out).check()
    again = folder(out, overwrite=True)
    with again.locked():
        again.settle("new")
        assert str(again.claim()) == str(out)
        assert not (out / "old.txt").exists()
        with pytest.raises(BusyOutputError), folder(out, overwrite=True).locked():
            pass
    assert json.loads((out / "steps/run.json").read_text())["key"] == "new"


def test_a_complete_run_is_known_by_its_key(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = folder(out)
    with first.locked():
        first.settle("key")
        first.note("1", "key", {"found": 1})
        (out / REPORT).write_text("{}")
    for key in ("key", "another"):
        again = folder(out, "others", "than before") if key == "another" else folder(out)
        with again.locked():
            if key == "key":
                again.settle(key)
                assert again.recall("1", "key") == {"found": 1}
            else:
                with pytest.raises(ExistingOutputError, match="earlier run"):
                    again.settle(key)


def test_a_lock_elsewhere_is_not_touched(tmp_path: Path) -> None:
    """A folder of somebody else gets no lock, and loses none."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExistingOutputError, match="never replaced"), folder(tmp_path).locked():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_is_inspected_without_a_change(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert folder(out).inspect() == Vacant()
    assert not out.exists()
    with folder(out).locked():
        pass
    first = folder(out)
    with first.locked():
        first.note("1", "key", {"found": 1})
    before = sorted(out.rglob("*"))
    assert folder(out).inspect() == Ours()
    other = folder(out, "others", "than before").inspect()
    assert isinstance(other, Foreign)
    assert "unfinished run of fixed and moving" in other.reason
    assert folder(out, "others", "than before", overwrite=True).inspect() == Vacant()
    assert sorted(out.rglob("*")) == before
