"""What is said of an image is what its opening takes, and gives the same image again."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr

from itkstream import ImageOptions, open_image
from itkstream.errors import InputError, UnknownSpacingError

VOXELS = np.random.default_rng(0).integers(0, 99, (3, 2, 7, 6, 5)).astype(np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    zarr.create_array(str(tmp_path / "a.zarr"), data=VOXELS, dimension_names=tuple("tczyx"))
    return tmp_path / "a.zarr"


def test_opens_what_is_said(path: Path) -> None:
    said = ImageOptions((2, 0.5, 0.5), "nm", "tczyx", channel=1, time=2)
    image = said.open(path)
    np.testing.assert_array_equal(image.read(), VOXELS[2, 1])
    assert (image.spacing, image.grid.unit) == ((2, 0.5, 0.5), "nanometer")
    by_keywords = open_image(
        path, voxel_spacing=(2, 0.5, 0.5), unit="nm", axes="tczyx", channel=1, time=2
    )
    assert by_keywords.grid == image.grid
    assert by_keywords.recipe == image.recipe


def test_an_image_knows_how_it_was_opened(path: Path) -> None:
    image = open_image(path, axes="tczyx", voxel_spacing=np.array([2, 1, 1]), time=1)
    recipe = json.loads(json.dumps(image.recipe))
    assert recipe == {
        "path": str(path), "time": 1, "voxel_spacing": [2, 1, 1], "axes": ["t", "c", "z", "y", "x"]
    }  # fmt: skip
    again = open_image(**recipe)
    assert again.grid == image.grid
    np.testing.assert_array_equal(again.read(), image.read())
    sent = pickle.loads(pickle.dumps(image))
    assert sent.reorder("xyz").in_unit("nanometer").recipe == image.recipe
    # A part of an image is none that a file holds.
    assert image[1:].recipe == {}


def test_numbers_of_numpy_are_numbers() -> None:
    said = ImageOptions(spacing=np.array([2, 1, 1]), channel=np.int64(1))  # type: ignore[arg-type]
    assert said == ImageOptions(spacing=(2.0, 1.0, 1.0), channel=1)
    assert type(said.channel) is int


def test_a_file_without_spacing_says_what_to_say(path: Path) -> None:
    with pytest.raises(UnknownSpacingError, match=r"voxel_spacing= \(--spacing\), one number"):
        open_image(path, axes="tczyx")


@pytest.mark.parametrize("spacing", [0, -1, np.nan, np.inf, (), "1", (1, "1"), True])
def test_spacings_are_positive_numbers(spacing: object) -> None:
    with pytest.raises(InputError, match="spacing must be a positive number"):
        ImageOptions(spacing=spacing)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["channel", "time", "level"])
@pytest.mark.parametrize("value", [-1, 1.5, "1", True])
def test_places_are_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name} must be a whole number"):
        ImageOptions(**{name: value})  # type: ignore[arg-type]
