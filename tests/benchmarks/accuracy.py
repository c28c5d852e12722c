"""The accuracy suite: every engine on every case, against the known truth."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, Case, Pair, make_pair
from engines import ENGINES, REFERENCE, install_hint, run_engine

__all__ = ["QUICK_CASES", "Plan", "medians", "run_accuracy", "shortfalls"]

Row = dict[str, Any]
Report = Callable[[Row], None]

QUICK_CASES = ("block", "clean", "anisotropic")
_QUICK_VOXELS = 72
_YARDSTICKS = ("picsl-greedy", "antspyx")
_MEDIANS = (
    *("median", "p95", "seconds", "cpu_seconds", "import_seconds", "warm_up_seconds"),
    *("seconds_ratio", "median_ratio", "p95_ratio"),
)
_IDENTITY = ("case", "seed", "voxels", "fingerprint", "engine", "setting")
_SCORES = ("median", "p95", "max", "folds", "least_jacobian")
_GREATEST = ("max", "folds", "peak_mb", "extra_mb")


@dataclass(frozen=True)
class Plan:
    """What to run.

    Parameters
    ----------
    cases : tuple of Case
        The image pairs.
    runs : tuple of (str, str)
        Engines and settings.
    seeds : tuple of int
        Each case is made with each of them.
    limit : int, optional
        At most so many voxels per axis.
    timeout : float
        Seconds before an engine is stopped.
    earlier : tuple of dict
        Rows of earlier runs, which are added where the images are the same.
    """

    cases: tuple[Case, ...]
    runs: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...] = (101,)
    limit: int | None = None
    timeout: float = 3600.0
    earlier: tuple[Row, ...] = ()

    @classmethod
    def of(
        cls,
        cases: Sequence[str] = (),
        engines: Sequence[str] = (),
        seeds: Sequence[int] = (101,),
        quick: bool = False,
        timeout: float = 3600.0,
    ) -> Plan:
        """A plan from names.

        Parameters
        ----------
        cases : sequence of str
            Names of cases; default all, or a few where `quick`.
        engines : sequence of str
            ``engine`` or ``engine/part of a setting's name``; default all.
        seeds : sequence of int
            Seeds of the cases.
        quick : bool
            Small images.
        timeout : float
            Seconds before an engine is stopped.

        Returns
        -------
        Plan
            Checked.
        """
        names = cases or (QUICK_CASES if quick else tuple(CASES))
        runs = tuple(run for wanted in engines or ENGINES for run in _settings(wanted))
        limit = _QUICK_VOXELS if quick else None
        return cls(tuple(CASES[n] for n in names), runs, tuple(seeds), limit, timeout)


def run_accuracy(plan: Plan, report: Report = lambda row: None) -> Iterator[list[Row]]:
    """Run every engine of a plan on every case.

    Parameters
    ----------
    plan : Plan
        What to run.
    report : callable
        Told each row as it is there.

    Yields
    ------
    list of dict
        For each case and seed a row per engine and setting: errors in fine voxels, folds, least
        Jacobian determinant, seconds, memory, and ratios to the reference engine on the same
        images.
    """
    for case in plan.cases:
        for seed in plan.seeds:
            group = []
            for row in _run_case(case, seed, plan):
                report(row)
                group.append(row)
            group += _recalled(group, plan.earlier)
            _add_ratios(group)
            yield group


def medians(rows: Sequence[Row]) -> list[Row]:
    """One row per case, engine and setting: medians over the seeds, maxima of maxima.

    Parameters
    ----------
    rows : sequence of dict
        From `run_accuracy`.

    Returns
    -------
    list of dict
        In the order of first appearance.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["engine"], row["setting"]), []).append(row)
    merged = []
    for (case, engine, setting), members in groups.items():
        good = [m for m in members if "error" not in m]
        row: Row = {"case": case, "engine": engine, "setting": setting, "seeds": len(good)}
        if not good:
            merged.append(row | {"error": members[0]["error"]})
            continue
        row["voxels"] = good[0]["voxels"]
        row |= {k: float(np.median([m[k] for m in good])) for k in _MEDIANS if k in good[0]}
        row |= {k: max(m[k] for m in good) for k in _GREATEST if k in good[0]}
        row["least_jacobian"] = min(m["least_jacobian"] for m in good)
        merged.append(row)
    return merged


def shortfalls(merged: Sequence[Row], tolerance: float = 0.005) -> list[str]:
    """Where itkstream's pipeline setting is behind the better of picsl-greedy and ANTs.

    Parameters
    ----------
    merged : sequence of dict
        From `medians`.
    tolerance : float
        Voxels that count as equal.

    Returns
    -------
    list of str
        A line per case and statistic.
    """
    lines = []
    for case in dict.fromkeys(row["case"] for row in merged):
        rows = [r for r in merged if r["case"] == case and "error" not in r]
        own = [r for r in rows if (r["engine"], r["setting"]) == ("itkstream", "pipeline")]
        peers = [r for r in rows if r["engine"] in _YARDSTICKS]
        for statistic in ("median", "p95") if own and peers else ():
            best = min(peers, key=lambda r: r[statistic])
            if own[0][statistic] > best[statistic] + tolerance:
                lines.append(
                    f"{case}: {statistic} {own[0][statistic]:.3f}, "
                    f"{best['engine']} {best['setting']} has {best[statistic]:.3f}"
                )
    return lines


def _settings(wanted: str) -> list[tuple[str, str]]:
    engine, _, part = wanted.partition("/")
    return [(engine, name) for name in ENGINES[engine].settings if part in name]


def _run_case(case: Case, seed: int, plan: Plan) -> Iterator[Row]:
    pair = make_pair(case, seed, plan.limit)
    about = {
        "case": case.name,
        "seed": seed,
        "voxels": pair.fixed.size,
        "fingerprint": pair.fingerprint,
    }
    yield about | {"engine": "none", "setting": "before"} | _scored(pair, np.zeros_like(pair.truth))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "fixed.npy", pair.fixed)
        np.save(folder / "moving.npy", pair.moving)
        np.save(folder / "spacing.npy", pair.spacing)
        for engine, setting in plan.runs:
            row = about | {"engine": engine, "setting": setting}
            yield row | _measured(pair, folder, engine, setting, plan.timeout)


def _recalled(group: list[Row], earlier: Sequence[Row]) -> Iterator[Row]:
    """What earlier runs found on the very images of a group, by engines that are not in it.

    Times and memory are left out: those of another run compare with nothing here.
    """
    known = {(row["engine"], row["setting"]) for row in group}
    fingerprint = group[0]["fingerprint"]
    for row in earlier:
        same = row.get("fingerprint") == fingerprint
        if same and "error" not in row and (row["engine"], row["setting"]) not in known:
            known.add((row["engine"], row["setting"]))
            yield {key: row[key] for key in (*_IDENTITY, *_SCORES)}


def _measured(pair: Pair, folder: Path, engine: str, setting: str, timeout: float) -> Row:
    if not ENGINES[engine].installed:
        return {"error": install_hint(engine)}
    result = run_engine(engine, setting, folder, timeout)
    if "error" in result:
        return result
    return result | _scored(pair, np.load(folder / "displacement.npy"))


def _scored(pair: Pair, displacement: Any) -> Row:
    score = asdict(pair.score(displacement))
    score["max"] = score.pop("greatest")
    return score


def _add_ratios(group: list[Row]) -> None:
    reference = next(
        (r for r in group if (r["engine"], r["setting"]) == REFERENCE and "error" not in r), None
    )
    if reference is None:
        return
    for row in group:
        for key in ("seconds", "median", "p95"):
            if key in row and key in reference:
                row[key + "_ratio"] = row[key] / reference[key]
