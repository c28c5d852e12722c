"""A start between two images that lie anyhow: candidates, each judged by matching key points again.

Candidates come from key points whose contexts turn with them; where these do not convince, from
centres of mass and axes of inertia, and from all turns on a lattice with the best shift of each.
Those that bring about most matches are settled by them, and judged against chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from itkstream.numerics.matching.contexts import ContextSource, ContextWindow
from itkstream.numerics.search.evidence import Evidence, Witness
from itkstream.numerics.search.information import most_informed
from itkstream.numerics.search.lattice import angle_between, lattice_starts
from itkstream.numerics.search.moments import moment_starts
from itkstream.numerics.search.settings import SearchSettings
from itkstream.numerics.search.turned import Sided, match_turned, turned_starts
from itkstream.numerics.search.witnesses import LEAST_SETTLED, Witnesses, settle

__all__ = ["Candidate", "Found", "SearchResult", "find_start"]

Floats = NDArray[np.float64]

# Half widths of the contexts that turn, in voxels, of the witnesses in turn, and samples across.
_TURNING = (14, 16, 10)
_SAMPLES = 7
# Key points that are given frames, and starts of each kind that are looked at and settled.
_POINTS = 800
_SLACK = 3.0
_STARTS, _SETTLED = 8, 3
# A start that is turned by more, with so large a share of the evidence of the best, is its rival.
_APART_DEG, _NEARLY = 15.0, 0.8
# Where starts come from, for reports.
_TURNED, _MOMENTS, _LATTICE, _INFORMATION = (
    "key points that turn",
    "centres of mass and axes of inertia",
    "all turns on a coarse level",
    "mutual information",
)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A start and where it comes from; from fixed to moving points."""

    origin: str
    matrix: Floats


@dataclass(frozen=True, eq=False)
class Found:
    """A start that was settled and judged."""

    origin: str
    matrix: Floats
    evidence: Evidence

    @property
    def mirrored(self) -> bool:
        """Whether it mirrors."""
        return bool(np.linalg.det(self.matrix[:-1, :-1]) < 0)

    def facts(self) -> dict[str, Any]:
        """Numbers for a report."""
        return {"origin": self.origin, "matrix": self.matrix.tolist(), **self.evidence.facts()}


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Starts that a search judged, the best first, and the number it looked at."""

    found: tuple[Found, ...]
    looked_at: int

    @property
    def best(self) -> Found | None:
        """The start with most evidence of those that do not mirror."""
        return next((found for found in self.found if not found.mirrored), None)

    @property
    def rival(self) -> Found | None:
        """A start that is turned otherwise than the best, with nearly as much evidence."""
        best = self.best
        if best is None:
            return None
        least = _NEARLY * best.evidence.margin
        others = [f for f in self.found if not f.mirrored and f.evidence.margin >= least]
        turned = (f for f in others if angle_between(f.matrix, best.matrix) > _APART_DEG)
        return next(turned, None)

    @property
    def mirrored(self) -> Found | None:
        """The start with most evidence of those that mirror."""
        return next((found for found in self.found if found.mirrored), None)

    @property
    def mirror_ahead(self) -> Found | None:
        """The start that mirrors, where it has more evidence than any that does not."""
        best, mirrored = self.best, self.mirrored
        if mirrored is None or best is None or mirrored.evidence.rank > best.evidence.rank:
            return mirrored
        return None


def find_start(
    witnesses: Witnesses, settings: SearchSettings, known: Sequence[Candidate] = ()
) -> SearchResult:
    """Look for a start, those that are known first, then kind after kind, until one convinces.

    Mirror images are looked at too, where they are refused to say that one fits better.
    """
    found: list[Found] = []
    starts: list[Candidate] = []
    for kind in chain([list(known)], _kinds(witnesses, settings)):
        starts += kind
        found += _judged(witnesses, kind, settings.seed)
        if any(f.evidence.outcome == "convincing" for f in found):
            break
    else:
        found += _informed(witnesses, starts)
    found.sort(key=lambda f: (f.evidence.informed, f.evidence.margin), reverse=True)
    return SearchResult(tuple(found), len(starts))


def _informed(witnesses: Witnesses, starts: list[Candidate]) -> list[Found]:
    """The start whose mutual information stands out from that of all others, if one does."""
    n = witnesses.fixed.ndim
    few = [s.matrix for s in starts if s.origin in (_MOMENTS, _LATTICE)]
    best = most_informed(witnesses.fixed, witnesses.moving, [np.eye(n + 1), *few])
    if best is None or not best.stands_out:
        return []
    evidence = evolve(witnesses.evidence(best.matrix), informed=True)
    return [Found(_INFORMATION, best.matrix, evidence)]


def _kinds(witnesses: Witnesses, settings: SearchSettings) -> Iterator[list[Candidate]]:
    """Starts of one kind after the other, the quick and telling first; each is made when needed."""
    pair, n = (witnesses.fixed, witnesses.moving), witnesses.fixed.ndim
    first, *others = settings.scales
    same, flip = first * np.eye(n), first * np.diag([-1.0, *(1.0,) * (n - 1)])
    for copy in (same, flip):
        for number, witness in enumerate(witnesses):
            yield _turned(witnesses, witness, number, copy)
    yield [Candidate(_MOMENTS, matrix) for matrix in moment_starts(*pair)]
    for copy in (same, flip) if settings.mirror == "allow" else (same,):
        starts = lattice_starts(*pair, copy, settings.overlap, _STARTS)
        yield [Candidate(_LATTICE, start.matrix) for start in starts]
    for scale in others:
        for witness in islice(witnesses, 1):
            yield _turned(witnesses, witness, 0, scale * np.eye(n))


def _turned(witnesses: Witnesses, witness: Witness, number: int, copy: Floats) -> list[Candidate]:
    """Starts from key points whose contexts turn with them."""
    voxel = witnesses.voxel
    window = ContextWindow((_TURNING[number] * voxel,) * len(copy), _SAMPLES, ball=True)
    window = window.within(witnesses.fixed.grid, witnesses.moving.grid)
    points = witness.fixed.points[:_POINTS], witness.moving_points[:_POINTS]
    same = np.eye(len(copy))
    sides = [
        Sided(ContextSource.of(image.read(), image.grid, window), at, which)
        for image, at, which in zip(
            (witnesses.fixed, witnesses.moving), points, (same, copy), strict=True
        )
    ]
    lead = np.eye(len(copy) + 1)
    lead[:-1, :-1] = copy
    starts = turned_starts(match_turned(*sides), _SLACK * voxel, _STARTS)
    return [Candidate(_TURNED, lead @ matrix) for _, matrix in starts]


def _judged(witnesses: Witnesses, starts: list[Candidate], seed: int) -> list[Found]:
    """Settle and judge the starts that bring about most matches."""
    found: list[Found] = []
    for witness in witnesses:
        looks = [witness.rematch(witness.aligned(start.matrix)) for start in starts]
        counts = np.array([int(look.supported.sum()) for look in looks])
        for k in np.argsort(-counts, kind="stable")[:_SETTLED]:
            matrix, evidence = starts[k].matrix, Evidence(int(counts[k]), (), looks[k].asked)
            if counts[k] >= LEAST_SETTLED:
                matrix = settle(witness, matrix, seed)
                evidence = witness.evidence(matrix)
            found.append(Found(starts[k].origin, matrix, evidence))
            if evidence.outcome == "convincing":
                return found
    return found
