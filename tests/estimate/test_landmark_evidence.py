"""Landmarks judged by each other, and by the images, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from itkstream.estimate.pull import PullEvidence, judge_pull
from itkstream.geometry import AffineTransform, ChannelPair, Grid, Image, Landmarks
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS

GRID = Grid((40, 36, 32), (1.0, 1.0, 1.5))
START = AffineTransform(np.eye(4))


def judged(moves: str, count: int, seed: int = 0) -> PullEvidence:
    """Landmarks in images of unrelated noise: moved by a smooth field, or by chance."""
    rng = np.random.default_rng(seed)
    noise = [Image(rng.normal(100, 10, GRID.shape).astype(np.float32), GRID) for _ in range(2)]
    ends = GRID.corners()
    places = rng.uniform(ends.min(axis=0) + 4, ends.max(axis=0) - 4, (count, 3))
    bend = 4 * np.sin(places[:, [1, 2, 0]] / 8)
    moved = places + (bend if moves == "smooth" else rng.normal(0, 3, places.shape))
    placed = moved + rng.normal(0, 0.3, places.shape)
    marks = Landmarks(places, placed, sigma_um=0.5, axes=GRID.axes)
    settings = PIPELINE_DEFAULTS.for_voxels(GRID.spacing)
    return judge_pull(ChannelPair(*noise), START, settings, marks)


@pytest.mark.parametrize("seed", [0, 1])
def test_landmarks_of_a_smooth_field_foretell_each_other_and_random_ones_do_not(seed: int) -> None:
    smooth, random = judged("smooth", 40, seed), judged("random", 40, seed)
    assert smooth.outcome == "borne out"
    assert smooth.with_um < 0.6 * smooth.without_um
    assert random.outcome == "chance"
    assert random.deviations < 0


def test_a_few_landmarks_tell_nothing() -> None:
    found = judged("smooth", 7)
    assert found.outcome == "unknown"
    assert found.facts["deviations"] is None
    assert "too few" in found.describe()
