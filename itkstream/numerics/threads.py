"""Number of threads of the numerics: decided here and nowhere else.

Kernels are numba functions that release the interpreter lock and work on a range of planes;
`over_slabs` gives each thread one range. Block workers set the number once with `set_threads`, so
dask's threads and the kernels' own do not multiply. Every kernel writes only its own planes, hence
results do not depend on the number of threads.

The threads are started once and kept: to register two planes of 256 x 256 voxels, kernels are
called 3500 times, and starting threads for each took a tenth of the processors' time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from itertools import pairwise
from typing import TypeVar

__all__ = [
    "each_of",
    "get_threads",
    "over_slabs",
    "processors",
    "set_threads",
    "threads_for",
    "using_threads",
]

Given = TypeVar("Given")
Found = TypeVar("Found")

# On fewer, threads that wait for each other and for the interpreter cost more than they gain: a
# pair of 256 x 256 voxels is registered in 1.8 s by one and 2.1 by two, of 64^3 in 4.5 or 5.1; of
# 96^3 it takes both 7.8.
_SHARED_VOXELS = 3e5

_state = {"threads": 0}


def get_threads() -> int:
    """Threads each kernel call may use."""
    if not _state["threads"]:
        given = os.environ.get("ITKSTREAM_THREADS", "")
        _state["threads"] = int(given) if given.isdigit() and int(given) else processors()
    return _state["threads"]


def set_threads(threads: int) -> None:
    """Set how many threads each kernel call of this process may use."""
    _state["threads"] = max(1, int(threads))


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Set the number of threads for the duration of a with block."""
    before = get_threads()
    set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)


def threads_for(voxels: float) -> int:
    """Threads that work on so many voxels is worth: one, or as many as there are processors."""
    return processors() if voxels > _SHARED_VOXELS else 1


def over_slabs(kernel: Callable[[int, int], None], length: int) -> None:
    """Call ``kernel(start, stop)`` on consecutive ranges that cover ``0 .. length``."""
    threads = min(get_threads(), length)
    if threads <= 1:
        kernel(0, length)
        return
    *others, last = pairwise(length * k // threads for k in range(threads + 1))
    running = [_helpers().submit(kernel, start, stop) for start, stop in others]
    try:
        kernel(*last)
    finally:
        wait(running)
    for done in running:
        done.result()


def each_of(work: Callable[[Given], Found], parts: Iterable[Given]) -> list[Found]:
    """Do the same work, which calls kernels, on several parts at the same time.

    What one part does on one thread, as all but kernels does, goes on beside the others. The
    results are in the order of the parts; of several that fail, the first one's error is raised.
    """
    given = list(parts)
    if get_threads() == 1 or len(given) < 2:
        return [work(part) for part in given]
    # Threads of their own: those that help kernels must never wait for kernels.
    with ThreadPoolExecutor(min(len(given), get_threads()), "part") as pool:
        # What holds for the caller, as which engine computes, holds for each part.
        running = [pool.submit(copy_context().run, work, part) for part in given]
        return [done.result() for done in running]


@cache
def _helpers() -> ThreadPoolExecutor:
    """The threads that help the calling one; kernels do not call each other, so all may share."""
    return ThreadPoolExecutor(max(get_threads(), processors()))


def processors() -> int:
    """Processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


if hasattr(os, "register_at_fork"):  # not on Windows
    # Threads do not survive a fork: the child starts its own.
    os.register_at_fork(after_in_child=_helpers.cache_clear)
