"""Environment variables of worker processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from itkstream.numerics.gpu.backend import VISIBLE_DEVICES

__all__ = [
    "MEMORY_VARIABLES",
    "configuration_variables",
    "device_variables",
    "worker_variables",
]

_THREADS = (
    "ITKSTREAM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)

MEMORY_VARIABLES = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
"""Freed memory is kept for the next array, as much as glibc ever keeps by itself.

By dask's 64 kB the pages of an array are given back and got again, zeroed, for the next: an eighth
of a block's time. It is kept in two places, not in one for each thread, which grew with the blocks.
"""


def worker_variables(threads: int) -> dict[str, str]:
    """Environment variables for so many threads for each block."""
    return dict.fromkeys(_THREADS, str(threads))


def device_variables(devices: Sequence[str], workers: int) -> list[dict[str, str]]:
    """Environment variables that give each worker one GPU, in turn; none where there is none."""
    if not devices:
        return [{} for _ in range(workers)]
    return [{VISIBLE_DEVICES: devices[number % len(devices)]} for number in range(workers)]


def configuration_variables(config: Mapping[str, Any], prefix: str = "DASK") -> dict[str, str]:
    """A dask configuration as the environment variables that dask reads, Python literals."""
    found: dict[str, str] = {}
    for name, value in config.items():
        variable = f"{prefix}_{str(name).replace('.', '__').replace('-', '_').upper()}"
        if isinstance(value, Mapping) and value:
            found |= {
                f"{variable}__{key.removeprefix('_')}": text
                for key, text in configuration_variables(value, "").items()
            }
        else:
            found[variable] = repr(value)
    return found
