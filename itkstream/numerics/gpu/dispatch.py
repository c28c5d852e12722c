"""Computing on the engine of the process, and what becomes of it where a device cannot.

All that a GPU does goes through `on_engine`: it chooses, sees to it that a device does one thing at
a time, and gives to the processors what does not fit.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TypeVar

from itkstream.errors import DeviceError
from itkstream.numerics.gpu.backend import Backend, find_backend
from itkstream.numerics.gpu.engine import INSTALL, Engine, engine_said, find_device

__all__ = ["in_batches", "on_engine"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# A device computes one block at a time; others are read and written meanwhile. What is computed
# within a block, such as a field that is sampled during a descent, has its turn already.
_turn = threading.RLock()


def on_engine(
    on_device: Callable[[Backend], Result], on_processors: Callable[[], Result], needed: float
) -> Result:
    """Compute on the engine of this process: on a device, or the same on the processors.

    `needed` is the memory of the device, in bytes, without which it is of no use to begin. Where
    that is not there, or does not do, the processors compute, with a warning. Raises `DeviceError`
    where the device is lost, or where one was asked for and none is there.
    """
    engine = engine_said()
    backend = None if engine in (None, "cpu") else _backend_for(engine)
    if backend is not None:
        with _turn:
            try:
                return _with_room(backend, on_device, needed)
            except MemoryError as error:
                # As text: an error holds what was computed, and a handler may hold the error.
                logger.warning("%s: the processors compute it", str(error))
            finally:
                _release(backend)
    return on_processors()


def in_batches(
    length: int, work: Callable[[int, int], None], backend: Backend, most: int | None = None
) -> None:
    """Call ``work(start, stop)`` on consecutive ranges that cover ``0 .. length``.

    They are as long as there is memory for, and at most as long as said: they halve, down to one.
    """
    start, most = 0, most or length
    while start < length:
        stop = min(start + most, length)
        if _fits(work, start, stop):
            start = stop
        else:
            most = -(-(stop - start) // 2)
            backend.release()


def _fits(work: Callable[[int, int], None], start: int, stop: int) -> bool:
    """Whether there was memory for a range; where it returns, what was taken is free again."""
    try:
        work(start, stop)
    except MemoryError:
        if stop - start == 1:
            raise
        return False
    return True


def _backend_for(engine: Engine | None) -> Backend | None:
    """The device of an engine; None where the processors have to do."""
    if engine == "auto":
        return find_device()
    backend = find_backend()
    if backend is None:
        raise DeviceError(f"this worker has no CuPy or no GPU: {INSTALL}")
    return backend


def _with_room(backend: Backend, compute: Callable[[Backend], Result], needed: float) -> Result:
    """Compute on a device that has room; raises `MemoryError` where it has none."""
    try:
        free = backend.free_bytes()
        if needed > free:
            raise MemoryError(f"{needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} free")
        _say_once(backend.name)
        return compute(backend)
    except MemoryError as error:
        raise MemoryError(f"{backend.name} is out of memory ({error})") from error
    except backend.errors as error:
        if backend.is_full(error):
            raise MemoryError(f"{backend.name} is out of memory ({error})") from error
        raise DeviceError(f"{backend.name} was lost: {error}") from error


def _release(backend: Backend) -> None:
    """Give back what is free on a device, unless it is gone: then there is nothing to give."""
    with suppress(*backend.errors):
        backend.release()


@cache
def _say_once(device: str) -> None:
    logger.info("blocks go to %s", device)
