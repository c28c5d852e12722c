"""Key points of several channels: matched channel by channel, fitted together."""

import numpy as np
import pytest

from itkstream.errors import ItkstreamError
from itkstream.geometry import AffineTransform, ChannelPair, Grid, Image
from itkstream.numerics.matching.affine import affine_block
from itkstream.numerics.matching.matches import Correspondences, joined_matches
from itkstream.registration.steps import RansacAffine

SHAPE = (56, 52, 48)
GRID = Grid(SHAPE, (1.0, 1.0, 1.0))
SHIFT = np.array([3.0, -2.0, 1.0])
SETTINGS = RansacAffine().settings_for(GRID.spacing, (2.0, 6.0))


def spots(seed: int) -> tuple[Image, Image]:
    """Blobs with texture around them, and the same shifted."""
    rng = np.random.default_rng(seed)
    index = np.moveaxis(np.indices(SHAPE), 0, -1).astype(float)
    both = []
    for shift in (0.0, SHIFT):
        rng = np.random.default_rng(seed)
        light = np.zeros(SHAPE)
        for _ in range(70):
            centre, width = rng.uniform(0, SHAPE) + shift, rng.uniform(2.0, 3.0)
            away = ((index - centre) ** 2).sum(axis=-1)
            light += rng.uniform(0.5, 2.0) * np.exp(-away / (2 * width**2))
        both.append(Image(light.astype(np.float32), GRID))
    return both[0], both[1]


@pytest.fixture(scope="module")
def channels():
    return spots(0), spots(1)


FLAT = Image(np.full(SHAPE, 3.0, np.float32), GRID)


def test_matches_of_both_are_fitted_together(channels):
    """Truth: the shift; each channel brings what it brings alone."""
    (a, b), (c, d) = channels
    first, second = (affine_block([ChannelPair(*pair)], SETTINGS) for pair in channels)
    both = affine_block([ChannelPair(a, b), ChannelPair(c, d)], SETTINGS)
    assert both.matches_per_channel == (len(first.pairs), len(second.pairs))
    assert sum(both.inliers_per_channel) == both.stages.inliers
    assert both.stages.matches == first.stages.matches + second.stages.matches
    assert min(both.inliers_per_channel) > 0.8 * min(len(first.pairs), len(second.pairs))
    moved = AffineTransform(both.estimate.matrix).apply(GRID.corners())
    np.testing.assert_allclose(moved, GRID.corners() + SHIFT, atol=0.5)


def test_index_leads_to_the_points_of_all(channels):
    (a, b), (c, d) = channels
    both = affine_block([ChannelPair(a, b), ChannelPair(c, d)], SETTINGS)
    for side in ("fixed", "moving"):
        points = both.points[side == "moving"]
        np.testing.assert_array_equal(
            points[getattr(both.pairs, f"{side}_index")], getattr(both.pairs, f"{side}_points")
        )


def test_a_channel_without_key_points_is_left_out(channels):
    """Whether it leads or not; to the last bit."""
    a, b = channels[0]
    alone = affine_block([ChannelPair(a, b)], SETTINGS)
    led = affine_block([ChannelPair(FLAT, FLAT), ChannelPair(a, b)], SETTINGS)
    followed = affine_block([ChannelPair(a, b), ChannelPair(FLAT, FLAT)], SETTINGS)
    for found in (led, followed):
        np.testing.assert_array_equal(found.estimate.matrix, alone.estimate.matrix)
    with pytest.raises(ItkstreamError):
        affine_block([ChannelPair(FLAT, FLAT)] * 2, SETTINGS)


def test_one_part_is_itself():
    none, index = np.empty((0, 3)), np.empty(0, np.intp)
    part = Correspondences(none, none, np.empty(0), index, index)
    assert joined_matches([(part, 0, 0)]) is part
