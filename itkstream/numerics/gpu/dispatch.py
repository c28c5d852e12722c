"""A descent on the engine of the process, and what becomes of it where a device cannot do it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from itkstream.errors import DeviceError
from itkstream.numerics.deformation.descent import Channel, Descent, Frame, descend
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.gpu.backend import Backend, find_backend
from itkstream.numerics.gpu.engine import INSTALL, Engine, device_bytes, engine_said
from itkstream.numerics.gpu.operations import DeviceOperations

__all__ = ["descend_on_engine"]

logger = logging.getLogger(__name__)

# A device computes one block at a time; others are read and written meanwhile.
_turn = threading.Lock()


def descend_on_engine(
    fixed: NDArray[Any],
    moving: NDArray[Any],
    frame: Frame,
    settings: DescentSettings,
    *,
    others: Sequence[Channel] = (),
    **further: Any,
) -> Descent:
    """Descend as `descend` does, on the engine of this process.

    Without room on the device the processors do it, with a warning where a GPU was asked for.
    Raises `DeviceError` where the device is lost.
    """
    known: dict[str, Any] = {"others": others, **further}
    engine = engine_said()
    backend = None if engine in (None, "cpu") else _backend_for(engine, settings)
    if backend is not None:
        with _turn:
            needed = device_bytes(fixed.size, moving.size, 1 + len(others))
            found = _on_device(backend, needed, (fixed, moving, frame, settings), known)
        if found is not None:
            return found
    return descend(fixed, moving, frame, settings, **known)


def _backend_for(engine: Engine | None, settings: DescentSettings) -> Backend | None:
    """The device for a descent; None where the processors have to do it."""
    try:
        backend = find_backend()
    except DeviceError as error:
        if engine == "gpu":
            raise
        logger.warning("%s: the processors compute", error)
        return None
    if backend is None and engine == "gpu":
        raise DeviceError(f"this worker has no CuPy or no GPU: {INSTALL}")
    if backend is not None and settings.similarity != "lcc":
        logger.info("similarity %r is computed on the processors", settings.similarity)
        return None
    return backend


def _on_device(
    backend: Backend, needed: float, descent: tuple[Any, ...], further: dict[str, Any]
) -> Descent | None:
    """A descent on a device; None where that lacks memory."""
    try:
        free = backend.free_bytes()
        if needed > free:
            logger.warning(
                "a block needs %.3g GB on %s, which has %.3g free: the processors compute it",
                *(needed / 1e9, backend.name, free / 1e9),
            )
            return None
        logger.info("a block of %.3g GB goes to %s", needed / 1e9, backend.name)
        return descend(*descent, **further, operations=DeviceOperations(backend))
    except MemoryError as error:
        logger.warning("%s is out of memory (%s): the processors compute it", backend.name, error)
        return None
    except backend.lost as error:
        raise DeviceError(f"{backend.name} was lost: {error}") from error
    finally:
        # A device that is gone has nothing to give back.
        with suppress(*backend.lost):
            backend.release()
