"""What a step found as a note of numbers, and back, so that a run can go on from it.

Matrices are noted digit by digit; of a field stored on disk, where it lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from itkstream.geometry import AffineTransform, BlockGrid, PiecewiseAffine, Transform
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.files import read_transform
from itkstream.registration.scene import Finding, Scene, State

__all__ = ["next_from", "note_of"]


def note_of(finding: Finding, state: State, facts: dict[str, Any], folder: Location) -> Any:
    """A note of a step that is done.

    Parameters
    ----------
    finding : Finding
        What it found.
    state : State
        What is known after it.
    facts : dict
        What the report says of it.
    folder : Location
        Of the run; a stored field lies below it.

    Returns
    -------
    dict
        Of numbers, strings and lists.
    """
    note: dict[str, Any] = {"facts": facts}
    if finding.change is None or "dropped" in facts:
        return note
    radii = None if finding.radii is None else list(finding.radii)
    kept = {"whole": finding.whole, "radii": radii, "quality": state.quality}
    return note | {"kept": kept | _change_note(finding, folder)}


def next_from(note: dict[str, Any], state: State, scene: Scene, folder: Location) -> State:
    """What is known after a step that was noted.

    Parameters
    ----------
    note : dict
        From `note_of`.
    state : State
        What was known before the step.
    scene : Scene
        Of the run.
    folder : Location
        Of the run.

    Returns
    -------
    State
        The same as after the step itself.
    """
    kept = note.get("kept")
    if kept is None:
        return state
    radii = None if kept["radii"] is None else (kept["radii"][0], kept["radii"][1])
    finding = Finding(_change(kept, scene, folder), radii=radii, whole=kept["whole"])
    return finding.after(state, kept["quality"])


def _change_note(finding: Finding, folder: Location) -> dict[str, Any]:
    change = finding.change
    if isinstance(change, AffineTransform):
        return {"matrix": change.matrix.tolist()}
    if isinstance(change, PiecewiseAffine):
        blocks = {"blocksize": change.blocks.blocksize, "overlap": change.blocks.overlap}
        return {"matrices": change.matrices.tolist(), **blocks}
    if finding.place is None:
        raise TypeError(f"a {type(change).__name__} cannot be noted")
    return {"store": finding.place.relative_to(folder)}


def _change(kept: dict[str, Any], scene: Scene, folder: Location) -> Transform:
    if "matrix" in kept:
        return AffineTransform(np.array(kept["matrix"]))
    if "matrices" in kept:
        grid = scene.coarse_grid
        blocks = BlockGrid(grid.shape, kept["blocksize"], kept["overlap"])
        return PiecewiseAffine(np.array(kept["matrices"]), blocks, grid)
    return read_transform(folder / kept["store"], scene.fixed.grid.axes)
