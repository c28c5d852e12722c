"""Each measurement in a process of its own: nothing warm, nothing shared, its own peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["call", "cores", "machine", "peak_bytes", "resident_bytes", "timed"]

PACKAGES = (
    *("itkstream", "numpy", "scipy", "numba", "SimpleITK", "dask", "zarr"),
    *("picsl-greedy", "antspyx", "greedypy"),
)
_THREAD_VARIABLES = (
    *("ITKSTREAM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
)


def cores() -> int:
    """Processors this process may run on; every engine gets so many threads.

    Returns
    -------
    int
        At least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the numbers were measured on and with.

    Returns
    -------
    dict
        Cores, platform, Python, versions of the packages that are installed.
    """
    return {
        "cores": cores(),
        "platform": platform.platform(),
        "processor": _processor(),
        "load_at_start": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
    }


def version_of(package: str) -> str | None:
    """The installed version of a distribution.

    Parameters
    ----------
    package : str
        Its name on PyPI.

    Returns
    -------
    str or None
        None where it is not installed.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def call(script: Path, arguments: Sequence[str], timeout: float) -> dict[str, Any]:
    """Run a script that writes its results as JSON to the path given as its last argument.

    Parameters
    ----------
    script : Path
        A Python file.
    arguments : sequence of str
        Its other arguments.
    timeout : float
        Seconds before it is stopped.

    Returns
    -------
    dict
        The results, or ``{"error": ...}`` where it failed.
    """
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(cores()))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, str(script), *arguments, str(out)]
        # ANTs leaves its files in the temporary directory.
        environment["TMPDIR"] = folder
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {timeout:g} s"}
        if done.returncode or not out.exists():
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            return {"error": f"exit code {done.returncode}: {last}"}
        results: dict[str, Any] = json.loads(out.read_text())
        return results


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Call a function and measure it.

    Parameters
    ----------
    function : callable
        Without arguments.

    Returns
    -------
    object
        What it returned.
    dict
        ``seconds``, ``cpu_seconds`` of all threads, ``peak_mb`` of the process, and ``extra_mb``,
        the peak beyond what was resident before the call.
    """
    _forget_peak()
    before, cpu, start = resident_bytes(), time.process_time(), time.perf_counter()
    result = function()
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_bytes()
    extra = max(peak - before, 0)
    return result, {
        "seconds": seconds,
        "cpu_seconds": used,
        "peak_mb": peak / 1e6,
        "extra_mb": extra / 1e6,
    }


def peak_bytes() -> int:
    """The most memory this process has had resident.

    Linux carries ``ru_maxrss`` of the parent into a child it starts, so the kernel's own high
    water mark of the process is read where there is one.

    Returns
    -------
    int
        Bytes.
    """
    mark = _status("VmHWM")
    if mark is not None:
        return mark
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The memory this process has resident now.

    Returns
    -------
    int
        Bytes; the peak where the system does not tell.
    """
    return _status("VmRSS") or peak_bytes()


def _forget_peak() -> None:
    """Start counting memory anew, where the system allows it.

    Compiling may have taken more memory than the call will, and memory that was freed but stays
    resident would be used again by the call without showing in its peak.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
