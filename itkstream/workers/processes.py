"""Worker processes: apart from the terminal, not longer there than the run, nor than their GPU."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any

import dask
from distributed import Nanny

from itkstream.errors import DeviceError
from itkstream.numerics.gpu.backend import find_backend
from itkstream.workers.dask_internals import call_periodically, is_kept_by_nanny
from itkstream.workers.environment import MEMORY_VARIABLES

__all__ = ["LocalNanny", "end_if_spent", "end_with_parent", "note_lost_device"]

_WATCH_SECONDS = 2
# Set in a worker process whose GPU was lost: CUDA does not recover within a process.
_spent = threading.Event()


class LocalNanny(Nanny):
    """Keeps one worker process of this machine, out of reach of the terminal's Ctrl-C.

    A terminal stops all processes of a group; the run itself must stop its workers in order.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        _leave_group()
        # A process in which dask has had workers carries what dask set, which nobody asked for.
        set_by_dask = dask.config.get("distributed.nanny.pre-spawn-environ")
        for name, value in MEMORY_VARIABLES.items():
            if os.environ.get(name) in (None, str(set_by_dask.get(name))):
                os.environ[name] = value
        super().__init__(*arguments, **options)


def end_with_parent(dask_scheduler: Any) -> None:
    """End a scheduler and its workers with the process that started it; runs in the scheduler."""
    _leave_group()
    parent = os.getppid()

    def look() -> None:
        if os.getppid() != parent:
            dask_scheduler.loop.add_callback(dask_scheduler.close)

    call_periodically(dask_scheduler, "parent", look, _WATCH_SECONDS)


def note_lost_device(error: Exception) -> None:
    """Note that this worker process is of no more use, where a block failed as its GPU was lost."""
    if isinstance(error, DeviceError) and is_kept_by_nanny():
        with suppress(DeviceError):
            if find_backend() is not None:
                _spent.set()


def end_if_spent() -> None:
    """End a worker process whose GPU was lost: another is started, and begins this block again.

    Else it would fail all blocks that are left, faster than others compute them.
    """
    if _spent.is_set():
        os._exit(1)


def _leave_group() -> None:
    # The leader of a group cannot leave it, and need not.
    with suppress(PermissionError):
        os.setsid()
