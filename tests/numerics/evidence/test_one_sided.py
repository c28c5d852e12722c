"""Content of one image only: a head beside its brain, and pairs of which both show the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.evidence.ground import bright_ground
from itkstream.numerics.evidence.one_sided import (
    ImageContent,
    find_layer,
    find_one_sided,
    find_shown,
    lay_mask,
    painted_background,
)
from itkstream.numerics.evidence.quality import tissue_mask

SIDE = 64
STILL = AffineTransform(np.eye(4))


def from_middle() -> np.ndarray:
    return np.asarray(np.linalg.norm(np.indices((SIDE,) * 3) - (SIDE - 1) / 2, axis=0))


def head(seed: int = 0) -> np.ndarray:
    """A ball of texture in a shell that lies apart, on a ground with noise."""
    rng, r = np.random.default_rng(seed), from_middle()
    texture = ndimage.gaussian_filter(rng.normal(0, 1, r.shape), 2)
    out = np.where(r < 16, 100 + 20 * texture / texture.std(), 8)
    out = np.where((r > 19) & (r < 28), 130, out)
    return np.asarray(out + rng.normal(0, 2, r.shape), np.float32)


def brain(seed: int = 0, ground: float = 0.0) -> np.ndarray:
    return np.where(from_middle() < 16, head(seed), np.float32(ground))


def finer(voxels: np.ndarray) -> np.ndarray:
    return voxels.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def image(voxels: np.ndarray) -> Image:
    return Image(voxels, Grid(voxels.shape, (1.0,) * voxels.ndim))


def content(voxels: np.ndarray) -> ImageContent:
    return ImageContent(image(voxels))


@pytest.mark.parametrize("ground", [0.0, -1000.0, 7.0])
def test_a_head_counts_where_its_painted_brain_is(ground: float) -> None:
    pair = content(brain(0, ground)), content(head(1))
    r = from_middle()
    for fixed, moving in (pair, pair[::-1]):
        left_out = find_one_sided(fixed, moving, STILL)
        assert left_out[r > 20].all()
        assert not left_out[r < 16.5].any()


def test_what_was_painted_over_in_large_images_is_told_on_a_level() -> None:
    pair = content(finer(brain())), content(finer(head(1)))
    assert [each.level[1] for each in pair] == [2, 2]
    r = finer(from_middle())
    for fixed, moving in (pair, pair[::-1]):
        left_out = find_one_sided(fixed, moving, STILL)
        assert left_out[r > 20].all()
        assert not left_out[r < 16].any()
    assert not find_one_sided(pair[0], pair[0], STILL).any()


def test_what_lies_elsewhere_is_compared_through_the_transform() -> None:
    """The head lies 9 voxels off, and where the transform puts it."""
    shift = np.eye(4)
    shift[0, 3] = 9
    moved = content(np.roll(head(1), 9, axis=0))
    left_out = find_one_sided(content(brain()), moved, AffineTransform(shift))
    np.testing.assert_array_equal(
        left_out, find_one_sided(content(brain()), content(head(1)), STILL)
    )


def test_what_an_image_shows_is_told_once_for_all_transforms() -> None:
    """Through the second of them no voxel of either image is looked at again."""
    fixed, moving = content(brain()), content(head(1))
    first = find_one_sided(fixed, moving, STILL)
    for each in (fixed, moving):
        each.image.data.flat[:] = 0
    np.testing.assert_array_equal(find_one_sided(fixed, moving, STILL), first)


def test_pairs_that_show_the_same_count_whole() -> None:
    dots = np.where(np.random.default_rng(3).random((SIDE,) * 3) < 0.002, 255, 0)
    dots = ndimage.uniform_filter(dots.astype(np.float32), 3)
    noisy = dots + np.random.default_rng(4).normal(0, 1, dots.shape).astype(np.float32)
    pairs = [
        (head(0), head(1)),
        (brain(0), brain(1)),
        (brain(0), np.roll(brain(1), 4, axis=1)),
        (dots, noisy),
        (np.zeros_like(dots), head(1)),
    ]
    for fixed, moving in pairs:
        assert not find_one_sided(content(fixed), content(moving), STILL).any()


def test_dark_tissue_inside_is_no_background() -> None:
    voxels = brain()
    voxels[30:34, 30:34, 30:34] = 0
    np.testing.assert_array_equal(painted_background(voxels), from_middle() >= 16)
    assert not painted_background(head()).any()
    assert not painted_background(np.full((8, 8, 8), np.nan, np.float32)).any()


def test_tissue_on_a_bright_slide_is_what_is_dark() -> None:
    light = brain()[SIDE // 2]
    slide = np.float32(255) - light
    assert bright_ground(slide) is not None
    assert bright_ground(light) is None
    np.testing.assert_array_equal(tissue_mask(slide), tissue_mask(light))


def test_bright_tissue_that_fills_the_image_is_tissue() -> None:
    rng = np.random.default_rng(0)
    full = 200 + ndimage.gaussian_filter(rng.normal(0, 60, (96, 96)), 2)
    full[40:56, 40:56] = 0
    assert bright_ground(full) is None
    assert bright_ground(np.full((9, 9), np.nan)) is None


def ball(seed: int, layer: float = 0.0) -> np.ndarray:
    """A ball of texture with, perhaps, a bright layer around it, on a dark ground with noise."""
    r, rng = from_middle(), np.random.default_rng(seed)
    out = np.where(r < 16, head(0), 8) + np.where((r >= 16) & (r < 24), layer, 0)
    return np.asarray(out + rng.normal(0, 2, r.shape), np.float32)


def test_an_empty_ground_counts_nothing_where_the_other_image_shows_a_layer() -> None:
    pair, r = (content(ball(1)), content(ball(2, layer=60.0))), from_middle()
    for fixed, moving in (pair, pair[::-1]):
        left_out = find_one_sided(fixed, moving, STILL)
        assert left_out[r > 17].all()
        # The edge of the tissue is left out with it, and no more.
        assert not left_out[r < 10].any()


def embedded(kind: str, outer: float = 28) -> np.ndarray:
    """A ball of tissue in medium, in other tissue, or half in each, up to some radius."""
    r, rng = from_middle(), np.random.default_rng(7)
    texture = ndimage.gaussian_filter(rng.normal(0, 1, r.shape), 2)
    medium, tissue = (
        120 + 4 * np.sin(np.indices(r.shape)[1] / 10),
        120 + 20 * texture / texture.std(),
    )
    first = np.indices(r.shape)[0] < SIDE / 2
    around = {"medium": medium, "tissue": tissue, "half": np.where(first, medium, tissue)}[kind]
    out = np.where((r >= 16) & (r < outer), around + rng.normal(0, 2, r.shape), ball(1))
    return np.asarray(out, np.float32)


@pytest.mark.parametrize("outer", [28, np.inf])
def test_medium_is_no_tissue_and_what_was_torn_off_is(outer: float) -> None:
    bare, r, first = content(ball(2)), from_middle(), np.indices((SIDE,) * 3)[0] < SIDE / 2 - 6
    there = (r > 17) & (r < 28)
    layer = find_layer(content(embedded("medium", outer)), bare, STILL)
    assert layer[there].mean() > 0.95
    assert not layer[r < 10].any()
    assert not find_layer(content(embedded("tissue", outer)), bare, STILL).any()
    half = find_layer(content(embedded("half", outer)), bare, STILL)
    # The ground around it reaches over its edges.
    assert half[there & first].mean() > 0.95
    assert half[there & first[::-1]].mean() < 0.3


def test_medium_that_fills_an_image_counts_nothing() -> None:
    r, pair = from_middle(), (content(ball(2)), content(embedded("medium", np.inf)))
    for fixed, moving in (pair, pair[::-1]):
        left_out = find_one_sided(fixed, moving, STILL)
        assert left_out[r > 17].mean() > 0.9
        assert not left_out[r < 10].any()
    pair = content(ball(2)), content(embedded("tissue", np.inf))
    for fixed, moving in (pair, pair[::-1]):
        assert not find_one_sided(fixed, moving, STILL).any()


@pytest.mark.parametrize("shift", [0, 6, 20])
def test_balls_that_are_not_aligned_yet_count_whole(shift: int) -> None:
    moved = np.roll(ball(2), shift, axis=0)
    assert not find_one_sided(content(ball(1)), content(moved), STILL).any()


def test_a_bright_ground_is_told_through_noise_and_uneven_light() -> None:
    rng = np.random.default_rng(6)
    slope = 1 + 0.2 * np.linspace(0, 1, SIDE)[:, None, None]
    absorbed = np.where(from_middle() < 16, head(0) / 100, 0)
    counts = rng.poisson(100 * slope * np.exp(-absorbed)).astype(np.float32)
    assert bright_ground(counts) is not None
    assert bright_ground(-counts) is None
    tissue, r = tissue_mask(counts), from_middle()
    assert tissue[r < 15].all()
    assert not tissue[r > 26].any()


@pytest.mark.parametrize("bright", [False, True])
def test_an_image_shows_something_where_its_ground_ends(bright: bool) -> None:
    voxels = 255 - ball(1) if bright else ball(1)
    shown, r = find_shown(image(voxels)), from_middle()
    assert shown is not None
    assert shown.read()[r < 15].all()
    assert not shown.read()[r > 20].any()


def test_it_is_told_on_a_level_of_a_large_image() -> None:
    """Also where groups of voxels stick out at its end."""
    large = np.pad(ball(1).repeat(2, 0).repeat(2, 1).repeat(2, 2), ((0, 1), (0, 0), (0, 0)), "edge")
    shown, r = find_shown(image(large)), from_middle().repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert shown is not None
    assert shown.shape == large.shape
    assert shown.read()[:-1][r < 14].all()
    assert not shown.read()[:-1][r > 22].any()


def test_all_of_an_image_without_a_certain_ground_counts() -> None:
    """Truth: it is full of tissue, or a mask leaves out its ground."""
    rng = np.random.default_rng(0)
    full = 200 + ndimage.gaussian_filter(rng.normal(0, 60, (64, 64, 64)), 2)
    left = ball(1)
    left[:3] = np.nan
    for voxels in (full, left, np.full_like(full, np.nan)):
        assert find_shown(image(voxels.astype(np.float32))) is None


def test_a_mask_is_laid_where_a_transform_puts_it() -> None:
    shift = np.eye(4)
    shift[0, 3] = -9
    mask = from_middle() < 16
    laid = lay_mask(image(mask), AffineTransform(shift), image(mask).grid)
    np.testing.assert_array_equal(laid.read(), np.roll(mask, 9, axis=0))
