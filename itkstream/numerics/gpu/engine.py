"""The engine of a process: decided here and nowhere else, as its number of threads is elsewhere.

Where nothing is said, that is the processors, and CuPy is never looked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

from itkstream.errors import InputError, unknown_name
from itkstream.numerics.gpu.backend import find_backend

__all__ = [
    "BYTES_PER_VOXEL",
    "ENGINE_VARIABLE",
    "INSTALL",
    "Engine",
    "check_engine",
    "device_bytes",
    "engine_said",
    "largest_block",
    "set_engine",
    "using_engine",
]

Engine: TypeAlias = Literal["cpu", "gpu", "auto"]
"""Processors, a GPU, or a GPU where there is one and the block fits it."""

ENGINE_VARIABLE = "ITKSTREAM_ENGINE"
"""The environment variable that says the engine of a worker."""

BYTES_PER_VOXEL = 60.0
"""Memory that a descent takes on a device, at most, per voxel of a block."""

CHANNEL_BYTES = 24.0
"""The same for each further channel: both images, warped, with residual and weight, shrunken."""

INSTALL = (
    "install CuPy beside the NVIDIA driver, pip install 'itkstream[gpu]' (CUDA 13) or "
    "cupy-cuda12x, or choose engine='cpu'"
)
"""Words for who has no GPU that can be used."""

_state: dict[str, Engine | None] = {"engine": None}


def engine_said() -> Engine | None:
    """The engine that was asked for, by a caller or the environment; None for nothing said."""
    if _state["engine"] is not None:
        return _state["engine"]
    given = os.environ.get(ENGINE_VARIABLE)
    return None if not given else _checked(given)


def set_engine(engine: Engine | None) -> None:
    """Set the engine of this process; None for what its environment says."""
    _state["engine"] = engine


@contextmanager
def using_engine(engine: Engine | None) -> Iterator[None]:
    """Compute with an engine for the duration of a with block; None leaves it as it is."""
    before = _state["engine"]
    set_engine(engine or before)
    try:
        yield
    finally:
        set_engine(before)


def check_engine(engine: Any, here: bool) -> None:
    """Refuse an unknown engine and, where blocks are computed `here`, a GPU that is not there."""
    if engine is None:
        return
    if _checked(engine) == "gpu" and here and find_backend() is None:
        raise InputError(f"engine='gpu' needs CuPy and a GPU, which are not there: {INSTALL}")


def device_bytes(fixed_voxels: float, moving_voxels: float, channels: int = 1) -> float:
    """Memory of a device for the descent of a block, at most."""
    return max(fixed_voxels, moving_voxels) * (BYTES_PER_VOXEL + (channels - 1) * CHANNEL_BYTES)


def largest_block(memory: float, ndim: int, channels: int = 1) -> int:
    """Voxels along each axis of the largest block that a device has memory for, an even number."""
    side = int((memory / device_bytes(1.0, 1.0, channels)) ** (1 / ndim) + 1e-9)
    return side // 2 * 2


def _checked(engine: Any) -> Engine:
    if engine not in get_args(Engine):
        raise unknown_name("engine", str(engine), get_args(Engine))
    found: Engine = engine
    return found
