"""Parameters and checks shared by steps that are done block by block."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.estimate.affines import AffineTask, Search, prepare_affines, split_local_affines
from itkstream.geometry import (
    BlockGrid,
    CompositeTransform,
    Grid,
    PiecewiseAffine,
    Transform,
    steps_of,
)
from itkstream.numerics.parameters import finite
from itkstream.registration.scene import BlockScene, Start

__all__ = ["check_blocks", "prepare_refined"]


def check_blocks(blocksize: Any, overlap: Any, least: int, even: bool = False) -> None:
    """Refuse blocks that are too small, and overlaps of more than a quarter of them."""
    if not finite(blocksize) or blocksize % (2 if even else 1) or blocksize < least:
        kind = "an even" if even else "a whole"
        raise InputError(f"blocksize must be {kind} number >= {least}; got {blocksize!r}")
    if overlap is None:
        return
    if not finite(overlap) or overlap != int(overlap) or not 0 <= overlap <= blocksize // 4:
        raise InputError(
            f"overlap must be a whole number up to a quarter of the blocksize, or None; "
            f"got {overlap!r}"
        )


def prepare_refined(
    scene: BlockScene, start: Start, search: Search, blocks: BlockGrid | None = None
) -> Delayed:
    """Prepare the transform after an affine of every block; by default, of the scene's blocks."""
    blocks = blocks or scene.blocks
    packed = prepare_affines(AffineTask(scene.fixed, scene.moving, start, blocks, search))
    known = start if isinstance(start, Delayed) else dask.delayed(start, traverse=False)
    return dask.delayed(_before)(packed, blocks, scene.fixed.grid, known)


def _before(
    packed: NDArray[np.float64], blocks: BlockGrid, grid: Grid, known: Transform | None
) -> Transform:
    """The blocks' affines, and then what was known before."""
    local = PiecewiseAffine(split_local_affines(packed, grid.ndim)[0], blocks, grid)
    if known is None:
        return local
    return CompositeTransform((local, *steps_of(known)))
