"""Measure itkstream and its peers, side by side on this machine.

    python tests/benchmarks/run.py accuracy|steps|speed|all [--quick] [--out results.json]

`--quick` takes minutes. A whole run takes hours, nearly all of them in ANTs: choose with `--cases`
and `--engines`, such as ``--engines itkstream/pipeline picsl-greedy``.

`pip install itkstream[bench]` brings the peers; those that are missing are named and left out.
Peers take nearly all the time and do not change: ``--earlier peers.json`` adds the errors they had
in an earlier run where the images are the same, bit by bit. Their times are not added.

Images whose contrasts differ: ``accuracy --cases inverted remapped remapped-block remapped-short
--engines itkstream/pipeline itkstream/mind antspyx/mattes``.

``--engine gpu`` runs itkstream on the processors and on a GPU, and nothing else.

Errors are in fine voxels; ratios refer to picsl-greedy NCC 4x4x4 100x50x10 on the same images in
the same run. See cases.py for how the truth is built.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accuracy import Plan, medians, run_accuracy, shortfalls
from cases import CASES, load_texture
from each_step import run_each_step
from engines import ENGINES, REFERENCE
from processes import machine
from rich.console import Console
from rich.table import Table
from speed import TASKS, run_speed

Row = dict[str, Any]

_BY_ENGINE = {
    "cpu": ("itkstream/pipeline",),
    "gpu": ("itkstream/pipeline", "itkstream-gpu"),
}
_ACCURACY = {
    "median": "{:.3f}",
    "p95": "{:.3f}",
    "max": "{:.2f}",
    "folds": "{:d}",
    "least_jacobian": "{:.2f}",
    "seconds": "{:.1f}",
    "seconds_ratio": "{:.2f}",
    "peak_mb": "{:.0f}",
}
_STEPS = {
    **dict.fromkeys(("before", "median", "p95"), "{:.3f}"),
    "folds": "{:d}",
    "seconds": "{:.1f}",
    "cpu_seconds": "{:.1f}",
    "peak_mb": "{:.0f}",
    "dropped": "{}",
}
_SPEED = {"seconds": "{:.2f}", "cpu_seconds": "{:.2f}", "peak_mb": "{:.0f}", "extra_mb": "{:.0f}"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suites that were asked for; print tables and write the results.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default the command line.
    """
    options = _parser().parse_args(arguments)
    console = Console()
    results: Row = {"machine": machine(), "texture": load_texture()[2]}
    console.print_json(data=results["machine"])
    if options.suite in ("accuracy", "all"):
        _run_accuracy(console, options, results)
    if options.suite in ("steps", "all"):
        tell = partial(_tell, console, _STEPS, ("step",))
        size = "quick" if options.quick else "full"
        results["steps"] = run_each_step(options.steps, size, tell, options.timeout)
        _write(options.out, results)
        _show_steps(console, results["steps"])
    if options.suite in ("speed", "all"):
        size = "quick" if options.quick else "large" if options.large else "full"
        tell = partial(_tell, console, _SPEED, ("task", "variant"))
        results["speed"] = run_speed(options.tasks, size, tell, options.timeout)
        _write(options.out, results)
        _show_speed(console, results["speed"])


def _run_accuracy(console: Console, options: argparse.Namespace, results: Row) -> None:
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    engines = _BY_ENGINE.get(options.engine, options.engines)
    plan = Plan.of(options.cases, engines, seeds, options.quick, options.timeout)
    plan = replace(plan, earlier=tuple(row for path in options.earlier for row in _rows_of(path)))
    tell = partial(_tell, console, _ACCURACY, ("case", "engine", "setting"))
    rows: list[Row] = []
    for group in run_accuracy(plan, tell):
        rows += group
        results |= {"reference": REFERENCE, "accuracy": medians(rows), "accuracy_rows": rows}
        # A whole run takes hours: what is there is kept, whatever happens to the rest.
        _write(options.out, results)
    _show_accuracy(console, results["accuracy"])


def _rows_of(path: Path) -> list[Row]:
    return json.loads(path.read_text())["accuracy_rows"]


def _write(path: Path | None, results: Row) -> None:
    if path is not None:
        path.write_text(json.dumps(results, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=("accuracy", "steps", "speed", "all"))
    parser.add_argument("--quick", action="store_true", help="small images, few cases")
    parser.add_argument("--large", action="store_true", help="scaling up to 64 megavoxels")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=(),
        choices=CASES,
        metavar="CASE",
        help=f"of {', '.join(CASES)}",
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        default=(),
        metavar="ENGINE",
        type=_engine,
        help=f"of {', '.join(ENGINES)}; ENGINE/100x50 picks settings by name",
    )
    parser.add_argument(
        "--engine", choices=_BY_ENGINE, help="itkstream alone, on the processors or on both"
    )
    parser.add_argument(
        "--steps", nargs="+", default=(), metavar="STEP", help="parts of names of steps"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=(),
        choices=TASKS,
        metavar="TASK",
        help=f"of {', '.join(TASKS)}",
    )
    parser.add_argument(
        "--earlier",
        nargs="+",
        default=(),
        type=Path,
        metavar="RESULTS",
        help="add errors of other engines on the same images, from the JSON of earlier runs",
    )
    parser.add_argument("--seeds", type=int, default=1, help="pairs per case")
    parser.add_argument("--first-seed", type=int, default=101)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds per measurement")
    return parser


def _engine(name: str) -> str:
    if name.partition("/")[0] not in ENGINES:
        raise argparse.ArgumentTypeError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    return name


def _tell(console: Console, formats: dict[str, str], names: Iterable[str], row: Row) -> None:
    """One line as soon as something is measured."""
    numbers = zip(formats, _cells(row, formats), strict=True)
    text = row.get("error") or ", ".join(f"{key} {value}" for key, value in numbers if value)
    what = " | ".join(str(row[name]) for name in names)
    console.print(f"{what}: {text}", highlight=False, markup=False, soft_wrap=True)


def _cells(row: Row, formats: dict[str, str]) -> list[str]:
    return [form.format(row[key]) if key in row else "" for key, form in formats.items()]


def _show_accuracy(console: Console, merged: Sequence[Row]) -> None:
    table = Table("case", "engine", "setting", *_ACCURACY, title="Accuracy, in fine voxels")
    last = None
    for row in merged:
        if last not in (None, row["case"]):
            table.add_section()
        last = row["case"]
        names = (row["case"], row["engine"], row["setting"])
        numbers = [row["error"]] if "error" in row else _cells(row, _ACCURACY)
        table.add_row(*names, *numbers)
    console.print(table)
    behind = shortfalls(merged)
    console.print(
        "itkstream is behind the better of picsl-greedy and ANTs in:"
        if behind
        else "itkstream is nowhere behind the better of picsl-greedy and ANTs"
    )
    for line in behind:
        console.print(f"  {line}", highlight=False)


def _show_steps(console: Console, rows: Sequence[Row]) -> None:
    table = Table("step", *_STEPS, title="Steps: errors in voxels")
    for row in rows:
        table.add_row(row["step"], *([row["error"]] if "error" in row else _cells(row, _STEPS)))
    console.print(table)


def _show_speed(console: Console, rows: Sequence[Row]) -> None:
    table = Table("task", "variant", *_SPEED, "facts", title="Speed")
    for row in rows:
        facts = [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.items()
            if key not in (*_SPEED, "task", "variant")
        ]
        table.add_row(row["task"], row["variant"], *_cells(row, _SPEED), ", ".join(facts))
    console.print(table)


if __name__ == "__main__":
    main()
