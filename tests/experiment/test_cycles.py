"""Cycles of rounds: what is known to be off is told, and who is blamed for it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from itkstream.experiment.rounds.cycles import Cycle, close_ring, doubt_cycles, match_directly
from itkstream.geometry import AffineTransform
from itkstream.judge.verdict import Verdict

GOOD = Verdict("good", ("predicted error small",), (), {}, {"fixed": 1.0, "moving": 1.0}, {})


def shifted(matrix: np.ndarray, um: float) -> AffineTransform:
    found = np.array(matrix)
    found[0, -1] += um
    return AffineTransform(found)


def ring(*off: bool | None) -> list[Cycle]:
    """Cycles of a, b, c in a ring, open where they are off, not measured where None."""
    names = [("a", "b"), ("b", "c"), ("c", "a")]
    return [
        Cycle(pair, 5.0, 50, None if o is None else (9.0 if o else 1.0), 10.0, "" if o else "few")
        for pair, o in zip(names, off, strict=True)
    ]


def test_the_round_whose_cycles_are_all_open_is_to_be_looked_at():
    cycles = ring(True, True, False)
    found = {name: doubt_cycles(name, GOOD, cycles) for name in "abc"}
    assert [found[name].outcome for name in "abc"] == ["good", "look", "good"]
    assert "9 µm" in found["b"].reasons[0]
    assert found["a"] is GOOD


def test_an_unmeasured_cycle_says_nothing():
    assert doubt_cycles("a", GOOD, ring(None, None, None)) is GOOD
    assert doubt_cycles("b", GOOD, ring(True, None, None)).outcome == "look"


def test_a_worse_verdict_stays_and_gets_the_reason():
    failed = Verdict("failed", ("no more alike than chance",), (), {}, {}, {})
    found = doubt_cycles("b", failed, ring(True, True, False))
    assert found.outcome == "failed"
    assert found.reasons[0] == "no more alike than chance"
    assert len(found.reasons) == 2


@pytest.fixture(scope="module")
def known(three_rounds):
    """Levels and true ways of two rounds, the affine part alone."""
    pairs = three_rounds.pairs
    ways = {}
    for name, pair in zip("bc", pairs, strict=True):
        corners = pair.fixed.grid.positions().reshape(-1, 3)[::97]
        there = pair.truth(corners)
        solved = np.linalg.lstsq(np.c_[corners, np.ones(len(corners))], there, rcond=None)[0]
        ways[name] = np.vstack([solved.T, [0, 0, 0, 1]])
    levels = {name: partial(lambda p: p.moving, p) for name, p in zip("bc", pairs, strict=True)}
    return levels, ways


def test_right_ways_agree_and_wrong_ones_are_measured(known):
    levels, ways = known
    right = {name: AffineTransform(m) for name, m in ways.items()}
    (cycle,) = close_ring(["b", "c"], levels, right, 1.0)
    assert cycle.median_um < 1.5  # key points lie within a voxel, and the warps are left out
    assert not cycle.is_open
    wrong = {**right, "c": shifted(ways["c"], 7.0)}
    (cycle,) = close_ring(["b", "c"], levels, wrong, 1.0)
    assert cycle.is_open
    assert cycle.median_um == pytest.approx(7.0, abs=1.0)


def test_rounds_that_show_different_things_are_not_measured(known):
    levels, ways = known
    right = {name: AffineTransform(m) for name, m in ways.items()}
    image = levels["c"]()
    noise = np.random.default_rng(0).integers(0, 900, image.shape).astype(np.uint16)
    levels = {**levels, "c": lambda: type(image)(noise, image.grid)}
    (cycle,) = close_ring(["b", "c"], levels, right, 1.0)
    assert cycle.median_um is None
    assert cycle.reason
    assert cycle.facts["agrees"] is None


def test_a_later_start_is_taken_where_the_first_leads_astray(known):
    levels, _ = known
    far = np.eye(4)
    far[:3, 3] = 500.0
    found = match_directly(levels["b"](), levels["c"](), [far, np.eye(4)])
    assert found.matrix is not None
    assert len(found.first) == len(found.second) >= 12
