"""Folds of a field, counted block by block."""

from __future__ import annotations

from collections.abc import Sequence

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import block_grid
from itkstream.geometry import Block, DisplacementField, Grid
from itkstream.numerics.sampling.fields import jacobian_determinant

__all__ = ["prepare_fold_count"]


def prepare_fold_count(field: DisplacementField, blocksize: Sequence[int]) -> da.Array:
    """Prepare the least Jacobian determinant of a field and its number of folded voxels, per block.

    Parameters
    ----------
    field : DisplacementField
        In memory or stored.
    blocksize : sequence of int
        Voxels of a block per axis.

    Returns
    -------
    dask.array.Array, block grid + (2,), float64
        Lazy. Least determinant of the block's voxels, and how many are 0 or less.
    """
    blocks = block_grid(field.grid.shape, blocksize, 1)
    shared = {"grid": field.grid}
    return map_blocks(_fold_block, blocks, field.data, shared, Result(np.float64, (2,), "block"))


def _fold_block(part: NDArray[np.float32], block: Block, *, grid: Grid) -> NDArray[np.float64]:
    determinant = jacobian_determinant(part, grid.crop(block.padded))[block.core_in_padded]
    count = np.count_nonzero(~(determinant > 0))
    return np.array([float(determinant.min()), count]).reshape((1,) * grid.ndim + (2,))
