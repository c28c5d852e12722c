"""A GPU as arrays and kernels: what the operations need of CuPy, which is imported here alone."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import DeviceError

__all__ = [
    "KERNEL_FILES",
    "LIBRARIES",
    "VISIBLE_DEVICES",
    "Backend",
    "CupyBackend",
    "KernelFile",
    "block_shape",
    "find_backend",
    "visible_devices",
]


@dataclass(frozen=True)
class KernelFile:
    """A file of kernels.

    Parameters
    ----------
    name : str
        In the folder of the kernels.
    exact : bool
        Whether products and sums are rounded one by one, as on the processors, so that results have
        the same bits, but for what single precision holds below 1.2e-38, which CuPy's compiler is
        told to take for 0; else the compiler may fuse them, which is quicker.
    """

    name: str
    exact: bool

    def text(self) -> str:
        """Its source, behind what all of them share."""
        folder = files(__package__).joinpath("kernels")
        parts = (folder.joinpath(name) for name in ("common.cuh", self.name))
        return "\n".join(part.read_text(encoding="utf-8") for part in parts)

    @property
    def options(self) -> tuple[str, ...]:
        """The words for its compiler."""
        return ("--std=c++17", "--fmad=false") if self.exact else ("--std=c++17",)

    def kernels(self) -> list[str]:
        """The names of its kernels."""
        return re.findall(r"__global__ void (\w+)\(", self.text())


KERNEL_FILES = (
    KernelFile("descent.cu", exact=False),
    KernelFile("windows.cu", exact=True),
    KernelFile("filters.cu", exact=True),
    KernelFile("sampling.cu", exact=True),
)
"""All kernels of this package; no two of them have one name."""


LIBRARIES = "pip install 'itkstream[gpu]' (CUDA 13) or 'cupy-cuda12x[ctk]'"
"""Words for CuPy with the compiler and the libraries of CUDA, which a driver does not bring."""

# Of CUDA: blocks of threads along the second and third axis of a grid.
_MOST_BLOCKS = 65535
_STAGED_BYTES = 2**20

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""The environment variable that says which GPUs a process may use, of which it takes the first."""


class Backend(Protocol):
    """Arrays that lie on a device, and kernels that work on them.

    What does not fit raises `MemoryError`. What its libraries raise is in `errors`: for want of
    memory, see `is_full`, or as the device is gone.
    """

    xp: Any
    name: str
    errors: tuple[type[Exception], ...]

    def is_full(self, error: Exception) -> bool:
        """Whether one of `errors` says that there is no memory."""

    def put(self, array: NDArray[Any]) -> Any:
        """An array of the device with these values."""

    def get(self, array: Any) -> NDArray[Any]:
        """The values of an array of the device."""

    def launch(self, kernel: str, size: tuple[int, ...], *arguments: Any) -> None:
        """Run a kernel with so many threads, the fastest axis first.

        Arguments are contiguous arrays of the device, whole numbers as int and others as double.
        """

    def free_bytes(self) -> int:
        """Memory that arrays may still take."""

    def release(self) -> None:
        """Give back what freed arrays held."""

    def count_devices(self) -> int:
        """Devices of which this process might have taken any."""


class CupyBackend:
    """The current device of CuPy, with all kernels compiled."""

    def __init__(self) -> None:
        import cupy

        cuda = cupy.cuda
        self.xp: Any = cupy
        # What each of the libraries raises, and its numbers of "no memory", or none for a start.
        self._full: dict[type[Exception], tuple[int, ...]] = {
            cuda.runtime.CUDARuntimeError: (2,),
            cuda.driver.CUDADriverError: (2,),
            cuda.cublas.CUBLASError: (1, 3),
        }
        self.errors = tuple(self._full)
        properties = cuda.runtime.getDeviceProperties(cuda.Device().id)
        self.name: str = properties["name"].decode()
        self._kernels: dict[str, Any] = {}
        for file in KERNEL_FILES:
            module = cupy.RawModule(code=file.text(), options=file.options)
            self._kernels |= {name: module.get_function(name) for name in file.kernels()}
        _try_libraries(cupy)

    def is_full(self, error: Exception) -> bool:
        """As `Backend.is_full`."""
        return getattr(error, "status", None) in self._full.get(type(error), ())

    def put(self, array: NDArray[Any]) -> Any:
        """As `Backend.put`."""
        values = np.ascontiguousarray(array)
        if values.nbytes <= _STAGED_BYTES:
            return self.xp.asarray(values)
        # CuPy sends by way of locked memory, of a power of two bytes, which it never gives back.
        out = self.xp.empty(values.shape, values.dtype)
        out.set(values)
        return out

    def get(self, array: Any) -> NDArray[Any]:
        """As `Backend.get`."""
        return np.asarray(self.xp.asnumpy(array))

    def launch(self, kernel: str, size: tuple[int, ...], *arguments: Any) -> None:
        """As `Backend.launch`."""
        if not all(size):
            return
        block = block_shape(size)
        grid = tuple(-(-n // b) for n, b in zip(size, block, strict=True))
        if max(grid[1:], default=0) > _MOST_BLOCKS:
            raise MemoryError(f"an image of {size[::-1]} voxels has too many rows or planes")
        self._kernels[kernel](grid, block, tuple(map(_as_argument, arguments)))

    def free_bytes(self) -> int:
        """As `Backend.free_bytes`."""
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return int(free + self.xp.get_default_memory_pool().free_bytes())

    def release(self) -> None:
        """As `Backend.release`."""
        self.xp.get_default_memory_pool().free_all_blocks()

    def count_devices(self) -> int:
        """As `Backend.count_devices`."""
        return int(self.xp.cuda.runtime.getDeviceCount())


def block_shape(size: tuple[int, ...]) -> tuple[int, ...]:
    """Threads of a block: neighbours in memory together, 256 in all."""
    return (32, 8, 1)[: len(size)] if len(size) > 1 else (256,)


@cache
def find_backend() -> Backend | None:
    """The GPU of this process; None without CuPy or without a device.

    Raises `DeviceError` where both are there and do not work together.
    """
    if importlib.util.find_spec("cupy") is None:
        return None
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"CuPy cannot be imported: {error}") from error
    if not _count_devices(cupy.cuda.runtime):
        return None
    try:
        return CupyBackend()
    # Each library of CUDA has its own errors, and those of one that is not installed are others.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"CuPy cannot use the GPU ({reason}): where parts of CUDA are missing, {LIBRARIES} "
            "brings them"
        ) from error


def visible_devices() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Without CuPy or a device there is none. Raises as `find_backend`.
    """
    backend = find_backend()
    if backend is None:
        return ()
    count, said = backend.count_devices(), os.environ.get(VISIBLE_DEVICES)
    # Numbers, or names of GPUs and of parts of them; CUDA heeds those before the first unknown one.
    names = map(str, range(count)) if said is None else map(str.strip, said.split(","))
    return tuple(names)[:count]


def _count_devices(runtime: Any) -> int:
    """The devices there are; none without a driver, nor with one that is too old."""
    try:
        return int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        if "NoDevice" in str(error) or "InsufficientDriver" in str(error):
            return 0
        raise DeviceError(f"CuPy cannot use the GPU: {error}") from error


def _try_libraries(xp: Any) -> None:
    """Compute a little with each library that is used: one that is missing is told at once."""
    small = xp.ones((2, 2), np.float32)
    xp.asnumpy((small @ small + small).sum())


def _as_argument(value: Any) -> Any:
    if isinstance(value, float):
        return np.float64(value)
    if isinstance(value, (bool, int)):
        if not -(2**31) <= value < 2**31:
            raise OverflowError(f"kernels count by 32 bits; got {value}")
        return np.int32(value)
    return value
