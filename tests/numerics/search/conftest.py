"""A phantom whose moving image is turned far, and the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from itkstream.geometry import AffineTransform, Image
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.phantoms import PhantomPair


def turned_image(image: Image, linear: np.ndarray, shift: float) -> tuple[Image, np.ndarray]:
    """An image turned about its middle and shifted, and the map from the original's points."""
    grid, n = image.grid, image.ndim
    middle = grid.to_physical((np.array(grid.shape) - 1) / 2)
    matrix = np.eye(n + 1)
    matrix[:n, :n] = linear
    matrix[:n, n] = middle - linear @ middle + shift
    voxels = np.asarray(image.read(), np.float32)
    settings = WarpSettings(background=float(np.percentile(voxels, 1)), dtype=np.float32)
    moved = warp_block(Image(voxels, grid), AffineTransform(matrix), grid, settings)
    return Image(moved, grid), np.linalg.inv(matrix)


@pytest.fixture(scope="session")
def turned(pair: PhantomPair) -> tuple[Image, Image, np.ndarray]:
    """The shared phantom, its moving image turned by 130 degrees, and the true affine."""
    axis = np.array([1.0, -2.0, 1.5])
    linear = Rotation.from_rotvec(np.deg2rad(130) * axis / np.linalg.norm(axis)).as_matrix()
    moving, onto = turned_image(pair.moving, linear, 4.0)
    return pair.fixed, moving, onto @ np.array(pair.truth.matrix)


@pytest.fixture(scope="session")
def mirrored(pair: PhantomPair) -> tuple[Image, Image, np.ndarray]:
    """The shared phantom, its moving image mirrored and turned, and the true affine."""
    linear = Rotation.from_rotvec([0.0, 0.0, np.pi / 2]).as_matrix() @ np.diag([-1.0, 1.0, 1.0])
    moving, onto = turned_image(pair.moving, linear, 0.0)
    return pair.fixed, moving, onto @ np.array(pair.truth.matrix)


@pytest.fixture(scope="session")
def error_um() -> Callable[[Image, np.ndarray, np.ndarray], float]:
    """Median distance of two affines in an image."""

    def measure(image: Image, matrix: np.ndarray, truth: np.ndarray) -> float:
        points = image.grid.positions()[::4, ::4, ::4].reshape(-1, 3)
        one, other = (AffineTransform(m).apply(points) for m in (matrix, truth))
        return float(np.median(np.linalg.norm(one - other, axis=1)))

    return measure
