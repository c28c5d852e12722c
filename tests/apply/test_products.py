"""Inverses are written block by block, and a run that stopped is continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itkstream.apply import products
from itkstream.apply.products import write_inverse
from itkstream.errors import BlockErrors
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid
from itkstream.io.transforms.files import read_transform
from itkstream.io.transforms.ngff.inverses import read_error_map

GRID = Grid((160, 8, 8), (1.0, 1.0, 1.0), axes=("z", "y", "x"))
AFFINE = AffineTransform(np.diag([1.0, 1.1, 0.9, 1.0]), GRID.axes)
# 160 planes are three blocks, of 64, 64 and 32.
LAST = 150


class Watched:
    """A stored field that counts what blocks read, and whose end may be on a broken disk.

    The bounds of the field are found in one block of all planes.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.broken, self.blocks = values, False, 0
        self.shape, self.dtype = values.shape, values.dtype

    def __dask_tokenize__(self) -> str:
        return "watched"

    def __getitem__(self, key: Any) -> np.ndarray:
        planes = range(*key[0].indices(len(self.values)))
        if len(planes) < len(self.values):
            if self.broken and planes[-1] >= LAST:
                raise OSError("a disk that is broken")
            self.blocks += 1
        return self.values[key]


@pytest.fixture
def watched() -> Watched:
    rng = np.random.default_rng(0)
    return Watched(rng.uniform(0, 0.3, (*GRID.shape, 3)).astype(np.float32))


def invert(out: Path, field: Watched) -> float:
    transform = CompositeTransform((DisplacementField(field, GRID), AFFINE))
    return write_inverse(out, transform, GRID, blocksize=64)


def parts(store: Path) -> list[np.ndarray]:
    field = read_transform(store).transforms[0]
    return [np.asarray(field.data), read_error_map(store).read()]


def test_an_inverse_is_continued(tmp_path: Path, watched: Watched) -> None:
    worst = invert(tmp_path / "whole.ome.zarr", watched)
    assert watched.blocks == 3
    watched.broken, watched.blocks = True, 0
    with pytest.raises(BlockErrors, match="run the same again to compute only these"):
        invert(tmp_path / "i.ome.zarr", watched)
    assert watched.blocks == 2
    assert not (tmp_path / "i.ome.zarr").exists()
    watched.broken, watched.blocks = False, 0
    assert invert(tmp_path / "i.ome.zarr", watched) == worst
    assert watched.blocks == 1
    for found, expected in zip(*map(parts, sorted(tmp_path.iterdir())), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_solved_inverse_is_not_solved_again(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(products, "_largest", stop)
        with pytest.raises(KeyboardInterrupt):
            invert(tmp_path / "i.ome.zarr", watched)
    watched.blocks = 0
    assert invert(tmp_path / "i.ome.zarr", watched) < 0.01
    assert watched.blocks == 0
    assert [p.name for p in tmp_path.iterdir()] == ["i.ome.zarr"]
    assert sorted(p.name for p in (tmp_path / "i.ome.zarr").iterdir()) == [
        "displacement",
        "inverse_error",
        "zarr.json",
    ]
