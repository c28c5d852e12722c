"""The process of a command, which ends with it: what it imports stays, what it frees it keeps."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["importing", "keep_freed_memory"]

# Options of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST_KEPT = 2**30


@contextmanager
def importing() -> Iterator[None]:
    """Import what a command needs; no garbage is sought meanwhile, nor ever in what was imported.

    The objects of dask, zarr, numba and others would be looked through several times while they
    are imported, once or twice after that, and at the end: `plan` takes 2.15 instead of 3.07 s, to
    register two planes of 256 x 256 voxels 4.15 instead of 5.17 s.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> None:
    """Keep memory that is freed for what comes next, instead of handing it back to the system.

    Before it lends a page out again, the system clears it: that was an eighth of the processors'
    time of registering two brains of 20 Mvoxel, which takes 44.9 instead of 52.1 s so (medians of
    three commands, in turn), and 1.8 instead of 1.9 GB. To be called before there are threads:
    glibc hands back what is larger than 64 MB from heaps of their own. Whoever sets its variables
    has decided; other libraries decide themselves.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_ARENA_MAX, 1)
        set_option(_MMAP_THRESHOLD, _MOST_KEPT)
        set_option(_TRIM_THRESHOLD, _MOST_KEPT)
