"""Several channels that drive one descent."""

import numpy as np
import pytest
from attrs import evolve
from scipy import ndimage

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.numerics.deformation.descent import Channel, Frame, descend
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS

SHAPE = (40, 36, 32)
GRID = Grid(SHAPE, (1.0, 1.0, 1.0))
FRAME = Frame(GRID, GRID, np.eye(4))
FAST = evolve(PIPELINE_DEFAULTS, iterations=(8, 6, 3))
INDEX = np.moveaxis(np.indices(SHAPE).astype(float), 0, -1)
TRUE = 2.0 * np.sin(INDEX[..., [1, 2, 0]] / 12.0)


def texture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(SHAPE)
    return ndimage.gaussian_filter(noise, 2.0).astype(np.float32)


def moved(image: np.ndarray) -> np.ndarray:
    """The image of which `image` is seen through the true displacement."""
    back = INDEX - TRUE
    for _ in range(20):
        shift = [
            ndimage.map_coordinates(TRUE[..., c], np.moveaxis(back, -1, 0), order=1, mode="nearest")
            for c in range(3)
        ]
        back = INDEX - np.stack(shift, -1)
    return ndimage.map_coordinates(image, np.moveaxis(back, -1, 0), order=3, mode="nearest")


def inner(u: np.ndarray, half: slice) -> float:
    """Median distance to the truth in one half, off the borders."""
    box = (half, slice(6, -6), slice(6, -6))
    return float(np.median(np.linalg.norm((u - TRUE)[box], axis=-1)))


@pytest.fixture(scope="module")
def halves():
    """Two channels, each of which shows texture in one half only."""
    low = np.where(INDEX[..., 0] < SHAPE[0] // 2, 1.0, 0.0).astype(np.float32)
    return [
        (shown, moved(shown).astype(np.float32))
        for shown in (texture(1) * low, texture(2) * (1 - low))
    ]


def test_each_channel_moves_what_it_shows(halves):
    """Truth: the displacement the images were made with; alone, a blank half is not found."""
    (a, b), (c, d) = halves
    alone = descend(a, b, FRAME, FAST).displacement
    both = descend(a, b, FRAME, FAST, others=[Channel(c, d, 1.0)]).displacement
    first, second = slice(6, 16), slice(24, 34)
    assert inner(alone, first) < 0.2
    assert inner(alone, second) > 0.5
    assert inner(both, first) < 0.2
    assert inner(both, second) < 0.2


def test_forces_are_means(halves):
    """Property: copies of a channel change nothing, however many; but for rounding."""
    a, b = halves[0]
    twice, often = (
        descend(a, b, FRAME, FAST, others=[Channel(a, b, 1.0)] * n).displacement for n in (1, 3)
    )
    np.testing.assert_allclose(often, twice, atol=1e-3)


def test_either_channel_may_lead(halves):
    (a, b), (c, d) = halves
    one = descend(a, b, FRAME, FAST, others=[Channel(c, d, 1.0)]).displacement
    other = descend(c, d, FRAME, FAST, others=[Channel(a, b, 1.0)]).displacement
    np.testing.assert_array_equal(one, other)


def test_weights_say_whom_to_follow(halves):
    """Channels that contradict each other: the heavier one is followed."""
    a, b = halves[0]
    still = texture(3)
    light, heavy = (
        descend(a, b, FRAME, FAST, others=[Channel(still, still, w)]).displacement
        for w in (0.01, 100.0)
    )
    assert inner(light, slice(6, 16)) < 0.2
    assert np.median(np.linalg.norm(heavy[6:16, 6:-6, 6:-6], axis=-1)) < 0.1


def test_descriptors_of_channels_are_added_up_too(halves):
    mind = evolve(FAST, similarity="mind")
    (a, b), (c, d) = halves
    both = descend(a, b, FRAME, mind, others=[Channel(c, d, 1.0)]).displacement
    assert inner(both, slice(6, 16)) < 0.4
    assert inner(both, slice(24, 34)) < 0.4


def test_the_field_goes_on_only_where_no_channel_counts(halves):
    """Voxels that one channel lacks and another shows count."""
    (a, b), (c, d) = halves
    torn = np.where(INDEX[..., 0] < SHAPE[0] // 2, a, np.nan)
    both = descend(torn, b, FRAME, FAST, beyond="affine", others=[Channel(c, d, 1.0)]).displacement
    assert inner(both, slice(24, 34)) < 0.2


def test_channels_of_another_shape_are_refused(halves):
    (a, b), (c, d) = halves
    with pytest.raises(InputError, match="shape"):
        descend(a, b, FRAME, FAST, others=[Channel(c[1:], d, 1.0)])
