"""Measure what it takes to register two small images, beyond importing the package.

    python tests/benchmarks/small_images.py [SIDE] [RUNS]

Each run is a fresh process, as of the command line, which registers planes of SIDE x SIDE voxels,
default 256, with the default steps; one before them compiles what is not compiled. Seconds on the
clock and of all processors: the latter do not depend on what else the machine does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from itkstream.geometry import Image
from itkstream.io import create_ome_zarr
from itkstream.phantoms import Motion, PhantomSettings, make_pair

__all__ = ["measure"]

_RUN = """
import json, sys, time
began = time.perf_counter(), time.process_time()
import itkstream.cli.app, itkstream.cli.config, itkstream.pipelines
ready = time.perf_counter(), time.process_time()
sys.argv = ["itkstream", "register", *sys.argv[1:]]
itkstream.cli.app.main()
done = time.perf_counter(), time.process_time()
seconds = [b - a for pair in ((began, ready), (ready, done)) for a, b in zip(*pair)]
print(json.dumps(seconds))
"""
_NAMES = ("import_seconds", "import_cpu_seconds", "seconds", "cpu_seconds")


def measure(side: int = 256, runs: int = 5) -> list[dict[str, float]]:
    """Register a pair of planes in fresh processes, one after the other."""
    motion = Motion(rotation_deg=3, stretch=0.02, shear=0.01, shift=0.03, warp_um=3)
    pair = make_pair(PhantomSettings((side, side), (1.0, 1.0), 2, motion=motion))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [_stored(image, Path(folder)) for image in (pair.fixed, pair.moving)]
        for run in range(runs + 1):
            words = [*paths, "--out", f"{folder}/{run}"]
            done = subprocess.run(
                [sys.executable, "-c", _RUN, *words], capture_output=True, text=True, check=True
            )
            found.append(dict(zip(_NAMES, json.loads(done.stdout.split("\n")[-2]), strict=True)))
    return found[1:]


def _stored(image: Image, folder: Path) -> str:
    path = folder / f"{image.name}.ome.zarr"
    create_ome_zarr(path, image.grid, image.dtype, chunks=(256, 256))[...] = image.read()
    return str(path)


def main() -> None:
    """Print the median and the least of all runs."""
    runs = measure(*map(int, sys.argv[1:]))
    for name in _NAMES:
        values = [run[name] for run in runs]
        Console().print(f"{name:>20}  median {np.median(values):.2f}  least {min(values):.2f}")


if __name__ == "__main__":
    main()
