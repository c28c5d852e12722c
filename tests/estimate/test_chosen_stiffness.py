"""The stiffness that is chosen for a pair, against what is known of its deformation."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from itkstream.estimate.stiffness import choose_stiffness
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS

GRID = Grid((64, 64, 64), (1.0, 1.0, 1.0))
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


def choose(images: tuple[Image, Image], shift: float = 0.0) -> tuple[float, dict[float, float]]:
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    start = AffineTransform(matrix)
    return choose_stiffness(*images, start, PIPELINE_DEFAULTS, EVERYWHERE)


def test_sharp_bends_want_a_soft_field_and_noise_a_stiff_one() -> None:
    soft, _ = choose(pair(sigma=3.5, length=1.0, noise=0.1))
    stiff, scores = choose(pair(sigma=20, length=1.0, noise=1.2))
    assert soft < 1 <= stiff
    assert scores[1 / 4] < scores[1.0]


def test_images_apart_from_each_other_leave_the_default() -> None:
    assert choose(pair(sigma=20, length=1.0, noise=0.1), shift=500.0)[0] == 1
