"""Displacement fields in memory: change of lattice, composition, positions, bounds, Jacobian.

A displacement field holds, for each voxel of its grid, the vector from the voxel's physical
position to its image, in physical units and array-axis order. Displacements are float32, absolute
positions float64: far from the origin float32 positions lose sub-voxel precision.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.numerics.compiling import compiled
from itkstream.numerics.lift import lift_field, lift_matrix, lift_values
from itkstream.numerics.sampling.interpolate import sample_field
from itkstream.numerics.threads import over_slabs

__all__ = [
    "Places",
    "affine_to_displacement",
    "check_vectors",
    "compose",
    "displacement_bounds",
    "jacobian_determinant",
    "node_vectors",
    "pick_vectors",
    "resize_field",
    "sample_axis",
    "shrink_field",
    "to_displacement",
    "to_positions",
]

Field = NDArray[np.floating[Any]]

Places: TypeAlias = tuple[NDArray[np.float64] | None, ...]
"""Places along each axis of a lattice, in voxels; None for all of its voxels."""


def resize_field(field: Field, from_grid: Grid, to_grid: Grid) -> NDArray[np.float32]:
    """Sample a field on another lattice in the same space.

    Shapes: `field` from_grid.shape + (n,); returns to_grid.shape + (n,).
    """
    index = (from_grid.inverse_matrix @ to_grid.matrix)[:-1]
    return sample_field(field, index, to_grid.shape)


def shrink_field(field: Any, factors: tuple[int, ...], xp: Any = np) -> Any:
    """Average the vectors of a field in groups of voxels.

    A group that sticks out at the end is completed by linear extrapolation, so that its mean is
    the vector at the group's centre. `xp` is the namespace of the field, as numpy.

    Shapes: `field` shape + (n,); returns ceil(shape / factors) + (n,).
    """
    means = xp.asarray(field, np.float32)
    for axis, factor in enumerate(factors):
        lack = -means.shape[axis] % factor
        if lack:
            long = means.shape[axis] > lack
            mode = {"mode": "reflect", "reflect_type": "odd"} if long else {"mode": "edge"}
            width = [(0, lack if k == axis else 0) for k in range(means.ndim)]
            means = xp.pad(means, width, **mode)
        groups = (*means.shape[:axis], -1, factor, *means.shape[axis + 1 :])
        means = means.reshape(groups).mean(axis=axis + 1, dtype=np.float32)
    return means


def node_vectors(field: Field, factors: tuple[int, ...]) -> NDArray[np.float32]:
    """Find the nodes between which a field is linear again.

    Shapes: `field` shape + (n,); returns ceil(shape / factors) + (n,).
    """
    found = np.asarray(field, np.float32)
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        last = found.shape[axis] - 1
        places = np.arange(-(-(last + 1) // factor)) * factor + (factor - 1) / 2
        below = np.minimum(np.floor(places).astype(np.intp), last)
        above = np.minimum(np.ceil(places).astype(np.intp), last)
        before = _extended(found, axis, (np.maximum(below - 1, 0), below), places - below)
        behind = _extended(found, axis, (np.minimum(above + 1, last), above), above - places)
        # A group that sticks out at the end may have its centre there too.
        inside = (places <= last).reshape((-1,) + (1,) * (found.ndim - axis - 1))
        found = np.where(inside, (before + behind) / 2, before)
    return found


def _extended(
    values: NDArray[np.float32],
    axis: int,
    ends: tuple[NDArray[np.intp], NDArray[np.intp]],
    beyond: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Lines through two places each, so far beyond the second of them."""
    first, second = (values.take(end, axis) for end in ends)
    share = beyond.astype(np.float32).reshape((-1,) + (1,) * (values.ndim - axis - 1))
    return np.asarray(second + share * (second - first), np.float32)


def pick_vectors(field: Any, places: Places | None, xp: Any = np) -> Any:
    """Vectors at places between those of a field, linear along its axes and beyond their ends.

    Without places it is the field itself. `xp` is the namespace of the field, as numpy.

    Shapes: `field` shape + (n,); returns, for each axis as many as there are places, and (n,).
    """
    for axis, along in enumerate(places or ()):
        if along is not None:
            field = sample_axis(field, axis, along, xp)
    return field


def sample_axis(values: Any, axis: int, places: NDArray[np.float64], xp: Any = np) -> Any:
    """Linear between the values along an axis and beyond them, float32."""
    low = np.clip(np.floor(places), 0, max(0, values.shape[axis] - 2)).astype(np.intp)
    upper = np.minimum(low + 1, values.shape[axis] - 1)
    part = (places - low).astype(np.float32)
    part = part.reshape(part.shape + (1,) * (values.ndim - axis - 1))
    below, above = (values.take(xp.asarray(ends), axis) for ends in (low, upper))
    return xp.asarray(below + xp.asarray(part) * (above - below), np.float32)


def compose(first: Field, second: Field, grid: Grid) -> NDArray[np.float32]:
    """The displacement of `first` followed by `second`, both on one grid.

    Shapes: `first` grid.shape + (n,); `second` grid.shape + (n,); returns grid.shape + (n,).
    """
    n = grid.ndim
    to_voxels = grid.inverse_matrix[:-1, :-1]
    moved = sample_field(second, np.eye(n, n + 1), grid.shape, first, to_voxels)
    moved += first
    return moved


def to_positions(
    displacement: Field, grid: Grid, affine: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Positions a field maps the voxels of its grid to, through an affine if one follows.

    Shapes: `displacement` grid.shape + (n,); `affine` (n + 1, n + 1); returns grid.shape + (n,).
    """
    positions = grid.positions()
    positions += displacement
    if affine is None:
        return positions
    return np.asarray(positions @ affine[:-1, :-1].T + affine[:-1, -1])


def to_displacement(positions: NDArray[np.float64], grid: Grid) -> NDArray[np.float32]:
    """The vectors from the voxels of a grid to given positions.

    Shapes: `positions` grid.shape + (n,); returns grid.shape + (n,).
    """
    return (positions - grid.positions()).astype(np.float32)


def affine_to_displacement(affine: NDArray[np.float64], grid: Grid) -> NDArray[np.float32]:
    """The displacement field of an affine.

    Shapes: `affine` (n + 1, n + 1); returns grid.shape + (n,).
    """
    matrix = (affine - np.eye(grid.ndim + 1)) @ grid.matrix
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return np.asarray(index @ matrix[:-1, :-1].T + matrix[:-1, -1], np.float32)


def displacement_bounds(field: Field, grid: Grid) -> NDArray[np.float64]:
    """Bounds of the displacement along the axes of the grid, (2, n), in voxels."""
    check_vectors(field, field.shape[: grid.ndim])
    ends = np.array([(part.min(), part.max()) for part in np.moveaxis(field, -1, 0)], np.float64)
    shares = grid.inverse_matrix[:-1, :-1, None] * ends
    bounds = np.stack([shares.min(axis=-1).sum(axis=1), shares.max(axis=-1).sum(axis=1)])
    if not np.isfinite(bounds).all():
        raise InputError("the displacement field holds NaN or infinity: fill it before inverting")
    return bounds


def check_vectors(field: Field, shape: tuple[int, ...]) -> None:
    """Refuse a displacement field of another shape than a lattice has."""
    wanted = (*shape, len(shape))
    if field.shape != wanted:
        raise InputError(
            f"a displacement field on {shape} voxels has shape {wanted}; got {field.shape}: is it "
            "on another grid?"
        )


def jacobian_determinant(displacement: Field, grid: Grid) -> NDArray[np.float32]:
    """Jacobian determinant of the map ``p + displacement(p)`` at each voxel.

    Central differences inside and one-sided ones at the border, in physical units, so
    anisotropic voxels and rotated grids count right. Values <= 0 are folds.

    Shapes: `displacement` grid.shape + (n,); returns grid.shape.
    """
    vectors, to_index = lift_field(displacement), lift_matrix(grid.inverse_matrix[:-1, :-1])
    out = np.empty(lift_values(grid.shape, 1), np.float32)
    over_slabs(lambda a, b: _determinants(vectors, to_index, out, a, b), out.shape[1])
    return out.reshape(grid.shape)


@compiled
def _determinants(vectors, to_index, out, start, stop):  # type: ignore[no-untyped-def]
    shape = vectors.shape
    slope = np.zeros((3, 3))
    jacobian = np.zeros((3, 3))
    for i in range(shape[0]):
        for j in range(start, stop):
            for k in range(shape[2]):
                low = (max(i - 1, 0), max(j - 1, 0), max(k - 1, 0))
                high = (
                    min(i + 1, shape[0] - 1),
                    min(j + 1, shape[1] - 1),
                    min(k + 1, shape[2] - 1),
                )
                for c in range(3):
                    slope[c, 0] = vectors[high[0], j, k, c] - vectors[low[0], j, k, c]
                    slope[c, 1] = vectors[i, high[1], k, c] - vectors[i, low[1], k, c]
                    slope[c, 2] = vectors[i, j, high[2], c] - vectors[i, j, low[2], c]
                    for a in range(3):
                        slope[c, a] /= max(high[a] - low[a], 1)
                for c in range(3):
                    for a in range(3):
                        total = 1.0 if c == a else 0.0
                        for b in range(3):
                            total += slope[c, b] * to_index[b, a]
                        jacobian[c, a] = total
                m = jacobian
                out[i, j, k] = (
                    m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
                    - m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
                    + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
                )
