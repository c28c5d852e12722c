"""Try the error map on pairs that its table was not fitted on; write a table and a figure.

    python tests/benchmarks/error_map.py [--seeds 12 13 ...] [--cache FOLDER] [--out resources]

Textures of other makes, and parts of real images where these lie beside the repository; kinds as in
`error_pairs`. Of each kind: the share of tissue voxels whose true error is within their radius, and
that of which nothing is said; medians over the pairs of the median radius and of the 95th
percentile of true errors, in voxels. Below: the area under the ROC curve for "more than two voxels
off", and the ratio of these two numbers on pairs that a good registration is expected of.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from error_examples import Example, Judgement, judge, load_examples, roc_area
from error_pairs import KINDS, REAL_FOLDER, REAL_TEXTURES, UNSEEN_TEXTURES, list_recipes
from matplotlib.figure import Figure

from itkstream.numerics.evidence.radius import RadiusTable, load_table

__all__ = ["main", "table_of"]

RESOURCES = Path(__file__).resolve().parents[2] / "resources"
GOOD = ("good", "strong", "noisy", "half", "remapped")
"""Kinds of which a good registration is expected."""

_REAL_KINDS = ("good", "strong", "noisy", "torn", "undeformed")
_REAL_SEEDS = (12, 20)  # Of volumes.
_OFF_VOX = 2.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pairs that are not there, and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=range(12, 24))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/itkstream-error"))
    parser.add_argument("--out", type=Path, default=RESOURCES)
    given = parser.parse_args(arguments)
    drawn = list_recipes(UNSEEN_TEXTURES, given.seeds)
    examples = list(load_examples(drawn, given.cache / "unseen"))
    if REAL_FOLDER.exists():
        real = [r for r in list_recipes(REAL_TEXTURES, _REAL_SEEDS) if r.kind in _REAL_KINDS]
        examples += load_examples(real, given.cache / "real")
    table = load_table()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "error_map.md").write_text(table_of(examples, table))
    _draw(examples, table, given.out / "error_map.png")


def table_of(examples: Sequence[Example], table: RadiusTable) -> str:
    """Say how true the radii are, kind by kind.

    Parameters
    ----------
    examples : sequence of Example
        Not those of the fit.
    table : RadiusTable
        By which radii are foretold.

    Returns
    -------
    str
        A table in Markdown, and two lines.
    """
    lines = [
        "| kind | pairs | within the radius | unknown | median radius | true 95th percentile |",
        "|---|---|---|---|---|---|",
    ]
    judged = [(e, judge(e, table)) for e in examples]
    for kind in KINDS:
        of_kind = [j for e, j in judged if e.kind == kind]
        if of_kind:
            lines.append(f"| {kind} | {len(of_kind)} | {_row(of_kind)} |")
    real = [j for e, j in judged if e.texture in REAL_TEXTURES]
    if real:
        lines.append(f"| parts of real images (also above) | {len(real)} | {_row(real)} |")
    scores, off = _pooled(examples, table)
    ratios = [j.ratio for e, j in judged if e.kind in GOOD and j.true_p95 < _OFF_VOX]
    low, middle, high = np.percentile(ratios, (5, 50, 95))
    return "\n".join(
        [
            *lines,
            "",
            f"Area under the ROC curve for more than 2 voxels off, all {len(examples)} pairs: "
            f"{roc_area(scores, off):.3f}.",
            f"Median radius over true 95th percentile, {len(ratios)} good pairs: {middle:.2f} "
            f"(5 to 95 % of them: {low:.2f} to {high:.2f}).",
            "",
        ]
    )


def _row(judged: Sequence[Judgement]) -> str:
    columns = [
        f"{np.mean([j.covered for j in judged]):.3f}",
        f"{np.mean([j.unknown for j in judged]):.3f}",
        f"{np.nanmedian([j.median_radius for j in judged]):.2f}",
        f"{np.median([j.true_p95 for j in judged]):.2f}",
    ]
    return " | ".join(columns)


def _pooled(
    examples: Sequence[Example], table: RadiusTable
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Radii of all voxels, and whether they are more than two voxels off."""
    scores = np.concatenate([e.radii(table) for e in examples])
    return scores, np.concatenate([e.error for e in examples]) > _OFF_VOX


def _draw(examples: Sequence[Example], table: RadiusTable, file: Path) -> None:
    """Draw what share is within its radius, kind by kind, and true errors over radii."""
    mpl.use("Agg")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    first, second = figure.subplots(1, 2)
    for place, kind in enumerate(KINDS):
        covered = [judge(e, table).covered for e in examples if e.kind == kind]
        first.plot([place] * len(covered), covered, ".", color="0.6")
        first.plot(place, np.mean(covered), "D", color="tab:blue")
    first.axhspan(0.9, 0.99, color="tab:green", alpha=0.15)
    first.set_xticks(range(len(KINDS)), KINDS, rotation=40, ha="right")
    first.set_ylabel("share within the radius")
    first.set_title("pairs (dots) and means of kinds")
    radii = np.concatenate([e.radii(table) for e in examples])
    errors = np.concatenate([e.error for e in examples])
    bins = np.geomspace(0.1, 100, 25)
    which = np.digitize(radii, bins)
    for quantile, style in ((50, ":"), (90, "--"), (95, "-")):
        heights = [
            np.percentile(errors[which == k], quantile) if (which == k).sum() > 50 else np.nan
            for k in range(1, len(bins))
        ]
        second.loglog(np.sqrt(bins[1:] * bins[:-1]), heights, style, label=f"{quantile} %")
    second.loglog(bins[[0, -1]], bins[[0, -1]], color="0.7")
    second.set_xlabel("radius, voxels")
    second.set_ylabel("true error, voxels")
    second.set_title("quantiles of true errors by radius")
    second.legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
