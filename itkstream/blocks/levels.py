"""Levels of an image: means of groups of voxels, few enough to fit in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, map_blocks, once
from itkstream.blocks.sources import readable, readable_source
from itkstream.geometry import ArraySource, Block, BlockGrid, Grid, Image
from itkstream.io.images.stores.ome_zarr_writer import PyramidLevel, coarsen
from itkstream.io.storage.stored import tiles
from itkstream.numerics.sampling.pyramid import shrink

__all__ = [
    "Levels",
    "coarse_blocks",
    "factors_to_fit",
    "prepare_coarse",
    "prepare_level",
    "prepare_level_below",
    "prepare_levels",
    "read_coarse",
]

Levels = tuple[Image | Delayed, Image | Delayed]
"""The levels of the fixed and the moving image that fit in memory; they may have to be computed."""

# An image is averaged in blocks of about so many voxels, 128 MB of float32 while they are; or more,
# up to the second number, where its chunks would else be read by several blocks.
_BLOCK_VOXELS = 2**24
_WHOLE_CHUNKS_VOXELS = 2**26


def factors_to_fit(grid: Grid, voxels: float) -> tuple[int, ...]:
    """Powers of 2 by which to shrink each axis, so that an image has at most so many voxels.

    The axis of finest spacing is halved first, so voxels become as near to cubes as they can.
    """
    factors = [1] * grid.ndim
    shape = grid.shape
    while math.prod(shape) > voxels:
        spacing = [s * f for s, f in zip(grid.spacing, factors, strict=True)]
        ranked = [(spacing[axis], -n, axis) for axis, n in enumerate(shape) if n > 1]
        factors[min(ranked)[-1]] *= 2
        shape = tuple(-(-n // f) for n, f in zip(grid.shape, factors, strict=True))
    return tuple(factors)


def coarse_blocks(
    shape: Sequence[int], chunks: Sequence[int] | None, factors: Sequence[int]
) -> BlockGrid:
    """The blocks in which an image is read to be averaged.

    No group of `factors` voxels, and if that is possible no chunk of the store, lies in two blocks.
    """
    groups = [min(f, n) for f, n in zip(factors, shape, strict=True)]
    steps = [math.lcm(f, c) for f, c in zip(groups, chunks or groups, strict=True)]
    if math.prod(map(min, steps, shape)) > _WHOLE_CHUNKS_VOXELS:
        steps = groups
    size = [min(step, n) for step, n in zip(steps, shape, strict=True)]
    while growing := [k for k, n in enumerate(shape) if size[k] < n]:
        axis = min(growing, key=lambda k: size[k])
        larger = [min(2 * n, shape[k]) if k == axis else n for k, n in enumerate(size)]
        if math.prod(larger) > _BLOCK_VOXELS:
            break
        size = larger
    return BlockGrid(tuple(shape), tuple(size), (0,) * len(size))


def prepare_coarse(image: Image, factors: Sequence[int]) -> da.Array:
    """Prepare an image averaged in groups of voxels, float32, block by block.

    Its lattice is ``image.grid.shrink(factors)``.
    """
    blocks = coarse_blocks(image.shape, image.chunk_shape, factors)
    groups = tuple(min(f, n) for f, n in zip(factors, image.shape, strict=True))
    result = Result(np.float32, factors=groups)
    return map_blocks(_average_block, blocks, image.data, {"factors": groups}, result)


def read_coarse(image: Image, factors: Sequence[int]) -> Image:
    """Read an image into memory, averaged in groups of voxels, block by block.

    It is float32 where it was averaged; beside it, one block at full resolution is held at a time.
    """
    image = readable(image)
    if max(factors) == 1:
        return Image(image.read(), image.grid, image.name)
    groups = tuple(min(f, n) for f, n in zip(factors, image.shape, strict=True))
    grid = image.grid.shrink(factors)
    out = np.empty(grid.shape, np.float32)
    for block in coarse_blocks(image.shape, image.chunk_shape, factors):
        spans = zip(block.core, groups, strict=True)
        region = tuple(slice(s.start // f, -(-s.stop // f)) for s, f in spans)
        out[region] = _average_block(image[block.core].read(), block, factors=groups)
    return Image(out, grid, image.name)


def prepare_levels(fixed: Image, moving: Image, voxels: float) -> Levels:
    """Prepare the levels of both images that fit in memory, of at most so many voxels each.

    Each is the image itself where it is small enough, else computed once, whatever needs it.
    """
    first, second = (prepare_level(i, factors_to_fit(i.grid, voxels)) for i in (fixed, moving))
    return first, second


def prepare_level(image: Image, factors: Sequence[int]) -> Image | Delayed:
    """Prepare one level of an image; the image itself for factors of 1."""
    image = readable(image)
    if max(factors) == 1:
        return image
    return once(_as_image, prepare_coarse(image, factors), image.grid.shrink(factors), image.name)


def prepare_level_below(above: ArraySource, level: PyramidLevel) -> da.Array:
    """Prepare a level of an OME-Zarr image, chunked as its files are, from the level above it."""
    array = level.array
    blocks = BlockGrid(array.shape, array.shards or array.chunks, (0,) * array.ndim)
    shared = {
        "above": readable_source(above),
        "chunks": array.chunks,
        "factors": level.factors,
        "labels": level.labels,
    }
    return map_blocks(_coarsen_block, blocks, None, shared, Result(array.dtype))


def _coarsen_block(
    _part: None,
    block: Block,
    *,
    above: ArraySource,
    chunks: Sequence[int],
    factors: tuple[int, ...],
    labels: bool,
) -> NDArray[Any]:
    """One block of a level; chunk by chunk, as the voxels above a whole shard may not fit."""
    out = np.empty(block.core_shape, above.dtype)
    for piece in tiles(out.shape, chunks):
        fine = tuple(
            slice((core.start + p.start) * f, (core.start + p.stop) * f)
            for core, p, f in zip(block.core, piece, factors, strict=True)
        )
        out[piece] = coarsen(np.asarray(above[fine]), factors, labels)
    return out


def _as_image(voxels: NDArray[Any], grid: Grid, name: str) -> Image:
    return Image(voxels, grid, name)


def _average_block(part: NDArray[Any], block: Block, *, factors: Sequence[int]) -> NDArray[Any]:
    """Means of the groups of a block; a group that sticks out repeats the last voxel."""
    room = [(0, -n % f) for n, f in zip(part.shape, factors, strict=True)]
    if np.any(room):
        part = np.pad(part, room, mode="edge")
    return shrink(part, Grid(part.shape, (1.0,) * part.ndim), factors)[0]
