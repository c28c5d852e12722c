"""Local correlation against direct sums, at borders, masks and constant regions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkstream.errors import InputError
from itkstream.numerics.deformation.correlation import (
    ValueRange,
    correlation_residual,
    local_correlation,
    mean_local_correlation,
)
from itkstream.numerics.threads import using_threads


def windows(image, radius, centre):
    return image[tuple(slice(max(c - radius, 0), c + radius + 1) for c in centre)].ravel()


def direct(a, b, radius):
    """Squared correlation of every window, by np.corrcoef."""
    out = np.empty(a.shape)
    for centre in np.ndindex(a.shape):
        x, y = windows(a, radius, centre), windows(b, radius, centre)
        valid = np.isfinite(x) & np.isfinite(y)
        out[centre] = np.corrcoef(x[valid], y[valid])[0, 1] ** 2
    return out


@pytest.fixture
def pair():
    rng = np.random.default_rng(5)
    a = rng.integers(0, 4000, (13, 11, 12)).astype(np.uint16)
    b = (a * 0.3 + rng.normal(0, 300, a.shape) + 5000).clip(0).astype(np.uint16)
    return a, b


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_equals_the_correlation_of_every_window(pair, radius):
    a, b = pair
    # Integers of up to 18 bits are summed exactly, so only the last division rounds.
    np.testing.assert_allclose(local_correlation(a, b, radius), direct(a, b, radius), atol=1e-9)


def test_real_numbers_lose_nothing_that_matters(pair):
    a, b = (image / 977.0 for image in pair)
    # Values are rounded to 2^-18 of the range: variances are off by some 1e-5 of themselves.
    np.testing.assert_allclose(local_correlation(a, b, 3), direct(a, b, 3), atol=2e-5)


def test_a_plane_is_an_image_of_its_own(pair):
    a, b = (image[:, :, 4] for image in pair)
    np.testing.assert_allclose(local_correlation(a, b, 2), direct(a, b, 2), atol=1e-9)


def test_windows_may_differ_from_axis_to_axis(pair):
    a, b = pair
    got = local_correlation(a, b, (1, 2, 3))
    x, y = (image[4:7, 3:8, 2:9].ravel().astype(float) for image in pair)
    assert got[5, 5, 5] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=1e-9)


def test_masked_voxels_and_nan_do_not_count(pair):
    a, b = (image.astype(float) for image in pair)
    mask = np.ones(a.shape, bool)
    mask[3:6, 2:5, 7:9] = False
    spoiled = a.copy()
    spoiled[~mask] = np.inf
    got = local_correlation(spoiled, b, 2)
    wanted = direct(np.where(mask, a, np.nan), b, 2)
    np.testing.assert_allclose(got[mask], wanted[mask], atol=1e-9)
    assert np.isnan(got[~mask]).all()
    np.testing.assert_array_equal(local_correlation(b, np.where(mask, a, np.nan), 2), got)


def test_constant_regions_give_zero_however_bright():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, (20, 20, 20)).astype(np.float32)
    b = a.copy()
    a[:10] = 1e7
    got = local_correlation(a, b, 2)
    assert (got[:8] == 0).all()
    assert np.isfinite(got).all()


def test_contrast_at_the_limit_of_precision_counts_as_none():
    a = np.zeros((12, 12, 12))
    a[11, 11, 11] = 2.0**23
    # One step of the value lattice in one voxel: its variance drowns in that of the rounding.
    a[3, 3, 3] = 2.0
    b = np.random.default_rng(0).normal(size=a.shape)
    assert (local_correlation(a, b, 2)[:8, :8, :8] == 0).all()


def test_an_image_of_one_value_gives_zero():
    a = np.full((8, 8, 8), 7.3)
    assert mean_local_correlation(a, a, 2) == 0.0
    assert mean_local_correlation(np.full((8, 8, 8), np.nan), a, 2) == 0.0


@given(st.floats(0.1, 30), st.floats(-1e3, 1e3), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_gain_and_offset_do_not_matter(gain, offset, radius):
    a = np.random.default_rng(1).normal(0, 1, (9, 8, 7))
    # Rounding to the value lattice, as above.
    np.testing.assert_allclose(local_correlation(a, gain * a + offset, radius), 1.0, atol=1e-4)


def test_the_mean_takes_whole_windows_under_its_mask(pair):
    a, b = pair
    mask = np.zeros(a.shape, bool)
    mask[5, 5, 5] = True
    wanted = local_correlation(a, b, 2)[5, 5, 5]
    assert mean_local_correlation(a, b, 2, mask) == pytest.approx(wanted)


def run_residual(a, b, radius):
    a, b = a.astype(np.float32), b.astype(np.float32)
    residual, weight = np.empty_like(a), np.empty_like(a)
    ranges = ValueRange.of(a), ValueRange.of(b)
    mean = correlation_residual((a, b), ranges, radius, residual, weight)
    return residual, weight, mean


def test_residual_and_weight_are_those_of_the_central_voxel(pair):
    a, b = pair
    residual, weight, mean = run_residual(a, b, 2)
    centre = (6, 5, 6)
    x, y = windows(a.astype(float), 2, centre), windows(b.astype(float), 2, centre)
    r = np.corrcoef(x, y)[0, 1]
    wanted = (a[centre] - x.mean()) / x.std() - r * (b[centre] - y.mean()) / y.std()
    # float32 results
    assert residual[centre] == pytest.approx(wanted, rel=1e-5)
    assert weight[centre] == pytest.approx(r / y.std(), rel=1e-5)
    assert mean == pytest.approx(direct(a, b, 2).mean(), rel=1e-7)


def test_bits_do_not_depend_on_threads(pair):
    a, b = (image / 977.0 for image in pair)
    results = []
    for threads in (1, 2, 4):
        with using_threads(threads):
            results.append(run_residual(a, b, 3))
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("radius", [0, 1.5, (1, 2)])
def test_a_bad_radius_is_named(pair, radius):
    with pytest.raises(InputError, match="radius"):
        local_correlation(*pair, radius)


def test_shapes_must_agree(pair):
    a, b = pair
    with pytest.raises(InputError, match="shape"):
        local_correlation(a, b[1:], 2)
