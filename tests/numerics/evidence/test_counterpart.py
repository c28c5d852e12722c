"""Tissue without counterpart is found by what a deformation foretells, and sound tissue is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from itkstream.geometry import Grid, Image
from itkstream.numerics.evidence.counterpart import Counterpart, find_counterpart

SHAPE = (72, 64, 56)
GRID = Grid(SHAPE, (1.0, 1.0, 2.0), origin=(5.0, 0.0, -10.0))


def texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    waves = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 2)
    return np.asarray(100 + 30 * waves / waves.std(), np.float32)


def moved(image: np.ndarray, seed: int = 5) -> np.ndarray:
    """The image through a smooth displacement of up to three voxels, with new noise."""
    rng = np.random.default_rng(seed)
    u = np.stack([ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 10) for _ in range(3)])
    index = np.indices(SHAPE) + 3 * u / np.abs(u).max()
    out = ndimage.map_coordinates(image, index, order=3, mode="nearest")
    return np.asarray(out + rng.normal(0, 5, SHAPE), np.float32)


def find(aligned: np.ndarray) -> Counterpart:
    return find_counterpart(Image(texture(1), GRID), aligned, np.ones(SHAPE, bool))


def half_lost(aligned: np.ndarray, seed: int = 2) -> np.ndarray:
    out = aligned.copy()
    out[36:] = texture(seed)[36:]
    return out


@pytest.mark.parametrize("sign", [1, -1])
def test_a_replaced_half_has_no_counterpart(sign: int) -> None:
    """In any contrast. Truth: voxels 36 to 71 of the first axis."""
    found = find(sign * half_lost(moved(texture(1))))
    assert found.is_usable
    assert 0.4 < found.share < 0.6
    lost = found.grid.positions()[..., 0] >= GRID.origin[0] + 36
    inner = ndimage.binary_erosion(lost, iterations=4, border_value=1)
    outer = ndimage.binary_erosion(~lost, iterations=4, border_value=1)
    assert found.missing[inner].mean() > 0.95
    assert found.missing[outer].mean() < 0.01
    assert "no counterpart" in found.describe()


def test_regions_are_told_in_voxels_and_micrometers() -> None:
    region = find(half_lost(moved(texture(1)))).facts(GRID)["regions"][0]
    first, last = region["voxels"]
    assert first[0] == pytest.approx(36, abs=12)
    assert last == [71, 63, 55]
    assert first[1:] == [0, 0]
    np.testing.assert_allclose(region["um"], GRID.to_physical(np.array(region["voxels"], float)))
    assert region["share_of_tissue"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("sign", [1, -1])
def test_sound_tissue_has_a_counterpart(sign: int) -> None:
    found = find(sign * moved(texture(1)))
    assert not found.is_usable
    assert found.share == 0
    assert found.describe() == ""


def test_parts_outside_the_moving_image_are_not_judged() -> None:
    aligned = moved(texture(1))
    aligned[48:] = np.nan
    found = find(aligned)
    assert found.share == 0
    assert not found.tissue[-3:].any()


@pytest.mark.parametrize("aligned", [texture(7), np.full(SHAPE, np.nan, np.float32)])
def test_where_nothing_agrees_nothing_is_left_out(aligned: np.ndarray) -> None:
    found = find(aligned)
    assert not found.is_usable


def test_the_same_bits_come_again() -> None:
    aligned = half_lost(moved(texture(1)))
    one, other = find(aligned), find(aligned)
    np.testing.assert_array_equal(one.agreement, other.agreement)
    np.testing.assert_array_equal(one.missing, other.missing)
