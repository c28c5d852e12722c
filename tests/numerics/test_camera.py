"""What a camera adds to every plane is found, all of it and nothing else, and taken out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from itkstream.numerics.camera import count_pattern, find_pattern, repair_planes

PLACES, SIDE = 8, 96


def tissue(seed: int = 0, width: float = 1.2, noise: float = 3.0) -> np.ndarray:
    """Blobs as wide as a lens draws them, other ones at every place, on a ground with noise."""
    rng = np.random.default_rng(seed)
    out = rng.normal(100, noise, (PLACES, SIDE, SIDE))
    points = np.zeros(out.shape)
    points[rng.random(out.shape) < 0.003] = 1
    out += 3000 * ndimage.gaussian_filter(points, (0, width, width))
    return out.astype(np.float32)


def single(seed: int = 1, share: float = 0.005) -> np.ndarray:
    """Pixels of a plane, chosen by chance."""
    return np.random.default_rng(seed).random((SIDE, SIDE)) < share


@pytest.mark.parametrize("value", [65535.0, 400.0, 0.0])
def test_hot_warm_and_dead_pixels_are_found(value: float) -> None:
    bad, stack = single(), tissue()
    stack[:, bad] = value
    found = np.isnan(find_pattern(stack))
    assert not (found & ~bad).any()
    # Where a dead pixel's neighbours are dead as well, or light hides a warm one, it may stay.
    assert (found & bad).sum() >= 0.9 * bad.sum()


@pytest.mark.parametrize("axis", [0, 1])
def test_bad_lines_are_found(axis: int) -> None:
    stack = tissue()
    np.moveaxis(stack, axis + 1, 0)[[20, 50, 51]] += 400
    pattern = find_pattern(stack)
    found = np.isnan(pattern).mean(axis=1 - axis) > 0.9
    assert np.flatnonzero(found).tolist() == [20, 50, 51]
    count = count_pattern(pattern)
    assert count.lines == ((0, 3), (3, 0))[axis]


def test_stripes_and_fixed_noise_are_measured() -> None:
    rng = np.random.default_rng(3)
    for offset in (rng.normal(0, 6, (1, SIDE)).repeat(SIDE, 0), rng.normal(0, 6, (SIDE, SIDE))):
        pattern = find_pattern(tissue() + offset.astype(np.float32))
        good = np.isfinite(pattern)
        assert good.mean() > 0.99
        left = (offset - pattern)[good]
        sharp = left - ndimage.median_filter(offset - np.nan_to_num(pattern), 5)[good]
        assert sharp.std() < 0.5 * offset.std()


def sheet(thick: float) -> np.ndarray:
    """A sheet that stands across all planes, and a closed wall, as a membrane or a tube has."""
    y, x = np.indices((SIDE, SIDE))
    flat = np.exp(-(((x - 0.7 * y - 10) / thick) ** 2) / 2)
    wall = np.exp(-(((np.hypot(y - 50, x - 60) - 20) / thick) ** 2) / 2)
    return np.asarray(2000 * np.maximum(flat, wall), np.float32)


@pytest.mark.parametrize("thick", [0.5, 0.8, 2.0])
def test_standing_sheets_and_walls_are_tissue(thick: float) -> None:
    assert not np.any(find_pattern(tissue() + sheet(thick)))


@pytest.mark.parametrize("width", [0.6, 1.2, 4.0])
@pytest.mark.parametrize("noise", [0.0, 3.0, 30.0])
def test_nothing_is_found_in_clean_tissue(width: float, noise: float) -> None:
    for seed in range(5):
        assert not np.any(find_pattern(tissue(seed, width, noise)))


def test_single_bright_voxels_are_tissue() -> None:
    rng, stack = np.random.default_rng(5), tissue()
    stack[rng.random(stack.shape) < 0.02] = 65535
    stack[1:3, single(6)] = 65535
    assert not np.any(find_pattern(stack))


def test_dark_and_constant_planes_have_no_pattern() -> None:
    assert not np.any(find_pattern(np.zeros((PLACES, 20, 16), np.float32)))
    masked = tissue()
    masked[:, :30] = np.nan
    assert not np.any(find_pattern(masked))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_bad_pixel_becomes_the_median_around_it(dtype: type) -> None:
    rng = np.random.default_rng(2)
    planes = rng.integers(0, 200, (3, 15, 12)).astype(dtype)
    pattern = np.where(rng.random((15, 12)) < 0.2, np.nan, 0).astype(np.float32)
    pattern[:, 7] = np.nan
    expected = planes.astype(float)
    for k, i, j in product(*map(range, planes.shape)):
        if np.isnan(pattern[i, j]):
            y, x = slice(max(0, i - 2), i + 3), slice(max(0, j - 2), j + 3)
            expected[k, i, j] = np.median(planes[k, y, x][np.isfinite(pattern[y, x])])
    repaired = repair_planes(planes, pattern)
    assert repaired.dtype == dtype
    if dtype != np.float32:
        expected = np.rint(expected)
    np.testing.assert_array_equal(repaired, expected.astype(dtype))


def test_offsets_are_subtracted_within_the_range_of_the_voxels() -> None:
    planes = np.array([[[1, 250], [30, 40]]], np.uint8)
    pattern = np.array([[5, -20], [0.4, 3]], np.float32)
    assert repair_planes(planes, pattern).tolist() == [[[0, 255], [30, 37]]]


def test_a_pixel_with_no_good_one_around_stays() -> None:
    planes = np.arange(25, dtype=np.uint8).reshape(1, 5, 5)
    np.testing.assert_array_equal(repair_planes(planes, np.full((5, 5), np.nan)), planes)


def test_voxels_that_do_not_count_stay_out() -> None:
    planes = np.arange(50, dtype=np.float32).reshape(2, 5, 5)
    pattern = np.zeros((5, 5), np.float32)
    pattern[2, 2], pattern[0] = np.nan, 3
    planes[0, 2, 2] = planes[1, 0, 1] = np.nan
    repaired = repair_planes(planes, pattern)
    np.testing.assert_array_equal(np.isnan(repaired), np.isnan(planes))
    assert repaired[1, 2, 2] == np.nanmedian(np.delete((planes - pattern)[1].ravel(), 12))
