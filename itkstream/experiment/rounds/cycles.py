"""Rounds matched directly with each other, to see whether their ways by the reference agree.

Two rounds are each registered onto the reference; nothing in that makes them agree. Their key
points are matched directly, on coarse levels, without the reference: where the way by the
reference puts a key point of one elsewhere than its match in the other, one of the two is wrong.
Loops of pairwise registrations tell wrong ones without any truth: T. Datteri and B. M. Dawant,
"Estimation of rigid-body registration quality using registration networks", Proc. SPIE 8314
(2012) 831419, doi:10.1117/12.911316.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from itkstream.apply.points import apply_to_points
from itkstream.blocks.levels import factors_to_fit, read_coarse
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import AffineTransform, ChannelPair, Image, Transform
from itkstream.io.storage.locations import Location
from itkstream.judge.verdict import Verdict
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.registration.folder import kept_level
from itkstream.registration.steps import RansacAffine
from itkstream.registration.steps.initial import witnesses_of
from itkstream.registration.steps.matching import COMMON_RADII, choose_radii
from itkstream.report.sources import view_of

__all__ = ["Cycle", "DirectMatch", "close_ring", "doubt_cycles", "match_directly", "small_level"]

Floats = NDArray[np.float64]

# Rounds are matched directly on so many voxels: a few seconds a pair.
_VOXELS = 2e6
# A cycle is open where half of its key points come back farther from their matches than so many
# voxels of the reference, which is what a verdict calls doubtful, or so many of the level, on which
# key points are placed within half a voxel or so. Cycles of right registrations were open by 0.29
# to 0.44 voxels (three rounds of a phantom) and 0.75 (affines alone, the data in resources).
_OPEN_VOX, _OPEN_LEVEL_VOX = 5.0, 2.0
# Matches that tell a median.
_LEAST = 12


@frozen(eq=False)
class DirectMatch:
    """Key points of two rounds that match each other directly, in µm, and an affine between them.

    `reason` says why there are none.
    """

    first: Floats
    second: Floats
    matrix: Floats | None = None
    reason: str = ""

    @classmethod
    def none(cls, ndim: int, reason: str) -> DirectMatch:
        """No key points, and why."""
        return cls(np.empty((0, ndim)), np.empty((0, ndim)), None, reason)


@frozen
class Cycle:
    """Two rounds, and how far apart the direct way between them and that by the reference are.

    Distances are in µm, None where the rounds did not match directly, for a `reason`.
    """

    rounds: tuple[str, str]
    limit_um: float
    matches: int = 0
    median_um: float | None = None
    p95_um: float | None = None
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the two ways lead to different places."""
        return self.median_um is not None and self.median_um > self.limit_um

    @property
    def facts(self) -> dict[str, Any]:
        """The cycle as experiment.json holds it."""
        return {
            "rounds": list(self.rounds),
            "matches": self.matches,
            "median_um": self.median_um,
            "p95_um": self.p95_um,
            "limit_um": self.limit_um,
            "agrees": None if self.median_um is None else not self.is_open,
            "reason": self.reason,
        }

    def describe(self) -> str:
        """Say it in a line."""
        names = " and ".join(self.rounds)
        if self.median_um is None:
            return f"{names}: not measured, {self.reason}"
        state = "disagree" if self.is_open else "agree"
        return (
            f"{names} {state}: {self.median_um:.2g} µm in the median of {self.matches} key points "
            f"(at most {self.limit_um:.2g})"
        )


def small_level(image: Image, voxels: float, folder: Location | None, side: str) -> Image:
    """Read the level of a round on which it is matched directly.

    The level of at most so many voxels that a registration keeps in its folder is used.
    """
    kept = None if folder is None else kept_level(folder, side)
    level = view_of(image, voxels, kept).level
    return read_coarse(level, factors_to_fit(level.grid, _VOXELS))


def match_directly(first: Image, second: Image, starts: Sequence[Floats]) -> DirectMatch:
    """Match key points of two levels, laid by one start after the other, until one convinces.

    Starts lead from the first to the second. That the points agree is no proof: the affine through
    them is judged by key points that it was not fitted to.
    """
    witnesses = witnesses_of(first, second)
    reasons = []
    for start in starts:
        moved = second
        if not np.array_equal(start, np.eye(len(start))):
            laid = warp_block(second, AffineTransform(start), first.grid, NAN_OUTSIDE)
            moved = Image(laid, first.grid)
        try:
            pair = [ChannelPair(first, moved)]
            best = choose_radii(pair, RansacAffine(), COMMON_RADII).found.best
        except (InputError, RegistrationError) as error:
            reasons.append(str(error))
            continue
        estimate, pairs = best.estimate, best.pairs
        if estimate.matrix is None:
            reasons.append(estimate.reason)
            continue
        ours = pairs.fixed_points[estimate.inliers]
        theirs = AffineTransform(start).apply(pairs.moving_points[estimate.inliers])
        matrix = start @ estimate.matrix
        if len(ours) >= _LEAST and witnesses.evidence(matrix, ours).outcome == "convincing":
            return DirectMatch(ours, theirs, matrix)
        reasons.append(f"{len(ours)} matches agree, which does not convince")
    return DirectMatch.none(first.ndim, reasons[-1])


def close_ring(
    names: Sequence[str],
    levels: Mapping[str, Any],
    ways: Mapping[str, Transform],
    voxel_um: float,
) -> list[Cycle]:
    """Compare each round with the next one, and the last with the first.

    `levels` are functions that read the level of a round, `ways` lead from the reference to each
    round; `voxel_um` is the least spacing of the reference. Two levels are held at a time.
    """
    count = len(names)
    pairs = [(k, (k + 1) % count) for k in range(count if count > 2 else count - 1)]
    return [_cycle(names[a], names[b], levels, ways, voxel_um) for a, b in pairs]


def _cycle(
    one: str,
    other: str,
    levels: Mapping[str, Any],
    ways: Mapping[str, Transform],
    voxel_um: float,
) -> Cycle:
    first, second = levels[one](), levels[other]()
    limit = max(_OPEN_VOX * voxel_um, _OPEN_LEVEL_VOX * max(*first.spacing, *second.spacing))
    starts = [_between(ways[one], ways[other]), np.eye(first.ndim + 1)]
    found = match_directly(first, second, starts)
    cycle = Cycle((one, other), round(limit, 4), reason=found.reason)
    if found.matrix is None:
        return cycle
    back = apply_to_points(ways[one], found.first, inverse=True)
    there = apply_to_points(ways[other], back.points)
    known = ~back.outside & ~there.outside
    if known.sum() < _LEAST:
        return evolve(cycle, reason="what they share lies beyond the reference")
    apart = np.linalg.norm(there.points - found.second, axis=1)[known]
    median, p95 = (round(float(np.percentile(apart, q)), 4) for q in (50, 95))
    return evolve(cycle, matches=int(known.sum()), median_um=median, p95_um=p95)


def _between(one: Transform, other: Transform) -> Floats:
    """The affine part of the way from one round to another by the reference."""
    return np.asarray(affine_part(other).matrix @ affine_part(one).inverse().matrix)


def doubt_cycles(name: str, verdict: Verdict, cycles: Sequence[Cycle]) -> Verdict:
    """Take the cycles of a round into its verdict: it is to be looked at where they are open.

    A round between two others is blamed where both its cycles are open: a wrong neighbour opens
    one.
    """
    own = [c for c in cycles if name in c.rounds and c.median_um is not None]
    if not own or not all(cycle.is_open for cycle in own):
        return verdict
    worst = max(own, key=lambda cycle: cycle.median_um or 0.0)
    partner = next(other for other in worst.rounds if other != name)
    text = (
        f"matched directly with {partner}, it lies {worst.median_um:.3g} µm from where the way by "
        f"the reference puts it (at most {worst.limit_um:.3g} µm are expected): one of both is off"
    )
    if verdict.outcome == "good":
        return replace(verdict, outcome="look", reasons=(text,))
    return replace(verdict, reasons=(*verdict.reasons, text))
