"""Fit the table of the error map on seeded pairs, and write it beside the code.

    python tests/benchmarks/fit_error.py [--seeds 0 1 ...] [--cache FOLDER] [--out FILE]

First a surface and a curve of what an overview tells that is as fine as those of small images;
then, on larger planes, for each of several coarser ones, which tell less, a surface that adds what
patches nearby tell. All are sums of steps that never fall, found by quantile regression in which
every kind of pair counts alike. Kinds of which too few or too many errors lie within their radius
are then given another quantile and more weight, several times: the radii of a kind are those of
pairs whose texture was left out. Fitted on nuclei, membranes and mottled tissue; ``error_map.py``
and ``coarse_overviews.py`` try it on others, with seeds of their own. 486 pairs take some 25
minutes of a core to make, and the fit a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from coarse_overviews import RATIOS, list_planes
from error_examples import Example, load_examples
from error_pairs import FIT_TEXTURES, list_recipes
from numpy.typing import NDArray
from scipy.optimize import minimize

from itkstream.numerics.evidence import radius
from itkstream.numerics.evidence.radius import EVIDENCE, Curve, RadiusTable, Surface, compress

__all__ = ["fit_table", "main"]

Floats = NDArray[np.float64]

TABLE = Path(radius.__file__).with_name("radius.json")

FIT_SEEDS = (0, 1, 2, 3, *range(100, 108))
COARSE_SEEDS = (0, 1)

# Knots: radii and distances in voxels, disarray and discord in logarithms.
_BOUNDS = np.log([0.03, 0.06, 0.12, 0.25, 0.5, 1, 2, 4, 8, 16])
_ASTRAY = (-7.0, -5.0, -3.0, -1.0, 0.5, 2.0, 3.5)
_DISCORD = (-5.0, -4.0, -3.0, -2.0, -1.0, 0.0)
_RADII = np.log([0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 24])
_NEAR = np.log([0.1, 0.15, 0.25, 0.5, 1, 2, 4])

# Voxels of an example that count; errors below so much of a voxel are taken for it.
_SAMPLES, _LEAST_VOX = 150, 0.02
# The kink of the loss is so wide; what a unit of height costs, so that what tells nothing stays 0.
_SOFT, _COST = 0.05, 2e-4
# Shares within the radius between which a kind is left as it is; a little above those that are
# asked for, 0.90 to 0.99, as other textures are not as well foretold.
_QUANTILE, _FEWEST, _MOST = 0.953, 0.937, 0.962
_ROUNDS, _STEP, _GROWTH, _NEARLY = 8, 0.5, 1.25, 0.01
_QUANTILES = (0.8, 0.99)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=FIT_SEEDS)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/itkstream-error/fit"))
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args(arguments)
    fine = list(load_examples(list_recipes(FIT_TEXTURES, given.seeds), given.cache))
    planes = list_planes(FIT_TEXTURES, COARSE_SEEDS)
    coarse = load_examples(planes, given.cache, RATIOS)
    given.out.write_text(fit_table(fine, list(coarse)).to_json())


def fit_table(fine: Sequence[Example], coarse: Sequence[Example] = ()) -> RadiusTable:
    """Fit a table on examples, as many voxels of each.

    Parameters
    ----------
    fine : sequence of Example
        Of all kinds, with overviews of twice the voxels of the level.
    coarse : sequence of Example
        With coarser ones; a surface is fitted for each scale.

    Returns
    -------
    RadiusTable
        The 95th percentile of errors, more or less by kind.
    """
    rows = _Rows.of(fine)
    wide, discord = _Steps.over(_BOUNDS, _ASTRAY), _Steps.along(_DISCORD)
    bound, astray, apart = map(rows.of_name, ("bound", "astray", "discord"))
    heights = _fit_kinds(rows, np.hstack([wide.at(bound, astray), discord.at(apart)]))
    first, second = np.split(heights[1:], [len(wide.corners)])
    table = RadiusTable(
        Surface((_BOUNDS.tolist(), _ASTRAY), wide.heights(first) + heights[0]),
        Curve(_DISCORD, discord.heights(second)[:, 0].tolist()),
    )
    near = _Steps.over(_RADII, _NEAR)
    found = {}
    for scale in sorted({example.scale for example in coarse}):
        rows = _Rows.of(example for example in coarse if example.scale == scale)
        total = table.from_overview(rows.evidence)
        heights = _fit_kinds(rows, near.at(total, rows.of_name("near")))
        surface = near.heights(heights[1:]) + heights[0]
        found[scale] = Surface((_RADII.tolist(), _NEAR.tolist()), surface)
    return replace(table, near=found)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Evidence and errors at voxels of many pairs, compressed as a table tells them."""

    evidence: Floats
    goals: Floats
    kinds: NDArray[np.str_]
    textures: NDArray[np.str_]

    @classmethod
    def of(cls, examples: Iterable[Example]) -> _Rows:
        """As many voxels of each example, drawn at random."""
        rng = np.random.default_rng(0)
        parts: list[tuple[Floats, Floats, str, str]] = []
        for example in examples:
            evidence = example.at_voxels().astype(float)
            known = np.flatnonzero(np.isfinite(evidence).all(axis=1))
            picked = rng.permutation(known)[:_SAMPLES]
            error = np.maximum(example.error[picked], _LEAST_VOX)
            goals = compress(error, example.lattice.extent)
            parts.append((evidence[picked], goals, example.kind, example.texture))
        counts = [len(goals) for _, goals, _, _ in parts]
        return cls(
            np.concatenate([evidence for evidence, _, _, _ in parts]),
            np.concatenate([goals for _, goals, _, _ in parts]),
            np.repeat([kind for _, _, kind, _ in parts], counts),
            np.repeat([texture for _, _, _, texture in parts], counts),
        )

    def of_name(self, name: str) -> Floats:
        """A column of the evidence."""
        return np.asarray(self.evidence[:, EVIDENCE.index(name)])


@dataclass(frozen=True, eq=False)
class _Steps:
    """Tables of 0 and 1 over knots, none falling along any axis: what never falls is their sum."""

    places: tuple[Sequence[float], Sequence[float]]
    corners: Floats

    @classmethod
    def over(cls, first: Sequence[float], second: Sequence[float]) -> _Steps:
        """Those that rise at a knot of one number, or where both or either has reached one."""
        i, j = np.indices((len(first), len(second)))
        rises = [i >= a for a in range(1, len(first))] + [j >= b for b in range(1, len(second))]
        for a in range(1, len(first)):
            for b in range(1, len(second)):
                rises += [(i >= a) & (j >= b), (i >= a) | (j >= b)]
        return cls((first, second), np.array(rises, float))

    @classmethod
    def along(cls, places: Sequence[float]) -> _Steps:
        """Those of one number."""
        i, _ = np.indices((len(places), 2))
        return cls((places, (0.0, 1.0)), np.array([i >= a for a in range(1, len(places))], float))

    def at(self, x: Floats, y: Floats | None = None) -> Floats:
        """Columns of all of them at pairs of numbers."""
        y = np.zeros_like(x) if y is None else y
        columns = [Surface(self.places, corner).at(x, y) for corner in self.corners]
        return np.stack(columns, axis=1)

    def heights(self, rises: Floats) -> Floats:
        """Their sum, each as high as told."""
        return np.asarray(np.tensordot(rises, self.corners, 1))


def _fit_kinds(rows: _Rows, columns: Floats) -> Floats:
    """The base and the rise of each column that cover all kinds alike."""
    counts = dict(zip(*np.unique(rows.kinds, return_counts=True), strict=True))
    weights = 1 / np.array([counts[kind] for kind in rows.kinds], float)
    quantiles = np.full(len(weights), _QUANTILE)
    folds = [rows.textures == texture for texture in np.unique(rows.textures)]
    for _ in range(_ROUNDS if len(folds) > 1 else 0):
        foretold = np.empty(len(weights))
        for out in folds:
            some = _fit_rises(columns[~out], rows.goals[~out], weights[~out], quantiles[~out])
            foretold[out] = some[0] + columns[out] @ some[1:]
        for kind in counts:
            own = rows.kinds == kind
            share = np.mean(rows.goals[own] <= foretold[own])
            lacking = np.clip(share, _FEWEST, _MOST) - share
            quantiles[own] = np.clip(quantiles[own] + _STEP * lacking, *_QUANTILES)
            weights[own] *= _GROWTH if abs(lacking) > _NEARLY else 1
    return _fit_rises(columns, rows.goals, weights, quantiles)


def _fit_rises(columns: Floats, goals: Floats, weights: Floats, quantiles: Floats) -> Floats:
    """The base, then the rise of each column, none negative, of least quantile loss."""
    weights = weights / weights.sum()

    def loss(rises: Floats) -> tuple[float, Floats]:
        left = goals - rises[0] - columns @ rises[1:]
        smooth = np.sqrt(left * left + _SOFT * _SOFT)
        total = (weights * (0.5 * smooth + (quantiles - 0.5) * left)).sum()
        slope = weights * (0.5 * left / smooth + (quantiles - 0.5))
        gradient = np.concatenate([[-slope.sum()], _COST - columns.T @ slope])
        return float(total + _COST * rises[1:].sum()), gradient

    start = np.zeros(columns.shape[1] + 1)
    start[0] = np.median(goals)
    bounds = [(None, None)] + [(0.0, None)] * columns.shape[1]
    options = {"maxiter": 300, "maxfun": 600}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(found.x)


if __name__ == "__main__":
    main()
