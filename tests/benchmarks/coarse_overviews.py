"""Try the error map where its overview is far coarser than its level, as of gigavoxels it is.

    python tests/benchmarks/coarse_overviews.py [--seeds 2] [--ratios 4 8 16] [--out resources]

An overview has 250 thousand voxels at most: those of an image of a gigavoxel are 8 times as long as
those of the level on which blocks are compared, and 16 times for 8 gigavoxels. Planes of 1024 x 960
voxels are looked over as coarsely, by fewer voxels. Of each kind of pair and ratio: the share of
tissue voxels whose true error is within their radius, and the median radius over the 95th
percentile of true errors, in the median of pairs; of textures on which nothing was fitted.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from error_examples import Judgement, judge, load_examples
from error_map import RESOURCES
from error_pairs import UNSEEN_TEXTURES, Recipe

from itkstream.numerics.evidence.radius import load_table

__all__ = ["RATIOS", "list_planes", "main"]

RATIOS = (4, 8, 16)
"""Voxels of the level per voxel of the overview."""

_KINDS = ("good", "strong", "noisy", "missing", "half", "torn", "perturbed", "undeformed")
_SHAPE = (1024, 960)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pairs that are not there, look them over at all ratios, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2])
    parser.add_argument("--ratios", type=int, nargs="+", default=RATIOS)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/itkstream-error/planes"))
    parser.add_argument("--out", type=Path, default=RESOURCES)
    given = parser.parse_args(arguments)
    planes = list_planes(UNSEEN_TEXTURES, given.seeds)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "coarse_overviews.md").write_text(table_of(planes, given.ratios, given.cache))


def list_planes(textures: Iterable[str], seeds: Iterable[int]) -> list[Recipe]:
    """Name large planes of some kinds.

    Parameters
    ----------
    textures : iterable of str
        Of the pairs.
    seeds : iterable of int
        Each makes a pair of every kind and texture.

    Returns
    -------
    list of Recipe
        In order of kinds, then seeds.
    """
    named = [(k, t, s) for k in _KINDS for s in seeds for t in textures]
    return [Recipe(*name, _SHAPE, (1.0, 1.0)) for name in named]


def table_of(recipes: Iterable[Recipe], ratios: Sequence[int], folder: Path) -> str:
    """Say how true the radii of pairs are by overviews of several ratios.

    Parameters
    ----------
    recipes : iterable of Recipe
        Of the pairs.
    ratios : sequence of int
        Voxels of the level per voxel of the overview.
    folder : Path
        Where examples are kept.

    Returns
    -------
    str
        A table in Markdown.
    """
    found: dict[str, dict[int, list[Judgement]]] = defaultdict(lambda: defaultdict(list))
    for recipe in recipes:
        examples = load_examples([recipe], folder, ratios)
        for ratio, example in zip(ratios, examples, strict=False):
            found[recipe.kind][ratio].append(judge(example, load_table()))
    lines = [
        "| kind | pairs | " + " | ".join(f"{r} times: within; ratio" for r in ratios) + " |",
        "|---|---|" + "---|" * len(ratios),
    ]
    for kind, judged in found.items():
        cells = [
            f"{np.mean([j.covered for j in judged[r]]):.3f}; "
            f"{np.median([j.ratio for j in judged[r]]):.2f}"
            for r in ratios
        ]
        lines.append(f"| {kind} | {len(judged[ratios[0]])} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
