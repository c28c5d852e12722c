"""Landmarks as values: what is refused, chosen, held out."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from dask.tokenize import tokenize

from itkstream.errors import InputError
from itkstream.geometry import Landmarks

POINTS = np.arange(30.0).reshape(10, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"moving": POINTS[:9]}, "as many fixed as moving"),
        ({"fixed": POINTS[:, :1], "moving": POINTS[:, :1]}, r"\(m, 2\) or \(m, 3\)"),
        ({"moving": np.where(POINTS == 7, np.nan, POINTS)}, "1 moving ones are not.*number 3"),
        ({"names": ("a",)}, "10 landmarks need as many names; got 1"),
        ({"axes": ("x", "y")}, "permutation"),
        ({"sigma_um": 0.0}, "above 0"),
        ({"sigma_um": [1.0, 2.0]}, "one per landmark, 10"),
        ({"trust": 1.5}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Landmarks(**{"fixed": POINTS, "moving": POINTS, **change})


def test_some_are_held_out_by_chance_and_always_the_same() -> None:
    marks = Landmarks(POINTS, POINTS + 1, sigma_um=np.arange(1.0, 11.0))
    kept, held = marks.hold_out(0.3, seed=5)
    again = marks.hold_out(0.3, seed=5)[1]
    assert (len(kept), len(held)) == (7, 3)
    assert held.names == again.names
    assert sorted((*kept.names, *held.names), key=int) == list(marks.names)
    assert held.names != marks.hold_out(0.3, seed=6)[1].names
    # All that belongs to a landmark goes with it.
    for name, place, sigma in zip(held.names, held.fixed, held.sigma_um, strict=True):
        assert np.array_equal(place, POINTS[int(name) - 1])
        assert sigma == int(name)
    with pytest.raises(InputError, match="below 1"):
        marks.hold_out(1.0)


def test_axes_are_brought_to_an_image() -> None:
    marks = Landmarks(POINTS, POINTS + 1, axes=("x", "y", "z")).reorder(("z", "y", "x"))
    assert np.array_equal(marks.fixed, POINTS[:, ::-1])
    assert np.array_equal(marks.moving, POINTS[:, ::-1] + 1)
    # Where nothing says them, they are in the image's order.
    assert np.array_equal(Landmarks(POINTS, POINTS).reorder(("z", "y", "x")).fixed, POINTS)
    with pytest.raises(InputError, match="3-D and the images 2-D"):
        marks.reorder(("y", "x"))


def test_deviations_that_are_stated_stay() -> None:
    assert Landmarks(POINTS, POINTS).placed_within(2.0).sigma_um.tolist() == [2.0] * 10
    assert Landmarks(POINTS, POINTS, sigma_um=3.0).placed_within(2.0).sigma_um[0] == 3.0


def test_equal_landmarks_have_one_token() -> None:
    marks = Landmarks(POINTS, POINTS, sigma_um=1.0)
    assert tokenize(marks) == tokenize(pickle.loads(pickle.dumps(marks)))
    assert tokenize(marks) != tokenize(Landmarks(POINTS, POINTS + 1e-9, sigma_um=1.0))
