"""All levels, channels and time points of an image: counted by its metadata, damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import DisplacementField, Grid
from itkstream.io import create_ome_zarr, open_image, open_series, write_n5, write_pyramid
from itkstream.io.transforms.files import write_transform
from itkstream.napari_reader import read_layers

GRID = Grid((20, 600, 520), (2.0, 1.0, 1.0), axes=("z", "y", "x"))


def ome_zarr(path: Path) -> Path:
    create_ome_zarr(path, GRID, "u1", chunks=(20, 260, 260))[:] = 7
    write_pyramid(path)
    return path


def n5(path: Path) -> Path:
    for level in range(3):
        fine = Grid((32 >> level, 24 >> level, 16 >> level), (1.0 * 2**level,) * 3)
        write_n5(path, f"c/s{level}", np.full(fine.shape, level, "u1"), fine, (2**level,) * 3)
    return path / "c"


WRITERS = {"ome_zarr": ome_zarr, "n5": n5}


@pytest.fixture(params=WRITERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param](tmp_path / f"a.{request.param.replace('ome_', '')}")


def middle(path: Path) -> Path:
    """The metadata of level 1."""
    names = ("1/zarr.json", "s1/attributes.json")
    return next(path / name for name in names if (path / name).is_file())


def remove(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    file.write_text(file.read_text()[:20])


def test_levels_come_from_fine_to_coarse(path: Path) -> None:
    levels = open_series(path, "level")
    assert len(levels) > 1
    for number, level in enumerate(levels):
        alone = open_image(path, level=number)
        assert (level.grid, level.recipe) == (alone.grid, alone.recipe)
    assert [level.grid for level in open_series(path, "level", level=1)] == [
        level.grid for level in levels
    ]


@pytest.mark.parametrize("damage", [remove, cut_short])
def test_a_damaged_level_is_an_error_that_names_it(
    path: Path, damage: Callable[[Path], None]
) -> None:
    file = middle(path)
    damage(file)
    with pytest.raises((InputError, MissingDataError), match=str(file.parent)):
        open_series(path, "level")


def test_the_levels_beside_a_damaged_one_keep_their_numbers(tmp_path: Path) -> None:
    path = n5(tmp_path / "a.n5")
    (path / "s1/attributes.json").unlink()
    assert open_image(path).shape == (32, 24, 16)
    assert open_image(path, level=2).shape == (8, 6, 4)
    for wanted in ({"level": 1}, {"spacing": 2.0}):
        with pytest.raises(MissingDataError, match=r"c/s1 is not an N5 dataset"):
            open_image(path, **wanted)


def test_a_group_of_another_kind_is_no_damaged_level(tmp_path: Path) -> None:
    grid = Grid((4, 4, 4), (1.0, 1.0, 1.0))
    write_n5(tmp_path / "a.n5", "s1/image", np.zeros(grid.shape, "u1"), grid)
    with pytest.raises(MissingDataError, match="s1/image"):
        open_image(tmp_path / "a.n5")


def test_another_axis_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="'channel', 'time' or 'level'"):
        open_series(path, "z")  # type: ignore[arg-type]


def test_napari_shows_no_pyramid_with_a_gap(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    aligned = ome_zarr(folder / "aligned.ome.zarr")
    lattice = Grid((2, 2, 2), (40.0, 600.0, 520.0), axes=GRID.axes)
    field = DisplacementField(np.zeros((2, 2, 2, 3), "f4"), lattice)
    write_transform(folder / "transform.ome.zarr", field)
    side = {"name": str(aligned), "opened": {"path": str(aligned), "spacing": 2.0}}
    (folder / "registration.json").write_text(json.dumps({"fixed": side, "moving": side}))
    layers = read_layers(str(folder))
    counts = {said["name"]: len(data) for data, said, kind in layers if kind == "image"}
    assert counts == {"fixed": 2, "moving": 2, "aligned": 3}
    middle(aligned).unlink()
    with pytest.raises(MissingDataError, match=r"aligned\.ome\.zarr/1"):
        read_layers(str(folder))
