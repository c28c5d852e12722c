"""Levels of a pyramid computed by workers: the bytes of one process, and not by this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itkstream.apply.products import compute_pyramid
from itkstream.geometry import Grid
from itkstream.io import create_ome_zarr, write_pyramid
from itkstream.io.images.stores import ome_zarr_writer
from itkstream.workers import Resources, session

SHAPE = (21, 70, 1100)


def make_image(path: Path, dtype: Any, **layout: Any) -> Path:
    grid = Grid(SHAPE, (2.0, 0.5, 0.4), (1.0, 2.0, 3.0))
    target = create_ome_zarr(path, grid, dtype, chunks=(8, 32, 128), **layout)
    rng = np.random.default_rng(3)
    target[:] = (rng.uniform(size=target.shape) * 1000).astype(dtype)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and ".itkstream" not in file.parts
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "layout", "labels"),
    [
        (np.uint16, {}, False),
        (np.float32, {"shards": (16, 64, 256)}, False),
        (np.int32, {"version": "0.4"}, True),
        (np.uint8, {"series": {"t": 2, "c": 3}}, False),
    ],
)
def test_the_bytes_are_those_of_one_process(
    tmp_path: Path, dtype: Any, layout: dict[str, Any], labels: bool
) -> None:
    one, other = (make_image(tmp_path / name / "i.zarr", dtype, **layout) for name in "ab")
    grids = write_pyramid(one, labels=labels)
    compute_pyramid(other, labels=labels)
    compute_pyramid(other, labels=labels)  # again, over what is there
    assert len(grids) == 4
    assert contents(one) == contents(other)


@pytest.mark.slow
def test_worker_processes_compute_the_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (make_image(tmp_path / name / "i.zarr", np.uint16) for name in "ab")
    write_pyramid(one)

    def never(*_: Any) -> None:
        raise AssertionError("a level was averaged by the process that runs the workers")

    monkeypatch.setattr(ome_zarr_writer, "round_to", never)
    with session(Resources(n_workers=2)) as workers:
        compute_pyramid(other, resources=workers)
    assert contents(one) == contents(other)
