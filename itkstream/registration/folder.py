"""The folder of one registration: claimed for it, holding notes of what is done, and its report.

After each step a note is written with what the step found, under a key of everything it depends
on: images, masks, the steps before it, and the code. A run that was killed is begun again by the
same call, takes from the notes what has the key it asks for, and does the rest.

A run that replaces a complete one writes to a draft beside it, and is continued there; the folder
is the draft when all is done, and until then as it was. The lock is in the folder itself.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from itkstream.compute.lock import Lock, holding
from itkstream.errors import ExistingOutputError, InputError, MissingDataError
from itkstream.geometry import Grid, Image
from itkstream.io import ImageOptions, open_image
from itkstream.io.images.channels import several_channels
from itkstream.io.images.locate import locate
from itkstream.io.storage.attributes import read_object
from itkstream.io.storage.chunk_files import writing_to
from itkstream.io.storage.disk import LEDGER_FOLDER
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_folder, check_folder_name, write_text
from itkstream.judge.verdict import Verdict
from itkstream.numerics.gpu.engine import Engine, join_engines
from itkstream.workers import Resources

__all__ = [
    "ALIGNED",
    "ANNOTATION",
    "DEMO_REGISTRATION",
    "ERROR",
    "REPORT",
    "ROUNDS",
    "TRANSFORM",
    "Foreign",
    "Ours",
    "RunFolder",
    "Vacant",
    "find_registration",
    "kept_level",
    "read_report",
    "refuse_experiment",
    "registered_grids",
    "registered_image",
    "registered_images",
    "registered_options",
    "registered_path",
    "registered_places",
    "registered_unit",
    "registered_verdict",
]

logger = logging.getLogger(__name__)

# What every registration.json holds, an object each.
_RECORDED = ("fixed", "moving")

_NAME_ONE = "It holds several registrations: name one of {rounds}"

REPORT = "registration.json"
"""The report of a run; it is there when the run is complete."""

ALIGNED = "aligned.ome.zarr"
"""The moving image on the fixed grid."""

ANNOTATION = "annotation.ome.zarr"
"""Regions of an atlas on the fixed grid, where the moving image is its template."""

TRANSFORM = "transform.ome.zarr"
"""The transform: a displacement field, then an affine."""

ERROR = "error.ome.zarr"
"""The radius around each place in which the true one lies with 95 % probability."""

ROUNDS = "rounds"
"""Folder of the registrations of an experiment, one folder a round."""

DEMO_REGISTRATION = "registration"
"""The registration inside the folder of a demo."""

_NOTES = "steps"
_RUN = f"{_NOTES}/run.json"
_LOCK = "run.json"


@dataclass(frozen=True)
class Vacant:
    """A place that a run may begin at; what an earlier run may have left there is replaced."""


@dataclass(frozen=True)
class Ours:
    """A place with a run of these images in part, or with a complete one: `settle` says which."""


@dataclass(frozen=True)
class Foreign:
    """A place that may not be replaced, and why."""

    reason: str


class RunFolder:
    """Folder of one registration of some images: new, empty, or an earlier run's.

    An unfinished run of other images, and a complete one of another key, is replaced only where
    `overwrite` says so.
    """

    def __init__(
        self, out: str | os.PathLike[str], images: tuple[str, ...], overwrite: bool
    ) -> None:
        self._place = Location.parse(out)
        self._run: dict[str, Any] = {"key": None, "images": list(images), "engine": "cpu"}
        self._overwrite = overwrite
        self._lock: Lock | None = None
        self._claimed: Location | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out for the time of a with block; raise where another one writes.

        A folder in which nothing was written is gone at the end if it is new.
        """
        # A folder of somebody else gets no lock.
        self.check()
        check_folder_name(self._place)
        new = not self._place.exists()
        try:
            with ExitStack() as stack:
                with writing_to(self._place):
                    held = holding(self._place.child(LEDGER_FOLDER, _LOCK), self._place)
                    self._lock = stack.enter_context(held)
                yield
        finally:
            self._lock = None
            self._leave_nothing(new)

    def inspect(self) -> Vacant | Ours | Foreign:
        """See what is there; change nothing."""
        if self._is_vacant():
            return Vacant()
        found, complete = _read(self._place, _RUN), self._is_complete()
        if found is None or (self._overwrite and complete):
            try:
                check_folder(self._place, REPORT, self._overwrite)
            except ExistingOutputError as error:
                return Foreign(str(error))
            return Vacant()
        if complete or found["images"] == self._run["images"]:
            return Ours()
        if self._overwrite:
            return Vacant()
        return Foreign(
            f"{self._place} holds an unfinished run of {' and '.join(found['images'])}: run that "
            "again to continue it, choose another folder or ask to overwrite it"
        )

    def check(self) -> Vacant | Ours:
        """Refuse a folder that may not take a run of these images; change nothing."""
        found = self.inspect()
        if isinstance(found, Foreign):
            raise ExistingOutputError(found.reason)
        return found

    def settle(self, key: str) -> None:
        """Say the key of everything the run depends on, as soon as that is known.

        Refuses the folder of another run that is complete.
        """
        work, held = self._work
        if held and (work / REPORT).is_file() and _read(work, _RUN)["key"] != key:
            if work == self._place:
                check_folder(self._place, REPORT, self._overwrite)
            else:
                # Of another run, which was killed as it got its place.
                (work / REPORT).remove()
        self._run["key"] = key
        if self._claimed is not None:
            write_text(work / _RUN, json.dumps(self._run))

    def choose_engine(self, resources: Resources) -> Engine:
        """Choose what computes: that of the run it goes on with, unless another is said.

        Raises `InputError` where nobody says with which engine to go on. A run that is complete
        needs none: what of it is damaged is refused as that is found out.
        """
        work, held = self._work
        begun = _read(work, _RUN).get("engine", "cpu") if held else None
        if held and (work / REPORT).is_file():
            self._run["engine"] = begun
            return resources.choose_engine()
        engine = resources.choose_engine(begun, self._place)
        self._run["engine"] = engine if begun is None else join_engines(begun, engine)
        return engine

    @property
    def engines(self) -> str:
        """All engines that computed the run so far, with a plus between them."""
        return str(self._run["engine"])

    def claim(self) -> Location:
        """Make or clear the place where this run writes, when the first result is there, once."""
        if self._claimed is not None:
            return self._claimed
        work, held = self._work
        if not held:
            for name in work.names():
                if name != LEDGER_FOLDER:
                    work.child(name).remove()
            work.make_folder()
        notes = work / _NOTES
        notes.make_folder()
        work.remove_partial_files(REPORT)
        notes.remove_partial_files()
        write_text(work / _RUN, json.dumps(self._run))
        self._claimed = work
        return work

    def finish(self) -> Location:
        """Give the run its folder, when all of it is written: what that held before is gone."""
        work = self.claim()
        if work != self._place and self._lock is not None:
            with writing_to(self._place):
                self._lock.go_along(work)
                self._place.take(work)
        return self._place

    def keeping(self, name: str, known: Callable[[Location], bool]) -> Location:
        """Name the Zarr array in which something is kept that all steps need.

        `known` tells whether it is at a place, in part or complete. Where it is not, and the folder
        holds a complete run that may be another, that is refused.
        """
        work, held = self._work
        place = kept_level(work, name)
        if held and known(place):
            return place
        if held and work == self._place and self._run["key"] is None and self._is_complete():
            check_folder(self._place, REPORT, self._overwrite)
        return kept_level(self.claim(), name)

    def recall(self, name: str, key: str) -> dict[str, Any] | None:
        """Read the note of a part of the run; None where there is none under this key.

        The key is of everything the part depends on.
        """
        work, held = self._work
        if not held:
            return None
        found = _read(work, f"{_NOTES}/{name}.json")
        return found["note"] if found is not None and found["key"] == key else None

    def note(self, name: str, key: str, note: dict[str, Any]) -> None:
        """Write a note of a part of the run: numbers, strings and lists."""
        if self._lock is not None:
            self._lock.sign()
        text = json.dumps({"key": key, "note": note})
        write_text(self.claim() / _NOTES / f"{name}.json", text)

    def place(self, name: str) -> Location:
        """Name the store of what is too large for a note."""
        return self.claim() / _NOTES / f"{name}.ome.zarr"

    @cached_property
    def _work(self) -> tuple[Location, bool]:
        """The place where this run writes, and whether it was there to be continued; found once."""
        if isinstance(self.check(), Ours):
            return self._place, True
        if not self._place.is_replaceable:
            return self._place, False
        draft = self._place.draft
        found = _read(draft, _RUN)
        held = found is not None and found["images"] == self._run["images"]
        # Where the system cannot exchange folders, one may have been killed between two renames.
        beside = self._is_complete() or (held and self._is_vacant())
        return (draft, held) if beside else (self._place, False)

    def _is_vacant(self) -> bool:
        """Whether nothing is there but perhaps the lock of a run, or one killed as it began."""
        if self._place.is_vacant():
            return True
        if not set(self._place.names()) <= {LEDGER_FOLDER, _NOTES}:
            return False
        notes = self._place.child(_NOTES)
        # The first note is written beside its place, and may not have got there.
        begun = (name.startswith(".partial-") for name in notes.names())
        return not notes.is_file() and all(begun)

    def _is_complete(self) -> bool:
        return self._place.child(REPORT).is_file()

    def _leave_nothing(self, new: bool) -> None:
        """Remove the folder of the lock if nothing else was written, and the whole if it is new."""
        if not self._place.is_local or self._place.names() != [LEDGER_FOLDER]:
            return
        # Another run may have come in between: a folder that holds something stays.
        with suppress(OSError):
            self._place.child(LEDGER_FOLDER).path.rmdir()
            if new:
                self._place.path.rmdir()


def kept_level(folder: Location, name: str) -> Location:
    """Name the array in which a run keeps the coarse level of a large image."""
    return folder.child(_NOTES, f"{name}.zarr")


def find_registration(folder: str | os.PathLike[str]) -> Location:
    """Find the registration folder at a place, or inside that of a demo."""
    place = Location.parse(folder)
    for found in (place, place / DEMO_REGISTRATION):
        if (found / REPORT).is_file():
            return found
    raise _not_registered(place)


def _not_registered(folder: Location) -> MissingDataError:
    """The error for a folder without a report; it names the registrations of an experiment."""
    if not folder.exists():
        return MissingDataError(f"there is no folder {folder}: check the name")
    inside = _rounds(folder)
    hint = f". {_NAME_ONE.format(rounds=', '.join(inside))}" if inside else ""
    return MissingDataError(
        f"{folder} is no folder that `itkstream register` wrote: it has no {REPORT}{hint}"
    )


def refuse_experiment(folder: str | os.PathLike[str]) -> None:
    """Raise an `InputError` for the folder of an experiment, where one registration is wanted."""
    inside = _rounds(Location.parse(folder))
    if inside:
        hint = _NAME_ONE.format(rounds=", ".join(inside))
        raise InputError(f"{folder} is the folder of an experiment. {hint}")


def _rounds(folder: Location) -> list[str]:
    """The registrations in the folder of an experiment; none in any other."""
    rounds = folder / ROUNDS
    if (folder / REPORT).is_file() or not rounds.is_dir():
        return []
    places = (rounds / name for name in sorted(rounds.names()))
    return [str(place) for place in places if (place / REPORT).is_file()]


def registered_images(folder: str | os.PathLike[str]) -> tuple[Image, Image]:
    """Open the fixed and the moving image of a registration folder, as they were registered."""
    return registered_image(folder, "fixed"), registered_image(folder, "moving")


def registered_image(folder: str | os.PathLike[str], side: str) -> Image:
    """Open the "fixed" or the "moving" image of a registration folder, as it was registered."""
    told = read_report(folder)[side]
    name = str(told["name"])
    try:
        # With the channel, the spacing and whatever else was said of it.
        return open_image(**(told.get("opened") or {"path": name}))
    except (MissingDataError, InputError) as error:
        raise MissingDataError(
            f"the {side} image of {folder} was {name or 'an array'}, which cannot be opened: "
            f"say where it is ({error})"
        ) from error


def registered_path(folder: str | os.PathLike[str], side: str) -> str:
    """Read where the "fixed" or the "moving" image of a registration folder lies."""
    path = read_report(folder)[side].get("opened", {}).get("path")
    if not path:
        raise MissingDataError(f"the {side} image of {folder} was an array: say where it is")
    return str(path)


def registered_options(folder: str | os.PathLike[str], moving: str) -> ImageOptions:
    """Read what was said of the moving image of a registration, where a path leads to it.

    But for its level and part: what was registered coarsely, or in part, is wanted as a whole. Of
    several channels, the first.
    """
    opened = _report_around(folder).get("moving", {}).get("opened", {})
    if not opened or opened["path"] != str(locate(moving).location):
        return ImageOptions()
    known = {name: opened[name] for name in ("unit", "axes", "channel", "time") if name in opened}
    for number, _ in several_channels(known.get("channel"))[:1]:
        known["channel"] = number
    # The spacing of a coarser level would be wrong for the finest.
    fine = not opened.get("level") and "spacing" not in opened
    return ImageOptions(spacing=opened.get("voxel_spacing") if fine else None, **known)


def registered_grids(folder: str | os.PathLike[str]) -> tuple[Grid, Grid]:
    """Read the lattices of the fixed and the moving image of a registration folder."""
    report = read_report(folder)
    return Grid(**report["fixed"]["grid"]), Grid(**report["moving"]["grid"])


def registered_unit(folder: str | os.PathLike[str]) -> str:
    """Read the unit of the ITK files of a registration: "micrometer" for any other transform."""
    steps = _report_around(folder).get("steps", [])
    return str(next((step["unit"] for step in steps if "unit" in step), "micrometer"))


def registered_verdict(folder: str | os.PathLike[str]) -> Verdict | None:
    """Read the verdict on a registration; None for any other transform."""
    facts = _report_around(folder).get("verdict")
    return None if facts is None else Verdict.from_facts(facts)


def registered_places(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read where the two images of a registration lie, which nothing made of it may replace.

    Empty for what is no registration folder, nor the transform of one, and for images in memory.
    """
    report = _report_around(folder)
    sides = (report.get(side, {}) for side in ("fixed", "moving"))
    names = (side.get("opened", {}).get("path") or side.get("name") for side in sides)
    return tuple(str(name) for name in names if name)


def _report_around(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of a folder, or of the one around a transform; empty where there is none."""
    place = Location.parse(folder)
    reports = [p for p in (place, *place.parents[:1]) if (p / REPORT).is_file()]
    return read_report(str(reports[0])) if reports else {}


def read_report(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what registration.json of a registration folder holds."""
    place = Location.parse(folder)
    found = read_object(place / REPORT)
    if found is None:
        raise _not_registered(place)
    lacks = [key for key in _RECORDED if not isinstance(found.get(key), dict)]
    if lacks:
        raise InputError(
            f"{place / REPORT} is no record of a registration: it lacks {', '.join(lacks)}; "
            "restore it from its source, or register again"
        )
    return found


def _read(folder: Location, name: str) -> Any:
    """A note; None where there is none, or none that can be understood."""
    place = folder.child(name)
    try:
        return read_object(place)
    except InputError:
        # As after a loss of power; what it was of is done again.
        logger.warning("the note %s cannot be read", place)
        return None
