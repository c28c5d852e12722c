"""A transform from matched points of which many may be wrong.

References
----------
.. [1] M. Fischler and R. Bolles, "Random sample consensus", Communications of the ACM 24 (1981)
   381-395, :doi:`10.1145/358669.358692`.
.. [2] P. Torr and A. Zisserman, "MLESAC: a new robust estimator with application to estimating
   image geometry", Computer Vision and Image Understanding 78 (2000) 138-156,
   :doi:`10.1006/cviu.1999.0832` (the MSAC score).
.. [3] O. Chum, J. Matas and J. Kittler, "Locally optimized RANSAC", DAGM 2003, LNCS 2781,
   236-243, :doi:`10.1007/978-3-540-45243-0_31`.
.. [4] L. Moisan and B. Stival, "A probabilistic criterion to detect rigid point matches between
   two images and estimate the fundamental matrix", International Journal of Computer Vision 57
   (2004) 201-218, :doi:`10.1023/B:VISI.0000013094.38752.54`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import pdtrc

from itkstream.errors import InputError, RegistrationError
from itkstream.numerics.checks import TO_DEVIATION
from itkstream.numerics.compiling import compiled
from itkstream.numerics.threads import over_slabs

__all__ = [
    "AffineEstimate",
    "Model",
    "RansacSettings",
    "fit_affine",
    "fit_in_planes",
    "fit_ransac",
    "fit_robustly",
]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Model = Literal["translation", "rigid", "similarity", "affine"]

# Hypotheses drawn and scored together.
_BATCH = 128
# Batches that are fitted at once.
_AT_ONCE = 8
# A sample, or all inliers, spread over less than this fraction of their extent along some
# direction the model needs do not determine it.
_LEAST_SPREAD = 1e-3
# Thresholds of successive least squares, in units of the real one: a sample of noisy points
# predicts badly far from them, so its inliers are first sought further away.
_WIDENINGS = (3.0, 2.0, 1.5, *(1.0,) * 12)
# Rounds of a robust fit.
_ROUNDS = 30


@dataclass(frozen=True)
class RansacSettings:
    """Parameters of the search of `fit_ransac`, and of what it accepts.

    Parameters
    ----------
    model : {'affine', 'similarity', 'rigid', 'translation'}
        Which transforms are considered.
    threshold_um : float
        Largest residual of an inlier.
    max_trials : int
        Most hypotheses drawn.
    confidence : float
        Probability to have drawn a sample free of wrong matches before the search stops early.
    seed : int
        Seed of the random draws.
    min_inliers : int
        Fewest inliers of a transform that is accepted; more are asked for where so many would
        agree by chance, because the threshold is wide against the extent of the points.
    stretch : tuple of float
        Least and greatest stretch along any direction (singular value of the linear part) of a
        transform that is accepted; mirror images never are.

    Raises
    ------
    InputError
        Where a value is out of range; the message names it.

    Examples
    --------
    >>> itkstream.affine.RansacSettings("rigid", threshold_um=1.0).min_inliers
    10
    """

    model: Model = "affine"
    threshold_um: float = 2.0
    max_trials: int = 20_000
    confidence: float = 0.9999
    seed: int = 0
    min_inliers: int = 10
    stretch: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if self.model not in get_args(Model):
            raise InputError(f"model must be one of {get_args(Model)}; got {self.model!r}")
        if not 0 < self.threshold_um < np.inf:
            raise InputError(
                f"threshold_um must be a positive number of micrometers; got {self.threshold_um}"
            )
        if self.max_trials < 1 or self.min_inliers < 1:
            raise InputError(
                "max_trials and min_inliers must be at least 1; got "
                f"{self.max_trials} and {self.min_inliers}"
            )
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence must lie between 0 and 1; got {self.confidence}")
        if not 0 < self.stretch[0] <= 1 <= self.stretch[1] < np.inf:
            raise InputError(
                f"stretch must be (least, greatest) around 1, such as (0.5, 2); got {self.stretch}"
            )


@dataclass(frozen=True, eq=False)
class AffineEstimate:
    """A fitted transform, or why there is none; true in a condition when there is one.

    Parameters
    ----------
    matrix : ndarray, (n + 1, n + 1), or None
        Homogeneous matrix from fixed to moving points in µm; None where the fit failed.
    inliers : ndarray of bool, (m,)
        Which matches agree with it; none where the fit failed.
    residuals : ndarray, (m,)
        Distance of each moving point from the transformed fixed point, in µm; NaN where the fit
        failed.
    reason : str
        Why there is no transform; empty where there is.

    Examples
    --------
    >>> none = itkstream.affine.AffineEstimate(
    ...     None, np.zeros(0, int), np.zeros(0), "too few matches"
    ... )
    >>> none.reason
    'too few matches'
    """

    matrix: Floats | None
    inliers: NDArray[np.bool_]
    residuals: Floats
    reason: str = ""

    def __bool__(self) -> bool:
        return self.matrix is not None


def fit_ransac(
    fixed_points: ArrayLike, moving_points: ArrayLike, settings: RansacSettings | None = None
) -> AffineEstimate:
    """Fit a transform to matched points, many of which may be wrong.

    Hypotheses from minimal samples are scored by the truncated squared residual [2]_; each batch's
    best is refined by least squares on its inliers [3]_; the search stops when a better one has
    become improbable.
    """
    settings = settings or RansacSettings()
    matches = _Matches.of(fixed_points, moving_points)
    needed = max(settings.min_inliers, _by_chance(matches, settings))
    if len(matches) < needed:
        return matches.failed(f"{len(matches)} matches, fewer than the {needed} inliers needed")
    matrix = _search(matches, settings)
    if matrix is None:
        return matches.failed(
            f"no sample of {len(matches)} matches gave a plausible transform of model "
            f"{settings.model!r}: stretch within {settings.stretch} and no mirror image"
        )
    estimate = matches.estimate(matrix, settings.threshold_um)
    doubt = _doubt(estimate, matches, needed, settings)
    return matches.failed(doubt) if doubt else estimate


def fit_in_planes(
    fixed_points: ArrayLike, moving_points: ArrayLike, normal: ArrayLike, settings: RansacSettings
) -> AffineEstimate:
    """Fit a transform that keeps parallel planes apart as they are to matched points in 3-D.

    Points of a few planes do not tell how a transform acts across these.
    """
    p, q = _paired(fixed_points, moving_points)
    across = np.asarray(normal, np.float64)
    # Columns: two directions in the planes, and the normal.
    turn = np.concatenate([np.linalg.svd(across[None])[2][1:], across[None]]).T
    p, q = p @ turn, q @ turn
    estimate = fit_ransac(p[:, :2], q[:, :2], settings)
    if estimate.matrix is None:
        return estimate
    lifted = np.eye(4)
    lifted[:2, :2], lifted[:2, 3] = estimate.matrix[:2, :2], estimate.matrix[:2, 2]
    lifted[2, 3] = np.median((q - p)[estimate.inliers, 2])
    basis = np.eye(4)
    basis[:3, :3] = turn
    return AffineEstimate(basis @ lifted @ basis.T, estimate.inliers, estimate.residuals)


def fit_affine(
    points: ArrayLike, targets: ArrayLike, model: Model = "affine", weights: ArrayLike | None = None
) -> Floats:
    """Fit a transform to matched points by weighted least squares.

    Returns (n + 1, n + 1). Rotations after Kabsch, Acta Crystallographica A32 (1976) 922-923,
    doi:10.1107/S0567739476001873; similarities after Umeyama, IEEE Transactions on Pattern Analysis
    and Machine Intelligence 13 (1991) 376-380, doi:10.1109/34.88573.
    """
    p, q = _paired(points, targets)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    if w.shape != (len(p),) or not (np.isfinite(w) & (w >= 0)).all():
        raise InputError(f"weights must be {len(p)} finite numbers >= 0, one per match")
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise InputError("points and targets must be finite; leave out the pairs that are not")
    matrices, determined = _fit_batch(p[None], q[None], model, w[None])
    if not determined[0]:
        raise RegistrationError(
            f"{np.count_nonzero(w)} matches do not determine a transform of model {model!r}: too "
            "few, or all on one line or plane; use a simpler model or more matches"
        )
    return matrices[0]


def fit_robustly(
    points: ArrayLike, targets: ArrayLike, model: Model = "affine", weights: ArrayLike | None = None
) -> Floats:
    """Fit a transform to matched points most of which are right, however far they lie from it.

    Weights fall with the residual, as Cauchy's [5]_. Returns (n + 1, n + 1).
    """
    p, q = _paired(points, targets)
    known = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    matrix = fit_affine(p, q, model, known)
    for _ in range(_ROUNDS):
        residuals = np.sqrt(_squared_residuals(p, q, matrix))
        scale = TO_DEVIATION * float(np.median(residuals))
        if scale <= 1e-9:
            break
        matrix = fit_affine(p, q, model, known / (1.0 + (residuals / scale) ** 2))
    return matrix


@dataclass(frozen=True, eq=False)
class _Matches:
    """The finite matches, around the origin so that no digit is lost to a large offset."""

    fixed: Floats
    moving: Floats
    centres: tuple[Floats, Floats]
    finite: NDArray[np.bool_]

    @classmethod
    def of(cls, fixed_points: ArrayLike, moving_points: ArrayLike) -> _Matches:
        p, q = _paired(fixed_points, moving_points)
        finite = np.asarray(np.isfinite(np.hstack([p, q])).all(axis=1))
        p, q = p[finite], q[finite]
        centres = tuple(x.mean(axis=0) if len(x) else np.zeros(x.shape[1]) for x in (p, q))
        return cls(p - centres[0], q - centres[1], (centres[0], centres[1]), finite)

    def __len__(self) -> int:
        return len(self.fixed)

    def scores(self, matrices: Floats, limit: float) -> Floats:
        """Sum over all matches of the squared residual, at most `limit`, by each matrix (b,)."""
        n = self.fixed.shape[1]
        coefficients = np.ascontiguousarray(matrices[:, :n].transpose(1, 2, 0))
        out = np.zeros(len(matrices))
        _add_scores(self.fixed, self.moving, coefficients, limit, out)
        return out

    def squared_residuals(self, matrix: Floats) -> Floats:
        """Squared distance (m,) of every moving point from its prediction."""
        return _squared_residuals(self.fixed, self.moving, matrix)

    def uncentred(self, matrix: Floats) -> Floats:
        """The transform between the points as they were given."""
        out = matrix.copy()
        out[:-1, -1] += self.centres[1] - matrix[:-1, :-1] @ self.centres[0]
        return out

    def estimate(self, matrix: Floats, threshold: float) -> AffineEstimate:
        """The estimate for all the given matches, with those that are not finite left out."""
        residuals = np.full(len(self.finite), np.nan)
        residuals[self.finite] = np.sqrt(self.squared_residuals(matrix))
        inliers = np.less_equal(residuals, threshold, where=self.finite, out=~self.finite)
        return AffineEstimate(self.uncentred(matrix), inliers & self.finite, residuals)

    def failed(self, reason: str) -> AffineEstimate:
        """No estimate, and why."""
        logger.info("no transform fitted: %s", reason)
        m = len(self.finite)
        return AffineEstimate(None, np.zeros(m, bool), np.full(m, np.nan), reason)


def _search(matches: _Matches, settings: RansacSettings) -> Floats | None:
    """The hypothesis of the least MSAC score, locally refined."""
    rng = np.random.default_rng(settings.seed)
    limit = settings.threshold_um**2
    size = _sample_size(settings.model, matches.fixed.shape[1])
    best, best_score = None, np.inf
    trials, enough = 0, settings.max_trials
    batches = _batches(matches, settings, rng)
    while trials < enough:
        hypotheses = next(batches)
        trials += _BATCH
        if not len(hypotheses):
            continue
        scores = matches.scores(hypotheses, limit)
        first = int(np.argmin(scores))
        if scores[first] >= best_score:
            continue
        refined = _refine(matches, hypotheses[first], settings)
        squared = matches.squared_residuals(refined)
        score = float(np.minimum(squared, limit).sum())
        if score < best_score:
            best, best_score = refined, score
            enough = _trials_needed(float(np.mean(squared <= limit)), settings, size)
    logger.debug("%d hypotheses on %d matches", trials, len(matches))
    return best


def _squared_residuals(points: Floats, targets: Floats, matrix: Floats) -> Floats:
    moved = np.einsum("ij,kj->ki", matrix[:-1, :-1], points) + matrix[:-1, -1]
    return np.asarray(np.square(moved - targets).sum(axis=1))


@compiled
def _add_scores(fixed, moving, coefficients, limit, scores):  # type: ignore[no-untyped-def]
    """Add the squared residual of each match, at most `limit`, to the scores of all matrices.

    Match by match, of all matrices at once: a third of the time of whole arrays of residuals.
    """
    n, count = fixed.shape[1], scores.shape[0]
    squared, error = np.empty(count), np.empty(count)
    for j in range(fixed.shape[0]):
        squared[:] = 0.0
        for axis in range(n):
            here = moving[j, axis]
            for b in range(count):
                error[b] = coefficients[axis, n, b] - here
            for k in range(n):
                there = fixed[j, k]
                for b in range(count):
                    error[b] += coefficients[axis, k, b] * there
            for b in range(count):
                squared[b] += error[b] * error[b]
        for b in range(count):
            scores[b] += min(squared[b], limit)


def _batches(
    matches: _Matches, settings: RansacSettings, rng: np.random.Generator
) -> Iterator[Floats]:
    """Plausible hypotheses of one batch of samples after the other, without end.

    The first alone, as it often is enough; then so many at once that threads can share them: 20000
    hypotheses take half the time on two cores.
    """
    for count in chain([1], repeat(_AT_ONCE)):
        yield from _draw(matches, settings, rng, count)


def _draw(
    matches: _Matches, settings: RansacSettings, rng: np.random.Generator, count: int
) -> list[Floats]:
    """Plausible hypotheses from several batches of random minimal samples."""
    size, n = _sample_size(settings.model, matches.fixed.shape[1]), matches.fixed.shape[1]
    picks = rng.integers(0, len(matches), (count * _BATCH, size))
    ordered = np.sort(picks, axis=1)
    distinct = np.flatnonzero((ordered[:, 1:] != ordered[:, :-1]).all(axis=1))
    matrices = np.empty((len(distinct), n + 1, n + 1))
    sound = np.zeros(len(distinct), bool)

    def fit(start: int, stop: int) -> None:
        which = picks[distinct[start:stop]]
        found, determined = _fit_batch(
            matches.fixed[which], matches.moving[which], settings.model, np.ones(which.shape)
        )
        matrices[start:stop], sound[start:stop] = found, determined & _plausible(found, settings)

    over_slabs(fit, len(distinct)) if count > 1 else fit(0, len(distinct))
    ends = np.searchsorted(distinct[sound], _BATCH * np.arange(1, count))
    return np.split(matrices[sound], ends)


def _refine(matches: _Matches, matrix: Floats, settings: RansacSettings) -> Floats:
    """Least squares on the inliers, again and again, from a wide threshold to the real one."""
    before = np.zeros(len(matches), bool)
    for factor in _WIDENINGS:
        limit = (factor * settings.threshold_um) ** 2
        inliers = matches.squared_residuals(matrix) <= limit
        if factor == 1 and np.array_equal(inliers, before):
            break
        before = inliers
        fitted, determined = _fit_batch(
            matches.fixed[None], matches.moving[None], settings.model, inliers[None].astype(float)
        )
        if not determined[0]:
            break
        matrix = fitted[0]
    return matrix


def _by_chance(matches: _Matches, settings: RansacSettings) -> int:
    """More inliers than the best of all hypotheses is likely to have among random matches [4]_."""
    n = matches.fixed.shape[1]
    size = _sample_size(settings.model, n)
    if not len(matches):
        return size + 1
    extent = np.maximum(np.ptp(matches.moving, axis=0), 2 * settings.threshold_um)
    ball = {2: np.pi, 3: 4 / 3 * np.pi}[n] * settings.threshold_um**n
    counts = np.arange(len(matches) + 1)
    improbable = pdtrc(counts, len(matches) * ball / extent.prod()) * settings.max_trials < 0.01
    return size + 1 + int(counts[improbable][0] if improbable.any() else counts[-1])


def _doubt(
    estimate: AffineEstimate, matches: _Matches, needed: int, settings: RansacSettings
) -> str:
    """Why the estimate should not be trusted; empty where it should."""
    count = np.count_nonzero(estimate.inliers)
    if count < needed:
        return (
            f"{count} of {len(matches)} matches agree within {settings.threshold_um} µm, fewer "
            f"than the {needed} needed"
        )
    inliers = matches.fixed[estimate.inliers[matches.finite]]
    spread = _least_spread(inliers, settings.model)
    if spread <= settings.threshold_um:
        return (
            f"but for a few, the {count} inliers lie within {spread:.2g} µm of one line or plane "
            f"and do not determine a transform of model {settings.model!r}; use a simpler model"
        )
    assert estimate.matrix is not None
    if not _plausible(estimate.matrix[None], settings)[0]:
        stretch = np.linalg.svd(estimate.matrix[:-1, :-1], compute_uv=False)
        return (
            f"the best transform mirrors or stretches by {stretch.round(3).tolist()}, outside "
            f"{settings.stretch}"
        )
    return ""


def _least_spread(points: Floats, model: Model) -> float:
    """Standard deviation of points along the least extended direction that the model needs.

    The few points furthest out, as many as make a sample, are left out: a single wrong match off
    the plane of all others would else settle the transform across it, and fit it exactly.
    """
    n = points.shape[1]
    rank = _rank(model, n)
    if rank == 0:
        return np.inf
    _, outwards = _principal_spread(points)
    inner = np.argsort(outwards, kind="stable")[: max(1, len(points) - n - 1)]
    return float(_principal_spread(points[inner])[0][n - rank])


def _principal_spread(points: Floats) -> tuple[Floats, Floats]:
    """Standard deviations along the principal axes, rising, and each point's Mahalanobis norm."""
    centred = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.einsum("ki,kj->ij", centred, centred) / len(points))
    spread = np.sqrt(np.maximum(values, 1e-12 * values[-1]))
    along = np.einsum("ki,ij->kj", centred, vectors) / np.where(spread > 0, spread, 1)
    return spread, np.sqrt(np.square(along).sum(axis=1))


def _fit_batch(
    points: Floats, targets: Floats, model: Model, weights: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """Least squares for many sets of matches (b, k, n) at once, and which of them determine it."""
    b, _, n = points.shape
    share = weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    centres = [np.einsum("bk,bki->bi", share, x) for x in (points, targets)]
    p, q = points - centres[0][:, None], targets - centres[1][:, None]
    weighted = share[..., None] * p
    # Products in fixed order, not by a matrix library: its bits depend on its threads.
    spread = np.einsum("bki,bkj->bij", weighted, p)
    cross = np.einsum("bki,bkj->bij", q, weighted)
    values, vectors = np.linalg.eigh(spread)
    rank = _rank(model, n)
    determined = np.asarray(weights.any(axis=1))
    if rank:
        determined &= values[:, n - rank] > _LEAST_SPREAD**2 * values[:, -1]
    matrices = np.zeros((b, n + 1, n + 1))
    matrices[:, n, n] = 1
    matrices[:, :n, :n] = np.eye(n)
    if model == "affine":
        inverse = 1 / np.where(determined[:, None], values, 1)
        matrices[:, :n, :n] = (cross @ vectors * inverse[:, None]) @ vectors.transpose(0, 2, 1)
    elif model != "translation":
        matrices[:, :n, :n] = _rotations(cross, spread, model == "similarity")
    moved = np.einsum("bij,bj->bi", matrices[:, :n, :n], centres[0])
    matrices[:, :n, n] = centres[1] - moved
    return matrices, determined


def _rotations(cross: Floats, spread: Floats, scaled: bool) -> Floats:
    """The rotations nearest to the cross covariances, times the best scale if wanted."""
    u, values, vt = np.linalg.svd(cross)
    # The least certain direction is turned where the best orthogonal matrix would mirror.
    sign = np.ones_like(values)
    sign[:, -1] = np.sign(np.linalg.det(u @ vt))
    rotations = (u * sign[:, None]) @ vt
    if not scaled:
        return rotations
    variance = np.trace(spread, axis1=1, axis2=2)
    scale = (values * sign).sum(axis=1) / np.where(variance > 0, variance, 1)
    return rotations * scale[:, None, None]


def _plausible(matrices: Floats, settings: RansacSettings) -> NDArray[np.bool_]:
    linear = matrices[:, :-1, :-1]
    stretch = np.linalg.svd(linear, compute_uv=False)
    least, greatest = settings.stretch
    inside = (stretch[:, -1] >= least) & (stretch[:, 0] <= greatest)
    return np.asarray(inside & (np.linalg.det(linear) > 0))


def _rank(model: Model, n: int) -> int:
    """Along how many independent directions points must extend to determine the transform."""
    return {"translation": 0, "rigid": n - 1, "similarity": n - 1, "affine": n}[model]


def _sample_size(model: Model, n: int) -> int:
    """Fewest matches that determine the transform in n dimensions."""
    return {"translation": 1, "rigid": n, "similarity": n, "affine": n + 1}[model]


def _trials_needed(fraction: float, settings: RansacSettings, size: int) -> int:
    """Number of samples that make one without wrong matches as probable as wanted."""
    clean = fraction**size
    if clean >= 1:
        return 0
    wanted = np.log1p(-settings.confidence) / np.log1p(-max(clean, np.finfo(float).tiny))
    return int(min(settings.max_trials, np.ceil(wanted)))


def _paired(points: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    p, q = np.asarray(points, np.float64), np.asarray(targets, np.float64)
    if p.ndim != 2 or p.shape != q.shape or p.shape[1] not in (2, 3):
        raise InputError(
            "matched points must be two arrays of the same shape (m, 2) or (m, 3); got "
            f"{p.shape} and {q.shape}"
        )
    return p, q
