"""Rotations are spread evenly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from itkstream.numerics.search.lattice import spread_rotations


@pytest.mark.parametrize("ndim", [2, 3])
def test_they_turn_and_nothing_else(ndim: int) -> None:
    turns = spread_rotations(ndim, 50)
    assert turns.shape == (50, ndim, ndim)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.eye(ndim)[None] + 0 * turns,
                               atol=1e-12)  # fmt: skip
    np.testing.assert_allclose(np.linalg.det(turns), 1)


def test_every_rotation_has_one_near_it() -> None:
    turns = spread_rotations(3, 600)
    others = Rotation.random(300, random_state=0).as_matrix()
    cosine = (np.einsum("aij,bij->ab", others, turns).max(axis=1) - 1) / 2
    # 600 balls that cover all rotations have a radius of 21 degrees or more; a random set of 600
    # leaves gaps of 45.
    assert np.rad2deg(np.arccos(cosine.min())) < 30


def test_a_plane_is_divided_evenly() -> None:
    angles = np.arctan2(*spread_rotations(2, 8)[:, 1::-1, 0].T)
    np.testing.assert_allclose(np.diff(np.unwrap(angles)), np.pi / 4)
