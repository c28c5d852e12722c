"""Measure what each part of a registration takes, beside what its plan says, and fit the rates.

    python tests/benchmarks/prices.py [NAME ...] [--times N] [--out FILE]
    python tests/benchmarks/prices.py --fit FILE

NAME is `demo`, `easifish` (../shared/data/easifish, or resources without it), a pair of
`real_pairs.py`, or two images with a comma between them. Seconds are processor time of this
process, which a busy machine changes little, and the least of N runs of one thread. A first run
compiles; run twice.

The rates of `itkstream.registration.steps.prices` are seconds by voxels, of large pairs. `--fit`
takes lines of earlier runs and tells how far prices are off on each pair, how far those would be
that were fitted to all the others, and by what seconds beside the rates are to be multiplied.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cases import TEXTURES
from real_pairs import FOLDER, open_pair

import itkstream
from itkstream.errors import RegistrationError
from itkstream.geometry import Grid, Image
from itkstream.phantoms import make_pair, tutorial_settings
from itkstream.progress.reporters import LogReporter
from itkstream.registration.steps.prices import COMPILING
from itkstream.workers import Resources

__all__ = ["fit", "main", "measure"]

_ONE = Resources(threads_per_worker=1, cores=1)
# By title, seconds beside those of voxels, and those of voxels.
Parts = dict[str, tuple[float, float]]


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
    parser.add_argument("--out", type=Path, help="also add the lines to this file")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the real pairs")
    parser.add_argument("--fit", type=Path, help="lines of earlier runs, to fit rates to")
    given = parser.parse_args(arguments)
    if given.fit:
        lines = given.fit.read_text().splitlines()
        sys.stdout.write(fit({found["pair"]: found for found in map(json.loads, lines)}))
        return
    for name in given.names:
        found = measure(_open_pair(name, given.folder), given.times)
        line = json.dumps({"pair": name, **found}) + "\n"
        sys.stdout.write(line)
        sys.stdout.flush()
        if given.out:
            with given.out.open("a") as file:
                file.write(line)


def measure(pair: tuple[Image, Image], times: int) -> dict[str, Any]:
    """Find the work and the seconds of each part: measured, and as planned."""
    fixed, moving = pair
    plan = itkstream.plan(fixed, moving, resources=_ONE)
    runs = [_run(fixed, moving) for _ in range(times)]
    least = {title: min(run[title] for run in runs) for title in runs[0]}
    return {
        "shapes": [fixed.grid.shape, moving.grid.shape],
        "planned": {part.title: round(part.seconds, 2) for part in plan.parts},
        "measured": {title: round(seconds, 2) for title, seconds in least.items()},
    }


def fit(pairs: dict[str, dict[str, Any]]) -> str:
    """Tell how far prices are off, and what the seconds beside those of voxels are to be times."""
    priced = {name: _priced(found["shapes"]) for name, found in pairs.items()}
    measured = {name: found["measured"] for name, found in pairs.items()}
    lines = ["pair: measured s, priced by measured, priced by the others by measured"]
    for name, parts in priced.items():
        others = [other for other in pairs if other != name]
        factors = _factors([priced[n] for n in others], [measured[n] for n in others])
        whole = sum(measured[name].values())
        now = sum(beside + voxels for beside, voxels in parts.values())
        then = sum(factors.get(t, 1.0) * beside + voxels for t, (beside, voxels) in parts.items())
        lines.append(f"{name}: {whole:.1f}, {now / whole:.2f}, {then / whole:.2f}")
    factors = _factors([*priced.values()], [*measured.values()])
    lines += [f"{title}: seconds times {factor:.2f}" for title, factor in factors.items()]
    return "\n".join(lines) + "\n"


def _factors(priced: list[Parts], measured: list[dict[str, float]]) -> dict[str, float]:
    """For each part that takes seconds beside those of voxels, the median over pairs of the two."""
    found: dict[str, list[float]] = defaultdict(list)
    for parts, seconds in zip(priced, measured, strict=True):
        for title, (beside, voxels) in parts.items():
            if beside and title in seconds:
                found[title].append(max(0.0, seconds[title] - voxels) / beside)
    return {title: median(ratios) for title, ratios in found.items()}


def _priced(shapes: Sequence[Sequence[int]]) -> Parts:
    """What the plan of a pair of such shapes says of each part."""
    fixed, moving = (
        Image(np.broadcast_to(np.uint16(0), shape), Grid(tuple(shape), (1.0,) * len(shape)))
        for shape in shapes
    )
    plan = itkstream.plan(fixed, moving, resources=_ONE)
    return {
        price.title or price.name: (price.seconds, plan.seconds_of(price) - price.seconds)
        for price in plan.prices
        if price.name != COMPILING
    }


def _open_pair(name: str, folder: Path) -> tuple[Image, Image]:
    if name == "demo":
        pair = make_pair(tutorial_settings())
        return pair.fixed, pair.moving
    if name == "easifish":
        texture = next(path for path in TEXTURES if path.exists()).parents[1]
        name = ",".join(str(texture / f"{which}.n5" / "lowres") for which in ("fix", "mov"))
    if "," in name:
        fixed, moving = map(itkstream.open_image, name.split(","))
        return fixed, moving
    return open_pair(folder, name)


def _run(fixed: Image, moving: Image) -> dict[str, float]:
    times = PartTimes()
    with tempfile.TemporaryDirectory() as folder:
        try:
            itkstream.register(fixed, moving, Path(folder) / "run", resources=_ONE, reporter=times)
        except RegistrationError as error:
            sys.stderr.write(f"{error}\n")
    times.step("after")
    return times.seconds


if __name__ == "__main__":
    main()
