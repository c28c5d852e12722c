"""The kernels as CUDA, compiled where its compiler is: `pip install nvidia-cuda-nvrtc-cu12`."""

from __future__ import annotations

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from itkstream.numerics.gpu.backend import KERNEL_FILES, KernelFile


def compiler() -> Path | None:
    """The library of NVIDIA's runtime compiler, which needs no GPU."""
    nvidia = find_spec("nvidia")
    places = [] if nvidia is None else list(nvidia.submodule_search_locations or [])
    found = [path for place in places for path in Path(place).rglob("libnvrtc.so.*")]
    return found[0] if found else None


def built(library: Any, file: KernelFile, architecture: str, kind: str) -> tuple[str, bytes]:
    """The compiler's log of a file, compiled as CuPy does, and the result, "PTX" or "CUBIN"."""
    program = ctypes.c_void_p()
    text = file.text().encode()
    library.nvrtcCreateProgram(ctypes.byref(program), text, b"kernels.cu", 0, None, None)
    words = [*file.options, f"-arch={architecture}", "-ftz=true", "--ptxas-options=-v"]
    options = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    status = library.nvrtcCompileProgram(program, len(words), options)
    log = _fetched(library, program, "ProgramLog").decode()
    assert status == 0, log
    return log, _fetched(library, program, kind)


def _fetched(library: Any, program: Any, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


@pytest.mark.skipif(compiler() is None, reason="no NVRTC, which compiles CUDA, is installed")
@pytest.mark.parametrize("file", KERNEL_FILES, ids=lambda file: file.name)
def test_kernels_compile_for_gpus_old_and_new(file: KernelFile) -> None:
    library = ctypes.CDLL(str(compiler()))
    for architecture in ("compute_75", "compute_90"):
        ptx = built(library, file, architecture, "PTX")[1].decode()
        assert ptx.count(".entry") == len(file.kernels()) > 2
        # Bits are those of the processors only where no product and sum are one operation.
        assert bool(re.search(r"\bfma\.", ptx)) is not file.exact
    log, code = built(library, file, "sm_90", "CUBIN")
    assert code
    # Registers do: nothing is put away in memory and read again.
    assert log.count(" 0 bytes spill stores") == log.count("Compiling entry") > 2
