"""Blocks tile the image once; their shares sum to one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.errors import InputError
from itkstream.geometry import BlockGrid


@st.composite
def block_grids(draw: Any) -> BlockGrid:
    n = draw(st.sampled_from((2, 3)))
    shape = tuple(draw(st.integers(1, 23)) for _ in range(n))
    size = tuple(draw(st.integers(1, 12)) for _ in range(n))
    return BlockGrid(shape, size, tuple(draw(st.integers(0, s // 4)) for s in size))


@given(block_grids())
def test_cores_tile_exactly_once(blocks: BlockGrid) -> None:
    seen = np.zeros(blocks.shape, int)
    for block in blocks:
        seen[block.core] += 1
        assert block.core_shape == tuple(
            c[i] for c, i in zip(blocks.chunks, block.index, strict=True)
        )
    assert (seen == 1).all()
    assert len(blocks) == len(list(blocks)) == np.prod(blocks.numblocks)


@given(block_grids())
def test_no_block_is_a_sliver(blocks: BlockGrid) -> None:
    for length, size, chunks in zip(blocks.shape, blocks.blocksize, blocks.chunks, strict=True):
        if length > size:
            assert all(size <= 2 * c < 4 * size for c in chunks)
        assert sum(chunks) == length


@given(block_grids())
def test_padding_is_the_overlap_clipped_to_the_image(blocks: BlockGrid) -> None:
    whole = np.arange(np.prod(blocks.shape)).reshape(blocks.shape)
    for block in blocks:
        np.testing.assert_array_equal(whole[block.padded][block.core_in_padded], whole[block.core])
        assert whole[block.padded].shape == block.padded_shape
        for core, padded, halo, n in zip(
            block.core, block.padded, blocks.overlap, blocks.shape, strict=True
        ):
            assert padded.start == max(0, core.start - halo)
            assert padded.stop == min(n, core.stop + halo)


def shares(blocks: BlockGrid, axis: int, index: np.ndarray) -> np.ndarray:
    """The share of every block (rows) at every position (columns)."""
    low, upper = blocks.weights(axis, index)
    table = np.zeros((blocks.numblocks[axis] + 1, len(index)))
    columns = np.arange(len(index))
    table[low, columns] += 1 - upper
    table[low + 1, columns] += upper
    return table


@given(block_grids(), st.integers(0, 99))
def test_shares_sum_to_one_and_stay_inside_the_padded_block(blocks: BlockGrid, seed: int) -> None:
    for axis, n in enumerate(blocks.shape):
        index = np.random.default_rng(seed).uniform(-3, n + 3, 50)
        table = shares(blocks, axis, index)
        assert (table >= 0).all()
        np.testing.assert_allclose(table.sum(axis=0), 1, atol=1e-15)
        assert (table[-1] == 0).all()
        voxels = shares(blocks, axis, np.arange(n))
        for i in range(blocks.numblocks[axis]):
            start = sum(blocks.chunks[axis][:i])
            stop = start + blocks.chunks[axis][i]
            halo = blocks.overlap[axis]
            inside = (np.arange(n) >= start - halo) & (np.arange(n) < stop + halo)
            assert (voxels[i][~inside] == 0).all()
            # Beyond the halo of its neighbours a block has its voxels to itself.
            own = (np.arange(n) >= start + (halo if i else 0)) & (
                np.arange(n) < stop - (halo if stop < n else 0)
            )
            assert (voxels[i][own] == 1).all()


def test_shares_pass_over_smoothly() -> None:
    blocks = BlockGrid((60, 4), (20, 4), (5, 0))
    _, upper = blocks.weights(0, np.array([14.5, 17.0, 19.5, 22.0, 24.5]))
    # 3t^2 - 2t^3 over 10 voxels around the border at 19.5.
    np.testing.assert_allclose(upper, [0, 0.15625, 0.5, 0.84375, 1], atol=1e-15)
    x = np.arange(0, 59.01, 0.1)
    steps = np.abs(np.diff(shares(blocks, 0, x), axis=1))
    # The steepest place has slope 1.5 / 10 voxels.
    assert steps.max() <= 0.0151


def test_neighbours_are_those_that_touch() -> None:
    blocks = BlockGrid((40, 40), (10, 10))
    assert list(blocks.touching((0, 3))) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert len(list(blocks.touching((1, 1)))) == 9


def test_centres() -> None:
    blocks = BlockGrid((25, 8), (10, 10))
    assert blocks.chunks == ((10, 10, 5), (8,))
    np.testing.assert_array_equal(blocks.centres()[:, 0], [[4.5, 3.5], [14.5, 3.5], [22, 3.5]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((40, 40, 40), (10, 10)), r"blocksize needs 3 whole numbers.*\(10, 10\)"),
        (((40, 40), (10, 0)), "blocksize needs 2 whole numbers >= 1"),
        (((40, 40), (10, 10), (2,)), "overlap needs 2 whole numbers"),
        (((40, 40), (10, 10), (2, -1)), "overlap needs 2 whole numbers >= 0"),
        (((40, 40), (10, 10), (2, 3)), "overlap of 3 voxels on axis 1.*at most 2"),
    ],
)
def test_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlockGrid(*arguments)


def test_one_block_may_overlap_as_it_likes() -> None:
    blocks = BlockGrid((5, 40), (64, 20), (8, 2))
    assert blocks[(0, 1)].padded == (slice(0, 5), slice(18, 40))
