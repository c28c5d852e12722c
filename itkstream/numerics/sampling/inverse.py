"""The inverse of a displacement field, by Newton's iteration on the sampled field itself.

For a point y the inverse is the x with ``matrix @ x + u(x) = y``, u interpolated linearly. Its
slopes within a cell are differences of the same eight vectors, so a Newton step costs one
evaluation. Every fourth voxel of the output is a knot, solved from scratch; a cubic through the
knots starts the others so near that most need one evaluation. A step that does not bring the images
nearer is halved, which also holds where fixed-point iteration does not contract.

Iterates are kept inside ``y - [min u, max u]``, which holds every solution, so a block knows what
to read; knots are counted in the whole image, so it gives the bits that the whole image gives.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Grid, Slices, box_shape
from itkstream.numerics.compiling import compiled, expanded, inlined
from itkstream.numerics.lift import lift_field, lift_matrix, lift_values, lift_vectors
from itkstream.numerics.parameters import positive_length, whole
from itkstream.numerics.sampling.fields import check_vectors, displacement_bounds
from itkstream.numerics.sampling.mapping import GridMap, box_around
from itkstream.numerics.threads import over_slabs

__all__ = ["InverseProblem", "Inversion"]

Doubles = NDArray[np.float64]

# Voxels from one knot to the next; the cubic, the shifts and the masks below take 4 for granted.
_STEP = 4
# Lagrange's cubic through four knots, at the voxels from the second knot on.
_CUBIC = np.array([[0, 128, 0, 0], [-7, 105, 35, -5], [-8, 72, 72, -8], [-5, 35, 105, -7]]) / 128
# Below this share of the undeformed volume the slope of the map is taken for singular: a fold.
_LEAST_DETERMINANT = 1e-3
# A step that leaves its cell is off by at most so many times its length: slopes differ by up to 1
# from cell to cell, and the inverse magnifies that where the map shrinks.
_DOUBT = 8.0


@attrs.frozen(eq=False)
class Inversion:
    """The inverse of a displacement field and how exact it is.

    `displacement` (shape + (n,), float32) leads from q to where it comes from, the affine left out.
    `error` (shape, float32) estimates the distance from the exact inverse, in the smallest voxel
    spacing of the output: a bound where the last Newton step stayed within a cell of the field.
    `iterations` is the most evaluations that one voxel took.
    """

    displacement: NDArray[np.float32]
    error: NDArray[np.float32]
    iterations: int


@attrs.frozen(eq=False)
class InverseProblem:
    """The inverse of ``affine(p + u(p))`` on a grid: a displacement before the inverse affine.

    u lies on `from_grid`, in fixed space; the inverse is wanted on `to_grid`, in moving space. A
    voxel is done at an error of `tolerance_vox`, in the smallest voxel spacing of `to_grid`, or
    after `max_iterations` evaluations. Bounds are those of `displacement_bounds` for all of u.
    """

    from_grid: Grid
    to_grid: Grid
    affine: AffineTransform
    tolerance_vox: float = attrs.field(default=0.01, validator=positive_length)
    max_iterations: int = attrs.field(default=50, validator=whole(1))

    def __attrs_post_init__(self) -> None:
        here, there = self.from_grid, self.to_grid
        if (here.axes, here.unit) != (there.axes, there.unit):
            raise InputError(
                f"the field has axes {here.axes} in {here.unit} and its inverse is wanted on axes "
                f"{there.axes} in {there.unit}: reorder or convert one of the grids"
            )
        if self.affine.ndim != here.ndim:
            raise InputError(f"a {self.affine.ndim}-D affine cannot follow a {here.ndim}-D field")

    def solve_whole(self, field: NDArray[np.floating[Any]]) -> Inversion:
        """Invert everywhere, from the whole field."""
        region, box = (tuple(slice(0, n) for n in g.shape) for g in (self.from_grid, self.to_grid))
        return self.solve(field, region, box, displacement_bounds(field, self.from_grid))

    def reach(self, box: Slices, bounds: Doubles) -> Slices:
        """The part of the field that the inverse in a box of the output can depend on."""
        ends = [(_STEP * s.start, _STEP * (s.stop - 1)) for s in _knots(box)]
        return self.reach_points(self.to_grid.to_physical([*product(*ends)]), bounds)

    def reach_points(self, points: Doubles, bounds: Doubles) -> Slices:
        """The part of the field where some points, (m, n), come from: its edge, if beyond it."""
        starts = self.from_grid.to_index(self.affine.inverse().apply(points))
        last = np.asarray(self.from_grid.shape) - 1
        low, high = starts.min(axis=0) - bounds[1], starts.max(axis=0) - bounds[0]
        return box_around(np.minimum(low, last), np.maximum(high, 0), self.from_grid.shape)

    def solve(self, part: NDArray[Any], region: Slices, box: Slices, bounds: Doubles) -> Inversion:
        """Invert in a box of the output, from the field in at least the region of `reach`."""
        flat, field = self._field(part, region, bounds)
        to_fixed = GridMap(self.to_grid, self.affine.inverse().matrix)
        index = lift_matrix(to_fixed.index_matrix(self.from_grid))
        back = lift_matrix((self.affine.matrix @ self.from_grid.matrix)[:-1, :-1])
        lifted = lift_values(box, slice(0, 1))
        # Knots are solved as voxels are, from no displacement, on a lattice of every fourth voxel.
        around = _knots(lifted)
        coarse = index * (_STEP, _STEP, _STEP, 1), np.eye(3), around
        nothing = np.zeros((*box_shape(_knots(around)), 3), np.float32)
        knots, _, _ = _solve_box(flat, field, coarse, nothing)
        vectors, error, iterations = _solve_box(flat, field, (index, back, lifted), knots)
        n, shape = len(box), box_shape(box)
        found = np.ascontiguousarray(vectors[..., 3 - n :]).reshape(*shape, n)
        return Inversion(found, error.reshape(shape), iterations)

    def solve_points(
        self, part: NDArray[Any], region: Slices, points: Doubles, bounds: Doubles
    ) -> tuple[Doubles, Doubles]:
        """The fixed points (m, n) that map to `points`, and the errors, from `reach_points`."""
        flat, field = self._field(part, region, bounds)
        targets = lift_vectors(self.from_grid.to_index(self.affine.inverse().apply(points)))
        ends, error = np.empty_like(targets), np.empty(len(targets))
        over_slabs(lambda a, b: _solve_points(flat, field, targets, ends, error, a, b), len(ends))
        return self.from_grid.to_physical(ends[:, 3 - self.from_grid.ndim :]), error

    def _field(
        self, part: NDArray[Any], region: Slices, bounds: Doubles
    ) -> tuple[NDArray[np.float32], _Field]:
        """The numbers of a part of the field, one after the other, and what to solve with them."""
        # Compiled loops would read beyond a field of another shape.
        check_vectors(part, box_shape(region))
        vectors, matrix = lift_field(part), lift_matrix(self.from_grid.matrix[:-1, :-1])
        inverse = np.asarray(np.linalg.inv(matrix), np.float64)
        low, high = _rows(lift_vectors(bounds))
        return vectors.reshape(-1), _Field(
            tuple(step // vectors.itemsize for step in vectors.strides[:3]),
            lift_values((float(s.start) for s in region), 0.0),
            lift_values((n - 1.0 for n in self.from_grid.shape), 0.0),
            _rows(matrix),
            _rows(inverse.T),
            float(np.linalg.det(inverse)),
            low,
            high,
            max(self.from_grid.spacing) / min(self.to_grid.spacing),
            self.tolerance_vox,
            self.max_iterations,
        )


def _knots(box: Slices) -> Slices:
    """The knots that the voxels of a box of the whole output start from; knot k is voxel 4 k."""
    return tuple(slice(s.start // _STEP - 1, (s.stop - 1) // _STEP + 3) for s in box)


def _rows(matrix: Doubles) -> tuple[tuple[float, ...], ...]:
    """A matrix as tuples of numbers: these stay in registers, elements of arrays do not."""
    return tuple(map(tuple, matrix.tolist()))


class _Field(NamedTuple):
    """A part of a field to solve with, lifted to three axes."""

    # From one plane, row, vector to the next; the part's first voxel, and the whole field's last.
    strides: tuple[int, ...]
    first: tuple[float, ...]
    top: tuple[float, ...]
    # From field voxels to physical units, by rows; the inverse, by columns; its determinant.
    matrix: tuple[tuple[float, ...], ...]
    inverse: tuple[tuple[float, ...], ...]
    density: float
    # Bounds of the displacement in field voxels, and the longest of these in units of the error.
    low: tuple[float, ...]
    high: tuple[float, ...]
    scale: float
    enough: float
    limit: int


def _solve_box(
    flat: NDArray[np.float32],
    field: _Field,
    lattice: tuple[Doubles, Doubles, Slices],
    knots: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Vectors x - y in a box, their errors, and the most evaluations that one of them took."""
    # From an index to y; what the vectors are turned by; the indices.
    index, turn, box = lattice
    corners = tuple((s.start, s.stop) for s in box)
    numbers = _rows(index[:, :3]), tuple(index[:, 3].tolist()), _rows(turn), corners
    shape, lines = box_shape(box), knots.reshape(*knots.shape[:2], -1)
    out = np.empty((*shape, 3), np.float32), np.empty(shape, np.float32), np.zeros(shape[1], int)
    over_slabs(lambda a, b: _solve_rows(flat, field, numbers, lines, out, a, b), shape[1])
    return out[0], out[1], int(out[2].max())


_compiled = partial(compiled, error_model="numpy")
_expanded = partial(expanded, error_model="numpy")


@_expanded
def _dot(a, b):  # type: ignore[no-untyped-def]
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@_expanded
def _cross(a, b):  # type: ignore[no-untyped-def]
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@_expanded
def _times(rows, x):  # type: ignore[no-untyped-def]
    return _dot(rows[0], x), _dot(rows[1], x), _dot(rows[2], x)


@_expanded
def _ahead(x, share, step):  # type: ignore[no-untyped-def]
    return x[0] + share * step[0], x[1] + share * step[1], x[2] + share * step[2]


@_expanded
def _cell(field, x, a):  # type: ignore[no-untyped-def]
    """Start of a cell along an axis, the step to its end, and the place in it.

    Beyond the field that step is 0: its value is that at the edge, and it has no slope.
    """
    cell = np.floor(min(max(x, 0.0), field.top[a]))
    step = field.strides[a] if 0.0 <= x < field.top[a] else 0
    # Unsigned, since numba asks of every signed index whether it counts from the end.
    return (cell - field.first[a]) * field.strides[a], np.uint64(step), x - cell


@inlined
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


@inlined
def _sample(flat, field, x):  # type: ignore[no-untyped-def]
    """The three components at a place, and where in its cell that is.

    Apart from `_newton`, and without a branch: numba counts references to an array in each of them.
    """
    i, sx, px = _cell(field, x[0], 0)
    j, sy, py = _cell(field, x[1], 1)
    k, sz, pz = _cell(field, x[2], 2)
    at, steps, place = np.uint64(np.int64(i + j + k)), (sx, sy, sz), (px, py, pz)
    u = _component(flat, at, steps, place)
    v = _component(flat, at + np.uint64(1), steps, place)
    w = _component(flat, at + np.uint64(2), steps, place)
    return u, v, w, place


@inlined
def _newton(field, y, x, sample):  # type: ignore[no-untyped-def]
    """Newton's step, how far the images are apart (squared), and how far the step can end off.

    Within a cell the map is linear but for its bend, which bounds the error: here twice that. A
    step out of the cell meets other slopes and counts several times.
    """
    (u, du, q0), (v, dv, q1), (w, dw, q2), place = sample
    r = _ahead(_times(field.matrix, _ahead(y, -1.0, x)), -1.0, (u, v, w))
    a, b, c = field.matrix
    a, b, c = _ahead(a, 1.0, du), _ahead(b, 1.0, dv), _ahead(c, 1.0, dw)
    # The columns of the inverse, times the volume.
    f, g, h = _cross(b, c), _cross(c, a), _cross(a, b)
    volume = _dot(a, f)
    fine, d = volume * field.density >= _LEAST_DETERMINANT, 1.0 / volume
    if not fine:
        (f, g, h), d = field.inverse, 1.0
    t = _ahead(_ahead(_ahead((0.0, 0.0, 0.0), d * r[0], f), d * r[1], g), d * r[2], h)
    way, length = place + _ahead(place, 1.0, t), _dot(t, t)
    magnified = abs(d) * np.sqrt(_dot(f, f) + _dot(g, g) + _dot(h, h))
    off = 2.0 * magnified * (q0 + q1 + q2) * length
    if not fine:
        # Where the map folds, the step tells little of how far the solution is.
        off += np.sqrt(length) / _LEAST_DETERMINANT
    elif min(way) < 0.0 or max(way) > 1.0:
        off += _DOUBT * np.sqrt(length)
    return t, _dot(r, r), field.scale * off


@_expanded
def _solve(flat, field, y, x):  # type: ignore[no-untyped-def]
    """Solve for one target from a first place: the solution, its error, and the evaluations."""
    low, high, best, off, share = field.low, field.high, np.inf, np.inf, 1.0
    kept = way = x
    for count in range(field.limit):
        x = (
            min(max(x[0], y[0] - high[0]), y[0] - low[0]),
            min(max(x[1], y[1] - high[1]), y[1] - low[1]),
            min(max(x[2], y[2] - high[2]), y[2] - low[2]),
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


@_compiled
def _solve_rows(flat, field, lattice, knots, out, start, stop):  # type: ignore[no-untyped-def]
    """Solve at every point of some rows of a box, from a cubic through the knots."""
    index, shift, turn, ((i0, i1), (j0, _), (k0, k1)) = lattice
    vectors, errors, counts = out
    line = np.empty(knots.shape[2])
    for i in range(i0, i1):
        for j in range(j0 + start, j0 + stop):
            # The sixteen lines of knots around the row, blended into one.
            line[:] = 0.0
            for p, q in np.ndindex(4, 4):
                near = knots[(i >> 2) - (i0 >> 2) + p, (j >> 2) - (j0 >> 2) + q]
                line += _CUBIC[i & 3, p] * _CUBIC[j & 3, q] * near
            for k in range(k0, k1):
                y = _ahead(_times(index, (i, j, k)), 1.0, shift)
                x, at = y, np.uint64(3 * ((k >> 2) - (k0 >> 2)))
                for t in range(4):
                    move = line[at], line[at + np.uint64(1)], line[at + np.uint64(2)]
                    x = _ahead(x, _CUBIC[np.uint64(k & 3), np.uint64(t)], move)
                    at += np.uint64(3)
                x, errors[i - i0, j - j0, k - k0], count = _solve(flat, field, y, x)
                vector, here = _times(turn, _ahead(x, -1.0, y)), vectors[i - i0, j - j0, k - k0]
                here[0], here[1], here[2] = vector
                counts[j - j0] = max(counts[j - j0], count)
