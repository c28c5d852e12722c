"""Sampled contexts against scipy and np.corrcoef."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from itkstream.numerics.matching.contexts import sample_around
from itkstream.numerics.matching.products import correlate
from itkstream.numerics.threads import using_threads


@pytest.fixture(params=[(30, 26, 28), (40, 44)], ids=["3-D", "2-D"])
def scene(request):
    rng = np.random.default_rng(1)
    data = rng.normal(500, 100, request.param).astype(np.float32)
    n = data.ndim
    centres = rng.uniform(9, np.array(data.shape) - 10, (40, n))
    offsets = rng.uniform(-8, 8, (150, n))
    return data, centres, offsets


def values_at(data, centres, offsets):
    at = np.moveaxis(centres[:, None] + offsets, -1, 0)
    return map_coordinates(data.astype(float), at, order=1)


def test_correlations_are_those_of_the_interpolated_values(scene):
    data, centres, offsets = scene
    samples, inside = sample_around(data, centres, offsets)
    expected = np.corrcoef(values_at(data, centres, offsets))
    assert (inside == 1).all()
    # Rounding to integers of norm 4096 and the float32 image.
    np.testing.assert_allclose(correlate(samples, samples), expected, atol=1e-3)


def test_scalar_products_are_exact_whole_numbers(scene):
    samples, _ = sample_around(*scene)
    whole = samples.astype(np.int64)
    np.testing.assert_array_equal(samples, whole)
    assert np.linalg.norm(samples, axis=1).max() <= 4096
    np.testing.assert_array_equal(samples @ samples.T, whole @ whole.T)


def test_samples_outside_take_no_part(scene):
    data, _, offsets = scene
    corner = np.zeros((1, data.ndim))
    samples, inside = sample_around(data, corner, offsets)
    within = (offsets >= -0.5).all(axis=1)
    assert inside[0] == within.mean()
    assert not samples[0, ~within].any()
    values = values_at(data, corner, np.maximum(offsets, 0))[0, within]
    # Whole numbers up to about 600 stand for the values.
    assert np.corrcoef(values, samples[0, within])[0, 1] > 0.9999


@pytest.mark.parametrize("background", [0.0, 1e4, np.nan])
def test_windows_without_variation_are_zero(background):
    samples, _ = sample_around(
        np.full((9, 9, 9), background, np.float32), np.full((2, 3), 4.0), np.eye(3)
    )
    assert not samples.any()
    assert not correlate(samples, samples).any()


def test_bits_do_not_depend_on_threads(scene):
    results = []
    for threads in (1, 3):
        with using_threads(threads):
            results.append(sample_around(*scene)[0])
    np.testing.assert_array_equal(*results)
