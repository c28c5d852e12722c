"""Radius within which the true place lies with 95 % probability, foretold from evidence.

The logarithm of the radius never falls where the evidence gets worse. It is a surface over two
pieces of evidence and functions of others, straight between knots, which were fitted as the 95th
percentile of true errors on seeded pairs (``tests/benchmarks/fit_error.py`` writes the table).

Roger Koenker and Gilbert Bassett, "Regression quantiles", Econometrica 46 (1978) 33-50,
doi:10.2307/1913643.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from itkstream.numerics.evidence.residuals import LEAST_SEEN, MEASURES

__all__ = [
    "EVIDENCE",
    "REACH_NODES",
    "Curve",
    "RadiusTable",
    "Surface",
    "WideEvidence",
    "compress",
    "describe_nodes",
    "load_table",
    "measure_disarray",
]

Floats = NDArray[np.float32]

EVIDENCE = ("bound", "astray", "discord", "near")
"""Names of the evidence at a node, each the greater the worse.

``bound``: logarithm of how far the mean of two deformations, each on half of the voxels, is from
the transform, and, by a third, of how far these are apart. Errors are in proportion to it, but
where the whole image is astray, which ``astray`` tells: see `measure_disarray`. ``discord``: the
logarithm of the second distance over the first; where halves agree on another place, the error is
how far away that is, and hardly more. ``near``: logarithm of the usual shift at which patches
nearby fit best. On overviews as fine as 2 voxels of the level it tells nothing new, unless patches
fit nowhere; on coarser ones halves differ by noise of their voxels as much as by what is wrong,
which patches see.

Judged on textures that were left out of the fit, misfit, margin over far shifts and texture of
patches made radii no sharper beside these: loss of the quantile 0.0728 to 0.0737 with them, 0.0728
without. A plain sum of the two distances for ``bound`` had an area under the ROC curve of 0.953,
where this one had 0.968. The greatest slope of the transform nearby, which is steep beside what
slipped, and the usual shift of patches of the overview raised the area from 0.962 to 0.975 on 24
pairs of each kind; but of slabs in another order 0.832 lay within their radius, not 0.862, and of
undeformed images 0.856, not 0.919.
"""

REACH_NODES = 1
"""Nodes around one that its evidence may come from."""

_TABLE = Path(__file__).with_name("radius.json")
# Radii in voxels that evidence can tell. Beyond, the true place may be anywhere, however near by
# chance: from here to _LOST the radius grows to half of the diagonal of the image, and on. Slabs in
# another order were 40 to 60 % of it off at most, wrong starts and turns 20 to 50 %.
_SOUGHT, _LOST, _ANYWHERE = 16.0, 24.0, 0.5
# No radius is larger: of places drawn at random in a cube, 95 % of pairs lie within so much of its
# diagonal. With half of it, 0.905 of slabs in another order were covered; with this, 0.929.
_FARTHEST = 0.62
# Halves that agree on a place so far away are right: bounds count in two voxels, and a tenth more.
_AGREED = 2.2
# Usual shifts at which patches nearby fit best, in voxels, from which on they are those of chance:
# the radius is then at least so large. In fine noise and other tissue halves hardly move, and
# without this 0.7 voxels were foretold where 10 were true; areas under ROC curves grew by 0.004.
_STRAYING, _ADRIFT = (3.5, 4.5), 6.0
_OWN = ("bound", "near")
# Distances in voxels below which halves do not differ, and the least disarray.
_LEAST_APART, _LEAST_DISARRAY = 0.02, 1e-3
# Weight of the distance of halves beside that of their mean; 0.2 to 0.7 do as well.
_APART = 0.35
_INDEX = {name: k for k, name in enumerate(MEASURES)}
# Least of the usual distance at which patches fit best, in voxels.
_LEAST_SHIFT = 0.1


@dataclass(frozen=True, eq=False)
class WideEvidence:
    """Evidence found at nodes on a coarse level.

    Parameters
    ----------
    halves : ndarray, nodes + (2,)
        What `compare_halves` finds, in voxels as large as where the radii were fitted; NaN where
        nothing was.
    astray : float
        From `measure_disarray`.
    scale : float
        Voxels of the level per voxel of the fit, at least 1.
    """

    halves: Floats
    astray: float
    scale: float = 1.0


def describe_nodes(measures: Floats, wide: WideEvidence, far: float) -> Floats:
    """Evidence at nodes, along a last axis, as `EVIDENCE` lists it.

    `measures` holds what `measure_patches` finds at the nodes, in voxels of their level, and `wide`
    what is known from a coarse one; NaN, where nothing was found, counts as the worst there is.
    `far` is how far shifts reach.
    """
    apart, off = np.moveaxis(_distances(wide.halves, far * wide.scale), -1, 0)
    bound = np.log(np.sqrt(off**2 + (_APART * apart) ** 2 + _LEAST_APART**2))
    discord = np.log((apart + _LEAST_APART) / (off + _LEAST_APART))
    shift = measures[..., _INDEX["shift"]]
    shift = np.where(np.isfinite(shift), shift, np.float32(far))
    near = np.log(np.sqrt(uniform_filter(shift**2, 3, mode="nearest")) + _LEAST_SHIFT)
    parts = [bound, np.full_like(bound, wide.astray), discord, near]
    return np.stack(parts, axis=-1).astype(np.float32)


def measure_disarray(wide: Floats, halves: Floats, tissue: NDArray[np.bool_], far: float) -> float:
    """Logarithm of the disarray of a whole image: halves that move apart, and a poor fit.

    The square of the usual distance of two halves times the usual misfit, over nodes of tissue.
    An image that lies wrong has both; one that is torn, slipped or not yet deformed has one.
    """
    seen = wide[..., _INDEX["seen"]] >= LEAST_SEEN
    counts = seen & tissue if (seen & tissue).any() else np.ones_like(seen)
    apart = float(np.median(_distances(halves, far)[counts][:, 0]))
    fit = wide[..., _INDEX["fit"]]
    misfit = float(np.median(1 - np.where(np.isfinite(fit), fit, 0.0)[counts]))
    return math.log(max(apart**2 * misfit, 0) + _LEAST_DISARRAY)


def _distances(halves: Floats, far: float) -> Floats:
    """Distances that halves tell; the worst where there are none."""
    return np.where(np.isfinite(halves), halves, np.float32(4 * far))


@dataclass(frozen=True)
class Curve:
    """Heights at places, straight between them and level beyond."""

    places: Sequence[float]
    heights: Sequence[float]

    def at(self, x: NDArray[Any]) -> NDArray[Any]:
        """Heights at other places."""
        return np.interp(x, self.places, self.heights)


@dataclass(frozen=True, eq=False)
class Surface:
    """Heights over a lattice of knots of two numbers, straight between them and level beyond.

    Parameters
    ----------
    places : pair of sequences of float
        Knots of either number.
    heights : ndarray, (n, m)
        At all pairs of knots.
    """

    places: tuple[Sequence[float], Sequence[float]]
    heights: NDArray[np.float64]

    def at(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        """Heights at pairs of numbers."""
        (i, f), (j, g) = (_between(v, p) for v, p in zip((x, y), self.places, strict=True))
        low = self.heights[i, j] * (1 - g) + self.heights[i, j + 1] * g
        high = self.heights[i + 1, j] * (1 - g) + self.heights[i + 1, j + 1] * g
        return np.asarray(low * (1 - f) + high * f)


def _between(x: NDArray[Any], places: Sequence[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The knot before each number, and how far the number is on the way to the next."""
    index = np.interp(x, places, np.arange(len(places)))
    before = np.minimum(np.nan_to_num(index).astype(np.intp), len(places) - 2)
    return before, index - before


@dataclass(frozen=True, eq=False)
class RadiusTable:
    """Surfaces and a curve that tell the logarithm of the radius in voxels.

    Parameters
    ----------
    wide : Surface
        Over ``bound`` and ``astray``.
    discord : Curve
        Of ``discord``; what is added.
    near : mapping of float to Surface
        Over what these tell and ``near``, for overviews of so many times as large voxels as those
        of the fit, in rising order; where there is none, they tell all.
    """

    wide: Surface
    discord: Curve
    near: Mapping[float, Surface] = field(default_factory=dict)

    def radius(self, evidence: NDArray[Any], extent: float, scale: float = 1.0) -> Floats:
        """Radii in voxels from evidence along the last axis; NaN where any of it is.

        `extent` is the diagonal of the image in voxels, and `scale` that of `WideEvidence`.
        """
        bound, near = (np.asarray(evidence[..., EVIDENCE.index(n)], float) for n in _OWN)
        total = self._seen_nearby(self.from_overview(evidence), near, scale)
        start = math.log(_SOUGHT)
        radii = np.exp(np.where(total > start, start + (total - start) * _growth(extent), total))
        radii = np.maximum(
            radii, _ADRIFT * np.interp(np.exp(near) - _LEAST_SHIFT, _STRAYING, (0, 1))
        )
        least = _AGREED * np.exp(bound)
        radii = np.where(least > _SOUGHT, np.maximum(radii, least), radii)
        return np.minimum(radii, _FARTHEST * extent).astype(np.float32)

    def from_overview(self, evidence: NDArray[Any]) -> NDArray[Any]:
        """Logarithms of radii by the overview alone, compressed as `compress` does errors."""
        bound, astray, discord, near = np.moveaxis(np.asarray(evidence, float), -1, 0)
        total = self.wide.at(bound, astray) + self.discord.at(discord)
        return np.where(np.isnan(near), np.nan, total)

    def _seen_nearby(self, total: NDArray[Any], near: NDArray[Any], scale: float) -> NDArray[Any]:
        """Logarithms by what patches nearby tell too: between those of the two next scales."""
        below, known = (1.0, total), (1.0, total)
        for size, surface in self.near.items():
            below, known = known, (size, surface.at(total, near))
            if size >= scale:
                break
        (low, before), (high, after) = below, known
        if low == high:
            return after
        share = np.clip(math.log(scale / low) / math.log(high / low), 0, 1)
        return np.asarray(before + (after - before) * share)

    def to_json(self) -> str:
        """Text that `load_table` reads."""
        found = {
            "wide": _rows_of(self.wide.places, self.wide.heights),
            "discord": [_rounded(self.discord.places), _rounded(self.discord.heights)],
            "near": {str(k): _rows_of(s.places, s.heights) for k, s in self.near.items()},
        }
        return json.dumps(found, indent=1) + "\n"


def compress(error: NDArray[Any], extent: NDArray[Any] | float) -> NDArray[Any]:
    """Logarithm of errors in voxels, as a table tells it for an image of a diagonal `extent`."""
    start, total = math.log(_SOUGHT), np.log(error)
    return np.where(total > start, start + (total - start) / _growth(extent), total)


def _growth(extent: NDArray[Any] | float) -> NDArray[Any]:
    """Power by which radii grow that are too large to be told."""
    far = np.log(_ANYWHERE * np.asarray(extent) / _SOUGHT)
    return np.maximum(far / math.log(_LOST / _SOUGHT), 1.0)


def _rows_of(places: Sequence[Sequence[float]], heights: NDArray[Any]) -> dict[str, Any]:
    return {
        "places": [_rounded(row) for row in places],
        "heights": [_rounded(row) for row in heights],
    }


def _rounded(values: Sequence[float] | NDArray[Any]) -> list[float]:
    return [round(float(v), 4) for v in values]


@cache
def load_table(path: Path = _TABLE) -> RadiusTable:
    """The fitted table."""
    found = json.loads(path.read_text())
    near = {float(scale): _surface(rows) for scale, rows in found["near"].items()}
    return RadiusTable(_surface(found["wide"]), Curve(*found["discord"]), near)


def _surface(rows: Mapping[str, Any]) -> Surface:
    first, second = rows["places"]
    return Surface((first, second), np.array(rows["heights"]))
