"""Images of a few planes: the neighbourhoods and blobs by which they are matched fit into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, zoom

from itkstream.affine import ransac_affine
from itkstream.errors import RegistrationError
from itkstream.geometry import Grid, Image
from itkstream.numerics.matching.contexts import ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings, find_key_points
from itkstream.numerics.matching.ransac import RansacSettings, fit_in_planes
from itkstream.pipelines import register
from itkstream.registration.steps import RegisterSettings

AXES = ("x", "y", "z")

SHIFT = (5, -4)


def spots(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """Noise at the scale of nuclei, of one sign: bright blobs of some 5 voxels."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal(shape), 2.5, mode="wrap")
    return np.clip(smooth / smooth.std(), 0, None).astype(np.float32)


def pair(planes: int, axis: int, spacing: float) -> tuple[Image, Image, np.ndarray]:
    """Two stacks, one moved in its planes, and by how much in micrometers."""
    step = int(spacing)
    volume = spots((100, 92, planes * step))
    thinned = zoom(volume, (1, 1, 1 / step), order=1) if step > 1 else volume
    moved = np.roll(thinned, SHIFT, (0, 1))
    crop = (slice(8, -8), slice(8, -8))
    grid = Grid((84, 76, planes), (1.0, 1.0, spacing), axes=AXES)
    order = np.roll((0, 1, 2), axis + 1)
    shape, steps = (tuple(np.asarray(v)[order].tolist()) for v in (grid.shape, grid.spacing))
    where = Grid(shape, steps, axes=AXES)
    truth = np.array([*SHIFT, 0.0])[order]
    images = [np.ascontiguousarray(v[crop].transpose(order)) for v in (thinned, moved)]
    return Image(images[0], where), Image(images[1], where), truth


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planes", "axis", "spacing"),
    [(1, 2, 4.0), (2, 2, 4.0), (3, 0, 1.0), (5, 2, 4.0), (8, 1, 1.0), (12, 2, 4.0), (20, 2, 1.0)],
)
def test_stacks_of_few_planes_register(
    tmp_path: Path, planes: int, axis: int, spacing: float
) -> None:
    fixed, moving, truth = pair(planes, axis, spacing)
    result = register(fixed, moving, tmp_path / "out", settings=RegisterSettings(report=False))
    inner = [(10, n - 10) if n > 20 else (0, n) for n in fixed.shape]
    points = np.random.default_rng(0).uniform(*np.array(inner).T - 0.5, (500, 3)) * fixed.spacing
    apart = np.linalg.norm(result.transform.apply(points) - points - truth, axis=1)
    assert np.median(apart) < 0.3
    assert np.percentile(apart, 95) < 1.0


@pytest.mark.parametrize("thin", [0, 1])
def test_narrow_planes_match(thin: int) -> None:
    whole = spots((240, 40)) if thin else spots((40, 240))
    moved = np.roll(whole, (4, 0) if thin else (0, 4), (0, 1))
    cut = (slice(None), slice(12, 28)) if thin else (slice(12, 28), slice(None))
    matrix = ransac_affine(whole[cut], moved[cut], (1, 1), (1, 1), 2, 6, 0.7)
    assert isinstance(matrix, np.ndarray)
    expected = np.eye(3)
    expected[1 - thin, 2] = 4
    np.testing.assert_allclose(matrix, expected, atol=0.3)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 60), min_size=3, max_size=3),
    spacing=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    radius=st.integers(1, 20),
)
def test_a_window_is_as_it_was_or_fits(shape: list[int], spacing: list[float], radius: int) -> None:
    window = ContextWindow.from_voxels(radius, spacing)
    grid = Grid(tuple(shape), tuple(spacing), axes=AXES[: len(shape)])
    found = window.within(grid)
    for axis, n in enumerate(shape):
        if n >= 2 * radius:
            assert found.half_width_um[axis] == window.half_width_um[axis]
        else:
            assert 0 < found.half_width_um[axis] <= max(n - 1, 1) / 2 * spacing[axis] * (1 + 1e-9)
    if min(shape) >= 2 * radius:
        assert found is window


def test_discs_lie_in_the_middle_of_few_planes() -> None:
    place = np.array([20.0, 33.0])
    x, y = np.meshgrid(np.arange(60), np.arange(70), indexing="ij")
    disc = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 18)
    grid = Grid((60, 70, 3), (0.5, 0.5, 2.0), (10.0, 20.0, 30.0), axes=AXES)
    found = find_key_points(np.repeat(disc[..., None], 3, 2), grid, KeyPointSettings(1.0, 4.0))
    np.testing.assert_allclose(found.positions[0], (20.0, 36.5, 32.0), atol=0.05)


def test_a_transform_in_tilted_planes() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    flat = np.column_stack([rng.uniform(0, 100, (80, 2)), rng.uniform(-0.1, 0.1, 80)])
    truth = np.eye(4)
    truth[:2, :2] = [[1.1, 0.1], [-0.05, 0.95]]
    truth[:3, 3] = (4, -3, 2)
    basis = np.eye(4)
    basis[:3, :3] = turn
    truth = basis @ truth @ basis.T
    points = flat @ turn.T
    targets = points @ truth[:3, :3].T + truth[:3, 3]
    estimate = fit_in_planes(points, targets, turn[:, 2], RansacSettings())
    assert estimate.matrix is not None
    assert estimate.inliers.all()
    np.testing.assert_allclose(estimate.matrix, truth, atol=1e-9)


def test_the_message_counts_key_points_and_names_cc_radius() -> None:
    fixed, other = (spots((64, 60, 40), seed) for seed in (1, 2))
    with pytest.raises(RegistrationError) as error:
        ransac_affine(fixed, other, (1, 1, 1), (1, 1, 1), 2, 6, 0.7)
    assert "have enough of the image around them" in str(error.value)
    assert "cc_radius" in str(error.value)
