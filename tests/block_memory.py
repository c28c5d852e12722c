"""Tell the bytes per voxel that a block deformed by the method named holds at most.

As ``block_memory.py METHOD``, a process of its own: no memory is left over from others.
"""

import re
import sys
from pathlib import Path

import numpy as np

from itkstream.block_kernels import deform_block
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.threads import using_threads
from itkstream.steps import Deformable


def status(name: str) -> int:
    """A size the kernel tells about this process, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", text)[1])


def deform(method: str, edge: int) -> None:
    """One iteration a level, in which a level holds all it ever holds."""
    grid = Grid((edge,) * 3, (1.0, 1.0, 1.0))
    voxels = np.random.default_rng(0).integers(0, 4000, grid.shape, np.uint16)
    fixed, moving = Image(voxels, grid), Image(np.roll(voxels, 1, axis=0), grid)
    step = Deformable(method)
    levels = len(step.settings.shrink_factors)
    settings = Deformable(method, iterations=(1,) * levels).settings_for(grid.spacing)
    with using_threads(1):
        deform_block(fixed, moving, AffineTransform(np.eye(4)), settings)


if __name__ == "__main__":
    deform(sys.argv[1], 32)  # compiles
    edge = 96
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
    before = status("VmRSS")
    deform(sys.argv[1], edge)
    sys.stdout.write(str((status("VmHWM") - before) / edge**3))
