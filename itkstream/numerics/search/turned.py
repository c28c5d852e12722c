"""Rigid starts between images that lie anyhow, from key points whose contexts turn with them.

Each key point is given frames by the directions to its neighbours: the first axis leads to one of
them, in space the plane of the first two holds another. Two key points that share these neighbours
have a frame in common, in which their contexts agree however the images are turned; and one such
pair gives a whole rigid transform, so that a few right ones among thousands of wrong ones are found
by asking of each how many others agree with it.

The sides of the triangles must agree as well, as in the descriptors of S. Preibisch et al., Nature
Methods 7 (2010) 418-419, doi:10.1038/nmeth0610-418, which use nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from itkstream.errors import RegistrationError
from itkstream.geometry import AffineTransform
from itkstream.numerics.compiling import compiled
from itkstream.numerics.matching.contexts import ContextSource
from itkstream.numerics.matching.products import Products, correlate, with_products
from itkstream.numerics.matching.ransac import fit_affine

__all__ = ["Sided", "TurnedMatches", "match_turned", "turned_starts"]

Floats = NDArray[np.float64]

# Neighbours that give frames; more in the moving image, as one may be missing in either.
_FIXED_NEIGHBOURS, _MOVING_NEIGHBOURS = 3, 5
# Sides of triangles agree within this share.
_SIDES = 0.2
# Frames whose two directions lie nearer to one line are unstable: sine of their angle.
_LEAST_SINE = 0.3
_LEAST_CORRELATION = 0.4
_MOST_MATCHES = 3000
# Fixed frames compared with all moving ones at a time: scores of 512 x 16,000 take 33 MB.
_ROWS = 512
# Directions to neighbours are some degrees off: as slope, and greatest angle between two turns.
_SLOPE, _TURN_DEG = 0.12, 30.0
_REFINEMENTS = 5


@dataclass(frozen=True, eq=False)
class Sided:
    """One side of a pair: key points, and the blurred image their contexts are sampled in.

    `copy` (n, n) leads from a copy of the image to it, where a copy is to be matched instead: a
    mirrored or a scaled one.
    """

    source: ContextSource
    points: Floats
    copy: Floats


@dataclass(frozen=True, eq=False)
class TurnedMatches:
    """Matched points (m, n) with the turns (m, n, n) of their frames, the best correlated first."""

    fixed_points: Floats
    moving_points: Floats
    turns: Floats

    def __len__(self) -> int:
        return len(self.turns)


@dataclass(frozen=True, eq=False)
class _Frames:
    """Frames: their points, axes as columns, logarithms of the sides, and contexts in them."""

    points: Floats
    axes: Floats
    sides: Floats
    samples: NDArray[np.float32]


def match_turned(fixed: Sided, moving: Sided) -> TurnedMatches:
    """Match key points by contexts in the frames of their neighbours; points are the copies'."""
    f, g = _frames(fixed, _FIXED_NEIGHBOURS), _frames(moving, _MOVING_NEIGHBOURS)
    if not len(f.points) or not len(g.points):
        none = np.empty((0, f.points.shape[1]))
        return TurnedMatches(none, none, np.empty((0, *f.axes.shape[1:])))
    partner, score = with_products(g.samples, lambda products: _best_partners(f, g, products))
    i = np.argsort(-score, kind="stable")[:_MOST_MATCHES]
    i = i[score[i] > _LEAST_CORRELATION]
    j = partner[i]
    turns = np.einsum("mik,mjk->mij", g.axes[j], f.axes[i])
    return TurnedMatches(f.points[i], g.points[j], turns)


def _best_partners(
    f: _Frames, g: _Frames, products: Products
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Each fixed frame's best moving one among those whose triangles agree, and its score."""
    partner, score = np.empty(len(f.points), np.intp), np.empty(len(f.points), np.float32)
    samples, sides = products.put(g.samples), products.put(g.sides)

    def take(start: int, stop: int) -> None:
        scores = correlate(products.put(f.samples[start:stop]), samples, products.xp)
        own = products.put(f.sides[start:stop])
        partner[start:stop], score[start:stop] = products.best_near(scores, own, sides, _SIDES)

    products.in_rows(len(partner), _ROWS, take)
    return partner, score


def _frames(side: Sided, neighbours: int) -> _Frames:
    """The frames of points by the directions to their nearest neighbours, and their contexts."""
    points = side.points @ np.linalg.inv(side.copy).T
    m, n = points.shape
    k = min(neighbours, m - 1)
    if k < n - 1:
        size = len(side.source.window.offsets())
        empty = np.empty((0, n)), np.empty((0, n, n)), np.empty((0, 2 * n - 3))
        return _Frames(*empty, np.empty((0, size), np.float32))
    near = cKDTree(points).query(points, k + 1)[1][:, 1:]
    to = points[near] - points[:, None]
    picks = np.array(list(permutations(range(k), n - 1)), np.intp)
    axes, sides, stable = (_planar if n == 2 else _spatial)(to, picks)
    row, which = np.nonzero(stable)
    axes, sides = axes[row, which], np.log(sides[row, which])
    contexts = side.source.sample(side.points[row], side.copy @ axes)
    kept = contexts.index
    return _Frames(points[row[kept]], axes[kept], sides[kept], contexts.samples)


def _planar(to: Floats, picks: NDArray[np.intp]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Frames of one direction each in a plane."""
    first = to[:, picks[:, 0]]
    length = np.linalg.norm(first, axis=-1)
    x = first / np.maximum(length, 1e-12)[..., None]
    axes = np.stack([x, np.stack([-x[..., 1], x[..., 0]], -1)], -1)
    return axes, length[..., None], length > 0


def _spatial(to: Floats, picks: NDArray[np.intp]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Frames of two directions each in space."""
    first, second = to[:, picks[:, 0]], to[:, picks[:, 1]]
    sides = np.stack([np.linalg.norm(v, axis=-1) for v in (first, second, second - first)], -1)
    x = first / np.maximum(sides[..., :1], 1e-12)
    across = second - (second * x).sum(-1, keepdims=True) * x
    height = np.linalg.norm(across, axis=-1)
    y = across / np.maximum(height, 1e-12)[..., None]
    stable = (sides.min(axis=-1) > 0) & (height > _LEAST_SINE * sides[..., 1])
    return np.stack([x, y, np.cross(x, y)], -1), np.maximum(sides, 1e-12), stable


def turned_starts(matches: TurnedMatches, slack_um: float, count: int) -> list[tuple[int, Floats]]:
    """The rigid transforms that most matches agree with, and that differ, with their votes."""
    order = np.lexsort(matches.fixed_points.T)
    sorted_points = matches.fixed_points[order]
    new = np.any(sorted_points != np.roll(sorted_points, 1, axis=0), axis=1)
    p, q, turns = sorted_points, matches.moving_points[order], matches.turns[order]
    votes = _votes(p, q, turns, np.cumsum(new), slack_um)
    found: list[tuple[int, Floats]] = []
    taken = np.zeros(len(votes), bool)
    for h in np.argsort(-votes, kind="stable"):
        if len(found) == count:
            break
        if taken[h]:
            continue
        agree = _agree(p, q, turns, h, slack_um)
        taken |= agree
        found.append((int(votes[h]), _refined(p, q, _start(p[h], q[h], turns[h]), agree, slack_um)))
    return found


def _start(point: Floats, target: Floats, turn: Floats) -> Floats:
    n = len(point)
    matrix = np.eye(n + 1)
    matrix[:n, :n], matrix[:n, n] = turn, target - turn @ point
    return matrix


def _refined(
    p: Floats, q: Floats, matrix: Floats, agree: NDArray[np.bool_], slack: float
) -> Floats:
    """The rigid transform of the matches that agree, again and again."""
    for _ in range(_REFINEMENTS):
        try:
            matrix = fit_affine(p[agree], q[agree], "rigid")
        except RegistrationError:
            break
        error = AffineTransform(matrix).apply(p) - q
        agree = np.linalg.norm(error, axis=1) < 2 * slack
    return matrix


def _agree(p: Floats, q: Floats, turns: Floats, h: int, slack: float) -> NDArray[np.bool_]:
    """Find the matches that agree with the transform that one of them gives."""
    out = np.empty(len(p), bool)
    _agreement(p, q, turns, h, slack, _least_trace(p.shape[1]), out)
    return out


def _least_trace(n: int) -> float:
    """Trace of a turn by the greatest angle that two turns which agree may differ by."""
    cosine = float(np.cos(np.deg2rad(_TURN_DEG)))
    return 1 + 2 * cosine if n == 3 else 2 * cosine


def _votes(
    p: Floats, q: Floats, turns: Floats, point: NDArray[np.intp], slack: float
) -> NDArray[np.intp]:
    """Count the fixed points with a match that agrees with each match; equal points in a row."""
    return np.asarray(_count(p, q, turns, point, slack, _least_trace(p.shape[1])), np.intp)


@compiled
def _agreement(p, q, turns, h, slack, least, out):  # type: ignore[no-untyped-def]
    """Find the matches that agree with match h in position, less exactly further off, and turn."""
    n = p.shape[1]
    for j in range(len(p)):
        apart, error, trace = 0.0, 0.0, 0.0
        for a in range(n):
            miss = q[h, a] - q[j, a]
            for b in range(n):
                miss += turns[h, a, b] * (p[j, b] - p[h, b])
                trace += turns[h, a, b] * turns[j, a, b]
            error += miss * miss
            apart += (p[j, a] - p[h, a]) ** 2
        out[j] = trace > least and error < (slack + _SLOPE * np.sqrt(apart)) ** 2


@compiled
def _count(p, q, turns, point, slack, least):  # type: ignore[no-untyped-def]
    votes = np.zeros(len(p), np.int64)
    agree = np.empty(len(p), np.bool_)
    for h in range(len(p)):
        _agreement(p, q, turns, h, slack, least, agree)
        last = -1
        for j in range(len(p)):
            if agree[j] and point[j] != last:
                votes[h] += 1
                last = point[j]
    return votes
