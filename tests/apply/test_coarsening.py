"""Fields on coarser lattices, against the fine field at all of its nodes."""

from __future__ import annotations

from collections.abc import Callable

import dask.array as da
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from itkstream.apply.coarsening import coarsen_field, decimate, prepare_decimated
from itkstream.apply.fields import sample_transform
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid

MakeGrid = Callable[..., Grid]
Make = Callable[..., CompositeTransform]


def smooth_field(seed: int, grid: Grid, size: float, sigma: float) -> DisplacementField:
    noise = np.random.default_rng(seed).normal(size=(*grid.shape, grid.ndim))
    smooth = gaussian_filter(noise, (*(sigma,) * grid.ndim, 0), mode="nearest")
    return DisplacementField(smooth * (size / np.abs(smooth).max()), grid)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("shape", "spacing"), [((101, 40, 33), (0.5, 1.0, 1.6)), ((70, 45), (0.7, 1.0))]
)
def test_coarse_fields_say_how_far_they_are(
    shape: tuple[int, ...], spacing: tuple[float, ...], stored: bool
) -> None:
    grid = Grid(shape, spacing, (5, -7, 11)[: len(shape)])
    field = smooth_field(1, grid, 3.0, sigma=8.0)
    data = da.from_array(field.data, chunks=32) if stored else field.data
    sizes = []
    for tolerance in (1.0, 0.3, 0.1):
        coarse = coarsen_field(DisplacementField(data, grid), tolerance)
        again = coarse.field.apply(grid.positions())
        error = np.linalg.norm(again - field.apply(grid.positions()), axis=-1).max()
        np.testing.assert_allclose(coarse.error, error, atol=1e-9)
        assert error <= tolerance
        sizes.append(coarse.field.grid.size)
        # Between the nodes of the fine lattice the error is no larger.
        index = np.random.default_rng(0).uniform(0, np.subtract(shape, 1), (2000, len(shape)))
        points = grid.to_physical(index)
        between = np.linalg.norm(coarse.field.apply(points) - field.apply(points), axis=-1)
        assert between.max() <= error + 1e-9
        steps = np.multiply(coarse.factors, spacing)
        assert steps.max() / steps.min() < 2.1
    assert sizes[0] < sizes[1] < sizes[2] < grid.size


def test_coarsening_keeps_linear_fields_and_rough_ones() -> None:
    grid = Grid((50, 40, 30), (1, 1, 1))
    matrix = np.eye(4)
    matrix[:3] += np.random.default_rng(0).uniform(-0.1, 0.1, (3, 4)) * (1, 1, 1, 100)
    affine = AffineTransform(matrix)
    straight = sample_transform(affine, grid)
    # Vectors of tens in float32.
    coarse = coarsen_field(straight, 1e-3)
    # From each axis to the largest factor that it has room for.
    assert coarse.factors == (32, 32, 29)
    points = grid.to_physical(np.random.default_rng(1).uniform(0, 29, (50, 3)))
    np.testing.assert_allclose(coarse.field.apply(points), affine.apply(points), atol=2e-3)
    rough = DisplacementField(np.random.default_rng(0).normal(size=(*grid.shape, 3)), grid)
    kept = coarsen_field(rough)
    assert kept.field is rough
    assert kept.error == 0
    assert coarsen_field(straight, 1e-3, max_factor=4).factors == (4, 4, 4)


def test_a_bound_on_the_size_goes_before_the_tolerance() -> None:
    grid = Grid((60, 50, 40), (1, 1, 1))
    field = smooth_field(2, grid, 3.0, sigma=4.0)
    within = coarsen_field(field, 0.3)
    small = coarsen_field(field, 0.3, max_nodes=2000)
    assert small.field.grid.size <= 2000 < within.field.grid.size
    again = small.field.apply(grid.positions()) - field.apply(grid.positions())
    np.testing.assert_allclose(small.error, np.linalg.norm(again, axis=-1).max(), atol=1e-9)
    assert small.error > 0.3 >= within.error
    with pytest.raises(InputError, match="at most 5 were asked for"):
        coarsen_field(field, max_nodes=5)


@pytest.mark.parametrize("factors", [(1, 1, 1), (1, 2, 3), (7, 4, 5)])
def test_nodes_that_are_kept(factors: tuple[int, ...]) -> None:
    grid = Grid((290, 9, 11), (0.5, 1.0, 1.6), (5, -7, 11))
    field = smooth_field(1, grid, 3.0, sigma=8.0)
    kept = decimate(field, factors)
    lazy = prepare_decimated(kept, factors)
    assert isinstance(lazy, da.Array)
    assert lazy.npartitions > 1
    vectors = lazy.compute()
    np.testing.assert_array_equal(kept.data[1:3, ..., 1], vectors[1:3, ..., 1])
    every = tuple(slice(None, None, f) for f in factors)
    inside = tuple(slice(-(-n // f)) for n, f in zip(grid.shape, factors, strict=True))
    np.testing.assert_array_equal(vectors[inside], field.data[every])
    # The end keeps its vector, wherever the last node stands; vectors of 3 in float32.
    end = grid.corners()[-1]
    np.testing.assert_allclose(kept.apply(end), field.apply(end), atol=1e-5)


@pytest.mark.parametrize("factors", [(2, 2), (2, 0, 2), (1.5, 2, 2)])
def test_nodes_that_cannot_be_kept(factors: tuple[float, ...]) -> None:
    field = smooth_field(1, Grid((9, 8, 7), (1.0, 1.0, 1.0)), 1.0, sigma=4.0)
    with pytest.raises(InputError, match="factors must be 3 whole numbers"):
        decimate(field, factors)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"tolerance": 0.0}, {"tolerance": np.nan}, {"max_factor": 64}])
def test_bounds_out_of_range(bad: dict[str, float]) -> None:
    field = smooth_field(1, Grid((9, 8, 7), (1.0, 1.0, 1.0)), 1.0, sigma=4.0)
    with pytest.raises(InputError, match="tolerance must be positive and max_factor"):
        coarsen_field(field, **bad)  # type: ignore[arg-type]


def test_what_cannot_be_coarser(odd_grid: MakeGrid, smooth_transform: Make) -> None:
    transform = smooth_transform(odd_grid(0))
    field, affine = transform.transforms
    for wrong in (transform, affine):
        with pytest.raises(InputError, match="coarsen_field takes a DisplacementField; got"):
            coarsen_field(wrong)  # type: ignore[arg-type]
    assert isinstance(field, DisplacementField)
    holes = np.array(field.data)
    holes[1, 1, 1] = np.nan
    with pytest.raises(InputError, match="holds NaN"):
        coarsen_field(DisplacementField(holes, field.grid))
