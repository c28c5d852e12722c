"""Blocks that hold landmarks: found, computed though they are empty, or the only ones computed."""

from __future__ import annotations

import numpy as np
import pytest

from itkstream.blocks.inputs import block_grid
from itkstream.estimate import deformation
from itkstream.estimate.content import find_landmarks
from itkstream.estimate.deformation import Task, displacement_of, prepare_deformation
from itkstream.geometry import AffineTransform, Grid, Image, Landmarks
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.numerics.engines import deform_block

GRID = Grid((64, 32, 32), (1.0, 1.0, 2.0), axes=("x", "y", "z"))
BLOCKS = block_grid(GRID.shape, (16, 32, 32), (4, 4, 4))


@pytest.mark.parametrize(
    ("x", "found"),
    [(8.0, [0]), (13.0, [0, 1]), (18.0, [0, 1]), (21.0, [1]), (-3.0, []), (63.4, [3])],
)
def test_landmarks_are_in_the_blocks_whose_padding_holds_them(x: float, found: list[int]) -> None:
    marks = Landmarks([[x, 10.0, 20.0]], [[x, 10.0, 20.0]])
    assert np.flatnonzero(find_landmarks(marks, GRID, BLOCKS)).tolist() == found


def test_an_empty_block_with_landmarks_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.zeros(GRID.shape, np.float32)
    # Texture in the first block alone.
    voxels[:16] = np.random.default_rng(0).uniform(100, 900, (16, 32, 32))
    image = Image(voxels, GRID)
    place = np.array([[56.0, 16.0, 30.0]])
    marks = Landmarks(place, place + np.array([0.0, 3.0, 0.0]), sigma_um=1.0)
    computed = []
    monkeypatch.setattr(
        deformation,
        "deform_block",
        lambda fixed, *others: (
            computed.append(fixed.grid.origin[0]) or deform_block(fixed, *others)
        ),
    )
    start = AffineTransform(np.eye(4))
    for known, starts in ((None, [0.0, 12.0]), (marks, [0.0, 12.0, 44.0])):
        task = Task(image, image, start, PIPELINE_DEFAULTS, BLOCKS, 0, True, landmarks=known)
        computed.clear()
        found = prepare_deformation(task, displacement_of(BLOCKS, GRID)).compute(scheduler="sync")
        assert sorted(computed) == starts
    assert found[56, 16, 15, 1] > 1.5
