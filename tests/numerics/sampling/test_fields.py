"""Fields against point maps, numpy gradients and closed forms."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid
from itkstream.numerics.sampling.fields import (
    affine_to_displacement,
    compose,
    jacobian_determinant,
    node_vectors,
    resize_field,
    shrink_field,
    to_displacement,
    to_positions,
)


def linear_field(grid: Grid, slope: np.ndarray) -> np.ndarray:
    """u(p) = slope @ (p - middle): exact under linear interpolation."""
    p = grid.positions()
    return (p - p.reshape(-1, grid.ndim).mean(0)) @ slope.T


@pytest.mark.parametrize("ndim", [2, 3])
def test_composition_of_fields_is_that_of_points(odd_grid: Callable[..., Grid], ndim: int) -> None:
    grid = odd_grid(1, ndim)
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (2, *grid.shape, ndim))
    both = CompositeTransform((DisplacementField(first, grid), DisplacementField(second, grid)))
    wanted = both.apply(grid.positions()) - grid.positions()
    # float32 vectors of a few micrometers.
    np.testing.assert_allclose(compose(first, second, grid), wanted, atol=3e-6)


def test_composition_is_no_sum(odd_grid: Callable[..., Grid]) -> None:
    grid = odd_grid(1)
    one, two = linear_field(grid, 0.1 * np.eye(3)), linear_field(grid, 0.2 * np.eye(3))
    inside = (slice(3, -3),) * 3
    wanted = linear_field(grid, (1.1 * 1.2 - 1) * np.eye(3))[inside]
    np.testing.assert_allclose(compose(one, two, grid)[inside], wanted, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_positions_and_displacements_are_inverse(odd_grid: Callable[..., Grid], ndim: int) -> None:
    grid = odd_grid(2, ndim)
    u = np.random.default_rng(0).normal(size=(*grid.shape, ndim)).astype(np.float32)
    positions = to_positions(u, grid)
    assert positions.dtype == np.float64
    np.testing.assert_array_equal(positions, grid.positions() + u)
    # Positions of 200 have 3e-14 of rounding, far below a float32 vector's.
    np.testing.assert_array_equal(to_displacement(positions, grid), u)


def test_far_from_the_origin_displacements_keep_their_digits() -> None:
    grid = Grid((4, 4), (0.2, 0.2), (3e5, -3e5))
    u = np.random.default_rng(0).normal(0, 0.1, (4, 4, 2)).astype(np.float32)
    # float32 positions would be 0.03 off.
    np.testing.assert_allclose(to_displacement(to_positions(u, grid), grid), u, atol=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_an_affine_acts_after_the_displacement(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid((3, 4, 5), rng.uniform(0.5, 2, 3), rng.uniform(-9, 9, 3))
    matrix = np.eye(4)
    matrix[:3] += rng.normal(0, 0.1, (3, 4))
    u = rng.normal(size=(3, 4, 5, 3)).astype(np.float32)
    wanted = AffineTransform(matrix).apply(grid.positions() + u)
    np.testing.assert_allclose(to_positions(u, grid, matrix), wanted, atol=1e-12)
    alone = affine_to_displacement(matrix, grid)
    np.testing.assert_allclose(
        alone, AffineTransform(matrix).apply(grid.positions()) - grid.positions(), atol=1e-5
    )


@pytest.mark.parametrize("factors", [(2, 2, 2), (3, 1, 4), (5, 7, 2)])
def test_shrinking_keeps_a_linear_field(
    odd_grid: Callable[..., Grid], factors: tuple[int, ...]
) -> None:
    grid = odd_grid(3, shape=(20, 15, 11))
    slope = np.random.default_rng(0).normal(0, 0.1, (3, 3))
    fine = linear_field(grid, slope)
    small = grid.shrink(factors)
    middle = grid.positions().reshape(-1, 3).mean(0)
    wanted = (small.positions() - middle) @ slope.T
    # Also in the groups that stick out: float32 sums of values below 10.
    np.testing.assert_allclose(shrink_field(fine, factors), wanted, atol=1e-5)


def test_shrinking_a_field_of_one_voxel_repeats_it() -> None:
    field = np.array([[[1.0, 2.0]]], np.float32)
    np.testing.assert_array_equal(shrink_field(field, (4, 4)), field)


def test_a_resized_linear_field_is_the_same_map(odd_grid: Callable[..., Grid]) -> None:
    grid = odd_grid(4)
    slope = np.random.default_rng(0).normal(0, 0.1, (3, 3))
    middle = grid.positions().reshape(-1, 3).mean(0)
    field = linear_field(grid, slope).astype(np.float32)
    # A grid of other spacing and direction inside the first.
    inner = Grid((5, 6, 4), (0.5, 0.4, 0.3), tuple(middle), odd_grid(9).direction)
    assert (np.abs(grid.to_index(inner.corners()) - np.array(grid.shape) / 2) < 7).all()
    wanted = (inner.positions() - middle) @ slope.T
    np.testing.assert_allclose(resize_field(field, grid, inner), wanted, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_jacobian_of_a_linear_map_is_its_determinant(
    odd_grid: Callable[..., Grid], ndim: int
) -> None:
    grid = odd_grid(5, ndim)
    slope = np.random.default_rng(1).normal(0, 0.2, (ndim, ndim))
    wanted = np.linalg.det(np.eye(ndim) + slope)
    found = jacobian_determinant(linear_field(grid, slope), grid)
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


def test_jacobian_of_a_wave_equals_numpys(odd_grid: Callable[..., Grid]) -> None:
    grid = odd_grid(6)
    u = np.random.default_rng(1).normal(0, 0.3, (*grid.shape, 3))
    to_index = grid.inverse_matrix[:3, :3]
    slopes = np.stack(np.gradient(u, axis=(0, 1, 2)), -1) @ to_index
    wanted = np.linalg.det(np.eye(3) + slopes)
    np.testing.assert_allclose(jacobian_determinant(u, grid), wanted, atol=1e-4)


def test_a_fold_is_not_positive() -> None:
    grid = Grid((9, 9), (1, 2))
    u = np.zeros((9, 9, 2))
    u[..., 1] = -1.5 * 2 * np.arange(9)
    assert (jacobian_determinant(u, grid) < 0).all()


@pytest.mark.parametrize(
    ("shape", "factors"),
    [
        ((24, 20, 16), (4, 4, 2)),
        ((23, 19, 14), (4, 3, 1)),  # the last centres lie beyond the end, at it, on each voxel
        ((13, 17), (2, 8)),
        ((5, 1, 6), (4, 4, 6)),
    ],
)
def test_nodes_are_found_again_in_the_field_made_of_them(
    shape: tuple[int, ...], factors: tuple[int, ...]
) -> None:
    grid = Grid(shape, (0.7, 1.0, 1.6)[: len(shape)])
    nodes = grid.shrink(factors)
    vectors = np.random.default_rng(0).normal(size=(*nodes.shape, len(shape))).astype(np.float32)
    fine = resize_field(vectors, nodes, grid)
    found = node_vectors(fine, factors)
    assert found.dtype == np.float32
    # A node that sticks out is reached by a line from one voxel's length before it.
    np.testing.assert_allclose(found, vectors, atol=2e-5)
    # What means would make of it.
    assert np.abs(shrink_field(fine, factors) - vectors).max() > 0.05


def test_nodes_that_are_as_dense_as_voxels_along_an_axis_cost_no_memory() -> None:
    """As along the deep axis of anisotropic voxels: beside the result, some of its size at most."""
    field = np.random.default_rng(0).normal(size=(40, 64, 64, 3)).astype(np.float32)
    tracemalloc.start()
    found = node_vectors(field, (1, 4, 4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * field.nbytes  # five copies of all of it would be 5
    for k in (0, 17, 39):
        np.testing.assert_array_equal(found[k], node_vectors(field[k], (4, 4)))
