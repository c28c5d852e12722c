"""Solving ``matrix @ x + u(x) = y`` for x by Newton's method: compiled loops over rows and points.

u is sampled linearly, and its slopes within a cell are differences of the same eight vectors, so a
Newton step costs one evaluation. Voxels of a row are taken in batches: each stage is a plain loop
over one small buffer, which the compiler turns into vector instructions. What a batch leaves
unsolved, knots and single points go through `_solve`, which halves a step that does not bring the
images nearer and so also holds where plain fixed-point iteration does not contract.

A batch starts from cubic interpolation between knots, every fourth voxel of the whole image, which
`solve_knots` solves from scratch: a voxel's result depends neither on the block nor on the thread
that computes it.

All compiled functions are in one file: numba's cache does not notice that a function has changed
which another file calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "KNOT_STEP",
    "FieldPart",
    "Lattice",
    "Output",
    "knot_range",
    "solve_knots",
    "solve_points",
    "solve_rows",
]

KNOT_STEP = 4
"""Voxels from one knot to the next."""

# Below this share of the undeformed volume the slope of the map is taken for singular: a fold.
_LEAST_DETERMINANT = 1e-3

# A step that leaves its cell is off by at most so many times what is beyond: slopes differ by up to
# 1 from cell to cell, and the inverse magnifies that where the map shrinks.
_DOUBT = 8.0

# Voxels of a batch, and where the rows of its buffer begin, one number per voxel in each.
_BATCH = 32
_TARGET, _PLACE, _FRACTION, _BEYOND = 0, 3 * _BATCH, 6 * _BATCH, 9 * _BATCH
_CELL, _VALUE, _SLOPES, _BEND = 12 * _BATCH, 15 * _BATCH, 18 * _BATCH, 27 * _BATCH
_STEP, _REMAINS, _OFF = 30 * _BATCH, 33 * _BATCH, 34 * _BATCH
_BEST, _WAY, _LEAST, _SHARE = 35 * _BATCH, 38 * _BATCH, 41 * _BATCH, 42 * _BATCH
_FOUND, _ERROR, _LANE, _OUTPUT = 43 * _BATCH, 46 * _BATCH, 47 * _BATCH, 48 * _BATCH
_ROWS = 49
# The vectors at a cell's corners, as they are stored.
_CORNERS = 24

# Lagrange's cubic through four knots, at the voxels from the second knot on.
_CUBIC = (
    (0.0, 1.0, 0.0, 0.0),
    (-7 / 128, 105 / 128, 35 / 128, -5 / 128),
    (-1 / 16, 9 / 16, 9 / 16, -1 / 16),
    (-5 / 128, 35 / 128, 105 / 128, -7 / 128),
)


class FieldPart(NamedTuple):
    """A part of a sampled displacement field, in three dimensions, and what to solve with it.

    Tuples of numbers stay in registers, elements of arrays do not.

    Parameters
    ----------
    flat : ndarray, float32
        The vectors of the part, three numbers each, in physical units.
    strides : tuple of int
        Numbers from one plane, one row and one vector to the next.
    first : tuple of float
        Where the part begins in the whole field.
    top : tuple of float
        The last voxel of the whole field per axis.
    matrix, inverse : tuple of float
        3 x 3, row by row: from field voxels to physical units, and back.
    density : float
        Determinant of `inverse`.
    low, high : tuple of float
        Bounds of the displacement in field voxels.
    scale : tuple of float
        Turns a step in field voxels into the unit of the error.
    enough : float
        Error at which a point is done.
    limit : int
        Bound on the evaluations of one point.
    """

    flat: NDArray[np.float32]
    strides: tuple[int, int, int]
    first: tuple[float, ...]
    top: tuple[float, ...]
    matrix: tuple[float, ...]
    inverse: tuple[float, ...]
    density: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    scale: tuple[float, ...]
    enough: float
    limit: int


class Lattice(NamedTuple):
    """The voxels of a box of the output, in three dimensions.

    Parameters
    ----------
    to_field : tuple of float
        3 x 4, row by row: from voxels of the whole output to field voxels, u left out.
    start : tuple of int
        Where the box begins in the whole output.
    first : tuple of int
        Its first knot; knot k is voxel ``steps * k``.
    steps : tuple of int
        Voxels from one knot to the next per axis; 1 where the output has one voxel only.
    """

    to_field: tuple[float, ...]
    start: tuple[int, int, int]
    first: tuple[int, int, int]
    steps: tuple[int, int, int]


def knot_range(start: int, stop: int) -> tuple[int, int]:
    """The knots that the voxels ``start .. stop`` of a row start from.

    Parameters
    ----------
    start, stop : int
        Voxels of the whole output.

    Returns
    -------
    first, end : int
        Knots ``first .. end``; knot k is voxel ``KNOT_STEP * k``.
    """
    return start // KNOT_STEP - 1, (stop - 1) // KNOT_STEP + 3


class Output(NamedTuple):
    """Where `solve_rows` puts its results.

    Parameters
    ----------
    back : tuple of float
        3 x 3, row by row: from field voxels to the vectors wanted; of two rows in two dimensions.
    shape : tuple of int
        The box.
    vectors : ndarray, (voxels, n), float32
        The vectors of the box.
    error : ndarray, (voxels,), float32
        Estimated error of each.
    rounds : ndarray, (b,), int64
        Most evaluations of a voxel, at the first plane of axis 1 of a call; elsewhere 0.
    """

    back: tuple[float, ...]
    shape: tuple[int, int, int]
    vectors: NDArray[np.float32]
    error: NDArray[np.float32]
    rounds: NDArray[np.int64]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _hold(x, low, high):  # type: ignore[no-untyped-def]
    return min(max(x, low), high)


@njit(nogil=True, cache=True, error_model="numpy")
def _place(part, b, n):  # type: ignore[no-untyped-def]
    """Hold the places of a batch within the bounds; find their cells and where in these they lie.

    Beyond the field it is constant: the place is held at its edge and no slope counts.
    """
    _place_along(part, b, n, 0)
    _place_along(part, b, n, 1)
    _place_along(part, b, n, 2)
    for k in range(n):
        b[_CELL + k] += b[_CELL + _BATCH + k] + b[_CELL + 2 * _BATCH + k]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _place_along(part, b, n, a):  # type: ignore[no-untyped-def]
    low, high, edge = part.low[a], part.high[a], part.top[a]
    last, first, stride = max(edge - 1.0, 0.0), part.first[a], float(part.strides[a])
    row = a * _BATCH
    for k in range(n):
        target = b[_TARGET + row + k]
        x = _hold(b[_PLACE + row + k], target - high, target - low)
        held = _hold(x, 0.0, edge)
        cell = min(np.floor(held), last)
        b[_PLACE + row + k], b[_FRACTION + row + k] = x, held - cell
        b[_BEYOND + row + k] = x - held
        # Whole numbers, and exact: vectors of integers are slow to multiply.
        b[_CELL + row + k] = (cell - first) * stride


@njit(nogil=True, cache=True, error_model="numpy")
def _gather(part, b, corners, n):  # type: ignore[no-untyped-def]
    """Copy the eight vectors around each place into the batch's rows."""
    flat = part.flat
    # Unsigned, since numba asks of every signed index whether it counts from the end; a field of
    # one plane is its own neighbour.
    sx = np.uint64(part.strides[0] if part.top[0] > 0 else 0)
    sy = np.uint64(part.strides[1] if part.top[1] > 0 else 0)
    sz = np.uint64(part.strides[2] if part.top[2] > 0 else 0)
    for k in range(n):
        p00 = np.uint64(np.int64(b[_CELL + k]))
        p01, p10, p11 = p00 + sy, p00 + sx, p00 + sx + sy
        for c in range(3):
            at, u = np.uint64(c * _BATCH + k), np.uint64(c)
            corners[at] = flat[p00 + u]
            corners[at + 3 * _BATCH] = flat[p00 + sz + u]
            corners[at + 6 * _BATCH] = flat[p01 + u]
            corners[at + 9 * _BATCH] = flat[p01 + sz + u]
            corners[at + 12 * _BATCH] = flat[p10 + u]
            corners[at + 15 * _BATCH] = flat[p10 + sz + u]
            corners[at + 18 * _BATCH] = flat[p11 + u]
            corners[at + 21 * _BATCH] = flat[p11 + sz + u]


@njit(nogil=True, cache=True, error_model="numpy")
def _interpolate(b, corners, n):  # type: ignore[no-untyped-def]
    # Spelt out: only between rows at known distances does the compiler see that none overlap.
    _component(b, corners, n, 0)
    _component(b, corners, n, 1)
    _component(b, corners, n, 2)


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _component(b, corners, n, c):  # type: ignore[no-untyped-def]
    """One component within its cell: value, slopes, and bend (the sum of its mixed slopes)."""
    for k in range(n):
        fx, fy, fz = b[_FRACTION + k], b[_FRACTION + _BATCH + k], b[_FRACTION + 2 * _BATCH + k]
        p = c * _BATCH + k
        a00, b00 = np.float64(corners[p]), np.float64(corners[p + 3 * _BATCH])
        a01, b01 = np.float64(corners[p + 6 * _BATCH]), np.float64(corners[p + 9 * _BATCH])
        a10, b10 = np.float64(corners[p + 12 * _BATCH]), np.float64(corners[p + 15 * _BATCH])
        a11, b11 = np.float64(corners[p + 18 * _BATCH]), np.float64(corners[p + 21 * _BATCH])
        d00, d01, d10, d11 = b00 - a00, b01 - a01, b10 - a10, b11 - a11
        v00, v10, h0, h1 = a00 + d00 * fz, a10 + d10 * fz, d01 - d00, d11 - d10
        g0, g1 = a01 + d01 * fz - v00, a11 + d11 * fz - v10
        v0, e0 = v00 + g0 * fy, d00 + h0 * fy
        dx, e, g, m = v10 + g1 * fy - v0, d10 + h1 * fy - e0, g1 - g0, h1 - h0
        b[_VALUE + c * _BATCH + k] = v0 + dx * fx
        slopes = _SLOPES + 3 * c * _BATCH + k
        b[slopes], b[slopes + _BATCH], b[slopes + 2 * _BATCH] = dx, g0 + g * fx, e0 + e * fx
        b[_BEND + c * _BATCH + k] = abs(g) + abs(e) + abs(h0 + m * fx) + abs(m)


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _invert(a, b, c, density, otherwise):  # type: ignore[no-untyped-def]
    """Whether a matrix of three rows keeps volume and sides, and its inverse; another if not."""
    k0, k1, k2 = b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0]
    share = (a[0] * k0 + a[1] * k1 + a[2] * k2) * density
    fine = share >= _LEAST_DETERMINANT
    s = density / share
    return fine, (
        s * k0 if fine else otherwise[0],
        s * (a[2] * c[1] - a[1] * c[2]) if fine else otherwise[1],
        s * (a[1] * b[2] - a[2] * b[1]) if fine else otherwise[2],
        s * k1 if fine else otherwise[3],
        s * (a[0] * c[2] - a[2] * c[0]) if fine else otherwise[4],
        s * (a[2] * b[0] - a[0] * b[2]) if fine else otherwise[5],
        s * k2 if fine else otherwise[6],
        s * (a[1] * c[0] - a[0] * c[1]) if fine else otherwise[7],
        s * (a[0] * b[1] - a[1] * b[0]) if fine else otherwise[8],
    )


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _room(fraction, beyond, step):  # type: ignore[no-untyped-def]
    """Voxels left when a step along an axis ends; negative where it leaves its cell.

    Beyond the field, where it is constant, all up to its edge is one cell.
    """
    to, past = fraction + step, beyond + step
    return min(to, 1.0 - to) if beyond == 0.0 else past if beyond > 0.0 else -past


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _three(b, row, k):  # type: ignore[no-untyped-def]
    """The numbers of a voxel in three consecutive rows."""
    return b[row + k], b[row + _BATCH + k], b[row + 2 * _BATCH + k]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _slopes(b, k, p):  # type: ignore[no-untyped-def]
    """The slopes of the map, row by row; beyond the field only the matrix p has any."""
    beyond0, beyond1, beyond2 = _three(b, _BEYOND, k)
    a0, a1, a2 = _three(b, _SLOPES, k)
    b0, b1, b2 = _three(b, _SLOPES + 3 * _BATCH, k)
    c0, c1, c2 = _three(b, _SLOPES + 6 * _BATCH, k)
    i0 = 1.0 if beyond0 == 0.0 else 0.0
    i1 = 1.0 if beyond1 == 0.0 else 0.0
    i2 = 1.0 if beyond2 == 0.0 else 0.0
    return (
        (p[0] + a0 * i0, p[1] + a1 * i1, p[2] + a2 * i2),
        (p[3] + b0 * i0, p[4] + b1 * i1, p[5] + b2 * i2),
        (p[6] + c0 * i0, p[7] + c1 * i1, p[8] + c2 * i2),
    )


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _error(b, k, inverse, step, scale):  # type: ignore[no-untyped-def]
    """How far a step can end from the solution, and how long it is.

    Within a cell the map is linear but for its bend, which bounds the error: here twice that. What
    leads out of the cell meets other slopes and counts several times.
    """
    (t0, t1, t2), (s0, s1, s2), m = step, scale, inverse
    fraction0, fraction1, fraction2 = _three(b, _FRACTION, k)
    beyond0, beyond1, beyond2 = _three(b, _BEYOND, k)
    bend0, bend1, bend2 = _three(b, _BEND, k)
    room0, room1 = _room(fraction0, beyond0, t0), _room(fraction1, beyond1, t1)
    room = min(room0, room1, _room(fraction2, beyond2, t2))
    magnified = (
        s0 * s0 * (m[0] * m[0] + m[1] * m[1] + m[2] * m[2])
        + s1 * s1 * (m[3] * m[3] + m[4] * m[4] + m[5] * m[5])
        + s2 * s2 * (m[6] * m[6] + m[7] * m[7] + m[8] * m[8])
    )
    longest = max(abs(t0), abs(t1), abs(t2))
    off = 2.0 * np.sqrt(magnified) * (bend0 + bend1 + bend2) * longest * longest
    length = np.sqrt((t0 * s0) ** 2 + (t1 * s1) ** 2 + (t2 * s2) ** 2)
    return min(off, length) if room >= 0.0 else off - _DOUBT * max(s0, s1, s2) * room, length


@njit(nogil=True, cache=True, error_model="numpy")
def _step(part, b, n):  # type: ignore[no-untyped-def]
    """Newton's step at each place, and how far from the solution it can end."""
    p = part.matrix
    for k in range(n):
        (y0, y1, y2), (x0, x1, x2) = _three(b, _TARGET, k), _three(b, _PLACE, k)
        x0, x1, x2 = y0 - x0, y1 - x1, y2 - x2
        u0, u1, u2 = _three(b, _VALUE, k)
        r0 = p[0] * x0 + p[1] * x1 + p[2] * x2 - u0
        r1 = p[3] * x0 + p[4] * x1 + p[5] * x2 - u1
        r2 = p[6] * x0 + p[7] * x1 + p[8] * x2 - u2
        row0, row1, row2 = _slopes(b, k, p)
        fine, m = _invert(row0, row1, row2, part.density, part.inverse)
        t0 = m[0] * r0 + m[1] * r1 + m[2] * r2
        t1 = m[3] * r0 + m[4] * r1 + m[5] * r2
        t2 = m[6] * r0 + m[7] * r1 + m[8] * r2
        off, length = _error(b, k, m, (t0, t1, t2), part.scale)
        b[_STEP + k], b[_STEP + _BATCH + k], b[_STEP + 2 * _BATCH + k] = t0, t1, t2
        b[_REMAINS + k] = r0 * r0 + r1 * r1 + r2 * r2
        # Where the map folds, the step tells little of how far the solution is.
        b[_OFF + k] = off if fine else length / _LEAST_DETERMINANT


@njit(nogil=True, cache=True, error_model="numpy")
def _new_batch():  # type: ignore[no-untyped-def]
    """The rows of a batch, and room for the vectors at the corners of its cells."""
    return np.zeros(_ROWS * _BATCH), np.zeros(_CORNERS * _BATCH, np.float32)


@njit(nogil=True, cache=True, error_model="numpy")
def _evaluate(part, b, corners, n):  # type: ignore[no-untyped-def]
    """Newton's step from every place of a batch, and how far it can be off."""
    _place(part, b, n)
    _gather(part, b, corners, n)
    _interpolate(b, corners, n)
    _step(part, b, n)


@njit(nogil=True, cache=True, error_model="numpy")
def _solve(part, b, corners, n, limit):  # type: ignore[no-untyped-def]
    """Solve a batch from its targets and first places; return the evaluations.

    Voxels that need another evaluation close ranks. One whose images a step brought no nearer
    tries half of it.
    """
    for k in range(n):
        b[_LEAST + k], b[_LANE + k] = np.inf, float(k)
    count = 0
    while n > 0 and count < limit:
        _evaluate(part, b, corners, n)
        n = _sift(part.enough, b, n)
        count += 1
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _sift(enough, b, n):  # type: ignore[no-untyped-def]
    """Keep what an evaluation has found; return how many voxels need another."""
    left = 0
    for k in range(n):
        share = 0.5 * b[_SHARE + k]
        if b[_REMAINS + k] < b[_LEAST + k]:
            share = 1.0
            if _accept(b, k, int(b[_LANE + k]), enough):
                continue
        _try_next(b, k, left, share)
        left += 1
    return left


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _accept(b, k, voxel, enough):  # type: ignore[no-untyped-def]
    """Keep a place that is nearer, and the step from it; true where the step ends the search."""
    done = b[_OFF + k] <= enough
    b[_LEAST + k] = b[_REMAINS + k]
    b[_ERROR + voxel] = b[_OFF + k]
    for a in range(3):
        row = a * _BATCH
        b[_BEST + row + k], b[_WAY + row + k] = b[_PLACE + row + k], b[_STEP + row + k]
        moved = b[_PLACE + row + k] - b[_TARGET + row + k]
        b[_FOUND + row + voxel] = moved + b[_STEP + row + k] if done else moved
    return done


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _try_next(b, k, to, share):  # type: ignore[no-untyped-def]
    """Move what is known of a voxel to where the next evaluation finds it."""
    b[_SHARE + to], b[_LEAST + to], b[_LANE + to] = share, b[_LEAST + k], b[_LANE + k]
    for a in range(3):
        row = a * _BATCH
        b[_TARGET + row + to] = b[_TARGET + row + k]
        b[_BEST + row + to], b[_WAY + row + to] = b[_BEST + row + k], b[_WAY + row + k]
        b[_PLACE + row + to] = b[_BEST + row + to] + share * b[_WAY + row + to]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _row(index, i, j):  # type: ignore[no-untyped-def]
    """Where a row of output voxels begins on the field."""
    return (
        index[0] * i + index[1] * j + index[3],
        index[4] * i + index[5] * j + index[7],
        index[8] * i + index[9] * j + index[11],
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _aim(b, row, index, first, stride, n):  # type: ignore[no-untyped-def]
    """Targets of a batch along a row."""
    for a in range(3):
        start, slope, to = row[a], index[4 * a + 2], _TARGET + a * _BATCH
        for k in range(n):
            b[to + k] = start + slope * np.float64(first + stride * k)


@njit(nogil=True, cache=True, error_model="numpy")
def solve_knots(part, lattice, knots, start, stop):  # type: ignore[no-untyped-def]
    """Solve at the knots of a box, from where they would lie without the displacement.

    Parameters
    ----------
    part : FieldPart
        What to solve.
    lattice : Lattice
        The voxels.
    knots : ndarray, (a, b, 3, c), float64
        Receives x - y in field voxels.
    start, stop : int
        Planes of axis 1.
    """
    b, corners = _new_batch()
    first, steps = lattice.first, lattice.steps
    for i in range(knots.shape[0]):
        for j in range(start, stop):
            row = _row(lattice.to_field, (first[0] + i) * steps[0], (first[1] + j) * steps[1])
            for k0 in range(0, knots.shape[3], _BATCH):
                n = min(_BATCH, knots.shape[3] - k0)
                _aim(b, row, lattice.to_field, (first[2] + k0) * steps[2], steps[2], n)
                for k in range(3 * _BATCH):
                    b[_PLACE + k] = b[_TARGET + k]
                _solve(part, b, corners, n, part.limit)
                for a in range(3):
                    for k in range(n):
                        knots[i, j, a, k0 + k] = b[_FOUND + a * _BATCH + k]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _knots_of(lattice, axis, voxel):  # type: ignore[no-untyped-def]
    """The first knot of a voxel, and their weights."""
    if lattice.steps[axis] == 1:
        return voxel - lattice.first[axis], (1.0, 0.0, 0.0, 0.0)
    knot = voxel // KNOT_STEP
    return knot - 1 - lattice.first[axis], _CUBIC[voxel - knot * KNOT_STEP]


@njit(nogil=True, cache=True, error_model="numpy")
def _blend(knots, at, out):  # type: ignore[no-untyped-def]
    """Weigh consecutive slabs along the first axis."""
    first, (w0, w1, w2, w3) = at
    lines, to = knots.reshape(len(knots), out.size), out.reshape(out.size)
    if len(knots) == 1:
        for m in range(len(to)):
            to[m] = lines[first, m]
        return
    for m in range(len(to)):
        low = w0 * lines[first, m] + w1 * lines[first + 1, m]
        to[m] = low + (w2 * lines[first + 2, m] + w3 * lines[first + 3, m])


@njit(nogil=True, cache=True, error_model="numpy")
def _guess(line, guess):  # type: ignore[no-untyped-def]
    """From the knots of a row to its voxels."""
    for a in range(3):
        for q in range(line.shape[1] - 3):
            v0, v1, v2, v3 = line[a, q], line[a, q + 1], line[a, q + 2], line[a, q + 3]
            for s in range(KNOT_STEP):
                w = _CUBIC[s]
                guess[a, KNOT_STEP * q + s] = (w[0] * v0 + w[1] * v1) + (w[2] * v2 + w[3] * v3)


@njit(nogil=True, cache=True, error_model="numpy")
def solve_rows(part, lattice, knots, out, start, stop):  # type: ignore[no-untyped-def]
    """Solve at every voxel of a box.

    Parameters
    ----------
    part : FieldPart
        What to solve.
    lattice : Lattice
        The voxels.
    knots : ndarray, (a, b, 3, c), float64
        From `solve_knots`.
    out : Output
        Receives the results.
    start, stop : int
        Planes of axis 1.
    """
    b, corners = _new_batch()
    late, rounds, waiting = np.zeros(_ROWS * _BATCH), 1, 0
    shape, (i0, j0, k0) = out.shape, lattice.start
    guess = np.empty((3, KNOT_STEP * knots.shape[3]))
    plane, line = np.empty(knots.shape[1:]), np.empty(knots.shape[2:])
    for i in range(shape[0]):
        _blend(knots, _knots_of(lattice, 0, i0 + i), plane)
        for j in range(start, stop):
            _blend(plane, _knots_of(lattice, 1, j0 + j), line)
            _guess(line, guess)
            row = _row(lattice.to_field, i0 + i, j0 + j)
            for k in range(0, shape[2], _BATCH):
                n = min(_BATCH, shape[2] - k)
                _aim(b, row, lattice.to_field, k0 + k, 1, n)
                _begin(b, guess, k0 % KNOT_STEP + k, (i * shape[1] + j) * shape[2] + k, n)
                _evaluate(part, b, corners, n)
                _take(b, n)
                _write(b, n, out.back, out.vectors, out.error)
                done = 0
                while done < n:
                    done, waiting = _put_aside(part.enough, b, done, n, late, waiting)
                    if waiting == _BATCH:
                        rounds = max(rounds, _finish(part, late, corners, waiting, out))
                        waiting = 0
    out.rounds[start] = max(rounds, _finish(part, late, corners, waiting, out))


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _begin(b, guess, first, output, n):  # type: ignore[no-untyped-def]
    """Places of a batch from its targets and the guesses for a row."""
    for a in range(3):
        row = a * _BATCH
        for k in range(n):
            b[_PLACE + row + k] = b[_TARGET + row + k] + guess[a, first + k]
    for k in range(n):
        b[_OUTPUT + k] = float(output + k)


@njit(nogil=True, cache=True, error_model="numpy")
def _take(b, n):  # type: ignore[no-untyped-def]
    """Take the step everywhere: most voxels need no other."""
    for k in range(n):
        b[_ERROR + k] = b[_OFF + k]
    for a in range(3):
        row = a * _BATCH
        for k in range(n):
            moved = b[_PLACE + row + k] - b[_TARGET + row + k]
            b[_FOUND + row + k] = moved + b[_STEP + row + k]


@njit(nogil=True, cache=True, error_model="numpy")
def _put_aside(enough, b, k, n, late, waiting):  # type: ignore[no-untyped-def]
    """Let voxels that need more evaluations wait, from the k-th on, until a batch is full.

    Returns the voxels seen and the voxels that wait.
    """
    while k < n and waiting < _BATCH:
        if not b[_OFF + k] <= enough:
            late[_OUTPUT + waiting] = b[_OUTPUT + k]
            for a in range(3):
                row = a * _BATCH
                late[_TARGET + row + waiting] = b[_TARGET + row + k]
                late[_PLACE + row + waiting] = b[_PLACE + row + k] + b[_STEP + row + k]
            waiting += 1
        k += 1
    return k, waiting


@njit(nogil=True, cache=True, error_model="numpy")
def _finish(part, late, corners, n, out):  # type: ignore[no-untyped-def]
    """Solve the voxels that wait; return the evaluations."""
    if n == 0 or part.limit == 1:
        return 1
    rounds = 1 + _solve(part, late, corners, n, part.limit - 1)
    _write(late, n, out.back, out.vectors, out.error)
    return rounds


@njit(nogil=True, cache=True, error_model="numpy")
def _write(b, n, back, vectors, error):  # type: ignore[no-untyped-def]
    """Write the results of a batch to where they belong."""
    width = vectors.shape[1]
    for k in range(n):
        to = np.uint64(b[_OUTPUT + k])
        x, y, z = b[_FOUND + k], b[_FOUND + _BATCH + k], b[_FOUND + 2 * _BATCH + k]
        error[to] = b[_ERROR + k]
        vectors[to, 0] = back[0] * x + back[1] * y + back[2] * z
        vectors[to, 1] = back[3] * x + back[4] * y + back[5] * z
        if width == 3:
            vectors[to, 2] = back[6] * x + back[7] * y + back[8] * z


@njit(nogil=True, cache=True, error_model="numpy")
def solve_points(part, targets, found, error, start, stop):  # type: ignore[no-untyped-def]
    """Solve at scattered points, from where they would lie without the displacement.

    Parameters
    ----------
    part : FieldPart
        What to solve.
    targets : ndarray, (m, 3)
        y, in field voxels.
    found : ndarray, (m, 3)
        Receives x in field voxels.
    error : ndarray, (m,)
        Receives the estimated error.
    start, stop : int
        Points.
    """
    b, corners = _new_batch()
    for first in range(start, stop, _BATCH):
        n = min(_BATCH, stop - first)
        for a in range(3):
            for k in range(n):
                y = targets[first + k, a]
                b[_TARGET + a * _BATCH + k] = b[_PLACE + a * _BATCH + k] = y
        _solve(part, b, corners, n, part.limit)
        for k in range(n):
            error[first + k] = b[_ERROR + k]
            for a in range(3):
                found[first + k, a] = targets[first + k, a] + b[_FOUND + a * _BATCH + k]
