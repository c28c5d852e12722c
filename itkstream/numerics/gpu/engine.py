"""The engine of a computation: decided here and nowhere else.

Where nothing is said, that is the processors, and CuPy is never looked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, get_args

from itkstream.errors import DeviceError, InputError, unknown_name
from itkstream.numerics.gpu.backend import LIBRARIES, Backend, find_backend

__all__ = [
    "BYTES_PER_VOXEL",
    "INSTALL",
    "Engine",
    "check_engine",
    "choose_engine",
    "computing",
    "describe_engine",
    "device_bytes",
    "engine_here",
    "engine_said",
    "find_device",
    "join_engines",
    "using_engine",
]

logger = logging.getLogger(__name__)

Engine: TypeAlias = Literal["cpu", "gpu", "auto"]
"""Processors, a GPU, or a GPU where there is one and the block fits it."""

BYTES_PER_VOXEL = 60.0
"""Memory that a descent takes on a device, at most, per voxel of a block."""

CHANNEL_BYTES = 24.0
"""The same for each further channel: both images, warped, with residual and weight, shrunken."""

INSTALL = f"install CuPy beside the NVIDIA driver, {LIBRARIES}, or choose engine='cpu'"
"""Words for who has no GPU that can be used."""

# Who found a CuPy that does not work: to try again takes long, and is told once.
_broken: set[Callable[[], Backend | None]] = set()

# Of each computation its own: several may run at a time, on threads of one process.
_said: ContextVar[Engine | None] = ContextVar("engine", default=None)


def engine_said() -> Engine | None:
    """The engine that computes here and now; None for nothing said."""
    return _said.get()


@contextmanager
def using_engine(engine: Engine | None) -> Iterator[None]:
    """Compute with an engine for the duration of a with block; None leaves it as it is."""
    token = _said.set(engine or _said.get())
    try:
        yield
    finally:
        _said.reset(token)


def engine_here(engine: Engine | None, here: bool) -> Engine | None:
    """The engine of a process that shares out blocks: it needs no GPU where others compute them."""
    return "auto" if engine == "gpu" and not here else engine


def check_engine(engine: Any, here: bool) -> None:
    """Refuse an unknown engine and, where blocks are computed `here`, a GPU that is not there."""
    if engine is None:
        return
    if _checked(engine) == "gpu" and here and find_backend() is None:
        raise InputError(f"engine='gpu' needs CuPy and a GPU, which are not there: {INSTALL}")


def choose_engine(
    said: Engine | None, here: bool, begun: str | None = None, place: Any = None
) -> Engine:
    """Choose what computes: what is said, or what a computation was begun with.

    Results of both engines differ in their last digits, so that only who says 'cpu' or 'gpu' goes
    on with another. 'auto' is decided where blocks are computed `here`, on this machine.

    Parameters
    ----------
    said : {'cpu', 'gpu', 'auto'}, optional
        What was asked for.
    here : bool
        Whether blocks are computed on this machine.
    begun : str, optional
        What computed so far, as `join_engines` writes it; None for nothing.
    place : optional
        Where that is, for the error.

    Returns
    -------
    {'cpu', 'gpu', 'auto'}
        'auto' only where blocks are computed elsewhere.

    Raises
    ------
    InputError
        Where another engine would go on with what was begun, and nobody said so.
    """
    if begun is None or said in ("cpu", "gpu"):
        return _decided(said, here)
    alone = begun in get_args(Engine)
    if not (alone and said == "auto") and begun != (said or "cpu"):
        raise InputError(
            f"{place} was begun with engine={begun!r}, whose results differ in their last digits "
            "from those of another: say which is to go on, engine='gpu' or engine='cpu'"
        )
    if begun == "gpu" and here and _decided("auto", here) != "gpu":
        raise InputError(
            f"{place} was begun on a GPU, and CuPy finds none here: engine='cpu' finishes it on "
            "the processors, whose results differ in their last digits"
        )
    return _decided(_checked(begun), here)


def find_device() -> Backend | None:
    """The GPU of this process; None where there is none, or its CuPy does not work, told once."""
    if find_backend in _broken:
        return None
    try:
        return find_backend()
    except DeviceError as error:
        _broken.add(find_backend)
        logger.warning("%s: the processors compute", error)
        return None


def join_engines(begun: str, engine: Engine) -> str:
    """Name all that computed, in order, with a plus between them."""
    return "+".join(dict.fromkeys([*begun.split("+"), engine]))


def describe_engine(said: Engine | None, engine: Engine) -> str:
    """Say what computes on this machine, after what was said; nothing where that was nothing."""
    if engine == "gpu":
        backend = find_backend()
        return "" if backend is None else f"{backend.name} computes"
    if said != "auto":
        return ""
    why = "CuPy finds no GPU" if _decided("auto", True) == "cpu" else "they began this run"
    return f"the processors compute: {why}"


@contextmanager
def computing(engine: Engine | None) -> Iterator[None]:
    """Compute here with an engine that is asked for; refuse an unknown one, or one not there."""
    check_engine(engine, here=True)
    with using_engine(choose_engine(engine, here=True)):
        yield


def device_bytes(fixed_voxels: float, moving_voxels: float, channels: int = 1) -> float:
    """Memory of a device for the descent of a block, at most."""
    return max(fixed_voxels, moving_voxels) * (BYTES_PER_VOXEL + (channels - 1) * CHANNEL_BYTES)


def _decided(said: Engine | None, here: bool) -> Engine:
    """The engine that is said, with 'auto' as this machine has it."""
    if said != "auto" or not here:
        return said or "cpu"
    return "cpu" if find_device() is None else "gpu"


def _checked(engine: Any) -> Engine:
    if engine not in get_args(Engine):
        raise unknown_name("engine", str(engine), get_args(Engine))
    found: Engine = engine
    return found
