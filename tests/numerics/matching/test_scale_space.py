"""Halving and blurring against scipy at full resolution."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_laplace, map_coordinates

from itkstream.geometry import Grid
from itkstream.numerics.matching.scale_space import (
    BlurredImage,
    blur,
    halve,
    halvings,
    laplacian,
    shrink_for,
)
from itkstream.numerics.threads import using_threads

INNER = (slice(4, -4),) * 3


@pytest.fixture
def noise():
    return np.random.default_rng(3).normal(1000, 300, (64, 57, 72)).astype(np.float32)


def test_halved_then_blurred_equals_blurred_at_full_resolution(noise):
    grid = Grid(noise.shape, (1.0, 0.5, 2.0), origin=(7, -3, 100))
    sigma = (3.0, 2.0, 5.2)
    level = blur(shrink_for(BlurredImage(noise, grid), sigma), sigma)
    assert level.data.shape == (32, 28, 36)
    assert level.variance == pytest.approx([s**2 for s in sigma])
    full = gaussian_filter(noise, np.divide(sigma, grid.spacing), mode="nearest")
    at = grid.to_index(level.grid.positions())
    expected = map_coordinates(full, np.moveaxis(at, -1, 0), order=3, mode="nearest")
    inner = (slice(8, -8),) * 3
    error = np.abs(level.data - expected)[inner] / full[8:-8, 8:-8, 8:-8].std()
    # White noise is the worst case: about 1 % of it is folded back by the halving.
    assert np.sqrt(np.mean(np.square(error))) < 0.02


def test_a_halved_voxel_stands_in_the_middle_of_its_two():
    ramp = np.broadcast_to(np.arange(11.0)[:, None], (11, 4)).astype(np.uint16)
    level = halve(BlurredImage(ramp, Grid(ramp.shape, (2.0, 1.0), origin=(5, 0))), 0)
    assert level.data.shape == (5, 4)
    # The filter is symmetric, so a ramp is only sampled; at the two ends it is clamped.
    np.testing.assert_allclose(
        level.data[1:-1, 0], (level.grid.positions()[1:-1, 0, 0] - 5) / 2, rtol=1e-6
    )
    assert level.variance == (0.75 * 4, 0)


def test_halvings_keep_the_blur_wide_enough_and_the_image_long_enough():
    grid = Grid((200, 200, 20), (1.0, 0.25, 1.0))
    assert halvings(grid, (5.0, 5.0, 5.0)) == (2, 3, 0)
    assert halvings(grid, (0.3, 0.3, 0.3)) == (0, 0, 0)


def test_laplacian_agrees_with_scipy(noise):
    grid = Grid(noise.shape, (1.0, 1.0, 1.0))
    level = blur(BlurredImage(noise, grid), (4.0, 4.0, 4.0))
    # scipy's cut kernel does not sum to zero: without the mean it need not.
    centred = noise.astype(float) - noise.mean()
    expected = -(4.0**2) * gaussian_laplace(centred, 4.0, mode="nearest")
    # Differences of neighbours understate second derivatives by about 1 / (4 sigma^2), 2 %, and
    # the extremes are at 4 standard deviations.
    assert np.abs(laplacian(level) - expected)[INNER].max() < 0.1 * expected.std()


def test_laplacian_of_a_thin_image_is_zero():
    grid = Grid((2, 9, 9), (1, 1, 1))
    thin = BlurredImage(np.ones(grid.shape, np.float32), grid, (1.0, 1.0, 1.0))
    assert not laplacian(thin).any()


def test_bits_do_not_depend_on_threads(noise):
    grid = Grid(noise.shape, (1.0, 1.0, 1.0))
    results = []
    for threads in (1, 3):
        with using_threads(threads):
            level = shrink_for(BlurredImage(noise, grid), (3.0,) * 3)
            results.append(laplacian(blur(level, (3.0,) * 3)))
    np.testing.assert_array_equal(*results)
