"""The inverse of a displacement field, by Newton's iteration on the sampled field itself.

For a point y the inverse is the x with ``x + u(x) = y``, u interpolated linearly. Its slope is
known within each cell, so a Newton step costs one evaluation; a step that does not bring the images
nearer is halved, which also holds where plain fixed-point iteration does not contract. Along a row
each voxel starts from where its neighbours ended, so that most need one evaluation.

Iterates are kept inside ``y - [min u, max u]``, which holds every solution: what a block has to
read is known before it starts. Indices are counted in the whole image and rows start at fixed
places, so a block gives the bits that the whole image gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid, Slices
from itkstream.numerics.threads import over_slabs

__all__ = [
    "InverseProblem",
    "Inversion",
    "displacement_bounds",
    "invert_displacement",
]

# Voxels of a row that start from one another; the next run of voxels starts anew.
_RUN = 16

# Below this the slope of the map is taken for singular: a fold, or nearly one.
_LEAST_DETERMINANT = 1e-3


@dataclass(frozen=True, eq=False)
class Inversion:
    """The inverse of a displacement field and how exact it is.

    Parameters
    ----------
    displacement : ndarray, shape + (n,), float32
        ``q + displacement(q)``, the affine left out, is where q comes from.
    error : ndarray, shape, float32
        Estimated distance from the exact inverse, in the smallest voxel spacing of the output:
        the last Newton step, which has been taken.
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
    affine : ndarray, (n + 1, n + 1), optional
        Acts after u; default identity.
    tolerance_vox : float
        Error at which a voxel is done, in the smallest voxel spacing of `to_grid`.
    max_iterations : int
        Bound on the evaluations of one voxel.

    Raises
    ------
    InputError
        Where dimensions, units or axes differ, or a number is out of range.
    """

    from_grid: Grid
    to_grid: Grid
    affine: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
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
        if not self.affine.size:
            object.__setattr__(self, "affine", np.eye(here.ndim + 1))

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
        first = [s.start for s in box]
        first[-1] = first[-1] // _RUN * _RUN
        ends = np.stack([first, [s.stop - 1 for s in box]], axis=1)
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
        lead = (1,) * (3 - n)
        out = np.empty((*lead, *shape, n), np.float32)
        error = np.empty((*lead, *shape), np.float32)
        rounds = np.zeros(out.shape[1], np.int64)
        vectors = _in_voxels(part, self.from_grid)
        place = _Place.of(self, region, box, bounds)
        args = (vectors, *place.arrays(), self.max_iterations, out, error, rounds)
        over_slabs(lambda a, b: _invert(*args, a, b), out.shape[1])
        return Inversion(out.reshape(*shape, n), error.reshape(shape), int(rounds.max()))

    def solve_points(
        self, part: NDArray[Any], region: Slices, points: NDArray[np.float64], bounds: Any
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
        vectors = _in_voxels(part, self.from_grid)
        whole = tuple(slice(0, m) for m in self.to_grid.shape)
        place = _Place.of(self, region, whole, bounds)
        args = (vectors, place.first, place.shape, place.bounds, place.scale, self.max_iterations)
        over_slabs(lambda a, b: _invert_points(*args, starts, ends, error, a, b), len(points))
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
        low = np.clip(low, 0, shape - 1).astype(int)
        high = np.clip(high, low + 1, shape).astype(int)
        return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))

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
        Where the grids do not fit or the field is not finite.
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
        Where the field holds NaN or infinity.
    """
    vectors = _in_voxels(field, grid)
    each = [vectors[..., c] for c in range(3 - grid.ndim, 3)]
    bounds = np.array([[v.min() for v in each], [v.max() for v in each]], np.float64)
    if not np.isfinite(bounds).all():
        raise InputError("the displacement field holds NaN or infinity: fill it before inverting")
    return bounds


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a box of the output and a part of the field lie, lifted to three dimensions."""

    index: NDArray[np.float64]
    back: NDArray[np.float64]
    box: NDArray[np.int64]
    first: NDArray[np.int64]
    shape: NDArray[np.int64]
    bounds: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(
        cls, problem: InverseProblem, region: Slices, box: Slices, bounds: NDArray[np.float64]
    ) -> _Place:
        n = problem.from_grid.ndim
        lead = 3 - n
        index = np.eye(3, 4)
        matrix = problem._to_field()
        index[lead:, lead:3], index[lead:, 3] = matrix[:, :-1], matrix[:, -1]
        back = np.zeros((n, 3))
        back[:, lead:] = (problem.affine @ problem.from_grid.matrix)[:-1, :-1]
        lifted = np.zeros((2, 3))
        lifted[:, lead:] = bounds
        # Lengths in the tolerance: a step is short enough where its scaled length is at most 1.
        scale = np.zeros(4)
        scale[lead:3] = np.asarray(problem.from_grid.spacing) / min(problem.to_grid.spacing)
        scale[3] = problem.tolerance_vox
        starts = [0] * lead + [s.start for s in box]
        first = [0] * lead + [s.start for s in region]
        shape = (1,) * lead + problem.from_grid.shape
        return cls(index, back, np.array(starts), np.array(first), np.array(shape), lifted, scale)

    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self.index, self.back, self.box, self.first, self.shape, self.bounds, self.scale


def _in_voxels(part: NDArray[Any], grid: Grid) -> NDArray[np.float32]:
    """The vectors in voxels of their lattice, lifted to three dimensions."""
    n = grid.ndim
    shape = (1,) * (3 - n) + part.shape[:-1]
    source = np.ascontiguousarray(part).reshape((*shape, n))
    out = np.zeros((*shape, 3), np.float32)
    matrix = np.ascontiguousarray(grid.inverse_matrix[:-1, :-1])
    over_slabs(lambda a, b: _scale(source, matrix, out, a, b), shape[1])
    return out


@njit(nogil=True, cache=True, error_model="numpy")
def _scale(source, matrix, out, start, stop):  # type: ignore[no-untyped-def]
    n = matrix.shape[0]
    for i in range(source.shape[0]):
        for j in range(start, stop):
            for k in range(source.shape[2]):
                for a in range(n):
                    total = 0.0
                    for b in range(n):
                        total += matrix[a, b] * source[i, j, k, b]
                    out[i, j, k, 3 - n + a] = total


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _cell(x, n):  # type: ignore[no-untyped-def]
    """Lower voxel, upper voxel, weight of the upper one, and the slope of that weight."""
    if x <= 0.0:
        return 0, 0, 0.0, 0.0
    if x >= n - 1:
        return n - 1, n - 1, 0.0, 0.0
    low = int(x)
    return low, low + 1, x - low, 1.0


@njit(nogil=True, cache=True, error_model="numpy")
def _evaluate(flat, size, first, shape, x, m):  # type: ignore[no-untyped-def]
    """What the map is like at x: its slopes, then the displacement, in the columns of m.

    Returns the greatest bend of a component within the cell: the sum of its mixed second
    derivatives.
    """
    x0, x1, fx, sx = _cell(x[0], shape[0])
    y0, y1, fy, sy = _cell(x[1], shape[1])
    z0, z1, fz, sz = _cell(x[2], shape[2])
    # Places in the flat array; unsigned, or numba would look for negative indices.
    ny, nz = size[1], size[2]
    x0, x1 = (x0 - first[0]) * ny, (x1 - first[0]) * ny
    y0, y1 = y0 - first[1], y1 - first[1]
    z0, z1 = 3 * (z0 - first[2]), 3 * (z1 - first[2])
    p00, p01 = 3 * nz * (x0 + y0), 3 * nz * (x0 + y1)
    p10, p11 = 3 * nz * (x1 + y0), 3 * nz * (x1 + y1)
    most = 0.0
    for c in range(3):
        a00 = float(flat[np.uint64(p00 + z0 + c)])
        a01 = float(flat[np.uint64(p01 + z0 + c)])
        a10 = float(flat[np.uint64(p10 + z0 + c)])
        a11 = float(flat[np.uint64(p11 + z0 + c)])
        d00 = flat[np.uint64(p00 + z1 + c)] - a00
        d01 = flat[np.uint64(p01 + z1 + c)] - a01
        d10 = flat[np.uint64(p10 + z1 + c)] - a10
        d11 = flat[np.uint64(p11 + z1 + c)] - a11
        v00, v10 = a00 + d00 * fz, a10 + d10 * fz
        g0, g1 = a01 + d01 * fz - v00, a11 + d11 * fz - v10
        v0, v1 = v00 + g0 * fy, v10 + g1 * fy
        h0, h1 = d01 - d00, d11 - d10
        e0, e1 = d00 + h0 * fy, d10 + h1 * fy
        m[c, 0] = (v1 - v0) * sx
        m[c, 1] = (g0 + (g1 - g0) * fx) * sy
        m[c, 2] = (e0 + (e1 - e0) * fx) * sz
        m[c, 3] = v0 + (v1 - v0) * fx
        m[c, c] += 1.0
        most = max(most, abs(g1 - g0) + abs(e1 - e0) + abs(h0 + (h1 - h0) * fx))
    return most


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _newton_step(m, r0, r1, r2):  # type: ignore[no-untyped-def]
    """What must be added so that the remainder r vanishes; where the map folds, minus r."""
    c00 = m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1]
    c01 = m[1, 2] * m[2, 0] - m[1, 0] * m[2, 2]
    c02 = m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0]
    det = m[0, 0] * c00 + m[0, 1] * c01 + m[0, 2] * c02
    if det < _LEAST_DETERMINANT:
        return -r0, -r1, -r2
    s = -1.0 / det
    c10 = m[0, 2] * m[2, 1] - m[0, 1] * m[2, 2]
    c11 = m[0, 0] * m[2, 2] - m[0, 2] * m[2, 0]
    c12 = m[0, 1] * m[2, 0] - m[0, 0] * m[2, 1]
    c20 = m[0, 1] * m[1, 2] - m[0, 2] * m[1, 1]
    c21 = m[0, 2] * m[1, 0] - m[0, 0] * m[1, 2]
    c22 = m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
    return (
        s * (c00 * r0 + c10 * r1 + c20 * r2),
        s * (c01 * r0 + c11 * r1 + c21 * r2),
        s * (c02 * r0 + c12 * r1 + c22 * r2),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _solve(flat, size, first, shape, bounds, scale, limit, target, x, m):  # type: ignore[no-untyped-def]
    """Move x, in place, to where it maps to the target; return the error and the evaluations.

    `best` is the nearest place so far and `step` leads on from it.
    """
    best0, best1, best2 = x[0], x[1], x[2]
    step0 = step1 = step2 = 0.0
    least, length, share = np.inf, np.inf, 1.0
    for count in range(limit):
        for a in range(3):
            x[a] = min(max(x[a], target[a] - bounds[1, a]), target[a] - bounds[0, a])
        bend = _evaluate(flat, size, first, shape, x, m)
        r0 = x[0] + m[0, 3] - target[0]
        r1 = x[1] + m[1, 3] - target[1]
        r2 = x[2] + m[2, 3] - target[2]
        remains = (r0 * scale[0]) ** 2 + (r1 * scale[1]) ** 2 + (r2 * scale[2]) ** 2
        if remains < least:
            least, share = remains, 1.0
            best0, best1, best2 = x[0], x[1], x[2]
            step0, step1, step2 = _newton_step(m, r0, r1, r2)
            length = np.sqrt(
                (step0 * scale[0]) ** 2 + (step1 * scale[1]) ** 2 + (step2 * scale[2]) ** 2
            )
            x[0], x[1], x[2] = best0 + step0, best1 + step1, best2 + step2
            if length <= scale[3]:
                return length, count + 1
            # Within one cell the map is linear but for its bend: no need to look again.
            same = np.floor(best0) == np.floor(x[0]) and np.floor(best1) == np.floor(x[1])
            if same and np.floor(best2) == np.floor(x[2]):
                longest = max(abs(step0), abs(step1), abs(step2))
                off = bend * longest * longest * max(scale[0], scale[1], scale[2])
                off *= max(1.0, length / np.sqrt(remains))
                if off <= 0.5 * scale[3]:
                    return off, count + 1
            continue
        share *= 0.5
        x[0] = best0 + share * step0
        x[1] = best1 + share * step1
        x[2] = best2 + share * step2
    x[0], x[1], x[2] = best0, best1, best2
    return length, limit


@njit(nogil=True, cache=True, error_model="numpy")
def _invert(  # type: ignore[no-untyped-def]
    field, index, back, box, first, shape, bounds, scale, limit, out, error, rounds, start, stop
):
    size, flat = field.shape, field.reshape(field.size)
    target, x, m = np.empty(3), np.empty(3), np.empty((3, 4))
    now, before = np.zeros(3), np.zeros(3)
    # Runs start at the same voxels of the whole image, whichever block computes them.
    lead = box[2] % _RUN
    for i in range(out.shape[0]):
        for j in range(start, stop):
            for k in range(-lead, out.shape[2]):
                fresh = (k + lead) % _RUN
                for a in range(3):
                    target[a] = (
                        index[a, 0] * (box[0] + i)
                        + index[a, 1] * (box[1] + j)
                        + index[a, 2] * (box[2] + k)
                        + index[a, 3]
                    )
                    x[a] = target[a]
                    if fresh == 1:
                        x[a] += now[a]
                    elif fresh > 1:
                        x[a] += 2.0 * now[a] - before[a]
                off, count = _solve(flat, size, first, shape, bounds, scale, limit, target, x, m)
                for a in range(3):
                    before[a] = now[a]
                    now[a] = x[a] - target[a]
                if k < 0:
                    continue
                rounds[j] = max(rounds[j], count)
                error[i, j, k] = off
                for c in range(back.shape[0]):
                    out[i, j, k, c] = (
                        back[c, 0] * now[0] + back[c, 1] * now[1] + back[c, 2] * now[2]
                    )


@njit(nogil=True, cache=True, error_model="numpy")
def _invert_points(  # type: ignore[no-untyped-def]
    field, first, shape, bounds, scale, limit, starts, ends, error, start, stop
):
    size, flat = field.shape, field.reshape(field.size)
    m = np.empty((3, 4))
    for p in range(start, stop):
        ends[p] = starts[p]
        off, _ = _solve(flat, size, first, shape, bounds, scale, limit, starts[p], ends[p], m)
        error[p] = off
