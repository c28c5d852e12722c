"""The folder of one registration: claimed for it, and noting every step that is done.

After each step a note is written with what the step found, under a key of everything it depends
on: images, masks, the steps before it, and the code. A run that was killed is begun again by the
same call, takes from the notes what has the key it asks for, and does the rest.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from typing import Any

from itkstream.errors import ExistingOutputError
from itkstream.io.locations import Location
from itkstream.io.outputs import check_folder, write_text

__all__ = ["REPORT", "RunFolder"]

REPORT = "registration.json"
"""The report of a run; it is there when the run is complete."""

_NOTES = "steps"
_RUN = f"{_NOTES}/run.json"


class RunFolder:
    """Where one registration writes.

    Parameters
    ----------
    out : path
        New, empty, or of an earlier run.
    key : str
        Of everything the whole run depends on.
    images : sequence of str
        What the images are called: an unfinished run of others is not touched.
    overwrite : bool
        Whether an earlier run of another kind may be replaced.
    """

    def __init__(
        self, out: str | os.PathLike[str], key: str, images: tuple[str, ...], overwrite: bool
    ) -> None:
        self._place = Location.parse(out)
        self._run = {"key": key, "images": list(images)}
        self._overwrite = overwrite

    def check(self) -> bool:
        """See whether the folder may take this run; change nothing.

        Returns
        -------
        bool
            Whether it holds this run already, in part or complete.

        Raises
        ------
        ExistingOutputError
            Where it holds something that may not be replaced.
        """
        found = None if self._place.is_vacant() else self._read(_RUN)
        if found is None:
            check_folder(self._place, REPORT, self._overwrite)
            return False
        same = found["key"] == self._run["key"]
        if self._place.child(REPORT).is_file():
            if same and not self._overwrite:
                return True
            check_folder(self._place, REPORT, self._overwrite)
            return False
        if same or found["images"] == self._run["images"]:
            return True
        if self._overwrite:
            return False
        raise ExistingOutputError(
            f"{self._place} holds an unfinished run of {' and '.join(found['images'])}: run that "
            "again to continue it, choose another folder or ask to overwrite it"
        )

    @cached_property
    def location(self) -> Location:
        """The folder, made or cleared when the first result is there to be written."""
        if not self._held:
            if not self._place.is_vacant():
                self._place.remove()
            self._place.make_folder()
        notes = self._place / _NOTES
        notes.make_folder()
        write_text(self._place / _RUN, json.dumps(self._run))
        return self._place

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

    def _read(self, name: str) -> Any:
        place = self._place.child(name)
        return json.loads(place.read_bytes()) if place.is_file() else None
