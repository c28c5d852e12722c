"""A registration whose image has a hostile name, for all tests of reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import HOSTILE, SETTINGS, STEPS

import itkstream
from itkstream.geometry import Grid
from itkstream.io import write_n5
from itkstream.io.images.stores.ome_zarr_writer import create_ome_zarr
from itkstream.phantoms import PhantomPair


@pytest.fixture(scope="session")
def registered(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `register` wrote, with its report."""
    folder = tmp_path_factory.mktemp("report")
    for name, image in ((HOSTILE, pair.fixed), ("moving.n5", pair.moving)):
        write_n5(folder / name, "s0", image.read(), image.grid, chunks=(32, 32, 32))
    places = folder / HOSTILE / "s0", folder / "moving.n5/s0"
    itkstream.register(*places, folder / "out", STEPS, SETTINGS)
    return folder / "out"


@pytest.fixture
def copied(registered: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the folder, with more in its registration.json, and an error map where one is given."""

    def copy(radii_um: np.ndarray | None = None, **facts: Any) -> Path:
        folder = Path(shutil.copytree(registered, tmp_path / "copy"))
        file = folder / "registration.json"
        known = json.loads(file.read_text())
        if radii_um is not None:
            grid = Grid(**known["fixed"]["grid"]).shrink((4, 4, 4)).reorder(("z", "y", "x"))
            place = folder / "error.ome.zarr"
            stored = create_ome_zarr(place, grid, np.float32, chunks=grid.shape)
            stored[:] = np.broadcast_to(radii_um, grid.shape)
        file.write_text(json.dumps(known | facts))
        return folder

    return copy
