"""The stiffness that is chosen for a pair, against what is known of its deformation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from itkstream import Deformable
from itkstream.estimate.stiffness import Foretold, choose_stiffness, foretell
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS

GRID = Grid((64, 64, 64), (1.0, 1.0, 1.0))
_SLOW = pytest.mark.slow
EVERYWHERE = np.ones(GRID.shape, bool)


def smooth(sigma: float, rng: np.random.Generator) -> np.ndarray:
    found = gaussian_filter(rng.normal(size=GRID.shape), sigma)
    return found / found.std()


def pair(sigma: float, length: float, noise: float) -> tuple[Image, Image]:
    """Blobs, moved by a field of some scale and root mean square length, and noise in both."""
    rng = np.random.default_rng(3)
    texture = smooth(1.5, rng) + smooth(4, rng)
    moves = np.stack([length * smooth(sigma, rng) for _ in range(3)])
    moved = map_coordinates(texture, np.indices(GRID.shape) + moves, order=3, mode="nearest")
    images = [image + noise * rng.normal(size=GRID.shape) for image in (moved, texture)]
    fixed, moving = (Image(image.astype(np.float32), GRID) for image in images)
    return fixed, moving


def choose(images: tuple[Image, Image], shift: float = 0.0) -> Foretold:
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    start = AffineTransform(matrix)
    return choose_stiffness(*images, start, PIPELINE_DEFAULTS, EVERYWHERE)


@pytest.mark.slow
def test_sharp_bends_want_a_soft_field_and_noise_a_stiff_one() -> None:
    soft = choose(pair(sigma=3.5, length=1.0, noise=0.1))
    stiff = choose(pair(sigma=20, length=1.0, noise=1.2))
    assert soft.stiffness < 1 <= stiff.stiffness
    assert stiff.correlations[1 / 4] < stiff.correlations[1.0]
    # Small moves in much noise are told from chance with room to spare.
    assert not soft.is_chance
    assert stiff.deviations > 12
    assert not choose(pair(sigma=20, length=0.2, noise=0.1)).is_chance


def test_images_apart_from_each_other_leave_the_default() -> None:
    found = choose(pair(sigma=20, length=1.0, noise=0.1), shift=500.0)
    assert found.stiffness == 1
    assert found.facts["hidden_gain_deviations"] is None
    # Nothing tells that it is chance.
    assert not found.is_chance


def test_few_cubes_tell_of_a_deformation_that_is_worse_than_none() -> None:
    few = Foretold(0.25, {1.0: 0.978, 0.25: 0.995}, 0.997, 0.995, np.nan)
    assert few.is_chance
    assert not replace(few, start=0.9).is_chance


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_deformations_of_unrelated_images_are_chance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = [Image(smooth(1, rng).astype(np.float32), GRID) for _ in range(2)]
    texture = [smooth(1.5, rng) + smooth(4, rng) for _ in range(2)]
    blobs = [Image(image.astype(np.float32), GRID) for image in texture]
    for images in (noise, blobs):
        found = choose((images[0], images[1]))
        assert found.is_chance
        assert found.start < 0.15


@pytest.mark.parametrize(
    "method",
    [
        "demons",
        "bspline",
        *(pytest.param(f"{kind}-demons", marks=_SLOW) for kind in ("symmetric", "diffeomorphic")),
    ],
)
def test_deformations_of_every_kind_are_judged(method: str) -> None:
    settings = Deformable(method).settings_for(GRID.spacing)
    start = AffineTransform(np.eye(4))
    moved = pair(sigma=20, length=1.0, noise=0.1)
    found = foretell(*moved, start, settings, EVERYWHERE)
    assert not found.is_chance
    assert found.kept > found.start + 0.1
    rng = np.random.default_rng(5)
    other = Image((smooth(1.5, rng) + smooth(4, rng)).astype(np.float32), GRID)
    assert foretell(moved[0], other, start, settings, EVERYWHERE).is_chance
