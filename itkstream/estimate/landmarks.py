"""Landmarks judged together: the affine they give, and which of them contradict the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Landmarks
from itkstream.numerics.matching.ransac import Model, fit_robustly

__all__ = ["LandmarkStart", "start_from", "weigh_landmarks"]

Floats = NDArray[np.float64]

# Extent across the landmarks' narrowest direction, relative to the widest, from which a stretch
# along it is told from the errors of placing.
_THIN = 0.1

# Of a landmark: those around it that tell where it should be, and the deviations beyond which it
# is doubted.
_NEIGHBOURS = 6
_DOUBT = 5.0
_LEAST_JUDGED = 8


@dataclass(frozen=True, eq=False)
class LandmarkStart:
    """The transform that landmarks give, its model, and their distances from it in µm."""

    transform: AffineTransform
    model: Model
    residuals: Floats

    def __str__(self) -> str:
        return (
            f"starting from {len(self.residuals)} landmarks: {self.model}, which leaves a median "
            f"of {np.median(self.residuals):.3g} µm"
        )


def start_from(landmarks: Landmarks) -> LandmarkStart:
    """Fit the transform from fixed to moving points that number and spread of landmarks allow.

    Some may be wrong: the fit is robust.
    """
    p, q = landmarks.fixed, landmarks.moving
    model = _choose_model(p, q)
    matrix = fit_robustly(p, q, model, landmarks.trust)
    return LandmarkStart(AffineTransform(matrix, landmarks.axes), model, _distances(matrix, p, q))


def _choose_model(fixed: Floats, moving: Floats) -> Model:
    """The richest model with more pairs than numbers need, and a spread that tells these apart."""
    m, n = fixed.shape
    if m < 1:
        raise InputError("no landmark is left to start from: give at least one pair")
    spread = np.sort(np.minimum(_extents(fixed), _extents(moving)))[::-1]
    flat = spread / spread[0] if spread[0] > 0 else np.zeros(n)
    # An affine needs n + 1 pairs; twice as many leave something to average.
    if m >= 2 * (n + 1) and flat[-1] >= _THIN:
        return "affine"
    # Along one line a turn about it is open.
    if m >= n + 1 and flat[n - 2] >= _THIN:
        return "similarity"
    if m >= n and flat[n - 2] >= _THIN:
        return "rigid"
    return "translation"


def _extents(points: Floats) -> Floats:
    """Standard deviations along the principal directions."""
    away = points - points.mean(axis=0)
    sizes = np.linalg.svd(away, compute_uv=False) / np.sqrt(len(points))
    return np.pad(sizes, (0, points.shape[1] - len(sizes)))


def _distances(matrix: Floats, fixed: Floats, moving: Floats) -> Floats:
    away = AffineTransform(matrix).apply(fixed) - moving
    return np.asarray(np.linalg.norm(away, axis=1))


def weigh_landmarks(landmarks: Landmarks) -> Landmarks:
    """Trust those less that lie far from where the landmarks around them put them.

    What is left after an affine is smooth in tissue: of each landmark it is compared with the
    median of its nearest neighbours'. Beyond five robust deviations of these differences trust
    falls, as Geman and McClure's weight has it. Fewer than eight cannot be judged.
    """
    m = len(landmarks)
    if m < _LEAST_JUDGED:
        return landmarks
    p = landmarks.fixed
    left = landmarks.moving - start_from(landmarks).transform.apply(p)
    near = cKDTree(p).query(p, min(_NEIGHBOURS, m - 1) + 1)[1][:, 1:]
    apart = np.linalg.norm(left - np.median(left[near], axis=1), axis=1)
    sigma = 0.0 if landmarks.sigma_um is None else float(np.median(landmarks.sigma_um))
    scale = max(float(np.median(apart)), sigma)
    if scale == 0:
        return landmarks
    beyond = np.maximum(apart / (_DOUBT * scale) - 1.0, 0.0)
    trust = 1.0 / (1.0 + beyond**2) ** 2
    known = 1.0 if landmarks.trust is None else landmarks.trust
    return replace(landmarks, trust=trust * known)
