"""Coarse levels: what fits, and what is averaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.blocks import levels
from itkstream.blocks.levels import coarse_blocks, factors_to_fit, read_coarse
from itkstream.blocks.masks import masked
from itkstream.blocks.sources import readable
from itkstream.geometry import Grid, Image


@given(st.data())
def test_factors_fit_and_are_no_larger_than_needed(data: st.DataObject) -> None:
    n = data.draw(st.sampled_from((2, 3)))
    shape = tuple(data.draw(st.integers(1, 5000)) for _ in range(n))
    grid = Grid(shape, tuple(data.draw(st.floats(0.1, 10)) for _ in range(n)))
    voxels = data.draw(st.floats(1, 1e7))
    factors = factors_to_fit(grid, voxels)
    assert all(f & (f - 1) == 0 for f in factors)
    assert grid.shrink(factors).size <= voxels
    small = grid.shrink(factors)
    # A step leaves half of the voxels or more: one step less would not have fitted.
    assert max(factors) == 1 or 2 * small.size > voxels
    for k in range(n):
        # What was halved last was the finest then among the axes that still had two voxels.
        rivals = [small.spacing[j] for j in range(n) if small.shape[j] > 1]
        if factors[k] > 1:
            assert all(small.spacing[k] / 2 <= r * (1 + 1e-9) for r in rivals)


def test_voxels_become_cubes() -> None:
    assert factors_to_fit(Grid((400, 400, 100), (1, 1, 4)), 1e6) == (4, 4, 1)


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 2, 2), (3, 1, 4)])
def test_blocks_give_the_mean_of_groups(
    stored: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, factors: tuple[int, ...]
) -> None:
    grid = Grid((21, 15, 17), (1.0, 2.0, 0.5), (3, 4, 5))
    voxels = np.random.default_rng(0).integers(0, 60000, grid.shape).astype(np.uint16)
    # Many blocks: the real limit needs gigabytes.
    monkeypatch.setattr(levels, "_BLOCK_VOXELS", 500)
    monkeypatch.setattr(levels, "_WHOLE_CHUNKS_VOXELS", 500)
    results = [
        read_coarse(Image(stored(kind, voxels, grid), grid, "brain"), factors)
        for kind in ("numpy", "dask", "zarr", "n5")
    ]
    assert len({r.read().tobytes() for r in results}) == 1
    found = results[0]
    assert (found.grid, found.name) == (grid.shrink(factors), "brain")
    whole = tuple(n // f for n, f in zip(grid.shape, factors, strict=True))
    cut = voxels[tuple(slice(0, n * f) for n, f in zip(whole, factors, strict=True))].astype(float)
    split = [v for n, f in zip(whole, factors, strict=True) for v in (n, f)]
    wanted = cut.reshape(split).mean((1, 3, 5))
    kept = found.read()[tuple(slice(0, n) for n in whole)]
    # float32 of 60000.
    np.testing.assert_allclose(kept, wanted, rtol=1e-6)


@given(st.data())
def test_no_group_and_no_chunk_lies_in_two_blocks(data: st.DataObject) -> None:
    n = data.draw(st.sampled_from((2, 3)))
    shape = tuple(data.draw(st.integers(1, 3000)) for _ in range(n))
    chunks = tuple(data.draw(st.sampled_from((1, 32, 64, 100, 128))) for _ in range(n))
    factors = tuple(data.draw(st.sampled_from((1, 2, 4, 16))) for _ in range(n))
    blocks = coarse_blocks(shape, chunks, factors)
    whole = [min(math.lcm(f, c), m) for f, c, m in zip(factors, chunks, shape, strict=True)]
    largest = 1
    for axis, lengths in enumerate(blocks.chunks):
        borders = np.cumsum(lengths)[:-1]
        assert not (borders % min(factors[axis], shape[axis])).any()
        if math.prod(whole) <= 2**26:
            assert not (borders % chunks[axis]).any()
        largest *= max(lengths)
    # What is left at the end of an axis, up to half a block, joins the last.
    assert largest <= 2**26 * 1.5**n


@pytest.mark.parametrize("kind", ["dask", "zarr", "n5"])
def test_blocks_hold_whole_chunks_of_every_container(
    stored: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "_BLOCK_VOXELS", 1)
    grid = Grid((60, 60, 60), (1.0, 1.0, 1.0), axes=("x", "y", "z"))
    image = Image(stored(kind, np.zeros(grid.shape, np.uint8), grid), grid)
    assert image.chunk_shape is not None
    for seen in (image, image.reorder(("z", "x", "y")), masked(readable(image), [0])):
        order = [grid.axes.index(axis) for axis in seen.grid.axes]
        assert seen.chunk_shape == tuple(image.chunk_shape[k] for k in order)
    expected = tuple(min(2 * c, 60) if c % 2 else c for c in image.chunk_shape)
    assert coarse_blocks(image.shape, image.chunk_shape, (2, 2, 2)).blocksize == expected
    assert Image(np.zeros(grid.shape), grid).chunk_shape is None
