"""What the public functions take, and how they say no."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest

from itkstream.blocks.inputs import as_pair, block_grid, default_overlap, reversed_axes
from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import Grid, Image
from itkstream.io import open_image

SHAPE = (9, 8, 7)
VOXELS = np.arange(504, dtype=np.uint16).reshape(SHAPE)


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr", "n5"])
def test_every_container_is_taken(stored: Callable[..., Any], kind: str) -> None:
    data = stored(kind, VOXELS, Grid(SHAPE, (1, 1, 1)))
    fixed, moving = as_pair(data, data, (1, 2, 3), (3, 2, 1))
    assert (fixed.spacing, moving.spacing) == ((1, 2, 3), (3, 2, 1))
    for image in (fixed, moving):
        np.testing.assert_array_equal(image.read(), VOXELS)
        np.testing.assert_array_equal(
            image[slice(2, 5), slice(0, 3), slice(1, 2)].read(), VOXELS[2:5, :3, 1:2]
        )
    turned, _ = as_pair(data, data, (1, 2, 3), (3, 2, 1), (True, False))
    np.testing.assert_array_equal(turned.read(), VOXELS.T)
    assert turned.spacing == (1, 2, 3)
    again = reversed_axes(data, 3)
    np.testing.assert_array_equal(np.asarray(again[:, :, 0:2]), VOXELS.T[:, :, :2])


def test_axes_follow_the_fixed_image_and_lengths_are_micrometers() -> None:
    fixed = Image(VOXELS, Grid(SHAPE, (1e-3, 2e-3, 3e-3), unit="millimeter"))
    moving = Image(
        VOXELS.T,
        Grid(SHAPE[::-1], (3000.0, 2000.0, 1000.0), axes=("z", "y", "x"), unit="nanometer"),
    )
    one, two = as_pair(fixed, moving, None, None)
    assert one.grid.axes == two.grid.axes == ("x", "y", "z")
    assert one.grid.unit == two.grid.unit == "micrometer"
    np.testing.assert_allclose(one.grid.matrix, two.grid.matrix, rtol=1e-12)
    np.testing.assert_array_equal(two.read(), VOXELS)
    three, _ = as_pair(fixed, moving, None, None, (True, False))
    assert three.grid.axes == ("z", "y", "x")


def test_blocks() -> None:
    blocks = block_grid((100, 90, 80), np.array([32, 32, 40]), None)
    assert blocks.blocksize == (32, 32, 40)
    assert blocks.overlap == default_overlap((32, 32, 40)) == (4, 4, 5)
    assert block_grid((100, 90, 80), (32, 32, 40), 3).overlap == (3, 3, 3)
    assert block_grid((100, 90, 80), (32, 32, 40), (1, 2, 3)).overlap == (1, 2, 3)


ONES = (1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VOXELS, VOXELS[0], ONES, (1, 1)), "3 axes and the moving image 2"),
        (([[1, 2]], VOXELS, (1, 1), ONES), "fixed image must be an array.*got list"),
        ((VOXELS, VOXELS, ONES, None), "moving image is an array without.*pass mov_spacing"),
        ((VOXELS[None], VOXELS, (1,) * 4, ONES), "2 or 3 axes.*choose one channel"),
        ((VOXELS, VOXELS, (1, 1), ONES), "spacing needs one number per axis, 3; got 2"),
        ((VOXELS, VOXELS, (1, 1, 0), ONES), "spacing must be positive"),
        ((VOXELS, VOXELS, ONES, (1, -1, 1)), "spacing must be positive"),
    ],
)
def test_bad_images(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_pair(*arguments)


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        ((4, 4), None, "blocksize needs 3"),
        ((4, 4, 4), (1, 1), "overlap needs 3"),
        ((4, 4, 4), 2, "more than a quarter of the blocksize 4"),
        ((4, 4, 4), -1, "overlap needs 3 whole numbers >= 0"),
    ],
)
def test_bad_blocks(size: tuple[int, ...], overlap: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        block_grid(SHAPE, size, overlap)


def test_a_missing_dataset_names_what_is_there(stored: Callable[..., Any], tmp_path: Any) -> None:
    stored("n5", VOXELS, Grid(SHAPE, (1, 1, 1)))
    container = next(tmp_path.glob("*.n5"))
    with pytest.raises(MissingDataError, match="s0"):
        open_image(container / "lowres")
    with pytest.raises(MissingDataError):
        open_image(tmp_path / "nothing.n5")


def test_a_dask_image_stays_lazy() -> None:
    fixed, _ = as_pair(da.from_array(VOXELS), VOXELS, (1, 1, 1), (1, 1, 1), (True, True))
    assert isinstance(fixed.data, da.Array)
