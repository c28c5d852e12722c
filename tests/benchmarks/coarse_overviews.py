"""Try the error map where its overview is far coarser than its level, as of gigavoxels it is.

    python tests/benchmarks/coarse_overviews.py [--seeds 0 1] [--ratios 4 8 16] [--out resources]

An overview has 250 thousand voxels at most: those of an image of a gigavoxel are 8 times as long as
those of the level on which blocks are compared, and 16 times for 8 gigavoxels. Planes of 1024 x 960
voxels are looked over as coarsely, by fewer voxels. Of each kind of pair and ratio: the share of
tissue voxels whose true error is within their radius, and the median radius over the 95th
percentile of true errors, in the median of pairs; apart for textures by which the weight of such
overviews was fitted, and for others.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from error_examples import Example, Judgement, examine, judge
from error_map import RESOURCES
from error_pairs import Recipe, register_recipe

from itkstream.judge.error_map import ErrorLattice
from itkstream.numerics.evidence.radius import load_table

__all__ = ["judge_ratios", "main"]

FITTED, OTHERS = ("nuclei", "mottled"), ("membranes", "spheres")
SEEN_KINDS = ("good", "strong", "noisy", "half", "torn", "perturbed", "undeformed")

_SHAPE = (1024, 960)
_THINNED = 97


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pairs, look them over at all ratios, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--out", type=Path, default=RESOURCES)
    given = parser.parse_args(arguments)
    tables = [
        f"{title}: {', '.join(textures)}.\n\n{_table(textures, given.seeds, given.ratios)}"
        for title, textures in (("Fitted on", FITTED), ("Not fitted on", OTHERS))
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "coarse_overviews.md").write_text("\n\n".join(tables) + "\n")


def judge_ratios(recipe: Recipe, ratios: Sequence[int]) -> Iterator[Judgement]:
    """Judge the radii of a pair by overviews whose voxels are so many times as long as its own.

    Parameters
    ----------
    recipe : Recipe
        Of the pair; none where its displacement has no inverse.
    ratios : sequence of int
        In turn.

    Yields
    ------
    Judgement
        One per ratio.
    """
    try:
        pair = register_recipe(recipe)
    except RuntimeError:
        return
    lattice = ErrorLattice.of(pair.fixed.grid)
    voxels = np.argwhere(pair.tissue & np.isfinite(pair.error))[::_THINNED]
    error = pair.error[tuple(voxels.T)] / np.float32(lattice.voxel)
    for ratio in ratios:
        most = pair.fixed.grid.size / ratio**pair.fixed.ndim
        evidence = examine(pair.fixed, pair.moving, pair.transform, most)
        example = Example(recipe.kind, recipe.texture, lattice, evidence, voxels, error)
        yield judge(example, load_table())


def _table(textures: Sequence[str], seeds: Sequence[int], ratios: Sequence[int]) -> str:
    lines = [
        "| kind | pairs | " + " | ".join(f"{r} times: within; ratio" for r in ratios) + " |",
        "|---|---|" + "---|" * len(ratios),
    ]
    for kind in SEEN_KINDS:
        found: dict[int, list[Judgement]] = defaultdict(list)
        for seed in seeds:
            for texture in textures:
                recipe = Recipe(kind, texture, seed, _SHAPE, (1.0, 1.0))
                for ratio, judged in zip(ratios, judge_ratios(recipe, ratios), strict=False):
                    found[ratio].append(judged)
        cells = [
            f"{np.mean([j.covered for j in found[ratio]]):.3f}; "
            f"{np.median([j.ratio for j in found[ratio]]):.2f}"
            for ratio in ratios
        ]
        lines.append(f"| {kind} | {len(found[ratios[0]])} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
