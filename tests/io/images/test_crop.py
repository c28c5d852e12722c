"""Parts of images, in voxels and µm: which voxels they are, and where these lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.io import ImageOptions, open_image, open_series, write_n5
from itkstream.io.images.crop import crop_slices, crop_text

GRID = Grid((40, 30, 20), (0.5, 1.0, 2.0), (5.0, 0.0, 0.0), axes=("x", "y", "z"))


@pytest.mark.parametrize(
    ("crop", "voxels"),
    [
        ("10:20,0:30,:", [(10, 20), (0, 30), (0, 20)]),
        (":15, 5:, 3:4", [(0, 15), (5, 30), (3, 4)]),
        ("2:10um,1.5:3.5um,:7µm", [(4, 20), (1, 4), (0, 4)]),
        ("10:20,0:999,0:99um", [(10, 20), (0, 30), (0, 20)]),
    ],
)
def test_spans_are_voxels_or_lengths(crop: str, voxels: list[tuple[int, int]]) -> None:
    """A voxel that is touched is in; what lies beyond the image is left out."""
    assert crop_slices(crop, GRID) == tuple(slice(*span) for span in voxels)
    in_millimeters = GRID.in_unit("millimeter")
    assert crop_slices(crop, in_millimeters) == tuple(slice(*span) for span in voxels)


def test_slices_are_written_as_text() -> None:
    assert crop_text((slice(1, 5), slice(None), (3, None))) == "1:5,:,3:"


@pytest.mark.parametrize(
    ("crop", "told"),
    [
        ("10:20,:", "names 2 axes, and the image has 3"),
        ("30:20,:,:", "holds no voxel"),
        ("99:120,:,:", "holds no voxel"),
        ("1.5:20,:,:", "'1.5:20'"),
        ("10-20,:,:", "'10-20'"),
        ("-5:20,:,:", "'-5:20'"),
        ("1.2.3:4um,:,:", "is no span"),
    ],
)
def test_what_is_no_crop_is_refused(crop: str, told: str) -> None:
    with pytest.raises(InputError, match=r"start:stop per axis") as error:
        crop_slices(crop, GRID)
    assert told in str(error.value)


@pytest.mark.parametrize("crop", [5, (slice(0, 9, 2),), ("a",), ((1, 2, 3),)])
def test_other_values_are_refused(crop: object) -> None:
    with pytest.raises(InputError, match="a crop is a text or slices"):
        crop_text(crop)


def test_a_part_lies_where_it_lies_in_the_whole(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 999, GRID.shape).astype(np.uint16)
    write_n5(tmp_path / "a.n5", "s0", voxels, GRID)
    whole = open_image(tmp_path / "a.n5/s0")
    part = open_image(tmp_path / "a.n5/s0", crop="10:20,5:15um,:")
    np.testing.assert_array_equal(part.read(), voxels[10:20, 5:15])
    np.testing.assert_allclose(part.grid.origin, whole.grid.to_physical((10, 5, 0)))
    again = open_image(**part.recipe)
    assert again.grid == part.grid
    said = ImageOptions(crop="10:20,5:15um,:").open(tmp_path / "a.n5/s0")
    assert said.grid == part.grid
    with pytest.raises(InputError, match="one level"):
        open_series(tmp_path / "a.n5/s0", "level", crop="10:20,5:15um,:")
