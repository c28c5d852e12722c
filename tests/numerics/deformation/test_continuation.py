"""A field goes on where no voxel counts, and is not touched by what lies there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from itkstream.geometry import Grid
from itkstream.numerics.deformation.continuation import AffineTrend, counting_share
from itkstream.numerics.deformation.descent import Frame, descend
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS

SHAPE = (64, 40, 36)
GRID = Grid(SHAPE, (1.0, 1.0, 1.0))
FRAME = Frame(GRID, GRID, np.eye(4))
# Stretched by 4 % along the first axis: up to 2.6 voxels.
SLOPE = 0.04
LOST = 32


def texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 1.5), np.float32)


def stretched(image: np.ndarray) -> np.ndarray:
    """The image moved by u(x) = SLOPE * x along the first axis."""
    index = np.indices(SHAPE).astype(float)
    index[0] /= 1 + SLOPE
    return np.asarray(ndimage.map_coordinates(image, index, order=3, mode="nearest"), np.float32)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Half of the moving image shows something else, and that half of the fixed one is left out."""
    fixed = texture(1)
    moving = stretched(fixed)
    moving[LOST + 2 :] = texture(2)[LOST + 2 :]
    fixed[LOST:] = np.nan
    return fixed, moving


def test_an_affine_is_found_by_the_nodes_that_weigh() -> None:
    rng = np.random.default_rng(0)
    index = np.moveaxis(np.indices((7, 6, 5)), 0, -1).astype(float)
    u = index @ rng.normal(size=(3, 3)) + rng.normal(size=3)
    weights = (index[..., 0] < 4).astype(np.float32)
    spoiled = np.where(weights[..., None] > 0, u, 99.0).astype(np.float32)
    np.testing.assert_allclose(AffineTrend.of(weights)(spoiled), u, atol=1e-4)


def test_one_plane_of_nodes_gives_no_slope_across_it() -> None:
    u = np.ones((5, 4, 3, 3), np.float32)
    weights = np.zeros((5, 4, 3), np.float32)
    weights[2] = 1
    u[weights == 0] = 7
    np.testing.assert_allclose(AffineTrend.of(weights)(u), 1, atol=1e-5)


def test_shares_are_those_of_the_voxels_of_each_node() -> None:
    image = np.zeros((4, 4, 4), np.float32)
    assert counting_share(image, (2, 2, 2)) is None
    image[:3, 0, 0] = np.nan
    share = counting_share(image, (2, 2, 2))
    assert share is not None
    assert share[0, 0, 0] == 0.75
    assert share[1, 0, 0] == 0.875
    assert share[0, 1, 1] == 1
    assert counting_share(np.full_like(image, np.nan), (2, 2, 2)) is None


def test_the_field_goes_on_along_the_affine_of_what_counts(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    """Truth: the stretch. Without continuation the lost half stays where it was."""
    truth = SLOPE * np.arange(SHAPE[0])
    settings = PIPELINE_DEFAULTS
    misses = {}
    for beyond in ("affine", None):
        u = descend(*pair, FRAME, settings, beyond=beyond).displacement
        misses[beyond] = np.abs(u[:, 8:-8, 8:-8, 0] - truth[:, None, None])
    assert np.median(misses["affine"][4 : LOST - 4]) < 0.1
    assert misses["affine"][LOST:].max() < 0.4
    assert misses[None][LOST:].max() > 2 * misses["affine"][LOST:].max()


def test_a_block_goes_on_along_its_start(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """What the whole image told of the lost half is kept there, far from the border."""
    start = np.zeros((*SHAPE, 3), np.float32)
    start[..., 0] = SLOPE * np.arange(SHAPE[0])[:, None, None]
    start[..., 1] = 2.0 * (np.arange(SHAPE[0]) > LOST + 8)[:, None, None]
    u = descend(*pair, FRAME, PIPELINE_DEFAULTS, initial=start, beyond="start").displacement
    np.testing.assert_allclose(u[-8:, 8:-8, 8:-8], start[-8:, 8:-8, 8:-8], atol=0.3)


def test_where_all_voxels_count_nothing_changes() -> None:
    fixed = texture(1)
    results = [
        descend(fixed, stretched(fixed), FRAME, PIPELINE_DEFAULTS, beyond=beyond).displacement
        for beyond in ("affine", "start", None)
    ]
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[2])
