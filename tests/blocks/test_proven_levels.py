"""Levels in a file: used where they are the means they should be, else the image is averaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from itkstream.blocks.levels import read_coarse
from itkstream.blocks.proven_levels import finest_needed
from itkstream.geometry import Grid, Image
from itkstream.io import create_ome_zarr, open_image, write_pyramid
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.registration.scene import make_level
from itkstream.workers import Resources

SHAPE = (264, 136, 144)  # of one level below: no axis of more than 256 voxels is left


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    """Bright noise in one corner, dark noise elsewhere: most places show little."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(100, 110, SHAPE).astype(np.uint16)
    voxels[150:230, 10:70, 20:90] = rng.integers(100, 5000, (80, 60, 70))
    return voxels


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks as small for these images as the real ones are for large images."""
    monkeypatch.setattr("itkstream.blocks.proven_levels._COMPARED", 32)


def pyramid(path: Path, voxels: np.ndarray, **how: Any) -> Image:
    grid = Grid(voxels.shape, (1.0, 1.0, 1.0), (5.0, 6.0, 7.0), axes=("z", "y", "x"))
    target = create_ome_zarr(path, grid, voxels.dtype, chunks=(64,) * 3)
    target[...] = voxels
    write_pyramid(path, **how)
    return open_image(path)


def level_of(path: Path, number: int) -> zarr.Array[Any]:
    found = zarr.open_group(str(path), mode="r+")[str(number)]
    assert isinstance(found, zarr.Array)
    return found


def test_a_level_of_means_is_read_in_place_of_the_image(
    tmp_path: Path, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pyramid(tmp_path / "a.zarr", noisy)
    found, rest = finest_needed(image, (4, 4, 4))
    assert (found.shape, rest) == ((132, 68, 72), (2, 2, 2))
    assert found.grid == image.grid.shrink((2, 2, 2))
    # Where the group at the end is whole: a mean of means, rounded once; else as the writer does.
    means = read_coarse(image, (4, 4, 4)).read()
    np.testing.assert_allclose(read_coarse(found, rest).read(), means, atol=0.5)
    # The axes in another order, as another image has them.
    turned, rest = finest_needed(image.reorder(("x", "y", "z")), (2, 4, 8))
    assert (turned.shape, rest) == ((72, 68, 132), (1, 2, 4))
    read = []
    original = ZarrArray.read

    def recorded(source: ZarrArray, *box: tuple[int, ...]) -> np.ndarray:
        values = original(source, *box)
        read.append(values.size if source.path.endswith("/0") else 0)
        return values

    monkeypatch.setattr(ZarrArray, "read", recorded)
    level = make_level(image, means.size, Resources(), lambda *_: None)
    np.testing.assert_allclose(level.read(), means, atol=0.5)
    # Eight blocks; with more voxels there are no more of them.
    assert 0 < sum(read) <= 8 * 32**3


def test_the_coarsest_that_fits_is_taken(tmp_path: Path, noisy: np.ndarray) -> None:
    small = noisy[140:, 10:, 20:]
    path = tmp_path / "a.zarr"
    group = zarr.open_group(str(path), mode="w")
    datasets = []
    for number, factor in enumerate((1, 2, 4, 8)):
        shape = tuple(n // 8 * 8 for n in small.shape)
        cut = small[tuple(slice(0, n) for n in shape)].astype(float)
        split = [v for n in shape for v in (n // factor, factor)]
        mean = cut.reshape(split).mean((1, 3, 5))
        group.create_array(str(number), data=np.floor(mean).astype(np.uint16), chunks=(32,) * 3)
        # Positions as many state them: as if every level began where the first does.
        scale = [{"type": "scale", "scale": [float(factor)] * 3}]
        datasets.append({"path": str(number), "coordinateTransformations": scale})
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets}],
    }
    image = open_image(path)
    for factors, shrunk in (((8, 8, 8), 8), ((16, 8, 8), 8), ((4, 8, 8), 4), ((2, 4, 4), 2)):
        found, rest = finest_needed(image, factors)
        assert found.grid == image.grid.shrink((shrunk,) * 3)
        assert rest == tuple(f // shrunk for f in factors)
    assert finest_needed(image, (1, 2, 2)) == (image, (1, 2, 2))


def subsampled(path: Path, voxels: np.ndarray) -> None:
    level_of(path, 1)[...] = voxels[::2, ::2, ::2]


def shifted(path: Path, voxels: np.ndarray) -> None:
    level = level_of(path, 1)
    level[...] = np.roll(level[...], 1, axis=2)


def smoothed(path: Path, voxels: np.ndarray) -> None:
    level = level_of(path, 1)
    values = level[...].astype(float)
    level[...] = ((values + np.roll(values, 1, 0)) / 2).astype(np.uint16)


def unfinished(path: Path, voxels: np.ndarray) -> None:
    level_of(path, 1)[:, 40:] = 0


def of_another_scale(path: Path, voxels: np.ndarray) -> None:
    meta = json.loads((path / "zarr.json").read_text())
    level = meta["attributes"]["ome"]["multiscales"][0]["datasets"][1]
    level["coordinateTransformations"][0]["scale"] = [2.1, 2.0, 2.0]
    (path / "zarr.json").write_text(json.dumps(meta))


def lost(path: Path, voxels: np.ndarray) -> None:
    (path / "1" / "zarr.json").unlink()


@pytest.mark.parametrize(
    "spoil", [subsampled, shifted, smoothed, unfinished, of_another_scale, lost]
)
def test_no_other_level_is_trusted(
    tmp_path: Path, noisy: np.ndarray, spoil: Callable[[Path, np.ndarray], None]
) -> None:
    image = pyramid(tmp_path / "a.zarr", noisy)
    spoil(tmp_path / "a.zarr", noisy)
    found, factors = finest_needed(image, (2, 2, 2))
    assert found is image
    assert factors == (2, 2, 2)


@pytest.mark.parametrize("what", ["flat", "in memory", "cut"])
def test_where_nothing_can_be_compared_the_image_is_read(
    tmp_path: Path, noisy: np.ndarray, what: str
) -> None:
    if what == "in memory":
        image = Image(noisy, Grid(noisy.shape, (1.0, 1.0, 1.0)))
    else:
        voxels = np.full(SHAPE, 7, np.uint16) if what == "flat" else noisy
        image = pyramid(tmp_path / "a.zarr", voxels)
    if what == "cut":
        image = image[(slice(0, 200), slice(0, 136), slice(0, 144))]
    assert finest_needed(image, (2, 2, 2))[0] is image


def test_floating_point_levels(tmp_path: Path, noisy: np.ndarray) -> None:
    image = pyramid(tmp_path / "a.zarr", (noisy / 7).astype(np.float32))
    assert finest_needed(image, (2, 2, 2))[0].shape == (132, 68, 72)
    subsampled(tmp_path / "a.zarr", (noisy / 7).astype(np.float32))
    assert finest_needed(image, (2, 2, 2))[0] is image


@pytest.mark.parametrize("shards", [None, (64, 64, 64)])
def test_a_file_may_be_missing_where_the_image_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: tuple[int, ...] | None
) -> None:
    """Two channels, one of them half empty; the level of the other lacks a file."""
    # All that is compared lies inside one file each, where all is as it should be.
    monkeypatch.setattr("itkstream.blocks.proven_levels._COMPARED", 8)
    path, voxels = tmp_path / "a.zarr", np.zeros((2, *SHAPE), np.uint16)
    voxels[0] = np.random.default_rng(0).integers(100, 5000, SHAPE)
    voxels[1, 128:] = voxels[0, 128:]
    grid = Grid(SHAPE, (1.0, 1.0, 1.0), axes=("z", "y", "x"))
    target = create_ome_zarr(
        path, grid, voxels.dtype, chunks=(32,) * 3, shards=shards, series={"c": 2}
    )
    target[...] = voxels
    write_pyramid(path)

    def trusted(channel: int) -> bool:
        return finest_needed(open_image(path, channel=channel), (2, 2, 2))[1] == (1, 1, 1)

    assert not (path / "1" / "c" / "1" / "0" / "0" / "0").exists()
    assert trusted(0)
    assert trusted(1)
    (path / "1" / "c" / "0" / "1" / "0" / "0").unlink()
    assert not trusted(0)
    assert trusted(1)
