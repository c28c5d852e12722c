"""Parts of a run, each done once: noted in its folder when it is done, and recalled afterwards.

What a step found is noted in numbers: matrices digit by digit, and of a field where it is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from itkstream.geometry import AffineTransform, BlockGrid, PiecewiseAffine, Transform
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.files import read_transform
from itkstream.progress.reporters import Reporter
from itkstream.registration.folder import RunFolder
from itkstream.registration.scene import Finding, Scene, State
from itkstream.workers.resources import peak_memory

__all__ = ["Journal", "Note", "next_from", "note_of"]

Note: TypeAlias = dict[str, Any]
"""Numbers, strings and lists; the facts that the report holds are under ``facts``."""


class Journal:
    """Journal of a run: in its folder, in `facts` for the report, and on the screen."""

    def __init__(self, folder: RunFolder, reporter: Reporter) -> None:
        self.folder = folder
        self.reporter = reporter
        self.facts: list[Note] = []
        self._held: list[tuple[str, str, Note]] = []

    def once(
        self,
        title: str,
        name: str,
        key: str,
        do: Callable[[Note], Note],
        *,
        again: Callable[[Note], Note] = dict,
        holds: Callable[[Note], bool] = bool,
        hold: bool = False,
    ) -> Note:
        """Do a part of the run and note it, unless it is noted under this key already.

        `do` fills the facts and returns what else is noted. Of a note that `holds`, `again` makes
        what was stored complete, and returns the note as it then is. A note on `hold` waits for
        the next one, so that a run that finds nothing leaves nothing behind.
        """
        earlier = self.folder.recall(name, key)
        if earlier is not None and holds(earlier):
            self.reporter.step(title)
            self.reporter.blocks(1, 1)
            self.reporter.note("done by an earlier run")
            self.facts.append(earlier["facts"])
            note = again(earlier)
            if note != earlier:
                self.folder.note(name, key, note)
            return note
        with self._part(title) as facts:
            further = do(facts)
        note = {"facts": facts, **further}
        self._held.append((name, key, note))
        while self._held and not hold:
            self.folder.note(*self._held.pop(0))
        return note

    @contextmanager
    def _part(self, title: str) -> Iterator[Note]:
        """Tell that a part begins, time it, and tell what it found."""
        self.reporter.step(title)
        facts: Note = {"name": title}
        began = time.perf_counter()
        yield facts
        facts["seconds"] = round(time.perf_counter() - began, 3)
        # Of this process, without its workers, since it began.
        facts["peak_bytes"] = peak_memory()
        self.facts.append(facts)
        if "local_correlation" in facts:
            self.reporter.note(f"local correlation {facts['local_correlation']:.4f}")
        if "dropped" in facts:
            self.reporter.note(f"left out: {facts['dropped']}")


def note_of(found: Finding, quality: float, folder: Location) -> Note:
    """Note a finding that is kept; a stored field lies below the folder."""
    radii = None if found.radii is None else list(found.radii)
    kept = {"whole": found.whole, "radii": radii, "quality": quality}
    return {"kept": kept | _change_note(found, folder)}


def next_from(note: Note, state: State, scene: Scene, folder: Location) -> State:
    """Find the state after a step from its note and the state before it."""
    kept = note.get("kept")
    if kept is None:
        return state
    radii = None if kept["radii"] is None else (kept["radii"][0], kept["radii"][1])
    place = folder / kept["store"] if "store" in kept else None
    found = Finding(_change(kept, scene, folder), radii=radii, whole=kept["whole"], place=place)
    return found.after(state, kept["quality"])


def _change_note(found: Finding, folder: Location) -> Note:
    change = found.change
    if found.place is not None:
        return {"store": found.place.relative_to(folder)}
    if isinstance(change, AffineTransform):
        return {"matrix": change.matrix.tolist()}
    if isinstance(change, PiecewiseAffine):
        blocks = {"blocksize": change.blocks.blocksize, "overlap": change.blocks.overlap}
        return {"matrices": change.matrices.tolist(), **blocks}
    raise TypeError(f"a {type(change).__name__} cannot be noted: store it, and say its place")


def _change(kept: Note, scene: Scene, folder: Location) -> Transform:
    if "matrix" in kept:
        return AffineTransform(np.array(kept["matrix"]))
    if "matrices" in kept:
        grid = scene.coarse_grid
        blocks = BlockGrid(grid.shape, kept["blocksize"], kept["overlap"])
        return PiecewiseAffine(np.array(kept["matrices"]), blocks, grid)
    return read_transform(folder / kept["store"], scene.fixed.grid.axes)
