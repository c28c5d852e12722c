"""Landmarks judged together: the start they give, and those that contradict the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError
from itkstream.estimate.landmarks import start_from, weigh_landmarks
from itkstream.geometry import AffineTransform, Landmarks

RNG = np.random.default_rng(3)
BOX = RNG.uniform(0, 100, (40, 3))
TURN = Rotation.from_euler("zyx", (20, -35, 10), degrees=True).as_matrix()


def matrix_of(linear: np.ndarray, shift: tuple[float, ...]) -> AffineTransform:
    matrix = np.eye(len(shift) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, shift
    return AffineTransform(matrix)


STRETCHED = matrix_of(TURN @ np.diag((1.2, 0.9, 1.0)), (50.0, -7.0, 3.0))
SCALED = matrix_of(1.3 * TURN, (50.0, -7.0, 3.0))
TURNED = matrix_of(TURN, (50.0, -7.0, 3.0))
FLAT = BOX * (1, 1, 0.001)
LINE = np.linspace(0, 50, 12)[:, None] * (1.0, 2.0, 0.5)


@pytest.mark.parametrize(
    ("points", "truth", "model"),
    [
        (BOX, STRETCHED, "affine"),
        (BOX[:8], STRETCHED, "affine"),
        (BOX[:7], SCALED, "similarity"),
        (BOX[:3], TURNED, "rigid"),
        # A plane tells nothing of a stretch across it, and a line nothing of a turn about it.
        (FLAT, SCALED, "similarity"),
        (LINE, matrix_of(np.eye(3), (5.0, 6.0, 7.0)), "translation"),
        (BOX[:1], matrix_of(np.eye(3), (5.0, 6.0, 7.0)), "translation"),
        (BOX[:6, :2], matrix_of(np.array([[1.1, 0.2], [0.1, 0.9]]), (3.0, 4.0)), "affine"),
        (BOX[:2, :2], matrix_of(np.array([[0.6, -0.8], [0.8, 0.6]]), (3.0, 4.0)), "rigid"),
    ],
)
def test_number_and_spread_choose_the_model(
    points: np.ndarray, truth: AffineTransform, model: str
) -> None:
    start = start_from(Landmarks(points, truth.apply(points)))
    assert start.model == model
    np.testing.assert_allclose(start.transform.apply(points), truth.apply(points), atol=1e-6)
    assert start.residuals.max() < 1e-6


def test_wrong_landmarks_do_not_turn_the_start() -> None:
    placed = STRETCHED.apply(BOX) + RNG.normal(0, 0.5, BOX.shape)
    placed[:4] += 50.0
    start = start_from(Landmarks(BOX, placed))
    error = np.linalg.norm(start.transform.apply(BOX) - STRETCHED.apply(BOX), axis=1)
    # Least squares over all of them is off by 5 µm in the median.
    assert error.max() < 1.0
    with pytest.raises(InputError, match="no landmark is left"):
        start_from(Landmarks(np.empty((0, 3)), np.empty((0, 3))))


def bent(points: np.ndarray) -> np.ndarray:
    return STRETCHED.apply(points + 5.0 * np.sin(points[:, ::-1] / 30.0))


def test_a_landmark_that_contradicts_those_around_it_loses_its_trust() -> None:
    placed = bent(BOX) + RNG.normal(0, 0.5, BOX.shape)
    right = weigh_landmarks(Landmarks(BOX, placed, sigma_um=0.5))
    assert right.trust is not None
    assert right.trust.min() > 0.8
    placed[7] += (50.0, 0.0, 0.0)
    wrong = weigh_landmarks(Landmarks(BOX, placed, sigma_um=0.5))
    assert wrong.trust is not None
    assert wrong.trust[7] < 0.05
    assert np.delete(wrong.trust, 7).min() > 0.8
    # What a caller says of it stays.
    doubted = weigh_landmarks(replace(Landmarks(BOX, placed), trust=np.full(40, 0.5)))
    assert np.delete(doubted.trust, 7).max() <= 0.5


def test_few_landmarks_are_all_trusted() -> None:
    few = Landmarks(BOX[:7], STRETCHED.apply(BOX[:7]) + 30 * RNG.normal(size=(7, 3)))
    assert weigh_landmarks(few) is few
