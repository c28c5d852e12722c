"""Measure spots of a synthetic experiment: in the right cell or not, and what long tables take.

    python tests/benchmarks/spots.py cells [SEED ...]
    python tests/benchmarks/spots.py rows [MILLIONS]

- cells: `itkstream.phantoms.make_experiment` of each seed, default 0, is registered, its tables are
  moved and counted. Of the spots that are truly in a cell of the reference's image, the share whose
  moved place is in that cell; the same of the true places, which tells what the voxels of the
  labels cost; and how far spots are off. Spots that are said to lie outside count as wrong.
- rows: seconds and peak memory of a process that moves so many million spots, default 10, of the
  third round, through its field and with its map of the error.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from itkstream import RegisterSettings, count_spots, move_spots, register_rounds
from itkstream.apply.points import nearest_values
from itkstream.phantoms import ExperimentSettings, PhantomExperiment, make_experiment

__all__ = ["CellScore", "measure_cells", "measure_rows"]

BAR = 0.98
"""Least share of spots in cells that are to be assigned to the right one."""

_RUN = """
import json, resource, sys, time
import itkstream
began = time.perf_counter()
itkstream.move_spots(sys.argv[1], {"round3": sys.argv[2]}, overwrite=True)
seconds = time.perf_counter() - began
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3]))
"""


@dataclass(frozen=True)
class CellScore:
    """Spots of a round: how many, which share is in the right cell, and how far they are off.

    `exact` is the share that the true places reach, `median_um` and `p95_um` are of those that the
    transform reaches; `outside` is a share of all that are truly in a cell.
    """

    name: str
    spots: int
    right: float
    exact: float
    outside: float
    median_um: float
    p95_um: float


def measure_cells(
    folder: Path, settings: ExperimentSettings, **registration: Any
) -> tuple[list[CellScore], float]:
    """Register an experiment, move its spots and count them.

    Gives a score for each round, and the share of the counts by cell and gene that agree with those
    of the true cells: spots counted in the right place of the table, of all that should be.
    """
    made = make_experiment(settings)
    files = made.write(folder / "made")
    images = [files / f"{each.name}.ome.zarr" for each in made.rounds]
    out = folder / "experiment"
    quick = RegisterSettings(report=False)
    register_rounds(images, out, channel="DAPI", settings=quick, **registration)
    move_spots(out, sorted((files / "spots").glob("*.csv")))
    counts = count_spots(out, files / "labels.ome.zarr")
    scores = [_score(made, number, out) for number in range(len(made.rounds))]
    return scores, _agreement(made, counts)


def _score(made: PhantomExperiment, number: int, out: Path) -> CellScore:
    each = made.rounds[number]
    places, outside = _moved(out / "spots" / f"{each.name}.csv")
    true = each.spots.cells * made.labels.grid.contains(each.spots.reference)
    asked = true > 0
    found = np.where(outside, 0, nearest_values(made.labels, places)[0])
    exact = nearest_values(made.labels, each.spots.reference)[0]
    away = np.linalg.norm(places - each.spots.reference, axis=1)[asked & ~outside]
    return CellScore(
        each.name,
        int(asked.sum()),
        float((found == true)[asked].mean()),
        float((exact == true)[asked].mean()),
        float(outside[asked].mean()),
        float(np.median(away)),
        float(np.percentile(away, 95)),
    )


def _moved(path: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    places = np.array([[float(row[f"{axis}_um"]) for axis in "xyz"] for row in rows])
    return places, np.array([row["outside"] == "1" for row in rows])


def _agreement(made: PhantomExperiment, counts: Any) -> float:
    """Share of the spots in cells that are in the table in the right row and column."""
    true = np.zeros(counts.counts.shape, int)
    for each in made.rounds:
        inside = made.labels.grid.contains(each.spots.reference)
        known = np.isin(each.spots.cells, counts.cells) & inside
        rows = np.searchsorted(counts.cells, each.spots.cells[known])
        np.add.at(true, (rows, each.spots.channels[known] - 1), 1)
    return float(np.minimum(true, counts.counts.toarray()).sum() / true.sum())


def measure_rows(folder: Path, count: int) -> tuple[float, float, float]:
    """Seconds and peak MB of moving `count` spots, and the peak of moving a single one."""
    made = make_experiment()
    files = made.write(folder / "made")
    images = [files / f"{name}.ome.zarr" for name in ("round1", "round3")]
    out = folder / "experiment"
    register_rounds(images, out, channel="DAPI", settings=RegisterSettings(report=False))
    points = made.rounds[2].spots.points
    found = []
    for rows in (1, count):
        table = folder / f"{rows}.csv"
        _write_many(table, points, rows)
        words = [sys.executable, "-c", _RUN, str(out), str(table)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return found[1][0], found[1][1], found[0][1]


def _write_many(path: Path, points: NDArray[np.float64], rows: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("x_um,y_um,z_um,gene,intensity\n")
        for start in range(0, rows, 100_000):
            some = points[rng.integers(0, len(points), min(100_000, rows - start))]
            some = some + rng.normal(0, 0.5, some.shape)
            file.writelines(f"{x:.4f},{y:.4f},{z:.4f},GeneA,{1000 * x:.2f}\n" for x, y, z in some)


def _tell_cells(console: Console, seeds: Sequence[int]) -> None:
    table = Table(
        "seed", "round", "spots", "right", "true places", "outside", "median µm", "p95 µm"
    )
    worst = 1.0
    for seed in seeds:
        settings = ExperimentSettings()
        settings = replace(settings, tissue=replace(settings.tissue, seed=seed))
        with tempfile.TemporaryDirectory() as name:
            scores, agreement = measure_cells(Path(name), settings)
        total = sum(score.spots for score in scores[1:])
        right = sum(score.right * score.spots for score in scores[1:]) / total
        for s in scores:
            shares = (f"{100 * share:.2f} %" for share in (s.right, s.exact, s.outside))
            lengths = (f"{um:.3f}" for um in (s.median_um, s.p95_um))
            table.add_row(str(seed), s.name, str(s.spots), *shares, *lengths)
        table.add_row(str(seed), "moved", str(total), f"{100 * right:.2f} %")
        table.add_row(str(seed), "in the table", "", f"{100 * agreement:.2f} %")
        worst = min(worst, right)
    console.print(table)
    console.print(f"least share {100 * worst:.2f} %, bar {100 * BAR:.0f} %")


def main(arguments: Sequence[str]) -> None:
    """Measure what is asked for, and print it."""
    console = Console()
    suite, *rest = arguments or ["cells"]
    if suite == "cells":
        _tell_cells(console, [int(seed) for seed in rest] or [0])
        return
    count = int(1e6 * float(rest[0] if rest else 10))
    with tempfile.TemporaryDirectory() as name:
        seconds, peak, least = measure_rows(Path(name), count)
    console.print(f"{count} spots: {seconds:.0f} s, {peak:.0f} MB; a single one: {least:.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
