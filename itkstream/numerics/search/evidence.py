"""Evidence for an affine that it did not maximise: key points matched again where it puts them.

A blob of the fixed image and one of the moving image that the affine puts near it match if each is
the other's best. A match is supported if several of its neighbours are shifted by the same vector:
what is left after a right affine is smooth, after a wrong one it is not. How many are supported by
chance is measured on the same pair: with one image shifted against the other, or turned by half a
turn about its middle, as which tissue in a dark field still overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from itkstream.geometry import Image
from itkstream.numerics.compiling import compiled
from itkstream.numerics.matching.contexts import Contexts, ContextSource, ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings, find_key_points
from itkstream.numerics.matching.matches import find_supported

__all__ = ["Evidence", "Outcome", "Rematches", "Witness", "WitnessSettings"]

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Outcome: TypeAlias = Literal["convincing", "doubtful", "chance"]

# Shifts, as shares of the extent and around its ends, under which matches are by chance.
_SHIFTS = 6
_LEAST_SHIFT = 0.25

# What convinces: this share of the key points, between these numbers, and so many times the chance
# level. Of 120 wrong starts between unrelated phantoms of 1400 key points, the best found 38; one
# for two stains that lay 22 voxels off found 46, and one in a corner 11 of 13. Right ones, of one
# tissue or of two individuals, find 44 of 280 to 900 of 1400.
_SHARE, _FEWEST, _MOST = 0.12, 20, 60
_TIMES = 3.0
# Below this share of what convinces there is no evidence.
_SOME = 0.85


@dataclass(frozen=True)
class WitnessSettings:
    """Parameters of the evidence for an affine.

    Parameters
    ----------
    key_points : KeyPointSettings
        Which blobs are matched.
    window : ContextWindow
        The contexts that are compared.
    reach_um : float
        Greatest distance of a match from where the affine puts it.
    threshold : float
        Least correlation of the contexts of a match.
    """

    key_points: KeyPointSettings
    window: ContextWindow
    reach_um: float
    threshold: float = 0.5


@frozen
class Evidence:
    """Matches that bear an affine out, and how many do by chance.

    Parameters
    ----------
    supported : int
        Matches that several neighbours agree with.
    chance : tuple of int
        The same number under wrong alignments; empty where there is too little to compare.
    asked : int
        Fixed key points that had a moving one in reach.
    informed : bool
        The mutual information of the images stands out from that of other starts: some evidence
        where stains share no contexts.
    """

    supported: int
    chance: tuple[int, ...]
    asked: int
    informed: bool = False

    @property
    def level(self) -> int:
        """The most that were supported by chance."""
        return max(self.chance, default=0)

    @property
    def margin(self) -> float:
        """Share of what convinces."""
        return self.supported / max(_bar(self.asked), _TIMES * self.level)

    @property
    def outcome(self) -> Outcome:
        """Meaning of the numbers."""
        if self.margin >= 1:
            return "convincing"
        return "doubtful" if self.margin >= _SOME or self.informed else "chance"

    @property
    def rank(self) -> tuple[int, float]:
        """Order of evidence: the greater is the better."""
        return ("chance", "doubtful", "convincing").index(self.outcome), self.margin

    def facts(self) -> dict[str, Any]:
        """The numbers for a report."""
        return {
            "outcome": self.outcome,
            "supported_matches": self.supported,
            "supported_by_chance": list(self.chance),
            "key_points_in_reach": self.asked,
            "information_stands_out": self.informed,
        }

    def said(self) -> str:
        """The numbers in words."""
        compared = f"; under wrong alignments up to {self.level} do" if self.chance else ""
        informed = "; mutual information speaks for it" if self.informed else ""
        return (
            f"matched again where it puts them, {self.supported} of {self.asked} key points agree "
            f"with their neighbours{compared}, and {self.needed} would convince{informed}"
        )

    @property
    def needed(self) -> int:
        """Number that would convince."""
        return math.ceil(max(_bar(self.asked), _TIMES * self.level))


def _bar(asked: int) -> float:
    """Number of supported matches that convinces where none are by chance."""
    return min(max(_SHARE * asked, _FEWEST), _MOST)


@dataclass(frozen=True, eq=False)
class Rematches:
    """Key points matched again under an affine.

    Parameters
    ----------
    fixed_points, aligned_points : ndarray, (m, n)
        The moving ones where the affine brings them in the fixed image.
    fixed_index, moving_index : ndarray, (m,)
        Which key points they are.
    supported : ndarray of bool, (m,)
        Which are borne out by their neighbours.
    asked : int
        Fixed key points that had a moving one in reach.
    """

    fixed_points: Floats
    aligned_points: Floats
    fixed_index: Indices
    moving_index: Indices
    supported: NDArray[np.bool_]
    asked: int

    @property
    def abound(self) -> bool:
        """Whether as many are supported as convince where none are by chance."""
        return int(self.supported.sum()) >= _bar(self.asked)


@dataclass(frozen=True, eq=False)
class Witness:
    """Two images by their key points, asked about affines between them."""

    fixed: Contexts
    moving_points: Floats
    moving: ContextSource
    settings: WitnessSettings

    @classmethod
    def of(cls, fixed: Image, moving: Image, settings: WitnessSettings) -> Witness:
        """Find the key points of both images, and the contexts of the fixed one."""
        images = [(image.read(), image.grid) for image in (fixed, moving)]
        points = [find_key_points(*image, settings.key_points).positions for image in images]
        sources = [ContextSource.of(*image, settings.window) for image in images]
        return cls(sources[0].sample(points[0]), points[1], sources[1], settings)

    def aligned(self, matrix: Floats) -> Contexts:
        """The moving key points and their contexts as an affine brings them to the fixed image."""
        n = self.moving_points.shape[1]
        linear, shift = matrix[:n, :n], matrix[:n, n]
        found = self.moving.sample(self.moving_points, linear)
        back = (found.points - shift) @ np.linalg.inv(linear).T
        return Contexts(back, found.samples, found.index)

    def rematch(self, aligned: Contexts, which: NDArray[np.bool_] | None = None) -> Rematches:
        """Match aligned key points with the fixed ones, or with some of these."""
        fixed = self.fixed if which is None else _some(self.fixed, which)
        i, j, asked = self._pairs(fixed, aligned)
        p, q = fixed.points[i], aligned.points[j]
        supported = find_supported(p, q, self.settings.reach_um)
        return Rematches(p, q, fixed.index[i], aligned.index[j], supported, asked)

    def evidence(self, matrix: Floats, which: NDArray[np.bool_] | None = None) -> Evidence:
        """Judge an affine by all fixed key points, or by some that were held out of its fit."""
        aligned = self.aligned(matrix)
        found = self.rematch(aligned, which)
        supported = int(found.supported.sum())
        if supported < _SOME * _bar(found.asked):
            return Evidence(supported, (), found.asked)
        wrong = [self.rematch(other, which) for other in self._wrong(matrix, aligned)]
        chance = tuple(int(matches.supported.sum()) for matches in wrong)
        return Evidence(supported, chance, found.asked)

    def _wrong(self, matrix: Floats, aligned: Contexts) -> Sequence[Contexts]:
        """The aligned key points shifted around their box, and turned by half a turn."""
        if not len(aligned):
            return []
        points, n = aligned.points, aligned.points.shape[1]
        low, extent = points.min(axis=0), np.ptp(points, axis=0)
        extent = np.where(extent > 0, extent, 1.0)
        shares = np.random.default_rng(0).uniform(_LEAST_SHIFT, 1 - _LEAST_SHIFT, (_SHIFTS, n))
        wrong = [
            Contexts(low + (points - low + share * extent) % extent, aligned.samples, aligned.index)
            for share in shares
        ]
        middle = np.median(self.fixed.points, axis=0) if len(self.fixed) else low
        return [*wrong, *(self.aligned(matrix @ turn) for turn in _half_turns(middle))]

    def _pairs(self, fixed: Contexts, aligned: Contexts) -> tuple[Indices, Indices, int]:
        """Pairs within reach of which each is the other's best, and how many had a choice."""
        none = np.empty(0, np.intp)
        if not len(fixed) or not len(aligned):
            return none, none, 0
        near = cKDTree(fixed.points).query_ball_point(aligned.points, self.settings.reach_um)
        counts = np.array([len(row) for row in near])
        if not counts.any():
            return none, none, 0
        i = np.concatenate([np.asarray(row, np.intp) for row in near])
        j = np.repeat(np.arange(len(aligned)), counts)
        scores = _correlations(fixed.samples, aligned.samples, i, j)
        best_i, best_j = np.full(len(fixed), -np.inf), np.full(len(aligned), -np.inf)
        np.maximum.at(best_i, i, scores)
        np.maximum.at(best_j, j, scores)
        good = (scores == best_i[i]) & (scores == best_j[j]) & (scores > self.settings.threshold)
        return i[good], j[good], int(np.isfinite(best_i).sum())


def _some(contexts: Contexts, which: NDArray[np.bool_]) -> Contexts:
    return Contexts(contexts.points[which], contexts.samples[which], contexts.index[which])


def _half_turns(middle: Floats) -> list[Floats]:
    """Half turns about every axis through a point; in a plane there is one."""
    turns = []
    for signs in product((1.0, -1.0), repeat=len(middle)):
        if np.prod(signs) > 0 and min(signs) < 0:
            turn = np.diag([*signs, 1.0])
            turn[:-1, -1] = middle - np.array(signs) * middle
            turns.append(turn)
    return turns


@compiled
def _correlations(a, b, i, j):  # type: ignore[no-untyped-def]
    """Correlations of pairs of contexts."""
    out = np.empty(i.size, np.float32)
    norms_a, norms_b = np.empty(len(a), np.float32), np.empty(len(b), np.float32)
    for side, norms in ((a, norms_a), (b, norms_b)):
        for row in range(len(side)):
            total = np.float32(0)
            for k in range(side.shape[1]):
                total += side[row, k] * side[row, k]
            norms[row] = np.sqrt(max(total, np.float32(1)))
    for n in range(i.size):
        x, y = a[i[n]], b[j[n]]
        total = np.float32(0)
        for k in range(x.size):
            total += x[k] * y[k]
        out[n] = total / (norms_a[i[n]] * norms_b[j[n]])
    return out
