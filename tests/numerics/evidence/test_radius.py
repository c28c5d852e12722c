"""Radii from evidence: worse evidence never gives a smaller one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from itkstream.numerics.evidence.radius import (
    EVIDENCE,
    RadiusTable,
    describe_nodes,
    load_table,
)
from itkstream.numerics.evidence.residuals import MEASURES

VALUES = st.lists(st.floats(-4, 8), min_size=len(EVIDENCE), max_size=len(EVIDENCE))


def measures(**changed):
    known = {"fit": 0.95, "best": 0.95, "shift": 0.1, "far": 0.4, "spread": 0.2, "twin": 0.4}
    known |= {"blur": 0.02, "seen": 1.0} | changed
    return np.full((6, 6, 6, len(MEASURES)), [known[name] for name in MEASURES], np.float32)


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
    good = load_table().radius(describe_nodes(measures(), measures(), close, 4))
    bad = measures(fit=0.2, best=0.5, shift=4.0, far=0.5, twin=0.6, blur=0.4)
    wrong = load_table().radius(describe_nodes(bad, bad, apart, 4))
    assert good.max() < 1
    assert wrong.min() > 5
    unknown = np.full_like(bad, np.nan)
    assert load_table().radius(describe_nodes(unknown, bad, apart, 4)).min() > 5


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = RadiusTable(-1.25, {"shift": ([0.0, 1.0], [0.0, 0.5])})
    (tmp_path / "table.json").write_text(table.to_json())
    read = load_table(tmp_path / "table.json")
    evidence = np.zeros((2, len(EVIDENCE)))
    evidence[1, EVIDENCE.index("shift")] = 2
    np.testing.assert_allclose(read.radius(evidence), np.exp([-1.25, -0.75]), rtol=1e-6)
