"""Summaries of error maps: shares of the tissue, quantiles and boxes, against plain arithmetic."""

import json

import numpy as np
import pytest

from itkstream.geometry import Grid, Image
from itkstream.judge.error_summary import summarise_error

FIXED = Grid((80, 64, 48), (0.5, 0.5, 1.0))
NODES = FIXED.shrink((8, 8, 4))


def summary(radii, tissue=None):
    mask = np.ones(FIXED.shape, bool) if tissue is None else tissue
    return summarise_error(Image(radii, NODES), Image(mask, FIXED), FIXED)


def test_shares_and_quantiles():
    radii = np.full(NODES.shape, 0.4, np.float32)
    radii[:2] = 2.0  # 4 voxels
    radii[2] = 5.0  # 10 voxels
    radii[3] = np.nan
    found = summary(radii)
    assert found.shares == {
        "share_over_2_vox": 0.3,
        "share_over_5_vox": 0.1,
        "share_unknown": 0.1,
    }
    assert found.median_um == pytest.approx(0.4, rel=0.01)
    assert found.p95_um == pytest.approx(5.0, rel=0.01)
    assert found.tissue_voxels == FIXED.size
    json.dumps(found.facts)


def test_only_tissue_counts():
    radii = np.full(NODES.shape, 0.4, np.float32)
    radii[5:] = 9.0
    tissue = np.zeros(FIXED.shape, bool)
    tissue[:40] = True
    found = summary(radii, tissue)
    assert found.shares["share_over_2_vox"] == 0
    assert not found.regions
    assert found.tissue_voxels == tissue.sum()


def test_worst_regions_are_boxes_of_voxels():
    radii = np.full(NODES.shape, 0.4, np.float32)
    radii[6:8, :2, :3] = 6.0
    radii[6, :2, :3] = np.nan
    radii[0, 6:, 9:] = np.nan
    first, second = summary(radii).regions
    assert first.box == ((48, 64), (0, 16), (0, 12))
    assert first.share == pytest.approx(12 / NODES.size, abs=1e-5)
    assert first.median_um == pytest.approx(6)
    assert (first.unknown, second.unknown) == (0.5, 1)
    assert second.box == ((0, 8), (48, 64), (36, 48))
    assert second.median_um is None


def test_a_part_that_is_far_less_sure_is_told():
    rng = np.random.default_rng(0)
    radii = rng.uniform(0.7, 1.0, NODES.shape).astype(np.float32)
    radii[:, :, 9:] *= 3
    found = summary(radii).weak_part
    assert found.box == ((0, 80), (0, 64), (36, 48))
    assert (found.axis, found.third) == (2, 2)
    assert (found.share, found.share_of_third) == (0.25, 0.75)
    assert found.median_um == pytest.approx(np.median(radii[:, :, 9:]), rel=0.02)
    assert found.rest_um == pytest.approx(np.median(radii[:, :, :9]), rel=0.02)
    json.dumps(summary(radii).facts)


def test_a_part_in_no_third_is_told_by_its_box():
    radii = np.full(NODES.shape, 0.8, np.float32)
    radii[1:9, 2:6, 2:10] = 4.0
    found = summary(radii).weak_part
    assert found.box == ((8, 72), (16, 48), (8, 40))
    assert found.axis is None


@pytest.mark.parametrize(
    ("raised", "by"),
    [
        ((slice(None), slice(None), slice(11, None)), 3.0),  # A twelfth of the tissue.
        ((slice(None), slice(None), slice(8, None)), 1.8),  # Not twice the rest.
        ((slice(None, None, 2), slice(None, None, 2)), 3.0),  # Scattered columns.
        ((slice(None), slice(None), slice(8, None)), 0.0),  # All alike.
    ],
)
def test_no_other_part_is_called_weak(raised, by):
    radii = np.full(NODES.shape, 0.8, np.float32)
    radii[raised] *= by or 1
    assert summary(radii).weak_part is None


def test_a_part_within_two_voxels_is_sure_enough():
    radii = np.full(NODES.shape, 0.2, np.float32)
    radii[:, :, 8:] = 0.9
    assert summary(radii).weak_part is None
    assert summary(np.full(NODES.shape, np.nan, np.float32)).weak_part is None


def test_nothing_known_is_said():
    found = summary(np.full(NODES.shape, np.nan, np.float32))
    assert found.median_um is found.p95_um is None
    assert "nothing can be said" in found.describe("micrometer")
