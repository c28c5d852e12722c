"""Radii from evidence: worse evidence never gives a smaller one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.numerics.evidence.radius import (
    EVIDENCE,
    Curve,
    RadiusTable,
    Surface,
    WideEvidence,
    compress,
    describe_nodes,
    load_table,
    measure_disarray,
)
from itkstream.numerics.evidence.residuals import MEASURES

EXTENT = 120.0

VALUES = st.lists(st.floats(-4, 8), min_size=len(EVIDENCE), max_size=len(EVIDENCE))


def measures(**changed):
    known = {"fit": 0.95, "shift": 0.1, "seen": 1.0} | changed
    return np.full((6, 6, 6, len(MEASURES)), [known[name] for name in MEASURES], np.float32)


def halves(apart, off):
    return np.full((6, 6, 6, 2), [apart, off], np.float32)


def radii(own, wide, apart):
    """Radii where all of the image is tissue."""
    astray = measure_disarray(wide, apart, np.ones(wide.shape[:-1], bool), 4)
    return load_table().radius(describe_nodes(own, WideEvidence(apart, astray), 4), EXTENT)


@given(VALUES, st.sampled_from(range(len(EVIDENCE))), st.floats(0, 5), st.floats(1, 20))
def test_worse_evidence_gives_no_smaller_radius(values, which, more, scale):
    worse = list(values)
    worse[which] += more
    found = load_table().radius(np.array([values, worse]), EXTENT, scale)
    assert 0 < found[0] <= found[1] * (1 + 1e-6)


def test_nothing_seen_has_no_radius():
    unseen = np.full((1, len(EVIDENCE)), np.nan)
    assert np.isnan(load_table().radius(unseen, EXTENT)).all()
    assert np.isnan(load_table().radius(unseen, EXTENT, 6.0)).all()


def test_good_evidence_is_within_a_voxel_and_none_is_far():
    bad = measures(fit=0.2, shift=4.0)
    assert radii(measures(), measures(), halves(0.1, 0.1)).max() < 1
    assert radii(bad, bad, halves(5.0, 5.0)).min() > 16
    unknown = np.full_like(bad, np.nan)
    assert radii(unknown, bad, halves(np.nan, np.nan)).min() > 16


@pytest.mark.parametrize("off", [0.5, 1.0, 2.0, 4.0, 10.0, 20.0])
def test_a_place_that_halves_agree_on_is_within_the_radius_and_little_more(off):
    """Distances of halves count in voxels twice as large."""
    wide = WideEvidence(halves(0.05 * off, off), -6.0)
    found = load_table().radius(describe_nodes(measures(), wide, 4), EXTENT)
    np.testing.assert_array_less(2 * off, found)
    np.testing.assert_array_less(found, 2 * 2 * off)


def test_halves_that_disagree_have_larger_radii():
    found = [
        load_table().radius(describe_nodes(measures(), WideEvidence(some, -6.0), 4), EXTENT).max()
        for some in (halves(0.02, 0.5), halves(0.5, 0.5), halves(2.0, 0.5))
    ]
    assert found == sorted(set(found))


def test_where_patches_fit_nowhere_little_motion_of_halves_proves_nothing():
    still = halves(0.3, 0.2)
    assert radii(measures(shift=2.0), measures(), still).max() < 2
    assert radii(measures(shift=4.6), measures(), still).min() > 5


def test_a_lost_place_may_be_anywhere_in_the_image_of_any_size():
    lost = describe_nodes(measures(fit=0.1, shift=4.0), WideEvidence(halves(8.0, 8.0), 4.0), 4)
    small, large = (load_table().radius(lost, extent).min() for extent in (100.0, 10_000.0))
    # Two places in a cube are 0.62 of its diagonal apart or less, in 95 of 100.
    assert 50 < small <= 62
    assert 5000 < large <= 6200


@pytest.mark.parametrize("extent", [30.0, 120.0, 10_000.0])
def test_errors_are_told_as_radii_are(extent):
    level = Surface(([0.0, 1.0], [0.0, 1.0]), np.zeros((2, 2)))
    errors = np.array([0.5, 3.0, 15.0, 40.0])
    evidence = np.zeros((len(errors), len(EVIDENCE)))
    evidence[:, EVIDENCE.index("discord")] = compress(errors, extent)
    found = RadiusTable(level, Curve([-9.0, 9.0], [-9.0, 9.0])).radius(evidence, extent)
    np.testing.assert_allclose(found, np.minimum(errors, 0.62 * extent), rtol=1e-5)


def test_on_very_coarse_voxels_patches_nearby_count_too():
    """Halves 4 voxels apart are noise there where patches fit best within a tenth of a voxel."""

    def radius(shift, scale):
        wide = WideEvidence(halves(2.0, 2.0), -6.0, scale)
        evidence = describe_nodes(measures(shift=shift), wide, 4)
        return load_table().radius(evidence, EXTENT, scale).max()

    assert radius(0.1, 1.0) == radius(0.4, 1.0) == radius(2.0, 1.0)
    assert radius(0.1, 8.0) < 0.7 * radius(0.1, 1.0)
    assert radius(0.1, 4.0) < radius(1.0, 4.0) <= radius(4.0, 4.0)
    # Between scales radii lie between, and beyond the coarsest they stay.
    assert radius(0.1, 2.0) >= radius(0.1, 3.0) >= radius(0.1, 4.0)
    assert radius(0.1, 8.0) == radius(0.1, 50.0)


def test_an_image_is_astray_where_it_neither_fits_nor_moves_alike():
    tissue = np.zeros((6, 6, 6), bool)
    tissue[:, 2:] = True
    found = [
        measure_disarray(measures(fit=fit), halves(apart, apart), tissue, 4)
        for fit, apart in ((0.95, 0.1), (0.3, 0.1), (0.95, 2.0), (0.3, 2.0))
    ]
    assert max(found[:3]) < found[3] - 2
    assert found[3] == pytest.approx(np.log(2.0**2 * 0.7 + 1e-3), rel=1e-5)
    # Neither what is beside the tissue nor what is not seen counts.
    mixed, apart = measures(fit=0.95), halves(0.1, 0.1)
    mixed[:, :2], apart[:, :2] = measures(fit=0.0)[:, :2], 9.0
    unseen = np.where(np.arange(6)[:, None, None, None] < 2, np.nan, mixed).astype(np.float32)
    unseen[:2, ..., MEASURES.index("seen")] = 0.0
    for some in (mixed, unseen):
        assert measure_disarray(some, apart, tissue, 4) == pytest.approx(found[0])
    assert measure_disarray(np.full_like(mixed, np.nan), apart * np.nan, tissue, 4) > 5


def test_a_table_is_read_as_it_was_written(tmp_path):
    def surface(step):
        return Surface(([0.0, 1.0], [-1.0, 1.0]), np.array([[0.0, 0.5], [1.0, 1.0 + step]]))

    table = RadiusTable(surface(0.0), Curve([0.0, 1.0], [-0.5, 0.5]), {3.0: surface(1.0)})
    (tmp_path / "table.json").write_text(table.to_json())
    read = load_table(tmp_path / "table.json")
    evidence = np.array([[0.0, -1.0, 0.0, 0.0], [0.5, 1.0, 2.0, 0.5], [1.5, 9.0, 9.0, 1.0]])
    # 0, between 0.5 and 1, and 1, with what is added for discord.
    np.testing.assert_allclose(read.radius(evidence, 99), np.exp([-0.5, 1.25, 1.5]), rtol=1e-6)
    # Seen coarsely, 0.25 in place of -0.5, and half way between in the middle of the scales.
    for scale, height in ((3.0, 0.25), (3.0**0.5, -0.125), (9.0, 0.25)):
        np.testing.assert_allclose(read.radius(evidence[:1], 99, scale), np.exp(height), rtol=1e-6)
    for scale in (1.0, 2.0, 3.0, 5.0):
        np.testing.assert_array_equal(
            read.radius(evidence, 99, scale), table.radius(evidence, 99, scale)
        )
