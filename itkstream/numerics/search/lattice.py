"""Starts from all turns on a lattice of rotations, each with its best shift, on a coarse level."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.matching.keypoints import finite_voxels
from itkstream.numerics.matching.scale_space import BlurredImage, blur
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.numerics.search.translations import MaskedCorrelation

__all__ = [
    "LatticeStart",
    "angle_between",
    "best_shift",
    "cubes",
    "cubic_grid",
    "lattice_starts",
    "spread_rotations",
]

Floats = NDArray[np.float64]

# Voxels along the longer axis of the coarse level, and rotations, in a plane and in space.
_LENGTHS = {2: 96, 3: 24}
_ROTATIONS = {2: 90, 3: 600}
# Blur of the level, in its voxels.
_SIGMA = 0.7
# Of the super-Fibonacci spiral: sqrt(2), and the positive root of psi**4 = psi + 4.
_PHI, _PSI = np.sqrt(2.0), 1.533751168755204288118041


@dataclass(frozen=True)
class LatticeStart:
    """A rotation with its best shift: what that is worth, and matrix from fixed to moving."""

    worth: float
    matrix: Floats


def lattice_starts(
    fixed: Image, moving: Image, copy: Floats, overlap: float, count: int
) -> list[LatticeStart]:
    """The best starts of all rotations that differ."""
    ndim = fixed.ndim
    grids = fixed.grid, moving.grid
    spacing = max(np.max(np.multiply(g.shape, g.spacing)) for g in grids) / _LENGTHS[ndim]
    still, turning = cubes(fixed, spacing), cubes(moving, spacing)
    correlation = None
    found = []
    for rotation in spread_rotations(ndim, _ROTATIONS[ndim]):
        part, onto = _turned(turning, copy @ rotation, still.grid)
        correlation = correlation or _correlation_of(still, part, overlap)
        found.append(_shifted(still.grid, correlation, part, onto))
    return _distinct(found, count)


def best_shift(fixed: Image, moving: Image, linear: Floats, overlap: float) -> LatticeStart:
    """The best shift of an image that is turned; both on cubes of one edge, see `cubes`."""
    part, onto = _turned(moving, linear, fixed.grid)
    return _shifted(fixed.grid, _correlation_of(fixed, part, overlap), part, onto)


def _correlation_of(still: Image, part: NDArray[np.float32], overlap: float) -> MaskedCorrelation:
    """The image that turned parts are shifted against; a share of the smaller has to overlap."""
    least = overlap * min(np.isfinite(still.read()).sum(), np.isfinite(part).sum())
    return MaskedCorrelation.of(_standard(still.read()), part.shape, least)


def _shifted(
    grid: Grid, correlation: MaskedCorrelation, part: NDArray[np.float32], onto: Floats
) -> LatticeStart:
    """The start of a turned part by its best shift; `onto` is its matrix without one."""
    score, shift = correlation.best(_standard(part))
    move = np.eye(len(onto))
    move[:-1, -1] = -(np.asarray(grid.direction) @ (shift * grid.spacing[0]))
    return LatticeStart(score, onto @ move)


def _distinct(starts: list[LatticeStart], count: int, degrees: float = 12.0) -> list[LatticeStart]:
    """The best of those that are turned alike, from the best on."""
    kept: list[LatticeStart] = []
    for start in sorted(starts, key=lambda s: -s.worth):
        if all(angle_between(start.matrix, other.matrix) > degrees for other in kept):
            kept.append(start)
        if len(kept) == count:
            break
    return kept


def angle_between(a: Floats, b: Floats) -> float:
    """Degrees between the turns of two matrices (n + 1, n + 1)."""
    n = len(a) - 1
    u, _, vt = np.linalg.svd(a[:n, :n] @ np.linalg.inv(b[:n, :n]))
    trace = np.trace(u @ vt)
    cosine = (trace - 1) / 2 if n == 3 else trace / 2
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def cubes(image: Image, spacing: float) -> Image:
    """The image on cubes of an edge, blurred for them; NaN where its voxels do not count."""
    voxels, counts = finite_voxels(image.read(), image.grid)
    blurred = blur(BlurredImage(voxels, image.grid), (_SIGMA * spacing,) * image.ndim)
    data = np.asarray(blurred.data, np.float32)
    if counts is not None:
        data = np.where(counts, data, np.float32(np.nan))
    grid, same = cubic_grid(image.grid, spacing), AffineTransform(np.eye(image.ndim + 1))
    return Image(warp_block(Image(data, image.grid), same, grid, NAN_OUTSIDE), grid)


def cubic_grid(grid: Grid, spacing: float) -> Grid:
    """Cubes of an edge that fill a grid, and have its middle."""
    room = np.multiply(grid.shape, grid.spacing)
    shape = tuple(int(n) for n in np.maximum(np.rint(room / spacing), 1))
    middle = grid.to_physical((np.array(grid.shape) - 1) / 2)
    origin = middle - np.asarray(grid.direction) @ (spacing * (np.array(shape) - 1) / 2)
    return replace(grid, shape=shape, spacing=(spacing,) * grid.ndim, origin=tuple(origin))


def _turned(image: Image, linear: Floats, like: Grid) -> tuple[NDArray[np.float32], Floats]:
    """The image turned about its middle, on a cube, and the matrix from `like`'s points to its own.

    The matrix takes the first voxel of `like` for that of the cube.
    """
    n, spacing = image.ndim, image.grid.spacing[0]
    length = int(np.ceil(np.linalg.norm(image.grid.shape)))
    centre = image.grid.to_physical((np.array(image.grid.shape) - 1) / 2)
    direction = np.asarray(like.direction)
    corner = -direction @ np.full(n, spacing * (length - 1) / 2)
    grid = replace(like, shape=(length,) * n, origin=tuple(corner))
    turn = np.eye(n + 1)
    turn[:n, :n], turn[:n, n] = linear, centre
    voxels = warp_block(image, AffineTransform(turn), grid, NAN_OUTSIDE)
    move = np.eye(n + 1)
    move[:n, n] = corner - np.array(like.origin)
    return voxels, turn @ move


def _standard(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and deviation 1 of the voxels that count."""
    known = voxels[np.isfinite(voxels)]
    deviation = known.std() if known.size else 0.0
    return (voxels - known.mean()) / (deviation or 1.0) if known.size else voxels


def spread_rotations(ndim: int, count: int) -> NDArray[np.float64]:
    """So many rotation matrices, evenly spread; the first of a plane turns nothing.

    In 3-D after M. Alexa, "Super-Fibonacci spirals", CVPR 2022, 8291-8300,
    doi:10.1109/CVPR52688.2022.00811.
    """
    if ndim == 2:
        angles = 2 * np.pi * np.arange(count) / count
        c, s = np.cos(angles), np.sin(angles)
        return np.moveaxis(np.array([[c, -s], [s, c]]), -1, 0)
    s = np.arange(count) + 0.5
    t = s / count
    alpha, beta = 2 * np.pi * s / _PHI, 2 * np.pi * s / _PSI
    r, w = np.sqrt(t), np.sqrt(1 - t)
    quaternions = np.stack(
        [r * np.sin(alpha), r * np.cos(alpha), w * np.sin(beta), w * np.cos(beta)], axis=1
    )
    return Rotation.from_quat(quaternions).as_matrix()
