"""Residual shifts of patches: what was moved is told, and what fits nowhere."""

import numpy as np
import pytest
from scipy import ndimage

from itkstream.geometry import Grid
from itkstream.numerics.evidence.residuals import (
    MEASURES,
    PatchSearch,
    gradient_magnitude,
    measure_patches,
)


def texture(shape, seed=0, sigma=1.5):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.standard_normal(shape), sigma).astype(np.float32)


def measured(fixed, aligned, spacing=None, reach=6):
    spacing = spacing or (1.0,) * fixed.ndim
    search = PatchSearch.of(Grid(fixed.shape, spacing), reach)
    nodes = [range(-(-n // s)) for n, s in zip(fixed.shape, search.stride, strict=True)]
    found = measure_patches(fixed, aligned, search, spacing, nodes)
    return dict(zip(MEASURES, np.moveaxis(found, -1, 0), strict=True))


@pytest.mark.parametrize("move", [(0.0, 0.0, 0.0), (2.0, 0.0, -1.0), (0.4, -1.7, 2.3)])
def test_a_shift_is_found_between_voxels(move):
    fixed = texture((48, 40, 40))
    found = measured(fixed, ndimage.shift(fixed, move, order=3, mode="nearest"))
    inner = found["shift"][1:-1, 1:-1, 1:-1]
    # A parabola through three correlations is off by some hundredths of a voxel.
    np.testing.assert_allclose(inner, np.linalg.norm(move), atol=0.15)


def test_unrelated_tissue_fits_no_better_at_home():
    fixed, other = texture((48, 40, 40)), texture((48, 40, 40), 1)
    right, wrong = measured(fixed, fixed), measured(fixed, other)
    assert right["fit"].min() > 0.99
    assert right["shift"].max() < 0.1
    assert np.median(wrong["fit"]) < 0.3
    assert np.median(wrong["shift"]) > 3


def test_brightness_and_uneven_light_do_not_count():
    fixed = texture((40, 40))
    light = 3 + np.linspace(0, 2, 40)[:, None]
    np.testing.assert_allclose(measured(fixed, light * fixed + 7)["fit"], 1, atol=0.02)


def test_what_is_not_seen_tells_nothing():
    fixed = texture((64, 40, 40))
    aligned = np.where(np.arange(64)[:, None, None] < 32, fixed, np.float32(np.nan))
    found = measured(fixed, aligned)
    assert found["seen"][0].min() == pytest.approx(1)
    assert np.isfinite(found["fit"][:4]).all()
    # Beside the edge, means over what is seen of one image differ from those of the other.
    np.testing.assert_allclose(found["fit"][:3], 1, atol=0.02)
    np.testing.assert_allclose(found["fit"][3], 1, atol=0.1)
    assert not np.isfinite(found["fit"][6:]).any()
    assert found["seen"][6:].max() == 0


def test_constant_images_tell_nothing():
    found = measured(np.full((32, 32), 5, np.float32), texture((32, 32)))
    assert not np.isfinite(found["fit"]).any()


def test_a_node_depends_on_its_halo_only():
    fixed = texture((96, 32, 32))
    aligned = fixed + 0.1 * texture(fixed.shape, 1)
    search = PatchSearch.of(Grid(fixed.shape, (1.0, 1.0, 1.0)), 4)
    whole = measure_patches(fixed, aligned, search, (1, 1, 1), [range(12), range(4), range(4)])
    start = -(-search.halo[0] // 8) * 8
    part = slice(40 - start, 48 + start)
    cut = measure_patches(
        fixed[part], aligned[part], search, (1, 1, 1),
        [range(start // 8, start // 8 + 1), range(4), range(4)],
    )  # fmt: skip
    # Running means differ by their rounding.
    np.testing.assert_allclose(cut[0], whole[5], atol=2e-3)


@pytest.mark.parametrize("shape", [(40, 1, 40), (40, 3, 40), (7, 7), (1, 50)])
def test_thin_images_have_patches_as_thin(shape):
    fixed = texture(shape)
    found = measured(fixed, fixed)
    assert found["fit"].size
    np.testing.assert_allclose(found["fit"][np.isfinite(found["fit"])], 1, atol=0.02)


def test_deep_voxels_have_fewer_to_a_patch():
    search = PatchSearch.of(Grid((100, 100, 100), (0.5, 0.5, 2.0)), 8)
    assert search.window == (16, 16, 4)
    assert search.stride == (8, 8, 2)
    assert search.reach == (8, 8, 2)


def test_edges_are_the_same_in_every_contrast():
    image = texture((40, 40))
    np.testing.assert_allclose(
        gradient_magnitude(image, (1.0, 1.0)), gradient_magnitude(-image, (1.0, 1.0))
    )
    assert gradient_magnitude(image[None], (3.0, 1.0, 1.0)).shape == (1, 40, 40)
