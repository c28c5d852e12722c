"""A GPU that is none: numpy arrays, and the kernels as C++ for one thread after another."""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from itkstream.numerics.gpu.backend import KERNEL_FILES, KernelFile, block_shape

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++ on the PATH, which compiles the kernels here"
)


_count = itertools.count()


class EmulatedBackend:
    """As `itkstream.numerics.gpu.backend.Backend`, in the memory of this process.

    Arrays of more than `largest` bytes do not fit.
    """

    xp = np
    errors: tuple[type[Exception], ...] = ()

    def __init__(self, memory: int = 2**40) -> None:
        self.memory = memory
        # What is said once of a device is said again of another.
        self.name = f"thread {next(_count)} of this machine"
        self.largest = memory
        self.launched: list[str] = []

    def is_full(self, error: Exception) -> bool:
        return False

    def put(self, array: NDArray[Any]) -> NDArray[Any]:
        if array.nbytes > self.largest:
            raise MemoryError(f"{array.nbytes} bytes")
        return np.array(array, order="C")

    def get(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.copy()

    def launch(self, kernel: str, size: tuple[int, ...], *arguments: Any) -> None:
        self.launched.append(kernel)
        block = block_shape(size)
        grid = [-(-n // b) for n, b in zip(size, block, strict=True)]
        ones = [1] * (3 - len(size))
        dimensions = [(ctypes.c_uint * 3)(*n, *ones) for n in (grid, block)]
        _library(_functions()[kernel])[kernel](*dimensions, *map(_as_argument, arguments))

    def free_bytes(self) -> int:
        return self.memory

    def release(self) -> None:
        """Nothing is held back."""

    def count_devices(self) -> int:
        return 1


def _as_argument(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        # A pointer would not say that it is of something else.
        assert value.flags.c_contiguous
        return value.ctypes.data_as(ctypes.POINTER(np.ctypeslib.as_ctypes_type(value.dtype)))
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int(value)


_KINDS = {
    "int": ctypes.c_int,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "Bits8": ctypes.c_uint8,
    "Bits16": ctypes.c_uint16,
    "Bits32": ctypes.c_uint32,
    "Bits64": ctypes.c_uint64,
}


@cache
def _functions() -> dict[str, KernelFile]:
    """The file of each kernel."""
    return {name: file for file in KERNEL_FILES for name, _ in _kernels(file)}


def _kernels(file: KernelFile) -> list[tuple[str, str]]:
    """Names and parameters of the kernels of a file."""
    return re.findall(r"__global__ void (\w+)\(([^)]*)\)", file.text())


@cache
def _library(file: KernelFile) -> dict[str, Any]:
    """For each kernel of a file a function that runs all of its threads."""
    code = [f'#include "{Path(__file__).with_name("one_thread.h")}"', file.text()]
    for name, parameters in _kernels(file):
        names = ", ".join(p.split()[-1].lstrip("*") for p in parameters.split(","))
        code.append(
            f'extern "C" void run_{name}(const unsigned *grid_, const unsigned *block_, '
            f"{parameters}) {{ run(grid_, block_, [&] {{ {name}({names}); }}); }}"
        )
    built = _build("\n".join(code), file)
    triple = ctypes.POINTER(ctypes.c_uint)
    library: dict[str, Any] = {}
    for name, parameters in _kernels(file):
        types: list[Any] = [triple, triple]
        for parameter in parameters.split(","):
            kind = _KINDS[parameter.replace("const", "").split()[0]]
            types.append(ctypes.POINTER(kind) if "*" in parameter else kind)
        library[name] = getattr(built, f"run_{name}")
        library[name].argtypes = types
    return library


def _build(code: str, file: KernelFile) -> ctypes.CDLL:
    source = Path(tempfile.mkdtemp()) / f"{file.name}.cpp"
    source.write_text(code, encoding="utf-8")
    built = source.with_suffix(".so")
    fused = "off" if file.exact else "fast"
    options = ["-O2", "-shared", "-fPIC", f"-ffp-contract={fused}"]
    subprocess.run(["g++", *options, str(source), "-o", str(built)], check=True)
    return ctypes.CDLL(str(built))
