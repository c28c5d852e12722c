"""The folder of an experiment: claimed for it, continued, and replaced as a whole.

``experiment.json`` is written when the first round begins and says of each round what is known so
far; `complete` tells whether that is all. A run that was killed is begun again by the same call. A
run that replaces a complete experiment writes to a draft beside it, and is continued there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from itkstream.compute.lock import Lock, holding
from itkstream.errors import ExistingOutputError, MissingDataError
from itkstream.io.storage.attributes import read_object
from itkstream.io.storage.chunk_files import writing_to
from itkstream.io.storage.disk import LEDGER_FOLDER
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_folder, check_folder_name, write_text
from itkstream.numerics.gpu.engine import join_engines
from itkstream.workers import Resources

__all__ = [
    "EXPERIMENT",
    "JOINED",
    "OVERVIEW",
    "OVERVIEW_NUMBERS",
    "TO_REFERENCE",
    "TO_REFERENCE_ERROR",
    "ExperimentFolder",
    "read_experiment",
]

EXPERIMENT = "experiment.json"
"""The rounds of an experiment, and what became of each."""

JOINED = "joined.ome.zarr"
"""All channels of all rounds on the reference."""

OVERVIEW, OVERVIEW_NUMBERS = "overview.html", "overview.json"
"""The page about all rounds, and its numbers."""

TO_REFERENCE, TO_REFERENCE_ERROR = "to_reference.ome.zarr", "to_reference_error.ome.zarr"
"""Transform and error of a round that was registered onto its neighbour, from the reference."""

_LOCK = "experiment.json"


class ExperimentFolder:
    """Folder of an experiment: new, empty, or one that is there, known by its `key`.

    Another experiment, complete or not, is replaced only where `overwrite` says so.
    """

    def __init__(self, out: str | os.PathLike[str], key: str, overwrite: bool) -> None:
        self.place = Location.parse(out)
        self._key = key
        self._overwrite = overwrite
        self._work: Location | None = None
        self._lock: Lock | None = None
        self._engines = "cpu"

    @property
    def work(self) -> Location:
        """The place where this run writes: the folder, or a draft beside it."""
        if self._work is None:
            self._work = self._find_work()
        return self._work

    def check(self) -> None:
        """Refuse a place that may not take this experiment; change nothing."""
        found = read_object(self.place / EXPERIMENT)
        if found is None:
            if not self._only_begun():
                check_folder(self.place, EXPERIMENT, self._overwrite)
            check_folder_name(self.place)
        elif found["key"] != self._key and not self._overwrite:
            state = "a complete" if found["complete"] else "an unfinished"
            raise ExistingOutputError(
                f"{self.place} holds {state} experiment of other rounds, settings or code: "
                "choose another folder or ask to overwrite it"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out for the time of a with block, and clear what is replaced."""
        self.check()
        with ExitStack() as stack:
            with writing_to(self.place):
                held = holding(self.place.child(LEDGER_FOLDER, _LOCK), self.place)
                self._lock = stack.enter_context(held)
            known = read_object(self.work / EXPERIMENT)
            if known is None or known["key"] != self._key:
                for name in self.work.names():
                    if name != LEDGER_FOLDER:
                        self.work.child(name).remove()
            yield
        self._lock = None

    def with_engine(self, resources: Resources) -> Resources:
        """Resources with what computes: as the experiment was begun, unless another is said.

        Raises `InputError` where nobody says with which engine to go on. An experiment that is
        complete needs none.
        """
        known = self.recall()
        begun = known.get("engine", "cpu") if known else None
        if known and known["complete"]:
            self._engines = str(begun)
            return resources
        engine = resources.choose_engine(begun, self.place)
        self._engines = engine if begun is None else join_engines(begun, engine)
        return replace(resources, engine=engine)

    def note(self, facts: dict[str, Any], complete: bool = False) -> None:
        """Write what is known of the experiment."""
        if self._lock is not None:
            self._lock.sign()
        known = {"version": 1, "complete": complete, "key": self._key, "engine": self._engines}
        known |= facts
        write_text(self.work / EXPERIMENT, json.dumps(known, indent=2) + "\n")

    def recall(self) -> dict[str, Any]:
        """Read what an earlier run of this experiment noted; empty where there is none."""
        found = read_object(self.work / EXPERIMENT)
        return found if found is not None and found["key"] == self._key else {}

    def finish(self) -> Location:
        """Give the experiment its folder, when all of it is written."""
        if self.work != self.place and self._lock is not None:
            with writing_to(self.place):
                self._lock.go_along(self.work)
                self.place.take(self.work)
        return self.place

    def _find_work(self) -> Location:
        found = read_object(self.place / EXPERIMENT)
        replaced = found is not None and found["complete"] and self._overwrite
        return self.place.draft if replaced else self.place

    def _only_begun(self) -> bool:
        """Whether nothing is there, or a run was killed before its first note."""
        if self.place.is_vacant():
            return True
        names = self.place.names()
        return all(name == LEDGER_FOLDER or name.startswith(".partial-") for name in names)


def read_experiment(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what experiment.json of a folder holds; a `MissingDataError` where there is none."""
    found = read_object(Location.parse(folder) / EXPERIMENT)
    if found is None:
        raise MissingDataError(
            f"{folder} is no experiment: it has no {EXPERIMENT}, as `itkstream rounds` writes it"
        )
    return found
