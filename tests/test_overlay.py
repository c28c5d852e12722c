"""Overlays: colours and geometry are read back from the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.overlay import OverlayStyle, overlay_rgb, save_overlay

GRID = Grid((40, 30, 20), (1.0, 1.0, 2.0))


def spots(grid: Grid, *at: tuple[int, ...]) -> np.ndarray:
    image = np.random.default_rng(0).uniform(95, 105, grid.shape)
    for middle in at:
        image[tuple(slice(m - 3, m + 3) for m in middle)] = 3000
    return image


def count(picture: np.ndarray, magenta: bool, green: bool) -> int:
    is_magenta, is_green = (picture[..., [0, 2]] > 0.8).all(-1), picture[..., 1] > 0.8
    return int(((is_magenta == magenta) & (is_green == green)).sum())


def test_colours():
    fixed, moving = np.ones((2, 30, 30))
    fixed[:10] = 100
    moving[5:15] = 100
    rgb = overlay_rgb(fixed, moving, (0, 100))
    np.testing.assert_allclose(rgb[0, 0], [1, 0, 1])
    np.testing.assert_allclose(rgb[12, 0], [0, 1, 0])
    np.testing.assert_allclose(rgb[7, 0], [1, 1, 1])
    np.testing.assert_allclose(rgb[20, 0], [0, 0, 0])


def test_fill_values_do_not_shift_the_contrast():
    picture = np.random.default_rng(0).uniform(100, 200, (50, 50))
    filled = np.pad(picture, ((0, 50), (0, 0)))
    gaps = np.pad(picture, ((0, 50), (0, 0)), constant_values=np.nan)
    expected = overlay_rgb(picture, picture)
    for other in (filled, gaps):
        rgb = overlay_rgb(other, other)
        np.testing.assert_array_equal(rgb[:50], expected)
        assert not rgb[50:].any()


def test_constant_and_empty_pictures_are_black():
    for value in (0.0, 7.0, np.nan):
        assert not overlay_rgb(np.full((4, 4), value), np.full((4, 4), value)).any()


@pytest.mark.parametrize("grid", [GRID, Grid((40, 30), (1.0, 1.5))])
def test_agreement_is_white_only_where_registered(tmp_path, grid):
    middle = tuple(n // 2 for n in grid.shape)
    aside = (middle[0] + 10, *middle[1:])
    fixed, before, after = spots(grid, middle), spots(grid, aside), spots(grid, middle)
    path = save_overlay(tmp_path / "overlay.png", fixed, before, after, grid)
    picture = imread(path)
    if grid.ndim == 2:
        upper, lower = np.split(picture[:, : picture.shape[1] // 2 * 2], 2, axis=1)
    else:
        half = picture.shape[0] // 2
        upper, lower = picture[:half], picture[half:]
    assert count(lower, True, True) > 1000
    # Letters and bars are white as well.
    assert count(upper, True, True) < 0.2 * count(lower, True, True)
    assert count(upper, True, False) > 1000


def test_axes_are_to_scale_whatever_their_order(tmp_path):
    middle = (20, 15, 10)
    image = spots(GRID, middle)
    first = save_overlay(tmp_path / "xyz.png", image, image, image, GRID)
    turned = GRID.reorder(("z", "y", "x"))
    flipped = np.ascontiguousarray(image.transpose(2, 1, 0))
    second = save_overlay(tmp_path / "zyx.png", flipped, flipped, flipped, turned)
    np.testing.assert_array_equal(imread(first), imread(second))


def test_slab_shows_what_lies_beside_the_middle(tmp_path):
    image = spots(GRID, (20, 15, 10), (8, 6, 16))
    thin = save_overlay(tmp_path / "thin.png", image, image, image, GRID)
    thick = save_overlay(
        tmp_path / "thick.png", image, image, image, GRID, OverlayStyle(slab=100.0)
    )
    assert count(imread(thick), True, True) > count(imread(thin), True, True) + 1000


def test_refuses_what_does_not_fit(tmp_path):
    image = np.zeros(GRID.shape)
    with pytest.raises(InputError, match="after must lie on the grid"):
        save_overlay(tmp_path / "a.png", image, image, image[:-1], GRID)
    with pytest.raises(InputError, match="contrast"):
        OverlayStyle(contrast=(60, 40))
    with pytest.raises(InputError, match="slab"):
        OverlayStyle(slab=-1)
