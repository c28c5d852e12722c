"""Measure what each part of a registration takes, beside what its plan says.

    python tests/benchmarks/prices.py [demo] [easifish] [--times N]

Seconds are processor time of this process, which a busy machine changes little, and the least of N
runs of one thread; the rates in `itkstream.registration.steps.prices` are these divided by the
voxels of the work. `easifish` is ../shared/data/easifish, or resources without it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence

from cases import TEXTURES

import itkstream
from itkstream.geometry import Image
from itkstream.phantoms import make_pair, tutorial_settings
from itkstream.progress.reporters import LogReporter
from itkstream.workers import Resources

__all__ = ["main"]

_ONE = Resources(threads_per_worker=1, cores=1)


class PartTimes(LogReporter):
    """A reporter that keeps the processor time of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._title, self._began = "before", time.process_time()

    def step(self, title: str) -> None:
        """Begin a part, and end the one before."""
        now = time.process_time()
        self.seconds[self._title] = self.seconds.get(self._title, 0.0) + now - self._began
        self._title, self._began = title, now


def main(arguments: Sequence[str] | None = None) -> None:
    """Register the pairs that were asked for, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["demo", "easifish"])
    parser.add_argument("--times", type=int, default=1)
    given = parser.parse_args(arguments)
    for name in given.names:
        sys.stdout.write(json.dumps({"pair": name, **measure(name, given.times)}) + "\n")
        sys.stdout.flush()


def measure(name: str, times: int) -> dict[str, dict[str, float]]:
    """Find the seconds of each part: measured, and as planned."""
    fixed, moving = _open_pair(name)
    planned = itkstream.plan(fixed, moving, resources=_ONE).parts
    runs = [_run(fixed, moving) for _ in range(times)]
    least = {title: min(run[title] for run in runs) for title in runs[0]}
    return {
        "measured": {title: round(seconds, 2) for title, seconds in least.items()},
        "planned": {part.title: round(part.seconds, 2) for part in planned},
    }


def _open_pair(name: str) -> tuple[Image, Image]:
    if name == "demo":
        pair = make_pair(tutorial_settings())
        return pair.fixed, pair.moving
    folder = next(path for path in TEXTURES if path.exists()).parents[1]
    fixed, moving = (
        itkstream.open_image(folder / f"{which}.n5" / "lowres") for which in ("fix", "mov")
    )
    return fixed, moving


def _run(fixed: Image, moving: Image) -> dict[str, float]:
    times = PartTimes()
    with tempfile.TemporaryDirectory() as folder:
        itkstream.register(fixed, moving, folder, resources=_ONE, reporter=times)
    times.step("after")
    return times.seconds


if __name__ == "__main__":
    main()
