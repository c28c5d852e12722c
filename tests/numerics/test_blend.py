"""Blending: a partition of unity without seams, whatever fails."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.errors import InputError
from itkstream.geometry import BlockGrid, Grid, PiecewiseAffine
from itkstream.numerics.blend import (
    blend_affines,
    blend_blocks,
    block_share,
    core_mean,
    stand_in,
)

MakeGrid = Callable[..., Grid]


def some_affines(blocks: BlockGrid, seed: int = 0) -> np.ndarray:
    n = len(blocks.shape)
    matrices = np.tile(np.eye(n + 1), (*blocks.numblocks, 1, 1))
    moves = matrices[..., :n, :]
    moves += np.random.default_rng(seed).normal(0, 0.02, moves.shape)
    return matrices


@given(st.data())
def test_shares_of_all_blocks_sum_to_one(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 18)) for _ in range(3))
    size = tuple(data.draw(st.integers(1, 9)) for _ in range(3))
    blocks = BlockGrid(shape, size, tuple(data.draw(st.integers(0, s // 4)) for s in size))
    total = np.zeros(shape)
    for block in blocks:
        share = block_share(blocks, block, block.padded)
        assert (share >= 0).all()
        total[block.padded] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)  # sums of eight float32 shares


@pytest.mark.parametrize("ndim", [2, 3])
def test_blended_affines_are_the_analytic_map(odd_grid: MakeGrid, ndim: int) -> None:
    grid = odd_grid(1, ndim)
    blocks = BlockGrid(grid.shape, (7, 6, 8)[:ndim], (1, 1, 2)[:ndim])
    local = PiecewiseAffine(some_affines(blocks), blocks, grid)
    # PiecewiseAffine.apply is itself tested against the formula, point by point.
    for part in (grid, grid.crop((slice(3, 11),) * ndim), grid.shrink((2,) * ndim)):
        wanted = local.apply(part.positions()) - part.positions()
        # float32 of displacements up to 10.
        np.testing.assert_allclose(blend_affines(local, part), wanted, atol=2e-6)
    turned = Grid(grid.shape, grid.spacing)
    with pytest.raises(InputError, match="blended along the axes"):
        blend_affines(local, turned)


def wave(grid: Grid) -> np.ndarray:
    p = grid.positions()
    return np.stack([np.sin(p[..., 0] / 9 + k) * np.cos(p[..., 1] / 11) for k in range(2)], -1)


def blended(blocks: BlockGrid, parts: dict[tuple[int, ...], np.ndarray]) -> np.ndarray:
    means = {b.index: core_mean(b, parts[b.index]) for b in blocks}
    known = {}
    for block in blocks:
        near = list(blocks.neighbours(block.index))
        spare = stand_in(block, near, [means[b.index] for b in near])
        known[block.index] = spare if np.isnan(parts[block.index]).any() else parts[block.index]
    out = np.empty((*blocks.shape, len(blocks.shape)), np.float32)
    for block in blocks:
        near = [(b, known[b.index]) for b in blocks.neighbours(block.index)]
        out[block.core] = blend_blocks(blocks, block, near)
    return out


def test_parts_of_one_field_blend_to_it() -> None:
    blocks = BlockGrid((48, 40), (16, 16), (4, 3))
    whole = wave(Grid(blocks.shape, (1, 1))).astype(np.float32)
    found = blended(blocks, {b.index: whole[b.padded] for b in blocks})
    np.testing.assert_allclose(found, whole, atol=1e-6)


def test_blocks_that_disagree_leave_no_seam() -> None:
    blocks = BlockGrid((48, 40), (16, 16), (4, 4))
    rng = np.random.default_rng(0)
    parts = {
        b.index: np.broadcast_to(rng.uniform(-1, 1, 2), (*b.padded_shape, 2)).astype(np.float32)
        for b in blocks
    }
    found = blended(blocks, parts)
    # Two constants at most 2 apart, passed over by 3t^2 - 2t^3 in 8 voxels: slope 1.5 * 2 / 8.
    for axis in range(2):
        assert np.abs(np.diff(found, axis=axis)).max() <= 0.375 + 1e-6


@pytest.mark.parametrize("failed", [{(1, 1)}, {(0, 0)}, {(1, 1), (2, 1)}, {(0, 0), (0, 1), (1, 0)}])
def test_failed_blocks_continue_their_neighbours(failed: set[tuple[int, ...]]) -> None:
    blocks = BlockGrid((64, 48), (16, 16), (4, 4))
    grid = Grid(blocks.shape, (1, 1))
    whole = (5 + wave(grid)).astype(np.float32)
    parts = {
        b.index: np.full((*b.padded_shape, 2), np.nan, np.float32)
        if b.index in failed
        else whole[b.padded]
        for b in blocks
    }
    found = blended(blocks, parts)
    assert np.isfinite(found).all()
    # Never identity: everywhere within what the fitted blocks hold.
    assert found.min() >= whole.min() - 1e-5
    assert found.max() <= whole.max() + 1e-5
    fitted = np.zeros(blocks.shape)
    for block in blocks:
        if block.index not in failed:
            fitted[block.padded] += block_share(blocks, block, block.padded)
    # A failed block takes nothing where fitted ones hold half: in all of their cores but corners.
    kept = fitted >= 0.5
    assert kept.mean() > 1 - (len(failed) + 0.5) / len(blocks)
    np.testing.assert_allclose(found[kept], whole[kept], atol=1e-5)
    # A passage over one overlap of 4 voxels has slope 1.9 / 4 at most, per micrometer bridged; a
    # mean of neighbours lies about half the range from the values it borders on.
    steepest = max(np.abs(np.diff(whole, axis=a)).max() for a in range(2))
    limit = steepest + 0.48 * np.ptp(whole) / 2
    for axis in range(2):
        assert np.abs(np.diff(found, axis=axis)).max() <= limit


def test_failed_blocks_between_opposite_neighbours_do_not_tear() -> None:
    # + F F -: two failed blocks, of which each touches one side only.
    blocks = BlockGrid((64, 16), (16, 16), (4, 4))
    values = {(0, 0): 4.0, (1, 0): np.nan, (2, 0): np.nan, (3, 0): -4.0}
    parts = {b.index: np.full((*b.padded_shape, 2), values[b.index], np.float32) for b in blocks}
    found = blended(blocks, parts)
    assert np.isfinite(found).all()
    # 8 apart; a passage over one overlap of 8 voxels has slope 1.5 at most: anything steeper is a
    # seam, and at 1 micrometer per voxel a fold.
    assert np.abs(np.diff(found, axis=0)).max() <= 1.5 + 1e-6
    assert (np.diff(found, axis=0) <= 1e-6).all()


def test_blocks_far_from_all_others_fade_to_nothing() -> None:
    blocks = BlockGrid((112, 16), (16, 16), (4, 4))
    parts = {
        b.index: np.full((*b.padded_shape, 2), 3.0 if b.index == (0, 0) else np.nan, np.float32)
        for b in blocks
    }
    found = blended(blocks, parts)
    assert np.isfinite(found).all()
    assert (found[:16] == 3).all()
    assert np.abs(np.diff(found, axis=0)).max() <= 3 * 1.5 / 8 + 1e-6
