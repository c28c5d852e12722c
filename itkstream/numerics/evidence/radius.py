"""Radius within which the true place lies with 95 % probability, foretold from evidence.

The logarithm of the radius is a sum of functions, one of each piece of evidence, that never fall
where the evidence gets worse. They are straight between knots, and were fitted as the 95th
percentile of true errors on seeded pairs (``tests/benchmarks/fit_error.py`` writes the table).

Roger Koenker and Gilbert Bassett, "Regression quantiles", Econometrica 46 (1978) 33-50,
doi:10.2307/1913643.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, uniform_filter

from itkstream.numerics.evidence.residuals import LEAST_SEEN, MEASURES

__all__ = [
    "EVIDENCE",
    "REACH_NODES",
    "RadiusTable",
    "WideEvidence",
    "describe_nodes",
    "load_table",
    "measure_disarray",
]

Floats = NDArray[np.float32]

EVIDENCE = (
    *("misfit", "margin", "gain", "shift", "twin", "blur"),
    *("misfit_around", "margin_around", "shift_around", "distance"),
    *("misfit_wide", "margin_wide", "shift_wide", "bound", "astray"),
)
"""Names of the evidence at a node, each the greater the worse.

``bound`` is the logarithm of how far two halves of the voxels are from each other and their mean
from the transform. Errors are in proportion to it: their 95th percentile was 0.6 to 1.5 times as
large in every kind of pair but those that are astray as a whole, 3 to 9 times as large there.
``astray`` tells these apart: see `measure_disarray`.
"""

REACH_NODES = 4
"""Nodes around one that its evidence may come from."""

_TABLE = Path(__file__).with_name("radius.json")
# A patch that fits so much better than at far shifts is evidence.
_CLEAR = 0.15
# Radii in voxels that evidence can tell; shuffled slabs and wrong starts are 20 to 120 voxels off,
# and without growth beyond this 76 to 83 % of their voxels lay within their radius.
_SOUGHT = 16.0
# Distances in voxels below which halves do not differ, and the least disarray.
_LEAST_APART, _LEAST_DISARRAY = 0.02, 1e-3
_INDEX = {name: k for k, name in enumerate(MEASURES)}
# Where voxels of the coarse level are more than so many times as large as those of the fit, halves
# differ by noise of these voxels as much as by what is wrong, which patches see on the fine level,
# if it is within their reach: halves tell this power of the share. Fitted on planes of nuclei and
# mottled tissue, 1024 x 960 voxels, seen 8 times as coarsely, and tried on membranes and spheres
# (`tests/benchmarks/coarse_overviews.py`): 91 to 100 % of places of every kind of pair lay within
# their radius, 52 to 99 % where halves were taken for 4 times as coarse, as before. Radii of good
# pairs are 2.0 times the 95th percentile of errors there, 2.6 times were halves to tell all.
_SHARP, _FADES = 4.0, 0.3
# Least of the usual distance at which patches fit best, in voxels.
_LEAST_SHIFT = 0.1


@dataclass(frozen=True, eq=False)
class WideEvidence:
    """Evidence found at nodes on a coarse level.

    Parameters
    ----------
    measures : ndarray, nodes + (m,)
        What `measure_patches` finds; shifts in voxels as large as where the radii were fitted.
    halves : ndarray, nodes + (2,)
        What `compare_halves` finds, in these voxels; NaN where nothing was.
    astray : float
        From `measure_disarray`.
    scale : float
        Voxels of the level per voxel of the fit, at least 1.
    """

    measures: Floats
    halves: Floats
    astray: float
    scale: float = 1.0


def describe_nodes(measures: Floats, wide: WideEvidence, far: float) -> Floats:
    """Evidence at nodes, along a last axis, as `EVIDENCE` lists it.

    `measures` holds what `measure_patches` finds at the nodes, in voxels of their level, and `wide`
    what is known from a coarse one; NaN, where nothing was found, counts as the worst there is.
    `far` is how far shifts reach.
    """
    own = _worst_where_unknown(measures, far)
    coarse = _worst_where_unknown(wide.measures, 4 * far)
    misfit, margin = _misfit(own), _margin(own)
    shift = own[..., _INDEX["shift"]]
    away = distance_transform_edt(margin > -_CLEAR) if (margin > -_CLEAR).any() else 0 * margin
    bound = _bound(wide, shift, far)
    return np.stack(
        [
            misfit,
            margin,
            own[..., _INDEX["best"]] - own[..., _INDEX["fit"]],
            shift,
            own[..., _INDEX["twin"]],
            np.log(own[..., _INDEX["blur"]] + 1e-3),
            *(_around(part) for part in (misfit, margin, shift)),
            np.minimum(away, REACH_NODES),
            _misfit(coarse),
            _margin(coarse),
            coarse[..., _INDEX["shift"]],
            bound,
            np.full_like(bound, wide.astray),
        ],
        axis=-1,
    ).astype(np.float32)


def _bound(wide: WideEvidence, shift: Floats, far: float) -> Floats:
    """Logarithm of how far two halves are apart; on a very coarse level, also of shifts nearby."""
    bound = np.log(_apart(wide.halves, far).sum(axis=-1) + _LEAST_APART)
    if wide.scale <= _SHARP:
        return bound
    near = np.sqrt(_around(shift * shift)) + np.float32(_LEAST_SHIFT)
    share = (_SHARP / wide.scale) ** _FADES
    # Half of the reach tells all, and nothing near its end.
    beyond = np.clip((near - far / 2) / (0.375 * far), 0, 1)
    share = share + (1 - share) * beyond
    return np.asarray(share * bound + (1 - share) * np.log(near), np.float32)


def measure_disarray(wide: Floats, halves: Floats, tissue: NDArray[np.bool_], far: float) -> float:
    """Logarithm of the disarray of a whole image: halves that move apart, and a poor fit.

    The square of the usual distance of two halves times the usual misfit, over nodes of tissue.
    An image that lies wrong has both; one that is torn, slipped or not yet deformed has one.
    """
    seen = wide[..., _INDEX["seen"]] >= LEAST_SEEN
    counts = seen & tissue if (seen & tissue).any() else np.ones_like(seen)
    apart = float(np.median(_apart(halves, far)[counts][:, 0]))
    misfit = float(np.median(_misfit(_worst_where_unknown(wide, 4 * far))[counts]))
    return math.log(max(apart**2 * misfit, 0) + _LEAST_DISARRAY)


def _apart(halves: Floats, far: float) -> Floats:
    """Distances that halves tell; the worst where there are none."""
    return np.where(np.isfinite(halves), halves, np.float32(4 * far))


def _misfit(measures: Floats) -> Floats:
    return np.asarray(1 - measures[..., _INDEX["fit"]])


def _margin(measures: Floats) -> Floats:
    """The lead of far shifts over none."""
    return np.asarray(measures[..., _INDEX["far"]] - measures[..., _INDEX["fit"]])


def _worst_where_unknown(measures: Floats, far: float) -> Floats:
    worst = {
        "fit": 0.0,
        "best": 0.5,
        "shift": far,
        "far": 0.5,
        "spread": 0.2,
        "twin": 1.0,
        "seen": 0.0,
    }
    values = np.array([worst.get(name, 2.0) for name in MEASURES], np.float32)
    return np.where(np.isfinite(measures), measures, values)


def _around(values: Floats) -> Floats:
    """Means of nodes and those that touch them."""
    return uniform_filter(values, 3, mode="nearest")


class RadiusTable:
    """Knots of the functions whose sum is the logarithm of the radius in voxels.

    `functions` maps names of `EVIDENCE` to places and heights of knots.
    """

    def __init__(
        self, base: float, functions: Mapping[str, tuple[list[float], list[float]]]
    ) -> None:
        self.base = base
        self.functions = dict(functions)

    def radius(self, evidence: NDArray[Any]) -> Floats:
        """Radii in voxels from evidence along the last axis; NaN where any of it is."""
        total = np.where(np.isnan(evidence).any(axis=-1), np.nan, self.base)
        for name, (places, heights) in self.functions.items():
            total += np.interp(evidence[..., EVIDENCE.index(name)], places, heights)
        radii = np.exp(total)
        # No patch was sought that far off: the true place may be anywhere, however near by chance.
        return np.where(radii > _SOUGHT, radii**2 / _SOUGHT, radii).astype(np.float32)

    def to_json(self) -> str:
        """Text that `load_table` reads."""
        functions = {
            name: [[round(float(v), 4) for v in row] for row in rows]
            for name, rows in self.functions.items()
        }
        return json.dumps({"base": round(self.base, 4), "functions": functions}, indent=1) + "\n"


@cache
def load_table(path: Path = _TABLE) -> RadiusTable:
    """The fitted table."""
    found = json.loads(path.read_text())
    return RadiusTable(found["base"], {n: (r[0], r[1]) for n, r in found["functions"].items()})
