"""Landmarks as soft constraints: forces against numbers, images without texture, a wrong one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attrs import evolve

from itkstream.geometry import Grid, Landmarks
from itkstream.numerics.deformation.descent import Frame, descend
from itkstream.numerics.deformation.landmarks import LandmarkPull, Targets, expect_moves
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.numerics.sampling.fields import compose, jacobian_determinant
from itkstream.numerics.sampling.interpolate import sample_field

GRID = Grid((40, 36, 32), (1.0, 1.5, 1.0))
VOXEL = 1.0
RNG = np.random.default_rng(0)


def smooth_moves(points: np.ndarray[Any, Any], height: float = 3.0) -> np.ndarray[Any, Any]:
    return height * np.sin(points[..., [1, 2, 0]] / 9.0)


def marks_of(grid: Grid, count: int = 40, **known: Any) -> Landmarks:
    low, high = grid.corners().min(axis=0), grid.corners().max(axis=0)
    places = RNG.uniform(low, high, (count, grid.ndim))
    moves = smooth_moves(places) if grid.ndim == 3 else 3 * np.sin(places[:, ::-1] / 9.0)
    return Landmarks(places, places + moves, **known)


def pull_of(marks: Landmarks, grid: Grid = GRID) -> LandmarkPull:
    pull = Targets.of(marks, grid, np.eye(4)).pull(grid, VOXEL)
    assert pull is not None
    return pull


def test_the_force_is_the_slope_of_the_penalty() -> None:
    pull = pull_of(marks_of(GRID, sigma_um=1.0))
    u = smooth_moves(GRID.positions(), 1.0).astype(np.float32)
    normal = np.zeros((*GRID.shape, 9), np.float32)
    pull.add(normal, u)
    step = np.array([0.3, -0.5, 0.4])
    changes = []
    for size in (-0.05, 0.05):
        small = np.broadcast_to((size * step).astype(np.float32), u.shape)
        changes.append(pull.penalty(compose(np.ascontiguousarray(small), u, GRID)))
    slope = (changes[1] - changes[0]) / 0.1
    force = normal[..., :3].sum(axis=(0, 1, 2), dtype=np.float64) / np.prod(GRID.shape)
    # Twice the force, downhill; interpolation between voxels rounds a little.
    assert slope == pytest.approx(-2 * force @ step, rel=0.02)


def added(marks: Landmarks) -> np.ndarray[Any, Any]:
    normal = np.zeros((*GRID.shape, 9), np.float32)
    pull_of(marks).add(normal, np.zeros((*GRID.shape, 3), np.float32))
    return normal


def test_weights_fall_with_the_variance_and_a_crowd_has_the_say_of_one() -> None:
    place, moved = [20.0, 24.0, 16.0], [21.0, 24.0, 16.0]
    one = added(Landmarks([place], [moved], sigma_um=2.0))
    # 0.1 for a variance of 1 (see WEIGHT); half of a voxel is added to the deviation.
    size = 0.1 / (4 + 0.25)
    assert one[20, 16, 16] == pytest.approx([size, 0, 0, size, size, size, 0, 0, 0])
    np.testing.assert_allclose(added(Landmarks([place] * 5, [moved] * 5, sigma_um=2.0))[20, 16, 16],
                               one[20, 16, 16], rtol=1e-5)  # fmt: skip
    doubted = added(Landmarks([place], [moved], sigma_um=2.0, trust=[0.1]))
    np.testing.assert_allclose(doubted, 0.1 * one, rtol=1e-5, atol=1e-9)


def test_landmarks_outside_do_not_count() -> None:
    marks = Landmarks([[-5.0, 3.0, 3.0]], [[0.0, 0.0, 0.0]], sigma_um=1.0)
    assert Targets.of(marks, GRID, np.eye(4)).pull(GRID, VOXEL) is None


def found_without_texture(grid: Grid, marks: Landmarks, **settings: Any) -> np.ndarray[Any, Any]:
    flat = np.full(grid.shape, 7.0, np.float32)
    frame = Frame(grid, grid, np.eye(grid.ndim + 1))
    known = evolve(PIPELINE_DEFAULTS, **settings)
    return descend(flat, flat, frame, known, landmarks=marks).displacement


def at(u: np.ndarray[Any, Any], grid: Grid, points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    index = grid.to_index(points)
    matrix = np.zeros((grid.ndim, grid.ndim + 1))
    values = []
    for place in index:
        matrix[:, -1] = place
        values.append(sample_field(u, matrix, (1,) * grid.ndim).ravel())
    return np.array(values)


@pytest.mark.parametrize("grid", [GRID, Grid((48, 40), (1.0, 1.0))], ids=["3-D", "2-D"])
def test_where_images_show_nothing_landmarks_decide(grid: Grid) -> None:
    marks = marks_of(grid, 60, sigma_um=1.0)
    kept, held = marks.hold_out(0.3)
    u = found_without_texture(grid, kept)
    miss = held.fixed + at(u, grid, held.fixed) - held.moving
    before = np.linalg.norm(held.fixed - held.moving, axis=1)
    after = np.linalg.norm(miss, axis=1)
    assert np.median(after) < 0.35 * np.median(before)
    assert jacobian_determinant(u, grid).min() > 0.1


def test_turned_grids_and_affines() -> None:
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    grid = Grid((40, 36, 32), (1.0, 1.5, 1.0), (5.0, -3.0, 2.0), tuple(map(tuple, turn)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = 1.1 * np.eye(3), (4.0, 0.0, -2.0)
    marks = marks_of(grid, 60, sigma_um=1.0)
    moved = marks.moving @ affine[:3, :3].T + affine[:3, 3]
    marks = Landmarks(marks.fixed, moved, sigma_um=1.0)
    flat = np.full(grid.shape, 7.0, np.float32)
    far = Grid((80, 80, 80), (1.0, 1.0, 1.0), (-60.0, -20.0, -20.0))
    moving = np.full(far.shape, 7.0, np.float32)
    u = descend(flat, moving, Frame(grid, far, affine), PIPELINE_DEFAULTS, landmarks=marks)
    there = (marks.fixed + at(u.displacement, grid, marks.fixed)) @ affine[:3, :3].T
    after = np.linalg.norm(there + affine[:3, 3] - marks.moving, axis=1)
    assert np.median(after) < 0.4 * np.median(np.linalg.norm(smooth_moves(marks.fixed), axis=1))


def test_expected_moves_are_what_the_matrices_lead_to() -> None:
    roots = RNG.normal(size=(4, 5, 6, 3, 3))
    matrices = roots @ roots.swapaxes(-1, -2) + np.eye(3)
    rows, columns = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]
    normal = np.zeros((4, 5, 6, 9), np.float32)
    normal[..., 3:] = matrices[..., rows, columns]
    moves = RNG.normal(size=(4, 5, 6, 3)).astype(np.float32)
    expect_moves(normal, moves)
    solved = np.linalg.solve(matrices, normal[..., :3, None].astype(float))[..., 0]
    np.testing.assert_allclose(solved, moves, atol=1e-4)
