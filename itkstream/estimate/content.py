"""Blocks that show anything, as a coarse level of both images tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.blocks.graph import once
from itkstream.blocks.levels import Levels, factors_to_fit, prepare_levels
from itkstream.estimate.coarse import logger
from itkstream.geometry import BlockGrid, Grid, Image, Landmarks, Transform
from itkstream.numerics.evidence.quality import content_mask
from itkstream.numerics.sampling.warping import WarpSettings, warp_block

__all__ = ["find_content", "find_landmarks", "prepare_content"]


def prepare_content(
    images: tuple[Image, Image],
    initial: Transform | Delayed,
    blocks: BlockGrid,
    voxels: float,
    levels: Levels | None = None,
) -> Delayed:
    """Prepare `find_content` for blocks of the fixed image, with levels of so many voxels.

    The levels are computed where they are not known.
    """
    levels = levels or prepare_levels(*images, voxels)
    factors = factors_to_fit(images[0].grid, voxels)
    return once(find_content, *levels, initial, blocks, factors)


def find_content(
    fixed: Image, moving: Image, initial: Transform, blocks: BlockGrid, factors: Sequence[int]
) -> NDArray[np.bool_]:
    """Find the blocks of the fixed image, shrunk by factors, in which either level shows anything.

    False where neither has content in the padded block, nor within the overlap around it and one
    coarse voxel.
    """
    content = content_mask(fixed.read())
    seen = Image(content_mask(moving.read()).astype(np.float32), moving.grid)
    # Any part of a moving voxel with content counts.
    content |= warp_block(seen, initial, fixed.grid, WarpSettings(dtype=np.float32)) > 0
    keep = np.zeros(blocks.numblocks, bool)
    for block in blocks:
        near = tuple(
            slice(max(0, (s.start - halo) // f - 1), -(-(s.stop + halo) // f) + 1)
            for s, halo, f in zip(block.padded, blocks.overlap, factors, strict=True)
        )
        keep[block.index] = content[near].any()
    logger.info("%d of %d blocks hold content", keep.sum(), len(blocks))
    return keep


def find_landmarks(landmarks: Landmarks, grid: Grid, blocks: BlockGrid) -> NDArray[np.bool_]:
    """Find the blocks of a lattice in whose padded region a landmark lies."""
    index = np.rint(grid.to_index(landmarks.fixed))
    keep = np.zeros(blocks.numblocks, bool)
    for block in blocks:
        first, last = ([getattr(s, end) for s in block.padded] for end in ("start", "stop"))
        keep[block.index] = ((index >= first) & (index < last)).all(axis=1).any()
    logger.info("%d of %d blocks hold landmarks that are missed", keep.sum(), len(blocks))
    return keep
