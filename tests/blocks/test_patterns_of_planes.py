"""A camera's pattern is taken out part by part as of the whole, whatever the axes and the tiles."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from itkstream.blocks import camera
from itkstream.blocks.camera import (
    can_tell_pattern,
    describe_pattern,
    prepare_pattern,
    read_pattern,
    shows_pattern,
    without_pattern,
)
from itkstream.compute.execute import compute
from itkstream.geometry import Grid, Image
from itkstream.phantoms import PhantomPair

AXES = ("z", "y", "x")


def hot(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(5).random(shape) < 0.005


@pytest.fixture(scope="module")
def clean(pair: PhantomPair) -> Image:
    """Voxels along z, y, x."""
    return pair.fixed.reorder(AXES)


@pytest.fixture(scope="module")
def spoilt(clean: Image) -> Image:
    voxels = np.array(clean.read())
    voxels[:, hot(voxels.shape[1:])] = 65535
    return Image(voxels, clean.grid)


def test_a_clean_image_has_none(clean: Image) -> None:
    assert describe_pattern(read_pattern(clean), clean.grid) == {}
    assert not shows_pattern(clean)


@pytest.mark.parametrize("axes", list(permutations(AXES)))
def test_planes_follow_each_other_along_z(spoilt: Image, axes: tuple[str, ...]) -> None:
    image = spoilt.reorder(axes)
    pattern = read_pattern(image)
    repaired = without_pattern(image, pattern)
    plane = [axis for axis in axes if axis != "z"]
    expected = hot(spoilt.shape[1:])
    expected = expected if plane == ["y", "x"] else expected.T
    np.testing.assert_array_equal(np.isnan(pattern), expected)
    found = describe_pattern(pattern, image.grid)
    assert found == {
        "pixels": int(expected.sum()),
        f"lines_along_{plane[0]}": 0,
        f"lines_along_{plane[1]}": 0,
        "noise": 0.0,
    }
    whole = without_pattern(spoilt, read_pattern(spoilt)).read()
    order = [AXES.index(axis) for axis in axes]
    np.testing.assert_array_equal(repaired.read(), whole.transpose(order))
    assert repaired.dtype == spoilt.dtype


def test_any_part_is_that_of_the_whole(spoilt: Image) -> None:
    repaired = without_pattern(spoilt, read_pattern(spoilt))
    whole, rng = repaired.read(), np.random.default_rng(0)
    for _ in range(20):
        ends = [sorted(rng.choice(n + 1, 2, replace=False)) for n in spoilt.shape]
        box = tuple(slice(*map(int, end)) for end in ends)
        np.testing.assert_array_equal(repaired[box].read(), whole[box])


def test_tiles_are_judged_by_workers_as_here(
    spoilt: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "_TILE", 24)
    np.testing.assert_array_equal(compute(prepare_pattern(spoilt)), read_pattern(spoilt))


def test_a_look_at_some_of_a_large_plane_shows_it(
    spoilt: Image, clean: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "_LOOK", 24)
    assert shows_pattern(spoilt)
    assert not shows_pattern(clean)


@pytest.mark.parametrize(
    ("shape", "axes", "told"),
    [
        ((16, 16, 16), AXES, True),
        ((15, 64, 64), AXES, False),
        ((64, 64, 8), AXES, False),
        ((64, 64), ("y", "x"), False),
    ],
)
def test_few_planes_tell_nothing(shape: Any, axes: Any, told: bool) -> None:
    assert can_tell_pattern(Grid(shape, (1.0,) * len(shape), axes=axes)) is told
