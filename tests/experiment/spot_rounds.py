"""A small experiment made for the tests of spots: known transforms, stored as registrations are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Transform,
)
from itkstream.io import create_ome_zarr
from itkstream.io.transforms.files import write_transform

__all__ = ["GRID", "UNKNOWN_X", "make_rounds", "ways"]

GRID = Grid((18, 20, 24), (1.5, 1.0, 0.8), (3.0, -2.0, 5.0), axes=("z", "y", "x"))
"""Voxels of all rounds; their coordinates do not begin at 0."""

UNKNOWN_X = 20.0
"""Beyond this x, in µm, the maps of the error know nothing."""


def ways() -> dict[str, Transform]:
    """True maps from the reference to the other rounds, points as z, y, x."""
    p, shift, turn = GRID.positions(), np.eye(4), np.eye(4)
    shift[:3, 3] = [0.5, 1.0, -1.0]
    turn[1:3, 1:3] = [[0.96, -0.28], [0.28, 0.96]]
    middle = GRID.to_physical(np.divide(GRID.shape, 2))
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    found = {}
    for name, matrix in (("r2", shift), ("r3", turn)):
        bend = [np.sin(p[..., k] / 5 + k + matrix[1, 2]) for k in (1, 2, 0)]
        field = DisplacementField(0.4 * np.stack(bend, axis=-1).astype(np.float32), GRID)
        found[name] = CompositeTransform((field, AffineTransform(matrix, axes=GRID.axes)))
    return found


def make_rounds(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Write an experiment of rounds r1, the reference, r2 and r3, as `itkstream rounds` does."""
    entries = []
    for name in ("r1", "r2", "r3"):
        image = folder / f"{name}.ome.zarr"
        create_ome_zarr(image, GRID, np.uint8, chunks=(18, 20, 24))[...] = 1
        entries.append({"name": name, "image": str(image), "options": {}, "channels": ["DAPI"]})
        entries[-1] |= dict.fromkeys(("folder", "transform", "error", "verdict", "failed"))
    out = folder / "experiment"
    for entry in entries[1:]:
        place = out / "rounds" / entry["name"]
        place.mkdir(parents=True)
        write_transform(place / "transform.ome.zarr", ways()[entry["name"]], GRID.axes)
        coarse = GRID.shrink((2, 4, 4))
        radii = np.linspace(0.5, 2, coarse.size, dtype=np.float32).reshape(coarse.shape)
        radii[coarse.positions()[..., 2] > UNKNOWN_X] = np.nan
        create_ome_zarr(place / "error.ome.zarr", coarse, np.float32, chunks=coarse.shape)[...] = (
            radii
        )
        entry |= {key: f"rounds/{entry['name']}/{key}.ome.zarr" for key in ("transform", "error")}
        entry |= {"folder": f"rounds/{entry['name']}", "verdict": {"outcome": "good"}}
    facts = {"version": 1, "complete": True, "key": "", "reference": "r1", "rounds": entries}
    if change is not None:
        change(facts)
    (out / "experiment.json").write_text(json.dumps(facts))
    return out
