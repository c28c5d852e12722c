"""Time points that nobody chose are named before a run begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from itkstream.geometry import Grid
from itkstream.io import create_ome_zarr
from itkstream.registration.request import Given, read_request
from itkstream.registration.steps import DEFAULT_STEPS, RegisterSettings
from itkstream.workers import Resources


def test_the_time_point_is_told_where_there_are_several(tmp_path: Path) -> None:
    grid = Grid((16, 32, 32), (1.0, 1.0, 1.0), axes=("z", "y", "x"))
    for name, times in (("fixed", 1), ("moving", 3)):
        series = {"t": times} if times > 1 else {}
        target = create_ome_zarr(
            tmp_path / f"{name}.ome.zarr", grid, np.uint16, chunks=grid.shape, series=series
        )
        target[...] = np.random.default_rng(0).integers(0, 99, target.shape, np.uint16)
    given = Given(tmp_path / "fixed.ome.zarr", tmp_path / "moving.ome.zarr")
    request = read_request(given, DEFAULT_STEPS, RegisterSettings(), Resources(), tmp_path / "out")
    assert "time point 0 of the moving image" in request.notes
    assert not any("of the fixed image" in note for note in request.notes)
