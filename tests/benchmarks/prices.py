"""Measure what each part of a registration takes, beside what its plan says, and fit the rates.

    python tests/benchmarks/prices.py [NAME ...] [--times N] [--out FILE]
    python tests/benchmarks/prices.py --fit FILE

NAME is `demo`, `easifish` (../shared/data/easifish, or resources without it), a pair of
`real_pairs.py`, or two images with a comma between them. Seconds are processor time of this
process, which a busy machine changes little, and the least of N runs of one thread. A first run
compiles; run twice.

A rate of `itkstream.registration.steps.prices` is seconds by voxels of work. `--fit` takes the
median over the pairs of a file, and shows for each pair what the rates of all others say of it.
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

from cases import TEXTURES
from real_pairs import FOLDER, open_pair

import itkstream
from itkstream.errors import RegistrationError
from itkstream.geometry import Image
from itkstream.phantoms import make_pair, tutorial_settings
from itkstream.progress.reporters import LogReporter
from itkstream.registration.steps.prices import RATES
from itkstream.workers import Resources

__all__ = ["fit", "main", "measure"]

_ONE = Resources(threads_per_worker=1, cores=1)
# A pair by name: for each title its kind, work, seconds beside that, and measured seconds.
Measured = dict[str, dict[str, Any]]


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
        line = (
            json.dumps({"pair": name, **measure(_open_pair(name, given.folder), given.times)})
            + "\n"
        )
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
    parts = {
        price.title or price.name: {
            "kind": price.kind,
            "work": price.work,
            "beside": price.seconds,
            "planned": round(plan.seconds_of(price), 2),
        }
        for price in plan.prices
    }
    for title in runs[0]:
        part = parts.setdefault(title, {"kind": "", "work": 0.0, "beside": 0.0, "planned": 0.0})
        part["measured"] = round(min(run.get(title, 0.0) for run in runs), 2)
    return {"shapes": [fixed.grid.shape, moving.grid.shape], "parts": parts}


def fit(pairs: dict[str, Measured]) -> str:
    """Tell the rates, and for each pair the ratio of what all others say to what was measured."""
    lines = ["pair, measured s, ratio of: these rates, rates without it"]
    for name, found in pairs.items():
        others = [other for known, other in pairs.items() if known != name]
        whole = sum(part.get("measured", 0.0) for part in found["parts"].values())
        said = [_priced(found, rates) / whole for rates in (RATES, _rates(others))]
        lines.append(f"{name}, {whole:.0f}, " + ", ".join(f"{ratio:.2f}" for ratio in said))
    lines += [f"{kind}: {rate:.3g}" for kind, rate in _rates(list(pairs.values())).items()]
    return "\n".join(lines) + "\n"


def _rates(pairs: list[Measured]) -> dict[str, float]:
    """The median over pairs of seconds per voxel, of each kind of work."""
    found: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for part in pair["parts"].values():
            if part["kind"] and "measured" in part:
                seconds[part["kind"]][0] += max(0.0, part["measured"] - part["beside"])
                seconds[part["kind"]][1] += part["work"]
        for kind, (taken, work) in seconds.items():
            found[kind].append(taken / work)
    return {kind: median(rates) for kind, rates in found.items()}


def _priced(pair: Measured, rates: dict[str, float]) -> float:
    """Seconds of a pair at some rates."""
    return sum(
        part["beside"] + part["work"] * (rates[part["kind"]] if part["kind"] else 0.0)
        for part in pair["parts"].values()
        if part["work"] or part["beside"]
    )


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
