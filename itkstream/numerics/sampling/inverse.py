"""The inverse of a displacement field, by Newton's iteration on the sampled field itself.

For a point y the inverse is the x with ``matrix @ x + u(x) = y``, u interpolated linearly. Its
slopes within a cell are differences of the same eight vectors, so a Newton step costs one
evaluation. Every fourth voxel of the output is a knot, solved from scratch; the others start from
a cubic through the knots, which is so near that most need one evaluation. A step that does not
bring the images nearer is halved, which also holds where fixed-point iteration does not contract.

Iterates are kept inside ``y - [min u, max u]``, which holds every solution: what a block has to
read is known before it starts. Knots are counted in the whole image, so a block gives the bits that
the whole image gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid, Slices
from itkstream.numerics.lift import lift_field, lift_matrix, lift_values, lift_vectors
from itkstream.numerics.threads import over_slabs

__all__ = ["InverseProblem", "Inversion", "displacement_bounds", "invert_displacement"]

# Voxels from one knot to the next; the shifts and masks below take 4 for granted.
_STEP = 4
# Lagrange's cubic through four knots, at the voxels from the second knot on.
_CUBIC = np.array([[0, 128, 0, 0], [-7, 105, 35, -5], [-8, 72, 72, -8], [-5, 35, 105, -7]]) / 128
# Below this share of the undeformed volume the slope of the map is taken for singular: a fold.
_LEAST_DETERMINANT = 1e-3
# A step that leaves its cell is off by at most so many times what is beyond: slopes differ by up to
# 1 from cell to cell, and the inverse magnifies that where the map shrinks.
_DOUBT = 8.0


@dataclass(frozen=True, eq=False)
class Inversion:
    """The inverse of a displacement field and how exact it is.

    `displacement` (shape + (n,), float32) leads from q to where it comes from, the affine left out.
    `error` (shape, float32) is the estimated distance from the exact inverse, in the smallest voxel
    spacing of the output: a bound where the last Newton step, which has been taken, stayed within a
    cell of the field; else that and several times what was outside. `iterations` is the most
    evaluations that one voxel took.
    """

    displacement: NDArray[np.float32]
    error: NDArray[np.float32]
    iterations: int


@dataclass(frozen=True, eq=False)
class InverseProblem:
    """The inverse of ``affine(p + u(p))`` on a grid: a displacement before the inverse affine.

    u lies on `from_grid`, in fixed space; the inverse is wanted on `to_grid`, in moving space. A
    voxel is done at an error of `tolerance_vox`, in the smallest voxel spacing of `to_grid`, or
    after `max_iterations` evaluations. Bounds are those of `displacement_bounds` for all of u.
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
        """The part of the field that the inverse in a box of the output can depend on."""
        ends = np.array([[_STEP * knots[0], _STEP * knots[-1]] for knots in map(_knots, box)])
        corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, len(box))
        return self._around(_apply(self._to_field() @ self.to_grid.matrix, corners), bounds)

    def reach_points(self, points: NDArray[np.float64], bounds: NDArray[np.float64]) -> Slices:
        """The part of the field that holds where some points, (m, n), at least one, come from."""
        return self._around(_apply(self._to_field(), points), bounds)

    def solve(
        self, part: NDArray[Any], region: Slices, box: Slices, bounds: NDArray[np.float64]
    ) -> Inversion:
        """Invert in a box of the output, from the field in at least the region of `reach`."""
        flat, field = self._field(part, region, bounds)
        index = lift_matrix((self._to_field() @ self.to_grid.matrix)[:-1])
        lifted = lift_values(box, slice(0, 1))
        knots = _solve_knots(flat, field, index, [_knots(s) for s in lifted])
        n, shape = self.to_grid.ndim, tuple(s.stop - s.start for s in box)
        rows = (lifted[0].stop - lifted[0].start) * (lifted[1].stop - lifted[1].start)
        vectors = np.empty((rows, shape[-1], 3), np.float32)
        error, counts = np.empty((rows, shape[-1]), np.float32), np.zeros(rows, np.int64)
        back = lift_matrix((self.affine @ self.from_grid.matrix)[:-1, :-1])
        lattice = _rows(index), _rows(back), tuple((s.start, s.stop) for s in lifted)
        out = vectors, error, counts
        over_slabs(lambda a, b: _solve_rows(flat, field, lattice, knots, out, a, b), rows)
        found = np.ascontiguousarray(vectors[..., 3 - n :]).reshape(*shape, n)
        return Inversion(found, error.reshape(shape), int(counts.max()))

    def solve_points(
        self,
        part: NDArray[Any],
        region: Slices,
        points: NDArray[np.float64],
        bounds: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The fixed points (m, n) that map to `points`, and the error of each, as in `Inversion`.

        The region must hold every solution; see `reach_points`.
        """
        targets = lift_vectors(_apply(self._to_field(), points))
        ends, error = _solve_all(*self._field(part, region, bounds), targets)
        return self.from_grid.to_physical(ends[:, 3 - self.from_grid.ndim :]), error

    def _to_field(self) -> NDArray[np.float64]:
        """From moving space to where it lies on the field in voxels, u left out."""
        return np.asarray(self.from_grid.inverse_matrix @ np.linalg.inv(self.affine))

    def _around(self, starts: NDArray[np.float64], bounds: NDArray[np.float64]) -> Slices:
        # One voxel more than the bound: corners are computed in another order than voxels are.
        low = np.floor(starts.min(axis=0) - bounds[1]) - 1
        high = np.ceil(starts.max(axis=0) - bounds[0]) + 2
        shape = np.asarray(self.from_grid.shape)
        # Two voxels at least: beyond the field, its last cell is read.
        low = np.clip(low, 0, np.maximum(shape - 2, 0)).astype(int)
        high = np.clip(high, np.minimum(low + 2, shape), shape).astype(int)
        return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))

    def _field(
        self, part: NDArray[Any], region: Slices, bounds: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], _Field]:
        """The numbers of a part of the field, one after the other, and what to solve with them."""
        # Compiled loops would read beyond a field of another shape.
        _check_shape(part, tuple(s.stop - s.start for s in region))
        vectors, shape = lift_field(part), lift_values(self.from_grid.shape, 1)
        for axis in np.flatnonzero(np.equal(shape, 1)):
            # A field of one plane is as good as one of two equal planes, which have a cell.
            vectors = np.repeat(vectors, 2, axis)
        matrix = lift_matrix(self.from_grid.matrix[:-1, :-1])
        inverse = np.asarray(np.linalg.inv(matrix), np.float64)
        low, high = _rows(lift_vectors(bounds))
        scale = np.asarray(self.from_grid.spacing) / min(self.to_grid.spacing)
        return vectors.reshape(-1), _Field(
            tuple(step // vectors.itemsize for step in vectors.strides[:3]),
            _floats(lift_values((s.start for s in region), 0)),
            _floats(np.maximum(shape, 2) - 1),
            _rows(matrix),
            _rows(inverse.T),
            float(np.linalg.det(inverse)),
            low,
            high,
            _floats(lift_values(scale, 0.0)),
            self.tolerance_vox,
            self.max_iterations,
        )


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

    With ``T(p) = affine(p + u(p))`` the result v satisfies ``affine^-1(q + v(q)) = T^-1(q)``; u is
    sampled linearly, and constant beyond its grid. See `InverseProblem`.
    """
    matrix = np.eye(from_grid.ndim + 1) if affine is None else affine
    problem = InverseProblem(from_grid, to_grid, matrix, tolerance_vox, max_iterations)
    bounds = displacement_bounds(field, from_grid)
    region, box = (tuple(slice(0, m) for m in grid.shape) for grid in (from_grid, to_grid))
    return problem.solve(field, region, box, bounds)


def displacement_bounds(field: NDArray[np.floating[Any]], grid: Grid) -> NDArray[np.float64]:
    """Bounds of the displacement along the axes of the grid, (2, n), in voxels."""
    _check_shape(field, field.shape[: grid.ndim])
    ends = np.array([(part.min(), part.max()) for part in np.moveaxis(field, -1, 0)], np.float64)
    shares = grid.inverse_matrix[:-1, :-1, None] * ends
    bounds = np.stack([shares.min(axis=-1).sum(axis=1), shares.max(axis=-1).sum(axis=1)])
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


def _apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(points @ matrix[:-1, :-1].T + matrix[:-1, -1])


# Tuples of numbers stay in registers, elements of arrays do not.
def _floats(values: ArrayLike) -> tuple[float, ...]:
    return tuple(map(float, np.ravel(values)))


def _rows(matrix: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(_floats, matrix))


def _knots(voxels: slice) -> NDArray[np.int64]:
    """The knots that voxels of the whole output start from; knot k is voxel 4 k."""
    return np.arange(voxels.start // _STEP - 1, (voxels.stop - 1) // _STEP + 3)


def _solve_knots(
    flat: NDArray[np.float32],
    field: _Field,
    index: NDArray[np.float64],
    knots: list[NDArray[np.int64]],
) -> NDArray[np.float64]:
    """x - y in field voxels at the knots, (a, b, 3 c)."""
    i, j, k = np.ix_(*(float(_STEP) * each for each in knots))
    # Spelt out: a matrix product of another size may add in another order.
    targets = np.stack([m[0] * i + m[1] * j + (m[2] * k + m[3]) for m in index], axis=-1)
    ends, _ = _solve_all(flat, field, targets.reshape(-1, 3))
    return (ends.reshape(targets.shape) - targets).reshape(*targets.shape[:2], -1)


def _solve_all(
    flat: NDArray[np.float32], field: _Field, targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ends, error = np.empty_like(targets), np.empty(len(targets))
    over_slabs(lambda a, b: _solve_points(flat, field, targets, ends, error, a, b), len(targets))
    return ends, error


class _Field(NamedTuple):
    """A part of a field to solve with, lifted to three axes.

    Numbers from one plane, row and vector to the next; where the part begins in the whole field,
    and the last voxel of that; the matrix from field voxels to physical units by rows, its inverse
    by columns, and the determinant of that; bounds of the displacement in field voxels; what turns
    these into the unit of the error; when to end.
    """

    strides: tuple[int, ...]
    first: tuple[float, ...]
    top: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    inverse: tuple[tuple[float, ...], ...]
    density: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    scale: tuple[float, ...]
    enough: float
    limit: int


_compiled = njit(nogil=True, cache=True, error_model="numpy")
_inlined = njit(nogil=True, cache=True, error_model="numpy", inline="always")


@_inlined
def _dot(a, b):  # type: ignore[no-untyped-def]
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@_inlined
def _cross(a, b):  # type: ignore[no-untyped-def]
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@_inlined
def _times(rows, x):  # type: ignore[no-untyped-def]
    return _dot(rows[0], x), _dot(rows[1], x), _dot(rows[2], x)


@_inlined
def _ahead(x, share, step):  # type: ignore[no-untyped-def]
    return x[0] + share * step[0], x[1] + share * step[1], x[2] + share * step[2]


@_inlined
def _hold(x, low, high):  # type: ignore[no-untyped-def]
    return min(max(x, low), high)


@_inlined
def _cell(field, x, a):  # type: ignore[no-untyped-def]
    """Start of the cell of a place along an axis, the share of it, and the distance beyond it."""
    held = _hold(x, 0.0, field.top[a])
    cell = min(np.floor(held), field.top[a] - 1.0)
    return (cell - field.first[a]) * field.strides[a], held - cell, x - held


@_inlined
def _component(flat, at, steps, share):  # type: ignore[no-untyped-def]
    """A component within its cell: value, slopes, and bend (the sum of its mixed slopes)."""
    (sx, sy, sz), (fx, fy, fz) = steps, share
    a00, b00 = np.float64(flat[at]), np.float64(flat[at + sz])
    a01, b01 = np.float64(flat[at + sy]), np.float64(flat[at + sy + sz])
    a10, b10 = np.float64(flat[at + sx]), np.float64(flat[at + sx + sz])
    a11, b11 = np.float64(flat[at + sx + sy]), np.float64(flat[at + sx + sy + sz])
    d00, d01, d10, d11 = b00 - a00, b01 - a01, b10 - a10, b11 - a11
    v00, v10, h0, h1 = a00 + d00 * fz, a10 + d10 * fz, d01 - d00, d11 - d10
    g0, g1 = a01 + d01 * fz - v00, a11 + d11 * fz - v10
    v0, e0 = v00 + g0 * fy, d00 + h0 * fy
    dx, e, g, m = v10 + g1 * fy - v0, d10 + h1 * fy - e0, g1 - g0, h1 - h0
    bend = abs(g) + abs(e) + abs(h0 + m * fx) + abs(m)
    return v0 + dx * fx, (dx, g0 + g * fx, e0 + e * fx), bend


@_inlined
def _sample(flat, field, x):  # type: ignore[no-untyped-def]
    """The three components at a place, its shares of the cell, and how far it is beyond the field.

    Apart from `_newton`, and without a branch: numba counts references to an array in each of them.
    """
    i, fx, ex = _cell(field, x[0], 0)
    j, fy, ey = _cell(field, x[1], 1)
    k, fz, ez = _cell(field, x[2], 2)
    # Unsigned, since numba asks of every signed index whether it counts from the end.
    at, share, (sx, sy, sz) = np.uint64(np.int64(i + j + k)), (fx, fy, fz), field.strides
    steps = np.uint64(sx), np.uint64(sy), np.uint64(sz)
    u = _component(flat, at, steps, share)
    v = _component(flat, at + np.uint64(1), steps, share)
    w = _component(flat, at + np.uint64(2), steps, share)
    return u, v, w, share, (ex, ey, ez)


@_inlined
def _slopes(row, sampled, beyond):  # type: ignore[no-untyped-def]
    """A row of the map's slopes; beyond the field only the matrix has any."""
    return (
        row[0] + sampled[0] if beyond[0] == 0.0 else row[0],
        row[1] + sampled[1] if beyond[1] == 0.0 else row[1],
        row[2] + sampled[2] if beyond[2] == 0.0 else row[2],
    )


@_inlined
def _room(share, beyond, step):  # type: ignore[no-untyped-def]
    """Voxels left when a step along an axis ends; negative where it leaves its cell.

    Beyond the field, where it is constant, all up to its edge is one cell.
    """
    to, past = share + step, beyond + step
    return min(to, 1.0 - to) if beyond == 0.0 else past if beyond > 0.0 else -past


@_inlined
def _newton(field, y, x, sample):  # type: ignore[no-untyped-def]
    """Newton's step, how far the images are apart (squared), and how far the step can end off.

    Within a cell the map is linear but for its bend, which bounds the error: here twice that. What
    leads out of the cell meets other slopes and counts several times.
    """
    (u, du, q0), (v, dv, q1), (w, dw, q2), share, beyond = sample
    there, s = _times(field.matrix, _ahead(y, -1.0, x)), field.scale
    r = there[0] - u, there[1] - v, there[2] - w
    a = _slopes(field.matrix[0], du, beyond)
    b = _slopes(field.matrix[1], dv, beyond)
    c = _slopes(field.matrix[2], dw, beyond)
    # The columns of the inverse, times the volume.
    f, g, h = _cross(b, c), _cross(c, a), _cross(a, b)
    volume = _dot(a, f)
    fine, d = volume * field.density >= _LEAST_DETERMINANT, 1.0 / volume
    if not fine:
        (f, g, h), d = field.inverse, 1.0
    t0 = d * (f[0] * r[0] + g[0] * r[1] + h[0] * r[2])
    t1 = d * (f[1] * r[0] + g[1] * r[1] + h[1] * r[2])
    t2 = d * (f[2] * r[0] + g[2] * r[1] + h[2] * r[2])
    room = min(_room(share[0], beyond[0], t0), _room(share[1], beyond[1], t1))
    room = min(room, _room(share[2], beyond[2], t2))
    longest = max(abs(t0), abs(t1), abs(t2))
    scaled = s[0] * s[0], s[1] * s[1], s[2] * s[2]
    squares = f[0] * f[0] + g[0] * g[0] + h[0] * h[0], f[1] * f[1] + g[1] * g[1] + h[1] * h[1]
    magnified = _dot(scaled, (squares[0], squares[1], f[2] * f[2] + g[2] * g[2] + h[2] * h[2]))
    off = magnified * (2.0 * d * (q0 + q1 + q2) * longest * longest) ** 2
    length = _dot(scaled, (t0 * t0, t1 * t1, t2 * t2))
    if not fine:
        # Where the map folds, the step tells little of how far the solution is.
        off = np.sqrt(length) / _LEAST_DETERMINANT
    elif room >= 0.0:
        off = np.sqrt(min(off, length))
    else:
        off = np.sqrt(off) - _DOUBT * max(s[0], s[1], s[2]) * room
    return (t0, t1, t2), _dot(r, r), off


@_inlined
def _solve(flat, field, y, x):  # type: ignore[no-untyped-def]
    """Solve for one target from a first place: the solution, its error, and the evaluations."""
    low, high, best, off, share = field.low, field.high, np.inf, np.inf, 1.0
    kept = way = x
    for count in range(field.limit):
        x = (
            _hold(x[0], y[0] - high[0], y[0] - low[0]),
            _hold(x[1], y[1] - high[1], y[1] - low[1]),
            _hold(x[2], y[2] - high[2], y[2] - low[2]),
        )
        step, apart, error = _newton(field, y, x, _sample(flat, field, x))
        share *= 0.5
        if apart < best:
            best, kept, way, off, share = apart, x, step, error, 1.0
            if error <= field.enough:
                return _ahead(x, 1.0, step), error, count + 1
        x = _ahead(kept, share, way)
    return kept, off, field.limit


@_compiled
def _solve_points(flat, field, targets, ends, error, start, stop):  # type: ignore[no-untyped-def]
    """Solve at scattered points, from where they would lie without the displacement."""
    for m in range(start, stop):
        y = targets[m, 0], targets[m, 1], targets[m, 2]
        (ends[m, 0], ends[m, 1], ends[m, 2]), error[m], _ = _solve(flat, field, y, y)


@_inlined
def _guess_row(knots, voxel, first, line):  # type: ignore[no-untyped-def]
    """Blend the sixteen lines of knots around a row of voxels into one."""
    a, b = (voxel[0] >> 2) - (first[0] >> 2), (voxel[1] >> 2) - (first[1] >> 2)
    line[:] = 0.0
    for p in range(4):
        for q in range(4):
            weight = _CUBIC[voxel[0] & 3, p] * _CUBIC[voxel[1] & 3, q]
            for m in range(line.shape[0]):
                line[m] += weight * knots[a + p, b + q, m]


@_compiled
def _solve_rows(flat, field, lattice, knots, out, start, stop):  # type: ignore[no-untyped-def]
    """Solve at every voxel of some rows of a box, from a cubic through the knots."""
    index, back, ((i0, _), (j0, j1), (k0, k1)) = lattice
    vectors, errors, counts = out
    line = np.empty(knots.shape[2])
    for row in range(start, stop):
        i, j = i0 + row // (j1 - j0), j0 + row % (j1 - j0)
        _guess_row(knots, (i, j), (i0, j0), line)
        for k in range(k0, k1):
            y0 = index[0][0] * i + index[0][1] * j + (index[0][2] * k + index[0][3])
            y1 = index[1][0] * i + index[1][1] * j + (index[1][2] * k + index[1][3])
            y2 = index[2][0] * i + index[2][1] * j + (index[2][2] * k + index[2][3])
            x, at = (y0, y1, y2), np.uint64(3 * ((k >> 2) - (k0 >> 2)))
            for t in range(4):
                near = line[at], line[at + np.uint64(1)], line[at + np.uint64(2)]
                x = _ahead(x, _CUBIC[np.uint64(k & 3), np.uint64(t)], near)
                at += np.uint64(3)
            x, error, count = _solve(flat, field, (y0, y1, y2), x)
            vector = _times(back, _ahead(x, -1.0, (y0, y1, y2)))
            vectors[row, k - k0, 0], vectors[row, k - k0, 1], vectors[row, k - k0, 2] = vector
            errors[row, k - k0] = error
            counts[row] = max(counts[row], count)
