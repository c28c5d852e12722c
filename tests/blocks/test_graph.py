"""One block function, three kinds of source, the same voxels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkstream.blocks.graph import Halo, Result, map_blocks, map_neighbours, once
from itkstream.blocks.sources import DaskSource, readable
from itkstream.geometry import Block, BlockGrid, Grid, Image

Stored = Callable[[str, np.ndarray, Grid], Any]


def take_core(part: np.ndarray, block: Block, *, add: int) -> np.ndarray:
    return part[block.core_in_padded] + add


def take_all(part: np.ndarray, block: Block) -> np.ndarray:
    assert part.shape[: len(block.core)] == block.padded_shape
    return part


def take_sum(part: np.ndarray, block: Block) -> np.ndarray:
    total = part.sum(dtype=np.int64).reshape((1,) * len(block.core))
    return np.stack([total, -total], -1)


def take_index(part: None, block: Block) -> np.ndarray:
    assert part is None
    return np.full(block.core_shape, sum(10**k * i for k, i in enumerate(block.index)))


@settings(max_examples=25)
@given(st.data())
def test_sources_agree(data: st.DataObject) -> None:
    n = data.draw(st.sampled_from((2, 3)))
    shape = tuple(data.draw(st.integers(1, 20)) for _ in range(n))
    size = tuple(data.draw(st.integers(3, 24)) for _ in range(n))
    blocks = BlockGrid(shape, size, tuple(data.draw(st.integers(0, s // 4)) for s in size))
    array = np.arange(np.prod(shape)).reshape(shape)
    lazy = da.from_array(array, chunks=data.draw(st.integers(1, 9)))
    for source in (array, lazy):
        core = map_blocks(take_core, blocks, source, {"add": 5}, Result(array.dtype))
        padded = map_blocks(take_all, blocks, source, {}, Result(array.dtype, (), "block"))
        sums = map_blocks(take_sum, blocks, source, {}, Result(np.int64, (2,), "block"))
        results = dask.compute(core, sums, scheduler="synchronous")
        assert [r.shape for r in results] == [core.shape, sums.shape]
        np.testing.assert_array_equal(results[0], array + 5)
        for block in blocks:
            np.testing.assert_array_equal(
                padded.blocks[block.index].compute(scheduler="synchronous"), array[block.padded]
            )
            total = array[block.padded].sum()
            assert results[1][block.index].tolist() == [total, -total]


def test_an_overlap_wider_than_a_thin_image() -> None:
    # The default overlap of a block of 128 is 16, of an image of 5 planes only in one block.
    blocks = BlockGrid((40, 5), (20, 128), (2, 16))
    array = np.arange(200).reshape(40, 5)
    for source in (array, da.from_array(array)):
        found = map_blocks(take_all, blocks, source, {}, Result(int, (), "block"))
        np.testing.assert_array_equal(found.blocks[1, 0].compute(), array[18:])


def test_without_a_source() -> None:
    found = map_blocks(take_index, BlockGrid((4, 6), (2, 3)), None, {}, Result(int)).compute()
    np.testing.assert_array_equal(found[::2, ::3], [[0, 10], [1, 11]])


def test_further_axes_come_whole() -> None:
    array = np.arange(6 * 8 * 3).reshape(6, 8, 3)
    blocks = BlockGrid((6, 8), (3, 4), (0, 1))
    for source in (array, da.from_array(array, chunks=2)):
        result = Result(array.dtype, (3,))
        found = map_blocks(take_core, blocks, source, {"add": 0}, result)
        np.testing.assert_array_equal(found.compute(), array)


@pytest.mark.parametrize("kind", ["numpy", "zarr", "n5"])
def test_no_voxel_stands_in_the_graph_of_each_block(stored: Stored, kind: str) -> None:
    array = np.zeros((16, 16, 16), np.uint8)
    blocks = BlockGrid(array.shape, (8, 8, 8))
    lazy = map_blocks(
        take_core,
        blocks,
        stored(kind, array, Grid(array.shape, (1, 1, 1))),
        {"add": 0},
        Result("u1"),
    )
    # One task a block, the source, and the shared arguments: all blocks point to the same ones.
    assert len(dict(lazy.__dask_graph__())) <= len(blocks) + 8


def test_preparing_reads_nothing() -> None:
    def never(_block: np.ndarray) -> np.ndarray:
        raise AssertionError("a prepare_ function computed something")

    source = da.zeros((8, 8), chunks=4, dtype=int).map_blocks(
        never, dtype=int, meta=np.zeros((0, 0), int)
    )
    blocks = BlockGrid((8, 8), (4, 4), (1, 1))
    lazy = map_blocks(take_core, blocks, source, {"add": 0}, Result(int))
    with pytest.raises(AssertionError, match="computed something"):
        lazy.compute(scheduler="synchronous")


def test_shared_values_may_be_computed_first() -> None:
    blocks = BlockGrid((4, 4), (2, 2))
    later = dask.delayed(lambda: 7)()
    for source in (np.zeros((4, 4), int), da.zeros((4, 4), dtype=int)):
        found = map_blocks(take_core, blocks, source, {"add": later}, Result(int))
        assert (found.compute() == 7).all()


@given(st.data())
def test_a_halo_covers_every_position_of_its_block(data: st.DataObject) -> None:
    n, size, factor = (data.draw(st.integers(1, 30)) for _ in range(3))
    blocks = BlockGrid((n, 1), (size, 1))
    halo = Halo((factor, 1), 2)
    grid = Grid((n, 1), (1, 1))
    coarse = grid.shrink((factor, 1))
    owned = halo.chunks(blocks, coarse.shape)[0]
    assert sum(owned) == coarse.shape[0]
    for block in blocks:
        region = halo.region(blocks, block, coarse.shape)[0]
        ends = np.array([[block.core[0].start, 0], [block.core[0].stop - 1, 0]])
        low, high = coarse.to_index(grid.to_physical(ends))[:, 0]
        assert region.start <= max(0, np.floor(low))
        assert region.stop > min(coarse.shape[0] - 1, np.ceil(high))


def test_dask_images_become_numpy_inside_tasks() -> None:
    array = np.arange(24).reshape(4, 6)
    image = readable(Image(da.from_array(array, chunks=2), Grid((4, 6), (1, 1))))
    assert isinstance(image.data, DaskSource)
    np.testing.assert_array_equal(image.read(), array)
    np.testing.assert_array_equal(image[slice(1, 3), slice(2, 4)].read(), array[1:3, 2:4])
    np.testing.assert_array_equal(image.reorder(("y", "x")).read(), array.T)
    assert readable(Image(array, image.grid)).data is array


def bring(part: np.ndarray, block: Block) -> np.ndarray:
    """An array of any shape, as long as the block's number tells."""
    return np.full((1 + sum(block.index), 2), part[block.core_in_padded].sum())


def gather(near: list[tuple[Block, np.ndarray]], block: Block, *, add: int) -> np.ndarray:
    total = sum(float(values[0, 0]) for _, values in near)
    assert all(len(values) == 1 + sum(other.index) for other, values in near)
    return np.full(block.core_shape, total + add)


@pytest.mark.parametrize("kind", ["numpy", "dask"])
def test_neighbours_are_those_that_touch(kind: str) -> None:
    array = np.arange(12 * 15).reshape(12, 15)
    blocks = BlockGrid(array.shape, (4, 5), (1, 1))
    source = da.from_array(array, chunks=4) if kind == "dask" else array
    brought = map_blocks(bring, blocks, source, {}, Result(float, (2,), "block"))
    later = dask.delayed(lambda: 7)()
    found = map_neighbours(gather, blocks, brought, {"add": later}, Result(float)).compute()
    for block in blocks:
        total = sum(array[blocks[i].core].sum() for i in blocks.touching(block.index))
        assert (found[block.core] == total + 7).all()
    rows = map_neighbours(gather, blocks, brought, {"add": 0}, Result(float), (1,)).compute()
    assert rows[5, 0] == sum(array[blocks[1, k].core].sum() for k in (0, 1))


def coarsen(part: np.ndarray, block: Block) -> np.ndarray:
    return part[block.core_in_padded][::3, ::2]


def test_a_core_may_come_on_a_coarser_lattice() -> None:
    array = np.arange(13 * 15).reshape(13, 15)
    blocks = BlockGrid(array.shape, (6, 4), (1, 1))
    found = map_blocks(coarsen, blocks, array, {}, Result(int, factors=(3, 2)))
    assert found.chunks == ((2, 3), (2, 2, 2, 2))
    np.testing.assert_array_equal(found.compute(), array[::3, ::2])


class Watched:
    """An array that tells which of its parts were read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.read: list[tuple[slice, ...]] = []

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        self.read.append(key)
        return self.array[key]


def take_or_nothing(part: np.ndarray | None, block: Block) -> np.ndarray:
    return np.full(block.core_shape, -1) if part is None else part[block.core_in_padded]


def choose(blocks: BlockGrid) -> np.ndarray:
    return np.arange(len(blocks)).reshape(blocks.numblocks) % 2 == 0


def test_blocks_left_out_are_never_read() -> None:
    array = np.arange(12 * 9).reshape(12, 9)
    blocks = BlockGrid(array.shape, (4, 3), (1, 0))
    keep = choose(blocks)
    for source in (Watched(array), da.from_array(array, chunks=3)):
        lazy = map_blocks(
            take_or_nothing, blocks, source, {}, Result(int), keep=once(choose, blocks)
        )
        found = lazy.compute(scheduler="synchronous")
        for block in blocks:
            wanted = array[block.core] if keep[block.index] else -1
            assert (found[block.core] == wanted).all()
        if isinstance(source, Watched):
            assert sorted(source.read, key=str) == sorted(
                (b.padded for b in blocks if keep[b.index]), key=str
            )
