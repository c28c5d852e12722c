"""Verdicts follow from evidence, whatever the similarity that was reached."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from itkstream.geometry import Grid
from itkstream.judge.verdict import Evidence, Verdict, judge

SOUND: dict[str, Any] = {
    "median_um": 0.4,
    "p95_um": 1.1,
    "share_over_2_vox": 0.02,
    "share_over_5_vox": 0.01,
    "share_unknown": 0.02,
    "tissue_voxels": 90000,
    "chance": {
        "local_correlation_mean": 0.05,
        "local_correlation_most": 0.09,
        "local_correlation_reached": 0.6,
    },
    "regions": [{"box": [[0, 8], [4, 20], [0, 16]], "share": 0.01, "median_um": 7.0}],
}
FIXED = Grid((40, 60, 60), (2.0, 1.0, 1.0), (10.0, 0.0, 0.0))
GOOD = Evidence(
    FIXED,
    np.diag([1.02, 0.97, 1.0, 1.0]),
    {"fixed": 1.0, "moving": 0.8},
    [{"name": "affine", "evidence": {"outcome": "convincing"}}],
    {"failures": []},
    SOUND,
)


@pytest.mark.parametrize(
    ("unknown", "median_um", "said"),
    [
        (0.0, 7.0, "error up to 7 µm predicted"),
        (0.9, 7.0, "nothing can be said of 90 % of it, in the rest error up to 7 µm predicted"),
        (1.0, None, "nothing can be said"),
    ],
)
def test_a_region_is_not_described_by_its_known_part_alone(
    unknown: float, median_um: float | None, said: str
) -> None:
    (region,) = SOUND["regions"]
    told = {**SOUND, "regions": [region | {"unknown": unknown, "median_um": median_um}]}
    assert judge(replace(GOOD, error=told)).regions[0].what == said


def test_nothing_speaks_against_a_good_one() -> None:
    found = judge(GOOD)
    assert found.outcome == "good"
    assert "0.4 µm in the median" in found.reasons[0]
    assert found.share_of_tissue == pytest.approx(
        {"sound": 0.97, "doubtful": 0.01, "unknown": 0.02}
    )
    assert found.regions[0].box_um == ((9.0, 25.0), (3.5, 19.5), (-0.5, 15.5))
    assert len(found.describe()) == 2
    assert Verdict.from_facts(json.loads(json.dumps(found.facts))) == found


@pytest.mark.parametrize(
    ("pull", "outcome", "said"),
    [
        (("", "borne out", False), "good", ""),
        (("", "unknown", True), "good", ""),
        (("", "unknown", False), "look", "where the images show nothing"),
        (("pull nothing, as images", "borne out", True), "look", "as images"),
        # Landmarks that are placed worse than the images meet them are no reason to doubt these.
        (("pull nothing, as others", "chance", True), "good", "as others"),
    ],
)
def test_landmarks_that_nothing_bears_out_are_told(
    pull: tuple[str, str, bool], outcome: str, said: str
) -> None:
    told = dict(zip(("left_out", "outcome", "images_tell"), pull, strict=True))
    step = {"name": "deformation", "landmark_evidence": told}
    found = judge(replace(GOOD, steps=[*GOOD.steps, step]))
    assert found.outcome == outcome
    assert said in " ".join(found.reasons)
    # What was dropped changed nothing.
    assert judge(replace(GOOD, steps=[*GOOD.steps, step | {"dropped": "chance"}])) == judge(GOOD)


WEAK = {
    "box": [[0, 12], [0, 60], [5, 60]],
    "share": 0.21,
    "median_um": 6.0,
    "rest_um": 2.5,
    "axis": 0,
    "third": 0,
    "share_of_third": 0.6,
}


def test_a_part_that_is_less_sure_is_told_and_changes_nothing_else() -> None:
    affine = {"name": "affine", "evidence": {"outcome": "convincing"}}
    # The first of these lies at voxel 5 along the first axis, the others at 20.
    affine["drawn_points"] = {"agree": [[20.0, 5.0, 5.0], *[[50.0, 5.0, 5.0]] * 9], "differ": []}
    steps = [{"name": "read"}, affine]
    told = replace(GOOD, error=SOUND | {"weak_part": WEAK}, steps=steps)
    plain, found = judge(replace(GOOD, steps=steps)), judge(told)
    assert replace(found, reasons=plain.reasons) == plain
    *others, said = found.reasons
    assert tuple(others) == plain.reasons
    name = FIXED.axes[0]
    assert said == (
        f"the first third along {name} (voxels 0:13, 0:60, 0:60) is less sure: error up to 6 µm "
        "predicted in 60 % of its tissue (21 % of all), 2.4 times that of the rest; 10 % of the "
        "key points that agree lie there"
    )
    nowhere = SOUND | {"weak_part": WEAK | {"axis": None, "third": None}}
    said = judge(replace(GOOD, error=nowhere)).reasons[-1]
    assert said.startswith("a part that hangs together (voxels 0:12, 0:60, 5:60) is less sure")
    assert "in it, 21 % of all tissue, 2.4 times" in said


def with_shares(doubtful: float, unknown: float, of: Evidence = GOOD) -> Evidence:
    shares = {"share_over_5_vox": doubtful, "share_unknown": unknown}
    return replace(of, error={**of.error, **shares})


def by_chance(evidence: Evidence) -> Evidence:
    """No more alike than at wrong places."""
    chance = {**evidence.error["chance"], "local_correlation_reached": 0.08}
    return replace(evidence, error={**evidence.error, "chance": chance})


UNPROVEN = replace(GOOD, steps=[{"name": "read"}])
DOUBTFUL = replace(GOOD, steps=[{"name": "affine", "evidence": {"outcome": "doubtful"}}])


def test_tissue_that_one_image_shows_is_not_judged() -> None:
    """Half of the tissue lies outside: nothing is known of it, and that is no fault."""
    half = replace(with_shares(0.02, 0.53), overlap={"fixed": 0.5, "moving": 0.5})
    found = judge(half)
    assert found.outcome == "good"
    assert found.share_of_tissue == pytest.approx({"sound": 0.9, "doubtful": 0.04, "unknown": 0.06})


def test_noise_may_hide_what_is_alike() -> None:
    assert judge(by_chance(UNPROVEN)).outcome == "good"


@pytest.mark.parametrize(
    ("evidence", "outcome", "said"),
    [
        (with_shares(0.1, 0.2), "look", "10 % of the tissue may be more than 5 voxels off"),
        (with_shares(0.8, 0.1, UNPROVEN), "failed", "of 10 % nothing can be said"),
        (by_chance(with_shares(0.1, 0.2, UNPROVEN)), "failed", "no more alike than"),
        # Key points speak for the affine: what is not known is no failure.
        (with_shares(0.8, 0.1), "look", "of 10 % nothing can be said"),
        (by_chance(with_shares(0.1, 0.2)), "look", "no more alike than"),
        (with_shares(0.8, 0.1, DOUBTFUL), "look", "of 10 % nothing can be said"),
        (by_chance(with_shares(0.8, 0.1, DOUBTFUL)), "failed", "no more alike than"),
        (replace(GOOD, overlap={"fixed": 0.01, "moving": 0.5}), "failed", "shows 1 % of the fixed"),
        (
            replace(GOOD, overlap={"fixed": 0.28, "moving": 0.31}),
            "look",
            "28 % of the fixed and 31",
        ),
        (replace(GOOD, matrix=np.diag([1.0, 1, 0.5, 1])), "look", "axis 2 is stretched 0.50 times"),
        (replace(GOOD, matrix=np.diag([1.0, -1, 1, 1])), "look", "mirrors the image"),
        (replace(GOOD, certificate={"failures": ["9 of 9 voxels"]}), "look", "9 of 9 voxels"),
    ],
)
def test_whatever_speaks_against_it_is_said(evidence: Evidence, outcome: str, said: str) -> None:
    found = judge(evidence)
    assert found.outcome == outcome
    assert found.describe()[-1] == (
        "  voxels 0:8, 4:20, 0:16 (1 % of the tissue): error up to 7 µm predicted"
    )
    assert said in found.reasons[0]


def test_the_last_affine_that_was_kept_is_judged() -> None:
    doubtful = {"name": "affine", "evidence": {"outcome": "doubtful"}}
    unknown = replace(GOOD, error={})
    assert judge(replace(unknown, steps=[doubtful])).outcome == "look"
    kept = replace(unknown, steps=[doubtful, *GOOD.steps])
    assert judge(kept).outcome == "good"
    dropped = [*GOOD.steps, doubtful | {"dropped": "why"}]
    assert judge(replace(unknown, steps=dropped)).outcome == "good"
    # What is known of the error after all steps goes before what spoke for the first.
    assert judge(replace(GOOD, steps=[doubtful])).outcome == "good"


@pytest.mark.parametrize(("deviations", "outcome"), [(8.4, "look"), (1.3, "failed")])
def test_images_in_other_stains_are_told_by_what_they_share(
    deviations: float, outcome: str
) -> None:
    """Of two stains of a fish, rightly registered, correlation is that of unrelated parts."""
    followed = {"name": "deformation", "similarity": "mind"}
    told = followed | {"information_gain_deviations": deviations}
    stains = replace(DOUBTFUL, steps=[*DOUBTFUL.steps, told])
    assert judge(by_chance(with_shares(0.9, 0.1, stains))).outcome == outcome
    left = replace(DOUBTFUL, steps=[*DOUBTFUL.steps, told | {"dropped": "why"}])
    assert judge(by_chance(with_shares(0.9, 0.1, left))).outcome == "failed"


def test_parts_that_fit_elsewhere_are_told() -> None:
    """As of slabs in another order, of which one affine brings some together."""
    for inliers, apart_um, outcome in ((90, 3.0, "good"), (9, 30.0, "good"), (90, 30.0, "look")):
        elsewhere = {"inliers": inliers, "apart_um": apart_um, "agree": 200}
        judged = judge(replace(GOOD, steps=[{"name": "affine", "elsewhere": elsewhere}]))
        assert judged.outcome == outcome
    assert "90 matches of key points agree on another place" in judged.reasons[0]


def test_tissue_without_counterpart_is_told_and_shown() -> None:
    region = {"share_of_tissue": 0.3, "voxels": [[0, 4, 2], [9, 19, 59]]}
    for left_out, share, outcome in (
        (True, 0.3, "look"),
        (True, 0.1, "good"),
        (False, 0.3, "good"),
    ):
        facts = {"left_out": left_out, "regions": [region | {"share_of_tissue": share}]}
        steps = [*GOOD.steps, {"name": "deformation", "without_counterpart": facts}]
        judged = judge(replace(GOOD, steps=steps))
        assert judged.outcome == outcome
        assert len(judged.regions) == 1 + left_out
    judged = judge(replace(GOOD, steps=[{"without_counterpart": facts | {"left_out": True}}]))
    assert "30 % of the tissue has no counterpart" in judged.reasons[0]
    assert judged.regions[0].box_voxels == ((0, 10), (4, 20), (2, 60))
    assert judged.regions[0].box_um == ((9.0, 29.0), (3.5, 19.5), (1.5, 59.5))


def test_a_turn_shears_and_stretches_nothing() -> None:
    c, s = np.cos(0.7), np.sin(0.7)
    turn = np.array([[c, -s, 0, 5], [s, c, 0, 7], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert judge(replace(GOOD, matrix=turn)).outcome == "good"
    sheared = np.eye(4)
    sheared[0, 1] = 0.4
    assert "shears by 2" in judge(replace(GOOD, matrix=sheared)).reasons[0]


def test_without_an_error_map_the_rest_is_judged() -> None:
    found = judge(replace(GOOD, error={}))
    assert (found.outcome, found.regions, found.share_of_tissue) == ("good", (), {})
