"""Landmarks where images show nothing: a small case of the benchmark, with what it must hold."""

from __future__ import annotations

from typing import Any

import pytest
from bare_tissue import BareCase, main, make_case, measure

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def case() -> BareCase:
    return make_case(60, 1)


@pytest.fixture(scope="module")
def alone(case: BareCase) -> Any:
    return measure(case, "lcc", None)


@pytest.mark.parametrize("method", ["lcc", "diffeomorphic-demons", "bspline"])
def test_bare_tissue_follows_landmarks_and_textured_tissue_the_images(
    case: BareCase, method: str
) -> None:
    before, after = measure(case, method, None), measure(case, method, case.fitted)
    assert after.held_out < 0.5 * before.held_out
    assert after.bare < 0.5 * before.bare
    # Landmarks next to it are a voxel off: so much they may add.
    assert after.textured < before.textured + 0.1
    assert after.folds == 0


def test_a_landmark_wrong_by_50_um_does_no_harm(case: BareCase, alone: Any) -> None:
    right, wrong = measure(case, "lcc", case.fitted), measure(case, "lcc", case.with_one_wrong())
    assert wrong.folds == 0
    assert wrong.least_jacobian > 0.05
    assert wrong.held_out < right.held_out + 0.2
    assert wrong.textured < alone.textured + 0.1
    # Those around it say better where it should be.
    assert wrong.first < right.first + 1.0


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--size", "40", "--seeds", "1"])
    assert "60, one wrong" in capsys.readouterr().out
