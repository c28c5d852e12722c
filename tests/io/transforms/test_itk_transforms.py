"""Transform files, read by SimpleITK itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid
from itkstream.geometry.chains import FieldChain
from itkstream.geometry.itk_bridge import to_itk_transform
from itkstream.io.transforms.files import write_transform
from itkstream.io.transforms.itk import hdf5_files as itk_hdf5
from itkstream.io.transforms.itk.hdf5_files import write_hdf5_transform
from itkstream.io.transforms.itk.transform_files import (
    largest_difference,
    read_itk_transform,
    write_itk_transform,
)

MakeGrid = Callable[..., Grid]
Make = Callable[..., CompositeTransform]
AXES = [("x", "y", "z"), ("z", "y", "x"), ("y", "z", "x"), ("x", "y"), ("y", "x")]


def in_xyz(points: np.ndarray, grid: Grid) -> np.ndarray:
    return points[:, [grid.axes.index(a) for a in sorted(grid.axes)]]


def points_in(grid: Grid, low: float = 0.0) -> np.ndarray:
    """Random points between the outermost voxel centres, or `low` voxels beyond."""
    rng = np.random.default_rng(0)
    return grid.to_physical(rng.uniform(low, np.subtract(grid.shape, 1) - low, (200, grid.ndim)))


@pytest.mark.parametrize("axes", AXES, ids="".join)
def test_composites_are_what_simpleitk_would_have_written(
    odd_grid: MakeGrid, smooth_transform: Make, tmp_path: Path, axes: tuple[str, ...]
) -> None:
    grid = odd_grid(1, len(axes), axes)
    transform = smooth_transform(grid, factor=2)
    write_hdf5_transform(tmp_path / "mine.h5", transform.transforms, axes)
    sitk.WriteTransform(to_itk_transform(transform, axes), str(tmp_path / "its.h5"))
    mine, its = (sitk.ReadTransform(str(tmp_path / f"{n}.h5")) for n in ("mine", "its"))
    assert mine.GetName() == its.GetName() == "CompositeTransform"
    for p in in_xyz(points_in(grid, -2), grid):
        # Doubles throughout, the border and beyond it included.
        np.testing.assert_allclose(mine.TransformPoint(p), its.TransformPoint(p), atol=1e-10)
    points = points_in(grid)
    wanted = in_xyz(transform.apply(points), grid)
    found = [mine.TransformPoint(p) for p in in_xyz(points, grid)]
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert largest_difference(tmp_path / "mine.h5", transform, points, grid.axes) < 1e-9
    moved = CompositeTransform((*transform.transforms, AffineTransform(shift(len(axes), 0.25))))
    assert largest_difference(tmp_path / "mine.h5", moved, points, grid.axes) == pytest.approx(0.25)


def shift(n: int, by: float) -> np.ndarray:
    matrix = np.eye(n + 1)
    matrix[0, -1] = by
    return matrix


@pytest.mark.parametrize("axes", AXES, ids="".join)
@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat"])
def test_affines(
    odd_grid: MakeGrid, smooth_transform: Make, tmp_path: Path, axes: tuple[str, ...], suffix: str
) -> None:
    grid = odd_grid(2, len(axes), axes)
    affine = smooth_transform(grid).transforms[1]
    path = tmp_path / f"affine{suffix}"
    write_itk_transform(path, affine, axes)
    assert largest_difference(path, affine, points_in(grid, -9), axes) < 1e-9
    again = read_itk_transform(path, axes)
    np.testing.assert_allclose(again.matrix, affine.matrix, atol=1e-12)


def test_what_is_written_reads_back(
    odd_grid: MakeGrid, smooth_transform: Make, tmp_path: Path
) -> None:
    grid = odd_grid(3, axes=("z", "y", "x"))
    transform = smooth_transform(grid)
    write_hdf5_transform(tmp_path / "c.h5", transform.transforms, grid.axes)
    again = read_itk_transform(tmp_path / "c.h5", grid.axes)
    points = points_in(grid)
    np.testing.assert_allclose(again.apply(points), transform.apply(points), atol=1e-6)
    assert again.transforms[0].grid.axes == grid.axes
    xyz = read_itk_transform(tmp_path / "c.h5")
    np.testing.assert_allclose(
        xyz.apply(points[:, ::-1])[:, ::-1], transform.apply(points), atol=1e-6
    )


@dataclass
class Slow:
    """A stored field that remembers the largest part it was asked for."""

    array: np.ndarray
    parts: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        part = self.array[key]
        self.parts.append(part.size)
        return part


@pytest.mark.parametrize("axes", [("x", "y", "z"), ("z", "y", "x")], ids="".join)
def test_fields_are_streamed(
    odd_grid: MakeGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: tuple[str, ...]
) -> None:
    grid = odd_grid(4, axes=axes, shape=(20, 18, 19))
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, 3)).astype(np.float32)
    affine = AffineTransform(np.eye(4))
    write_hdf5_transform(tmp_path / "one.h5", (DisplacementField(vectors, grid), affine), axes)
    monkeypatch.setattr(itk_hdf5, "_CHUNK", 150)
    source = Slow(vectors)
    write_hdf5_transform(tmp_path / "two.h5", (DisplacementField(source, grid), affine), axes)
    # 150 * 16 numbers, or one plane: never the whole.
    assert max(source.parts) < 2 * 150 * 16
    assert sum(source.parts) == vectors.size
    parts = [
        h5py.File(tmp_path / n)["TransformGroup/2/TransformParameters"][:]
        for n in ("one.h5", "two.h5")
    ]
    np.testing.assert_array_equal(*parts)


def test_refuses(tmp_path: Path) -> None:
    affine = AffineTransform(np.eye(3))
    field = DisplacementField(np.zeros((3, 3, 2)), Grid((3, 3), (1, 1)))
    with pytest.raises(MissingDataError, match="no transform file"):
        read_itk_transform(tmp_path / "none.tfm")
    (tmp_path / "text.tfm").write_text("hello")
    with pytest.raises(InputError, match="no transform that ITK can read"):
        read_itk_transform(tmp_path / "text.tfm")
    with pytest.raises(InputError, match="a displacement field followed by an affine"):
        FieldChain.of(CompositeTransform((affine, affine)))
    with pytest.raises(InputError, match="a displacement field followed by an affine"):
        FieldChain.of(CompositeTransform((field, affine, field)))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    class Broken(Slow):
        """A disk that fails."""

        def __getitem__(self, key: Any) -> np.ndarray:
            raise OSError("disk")

    grid = Grid((3, 3), (1, 1), axes=("y", "x"))
    field = DisplacementField(Broken(np.zeros((3, 3, 2))), grid)
    with pytest.raises(OSError, match="disk"):
        write_transform(tmp_path / "c.h5", field)
    assert not list(tmp_path.iterdir())
