"""The compiled steps of the descent against numpy and the package's own resampling."""

import numpy as np

from itkstream.geometry import Grid
from itkstream.numerics.deformation.force import collect_forces, solve_newton, warp_through_nodes
from itkstream.numerics.sampling.fields import resize_field
from itkstream.numerics.sampling.interpolate import warp


def test_newton_steps_solve_their_equations():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(3, 4, 5, 9)).astype(np.float32)
    normal[..., 3:6] += 6.0
    got = np.empty((3, 4, 5, 3), np.float32)
    solve_newton(normal, 0.5, got)
    a, b, c, d, e, f = np.moveaxis(normal[..., 3:].astype(float), -1, 0)
    matrix = np.stack([a, d, e, d, b, f, e, f, c], axis=-1).reshape(3, 4, 5, 3, 3)
    matrix += 0.5 * np.eye(3)
    wanted = np.linalg.solve(matrix, normal[..., :3, None].astype(float))[..., 0]
    np.testing.assert_allclose(got, wanted, atol=1e-5)  # float32


def test_warping_through_nodes_is_warping_through_the_field_they_span():
    rng = np.random.default_rng(1)
    grid = Grid((15, 14, 13), (1.0, 1.5, 2.0))
    nodes = grid.shrink((2, 3, 4))
    u = rng.normal(size=(*nodes.shape, 3)).astype(np.float32)
    moving = rng.normal(size=(12, 13, 14)).astype(np.float32)
    index = np.eye(3, 4) + rng.normal(0, 0.05, (3, 4))
    vector = np.diag([1.0, 0.7, 0.5]) + rng.normal(0, 0.05, (3, 3))
    got = np.empty(grid.shape, np.float32)
    warp_through_nodes(moving, index, vector, u, (2, 3, 4), got)
    field = resize_field(u, nodes, grid)
    wanted = warp(moving, index, grid.shape, field, vector, background=np.nan)
    # Between the outermost nodes; beyond them fields are clamped, nodes continued linearly.
    inner = (slice(1, -2), slice(1, -2), slice(2, -3))
    np.testing.assert_array_equal(np.isnan(got[inner]), np.isnan(wanted[inner]))
    np.testing.assert_allclose(got[inner], wanted[inner], atol=1e-4)  # float32 weights


def test_forces_are_means_over_the_voxels_of_a_node():
    rng = np.random.default_rng(2)
    shape, spacing, stride = (7, 6, 9), (1.0, 2.0, 0.5), (2, 3, 4)
    warped, residual, weight = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    got = np.empty((4, 2, 3, 9), np.float32)
    collect_forces(warped, (residual, weight), spacing, stride, got)
    slopes = np.stack(np.gradient(warped.astype(float), *spacing), axis=-1) * weight[..., None]
    box = (slice(6, 7), slice(3, 6), slice(4, 8))
    force = (slopes * residual[..., None])[box].mean(axis=(0, 1, 2))
    matrix = np.einsum("...a,...b->...ab", slopes, slopes)[box].mean(axis=(0, 1, 2))
    wanted = [*force, *matrix.diagonal(), matrix[0, 1], matrix[0, 2], matrix[1, 2]]
    np.testing.assert_allclose(got[3, 1, 1], wanted, rtol=1e-4, atol=1e-5)  # float32


def test_a_missing_neighbour_leaves_a_one_sided_slope():
    line = np.array([[[1.0, 2.0, 4.0, np.nan, 7.0]]], np.float32)
    ones = np.isfinite(line).astype(np.float32)
    got = np.empty((1, 1, 5, 3), np.float32)
    collect_forces(line, (ones, ones), (1.0, 1.0, 1.0), (1, 1, 1), got)
    np.testing.assert_allclose(got[0, 0, :, 2], [1.0, 1.5, 2.0, 0.0, 0.0])
