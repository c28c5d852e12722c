"""Parts of a run, each done once: noted, recalled, completed, done again where they do not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from itkstream.progress.reporters import LogReporter
from itkstream.registration.folder import RunFolder
from itkstream.registration.journal import Journal


@contextmanager
def journal_at(out: Path) -> Iterator[Journal]:
    folder = RunFolder(out, ("fixed", "moving"), False)
    with folder.locked():
        folder.settle("run")
        yield Journal(folder, LogReporter())


def found(number: int) -> Any:
    def do(facts: dict[str, Any]) -> dict[str, Any]:
        facts["number"] = number
        return {"kept": [number]}

    return do


def forbidden(_: Any) -> Any:
    pytest.fail("it was done already")


def test_what_is_noted_is_recalled_under_its_key(tmp_path: Path) -> None:
    with journal_at(tmp_path / "out") as journal:
        first = journal.once("a part", "1", "key", found(1))
        assert first["kept"] == [1]
        assert first["facts"]["name"] == "a part"
    with journal_at(tmp_path / "out") as journal:
        assert journal.once("a part", "1", "key", forbidden) == first
        assert journal.facts == [first["facts"]]
        assert journal.once("a part", "1", "another key", found(2))["kept"] == [2]


def test_what_was_stored_is_completed_and_noted_as_it_then_is(tmp_path: Path) -> None:
    with journal_at(tmp_path / "out") as journal:
        journal.once("a part", "1", "key", found(1))
    for _ in range(2):
        with journal_at(tmp_path / "out") as journal:
            note = journal.once(
                "a part", "1", "key", forbidden, again=lambda note: {**note, "files": "new"}
            )
            assert note["files"] == "new"
    with journal_at(tmp_path / "out") as journal:
        assert journal.once("a part", "1", "key", forbidden)["files"] == "new"
        gone = journal.once("a part", "1", "key", found(3), holds=lambda note: "old" in note)
        assert gone["kept"] == [3]


def test_a_held_note_waits_for_the_next(tmp_path: Path) -> None:
    """A run that finds nothing leaves nothing behind."""
    out = tmp_path / "out"
    with journal_at(out) as journal:
        journal.once("read", "begin", "key", found(0), hold=True)
    assert not out.exists()
    with journal_at(out) as journal:
        journal.once("read", "begin", "key", found(0), hold=True)
        journal.once("a part", "1", "key", found(1))
    assert {p.name for p in (out / "steps").iterdir()} == {"run.json", "begin.json", "1.json"}
