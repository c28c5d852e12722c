"""A GPU that is none: numpy arrays, and the kernels as C++ for one thread after another."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from itkstream.numerics.gpu.backend import KERNELS, block_shape

SOURCE = files("itkstream.numerics.gpu").joinpath(KERNELS)

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++ on the PATH, which compiles the kernels here"
)


class EmulatedBackend:
    """As `itkstream.numerics.gpu.backend.Backend`, in the memory of this process."""

    xp = np
    name = "one thread of this machine"
    lost: tuple[type[Exception], ...] = ()

    def __init__(self, memory: int = 2**40) -> None:
        self.memory = memory
        self.launched: list[str] = []

    def put(self, array: NDArray[Any]) -> NDArray[Any]:
        return np.array(array, order="C")

    def get(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.copy()

    def launch(self, kernel: str, size: tuple[int, ...], *arguments: Any) -> None:
        self.launched.append(kernel)
        block = block_shape(size)
        grid = [-(-n // b) for n, b in zip(size, block, strict=True)]
        ones = [1] * (3 - len(size))
        dimensions = [(ctypes.c_uint * 3)(*n, *ones) for n in (grid, block)]
        getattr(_library(), f"run_{kernel}")(*dimensions, *map(_as_argument, arguments))

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
        assert value.dtype in (np.float32, np.float64)
        kind = ctypes.c_float if value.dtype == np.float32 else ctypes.c_double
        return value.ctypes.data_as(ctypes.POINTER(kind))
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int(value)


@cache
def _library() -> ctypes.CDLL:
    """The kernels, each with a function that runs all of its threads."""
    folder = Path(tempfile.mkdtemp())
    text = SOURCE.read_text(encoding="utf-8")
    code = [f'#include "{Path(__file__).with_name("one_thread.h")}"', text]
    found = re.findall(r"__global__ void (\w+)\(([^)]*)\)", text)
    for name, parameters in found:
        names = ", ".join(p.split()[-1].lstrip("*") for p in parameters.split(","))
        code.append(
            f'extern "C" void run_{name}(const unsigned *grid_, const unsigned *block_, '
            f"{parameters}) {{ run(grid_, block_, [&] {{ {name}({names}); }}); }}"
        )
    source = folder / "kernels.cpp"
    source.write_text("\n".join(code), encoding="utf-8")
    built = folder / "kernels.so"
    subprocess.run(["g++", "-O2", "-shared", "-fPIC", str(source), "-o", str(built)], check=True)
    library = ctypes.CDLL(str(built))
    kinds = {"int": ctypes.c_int, "double": ctypes.c_double}
    pointers = {"float": ctypes.c_float, "double": ctypes.c_double}
    triple = ctypes.POINTER(ctypes.c_uint)
    for name, parameters in found:
        types: list[Any] = [triple, triple]
        for parameter in parameters.split(","):
            kind = parameter.replace("const", "").split()[0]
            pointer = ctypes.POINTER(pointers[kind]) if "*" in parameter else kinds[kind]
            types.append(pointer)
        getattr(library, f"run_{name}").argtypes = types
    return library
