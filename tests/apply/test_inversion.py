"""Inverses of stored transforms and points through them, forward and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from itkstream.apply import inversion
from itkstream.apply import points as mapped_points
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BlockGrid,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    PiecewiseAffine,
)
from itkstream.transform import apply_to_points, invert_transform, prepare_invert


@pytest.fixture
def gentle(odd_grid, smooth_transform):
    """A smooth field on a coarser grid, then an affine, and a grid in moving space."""
    grid = odd_grid(2, axes=("z", "y", "x"), shape=(40, 36, 44))
    field, affine = smooth_transform(grid, factor=2).transforms
    smooth = 4 * gaussian_filter(field.data, (1.5, 1.5, 1.5, 0))
    return CompositeTransform((DisplacementField(smooth, field.grid), affine)), grid


@pytest.mark.parametrize("container", ["numpy", "dask"])
def test_blocks_give_the_bits_of_the_whole(gentle, stored, container) -> None:
    transform, grid = gentle
    field, affine = transform.transforms
    whole = invert_transform(transform, grid)
    data = stored(container, field.data, field.grid)
    kept = CompositeTransform((DisplacementField(data, field.grid), affine))
    lazy = prepare_invert(kept, grid, (16, 20, 23))
    assert lazy.dtype == np.float32
    found = lazy.compute()
    np.testing.assert_array_equal(found[..., :3], whole.transforms[0].data)
    assert found[..., 3].max() <= 0.01
    points = grid.to_physical(np.random.default_rng(0).uniform(6, 29, (300, 3)))
    there = transform.apply(points)
    # The field bends by some hundredths of a voxel between the voxels of its inverse.
    assert np.abs(whole.apply(there) - points).max() < 0.1 * min(grid.spacing)


class Watched:
    """A stored field that remembers what it was asked for."""

    def __init__(self, array):
        self.array, self.asked = array, []
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key):
        part = self.array[key]
        self.asked.append(part.size / self.array.size)
        return part

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("read whole")


def test_blocks_and_points_read_parts_only(monkeypatch) -> None:
    for module in (inversion, mapped_points):
        monkeypatch.setattr(module, "_PART", 16)
    grid = Grid((64, 64, 64), (1.0, 1.0, 1.0))
    source = Watched(np.full((64, 64, 64, 3), 2.0, np.float32))
    transform = DisplacementField(source, grid)
    found = prepare_invert(transform, grid, (16, 16, 16)).compute(scheduler="sync")
    assert (found[..., :3] == -2).all()
    points = np.random.default_rng(0).uniform(0, 63, (500, 3))
    back = apply_to_points(transform, apply_to_points(transform, points).points, inverse=True)
    np.testing.assert_allclose(back.points, points, atol=1e-9)
    assert max(source.asked) < 0.1


@pytest.mark.parametrize("seed", range(2))
def test_points_there_and_back(gentle, seed) -> None:
    transform, grid = gentle
    index = np.random.default_rng(seed).uniform(-3, 46, (200, 3))
    points = grid.to_physical(index)
    there = apply_to_points(transform, points)
    np.testing.assert_allclose(there.points, transform.apply(points), atol=1e-9)
    coarse = transform.transforms[0].grid
    inside = (coarse.to_index(points) >= -0.5) & (
        coarse.to_index(points) < np.array(coarse.shape) - 0.5
    )
    np.testing.assert_array_equal(there.outside, ~inside.all(axis=1))
    back = apply_to_points(transform, there.points, inverse=True)
    # The tolerance is a hundredth of the field's voxel, 2 of the image's.
    assert np.abs(back.points - points).max() < 0.02 * 2 * max(grid.spacing)
    assert back.outside.any()
    np.testing.assert_array_equal(back.outside, there.outside)


numbers = st.floats(-0.3, 0.3)


@st.composite
def affines(draw):
    matrix = np.eye(4)
    matrix[:3] += np.reshape(draw(st.lists(numbers, min_size=12, max_size=12)), (3, 4))
    matrix[:3, 3] *= 1000
    matrix[:3, :3] += np.eye(3)
    return AffineTransform(matrix)


@given(affines(), affines())
def test_the_inverse_of_a_chain_is_the_chain_of_inverses_backwards(a, b) -> None:
    points = np.random.default_rng(0).uniform(-100, 100, (20, 3))
    chain = CompositeTransform((a, b))
    backwards = CompositeTransform((b.inverse(), a.inverse()))
    inverse = invert_transform(chain)
    # Positions of some 1000, condition numbers below 100: doubles leave 1e-9.
    np.testing.assert_allclose(inverse.apply(points), backwards.apply(points), atol=1e-8)
    there = apply_to_points(chain, points).points
    back = apply_to_points(chain, there, inverse=True)
    np.testing.assert_allclose(back.points, points, atol=1e-8)
    assert not back.outside.any()


def test_no_points() -> None:
    field = DisplacementField(np.zeros((4, 4, 2)), Grid((4, 4), (1.0, 1.0)))
    for way in (False, True):
        assert apply_to_points(field, np.empty((0, 2)), inverse=way).points.shape == (0, 2)


def test_refuses(gentle) -> None:
    transform, grid = gentle
    field, affine = transform.transforms
    with pytest.raises(InputError, match=r"points of shape \(m, 3\); got \(5, 2\)"):
        apply_to_points(transform, np.zeros((5, 2)))
    with pytest.raises(InputError, match="must be finite; 1 are not"):
        apply_to_points(transform, [[0, np.nan, 0]])
    with pytest.raises(InputError, match="got AffineTransform, DisplacementField: use"):
        prepare_invert(CompositeTransform((affine, field)), grid, (16, 16, 16))
    spline = BSplineTransform(np.zeros((5, 5, 5, 3)), Grid((5, 5, 5), (9, 9, 9)))
    with pytest.raises(InputError, match="got DisplacementField, BSplineTransform"):
        invert_transform(CompositeTransform((field, spline)), grid)
    with pytest.raises(InputError, match="needs a grid"):
        invert_transform(transform)
    holes = np.full((*grid.shape, 3), np.nan, np.float32)
    with pytest.raises(InputError, match="NaN or infinity"):
        apply_to_points(DisplacementField(holes, grid), np.zeros((1, 3)), inverse=True)


def test_every_link_of_a_chain_tells_what_is_outside(gentle) -> None:
    transform, grid = gentle
    field, affine = transform.transforms
    lattice = Grid((6, 6, 6), tuple(np.multiply(grid.spacing, 20)), grid.origin, grid.direction)
    spline = BSplineTransform(np.zeros((6, 6, 6, 3)), lattice)
    blocks = BlockGrid(grid.shape, grid.shape, (0, 0, 0))
    pieces = PiecewiseAffine(np.eye(4).reshape(1, 1, 1, 4, 4), blocks, grid)
    middle, far = grid.to_physical([np.divide(grid.shape, 2), [9999.0] * 3])
    reached = lattice.to_physical([2.5] * 3)
    assert apply_to_points(spline, [reached, far]).outside.tolist() == [False, True]
    for last in (field, pieces):
        # What the last transform of a chain gets has gone through those before it.
        chain = CompositeTransform((affine, last))
        back = affine.inverse().apply([middle, far])
        found = apply_to_points(chain, back)
        assert found.outside.tolist() == [False, True]
        np.testing.assert_array_equal(found.points, chain.apply(back))
