"""How fast this machine is: a few blocks of a registration, computed and timed.

Blocks are spread evenly over the image, tissue and empty space alike, so that their mean time per
voxel is that of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from itkstream.blocks.graph import readable
from itkstream.blocks.inputs import block_grid
from itkstream.errors import InputError, ItkstreamError
from itkstream.geometry import AffineTransform, Block, Image, Transform
from itkstream.numerics.engines import deform_block
from itkstream.numerics.matching.keypoints import KeyPointSettings, find_key_points
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.numerics.threads import using_threads
from itkstream.registration.steps import Deformable, Step

__all__ = ["measure_rates"]

_BLOCK_VOX = 128
_WARM_UP_VOX = 32
_RADII_VOX = (3.0, 10.0)


def measure_rates(
    fixed: Image, moving: Image, steps: tuple[Step, ...], blocks: int
) -> dict[str, float]:
    """Seconds per voxel of each kind of work, on one thread.

    Parameters
    ----------
    fixed, moving : Image
        With the same axes; a few blocks of them are read.
    steps : tuple of Step
        Of the registration; the last deformation is the one that is timed.
    blocks : int
        How many blocks are computed.

    Returns
    -------
    dict of float
        ``read``, ``points``, ``deform`` and ``warp``, as far as the steps need them.

    Raises
    ------
    InputError
        For less than one block.
    """
    if blocks < 1:
        raise InputError(f"probe must be at least 1 block, or 0 for none; got {blocks}")
    fixed, moving = readable(fixed), readable(moving)
    transform = _centred(fixed, moving)
    size = tuple(min(_BLOCK_VOX, n) for n in fixed.shape)
    chosen = _spread(fixed, size, blocks)
    timed = _works(moving, transform, steps)
    with using_threads(1):
        small = tuple(slice(0, min(_WARM_UP_VOX, n)) for n in fixed.shape)
        # The first call of a compiled function loads or compiles it.
        _time_block(fixed[small], timed)
        spent = [_time_block(fixed[block.core], timed) for block in chosen]
    voxels = sum(int(np.prod(block.core_shape)) for block in chosen)
    return {kind: sum(times[kind] for times in spent) / voxels for kind in spent[0]}


def _works(
    moving: Image, transform: Transform, steps: tuple[Step, ...]
) -> dict[str, Callable[[Image], Any]]:
    """What is done to a block in memory, by kind."""
    works: dict[str, Callable[[Image], Any]] = {
        "warp": lambda block: warp_block(moving, transform, block.grid, WarpSettings()),
        "points": lambda block: find_key_points(
            block.read(), block.grid, KeyPointSettings.from_voxels(*_RADII_VOX, block.spacing)
        ),
    }
    deformations = [step for step in steps if isinstance(step, Deformable)]
    if deformations:
        last = deformations[-1]
        works["deform"] = lambda block: deform_block(
            block, moving, transform, last.settings_for(block.spacing)
        )
    return works


def _time_block(part: Image, works: dict[str, Callable[[Image], Any]]) -> dict[str, float]:
    began = time.perf_counter()
    block = Image(np.asarray(part.read()), part.grid)
    spent = {"read": time.perf_counter() - began}
    for kind, work in works.items():
        began = time.perf_counter()
        # A block without texture is refused at once: that is what it costs.
        with suppress(ItkstreamError):
            work(block)
        spent[kind] = time.perf_counter() - began
    return spent


def _spread(fixed: Image, size: tuple[int, ...], count: int) -> list[Block]:
    """Blocks at equal distances in the order of their numbers."""
    grid = block_grid(fixed.shape, size, 0)
    picked = np.unique(np.linspace(0, len(grid) - 1, min(count, len(grid)) + 2)[1:-1].round())
    places = np.transpose(np.unravel_index(picked.astype(int), grid.numblocks))
    return [grid[tuple(int(i) for i in place)] for place in places]


def _centred(fixed: Image, moving: Image) -> Transform:
    """The shift that brings the middles of the images together: no affine is known yet."""
    matrix = np.eye(fixed.ndim + 1)
    middles = [
        image.grid.to_physical((np.asarray(image.shape) - 1) / 2) for image in (fixed, moving)
    ]
    matrix[:-1, -1] = middles[1] - middles[0]
    return AffineTransform(matrix)
