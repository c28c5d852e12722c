"""Blending: a partition of unity without seams, whatever fails."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.errors import InputError
from itkstream.geometry import Block, BlockGrid, Grid, PiecewiseAffine
from itkstream.numerics.sampling.blend import NodeLattice, blend_affines
from itkstream.numerics.sampling.fields import pick_vectors, resize_field

MakeGrid = Callable[..., Grid]


def some_affines(blocks: BlockGrid, seed: int = 0) -> np.ndarray:
    n = len(blocks.shape)
    matrices = np.tile(np.eye(n + 1), (*blocks.numblocks, 1, 1))
    moves = matrices[..., :n, :]
    moves += np.random.default_rng(seed).normal(0, 0.02, moves.shape)
    return matrices


def brought(
    lattice: NodeLattice, block: Block, vectors: np.ndarray, confidence: float
) -> np.ndarray:
    """What a block brings that has a vector for each of its voxels."""
    return lattice.pack(pick_vectors(vectors, lattice.places(block)), confidence)


def joined(
    lattice: NodeLattice, packed: dict[tuple[int, ...], np.ndarray]
) -> dict[tuple[int, ...], np.ndarray]:
    """What is added up for every block, axis by axis."""
    blocks = lattice.blocks
    for axis in range(len(blocks.shape)):
        packed = {
            b.index: lattice.add(
                b, [(blocks[i], packed[i]) for i in blocks.touching(b.index, (axis,))], (axis,)
            )
            for b in blocks
        }
    return packed


@given(st.data())
def test_shares_of_all_blocks_sum_to_one(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 40)) for _ in range(3))
    size = tuple(data.draw(st.integers(8, 24)) for _ in range(3))
    blocks = BlockGrid(shape, size, tuple(data.draw(st.integers(0, s // 4)) for s in size))
    factors = tuple(data.draw(st.integers(1, s // 8)) for s in size)
    lattice = NodeLattice(blocks, factors)
    ones = {
        b.index: brought(lattice, b, np.ones((*b.padded_shape, 3), np.float32), 1) for b in blocks
    }
    for index, total in joined(lattice, ones).items():
        # What joins at the nodes a block wants comes from the blocks that touch it, and no other.
        np.testing.assert_allclose(total, 1, atol=1e-6)  # sums of eight float32 shares
        wanted = lattice.wanted(blocks[index])
        for axis, (core, nodes) in enumerate(zip(blocks[index].core, wanted, strict=True)):
            places = np.arange(nodes.start, nodes.stop) * factors[axis] + (factors[axis] - 1) / 2
            assert len(places) == total.shape[axis]
            assert places[0] <= core.start or nodes.start == 0
            assert places[-1] >= core.stop - 1 or nodes.stop == -(-shape[axis] // factors[axis])


def test_axes_are_added_in_any_grouping() -> None:
    blocks = BlockGrid((40, 36, 30), (16, 16, 16), (4, 3, 2))
    lattice = NodeLattice(blocks, (2, 1, 2))
    rng = np.random.default_rng(0)
    packed = {
        b.index: brought(lattice, b, rng.normal(size=(*b.padded_shape, 3)).astype(np.float32), 0.5)
        for b in blocks
    }
    one_by_one = joined(lattice, packed)
    for block in blocks:
        near = [(blocks[i], packed[i]) for i in blocks.touching(block.index)]
        at_once = lattice.add(block, near, (0, 1, 2))
        np.testing.assert_allclose(one_by_one[block.index], at_once, atol=1e-6)


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


def blended(
    blocks: BlockGrid, parts: dict[tuple[int, ...], np.ndarray], factor: int = 1
) -> np.ndarray:
    """The parts joined on nodes of `factor` voxels; NaN marks a failed one."""
    lattice = NodeLattice(blocks, (factor,) * len(blocks.shape))
    packed = {
        b.index: lattice.no_pack()
        if np.isnan(parts[b.index]).any()
        else brought(lattice, b, parts[b.index], 1.0)
        for b in blocks
    }
    grid = Grid(blocks.shape, (1,) * len(blocks.shape))
    out = np.empty((*blocks.shape, len(blocks.shape)), np.float32)
    for index, total in joined(lattice, packed).items():
        block = blocks[index]
        on_nodes = grid.shrink(lattice.factors).crop(lattice.wanted(block))
        found = lattice.finish(block, total)
        out[block.core] = resize_field(found, on_nodes, grid.crop(block.core))
    return out


def fitted_share(blocks: BlockGrid, failed: set[tuple[int, ...]]) -> np.ndarray:
    """The share of the fitted blocks in every voxel."""
    lattice = NodeLattice(blocks, (1,) * len(blocks.shape))
    packed = {
        b.index: lattice.no_pack()
        if b.index in failed
        else brought(lattice, b, np.zeros((*b.padded_shape, 2), np.float32), 1)
        for b in blocks
    }
    share = np.zeros(blocks.shape)
    for index, total in joined(lattice, packed).items():
        if total.size:
            share[blocks[index].core] = total[..., -1]
    return share


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_parts_of_one_field_blend_to_it(factor: int) -> None:
    # 3 divides nothing here: nodes stand anywhere in their blocks.
    blocks = BlockGrid((73, 62), (24, 24), (5, 3))
    whole = wave(Grid(blocks.shape, (1, 1))).astype(np.float32)
    found = blended(blocks, {b.index: whole[b.padded] for b in blocks}, factor)
    # Linear interpolation misses an eighth of the curvature (1 / 81) times the squared distance;
    # beyond the outermost node the value there holds, up to one voxel of slope 1 / 9 away.
    inner = (slice(factor, -factor),) * 2
    atol = 1e-6 if factor == 1 else factor**2 / 81 / 4
    np.testing.assert_allclose(found[inner], whole[inner], atol=atol)
    np.testing.assert_allclose(found, whole, atol=1e-6 if factor == 1 else 0.15)


@pytest.mark.parametrize("failed", [set(), {(1, 1)}, {(1, 1), (1, 2), (2, 1)}])
def test_neighbours_agree_at_the_nodes_both_want(failed: set[tuple[int, ...]]) -> None:
    blocks = BlockGrid((96, 128), (32, 32), (6, 5))
    lattice = NodeLattice(blocks, (4, 3))
    rng = np.random.default_rng(0)
    packed = {
        b.index: lattice.no_pack()
        if b.index in failed
        else brought(lattice, b, rng.normal(size=(*b.padded_shape, 2)).astype(np.float32), 1.0)
        for b in blocks
    }
    whole = np.full((*(-(-n // f) for n, f in zip(blocks.shape, (4, 3), strict=True)), 2), np.nan)
    for index, total in joined(lattice, packed).items():
        region = lattice.wanted(blocks[index])
        found = lattice.finish(blocks[index], total)
        known = ~np.isnan(whole[region])
        # A node has one value, up to the order of float32 sums.
        np.testing.assert_allclose(found[known], whole[region][known], atol=1e-5)
        whole[region] = found
    assert np.isfinite(whole).all()


def test_blocks_count_by_their_confidence() -> None:
    blocks = BlockGrid((40, 40), (20, 40), (5, 0))
    lattice = NodeLattice(blocks, (1, 1))
    packed = {}
    for b, trust in zip(blocks, (1.0, 3.0), strict=True):
        vectors = np.full((*b.padded_shape, 2), 1.0 + b.index[0], np.float32)
        packed[b.index] = brought(lattice, b, vectors, trust)
    totals = joined(lattice, packed)
    found = np.concatenate([lattice.finish(b, totals[b.index])[:, 0, 0] for b in blocks])
    low, upper = blocks.weights(0, np.arange(40))
    share = np.where(low == 0, upper, 1.0)
    expected = (1 - share + 3 * share * 2) / (1 - share + 3 * share)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("factors", [(4, 4), (0, 1), (1,)])
def test_nodes_must_fit_their_blocks(factors: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at most an eighth of their size"):
        NodeLattice(BlockGrid((64, 64), (16, 64)), factors)


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
    fitted = fitted_share(blocks, failed)
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
