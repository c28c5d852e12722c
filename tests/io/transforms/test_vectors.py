"""Stored vectors, sliced and walked, beside the arrays they were made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream import DisplacementField, Grid, read_transform, write_transform
from itkstream.geometry import array_axes, steps_of
from itkstream.io.transforms.vectors import OrderedVectors, as_in_files, slabs, wanted_axes

ORDERS = [("z", "y", "x"), ("x", "y", "z"), ("y", "z", "x"), ("y", "x"), ("x", "y")]


@pytest.mark.parametrize("axes", ORDERS, ids="".join)
@pytest.mark.parametrize("name", ["t.nrrd", "t.mha", "t.h5", "t.ome.zarr"])
def test_any_slice_is_what_numpy_gives(tmp_path: Path, name: str, axes: tuple[str, ...]) -> None:
    stored = array_axes(len(axes))
    grid = Grid((7, 9, 8)[: len(axes)], (1.5, 2.0, 0.7)[: len(axes)], axes=stored)
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, grid.ndim)).astype(np.float32)
    write_transform(tmp_path / name, DisplacementField(vectors, grid))
    found = steps_of(read_transform(tmp_path / name, axes))[0].data
    assert isinstance(found, OrderedVectors)
    order = grid.axis_order(axes)
    wanted = vectors.transpose(*order, grid.ndim)[..., list(order)]
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(np.asarray(found), wanted)
    for key in (
        (slice(2, 5), slice(None), slice(-3, None)),
        (slice(None, None, 2), slice(1, 8, 3), slice(3)),
        (slice(0, 99), slice(4, 5), slice(None)),
    ):
        cut = key[: grid.ndim]
        np.testing.assert_array_equal(found[cut], wanted[cut])
        last = (*cut, slice(1, 2))
        np.testing.assert_array_equal(found[last], wanted[last])


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
    st.sampled_from(ORDERS),
    st.integers(1, 500),
)
def test_slabs_give_a_file_in_its_order(
    shape: list[int], axes: tuple[str, ...], numbers: int
) -> None:
    n = len(axes)
    grid = Grid((*shape, 1)[:n], (1.0,) * n, axes=axes)
    values = np.arange(grid.size * n, dtype=float).reshape(*grid.shape, n)
    field = DisplacementField(values, grid)
    parts = [as_in_files(values[box], grid) for box in slabs(field, numbers)]
    np.testing.assert_array_equal(np.concatenate(parts), as_in_files(values, grid))
    plane = grid.size * n // grid.shape[axes.index(max(axes, key="xyz".index))]
    assert max(part.size for part in parts) <= max(numbers, plane)
    first = as_in_files(values, grid)[(0,) * n]
    np.testing.assert_array_equal(first, values[(0,) * n][list(grid.axis_order("xyz"[:n]))])


def test_wanted_axes() -> None:
    assert wanted_axes("t.h5", 3, None) == ("z", "y", "x")
    assert wanted_axes("t.h5", 2, ["x", "y"]) == ("x", "y")
