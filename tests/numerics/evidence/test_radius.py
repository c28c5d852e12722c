"""Radii from evidence: worse evidence never gives a smaller one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.numerics.evidence.radius import (
    EVIDENCE,
    RadiusTable,
    WideEvidence,
    describe_nodes,
    load_table,
    measure_disarray,
)
from itkstream.numerics.evidence.residuals import MEASURES

VALUES = st.lists(st.floats(-4, 8), min_size=len(EVIDENCE), max_size=len(EVIDENCE))


def measures(**changed):
    known = {"fit": 0.95, "best": 0.95, "shift": 0.1, "far": 0.4, "spread": 0.2, "twin": 0.4}
    known |= {"blur": 0.02, "seen": 1.0} | changed
    return np.full((6, 6, 6, len(MEASURES)), [known[name] for name in MEASURES], np.float32)


def described(own, wide, halves):
    """Evidence where all of the image is tissue."""
    astray = measure_disarray(wide, halves, np.ones(wide.shape[:-1], bool), 4)
    return describe_nodes(own, WideEvidence(wide, halves, astray), 4)


@given(VALUES, st.sampled_from(range(len(EVIDENCE))), st.floats(0, 5))
def test_worse_evidence_gives_no_smaller_radius(values, which, more):
    worse = list(values)
    worse[which] += more
    radii = load_table().radius(np.array([values, worse]))
    assert 0 < radii[0] <= radii[1]


def test_nothing_seen_has_no_radius():
    assert np.isnan(load_table().radius(np.full((1, len(EVIDENCE)), np.nan))).all()


def test_good_evidence_is_within_a_voxel_and_none_is_far():
    close, apart = np.full((6, 6, 6, 2), 0.1, np.float32), np.full((6, 6, 6, 2), 5.0, np.float32)
    good = load_table().radius(described(measures(), measures(), close))
    bad = measures(fit=0.2, best=0.5, shift=4.0, far=0.5, twin=0.6, blur=0.4)
    wrong = load_table().radius(described(bad, bad, apart))
    assert good.max() < 1
    assert wrong.min() > 5
    unknown = np.full_like(bad, np.nan)
    assert load_table().radius(described(unknown, bad, apart)).min() > 5


def test_radii_grow_as_the_distance_of_halves_does():
    seen, once = measures(), np.full((6, 6, 6, 2), 0.5, np.float32)
    wide = [WideEvidence(seen, k * once, -6.0) for k in (1, 2, 4)]
    evidence = [describe_nodes(seen, some, 4) for some in wide]
    radii = [load_table().radius(some).max() for some in evidence]
    # One voxel and a fiftieth of one that counts at least, then two, then four.
    np.testing.assert_allclose(radii / radii[0], np.array([1.02, 2.02, 4.02]) / 1.02, rtol=1e-3)


def test_on_very_coarse_voxels_patches_nearby_count_too():
    """Halves 4 voxels apart are noise there where patches fit best within a tenth of a voxel."""
    apart = np.full((6, 6, 6, 2), 2.0, np.float32)

    def radius(shift, scale):
        own = measures(shift=shift)
        evidence = describe_nodes(own, WideEvidence(measures(), apart, -6.0, scale), 4)
        return load_table().radius(evidence).max()

    assert radius(0.1, 4.0) == radius(0.1, 1.0) == radius(0.4, 1.0)
    assert radius(0.1, 16.0) < radius(0.1, 8.0) < 0.7 * radius(0.1, 4.0)
    assert radius(0.1, 8.0) < radius(1.0, 8.0) < radius(0.1, 4.0)
    # At the end of the reach the best fit is anywhere: halves alone tell.
    assert radius(4.0, 8.0) == pytest.approx(radius(4.0, 1.0))


def test_an_image_is_astray_where_it_neither_fits_nor_moves_alike():
    shape, halves = (6, 6, 6), lambda apart: np.full((6, 6, 6, 2), apart, np.float32)
    tissue = np.zeros(shape, bool)
    tissue[:, 2:] = True
    found = [
        measure_disarray(measures(fit=fit), halves(apart), tissue, 4)
        for fit, apart in ((0.95, 0.1), (0.3, 0.1), (0.95, 2.0), (0.3, 2.0))
    ]
    assert max(found[:3]) < found[3] - 2
    assert found[3] == pytest.approx(np.log(2.0**2 * 0.7 + 1e-3), rel=1e-5)
    # Neither what is beside the tissue nor what is not seen counts.
    mixed, apart = measures(fit=0.95), halves(0.1)
    mixed[:, :2], apart[:, :2] = measures(fit=0.0)[:, :2], 9.0
    unseen = np.where(np.arange(6)[:, None, None, None] < 2, np.nan, mixed).astype(np.float32)
    unseen[:2, ..., MEASURES.index("seen")] = 0.0
    for some in (mixed, unseen):
        assert measure_disarray(some, apart, tissue, 4) == pytest.approx(found[0])
    assert measure_disarray(np.full_like(mixed, np.nan), apart * np.nan, tissue, 4) > 5


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = RadiusTable(-1.25, {"shift": ([0.0, 1.0], [0.0, 0.5])})
    (tmp_path / "table.json").write_text(table.to_json())
    read = load_table(tmp_path / "table.json")
    evidence = np.zeros((2, len(EVIDENCE)))
    evidence[1, EVIDENCE.index("shift")] = 2
    np.testing.assert_allclose(read.radius(evidence), np.exp([-1.25, -0.75]), rtol=1e-6)
