"""The folder of one registration: claimed for it, and noting every step that is done.

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
from functools import cached_property
from typing import Any

from itkstream.compute.lock import Lock, holding
from itkstream.errors import ExistingOutputError
from itkstream.io.storage.chunk_files import writing_to
from itkstream.io.storage.disk import LEDGER_FOLDER
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_folder, check_folder_name, write_text

__all__ = ["ALIGNED", "REPORT", "TRANSFORM", "RunFolder"]

logger = logging.getLogger(__name__)

REPORT = "registration.json"
"""The report of a run; it is there when the run is complete."""

ALIGNED = "aligned.ome.zarr"
"""The moving image on the fixed grid."""

TRANSFORM = "transform.ome.zarr"
"""The transform: a displacement field, then an affine."""

_NOTES = "steps"
_RUN = f"{_NOTES}/run.json"
_LOCK = "run.json"


class RunFolder:
    """Where one registration writes.

    Parameters
    ----------
    out : path
        New, empty, or of an earlier run.
    images : sequence of str
        What the images are called: an unfinished run of others is not touched.
    overwrite : bool
        Whether an earlier run of another kind may be replaced.
    """

    def __init__(
        self, out: str | os.PathLike[str], images: tuple[str, ...], overwrite: bool
    ) -> None:
        self._place = Location.parse(out)
        self._run: dict[str, Any] = {"key": None, "images": list(images)}
        self._overwrite = overwrite
        self._lock: Lock | None = None
        self._made = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder for the time of a with block.

        Yields
        ------
        None
            Nothing; a folder in which nothing was written is gone at the end if it is new.

        Raises
        ------
        ExistingOutputError
            Where the folder holds something that may not be replaced.
        BusyOutputError
            Where another run is writing to it.
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

    def check(self) -> bool:
        """See whether the folder may take a run of these images; change nothing.

        Returns
        -------
        bool
            Whether it holds one already, in part or complete; `settle` says whether it is this.

        Raises
        ------
        ExistingOutputError
            Where it holds something that may not be replaced.
        """
        if self._is_vacant():
            return False
        found = _read(self._place, _RUN)
        if found is None or (self._overwrite and self._is_complete()):
            check_folder(self._place, REPORT, self._overwrite)
            return False
        if self._is_complete() or found["images"] == self._run["images"]:
            return True
        if self._overwrite:
            return False
        raise ExistingOutputError(
            f"{self._place} holds an unfinished run of {' and '.join(found['images'])}: run that "
            "again to continue it, choose another folder or ask to overwrite it"
        )

    def settle(self, key: str) -> None:
        """Say which run this is, as soon as that is known.

        Parameters
        ----------
        key : str
            Of everything the whole run depends on.

        Raises
        ------
        ExistingOutputError
            Where the folder holds another run that is complete.
        """
        work, held = self._work
        if held and (work / REPORT).is_file() and _read(work, _RUN)["key"] != key:
            if work == self._place:
                check_folder(self._place, REPORT, self._overwrite)
            else:
                # Of another run, which was killed as it got its place.
                (work / REPORT).remove()
        self._run["key"] = key
        if self._made:
            write_text(work / _RUN, json.dumps(self._run))

    @cached_property
    def location(self) -> Location:
        """Where this run writes, made or cleared when the first result is there to be written."""
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
        self._made = True
        return work

    def finish(self) -> Location:
        """Give the run its place, when all of it is written.

        Returns
        -------
        Location
            The folder: what it held before is gone.
        """
        if self.location != self._place and self._lock is not None:
            with writing_to(self._place):
                self._lock.go_along(self.location)
                self._place.take(self.location)
        return self._place

    def keeping(self, name: str, known: Callable[[Location], bool]) -> Location:
        """Where what all steps need is kept.

        Parameters
        ----------
        name : str
            Of it.
        known : callable
            Whether it is at a place, in part or complete.

        Returns
        -------
        Location
            A Zarr array; it need not exist.

        Raises
        ------
        ExistingOutputError
            Where it is not there, and the folder holds a complete run that may be another.
        """
        work, held = self._work
        place = work.child(_NOTES, f"{name}.zarr")
        if held and known(place):
            return place
        if held and work == self._place and self._run["key"] is None and self._is_complete():
            check_folder(self._place, REPORT, self._overwrite)
        return self.location.child(_NOTES, f"{name}.zarr")

    def recall(self, name: str, key: str) -> dict[str, Any] | None:
        """What was noted of a step.

        Parameters
        ----------
        name : str
            The step's, unlike those of others in the run.
        key : str
            Of everything the step depends on.

        Returns
        -------
        dict or None
            None where nothing was noted, or of something else.
        """
        work, held = self._work
        if not held:
            return None
        found = _read(work, f"{_NOTES}/{name}.json")
        return found["note"] if found is not None and found["key"] == key else None

    def note(self, name: str, key: str, note: dict[str, Any]) -> None:
        """Note what a step found.

        Parameters
        ----------
        name, key : str
            As for `recall`.
        note : dict
            Numbers, strings and lists.
        """
        if self._lock is not None:
            self._lock.sign()
        text = json.dumps({"key": key, "note": note})
        write_text(self.location / _NOTES / f"{name}.json", text)

    def place(self, name: str) -> Location:
        """Where a step may store what is too large for a note.

        Parameters
        ----------
        name : str
            As for `recall`.

        Returns
        -------
        Location
            It need not exist.
        """
        return self.location / _NOTES / f"{name}.ome.zarr"

    @cached_property
    def _work(self) -> tuple[Location, bool]:
        """Where this run writes, and whether it was there to be continued; asked once."""
        if self.check():
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


def _read(folder: Location, name: str) -> Any:
    """A note; None where there is none, or none that can be understood."""
    place = folder.child(name)
    if not place.is_file():
        return None
    try:
        found = json.loads(place.read_bytes())
    except ValueError:
        # As after a loss of power; what it was of is done again.
        logger.warning("the note %s cannot be read", place)
        return None
    return found if isinstance(found, dict) else None
