"""Verdicts on seeded pairs of known truth: whether a bad result is ever called good.

    python tests/benchmarks/verdicts.py [--seeds 1] [--kinds good torn ...] [--cache FOLDER]
        [--out resources]

Each pair is registered with the default steps, and the evidence kept in the cache, so that a run
that was interrupted goes on; the verdict is judged from the evidence each time. A result is bad
where more than a fifth of the tissue that both images show lies more than five voxels off, or
where no answer is right; good where 95 % lie within two voxels, and no tissue was replaced; else
between. No bad one may be called good, no good one failed, and at most one in ten good ones "look".
A registration that refuses the pair counts as failed. Empty the cache when a step has changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from error_map import RESOURCES
from numpy.typing import NDArray
from verdict_pairs import KINDS, Case, Pair, list_cases, make_pair

import itkstream
from itkstream.errors import RegistrationError
from itkstream.geometry import Grid
from itkstream.judge.verdict import Evidence, Verdict, judge
from itkstream.numerics.sampling.mapping import affine_part

__all__ = ["bars_of", "judge_case", "main", "table_of"]

_FAR_VOX, _FAR_SHARE, _NEAR_VOX = 5.0, 0.2, 2.0
_OUTCOMES = ("good", "look", "failed")

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge pairs of some kinds, print a line for each, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/itkstream-verdicts"))
    parser.add_argument("--out", type=Path, default=RESOURCES)
    given = parser.parse_args(arguments)
    rows = []
    for case in list_cases(given.seeds, given.kinds):
        rows.append(judge_case(case, given.cache))
        sys.stdout.write(_line(rows[-1]))
        sys.stdout.flush()
    given.out.mkdir(parents=True, exist_ok=True)
    text = table_of(rows)
    (given.out / "verdicts.md").write_text(text)
    sys.stdout.write(text)


def judge_case(case: Case, cache: Path) -> Row:
    """Judge what is in the cache of a case, or register it before."""
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{case.name}.json"
    if not file.exists():
        found = measure_case(make_pair(case))
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.replace(file)
    row = asdict(case) | json.loads(file.read_text())
    if "evidence" not in row:
        return row | {"outcome": "failed", "reasons": [row["refused"]], "regions": []}
    verdict = _judged(row["evidence"])
    return row | {
        "outcome": verdict.outcome,
        "reasons": verdict.reasons,
        "regions": verdict.regions,
    }


def measure_case(pair: Pair) -> Row:
    """Register a pair with the defaults: what is true, and the evidence, or why it was refused."""
    began = time.perf_counter()
    settings = itkstream.RegisterSettings(report=False)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = itkstream.register(
                pair.fixed,
                pair.moving,
                Path(folder) / "out",
                settings=settings,
                initial_transform=pair.initial,
            )
        except RegistrationError as error:
            truth = "bad" if pair.places is None else "refused"
            return {"truth": truth, "refused": str(error).split("\n")[0]}
        errors = pair.error_vox(found.transform)
        evidence = _evidence(pair, found)
    seen = ~np.isnan(errors)
    inside = _within(found.verdict, pair.points)
    shares = {
        "far_in_regions": _share(inside[seen & (errors > _FAR_VOX)]),
        "near_in_regions": _share(inside[seen & (errors < _NEAR_VOX)]),
    }
    seconds = round(time.perf_counter() - began, 1)
    return {
        **_truth(errors[seen], pair.is_whole),
        **shares,
        "evidence": evidence,
        "seconds": seconds,
    }


def _within(verdict: Verdict, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points lie in a region of a verdict."""
    inside = np.zeros(len(points), bool)
    for region in verdict.regions:
        low, high = np.transpose(region.box_um)
        inside |= ((points >= low) & (points <= high)).all(axis=-1)
    return inside


def _share(true: NDArray[np.bool_]) -> float | None:
    return round(float(true.mean()), 3) if true.size else None


def _evidence(pair: Pair, found: itkstream.Registration) -> Row:
    """What `judge` goes by, as JSON."""
    grid, report = pair.fixed.grid, found.facts
    return {
        "grid": [grid.shape, grid.spacing, grid.origin],
        "matrix": affine_part(found.transform).matrix.tolist(),
        "overlap": found.verdict.overlap,
        "steps": report["steps"],
        "certificate": report["certificate"],
        "error": report["error"],
    }


def _judged(evidence: Row) -> Verdict:
    grid = Grid(*(tuple(values) for values in evidence["grid"]))
    rest = {name: value for name, value in evidence.items() if name != "grid"}
    return judge(Evidence(grid, **rest | {"matrix": np.array(evidence["matrix"])}))


def _truth(errors: NDArray[np.float64], is_whole: bool) -> Row:
    """Bad, good or between, by true errors in voxels; bad where no answer is right."""
    if not np.isfinite(errors).any():
        return {"truth": "bad"}
    far, p95 = float((errors > _FAR_VOX).mean()), float(np.percentile(errors, 95))
    name = "bad" if far > _FAR_SHARE else "good" if is_whole and p95 < _NEAR_VOX else "between"
    return {"truth": name, "far": round(far, 3), "p95": round(p95, 2)}


def bars_of(rows: Iterable[Row]) -> dict[str, int]:
    """Count what the bars are about.

    Parameters
    ----------
    rows : iterable of dict
        With 'truth' and 'outcome'.

    Returns
    -------
    dict of str to int
        All 'good' and 'bad' ones; of the good ones, 'looked' and 'failed'; 'missed' bad ones.
    """
    counts = Counter((row["truth"], row["outcome"]) for row in rows)
    return {
        "good": sum(counts["good", outcome] for outcome in _OUTCOMES),
        "looked": counts["good", "look"],
        "failed": counts["good", "failed"],
        "bad": sum(counts["bad", outcome] for outcome in _OUTCOMES),
        "missed": counts["bad", "good"],
    }


def table_of(rows: Sequence[Row]) -> str:
    """Say which verdicts were given, kind by kind.

    Parameters
    ----------
    rows : sequence of dict
        With 'kind', 'texture', 'seed', 'truth' and 'outcome', and reasons.

    Returns
    -------
    str
        A table in Markdown, what the bars count, and the cases that are not as they should be.
    """
    lines = ["| kind | truth | pairs | good | look | failed |", "|---|---|---|---|---|---|"]
    counts = Counter((row["kind"], row["truth"], row["outcome"]) for row in rows)
    for kind in KINDS:
        for truth in ("good", "between", "bad", "refused"):
            found = [counts[kind, truth, outcome] for outcome in _OUTCOMES]
            if sum(found):
                lines.append(f"| {kind} | {truth} | {sum(found)} | {' | '.join(map(str, found))} |")
    bars = bars_of(rows)
    lines += [
        "",
        f"{len(rows)} pairs. Of {bars['bad']} bad results {bars['missed']} are called good; of "
        f"{bars['good']} good ones {bars['failed']} failed and {bars['looked']} look.",
    ]
    odd = [row for row in rows if _is_odd(row)]
    if odd:
        lines += ["", *(f"- {_line(row).rstrip()}" for row in odd)]
    return "\n".join(lines) + "\n"


def _is_odd(row: Row) -> bool:
    return (
        row["outcome"] != "good"
        if row["truth"] == "good"
        else (row["truth"] == "bad" and row["outcome"] == "good")
    )


def _line(row: Row) -> str:
    """One case in words."""
    case = f"{row['kind']}, {row['texture']}, seed {row['seed']}"
    off = f", 95 % within {row['p95']} voxels" if "p95" in row else ""
    return f"{case}: {row['truth']}{off}, called {row['outcome']}: {'; '.join(row['reasons'])}\n"


if __name__ == "__main__":
    main()
