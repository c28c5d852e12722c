"""The inverse of a displacement field, by Newton's iteration on the sampled field itself.

For a point y the inverse is the x with ``x + u(x) = y``, u interpolated linearly. Its slope is
known within each cell, so a Newton step costs one evaluation. Every fourth voxel of the output is a
knot, solved from scratch; the others start from a cubic through the knots, which is so near that
most need one evaluation. `itkstream.numerics.sampling.newton` has the loops.

Iterates are kept inside ``y - [min u, max u]``, which holds every solution: what a block has to
read is known before it starts. Knots are counted in the whole image, so a block gives the bits that
the whole image gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid, Slices
from itkstream.numerics.sampling.newton import (
    KNOT_STEP,
    FieldPart,
    Lattice,
    Output,
    knot_range,
    solve_knots,
    solve_points,
    solve_rows,
)
from itkstream.numerics.threads import over_slabs

__all__ = [
    "InverseProblem",
    "Inversion",
    "displacement_bounds",
    "invert_displacement",
]


@dataclass(frozen=True, eq=False)
class Inversion:
    """The inverse of a displacement field and how exact it is.

    Parameters
    ----------
    displacement : ndarray, shape + (n,), float32
        ``q + displacement(q)``, the affine left out, is where q comes from.
    error : ndarray, shape, float32
        Estimated distance from the exact inverse, in the smallest voxel spacing of the output:
        a bound where the last Newton step, which has been taken, stayed within a cell of the
        field; else that and several times what was outside.
    iterations : int
        Most evaluations that one voxel took.
    """

    displacement: NDArray[np.float32]
    error: NDArray[np.float32]
    iterations: int


@dataclass(frozen=True, eq=False)
class InverseProblem:
    """Invert ``affine(p + u(p))`` on a grid, as a displacement in front of the inverse affine.

    Parameters
    ----------
    from_grid : Grid
        The lattice of u, in fixed space.
    to_grid : Grid
        Where the inverse is wanted, in moving space.
    affine : ndarray, (n + 1, n + 1)
        Acts after u.
    tolerance_vox : float
        Error at which a voxel is done, in the smallest voxel spacing of `to_grid`.
    max_iterations : int
        Bound on the evaluations of one voxel.

    Raises
    ------
    InputError
        Where dimensions, units or axes differ, the affine has another shape, or a number is out
        of range.
    """

    from_grid: Grid
    to_grid: Grid
    affine: NDArray[np.float64]
    tolerance_vox: float = 0.01
    max_iterations: int = 50

    def __post_init__(self) -> None:
        here, there = self.from_grid, self.to_grid
        if (here.axes, here.unit) != (there.axes, there.unit):
            raise InputError(
                f"the field has axes {here.axes} in {here.unit} and its inverse is wanted on axes "
                f"{there.axes} in {there.unit}: reorder or convert one of the grids"
            )
        if not self.tolerance_vox > 0 or self.max_iterations < 1:
            raise InputError(
                f"tolerance_vox must be positive and max_iterations at least 1; got "
                f"{self.tolerance_vox} and {self.max_iterations}"
            )
        if self.affine.shape != (here.ndim + 1, here.ndim + 1):
            raise InputError(
                f"the affine after a {here.ndim}-D field is a {here.ndim + 1} x {here.ndim + 1} "
                f"matrix; got shape {self.affine.shape}"
            )

    def reach(self, box: Slices, bounds: NDArray[np.float64]) -> Slices:
        """The part of the field that the inverse in a box of the output can depend on.

        Parameters
        ----------
        box : tuple of slice
            Voxels of `to_grid`.
        bounds : ndarray, (2, n)
            From `displacement_bounds`, of the whole field.

        Returns
        -------
        tuple of slice
            Voxels of `from_grid`.
        """
        first, steps, count = self._knots(box)
        ends = np.stack([first * steps, (first + count - 1) * steps], axis=1)
        corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, len(box))
        matrix = self._to_field()
        starts = corners @ matrix[:, :-1].T + matrix[:, -1]
        return self._around(starts, bounds)

    def solve(
        self, part: NDArray[Any], region: Slices, box: Slices, bounds: NDArray[np.float64]
    ) -> Inversion:
        """Invert in a box of the output.

        Parameters
        ----------
        part : ndarray, region + (n,)
            The field in `region`.
        region : tuple of slice
            At least what `reach` gives.
        box : tuple of slice
            Voxels of `to_grid`.
        bounds : ndarray, (2, n)
            From `displacement_bounds`, of the whole field.

        Returns
        -------
        Inversion
            Of the box.
        """
        n = self.to_grid.ndim
        shape = tuple(s.stop - s.start for s in box)
        lifted = _three(shape, 1)
        size = math.prod(shape)
        vectors, error = np.empty((size, n), np.float32), np.empty(size, np.float32)
        out = Output(self._back(), lifted, vectors, error, np.zeros(lifted[1], np.int64))
        solved = self._part(part, region, bounds)
        lattice, knots = self._lattice(box)
        over_slabs(lambda a, b: solve_knots(solved, lattice, knots, a, b), knots.shape[1])
        over_slabs(lambda a, b: solve_rows(solved, lattice, knots, out, a, b), lifted[1])
        return Inversion(vectors.reshape(*shape, n), error.reshape(shape), int(out.rounds.max()))

    def solve_points(
        self,
        part: NDArray[Any],
        region: Slices,
        points: NDArray[np.float64],
        bounds: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Invert at scattered points.

        Parameters
        ----------
        part : ndarray, region + (n,)
            The field in `region`.
        region : tuple of slice
            Must hold every solution; see `reach_points`.
        points : ndarray, (m, n)
            Positions in moving space.
        bounds : ndarray, (2, n)
            From `displacement_bounds`, of the whole field.

        Returns
        -------
        origins : ndarray, (m, n)
            The fixed points that map to `points`.
        error : ndarray, (m,)
            Estimated distance from the exact solution, in the smallest spacing of `to_grid`.
        """
        n = self.from_grid.ndim
        starts = np.zeros((len(points), 3))
        starts[:, 3 - n :] = self._field_index(points)
        ends, error = np.empty_like(starts), np.empty(len(points))
        solved = self._part(part, region, bounds)
        over_slabs(lambda a, b: solve_points(solved, starts, ends, error, a, b), len(points))
        return self.from_grid.to_physical(ends[:, 3 - n :]), error

    def reach_points(self, points: NDArray[np.float64], bounds: NDArray[np.float64]) -> Slices:
        """The part of the field that holds where some points come from.

        Parameters
        ----------
        points : ndarray, (m, n)
            Positions in moving space, at least one.
        bounds : ndarray, (2, n)
            From `displacement_bounds`, of the whole field.

        Returns
        -------
        tuple of slice
            Voxels of `from_grid`.
        """
        return self._around(self._field_index(points), bounds)

    def _around(self, starts: NDArray[np.float64], bounds: NDArray[np.float64]) -> Slices:
        # One voxel more than the bound: corners are computed in another order than voxels are.
        low = np.floor(starts.min(axis=0) - bounds[1]) - 1
        high = np.ceil(starts.max(axis=0) - bounds[0]) + 2
        shape = np.asarray(self.from_grid.shape)
        # Two voxels at least: beyond the field, its last cell is read.
        low = np.clip(low, 0, np.maximum(shape - 2, 0)).astype(int)
        high = np.clip(high, np.minimum(low + 2, shape), shape).astype(int)
        return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))

    def _knots(self, box: Slices) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """First knot, voxels from knot to knot, and number of knots per axis, for a box."""
        steps = np.where(np.asarray(self.to_grid.shape) > 1, KNOT_STEP, 1)
        ends = [
            knot_range(s.start, s.stop) if step > 1 else (s.start, s.stop)
            for s, step in zip(box, steps, strict=True)
        ]
        first = np.array([a for a, _ in ends])
        return first, steps, np.array([b for _, b in ends]) - first

    def _lattice(self, box: Slices) -> tuple[Lattice, NDArray[np.float64]]:
        """The voxels of a box, lifted to three dimensions, and room for their knots."""
        n = self.to_grid.ndim
        lead = 3 - n
        first, steps, count = self._knots(box)
        index = np.eye(3, 4)
        matrix = self._to_field()
        index[lead:, lead:3], index[lead:, 3] = matrix[:, :-1], matrix[:, -1]
        start = [s.start for s in box]
        lattice = Lattice(
            _floats(index),
            _three(start, 0),
            _three(first, 0),
            _three(steps, 1),
        )
        a, b, c = _three(count, 1)
        return lattice, np.empty((a, b, 3, c))

    def _part(self, part: NDArray[Any], region: Slices, bounds: NDArray[np.float64]) -> FieldPart:
        """A part of the field, lifted to three dimensions, and how exactly to solve with it."""
        n = self.from_grid.ndim
        lead = 3 - n
        # Compiled loops would read beyond a field of another shape.
        _check_shape(part, tuple(s.stop - s.start for s in region))
        vectors = _lifted(part)
        _, height, width, _ = vectors.shape
        matrix, lifted, scale = np.eye(3), np.zeros((2, 3)), np.zeros(3)
        matrix[lead:, lead:] = self.from_grid.matrix[:-1, :-1]
        lifted[:, lead:] = bounds
        scale[lead:] = np.asarray(self.from_grid.spacing) / min(self.to_grid.spacing)
        inverse = np.linalg.inv(matrix)
        return FieldPart(
            vectors.reshape(-1),
            (3 * width * height, 3 * width, 3),
            _floats(_three([s.start for s in region], 0)),
            _floats(_three([m - 1 for m in self.from_grid.shape], 0)),
            _floats(matrix),
            _floats(inverse),
            float(np.linalg.det(inverse)),
            _floats(lifted[0]),
            _floats(lifted[1]),
            _floats(scale),
            self.tolerance_vox,
            self.max_iterations,
        )

    def _back(self) -> tuple[float, ...]:
        """From field voxels to vectors in front of the inverse affine."""
        n = self.from_grid.ndim
        back = np.zeros((3, 3))
        back[:n, 3 - n :] = (self.affine @ self.from_grid.matrix)[:-1, :-1]
        return _floats(back)

    def _to_field(self) -> NDArray[np.float64]:
        """From output voxel index to where it lies on the field, u left out."""
        whole = self.from_grid.inverse_matrix @ np.linalg.inv(self.affine) @ self.to_grid.matrix
        return np.asarray(whole[:-1])

    def _field_index(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        matrix = (self.from_grid.inverse_matrix @ np.linalg.inv(self.affine))[:-1]
        return np.asarray(points @ matrix[:, :-1].T + matrix[:, -1])


def invert_displacement(
    field: NDArray[np.floating[Any]],
    from_grid: Grid,
    to_grid: Grid,
    *,
    affine: NDArray[np.float64] | None = None,
    tolerance_vox: float = 0.01,
    max_iterations: int = 50,
) -> Inversion:
    """Invert a displacement field, or one with an affine after it, in memory.

    With ``T(p) = affine(p + u(p))`` the result v satisfies ``affine^-1(q + v(q)) = T^-1(q)``: a
    displacement in moving space, in front of the inverse affine.

    Parameters
    ----------
    field : ndarray, from_grid.shape + (n,)
        u, vectors in physical units; sampled linearly, constant beyond its grid.
    from_grid : Grid
        The lattice of the field, in fixed space.
    to_grid : Grid
        Where the inverse is wanted, in moving space.
    affine : ndarray, (n + 1, n + 1), optional
        Acts after the field.
    tolerance_vox : float
        Error at which a voxel is done, in the smallest voxel spacing of `to_grid`.
    max_iterations : int
        Bound on the evaluations of one voxel; where it is met, `Inversion.error` says how far off.

    Returns
    -------
    Inversion
        The field v on `to_grid`, and its error.

    Raises
    ------
    InputError
        Where the grids, the shape of the field and the affine do not fit, or the field is not
        finite.
    """
    matrix = np.eye(from_grid.ndim + 1) if affine is None else affine
    problem = InverseProblem(from_grid, to_grid, matrix, tolerance_vox, max_iterations)
    bounds = displacement_bounds(field, from_grid)
    region = tuple(slice(0, m) for m in from_grid.shape)
    return problem.solve(field, region, tuple(slice(0, m) for m in to_grid.shape), bounds)


def displacement_bounds(field: NDArray[np.floating[Any]], grid: Grid) -> NDArray[np.float64]:
    """Least and greatest displacement per axis, in voxels.

    Parameters
    ----------
    field : ndarray, shape + (n,)
        Vectors in physical units, of the whole grid or a part of it.
    grid : Grid
        Spacing and direction count.

    Returns
    -------
    ndarray, (2, n)
        Voxels along the array axes.

    Raises
    ------
    InputError
        Where the field has no n components on n axes, or holds NaN or infinity.
    """
    _check_shape(field, field.shape[: grid.ndim])
    lead = 3 - grid.ndim
    lifted = _lifted(field)
    vectors = lifted.reshape(-1, *lifted.shape[2:])
    matrix = np.eye(3)
    matrix[lead:, lead:] = grid.inverse_matrix[:-1, :-1]
    numbers, each = _floats(matrix), np.empty((len(vectors), 2, 3))
    over_slabs(lambda a, b: _bound_rows(vectors, numbers, each, a, b), len(each))
    bounds = np.stack([each[:, 0].min(axis=0), each[:, 1].max(axis=0)])[:, lead:]
    if not np.isfinite(bounds).all():
        raise InputError("the displacement field holds NaN or infinity: fill it before inverting")
    return bounds


def _check_shape(field: NDArray[Any], shape: tuple[int, ...]) -> None:
    wanted = (*shape, len(shape))
    if field.shape != wanted:
        raise InputError(
            f"a displacement field on {shape} voxels has shape {wanted}; got {field.shape}: is it "
            "on another grid?"
        )


def _lifted(field: NDArray[Any]) -> NDArray[np.float32]:
    """The vectors in three dimensions."""
    lead = 4 - field.ndim
    if lead:
        field = np.pad(field[None], [(0, 0)] * 3 + [(lead, 0)])
    return np.ascontiguousarray(field, np.float32)


def _floats(values: ArrayLike) -> tuple[float, ...]:
    return tuple(map(float, np.ravel(values)))


def _three(values: Iterable[Any], lead: int) -> tuple[int, int, int]:
    """Whole numbers per axis, lifted to three dimensions."""
    given = tuple(map(int, values))
    return cast("tuple[int, int, int]", (lead,) * (3 - len(given)) + given)


@njit(nogil=True, cache=True, error_model="numpy")
def _bound_rows(field, matrix, bounds, start, stop):  # type: ignore[no-untyped-def]
    """Least and greatest of ``matrix @ vector`` per row; NaN where one is not finite."""
    m = matrix
    for j in range(start, stop):
        low0 = low1 = low2 = np.inf
        high0 = high1 = high2 = -np.inf
        total = 0.0
        for k in range(field.shape[1]):
            x, y, z = float(field[j, k, 0]), float(field[j, k, 1]), float(field[j, k, 2])
            u = m[0] * x + m[1] * y + m[2] * z
            v = m[3] * x + m[4] * y + m[5] * z
            w = m[6] * x + m[7] * y + m[8] * z
            low0, high0 = u if u < low0 else low0, u if u > high0 else high0
            low1, high1 = v if v < low1 else low1, v if v > high1 else high1
            low2, high2 = w if w < low2 else low2, w if w > high2 else high2
            # Comparisons lose a NaN; a sum keeps it.
            total += u + v + w
        nothing = 0.0 if np.isfinite(total) else np.nan
        bounds[j, 0, 0], bounds[j, 1, 0] = low0 + nothing, high0 + nothing
        bounds[j, 0, 1], bounds[j, 1, 1] = low1 + nothing, high1 + nothing
        bounds[j, 0, 2], bounds[j, 1, 2] = low2 + nothing, high2 + nothing
