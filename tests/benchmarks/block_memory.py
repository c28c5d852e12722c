"""Tell the bytes per voxel that a block deformed by a method, or by "mind", holds at most.

As ``block_memory.py METHOD VOXELS VOXELS [VOXELS]``, the shape of the block; a process of its own:
no memory is left over from others. Blocks start from a field, as all do where there are several.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import processes

from itkstream.geometry import DisplacementField, Grid, Image
from itkstream.numerics.engines import deform_block
from itkstream.numerics.threads import using_threads
from itkstream.registration.steps import Deformable


def deform(method: str, shape: tuple[int, ...]) -> None:
    """Deform a block by one iteration a level, in which a level holds all it ever holds.

    Parameters
    ----------
    method : str
        Of `Deformable`, or "mind" for this similarity of "lcc".
    shape : tuple of int
        Voxels per axis.
    """
    grid = Grid(shape, (1.0,) * len(shape))
    half = grid.shrink((2,) * grid.ndim)
    start = DisplacementField(np.full((*half.shape, grid.ndim), 0.3, np.float32), half)
    voxels = np.random.default_rng(0).integers(0, 4000, grid.shape, np.uint16)
    fixed, moving = Image(voxels, grid), Image(np.roll(voxels, 1, axis=0), grid)
    kind = {"similarity": "mind"} if method == "mind" else {"method": method}
    levels = len(Deformable(**kind).settings.shrink_factors)
    step = Deformable(**kind, iterations=(1,) * levels)
    with using_threads(1):
        deform_block(fixed, moving, start, step.settings_for(grid.spacing))


if __name__ == "__main__":
    block = tuple(map(int, sys.argv[2:]))
    deform(sys.argv[1], (32,) * len(block))  # compiles
    _, measured = processes.timed(lambda: deform(sys.argv[1], block))
    sys.stdout.write(str(measured["extra_mb"] * 1e6 / math.prod(block)))
