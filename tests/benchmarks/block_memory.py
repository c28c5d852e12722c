"""Tell the bytes per voxel that a block deformed by the method named holds at most.

As ``block_memory.py METHOD``, a process of its own: no memory is left over from others.
"""

from __future__ import annotations

import sys

import numpy as np
import processes

from itkstream.block_kernels import deform_block
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.threads import using_threads
from itkstream.steps import Deformable

_EDGE = 96


def deform(method: str, edge: int) -> None:
    """Deform a block by one iteration a level, in which a level holds all it ever holds.

    Parameters
    ----------
    method : str
        Of `Deformable`.
    edge : int
        Voxels per axis.
    """
    grid = Grid((edge,) * 3, (1.0, 1.0, 1.0))
    voxels = np.random.default_rng(0).integers(0, 4000, grid.shape, np.uint16)
    fixed, moving = Image(voxels, grid), Image(np.roll(voxels, 1, axis=0), grid)
    levels = len(Deformable(method).settings.shrink_factors)
    step = Deformable(method, iterations=(1,) * levels)
    with using_threads(1):
        deform_block(fixed, moving, AffineTransform(np.eye(4)), step.settings_for(grid.spacing))


if __name__ == "__main__":
    deform(sys.argv[1], 32)  # compiles
    _, measured = processes.timed(lambda: deform(sys.argv[1], _EDGE))
    sys.stdout.write(str(measured["extra_mb"] * 1e6 / _EDGE**3))
