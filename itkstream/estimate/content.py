"""Which blocks show anything, seen on a coarse level of both images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.blocks.graph import once
from itkstream.blocks.levels import Levels, factors_to_fit, prepare_levels
from itkstream.estimate.coarse import logger
from itkstream.geometry import BlockGrid, Image, Transform
from itkstream.numerics.deformation.quality import content_mask
from itkstream.numerics.sampling.warping import WarpSettings, warp_block

__all__ = ["find_content", "prepare_content"]


def prepare_content(
    images: tuple[Image, Image],
    initial: Transform | Delayed,
    blocks: BlockGrid,
    voxels: float,
    levels: Levels | None = None,
) -> Delayed:
    """Prepare which blocks show anything in either image, see `find_content`.

    Parameters
    ----------
    images : (Image, Image)
        Fixed and moving.
    initial : Transform or Delayed
        From fixed to moving points, roughly.
    blocks : BlockGrid
        Of the fixed image.
    voxels : float
        Most voxels of each level.
    levels : Levels, optional
        Of the images, from `prepare_levels` with so many voxels; default they are computed.

    Returns
    -------
    Delayed
        An ndarray of bool, blocks.numblocks.
    """
    levels = levels or prepare_levels(*images, voxels)
    factors = factors_to_fit(images[0].grid, voxels)
    return once(find_content, *levels, initial, blocks, factors)


def find_content(
    fixed: Image, moving: Image, initial: Transform, blocks: BlockGrid, factors: Sequence[int]
) -> NDArray[np.bool_]:
    """Which blocks show anything in either image.

    Parameters
    ----------
    fixed, moving : Image
        Coarse levels of the images.
    initial : Transform
        From fixed to moving points, roughly.
    blocks : BlockGrid
        Of the fixed image at full resolution.
    factors : sequence of int
        By how much the fixed image was shrunk.

    Returns
    -------
    ndarray of bool, blocks.numblocks
        False where neither image has content in the padded block, nor within the overlap around
        it and one coarse voxel.
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
