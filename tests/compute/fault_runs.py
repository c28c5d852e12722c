"""A program that computes slow blocks, for tests that break something while it runs.

``python fault_runs.py OUT WORKERS SECONDS`` writes 64 blocks that take SECONDS each, on threads
or, with WORKERS above 0, on processes. It says ``working`` when the fifth block is done.
"""

from __future__ import annotations

import logging
import sys
import time

import dask.array as da
import numpy as np

from itkstream.compute.execute import execute
from itkstream.errors import ItkstreamError

VALUES = np.arange(16**3, dtype=np.int32).reshape(16, 16, 16)
EXPECTED = VALUES * 2


def slow(block: np.ndarray, seconds: float) -> np.ndarray:
    """Compute all but nothing, in much time."""
    time.sleep(seconds)
    return block * 2


def slow_blocks(seconds: float) -> da.Array:
    """Prepare 64 blocks, whose name is the same however long they take."""
    return da.from_array(VALUES, chunks=4).map_blocks(
        slow, seconds=seconds, dtype=np.int32, name="slow"
    )


def main(out: str, workers: int, seconds: float) -> None:
    """Run it."""

    def progress(done: int, total: int) -> None:
        if done == 5:
            sys.stdout.write("working\n")
            sys.stdout.flush()

    logging.basicConfig(level=logging.WARNING)
    try:
        execute(slow_blocks(seconds), out, n_workers=workers or None, progress=progress)
    except (ItkstreamError, KeyboardInterrupt) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
