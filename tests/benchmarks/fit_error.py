"""Fit the table of the error map on seeded pairs, and write it beside the code.

    python tests/benchmarks/fit_error.py [--seeds 0 2] [--cache FOLDER] [--out FILE]

The radius is in proportion to ``bound``; by how much is foretold by the other evidence. The
logarithm is a sum of functions that never fall, straight between knots at quantiles of the
evidence: their heights are found by quantile regression, every pair alike. Fitted on nuclei,
membranes and mottled tissue; ``error_map.py`` tries it on others, with seeds of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from error_examples import Example, load_examples
from error_pairs import FIT_TEXTURES, list_recipes
from numpy.typing import NDArray
from scipy.optimize import minimize

from itkstream.numerics.evidence import radius
from itkstream.numerics.evidence.radius import EVIDENCE, RadiusTable

__all__ = ["fit_table", "main"]

TABLE = Path(radius.__file__).with_name("radius.json")

# A little above 0.95: other textures are not as well foretold as those of the fit.
_QUANTILE = 0.953
_KNOTS = (0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.98)
# Where radii grow as this does: it lies between these.
_STEADY, _SPAN = "bound", (-4.0, 5.0)
_SAMPLES = 600
# Errors below so much of a voxel are taken for it; the kink of the loss is as wide as _SOFT.
_LEAST_VOX, _SOFT = 0.02, 0.05
# What a unit of height costs, so that evidence that tells nothing new is left out.
_COST = 2e-4
_LEAST_HEIGHT = 0.02


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--cache", type=Path, default=Path("/tmp/itkstream-error/fit"))
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args(arguments)
    recipes = list_recipes(FIT_TEXTURES, given.seeds)
    table = fit_table(list(load_examples(recipes, given.cache)))
    given.out.write_text(table.to_json())


def fit_table(examples: Sequence[Example]) -> RadiusTable:
    """Fit a table on examples, as many voxels of each.

    Parameters
    ----------
    examples : sequence of Example
        Of all kinds.

    Returns
    -------
    RadiusTable
        The 95th percentile of errors, and a little more.
    """
    rng = np.random.default_rng(0)
    rows, errors = [], []
    for example in examples:
        evidence, error = example.at_voxels(), example.error
        known = np.flatnonzero(np.isfinite(evidence).all(axis=1))
        picked = rng.permutation(known)[:_SAMPLES]
        rows.append(evidence[picked])
        errors.append(error[picked])
    evidence = np.concatenate(rows).astype(float)
    steady = EVIDENCE.index(_STEADY)
    goals = np.log(np.maximum(np.concatenate(errors), _LEAST_VOX)) - evidence[:, steady]
    evidence = np.delete(evidence, steady, axis=1)
    knots = [np.unique(np.quantile(column, _KNOTS).round(4)) for column in evidence.T]
    heights = _fit_heights(_ramps(evidence, knots), goals)
    functions, taken = {_STEADY: (list(_SPAN), list(_SPAN))}, 1
    for name, places in zip([n for n in EVIDENCE if n != _STEADY], knots, strict=True):
        steps = heights[taken : taken + len(places) - 1]
        taken += len(steps)
        if steps.sum() > _LEAST_HEIGHT:
            functions[name] = (places.tolist(), np.cumsum([0.0, *steps]).tolist())
    return RadiusTable(float(heights[0]), functions)


def _ramps(
    evidence: NDArray[np.float64], knots: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """A column per stretch between knots: 0 before it, 1 behind it."""
    columns = [
        np.clip((column - low) / (high - low), 0, 1)
        for column, places in zip(evidence.T, knots, strict=True)
        for low, high in pairwise(places)
    ]
    return np.stack(columns, axis=1)


def _fit_heights(ramps: NDArray[np.float64], goals: NDArray[np.float64]) -> NDArray[np.float64]:
    """The base, then the rise of each ramp, none negative, of least quantile loss."""
    count = len(goals)

    def loss(heights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        left = goals - heights[0] - ramps @ heights[1:]
        smooth = np.sqrt(left * left + _SOFT * _SOFT)
        total = (0.5 * smooth + (_QUANTILE - 0.5) * left).sum() / count
        slope = (0.5 * left / smooth + (_QUANTILE - 0.5)) / count
        gradient = np.concatenate([[-slope.sum()], _COST - ramps.T @ slope])
        return total + _COST * heights[1:].sum(), gradient

    start = np.zeros(ramps.shape[1] + 1)
    start[0] = np.median(goals)
    bounds = [(None, None)] + [(0.0, None)] * ramps.shape[1]
    options = {"maxiter": 2000}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(found.x)


if __name__ == "__main__":
    main()
