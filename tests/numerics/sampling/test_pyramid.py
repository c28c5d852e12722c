"""Shrinking against scipy's Gaussian and plain means, and where the voxels end up."""

import numpy as np
import pytest
from scipy import ndimage

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.numerics.sampling.pyramid import filter_axis, gaussian_weights, normalised, shrink
from itkstream.numerics.threads import using_threads


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(100, 10, (24, 18, 20)).astype(np.float32)


def test_without_sigma_it_is_the_mean_of_groups(image):
    grid = Grid(image.shape, (1.0, 2.0, 3.0), (5.0, 6.0, 7.0))
    small, coarse = shrink(image, grid, (2, 3, 5))
    wanted = image.reshape(12, 2, 6, 3, 4, 5).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(small, wanted, rtol=1e-6)  # float32
    assert coarse == grid.shrink((2, 3, 5))


def test_the_gaussian_is_in_physical_units(image):
    grid = Grid(image.shape, (0.5, 1.0, 2.0))
    got, same = shrink(image, grid, 1, 1.5)
    wanted = ndimage.gaussian_filter(
        image.astype(float), (3.0, 1.5, 0.75), mode="nearest", truncate=6.0
    )
    # The Gaussian is cut at 3.5 deviations, 5e-4 of its weight, of values that vary by 10.
    np.testing.assert_allclose(got, wanted, atol=1e-2)
    assert same == grid


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("width", [7, 41])  # narrower and wider than the image
def test_one_axis_is_filtered_as_by_scipy(image, axis, width):
    weights = gaussian_weights(width / 8, width // 2)
    assert weights.size == width
    wanted = ndimage.correlate1d(image.astype(float), weights / weights.sum(), axis, mode="nearest")
    np.testing.assert_allclose(
        filter_axis(image, axis, normalised(weights)), wanted, rtol=1e-6
    )  # float32


@pytest.mark.parametrize("shape", [(9, 7, 1), (1, 9, 7), (9, 1, 7), (1, 1, 7)])
def test_thin_images_keep_their_axes(shape):
    thin = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for axis in range(3):
        wanted = ndimage.gaussian_filter1d(thin.astype(float), 1.0, axis, mode="nearest")
        got = filter_axis(thin, axis, normalised(gaussian_weights(1.0, 4)))
        np.testing.assert_allclose(got, wanted, atol=1e-6)  # float32


@pytest.mark.parametrize("axis", [0, 1])
def test_planes_are_filtered_too(axis):
    plane = np.random.default_rng(1).normal(size=(11, 30)).astype(np.float32)
    wanted = ndimage.gaussian_filter1d(plane.astype(float), 2.0, axis, mode="nearest")
    got = filter_axis(plane, axis, normalised(gaussian_weights(2.0, 8)))
    np.testing.assert_allclose(got, wanted, atol=1e-6)  # float32


def test_a_ramp_keeps_its_values_at_physical_positions():
    grid = Grid((32, 24, 20), (1.84, 1.84, 1.68), (10.0, -20.0, 5.0))
    slope = np.array([0.3, -0.2, 0.5])
    small, coarse = shrink((grid.positions() @ slope).astype(np.float32), grid, (4, 2, 4), 2.0)
    inner = (slice(2, -2), slice(3, -3), slice(2, -2))
    # float32 at values around 20
    np.testing.assert_allclose(small[inner], (coarse.positions() @ slope)[inner], atol=2e-5)


def test_groups_that_stick_out_repeat_the_edge():
    grid = Grid((5, 1, 1), (1.0, 1.0, 1.0))
    small, coarse = shrink(np.arange(5.0).reshape(5, 1, 1), grid, (2, 1, 1))
    np.testing.assert_allclose(small.ravel(), [0.5, 2.5, 4.0])
    assert coarse.shape == (3, 1, 1)


def test_fine_stripes_leave_no_coarse_ones():
    stripes = np.tile([0.0, 1.0], 32)[:, None] * np.ones((64, 4))
    small, _ = shrink(stripes, Grid(stripes.shape, (1.0, 1.0)), (4, 1), 1.0)
    # The edge repeats its stripe; within, the mean of four hides them altogether.
    np.testing.assert_allclose(small[1:-1], 0.5, atol=1e-6)


def test_nan_voxels_are_left_out(image):
    spoiled = image.copy()
    spoiled[2:4, 2:4, 2:3] = np.nan
    spoiled[8:16, 8:16, 8:16] = np.nan
    spoiled[20, 4:6, 4:6] = spoiled[21, 4, 4] = np.nan  # five of eight
    small, _ = shrink(spoiled, Grid(image.shape, (1.0, 1.0, 1.0)), 2)
    assert small[1, 1, 1] == pytest.approx(image[2:4, 2:4, 3].mean(), rel=1e-6)
    assert np.isnan(small[4:8, 4:8, 4:8]).all()
    assert np.isnan(small[10, 2, 2])
    assert np.isnan(small).sum() == 65


def test_nothing_to_do_returns_the_input(image):
    grid = Grid(image.shape, (1.0, 1.0, 1.0))
    same, same_grid = shrink(image, grid, 1)
    assert np.shares_memory(same, image)
    assert same_grid is grid


def test_axes_shorter_than_the_factor_are_averaged_whole():
    plane = np.arange(24.0).reshape(1, 4, 6)
    small, coarse = shrink(plane, Grid(plane.shape, (1.0, 1.0, 1.0)), 2)
    assert small.shape == coarse.shape == (1, 2, 3)
    assert coarse.spacing == (1.0, 2.0, 2.0)


def test_bits_do_not_depend_on_threads(image):
    results = []
    for threads in (1, 2, 4):
        with using_threads(threads):
            results.append(shrink(image, Grid(image.shape, (1.0, 1.0, 1.0)), 2, 1.3)[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(
    ("factors", "sigmas", "name"),
    [(0, 0.0, "factors"), ((2, 2), 0.0, "factors"), (1.5, 0.0, "factors"), (2, -1.0, "sigmas")],
)
def test_bad_parameters_are_named(image, factors, sigmas, name):
    with pytest.raises(InputError, match=name):
        shrink(image, Grid(image.shape, (1.0, 1.0, 1.0)), factors, sigmas)


def test_the_array_must_fit_its_grid(image):
    with pytest.raises(InputError, match="shape"):
        shrink(image, Grid((3, 3, 3), (1.0, 1.0, 1.0)), 2)
