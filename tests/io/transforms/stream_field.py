"""A field of many megabytes to a file and back, in a process that may not hold it.

``python stream_field.py FILE MEGABYTES LIMIT_MB`` prints the largest error and the peak memory.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import numpy as np

from itkstream.geometry import DisplacementField, Grid
from itkstream.io.transforms.files import read_transform, write_transform


class Waves:
    """Vectors made when they are asked for: nothing is stored."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = (*shape, 3)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        index = [np.arange(n)[k] for n, k in zip(self.shape, key[:3], strict=False)]
        i, j, k = np.meshgrid(*index, indexing="ij", sparse=True)
        parts = [np.sin(i / 9 + j / 17) + k / 50, np.cos(j / 11) + i * k / 9000, np.sin(k / 7 + i)]
        field: Any = np.stack(np.broadcast_arrays(*parts), -1).astype(np.float32)
        return field[..., key[3]] if len(key) > 3 else field


def main(path: str, megabytes: float, limit: float) -> None:
    side = round((megabytes * 2**20 / 12) ** (1 / 3))
    grid = Grid((side,) * 3, (1.0, 0.8, 0.7), axes=("z", "y", "x"))
    field = DisplacementField(Waves(grid.shape), grid)
    # What is private and can be written to: not the libraries' code, nor files that are mapped.
    resource.setrlimit(resource.RLIMIT_DATA, (round(limit * 2**20),) * 2)
    began = time.monotonic()
    error = write_transform(path, field)
    written = time.monotonic()
    found = read_transform(path)
    points = grid.to_physical(np.random.default_rng(0).uniform(0, side - 1, (50, 3)))
    for p in points:
        error = max(error, np.abs(found.apply(p[None]) - field.apply(p[None])).max())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    sys.stdout.write(
        f"{side}^3: error {error:.1e}, peak {peak:.0f} MB, write {written - began:.0f} s, "
        f"read {time.monotonic() - written:.0f} s\n"
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
