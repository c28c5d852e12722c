"""As much of CuPy as a backend needs, on numpy and the kernels as C++, also in worker processes.

The environment says how many GPUs there are, STAND_IN_GPUS, or their names, STAND_IN_NAMES, of
which CUDA_VISIBLE_DEVICES shows some as CUDA has it. The one named by STAND_IN_LOST fails at its
first kernel, all of them do so for want of memory with STAND_IN_FULL, and none can be used without
the library named by STAND_IN_LACKS; each has STAND_IN_BYTES free.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from emulated import EmulatedBackend

launched: list[str] = []


class ndarray:
    """No array is one of these, whoever asks."""


class _RuntimeError(RuntimeError):
    """As of the CUDA runtime."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class _DriverError(_RuntimeError):
    """As of the CUDA driver."""


class _Array(np.ndarray):
    """An array of a device, to which one is sent."""

    def set(self, array: Any) -> None:
        self[...] = array


def __getattr__(name: str) -> Any:
    return getattr(np, name)


def asarray(array: Any, dtype: Any = None) -> Any:
    return np.array(array, dtype, order="C")


def empty(shape: Any, dtype: Any = float) -> Any:
    return np.empty(shape, dtype).view(_Array)


def asnumpy(array: Any) -> Any:
    return np.array(array)


class RawModule:
    def __init__(self, **_: Any) -> None:
        """There is one file of kernels."""

    def get_function(self, name: str) -> Any:
        if "STAND_IN_LACKS" in os.environ:
            raise ImportError(f"{os.environ['STAND_IN_LACKS']} is not there\nfor many reasons")

        def launch(grid: Any, block: Any, arguments: Any) -> None:
            if "STAND_IN_FULL" in os.environ:
                raise _DriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory", 2)
            if _visible()[0] == os.environ.get("STAND_IN_LOST"):
                raise _RuntimeError("cudaErrorLaunchFailure: unspecified launch failure")
            launched.append(name)
            size = tuple(g * b for g, b in zip(grid, block, strict=True))
            values = (a.item() if isinstance(a, np.generic) else a for a in arguments)
            EmulatedBackend().launch(name, size, *values)

        return launch


def get_default_memory_pool() -> Any:
    return SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None)


def _visible() -> list[str]:
    there = [str(number) for number in range(int(os.environ.get("STAND_IN_GPUS", "0")))]
    if "STAND_IN_NAMES" in os.environ:
        there = os.environ["STAND_IN_NAMES"].split(",")
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return there
    names = said.split(",")
    unknown = [place for place, name in enumerate(names) if name not in there]
    return names[: unknown[0]] if unknown else names


cuda = SimpleNamespace(
    Device=lambda: SimpleNamespace(id=0),
    cublas=SimpleNamespace(CUBLASError=type("CUBLASError", (RuntimeError,), {})),
    driver=SimpleNamespace(CUDADriverError=_DriverError),
    runtime=SimpleNamespace(
        CUDARuntimeError=_RuntimeError,
        getDeviceCount=lambda: len(_visible()),
        getDeviceProperties=lambda number: {"name": f"GPU {_visible()[number]}".encode()},
        memGetInfo=lambda: (int(float(os.environ.get("STAND_IN_BYTES", "1e12"))), 10**12),
    ),
)
