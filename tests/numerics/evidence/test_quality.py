"""Quality figures on images whose tissue and correlation are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, uniform_filter

from itkstream.numerics.evidence.quality import (
    content_mask,
    local_correlation_in_tissue,
    tissue_mask,
)


def half_tissue(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tissue = np.zeros((60, 50, 40), bool)
    tissue[:30] = True
    image = 100 + 5 * rng.normal(size=tissue.shape)
    image += tissue * 40 * np.abs(gaussian_filter(rng.normal(size=tissue.shape), 1.5)) * 20
    return image, tissue


def assert_is_tissue(found: np.ndarray) -> None:
    # The blur of 4 voxels carries tissue outwards; half-way on a logarithmic scale is some 2% of
    # its brightness, which a Gaussian reaches 2 to 2.5 of its widths further out.
    assert found[:29].all()
    assert not found[40:].any()


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_finds_tissue(scale: float) -> None:
    image, _ = half_tissue()
    found = tissue_mask((scale * image).astype(np.uint16))
    assert found.dtype == bool
    assert_is_tissue(found)


def test_nan_is_background_and_a_constant_is_all_tissue() -> None:
    image, tissue = half_tissue()
    image[~tissue] = np.nan
    assert_is_tissue(tissue_mask(image))
    assert tissue_mask(np.full((5, 6), 3)).all()


def test_correlation_is_that_of_windows() -> None:
    rng = np.random.default_rng(0)
    one = gaussian_filter(rng.normal(size=(60, 60)), 1.0)
    two = one + 0.7 * gaussian_filter(rng.normal(size=one.shape), 1.0)
    middle = np.zeros(one.shape, bool)
    middle[13:-13, 13:-13] = True

    def mean(x: np.ndarray) -> np.ndarray:
        return uniform_filter(x, 25)

    top = (mean(one * two) - mean(one) * mean(two)) ** 2
    below = (mean(one**2) - mean(one) ** 2) * (mean(two**2) - mean(two) ** 2)
    wanted = (top / below)[middle].mean()
    assert local_correlation_in_tissue(one, two, middle) == pytest.approx(wanted, rel=1e-6)
    # Gain and offset do not count.
    scaled = local_correlation_in_tissue(one, 7 - 3 * two, middle)
    assert scaled == pytest.approx(wanted, rel=1e-6)


def test_voxels_outside_the_moving_image_do_not_count() -> None:
    rng = np.random.default_rng(0)
    one = gaussian_filter(rng.normal(size=(60, 60)), 1.0)
    two = one.copy()
    two[30:] = np.nan
    everywhere = np.ones(one.shape, bool)
    assert local_correlation_in_tissue(one, two, everywhere) == pytest.approx(1, abs=1e-9)


def faint_scene(amplitude: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bright nuclei at one end, faint ones at the other, camera noise of 2 over all."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.normal(size=(96, 64, 64)), 2)
    nuclei = np.clip(texture / texture.std(), 0, None)
    strength = np.zeros(texture.shape)
    strength[:24] = 500
    strength[72:] = amplitude
    return 100 + strength * nuclei + rng.normal(0, 2, texture.shape), strength > 0


@pytest.mark.parametrize("amplitude", [500, 5, 2])
def test_faint_content_is_found_and_noise_is_not(amplitude: float) -> None:
    image, _ = faint_scene(amplitude)
    content = content_mask(image)
    boxes = content.reshape(6, 16, 4, 16, 4, 16).any((1, 3, 5))
    # Texture as faint as the noise of a voxel is found in every box of 16 voxels.
    assert boxes[[0, 5]].all()
    assert not boxes[2:4].any()
    assert content[:24].mean() > 0.3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_hide_nothing_else(value: float) -> None:
    image, _ = faint_scene(5)
    expected = content_mask(image)
    image[40, 5, 5] = value
    content = content_mask(image)
    # 4 voxels are what a blur of sigma 1 reaches; the level and the noise of the background change
    # by what one voxel of 400,000 can change them.
    assert not content[40, 5, 5]
    assert (content != expected).mean() < 1e-4


@pytest.mark.parametrize("contrast", [1, -1])
@pytest.mark.parametrize("offset", [0, 30_000])
def test_content_is_never_missed_on_a_bright_background_either(
    contrast: float, offset: float
) -> None:
    image, _ = faint_scene(50)
    content = content_mask(offset + contrast * image)
    boxes = content.reshape(6, 16, 4, 16, 4, 16).any((1, 3, 5))
    assert boxes[[0, 5]].all()
    # Where the background is brighter than the tissue, it counts as content: nothing is left out.
    assert boxes[2:4].any() == (contrast < 0)


def test_an_image_full_of_tissue_is_all_content() -> None:
    image, _ = faint_scene(500)
    content = content_mask(image[:24])
    assert content.reshape(3, 8, 4, 16, 4, 16).any((1, 3, 5)).all()


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_an_image_without_any_content_counts_as_full(value: float) -> None:
    assert content_mask(np.full((20, 20, 20), value)).all()


def test_content_on_true_zero_is_whatever_is_not_zero() -> None:
    image = np.zeros((40, 40, 40))
    image[30:, 30:, 30:] = 1
    image[0, 0, 0] = np.nan
    content = content_mask(image)
    assert content[30:, 30:, 30:].all()
    assert not content[:20].any()
