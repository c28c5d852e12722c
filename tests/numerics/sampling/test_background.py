"""What stands where a moving image ends: what its border tells, or what is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from itkstream.apply.resampling import (
    apply_transform,
    prepare_apply_to_series,
    prepare_apply_transform,
)
from itkstream.compute.execute import compute
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.sampling.background import background_of
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.pipelines import register
from itkstream.registration.steps import IntensityAffine, RegisterSettings
from itkstream.transform import apply_global_affine, prepare_apply_position_field

AXES = ("x", "y", "z")
SHAPE = (40, 36, 32)
SHIFT = AffineTransform(np.array([[1.0, 0, 0, 12], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))


def tissue(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A textured ball in the middle, from 0 to 1."""
    index = np.indices(shape) - (np.array(shape).reshape(-1, *(1,) * len(shape)) - 1) / 2
    inside = np.sqrt((index**2).sum(axis=0)) < 0.35 * min(shape)
    texture = gaussian_filter(np.random.default_rng(0).random(shape), 1)
    return inside * (0.5 + (texture - texture.min()) / np.ptp(texture) / 2)


def kinds() -> dict[str, tuple[np.ndarray, float]]:
    noise = np.random.default_rng(1).standard_normal(SHAPE)
    ball = tissue()
    return {
        "tomograph": ((-1000 + 1300 * ball).astype(np.int16), -1000),
        "inside a body": (np.full(SHAPE, 40, np.int16), -1000),
        "bright field": ((255 - 150 * ball).astype(np.uint8), 255),
        "bright floats": ((1 - ball).astype(np.float32), 1),
        "camera": ((100 + 3000 * ball + 5 * noise).clip(0).astype(np.uint16), 0),
        "fluorescence": ((3000 * ball).astype(np.uint16), 0),
        "texture all over": ((noise * 50 + 500).astype(np.uint16), 0),
        "labels": ((ball > 0) * np.uint32(7), 0),
        "constant": (np.full(SHAPE, 255, np.uint8), 0),
        "truth values": (ball > 0, 0),
    }


@pytest.mark.parametrize("kind", kinds())
def test_the_border_tells_the_background(kind: str) -> None:
    voxels, expected = kinds()[kind]
    if kind == "inside a body":
        voxels = np.full(SHAPE, 40, np.int16)
        voxels[8:32, 8:28, 8:24] = -1000
    assert background_of(Image(voxels, Grid(SHAPE, (1, 1, 1), axes=AXES))) == expected


@pytest.mark.parametrize("kind", ["tomograph", "bright field", "camera"])
def test_every_door_fills_with_it(kind: str) -> None:
    voxels, expected = kinds()[kind]
    spacing, grid = (1, 1, 1), Grid(SHAPE, (1, 1, 1), axes=AXES)
    moving = Image(voxels, grid)
    whole = apply_global_affine(voxels, voxels, spacing, spacing, SHIFT.matrix)
    assert whole.dtype == voxels.dtype
    assert (whole[-12:] == expected).all()
    np.testing.assert_array_equal(whole[:-12], voxels[12:])
    np.testing.assert_array_equal(apply_transform(moving, moving, SHIFT), whole)
    told = WarpSettings(background=None)
    lazy = Image(da.from_array(voxels, chunks=16), grid)
    for image in (moving, lazy):
        blocks = prepare_apply_transform(grid, image, SHIFT, (16, 16, 16))
        np.testing.assert_array_equal(compute(blocks), whole)
        series = prepare_apply_to_series(grid, [image, image], SHIFT, (16, 16, 16), told)
        np.testing.assert_array_equal(compute(series)[1], whole)
    positions = SHIFT.apply(grid.positions())
    by_field = prepare_apply_position_field(
        voxels, voxels, spacing, spacing, positions, (16, 16, 16)
    )
    np.testing.assert_array_equal(compute(by_field), whole)
    given = apply_global_affine(voxels, voxels, spacing, spacing, SHIFT.matrix, background=7)
    assert (given[-12:] == 7).all()
    labels = apply_global_affine(voxels, voxels, spacing, spacing, SHIFT.matrix, order=0)
    assert (labels[-12:] == 0).all()


def test_a_prepared_resampling_reads_nothing() -> None:
    class Unread:
        shape, dtype = SHAPE, np.dtype(np.int16)

        def __getitem__(self, key: object) -> np.ndarray:
            raise AssertionError("read")

    grid = Grid(SHAPE, (1, 1, 1), axes=AXES)
    prepare_apply_transform(grid, Image(Unread(), grid), SHIFT, (16, 16, 16))


def test_register_fills_with_it_and_says_so(tmp_path: Path) -> None:
    voxels, _ = kinds()["tomograph"]
    grid = Grid(SHAPE, (1, 1, 1), axes=AXES)
    fixed, moving = (
        Image(voxels, grid),
        Image(voxels[12:], Grid((28, 36, 32), (1, 1, 1), (12, 0, 0), axes=AXES)),
    )
    steps = [IntensityAffine("translation", iterations=(2, 1))]
    plain = RegisterSettings(error_map=False, report=False)
    told = register(fixed, moving, tmp_path / "a", steps, plain)
    assert (told.aligned.read()[:6] == -1000).all()
    assert (
        next(s for s in told.facts["steps"] if s["name"] == "aligned image")["background"] == -1000
    )
    given = register(fixed, moving, tmp_path / "b", steps, replace(plain, background=5))
    assert (given.aligned.read()[:6] == 5).all()
    with pytest.raises(InputError, match="background must be a number"):
        RegisterSettings(background="white")  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 70), min_size=2, max_size=3),
    low=st.integers(-3000, 3000),
    high=st.integers(-3000, 3000),
)
def test_it_is_a_value_of_the_image_or_0(shape: list[int], low: int, high: int) -> None:
    low, high = sorted((low, high))
    voxels = np.random.default_rng(0).integers(low, high + 1, shape).astype(np.int16)
    found = background_of(Image(voxels, Grid(tuple(shape), (1.0,) * len(shape))))
    assert found == 0 or voxels.min() <= found <= voxels.max()
