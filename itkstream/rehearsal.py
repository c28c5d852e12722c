"""Compiling ahead: after an installation, a process beside the first registration rehearses it.

numba compiles a function where it is first called, one after the other, some fifteen seconds in
all, and keeps it on disk for every later process. The first registration begins with key points;
the rehearsal, a deformation of two tiny textures with all that follows it, compiles meanwhile what
the registration needs last, on another processor.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from itkstream.geometry import AffineTransform, Image
from itkstream.geometry.grid import Grid
from itkstream.numerics.compiled import is_compiled, kept_in
from itkstream.numerics.threads import processors
from itkstream.progress.reporters import LogReporter, Reporter
from itkstream.registration.folder import RunFolder
from itkstream.registration.register import run_request
from itkstream.registration.request import Given, read_request
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import Deformable
from itkstream.registration.steps.prices import COMPILE_SECONDS
from itkstream.workers import Resources

__all__ = ["rehearse", "rehearsing"]

_SHAPE = (40, 36, 32)
# A rehearsal is over after so many seconds, or was killed.
_STALE_SECONDS = 300.0
_MARK = "rehearsal"


@contextmanager
def rehearsing(dtype: np.dtype[Any], reporter: Reporter) -> Iterator[None]:
    """Compile ahead while a registration of images of a type runs, if nothing is compiled yet."""
    alone = processors() < 2
    if is_compiled() or not (alone or _claim()):
        yield
        return
    seconds = f"{COMPILE_SECONDS:.0f} s"
    reporter.note(f"compiling for this machine, once: the first run takes some {seconds} longer")
    if alone:
        yield
        return
    command = [sys.executable, "-m", __name__, dtype.str]
    known = {**os.environ, "ITKSTREAM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=known)
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def _claim() -> bool:
    """Whether no other process rehearses for this installation."""
    mark = kept_in() / _MARK
    try:
        if time.time() - mark.stat().st_mtime < _STALE_SECONDS:
            return False
    except OSError:
        pass
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:  # nothing is kept where nothing can be written
        return False
    return True


def rehearse(dtype: np.dtype[Any]) -> None:
    """Deform a tiny texture of a type onto itself, shifted by a voxel, in a folder that goes."""
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.normal(size=(_SHAPE[0] + 1, *_SHAPE[1:])), 1.5)
    voxels = np.rint(100 + 80 * texture / np.abs(texture).max()).astype(dtype)
    grid = Grid(_SHAPE, (1.0, 1.0, 1.0), axes=("z", "y", "x"))
    images = (Image(voxels[1:], grid, "fixed"), Image(voxels[:-1], grid, "moving"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        given = Given(*images, initial_transform=AffineTransform(np.eye(4)))
        settings = RegisterSettings(report=False)
        request = read_request(given, (Deformable(),), settings, Resources(), out)
        run_request(request, RunFolder(out, request.names, False), LogReporter())


if __name__ == "__main__":
    # Leaves no folder behind when the registration is done first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    rehearse(np.dtype(sys.argv[1]))
