"""A transform on the voxels of one grid, reduced to a displacement and an affine after it.

Whatever a transform is made of, on a block it acts as ``affine(p + displacement(p))``:
the one form that the sampler, the registration engines and ITK all take, with one interpolation
of the image through the whole chain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    DisplacementField,
    Grid,
    PiecewiseAffine,
    Slices,
    Transform,
    box_shape,
    steps_of,
)
from itkstream.numerics.compiling import compiled
from itkstream.numerics.sampling.blend import blend_affines
from itkstream.numerics.sampling.interpolate import MARGIN, Part, sample_field
from itkstream.numerics.threads import over_slabs

__all__ = ["GridMap", "affine_part", "box_around", "can_map_boxes", "map_on"]

# So many vectors of a field may be read at a time, 48 MB, or twice as many as are wanted.
_FIELD_VECTORS = 2**22

# Far more than sums of indices differ by when they are added up in another order.
_ROUNDING_VOX = 1e-6

_ON_A_GRID = (BSplineTransform, DisplacementField, PiecewiseAffine)


@dataclass(frozen=True, eq=False)
class GridMap:
    """``p -> affine(p + displacement(p))`` for the voxels p of a grid.

    Parameters
    ----------
    grid : Grid
        The voxels.
    affine : ndarray, (n + 1, n + 1)
        Physical to physical.
    displacement : ndarray, shape + (n,), float32, or None
        Physical vectors; None stands for 0.
    box : tuple of slice, optional
        The voxels of the grid that are meant, default all. Numbers of the grid hold for them, so
        that each is mapped to the bit as among all.
    """

    grid: Grid
    affine: NDArray[np.float64]
    displacement: NDArray[np.float32] | None = None
    box: Slices | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels that are mapped, per axis."""
        return self.grid.shape if self.box is None else box_shape(self.box)

    @property
    def first(self) -> tuple[int, ...]:
        """The first voxel that is mapped; empty for that of the grid."""
        return () if self.box is None else tuple(s.start for s in self.box)

    def index_matrix(self, moving: Grid) -> NDArray[np.float64]:
        """The map from fixed voxel index to moving voxel index, the displacement left out.

        Returns (n, n + 1).
        """
        return np.asarray((moving.inverse_matrix @ self.affine @ self.grid.matrix)[:-1])

    def vector_matrix(self, moving: Grid) -> NDArray[np.float64]:
        """The map from displacement vectors to moving voxels.

        Returns (n, n).
        """
        return np.asarray((moving.inverse_matrix @ self.affine)[:-1, :-1])

    def bounds(self, moving: Grid) -> NDArray[np.float64]:
        """Least and greatest moving index over every voxel.

        Returns (2, n).
        """
        if self.box is not None:
            return GridMap(self.grid.crop(self.box), self.affine, self.displacement).bounds(moving)
        matrix = self.index_matrix(moving)
        if self.displacement is None:
            # An affine is extreme at the corners of a box.
            ends = np.meshgrid(*((0, n - 1) for n in self.grid.shape), indexing="ij")
            corners = np.stack(ends, -1).reshape(-1, self.grid.ndim)
            index = corners @ matrix[:, :-1].T + matrix[:, -1]
            return np.stack([index.min(axis=0), index.max(axis=0)])
        n, shape = self.grid.ndim, self.grid.shape
        moves = self.displacement.reshape((shape[0], -1, shape[-1], n))
        # Planes of a 2-D image have no axis 1.
        lines = np.insert(matrix, [1] * (3 - n), 0, axis=1)
        rows = tuple(tuple(map(float, row)) for row in lines)
        vectors = np.pad(self.vector_matrix(moving), ((0, 0), (0, 3 - n)))
        columns = tuple(tuple(map(float, row)) for row in vectors)
        reach = np.empty((shape[0], 2, n))
        over_slabs(lambda a, b: _bound_planes(moves, rows, columns, reach, a, b), shape[0])
        # Neither minimum nor maximum lets a NaN pass unseen.
        return np.stack([reach[:, 0].min(axis=0), reach[:, 1].max(axis=0)])

    def crop_of(self, moving: Grid, margin: float = 0.0) -> Slices | None:
        """The voxels of the moving image that sampling this map reads, None where it reads none."""
        low, high = self._finite_bounds(moving)
        room = margin / np.asarray(moving.spacing)
        shape = np.asarray(moving.shape)
        # On the very border the sampler decides for a box, as it does for all of the grid.
        slack = 0.0 if self.box is None else _ROUNDING_VOX
        if np.any(high + room < -0.5 - slack) or np.any(low - room >= shape - 0.5 + slack):
            return None
        return box_around(low - room, high + room, moving.shape)

    def reach_in(self, field: Grid) -> Slices:
        """The vectors of a field that sampling it with this map reads."""
        low, high = self._finite_bounds(field)
        return box_around(low, high, field.shape)

    def _finite_bounds(self, lattice: Grid) -> NDArray[np.float64]:
        bounds = self.bounds(lattice)
        if not np.isfinite(bounds).all():
            raise InputError("the transform maps voxels to NaN: is the field finite?")
        return bounds


def box_around(low: NDArray[Any], high: NDArray[Any], shape: Sequence[int]) -> Slices:
    """The voxels around a range of indices, with those that interpolation needs beside them."""
    last = np.asarray(shape) - 1
    first = np.clip(np.floor(low) - MARGIN, 0, last).astype(int)
    final = np.clip(np.ceil(high) + MARGIN, 0, last).astype(int)
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(first, final, strict=True))


def map_on(transform: Transform, grid: Grid, box: Slices | None = None) -> GridMap:
    """Evaluate a transform on the voxels of a grid, or of a box of it, see `can_map_boxes`."""
    if transform.ndim != grid.ndim:
        raise InputError(f"a {transform.ndim}-D transform cannot act on a {grid.ndim}-D image")
    _check_axes(transform, grid)
    result = GridMap(grid, np.eye(grid.ndim + 1), None, box)
    for step in steps_of(transform):
        result = _then(result, step)
    return result


def can_map_boxes(transform: Transform, grid: Grid) -> bool:
    """Whether `map_on` maps a box of a grid to the bit as all of it.

    Affines do, and one field before them, but for a grid that spans so much of the field that this
    is read in parts.
    """
    field, *affines = steps_of(transform)
    if not all(isinstance(step, AffineTransform) for step in affines):
        return False
    if not isinstance(field, DisplacementField):
        return isinstance(field, AffineTransform)
    _check_same_space(field.grid, grid)
    still = GridMap(grid, np.eye(grid.ndim + 1))
    return _is_read_at_once(still, still.reach_in(field.grid))


def affine_part(transform: Transform) -> AffineTransform:
    """The affine that `map_on` puts behind the displacement, whatever the grid."""
    matrix = np.eye(transform.ndim + 1)
    for step in steps_of(transform):
        if isinstance(step, AffineTransform):
            matrix = step.matrix @ matrix
    return AffineTransform(matrix, transform.axes)


def _then(before: GridMap, step: Transform) -> GridMap:
    grid, affine = before.grid, before.affine
    if isinstance(step, AffineTransform):
        return replace(before, affine=step.matrix @ affine)
    if isinstance(step, _ON_A_GRID):
        _check_same_space(step.grid, grid)
    if isinstance(step, DisplacementField):
        return _then_field(before, step)
    untouched = before.displacement is None and np.array_equal(affine, np.eye(grid.ndim + 1))
    if isinstance(step, PiecewiseAffine) and untouched:
        return GridMap(grid, affine, blend_affines(step, grid))
    return _then_points(before, step)


def _check_same_space(own: Grid, grid: Grid) -> None:
    """Refuse a transform whose points are in another unit, or order of axes, than an image's."""
    if own.unit != grid.unit:
        raise InputError(
            f"a transform in {own.unit} cannot act on an image in {grid.unit}; convert the field "
            "and its grid first"
        )
    _check_order(own.axes, grid.axes)


def _check_axes(transform: Transform, grid: Grid) -> None:
    """Refuse an affine, or another transform without a grid, that is known to be of other axes."""
    axes = transform.axes
    if axes and grid.axes_stated:
        _check_order(axes, grid.axes)


def _check_order(own: tuple[str, ...], axes: tuple[str, ...]) -> None:
    if own != axes:
        raise InputError(
            f"a transform of points {', '.join(own)} cannot act on an image with the axes "
            f"{', '.join(axes)}: read it with axes={axes}, or reorder the image"
        )


def _then_field(before: GridMap, field: DisplacementField) -> GridMap:
    return _with_moves(before, _sampled(before, field))


def _sampled(at: GridMap, field: DisplacementField) -> NDArray[np.float32]:
    """The vectors of a field where a map leads.

    A coarse grid may span a field far larger than memory: it is cut until what each part reads
    is small.
    """
    box = at.reach_in(field.grid)
    if at.box is not None or _is_read_at_once(at, box):
        near = np.asarray(field.data[(*box, slice(None))])
        return sample_field(
            Part(near, tuple(s.start for s in box), field.grid.shape),
            at.index_matrix(field.grid),
            at.shape,
            at.displacement,
            at.vector_matrix(field.grid),
            first=at.first,
        )
    moves = np.empty((*at.grid.shape, at.grid.ndim), np.float32)
    for part in _halves(at.grid):
        moved = None if at.displacement is None else np.ascontiguousarray(at.displacement[part])
        moves[part] = _sampled(GridMap(at.grid.crop(part), at.affine, moved), field)
    return moves


def _is_read_at_once(at: GridMap, box: Slices) -> bool:
    """Whether the vectors that a map needs are few enough to be read together."""
    vectors = math.prod(box_shape(box))
    return vectors <= max(_FIELD_VECTORS, 2 * at.grid.size) or at.grid.size == 1


def _halves(grid: Grid) -> tuple[Slices, Slices]:
    """A grid of more than one voxel, cut across its longest axis."""
    long = [axis for axis in range(grid.ndim) if grid.shape[axis] > 1]
    longest = max(long, key=lambda axis: grid.shape[axis] * grid.spacing[axis])
    whole = [slice(0, n) for n in grid.shape]
    middle = grid.shape[longest] // 2
    cuts = slice(0, middle), slice(middle, grid.shape[longest])
    first, second = ((*whole[:longest], cut, *whole[longest + 1 :]) for cut in cuts)
    return first, second


def _with_moves(before: GridMap, moves: NDArray[np.float32]) -> GridMap:
    """The map with vectors added to where it leads."""
    # A(p + d) + f = A(p + d + A^-1 f): the vector moves in front of the affine.
    back = np.linalg.inv(before.affine[:-1, :-1])
    if not np.array_equal(back, np.eye(len(back))):
        moves = (moves @ back.T).astype(np.float32)
    if before.displacement is not None:
        moves += before.displacement
    return replace(before, displacement=moves)


def _then_points(before: GridMap, step: Transform) -> GridMap:
    grid, affine = before.grid, before.affine
    start = grid.positions()
    here = start if before.displacement is None else start + before.displacement
    mapped = step.apply(here @ affine[:-1, :-1].T + affine[:-1, -1])
    moves = AffineTransform(affine).inverse().apply(mapped) - start
    return GridMap(grid, affine, moves.astype(np.float32))


@compiled
def _bound_planes(moves, matrix, vector, ends, start, stop):  # type: ignore[no-untyped-def]
    """Least and greatest mapped index of each plane; a 2-D image's planes have one line.

    Matrices are tuples, row by row, which stay in registers.
    """
    n = moves.shape[3]
    for i in range(start, stop):
        for a in range(n):
            low, high, total = np.inf, -np.inf, 0.0
            m, v = matrix[a], vector[a]
            for j in range(moves.shape[1]):
                first = m[0] * i + m[3] + m[1] * j
                for k in range(moves.shape[2]):
                    x = first + m[2] * k + v[0] * moves[i, j, k, 0] + v[1] * moves[i, j, k, 1]
                    if n == 3:
                        x += v[2] * moves[i, j, k, 2]
                    low = min(low, x)
                    high = max(high, x)
                    # Comparisons lose a NaN; a sum keeps it.
                    total += x
            ends[i, 0, a] = low if np.isfinite(total) else np.nan
            ends[i, 1, a] = high if np.isfinite(total) else np.nan
