"""Orientation letters of brainglobe and ITK: one volume, named both ways, starts alike."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from itkstream.atlas.inputs import open_atlas
from itkstream.atlas.orientation import check_lie, start_from_lies, template_lie
from itkstream.errors import InputError
from itkstream.geometry import Grid, Image

SHAPE = (5, 7, 9)
ALL = ["".join(c) for ends in permutations(("rl", "ap", "is")) for c in product(*ends)]


def volume(grid: Grid) -> Image:
    return Image(np.zeros(grid.shape, np.uint8), grid)


def laid(code: str) -> tuple[Image, list[int], list[slice]]:
    """An image of z, y, x that lies so, made from one that lies asr: its axes and their turns."""
    order = [next(k for k, ends in enumerate(("ap", "si", "rl")) if c in ends) for c in code]
    turns = [slice(None, None, 1 if c in "asr" else -1) for c in code]
    shape = tuple(SHAPE[k] for k in order)
    return volume(Grid(shape, (2.0, 2.0, 2.0), axes=("z", "y", "x"))), order, turns


@pytest.mark.parametrize("code", ALL)
def test_voxels_meet_those_of_an_atlas(code: str) -> None:
    """Truth: the array itself, transposed and turned by numpy, as bg-space does it."""
    image, order, turns = laid(code)
    template = volume(Grid(SHAPE, (2.0, 2.0, 2.0), axes=("z", "y", "x")))
    numbers = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    turned = numbers.transpose(order)[tuple(turns)]
    start = start_from_lies(image, template, code, "asr")
    index = np.argwhere(turned >= 0)
    there = template.grid.to_index(start.apply(image.grid.to_physical(index)))
    found = numbers[tuple(np.rint(there).astype(int).T)]
    np.testing.assert_array_equal(found, turned[tuple(index.T)])


def test_letters_of_itk_say_the_same() -> None:
    image, _, _ = laid("psl")
    template = volume(Grid(SHAPE, (2.0, 2.0, 2.0), axes=("z", "y", "x")))
    small = start_from_lies(image, template, "psl", "asr")
    capitals = start_from_lies(image, template, "RIA", "LIP")
    np.testing.assert_array_equal(small.matrix, capitals.matrix)


@pytest.mark.parametrize("code", ["asx", "aps", "asrl", "", "Asr", "aas", 3, None])
def test_what_names_no_three_axes_is_refused(code: object) -> None:
    with pytest.raises(InputError, match=r"three different axes.*Got"):
        check_lie(code, "brain")


def test_templates_lie_as_those_of_brainglobe_or_as_the_file_says() -> None:
    assert template_lie(None, "psl") == "asr"
    assert template_lie(None, "file") == "file"
    assert template_lie("LPS", "file") == "LPS"


def test_a_file_without_direction_says_nothing() -> None:
    image, _, _ = laid("asr")
    with pytest.raises(InputError, match="direction of the brain is the identity"):
        start_from_lies(image, image, "file", "asr")


@pytest.mark.parametrize(("code", "told"), [("asl", True), ("psl", False), ("sal", False)])
def test_letters_that_exchange_left_and_right_are_told(code: str, told: bool) -> None:
    image, _, _ = laid(code)
    template = volume(Grid(SHAPE, (2.0, 2.0, 2.0), axes=("z", "y", "x")))
    found = open_atlas((image, template, template), (code, "asr"), None)
    assert any("mirror image" in note for note in found.notes) == told
