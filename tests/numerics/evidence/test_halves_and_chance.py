"""Two halves of the voxels agree on what is there; chance is what unrelated tissue reaches."""

import numpy as np
import pytest
from scipy import ndimage

from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.numerics.evidence.chance import find_chance
from itkstream.numerics.evidence.halves import compare_halves

GRID = Grid((48, 44, 40), (1.0, 1.0, 1.0))
STILL = AffineTransform(np.eye(4))
EVERYWHERE = np.ones(GRID.shape, bool)


def tissue(seed):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.standard_normal(GRID.shape), 1.5).astype(np.float32)


def noisy(image, seed):
    rng = np.random.default_rng(seed)
    return image + 0.3 * image.std() * rng.standard_normal(image.shape).astype(np.float32)


def halves(fixed, moving):
    pair = Image(fixed, GRID), Image(moving, GRID)
    return compare_halves(*pair, STILL, PIPELINE_DEFAULTS)


def test_halves_of_one_tissue_agree_and_of_two_do_not():
    image = tissue(0)
    right = halves(image, noisy(image, 1))
    wrong = halves(image, tissue(1))
    assert np.percentile(right, 95) < 0.3
    assert np.median(wrong[..., 0]) > 1
    assert np.median(wrong[..., 1]) > 1


def test_halves_tell_that_a_transform_is_off():
    image = tissue(0)
    moving = ndimage.shift(image, (3, 0, 0), mode="nearest")
    inner = halves(image, moving)[8:-8, 8:-8, 8:-8]
    # The identity is three voxels off, and both halves say so.
    assert np.median(inner[..., 0]) < 0.3
    assert np.median(inner[..., 1]) == pytest.approx(3, abs=0.3)


def test_halves_of_nothing_are_unknown():
    assert np.isnan(halves(tissue(0), np.zeros(GRID.shape, np.float32))).all()


@pytest.mark.slow
def test_chance_is_the_same_for_a_right_and_a_wrong_pair():
    image = tissue(0)
    pair = Image(image, GRID)
    right = find_chance(pair, noisy(image, 1), EVERYWHERE, PIPELINE_DEFAULTS)
    wrong = find_chance(pair, tissue(1), EVERYWHERE, PIPELINE_DEFAULTS)
    assert right.offsets == wrong.offsets > 0
    assert 0 < right.median < right.p95 < 0.5
    assert right.mean == pytest.approx(wrong.mean, rel=0.5)
    assert right.mean <= right.most < right.reached
    assert wrong.reached < wrong.most
    assert find_chance(pair, tissue(1), EVERYWHERE, PIPELINE_DEFAULTS) == wrong


def test_chance_of_nothing_is_unknown():
    none = np.full(GRID.shape, np.nan, np.float32)
    found = find_chance(Image(tissue(0), GRID), none, EVERYWHERE, PIPELINE_DEFAULTS)
    assert found.offsets == 0
    assert found.facts["local_correlation_median"] is None
