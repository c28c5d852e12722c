"""Transforms of points against plain arithmetic and scipy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BlockGrid,
    CompositeTransform,
    DisplacementField,
    Grid,
    PiecewiseAffine,
    Transform,
)


def some_affine(rng: np.random.Generator, n: int) -> AffineTransform:
    matrix = np.eye(n + 1)
    matrix[:-1, :-1] += rng.uniform(-0.2, 0.2, (n, n))
    matrix[:-1, -1] = rng.uniform(-100, 100, n)
    return AffineTransform(matrix)


@given(st.sampled_from((2, 3)), st.integers(0, 2**32 - 1))
def test_affines_compose_and_invert(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = some_affine(rng, n), some_affine(rng, n)
    points = rng.uniform(-300, 300, (5, 4, n))
    chained = CompositeTransform((one, two))
    product = AffineTransform(two.matrix @ one.matrix)
    np.testing.assert_allclose(chained.apply(points), product.apply(points), atol=1e-10)
    back = CompositeTransform((chained, two.inverse(), one.inverse()))
    np.testing.assert_allclose(back.apply(points), points, atol=1e-9)
    assert (one.inverse().matrix[-1] == np.eye(n + 1)[-1]).all()


def test_an_affine_is_frozen() -> None:
    given_matrix = np.eye(4)
    affine = AffineTransform(given_matrix)
    given_matrix[0, 0] = 7
    assert affine.matrix[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        affine.matrix[0, 0] = 2


def test_piecewise_affine_is_the_analytic_partition_of_unity(
    odd_grid: Callable[..., Grid],
) -> None:
    grid = odd_grid(0, shape=(24, 20, 6))
    blocks = BlockGrid(grid.shape, (12, 10, 6), (3, 2, 0))
    rng = np.random.default_rng(0)
    matrices = np.array([some_affine(rng, 3).matrix for _ in range(4)]).reshape(2, 2, 1, 4, 4)
    index = rng.uniform(-2, 25, (200, 3))
    points = grid.to_physical(index)

    def smooth(x: np.ndarray, border: float, overlap: float) -> np.ndarray:
        t = np.clip((x - border) / (2 * overlap) + 0.5, 0, 1)
        return t * t * (3 - 2 * t)

    right, up = smooth(index[:, 0], 11.5, 3), smooth(index[:, 1], 9.5, 2)
    wanted = np.zeros_like(points)
    for i, a in enumerate((1 - right, right)):
        for j, b in enumerate((1 - up, up)):
            m = matrices[i, j, 0]
            wanted += (a * b)[:, None] * (points @ m[:3, :3].T + m[:3, 3])
    found = PiecewiseAffine(matrices, blocks, grid).apply(points)
    np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_equal_local_affines_are_one_affine(odd_grid: Callable[..., Grid]) -> None:
    grid = odd_grid(1)
    blocks = BlockGrid(grid.shape, (7, 6, 5))
    affine = some_affine(np.random.default_rng(1), 3)
    local = PiecewiseAffine(np.broadcast_to(affine.matrix, (*blocks.numblocks, 4, 4)), blocks, grid)
    points = grid.positions()
    np.testing.assert_allclose(local.apply(points), affine.apply(points), atol=1e-10)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_field_is_linear_inside_and_constant_outside(
    odd_grid: Callable[..., Grid], ndim: int, lazy: bool
) -> None:
    grid = odd_grid(4, ndim)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(*grid.shape, ndim))
    field = DisplacementField(da.from_array(vectors, chunks=5) if lazy else vectors, grid)
    index = rng.uniform(-4, 26, (300, ndim))
    points = grid.to_physical(index)
    scipy_says = RegularGridInterpolator([np.arange(n) for n in grid.shape], vectors)
    clipped = np.clip(index, 0, np.subtract(grid.shape, 1))
    np.testing.assert_allclose(field.apply(points), points + scipy_says(clipped), atol=1e-10)


def test_field_cropped_around_points_gives_the_same(odd_grid: Callable[..., Grid]) -> None:
    grid = odd_grid(5)
    rng = np.random.default_rng(0)
    field = DisplacementField(rng.normal(size=(*grid.shape, 3)), grid)
    for low, high in ((3.2, 6.9), (-9, -4), (30, 40), (-5, 3)):
        points = grid.to_physical(rng.uniform(low, high, (40, 3)))
        part = field.crop_around(points)
        assert part.grid.size < grid.size
        np.testing.assert_allclose(part.apply(points), field.apply(points), atol=1e-10)


def test_fields_of_one_point_and_of_none() -> None:
    field = DisplacementField(np.ones((3, 3, 2)), Grid((3, 3), (1, 1)))
    assert field.apply(np.zeros((0, 2))).shape == (0, 2)
    assert field.apply((1.0, 0.5)).tolist() == [2, 1.5]


def test_all_are_transforms_and_pickle(
    odd_grid: Callable[..., Grid], smooth_transform: Callable[..., CompositeTransform]
) -> None:
    grid = odd_grid(6)
    blocks = BlockGrid(grid.shape, grid.shape)
    local = PiecewiseAffine(np.eye(4).reshape(1, 1, 1, 4, 4), blocks, grid)
    composite = smooth_transform(grid)
    points = grid.positions()[::3, ::3, ::3]
    for transform in (local, composite, *composite.transforms):
        assert isinstance(transform, Transform)
        assert transform.ndim == 3
        again = pickle.loads(pickle.dumps(transform))
        np.testing.assert_array_equal(again.apply(points), transform.apply(points))


NAN = np.full((3, 3), np.nan)
SINGULAR = np.diag([1.0, 0.0, 1.0])
PROJECTIVE = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 1]])
FLAT = Grid((4, 4), (1, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AffineTransform(np.eye(5)), r"3 x 3 or 4 x 4 matrix; got shape \(5, 5\)"),
        (lambda: AffineTransform(NAN), "must be finite.*did its fit fail"),
        (lambda: AffineTransform(SINGULAR), "invertible"),
        (lambda: AffineTransform(PROJECTIVE), "last row of an affine"),
        (
            lambda: PiecewiseAffine(np.zeros((1, 2, 3, 3)), BlockGrid((4, 4), (2, 2)), FLAT),
            "another blocksize",
        ),
        (
            lambda: PiecewiseAffine(NAN.reshape(1, 1, 3, 3), BlockGrid((4, 4), (4, 4)), FLAT),
            "hold NaN: fill the failed blocks",
        ),
        (lambda: DisplacementField(np.zeros((4, 4)), FLAT), r"has shape \(4, 4, 2\); got \(4, 4\)"),
        (lambda: DisplacementField(np.zeros((4, 4, 3)), FLAT), "displacement field"),
        (lambda: DisplacementField("field", FLAT), "displacement field"),
        (lambda: CompositeTransform(()), "at least one"),
        (
            lambda: CompositeTransform((AffineTransform(np.eye(3)), AffineTransform(np.eye(4)))),
            r"different dimension.*\[2, 3\]",
        ),
    ],
)
def test_refuses(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_small_lengths_are_not_taken_for_a_singular_matrix() -> None:
    # From nanometers to millimeters, and back.
    small = AffineTransform(np.diag([1e-6, 1e-6, 2e-6, 1.0]))
    np.testing.assert_allclose(small.inverse().matrix, np.diag([1e6, 1e6, 5e5, 1.0]))
    flat = np.eye(4)
    flat[:3, :3] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    with pytest.raises(InputError, match="its determinant is 0"):
        AffineTransform(flat)
