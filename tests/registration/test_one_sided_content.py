"""A template of the brain is registered to a head by the brain, not by the scalp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.pipelines import Registration, register
from itkstream.registration.steps import Deformable, IntensityAffine, RegisterSettings

SIDE = 72
GRID = Grid((SIDE,) * 3, (1.0, 1.0, 1.0), axes=("z", "y", "x"))
STEPS = (
    IntensityAffine(local_normalisation=4, shrink_factors=(2,), smooth_sigmas=(0.0,)),
    Deformable(),
)


def turned(degrees: float, shift: tuple[float, float, float]) -> AffineTransform:
    """A turn about z through the middle, then a shift."""
    a, matrix, middle = np.deg2rad(degrees), np.eye(4), np.full(3, (SIDE - 1) / 2)
    matrix[1:3, 1:3] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    matrix[:3, 3] = middle + shift - matrix[:3, :3] @ middle
    return AffineTransform(matrix)


TRUTH = turned(5, (1.5, -2.0, 1.0))


def depth(points: np.ndarray) -> np.ndarray:
    """Distance from the surface of the brain, an egg, inwards."""
    from_middle = (points - (SIDE - 1) / 2) / (1.0, 1.15, 0.9)
    return np.asarray(19 - np.linalg.norm(from_middle, axis=-1))


@pytest.fixture(scope="module")
def pair() -> tuple[Image, Image]:
    """A brain without its skull, and a turned head: its fluid is dark and its skin bright."""
    rng = np.random.default_rng(0)
    waves = (ndimage.gaussian_filter(rng.normal(0, s**1.5, GRID.shape), s) for s in (1.5, 3, 6))
    texture = sum(waves)
    texture /= texture.std()
    points = GRID.positions()
    fixed = np.where(depth(points) > 0, 120 + 20 * texture, 0)
    # The same place of the head, through the inverse of the truth.
    here = TRUTH.inverse().apply(points)
    d = depth(here)
    seen = 90 + 12 * ndimage.map_coordinates(
        texture, np.moveaxis(here, -1, 0), order=3, mode="nearest"
    )
    head = np.select([d > 0, d > -3, d > -7], [seen, 60, 190], 10) + rng.normal(0, 3, GRID.shape)
    return Image(fixed.astype(np.float32), GRID), Image(head.astype(np.float32), GRID)


def run(pair: tuple[Image, Image], out: Path, content: str) -> Registration:
    start = turned(4, (1.0, -1.0, 0.5))
    settings = RegisterSettings(content=content, error_map=False, report=False)
    return register(*pair, out, STEPS, settings, initial_transform=start)


def errors(result: Registration) -> tuple[float, float]:
    points = GRID.positions()
    inside = points[depth(points) > 1]
    apart = np.linalg.norm(result.transform.apply(inside) - TRUTH.apply(inside), axis=-1)
    return float(np.median(apart)), float(np.percentile(apart, 95))


@pytest.mark.slow
def test_the_scalp_draws_no_brain_to_it(pair: tuple[Image, Image], tmp_path: Path) -> None:
    common, whole = (run(pair, tmp_path / content, content) for content in ("common", "all"))
    near, far = errors(common), errors(whole)
    assert near[0] < 0.3
    assert near[1] < 1.0
    assert far[1] > 2 * near[1]
    facts = [step.get("left_out") for step in common.facts["steps"]]
    assert [number for number, share in enumerate(facts) if share is not None] == [1, 2]
    assert not any("left_out" in step for step in whole.facts["steps"])


@pytest.mark.slow
def test_a_run_goes_on_with_what_it_left_out(pair: tuple[Image, Image], tmp_path: Path) -> None:
    """Truth: the run that was not stopped. A part of the field that is lost is found again."""
    out = tmp_path / "out"
    whole = run(pair, out, "common")
    before = np.asarray(whole.aligned.read())
    (out / "registration.json").unlink()
    for name in ("2", "aligned"):
        (out / "steps" / f"{name}.json").unlink()
    again = run(pair, out, "common")
    np.testing.assert_array_equal(again.aligned.read(), before)
    report = json.loads((out / "registration.json").read_bytes())
    assert report["settings"]["content"] == "common"
