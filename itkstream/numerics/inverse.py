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


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _component(flat, p00, p01, p10, p11, by, fx, fy, fz):  # type: ignore[no-untyped-def]
    """One component within a cell: slopes, value, and bend (its mixed second derivatives)."""
    # Places are unsigned, or numba would look for negative indices.
    a00 = float(flat[np.uint64(p00)])
    a01 = float(flat[np.uint64(p01)])
    a10 = float(flat[np.uint64(p10)])
    a11 = float(flat[np.uint64(p11)])
    d00 = flat[np.uint64(p00 + by)] - a00
    d01 = flat[np.uint64(p01 + by)] - a01
    d10 = flat[np.uint64(p10 + by)] - a10
    d11 = flat[np.uint64(p11 + by)] - a11
    v00, v10 = a00 + d00 * fz, a10 + d10 * fz
    g0, g1 = a01 + d01 * fz - v00, a11 + d11 * fz - v10
    v0 = v00 + g0 * fy
    dx = v10 + g1 * fy - v0
    h0, h1 = d01 - d00, d11 - d10
    e0 = d00 + h0 * fy
    e = d10 + h1 * fy - e0
    g, h = g1 - g0, h0 + (h1 - h0) * fx
    return dx, g0 + g * fx, e0 + e * fx, v0 + dx * fx, abs(g) + abs(e) + abs(h)


@njit(nogil=True, cache=True, error_model="numpy")
def _evaluate(flat, size, first, shape, x, y, z):  # type: ignore[no-untyped-def]
    """The displacement at a position, the step that would undo it, and the bend of the cell.

    The step is Newton's: a function of the remainder r, it is returned as the three rows of the
    inverse of the map's slopes; where the map folds, as those of the identity.
    """
    x0, x1, fx, sx = _cell(x, shape[0])
    y0, y1, fy, sy = _cell(y, shape[1])
    z0, z1, fz, sz = _cell(z, shape[2])
    ny, nz = size[1], 3 * size[2]
    x0, x1 = (x0 - first[0]) * ny - first[1], (x1 - first[0]) * ny - first[1]
    z0, by = 3 * (z0 - first[2]), 3 * (z1 - z0)
    p00, p01 = nz * (x0 + y0) + z0, nz * (x0 + y1) + z0
    p10, p11 = nz * (x1 + y0) + z0, nz * (x1 + y1) + z0
    ax, ay, az, u, bu = _component(flat, p00, p01, p10, p11, by, fx, fy, fz)
    bx, by_, bz, v, bv = _component(flat, p00 + 1, p01 + 1, p10 + 1, p11 + 1, by, fx, fy, fz)
    cx, cy, cz, w, bw = _component(flat, p00 + 2, p01 + 2, p10 + 2, p11 + 2, by, fx, fy, fz)
    ax, ay, az = 1.0 + ax * sx, ay * sy, az * sz
    bx, by_, bz = bx * sx, 1.0 + by_ * sy, bz * sz
    cx, cy, cz = cx * sx, cy * sy, 1.0 + cz * sz
    k00, k01, k02 = by_ * cz - bz * cy, bz * cx - bx * cz, bx * cy - by_ * cx
    det = ax * k00 + ay * k01 + az * k02
    bend = bu + bv + bw
    if det < _LEAST_DETERMINANT:
        return u, v, w, bend, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    s = 1.0 / det
    row0 = (s * k00, s * (az * cy - ay * cz), s * (ay * bz - az * by_))
    row1 = (s * k01, s * (ax * cz - az * cx), s * (az * bx - ax * bz))
    row2 = (s * k02, s * (ay * cx - ax * cy), s * (ax * by_ - ay * bx))
    return u, v, w, bend, row0, row1, row2


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _within(x, low, high):  # type: ignore[no-untyped-def]
    if x < low:
        return low
    if x > high:
        return high
    return x


@njit(nogil=True, cache=True, error_model="numpy")
def _solve(flat, size, first, shape, bounds, scale, limit, target, start):  # type: ignore[no-untyped-def]
    """Find what maps to the target; return it, the error and the evaluations.

    `best` is the nearest place so far and `step` leads on from it.
    """
    t0, t1, t2 = target
    s0, s1, s2, enough = scale[0], scale[1], scale[2], scale[3]
    x, y, z = start
    best0, best1, best2 = x, y, z
    step0 = step1 = step2 = 0.0
    least, length, share = np.inf, np.inf, 1.0
    for count in range(limit):
        x = _within(x, t0 - bounds[1, 0], t0 - bounds[0, 0])
        y = _within(y, t1 - bounds[1, 1], t1 - bounds[0, 1])
        z = _within(z, t2 - bounds[1, 2], t2 - bounds[0, 2])
        u, v, w, bend, row0, row1, row2 = _evaluate(flat, size, first, shape, x, y, z)
        r0, r1, r2 = t0 - x - u, t1 - y - v, t2 - z - w
        remains = (r0 * s0) ** 2 + (r1 * s1) ** 2 + (r2 * s2) ** 2
        if remains >= least:
            share *= 0.5
            x, y, z = best0 + share * step0, best1 + share * step1, best2 + share * step2
            continue
        least, share = remains, 1.0
        best0, best1, best2 = x, y, z
        step0 = row0[0] * r0 + row0[1] * r1 + row0[2] * r2
        step1 = row1[0] * r0 + row1[1] * r1 + row1[2] * r2
        step2 = row2[0] * r0 + row2[1] * r1 + row2[2] * r2
        length = np.sqrt((step0 * s0) ** 2 + (step1 * s1) ** 2 + (step2 * s2) ** 2)
        x, y, z = best0 + step0, best1 + step1, best2 + step2
        if length <= enough:
            return x, y, z, length, count + 1
        # Within one cell the map is linear but for its bend: no need to look again.
        same = np.floor(best0) == np.floor(x) and np.floor(best1) == np.floor(y)
        if same and np.floor(best2) == np.floor(z):
            longest = max(abs(step0), abs(step1), abs(step2))
            off = bend * longest * longest * max(s0, s1, s2)
            off *= max(1.0, length / np.sqrt(remains))
            if off <= 0.5 * enough:
                return x, y, z, off, count + 1
    return best0, best1, best2, length, limit


@njit(nogil=True, cache=True, error_model="numpy")
def _invert(  # type: ignore[no-untyped-def]
    field, index, back, box, first, shape, bounds, scale, limit, out, error, rounds, start, stop
):
    size, flat = field.shape, field.reshape(field.size)
    # Runs start at the same voxels of the whole image, whichever block computes them.
    lead = box[2] % _RUN
    for i in range(out.shape[0]):
        for j in range(start, stop):
            w0 = w1 = w2 = b0 = b1 = b2 = 0.0
            a, b = float(box[0] + i), float(box[1] + j)
            for k in range(-lead, out.shape[2]):
                c = float(box[2] + k)
                t0 = index[0, 0] * a + index[0, 1] * b + index[0, 2] * c + index[0, 3]
                t1 = index[1, 0] * a + index[1, 1] * b + index[1, 2] * c + index[1, 3]
                t2 = index[2, 0] * a + index[2, 1] * b + index[2, 2] * c + index[2, 3]
                fresh = (k + lead) % _RUN
                # From the start, from the neighbour, or from the line through two neighbours.
                if fresh == 0:
                    w0 = w1 = w2 = 0.0
                if fresh <= 1:
                    b0, b1, b2 = w0, w1, w2
                guess = (t0 + 2.0 * w0 - b0, t1 + 2.0 * w1 - b1, t2 + 2.0 * w2 - b2)
                x, y, z, off, count = _solve(
                    flat, size, first, shape, bounds, scale, limit, (t0, t1, t2), guess
                )
                b0, b1, b2 = w0, w1, w2
                w0, w1, w2 = x - t0, y - t1, z - t2
                if k < 0:
                    continue
                rounds[j] = max(rounds[j], count)
                error[i, j, k] = off
                for m in range(back.shape[0]):
                    out[i, j, k, m] = back[m, 0] * w0 + back[m, 1] * w1 + back[m, 2] * w2


@njit(nogil=True, cache=True, error_model="numpy")
def _invert_points(  # type: ignore[no-untyped-def]
    field, first, shape, bounds, scale, limit, starts, ends, error, start, stop
):
    size, flat = field.shape, field.reshape(field.size)
    for p in range(start, stop):
        target = (starts[p, 0], starts[p, 1], starts[p, 2])
        x, y, z, off, _ = _solve(flat, size, first, shape, bounds, scale, limit, target, target)
        ends[p, 0], ends[p, 1], ends[p, 2] = x, y, z
        error[p] = off
