"""Landmark splines against ITK's own, and their inverses against the splines."""

from __future__ import annotations

import logging
import pickle

import itk
import numpy as np
import pytest

from itkstream.errors import InputError
from itkstream.geometry import LandmarkSpline
from itkstream.geometry.splines import _radial, _slope

ITK = {
    "r": "ThinPlateSplineKernelTransform",
    "r2logr": "ThinPlateR2LogRSplineKernelTransform",
    "r3": "VolumeSplineKernelTransform",
}


def landmarks(n: int, seed: int = 0, move: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Scattered over 60 micrometers, far from the origin."""
    rng = np.random.default_rng(seed)
    fixed = rng.uniform(0, 60, (12, n)) + (200, -150, 80)[:n]
    return fixed, fixed + rng.normal(0, move, (12, n))


def numbers(values: np.ndarray) -> object:
    kept = itk.OptimizerParameters[itk.D](values.size)
    for k, value in enumerate(values.ravel()):
        kept.SetElement(k, float(value))
    return kept


def of_itk(kernel: str, fixed: np.ndarray, moving: np.ndarray) -> object:
    transform = getattr(itk, ITK[kernel])[itk.D, fixed.shape[1]].New()
    transform.SetParameters(numbers(fixed))
    transform.SetFixedParameters(numbers(moving))
    transform.ComputeWMatrix()
    return transform


def around(points: np.ndarray) -> np.ndarray:
    """Between the landmarks, and half their extent beyond."""
    low, high = points.min(axis=0), points.max(axis=0)
    far = 0.5 * (high - low)
    return np.random.default_rng(1).uniform(low - far, high + far, (200, points.shape[1]))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("kernel", ITK)
def test_maps_points_as_itk_does(kernel: str, n: int) -> None:
    fixed, moving = landmarks(n)
    spline, peer = LandmarkSpline(fixed, moving, kernel), of_itk(kernel, fixed, moving)
    points = around(fixed)
    wanted = np.array([list(peer.TransformPoint(p.tolist())) for p in points])
    # ITK solves the same equations in coordinates as they come: some 1e5 times worse conditioned.
    np.testing.assert_allclose(spline.apply(points), wanted, atol=1e-6)
    np.testing.assert_allclose(spline.apply(fixed), moving, atol=1e-9)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("kernel", ITK)
def test_the_inverse_leads_back(kernel: str, n: int) -> None:
    fixed, moving = landmarks(n)
    back = LandmarkSpline(moving, fixed, kernel, inverse=True)
    spline = LandmarkSpline(fixed, moving, kernel)
    points = around(fixed)
    np.testing.assert_allclose(back.apply(spline.apply(points)), points, atol=1e-8)
    np.testing.assert_allclose(back.apply(moving), fixed, atol=1e-8)


@pytest.mark.parametrize("kernel", ITK)
def test_slopes_are_derivatives(kernel: str) -> None:
    r, step = np.linspace(0.1, 3, 30), 1e-6
    rise = (_radial(kernel, r + step) - _radial(kernel, r - step)) / (2 * step)
    # Of central differences.
    np.testing.assert_allclose(_slope(kernel, r) * r, rise, atol=1e-8)


def test_shapes_and_processes() -> None:
    fixed, moving = landmarks(3)
    spline = LandmarkSpline(fixed, moving)
    points = around(fixed).reshape(10, 20, 3)
    mapped = spline.apply(points)
    assert mapped.shape == points.shape
    assert spline.apply(np.zeros((0, 3))).shape == (0, 3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(spline)).apply(points), mapped)


def test_an_affine_stays_one() -> None:
    fixed, _ = landmarks(3)
    matrix = np.array([[1.1, 0.1, 0.0], [0.0, 0.9, 0.05], [-0.1, 0.0, 1.0]])
    spline = LandmarkSpline(fixed, fixed @ matrix.T + (3, -4, 5), "r2logr")
    points = around(fixed) * 3
    np.testing.assert_allclose(spline.apply(points), points @ matrix.T + (3, -4, 5), atol=1e-8)


def test_folds_are_told(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 10, (12, 2))
    spline = LandmarkSpline(fixed, rng.permutation(fixed), "r3", inverse=True)
    with caplog.at_level(logging.WARNING):
        mapped = spline.apply(rng.uniform(-10, 20, (500, 2)))
    assert np.isfinite(mapped).all()
    assert "folds" in caplog.text


def test_refuses() -> None:
    fixed, moving = landmarks(3)
    flat = fixed * (1, 1, 0)
    holes = np.where(np.arange(3) == 1, np.nan, fixed)
    twice = np.concatenate([fixed, fixed[:1]])
    for one, two, kernel, message in (
        (fixed, moving[:-1], "r", "as many 2-D or 3-D points"),
        (fixed[:, :1], moving[:, :1], "r", "as many 2-D or 3-D points"),
        (fixed, holes, "r", "must be finite"),
        (fixed, moving, "r5", "unknown kernel 'r5'.*nown: r, r2logr, r3"),
        (flat, moving, "r", "not all in one plane"),
        (fixed[:3], moving[:3], "r", "4 landmarks or more"),
        (twice, np.concatenate([moving, moving[:1]]), "r", "no two in one place"),
    ):
        with pytest.raises(InputError, match=message):
            LandmarkSpline(one, two, kernel)
