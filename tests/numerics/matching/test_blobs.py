"""Blobs of known place and size, and maxima against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter

from itkstream.geometry import Grid
from itkstream.numerics.matching.blobs import around, find_blobs, fit_peaks
from itkstream.numerics.matching.filters import find_maxima
from itkstream.numerics.threads import using_threads

WIDTHS = np.geomspace(2.0, 8.0, 9)


def gaussians(grid, centres, widths):
    points = grid.positions()
    image = np.full(grid.shape, 100.0)
    for centre, width in zip(centres, widths, strict=True):
        image += 1000 * np.exp(-np.square(points - centre).sum(-1) / (2 * width**2))
    return image.astype(np.float32)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 0.6, 1.7)])
def test_blobs_are_found_once_where_they_are_and_as_wide(spacing):
    shape = tuple(int(90 / h) for h in spacing)
    turned = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]])
    grid = Grid(shape, spacing, origin=(50, -20, 7), direction=turned)
    inside = np.array([(22.3, 21.1, 24.7), (64.2, 30.4, 25.9), (40.6, 62.5, 60.1), (66, 66, 33)])
    centres = grid.to_physical(inside / spacing)
    widths = np.array([2.6, 4.1, 6.5, 3.2])
    found = find_blobs(gaussians(grid, centres, widths), grid, np.repeat(WIDTHS[:, None], 3, 1))
    strong = np.argsort(-found.strengths)[:4]
    # Nothing else but rounding noise is positive.
    assert (found.strengths > 1).sum() == 4
    distance = np.linalg.norm(found.positions[strong][:, None] - centres, axis=-1)
    assert sorted(distance.argmin(axis=1)) == [0, 1, 2, 3]
    # A quadratic fitted to a Gaussian errs by a few hundredths of its width; tails overlap.
    assert (distance.min(axis=1) < 0.1).all()
    # A Gaussian of width s responds most to a blur of s * sqrt(2 / 3); one step of the widths.
    expected = widths[distance.argmin(axis=1)] * np.sqrt(2 / 3)
    ratio = WIDTHS[found.scales[strong]] / np.maximum(expected, WIDTHS[0])
    assert (np.abs(np.log(ratio)) < np.log(WIDTHS[1] / WIDTHS[0])).all()


def test_a_ball_is_found_at_the_width_of_its_radius():
    grid = Grid((80, 80, 80), (1.0, 1.0, 1.0))
    radius = 9.0
    ball = np.linalg.norm(grid.positions() - 39.5, axis=-1) <= radius
    found = find_blobs(ball.astype(np.float32), grid, np.repeat(WIDTHS[:, None], 3, 1))
    best = np.argmax(found.strengths)
    # Within one step of the widths searched.
    assert abs(np.log(WIDTHS[found.scales[best]] * np.sqrt(3) / radius)) < np.log(2) / 4
    # The ball lies half-way between voxels: a tie, found once.
    np.testing.assert_allclose(found.positions[best], 39.5, atol=0.02)
    near = np.linalg.norm(found.positions - 39.5, axis=1) < radius / 2
    assert near.sum() == 1


def test_two_dimensions():
    grid = Grid((120, 100), (1.0, 1.3))
    centre = np.array([[50.3, 61.8]])
    found = find_blobs(gaussians(grid, centre, [4.0]), grid, np.repeat(WIDTHS[:, None], 2, 1))
    best = np.argmax(found.strengths)
    np.testing.assert_allclose(found.positions[best], centre[0], atol=0.1)


@given(st.integers(0, 2**32 - 1), st.integers(2, 3))
@settings(max_examples=25, deadline=None)
def test_maxima_agree_with_a_maximum_filter(seed, n):
    rng = np.random.default_rng(seed)
    stack = rng.normal(size=(3, *[9] * n)).astype(np.float32)
    peaks = maximum_filter(stack, 3, mode="constant", cval=np.inf)[1] == stack[1]
    expected = np.argwhere(peaks & (stack[1] > 0))
    np.testing.assert_array_equal(find_maxima(*stack), expected)


def test_of_equal_neighbours_one_counts():
    stack = np.zeros((3, 8, 8), np.float32)
    stack[:, 3:5, 3:5] = 1
    zero = np.zeros((8, 8), np.float32)
    scales = [zero, *stack, zero]
    assert sum(len(find_maxima(*scales[k : k + 3])) for k in range(3)) == 1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_peak_of_a_quadratic_is_exact(seed):
    rng = np.random.default_rng(seed)
    peak = 4 + rng.uniform(-0.5, 0.5, 3)
    root = rng.normal(size=(3, 3))
    curvature = root @ root.T + np.eye(3)
    d = np.stack(np.meshgrid(*[np.arange(9.0)] * 3, indexing="ij"), -1) - peak
    values = 7 - np.einsum("...i,ij,...j->...", d, curvature, d)
    index = np.array([[4, 4, 4]])
    position, height = fit_peaks(around(values, index), index)
    np.testing.assert_allclose(position[0], peak, atol=1e-9)
    np.testing.assert_allclose(height, 7, atol=1e-9)


def test_a_ridge_keeps_its_voxel():
    values = np.broadcast_to(-np.square(np.arange(5.0) - 2.2), (5, 5))
    index = np.array([[2, 2]])
    position, _ = fit_peaks(around(values, index), index)
    np.testing.assert_array_equal(position, [[2, 2]])


def test_bits_do_not_depend_on_threads():
    data = np.random.default_rng(0).normal(size=(50, 50, 50)).astype(np.float32)
    grid = Grid(data.shape, (1.0, 1.0, 1.0))
    results = []
    for threads in (1, 3):
        with using_threads(threads):
            results.append(find_blobs(data, grid, np.repeat(WIDTHS[:, None], 3, 1)))
    np.testing.assert_array_equal(results[0].positions, results[1].positions)
    np.testing.assert_array_equal(results[0].strengths, results[1].strengths)
