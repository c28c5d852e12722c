"""The folder of one registration: claimed for it, and noting every step that is done.

After each step a note is written with what the step found, under a key of everything it depends
on: images, masks, the steps before it, and the code. A run that was killed is begun again by the
same call, takes from the notes what has the key it asks for, and does the rest.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

from itkstream.errors import ExistingOutputError
from itkstream.fingerprint import LEDGER_FOLDER
from itkstream.io.chunk_files import writing_to
from itkstream.io.locations import Location
from itkstream.io.outputs import check_folder, write_text
from itkstream.ledger import Lock, holding

__all__ = ["ALIGNED", "REPORT", "RunFolder"]

logger = logging.getLogger(__name__)

REPORT = "registration.json"
"""The report of a run; it is there when the run is complete."""

ALIGNED = "aligned.ome.zarr"
"""The moving image on the fixed grid."""

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
        found = self._read(_RUN)
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
        if self._held and self._is_complete() and self._read(_RUN)["key"] != key:
            check_folder(self._place, REPORT, self._overwrite)
        self._run["key"] = key
        if self._made:
            write_text(self._place / _RUN, json.dumps(self._run))

    @cached_property
    def location(self) -> Location:
        """The folder, made or cleared when the first result is there to be written."""
        if not self._held:
            for name in self._place.names():
                if name != LEDGER_FOLDER:
                    self._place.child(name).remove()
            self._place.make_folder()
        notes = self._place / _NOTES
        notes.make_folder()
        self._place.remove_partial_files(REPORT)
        notes.remove_partial_files()
        write_text(self._place / _RUN, json.dumps(self._run))
        self._made = True
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
        place = self._place.child(_NOTES, f"{name}.zarr")
        if self._held and known(place):
            return place
        if self._held and self._run["key"] is None and self._is_complete():
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
        if not self._held:
            return None
        found = self._read(f"{_NOTES}/{name}.json")
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
    def _held(self) -> bool:
        """Whether the run was there to be continued when this one began; asked once."""
        return self.check()

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

    def _read(self, name: str) -> Any:
        """A note; None where there is none, or none that can be understood."""
        place = self._place.child(name)
        if not place.is_file():
            return None
        try:
            found = json.loads(place.read_bytes())
        except ValueError:
            # As after a loss of power; what it was of is done again.
            logger.warning("the note %s cannot be read", place)
            return None
        return found if isinstance(found, dict) else None
