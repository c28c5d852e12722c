"""Registered pairs with what the error map goes by: made once, and kept in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from error_pairs import Recipe, register_recipe
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.stats import rankdata

from itkstream.geometry import Grid
from itkstream.judge.error_map import ErrorLattice, evidence_of, look_over
from itkstream.numerics.evidence.radius import EVIDENCE, RadiusTable

__all__ = [
    "Example",
    "Judgement",
    "judge",
    "load_examples",
    "make_examples",
    "read_example",
    "roc_area",
]

Floats = NDArray[np.float32]

# An error is kept of every so many tissue voxels at least, and of so many of them at most, about.
_THINNED, _MOST_KEPT = 17, 12_000


@dataclass(frozen=True, eq=False)
class Example:
    """Evidence at the nodes of a registration, and true errors at some tissue voxels.

    Parameters
    ----------
    kind, texture : str
        Of the pair.
    lattice : ErrorLattice
        Of its fixed image.
    evidence : ndarray, nodes + (k,)
        What `EVIDENCE` lists; NaN where nothing can be said.
    voxels : ndarray, (m, n)
        Fixed voxels.
    error : ndarray, (m,)
        True errors there, in the smallest voxel spacing of the level that is looked at.
    scale : float
        Of `WideEvidence`.
    """

    kind: str
    texture: str
    lattice: ErrorLattice
    evidence: Floats
    voxels: NDArray[np.intp]
    error: Floats
    scale: float = 1.0

    def radii(self, table: RadiusTable) -> Floats:
        """Radii at the voxels, in the same unit; NaN where nothing can be said."""
        steps = np.array(self.lattice.steps)
        index = (self.voxels - (steps - 1) / 2) / steps
        radii = table.radius(self.evidence, self.lattice.extent, self.scale)
        known = np.isfinite(radii)
        parts = [np.where(known, radii, 0), known.astype(np.float32)]
        total, share = (map_coordinates(p, index.T, order=1, mode="nearest") for p in parts)
        own = known[tuple((self.voxels // steps).T)]
        return np.where(own, total / np.maximum(share, 1e-6), np.nan).astype(np.float32)

    def at_voxels(self) -> Floats:
        """Evidence of the node that each voxel belongs to."""
        index = self.voxels // np.array(self.lattice.steps)
        return np.asarray(self.evidence[tuple(index.T)])


@dataclass(frozen=True)
class Judgement:
    """Agreement of the radii of one example with the truth.

    Parameters
    ----------
    covered : float
        Share of voxels whose error is within their radius, or of which nothing is said.
    unknown : float
        Share of which nothing is said.
    median_radius, true_p95 : float
        In voxels of the level.
    """

    covered: float
    unknown: float
    median_radius: float
    true_p95: float

    @property
    def ratio(self) -> float:
        """Median radius over the true 95th percentile."""
        return self.median_radius / self.true_p95


def load_examples(
    recipes: Iterable[Recipe], folder: Path, ratios: Sequence[int] = (0,)
) -> Iterator[Example]:
    """Make examples, or read those that are in a folder.

    Parameters
    ----------
    recipes : iterable of Recipe
        Of the pairs.
    folder : Path
        Where they are kept.
    ratios : sequence of int
        Voxels of the level per voxel of the overview, of each pair; 0 for one as fine as it may be.

    Yields
    ------
    Example
        One per ratio and recipe whose displacement has an inverse.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for recipe in recipes:
        files = [folder / f"{recipe.name}-{ratio}.npz" for ratio in ratios]
        if not all(map(_holds, files)):
            for file, example in zip(files, make_examples(recipe, ratios), strict=False):
                np.savez(
                    file,
                    names=EVIDENCE,
                    evidence=example.evidence,
                    voxels=example.voxels.astype(np.int32),
                    error=example.error,
                    scale=example.scale,
                )
        for file in filter(Path.exists, files):
            yield read_example(file, recipe)


def make_examples(recipe: Recipe, ratios: Sequence[int] = (0,)) -> Iterator[Example]:
    """Make a pair, register it, and look at it by overviews of several ratios.

    Parameters
    ----------
    recipe : Recipe
        Of the pair.
    ratios : sequence of int
        As for `load_examples`.

    Yields
    ------
    Example
        One per ratio; none where the displacement has no inverse.
    """
    try:
        pair = register_recipe(recipe)
    except RuntimeError:
        return
    lattice = ErrorLattice.of(pair.fixed.grid)
    seen = np.argwhere(pair.tissue & np.isfinite(pair.error))
    voxels = seen[:: max(_THINNED, len(seen) // _MOST_KEPT)]
    error = pair.error[tuple(voxels.T)] / np.float32(lattice.voxel)
    for ratio in ratios:
        size = {"most_voxels": pair.fixed.grid.size / ratio**pair.fixed.ndim} if ratio else {}
        overview = look_over(pair.fixed, pair.moving, pair.transform, **size)
        evidence = evidence_of(pair.fixed, pair.moving, pair.transform, overview)
        scale = overview.scale(lattice.voxel)
        yield Example(recipe.kind, recipe.texture, lattice, evidence, voxels, error, scale)


def _holds(file: Path) -> bool:
    """Whether a file is there, with the evidence that is wanted."""
    if not file.exists():
        return False
    found = np.load(file)
    return "names" in found and tuple(found["names"]) == EVIDENCE


def read_example(file: Path, recipe: Recipe) -> Example:
    """Read an example from its file.

    Parameters
    ----------
    file : Path
        As `load_examples` writes it.
    recipe : Recipe
        Of the pair.

    Returns
    -------
    Example
        As it was made.
    """
    found = np.load(file)
    return Example(
        recipe.kind,
        recipe.texture,
        ErrorLattice.of(Grid(recipe.shape, recipe.spacing)),
        found["evidence"],
        found["voxels"].astype(np.intp),
        found["error"],
        float(found["scale"]),
    )


def judge(example: Example, table: RadiusTable) -> Judgement:
    """Compare the radii of an example with its true errors.

    Parameters
    ----------
    example : Example
        Which.
    table : RadiusTable
        By which.

    Returns
    -------
    Judgement
        In numbers.
    """
    radii = example.radii(table)
    known = np.isfinite(radii)
    within = ~known | (example.error <= radii)
    return Judgement(
        float(within.mean()),
        float(1 - known.mean()),
        float(np.median(radii[known])) if known.any() else float("nan"),
        float(np.percentile(example.error, 95)),
    )


def roc_area(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive scores higher than a negative.

    Parameters
    ----------
    scores : ndarray, (m,)
        The higher, the likelier; NaN is the highest.
    positive : ndarray of bool, (m,)
        What is true.

    Returns
    -------
    float
        0.5 for chance, 1 for perfect; NaN where all are of one kind.
    """
    ranks = rankdata(np.where(np.isfinite(scores), scores, np.inf))
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return float("nan")
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))
