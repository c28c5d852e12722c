"""A program that starts a run again and again and kills it at random moments, until it is done.

``python killed_runs.py INPUT OUT KILLS SEED`` prints how often the run was killed. A run takes
seconds and importing what it needs takes longer, so each run is a fork of this process. With the
word ``overwrite`` at the end there is an array at OUT with the values of INPUT, and there must be
one as long as runs are killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import dask.array as da
import numpy as np
import zarr

from itkstream.compute.execute import execute
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import ZarrArray

BLOCKS = (8, 8, 8)


def computed(source: ZarrArray) -> da.Array:
    """216 blocks that take 5 ms each; their neighbours' means are part of the values."""
    values = da.from_array(source, chunks=BLOCKS, name=f"read-{source.path}")
    means = values.map_blocks(mean, chunks=((1,) * 6,) * 3, dtype=float)
    padded = da.overlap.overlap(means, 1, "none")
    around = padded.map_blocks(np.mean, keepdims=True, chunks=means.chunks, dtype=float)
    return da.map_blocks(slow, values, around, dtype=np.float32, chunks=values.chunks)


def mean(block: np.ndarray) -> np.ndarray:
    return block.mean(keepdims=True)


def slow(block: np.ndarray, around: np.ndarray) -> np.ndarray:
    time.sleep(0.005)
    return (block * around).astype(np.float32)


def main(source: str, out: str, kills: int, seed: int, overwrite: bool) -> None:
    array = computed(ZarrArray.open(Location.parse(source)))
    old = zarr.open_array(source, mode="r")[:]
    rng = np.random.default_rng(seed)
    killed = 0
    while True:
        child = os.fork()
        if child == 0:
            execute(array, out, chunks=(4, 8, 8), overwrite=overwrite)
            os._exit(0)
        if killed < kills:
            # Most runs get through a tenth of the blocks or less.
            time.sleep(rng.uniform(0, 0.6))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.stdout.write(f"{killed} {os.WEXITSTATUS(status)}")
            return
        killed += 1
        if overwrite:
            there = zarr.open_array(out, mode="r")
            # The last one may have been killed when all was done.
            new = there.chunks == (4, 8, 8)
            np.testing.assert_array_equal(there[:], array.compute() if new else old)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), "overwrite" in sys.argv)
