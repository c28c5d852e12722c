"""Matches of key points: those of two images whose contexts correlate best."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from itkstream.errors import InputError
from itkstream.numerics.gpu.arrays import Array
from itkstream.numerics.matching.contexts import Contexts
from itkstream.numerics.matching.products import Products, correlate, with_products

__all__ = [
    "REACH_VOX",
    "Correspondences",
    "MatchSettings",
    "find_supported",
    "joined_matches",
    "match",
]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# Rows of the score matrix held at a time: 512 x 5000 scores take 10 MB.
_ROWS = 512
# Neighbours of a match that are asked, and how many of them must be shifted as it is, within this
# share of the reach.
_ASKED, _AGREEING = 8, 3
_ALIKE = 0.25

REACH_VOX = 12.0
"""Matches of roughly aligned images are so near one another."""


@dataclass(frozen=True)
class MatchSettings:
    """Parameters by which pairs of key points correspond.

    Parameters
    ----------
    threshold : float
        Least correlation of two contexts, between -1 and 1.
    max_distance_um : float, optional
        Greatest distance of the two positions, for images that are nearly aligned; default any.
    max_ambiguity : float, optional
        Greatest ratio of the second best correlation to the best, over moving points at least
        `distinct_um` from the best one; default any, since the mutual choice and the robust fit
        after it remove nearly all wrong matches.
    distinct_um : float
        See `max_ambiguity`.

    Raises
    ------
    InputError
        Where a value is out of range; the message names it.

    Examples
    --------
    >>> itkstream.features.MatchSettings(0.6, max_distance_um=50).threshold
    0.6
    """

    threshold: float = 0.75
    max_distance_um: float | None = None
    max_ambiguity: float | None = None
    distinct_um: float = 0.0

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise InputError(f"threshold must lie between -1 and 1; got {self.threshold}")
        for name in ("max_distance_um", "max_ambiguity"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be positive, or None for no limit; got {value}")
        if not self.distinct_um >= 0:
            raise InputError(f"distinct_um must be at least 0; got {self.distinct_um}")


@dataclass(frozen=True, eq=False)
class Correspondences:
    """Matched points, in the order of the fixed points.

    Parameters
    ----------
    fixed_points, moving_points : ndarray, (m, n)
        Positions in µm.
    correlations : ndarray, (m,)
        Correlation of the contexts of each pair.
    fixed_index, moving_index : ndarray, (m,)
        Which key points they are.

    Examples
    --------
    >>> points, index = np.zeros((2, 3)), np.arange(2)
    >>> found = itkstream.features.Correspondences(points, points, np.ones(2), index, index)
    >>> len(found.select(found.correlations > 0.9).fixed_points)
    2
    """

    fixed_points: Floats
    moving_points: Floats
    correlations: Floats
    fixed_index: NDArray[np.intp]
    moving_index: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.correlations)

    def select(self, which: NDArray[np.bool_]) -> Correspondences:
        """Take some of the matches.

        Parameters
        ----------
        which : ndarray of bool, (m,)
            True for each that is taken.

        Returns
        -------
        Correspondences
            In the same order.

        Examples
        --------
        >>> points, index = np.zeros((2, 3)), np.arange(2)
        >>> found = itkstream.features.Correspondences(points, points, np.ones(2), index, index)
        >>> len(found.select(np.array([True, False])).fixed_points)
        1
        """
        return Correspondences(
            self.fixed_points[which],
            self.moving_points[which],
            self.correlations[which],
            self.fixed_index[which],
            self.moving_index[which],
        )


def joined_matches(parts: Sequence[tuple[Correspondences, int, int]]) -> Correspondences:
    """Matches of several channels as one, each with how many fixed and moving key points it has."""
    if len(parts) == 1:
        return parts[0][0]
    before = np.cumsum([(0, 0), *(counts for _, *counts in parts[:-1])], axis=0)
    pairs = [part for part, *_ in parts]
    return Correspondences(
        np.concatenate([p.fixed_points for p in pairs]),
        np.concatenate([p.moving_points for p in pairs]),
        np.concatenate([p.correlations for p in pairs]),
        np.concatenate([p.fixed_index + n for p, (n, _) in zip(pairs, before, strict=True)]),
        np.concatenate([p.moving_index + n for p, (_, n) in zip(pairs, before, strict=True)]),
    )


def match(fixed: Contexts, moving: Contexts, settings: MatchSettings) -> Correspondences:
    """Pair the points whose contexts correlate best, each with the other.

    Parameters
    ----------
    fixed, moving : Contexts
        Sampled with the same window.
    settings : MatchSettings
        Threshold and limits.

    Returns
    -------
    Correspondences
        Every point at most once; none where nothing correlates well enough.

    Raises
    ------
    InputError
        Where the two were sampled with different windows.

    Examples
    --------
    >>> settings = itkstream.features.KeyPointSettings(2.0, 6.0)
    >>> window = itkstream.features.ContextWindow((8.0, 8.0, 8.0))
    >>> contexts = []
    >>> for image in (fixed, moving):
    ...     points = itkstream.features.find_key_points(image.read(), image.grid, settings)
    ...     contexts.append(
    ...         itkstream.features.sample_contexts(
    ...             image.read(), image.grid, points.positions, window
    ...         )
    ...     )
    >>> found = itkstream.features.match(*contexts, itkstream.features.MatchSettings())
    >>> len(found.fixed_points) == len(found.moving_points) > 10
    True
    """
    if fixed.samples.shape[1] != moving.samples.shape[1]:
        raise InputError(
            f"contexts of {fixed.samples.shape[1]} and {moving.samples.shape[1]} samples cannot be "
            "compared; sample both with the same window"
        )
    if not len(fixed) or not len(moving):
        return _correspondences(fixed, moving, np.empty(0, np.intp), np.empty(0, np.intp))
    found = with_products(
        moving.samples, lambda products: _best_partners(fixed, moving, settings, products)
    )
    returned = found.back[found.forth] == np.arange(len(fixed))
    mutual = np.flatnonzero(found.accepted & returned)
    logger.info("%d matches of %d and %d key points", len(mutual), len(fixed), len(moving))
    return _correspondences(fixed, moving, mutual, found.forth[mutual])


def find_supported(points: Floats, targets: Floats, reach_um: float) -> NDArray[np.bool_]:
    """Find the matches that are shifted as several of their neighbours are.

    None is longer than the reach. Shapes: `points` and `targets` (m, n); returns (m,).
    """
    if len(points) <= _AGREEING:
        return np.zeros(len(points), bool)
    neighbours = cKDTree(points).query(points, min(_ASKED + 1, len(points)))[1][:, 1:]
    moves = targets - points
    apart = np.linalg.norm(moves[neighbours] - moves[:, None], axis=-1)
    return np.asarray((apart < _ALIKE * reach_um).sum(axis=1) >= _AGREEING)


@dataclass(frozen=True, eq=False)
class _Partners:
    """Each fixed point's best moving one, the reverse, and which fixed points have a good one."""

    forth: NDArray[np.intp]
    back: NDArray[np.intp]
    accepted: NDArray[np.bool_]


def _best_partners(
    fixed: Contexts, moving: Contexts, settings: MatchSettings, products: Products
) -> _Partners:
    """Find them in rows of scores, of which only the winners leave the engine."""
    xp, get = products.xp, products.get
    samples, points = products.put(moving.samples), products.put(moving.points)
    forth = np.empty(len(fixed), np.intp)
    accepted = np.empty(len(fixed), bool)
    back = np.zeros(len(moving), np.intp)
    back_score = np.full(len(moving), -np.inf, np.float32)

    def take(start: int, stop: int) -> None:
        scores = correlate(products.put(fixed.samples[start:stop]), samples, xp)
        if settings.max_distance_um is not None:
            apart = products.distances(products.put(fixed.points[start:stop]), points)
            scores[apart > settings.max_distance_um] = -np.inf
        best = scores.argmax(axis=1)
        good = _accepted(scores, best, points, settings, products)
        upward = scores.argmax(axis=0)
        top = get(scores[upward, xp.arange(len(moving))])
        forth[start:stop], accepted[start:stop] = get(best), get(good)
        better = top > back_score
        back[better], back_score[better] = get(upward)[better] + start, top[better]

    products.in_rows(len(fixed), _ROWS, take)
    return _Partners(forth, back, accepted)


def _accepted(
    scores: Array, best: Array, points: Array, settings: MatchSettings, products: Products
) -> Array:
    """Rows with a best score above the threshold and, if wanted, no rival elsewhere."""
    xp = products.xp
    top = scores[xp.arange(len(best)), best]
    accepted = top > settings.threshold
    if settings.max_ambiguity is None:
        return accepted
    elsewhere = products.distances(points[best], points) > settings.distinct_um
    second = xp.where(elsewhere, scores, np.float32(-np.inf)).max(axis=1)
    return accepted & (second <= settings.max_ambiguity * top)


def _correspondences(
    fixed: Contexts, moving: Contexts, i: NDArray[np.intp], j: NDArray[np.intp]
) -> Correspondences:
    products = np.einsum("ij,ij->i", fixed.samples[i], moving.samples[j], dtype=np.float64)
    norms = np.ones(len(i))
    for part in (fixed.samples[i], moving.samples[j]):
        norms *= np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
    return Correspondences(
        fixed.points[i], moving.points[j], products / norms, fixed.index[i], moving.index[j]
    )
