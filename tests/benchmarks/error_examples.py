"""Registered pairs with what the error map goes by: made once, and kept in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from error_pairs import Recipe, register_recipe
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.stats import rankdata

from itkstream.geometry import Grid, Image, Transform
from itkstream.judge.error_map import ErrorLattice, evidence_of, look_over
from itkstream.numerics.evidence.radius import EVIDENCE, RadiusTable

__all__ = [
    "Example",
    "Judgement",
    "examine",
    "judge",
    "load_examples",
    "read_example",
    "roc_area",
]

Floats = NDArray[np.float32]

# Every how many tissue voxels an error is kept.
_THINNED = 17


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
    """

    kind: str
    texture: str
    lattice: ErrorLattice
    evidence: Floats
    voxels: NDArray[np.intp]
    error: Floats

    def radii(self, table: RadiusTable) -> Floats:
        """Radii at the voxels, in the same unit; NaN where nothing can be said."""
        steps = np.array(self.lattice.steps)
        index = (self.voxels - (steps - 1) / 2) / steps
        radii = np.minimum(table.radius(self.evidence), self.lattice.extent)
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


def load_examples(recipes: Iterable[Recipe], folder: Path) -> Iterator[Example]:
    """Make examples, or read those that are in a folder.

    Parameters
    ----------
    recipes : iterable of Recipe
        Of the pairs.
    folder : Path
        Where they are kept.

    Yields
    ------
    Example
        One per recipe whose displacement has an inverse.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for recipe in recipes:
        file = folder / f"{recipe.name}.npz"
        if not _holds(file):
            try:
                pair = register_recipe(recipe)
            except RuntimeError:
                continue
            example = examine(pair.fixed, pair.moving, pair.transform)
            keep = pair.tissue & np.isfinite(pair.error)
            voxels = np.argwhere(keep)[::_THINNED]
            np.savez(
                file,
                names=EVIDENCE,
                evidence=example,
                voxels=voxels.astype(np.int32),
                error=pair.error[tuple(voxels.T)],
            )
        grid = Grid(recipe.shape, recipe.spacing)
        yield read_example(file, recipe.kind, recipe.texture, grid)


def _holds(file: Path) -> bool:
    """Whether a file is there, with the evidence that is wanted."""
    if not file.exists():
        return False
    found = np.load(file)
    return "names" in found and tuple(found["names"]) == EVIDENCE


def read_example(file: Path, kind: str, texture: str, grid: Grid) -> Example:
    """Read an example from its file.

    Parameters
    ----------
    file : Path
        As `load_examples` writes it.
    kind, texture : str
        Of the pair.
    grid : Grid
        Of the fixed image.

    Returns
    -------
    Example
        With errors in voxels of the level.
    """
    found = np.load(file)
    lattice = ErrorLattice.of(grid)
    error = found["error"] / np.float32(lattice.voxel)
    voxels = found["voxels"].astype(np.intp)
    return Example(kind, texture, lattice, found["evidence"], voxels, error)


def examine(
    fixed: Image, moving: Image, transform: Transform, most_voxels: float | None = None
) -> Floats:
    """Evidence at the nodes of a registration.

    Parameters
    ----------
    fixed, moving : Image
        In memory.
    transform : Transform
        From fixed to moving points.
    most_voxels : float, optional
        Of the overview.

    Returns
    -------
    ndarray, nodes + (k,)
        As `EVIDENCE` lists it; NaN where nothing can be said.
    """
    size = {} if most_voxels is None else {"most_voxels": most_voxels}
    overview = look_over(fixed, moving, transform, **size)
    return evidence_of(fixed, moving, transform, overview)


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
