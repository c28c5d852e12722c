"""Grids against plain matrix arithmetic and against SimpleITK's own geometry."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from itkstream.errors import InputError
from itkstream.geometry import Grid, default_axes


@st.composite
def grids(draw: Any, ndim: int | None = None) -> Grid:
    n = ndim or draw(st.sampled_from((2, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    turn = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return Grid(
        tuple(draw(st.integers(1, 40)) for _ in range(n)),
        tuple(draw(st.floats(0.05, 50)) for _ in range(n)),
        tuple(draw(st.floats(-1e4, 1e4)) for _ in range(n)),
        tuple(map(tuple, turn)),
        tuple(draw(st.permutations(default_axes(n)))),
    )


@given(grids(), st.integers(0, 1000))
def test_index_and_physical_are_inverse(grid: Grid, seed: int) -> None:
    index = np.random.default_rng(seed).uniform(-50, 90, (7, grid.ndim))
    # Positions of 1e4 have 2e-12 of rounding; a voxel of 0.05 makes that 4e-11 of an index.
    np.testing.assert_allclose(grid.to_index(grid.to_physical(index)), index, atol=1e-9)


@pytest.mark.parametrize("ndim", [2, 3])
def test_agrees_with_itk(odd_grid: Callable[..., Grid], ndim: int) -> None:
    grid = odd_grid(1, ndim)
    image = sitk.Image(grid.shape, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(np.ravel(grid.direction).tolist())
    for index in np.random.default_rng(0).uniform(-5, 25, (10, ndim)):
        wanted = image.TransformContinuousIndexToPhysicalPoint(index.tolist())
        np.testing.assert_allclose(grid.to_physical(index), wanted, atol=1e-10)


@given(grids())
def test_positions_and_corners_are_those_of_the_voxels(grid: Grid) -> None:
    small = Grid(tuple(min(n, 4) for n in grid.shape), grid.spacing, grid.origin, grid.direction)
    positions = small.positions()
    assert positions.shape == (*small.shape, small.ndim)
    for index in np.ndindex(small.shape):
        np.testing.assert_allclose(positions[index], small.to_physical(index))
    ends = positions[tuple(slice(None, None, max(1, n - 1)) for n in small.shape)]
    corners = {tuple(np.round(p, 6)) for p in small.corners()}
    assert corners == {tuple(np.round(p, 6)) for p in ends.reshape(-1, small.ndim)}


@given(grids(), st.data())
def test_crop_keeps_positions(grid: Grid, data: st.DataObject) -> None:
    start = [data.draw(st.integers(0, n - 1)) for n in grid.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, grid.shape, strict=True)]
    part = grid.crop(tuple(map(slice, start, stop)))
    assert part.shape == tuple(np.subtract(stop, start))
    np.testing.assert_allclose(
        part.to_physical(np.zeros(grid.ndim)), grid.to_physical(start), atol=1e-9
    )
    np.testing.assert_allclose(
        part.to_physical(np.ones(grid.ndim)), grid.to_physical(np.add(start, 1)), atol=1e-9
    )


@given(grids(), st.data())
def test_shrink_puts_centres_in_the_middle_of_their_group(grid: Grid, data: st.DataObject) -> None:
    factors = [data.draw(st.integers(1, 5)) for _ in grid.shape]
    small = grid.shrink(factors)
    assert small.shape == tuple(-(-n // f) for n, f in zip(grid.shape, factors, strict=True))
    group = np.array([data.draw(st.integers(0, n - 1)) for n in small.shape])
    first, last = group * factors, group * factors + np.subtract(factors, 1)
    middle = (grid.to_physical(first) + grid.to_physical(last)) / 2
    np.testing.assert_allclose(small.to_physical(group), middle, atol=1e-8)


@given(grids(), st.data())
def test_reorder_permutes_positions(grid: Grid, data: st.DataObject) -> None:
    axes = tuple(data.draw(st.permutations(grid.axes)))
    other = grid.reorder(axes)
    order = list(grid.axis_order(axes))
    index = np.array([data.draw(st.integers(0, 30)) for _ in grid.shape])
    np.testing.assert_allclose(
        other.to_physical(index[order]), grid.to_physical(index)[order], atol=1e-9
    )
    assert other.axes == axes
    assert other.reorder(grid.axes) == grid


@given(grids(3), st.data())
def test_reorder_commutes_with_crop_and_shrink(grid: Grid, data: st.DataObject) -> None:
    axes = data.draw(st.sampled_from(list(permutations(grid.axes))))
    order = grid.axis_order(axes)
    start = [data.draw(st.integers(0, n - 1)) for n in grid.shape]
    box = tuple(slice(a, n) for a, n in zip(start, grid.shape, strict=True))
    factors = [data.draw(st.integers(1, 3)) for _ in grid.shape]
    one = grid.crop(box).shrink(factors).reorder(axes)
    two = grid.reorder(axes).crop(tuple(box[k] for k in order)).shrink([factors[k] for k in order])
    assert one.shape == two.shape
    np.testing.assert_allclose(one.matrix, two.matrix, atol=1e-8)


def test_units() -> None:
    grid = Grid((4, 4), (250.0, 500.0), (1e3, -2e3), unit="nanometer")
    micro = grid.in_unit("micrometer")
    np.testing.assert_allclose(micro.spacing, (0.25, 0.5), rtol=1e-12)
    np.testing.assert_allclose(micro.origin, (1, -2), rtol=1e-12)
    np.testing.assert_allclose(micro.in_unit("nanometer").matrix, grid.matrix, rtol=1e-12)
    assert grid.in_unit("nanometer") is grid
    with pytest.raises(InputError, match="unknown length unit 'inch'"):
        grid.in_unit("inch")


def test_is_a_value(odd_grid: Callable[..., Grid]) -> None:
    grid = odd_grid(2)
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert hash(odd_grid(2)) == hash(grid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4,), (1,)), "2 or 3 axes"),
        (((4, 4, 4, 4), (1, 1, 1, 1)), "2 or 3 axes"),
        (((4, 0), (1, 1)), "at least one voxel"),
        (((4, 4), (1, 0)), r"spacing must be positive.*\(1.0, 0.0\)"),
        (((4, 4), (1, -2)), "spacing must be positive"),
        (((4, 4), (1, np.nan)), "spacing must be finite"),
        (((4, 4), (1, 1, 1)), "spacing needs one number per axis, 2; got 3"),
        (((4, 4), (1, 1), (0, 0, 0)), "origin needs one number per axis"),
        (((4, 4), (1, 1), (0, np.inf)), "origin must be finite"),
        (((4, 4), (1, 1), (0, 0), ((1, 0), (1, 1))), "orthonormal"),
        (((4, 4), (1, 1), (0, 0), (1, 0, 0)), "2 x 2 matrix"),
        (((4, 4), (1, 1), (0, 0), (), ("x", "z")), "axes must be a permutation"),
        (((4, 4), (1, 1), (0, 0), (), (), "parsec"), "unknown length unit 'parsec'"),
    ],
)
def test_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid(*arguments)


def test_refuses_foreign_axes() -> None:
    with pytest.raises(InputError, match="no permutation"):
        Grid((4, 4), (1, 1)).axis_order(("x", "z"))
