"""A descent on the engine of the process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from itkstream.numerics.deformation.descent import Channel, Descent, Frame, descend
from itkstream.numerics.deformation.gpu.operations import DeviceOperations
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.gpu.backend import Backend
from itkstream.numerics.gpu.dispatch import on_engine
from itkstream.numerics.gpu.engine import device_bytes, engine_said

__all__ = ["descend_on_engine"]

logger = logging.getLogger(__name__)


def descend_on_engine(
    fixed: NDArray[Any],
    moving: NDArray[Any],
    frame: Frame,
    settings: DescentSettings,
    *,
    others: Sequence[Channel] = (),
    **further: Any,
) -> Descent:
    """Descend as `descend` does, on the engine of this process, see `on_engine`."""

    def on_processors() -> Descent:
        return descend(fixed, moving, frame, settings, others=others, **further)

    def on_device(backend: Backend) -> Descent:
        operations = DeviceOperations(backend)
        return descend(
            fixed, moving, frame, settings, others=others, operations=operations, **further
        )

    if settings.similarity != "lcc":
        if engine_said() in ("gpu", "auto"):
            logger.info("similarity %r is computed on the processors", settings.similarity)
        return on_processors()
    needed = device_bytes(fixed.size, moving.size, 1 + len(others))
    return on_engine(on_device, on_processors, needed)
