"""Sampling images and vector fields at mapped voxel positions.

Borders follow ITK: a position whose continuous index lies in [-0.5, N - 0.5) is inside and is
clamped to the outermost centres; outside, an image takes its background and a field the value at
its edge. One plane is enough margin for a read: linear interpolation needs the voxel below and the
voxel above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

from itkstream.errors import InputError
from itkstream.numerics.threads import over_slabs

__all__ = ["MARGIN", "round_to", "sample_field", "warp"]

MARGIN = 1
"""Voxels beyond a sampled position that interpolation of order 0 or 1 may read."""


def warp(
    moving: NDArray[Any],
    index_matrix: NDArray[np.float64],
    shape: tuple[int, ...],
    displacement: NDArray[np.floating[Any]] | None = None,
    vector_matrix: NDArray[np.float64] | None = None,
    *,
    order: int = 1,
    background: float = 0.0,
    dtype: DTypeLike | None = None,
) -> NDArray[Any]:
    """Sample an image at ``index_matrix @ [i, 1] + vector_matrix @ displacement[i]``.

    Parameters
    ----------
    moving : ndarray
        The image to sample, 2-D or 3-D; it may be empty.
    index_matrix : ndarray, (n, n + 1)
        From output voxel index to moving voxel index.
    shape : tuple of int
        Output voxels per axis.
    displacement : ndarray, shape + (n,), optional
        A vector for every output voxel.
    vector_matrix : ndarray, (n, n), optional
        From such a vector to moving voxels; default identity.
    order : {1, 0}
        Linear or nearest (half rounds up, as in ITK).
    background : float
        Value where the position is outside `moving`.
    dtype : dtype, optional
        Output type; default that of `moving`. Integers are rounded and clipped, never wrapped.

    Returns
    -------
    ndarray, shape
        The samples.

    Raises
    ------
    InputError
        For an order other than 0 and 1.
    """
    if order not in (0, 1):
        raise InputError(f"order must be 0 (nearest) or 1 (linear) here; got {order}")
    wanted = np.dtype(moving.dtype if dtype is None else dtype)
    out = np.empty(shape, _working_dtype(_computable(wanted), order))
    if moving.size == 0:
        out.fill(background)
    else:
        _warp_into(out, moving, index_matrix, displacement, vector_matrix, order, background)
    return round_to(out, wanted)


def sample_field(
    field: NDArray[np.floating[Any]],
    index_matrix: NDArray[np.float64],
    shape: tuple[int, ...],
    displacement: NDArray[np.floating[Any]] | None = None,
    vector_matrix: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Sample a vector field linearly; positions outside take the value at its edge.

    Parameters
    ----------
    field : ndarray, (..., n)
        Vectors on a 2-D or 3-D lattice.
    index_matrix : ndarray, (n, n + 1)
        From output voxel index to field index.
    shape : tuple of int
        Output voxels per axis.
    displacement : ndarray, shape + (n,), optional
        A vector for every output voxel.
    vector_matrix : ndarray, (n, n), optional
        From such a vector to field voxels; default identity.

    Returns
    -------
    ndarray, shape + (n,), float32
        The sampled vectors, unchanged in direction and unit.
    """
    n = len(shape)
    out = np.empty((*_three(shape), n), np.float32)
    source = _native(field).reshape((*_three(field.shape[:-1]), n))
    index, vector, moves = _embed(index_matrix, displacement, vector_matrix, shape)
    over_slabs(lambda a, b: _sample_vectors(source, index, vector, moves, out, a, b), _planes(out))
    return out.reshape((*shape, n))


def round_to(values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Cast to `dtype`; integers are rounded and clipped to its range.

    Parameters
    ----------
    values : ndarray
        What to cast; not changed.
    dtype : dtype
        The wanted type.

    Returns
    -------
    ndarray
        `values` itself where the type is right already.
    """
    wanted = np.dtype(dtype)
    if values.dtype == wanted:
        return values
    if wanted.kind == "b":
        return values >= 0.5
    if wanted.kind in "iu" and values.dtype.kind == "f":
        info = np.iinfo(wanted)
        # The largest 64-bit integers are no doubles: step inside the range before the cast.
        top = np.nextafter(float(info.max), 0.0) if wanted.itemsize == 8 else info.max
        return np.clip(np.rint(values), info.min, top).astype(wanted)
    return values.astype(wanted)


def _working_dtype(wanted: np.dtype[Any], order: int) -> np.dtype[Any]:
    """Linear samples are rounded once, at the end; nearest samples keep every bit of a label."""
    if order == 0:
        return wanted
    exact_in_single = wanted.itemsize <= 2 or wanted == np.float32
    return np.dtype(np.float32 if exact_in_single else np.float64)


def _computable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """numba takes the machine's own byte order only, and no half precision."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, _computable(array.dtype))


def _warp_into(
    out: NDArray[Any],
    moving: NDArray[Any],
    index_matrix: NDArray[np.float64],
    displacement: NDArray[Any] | None,
    vector_matrix: NDArray[np.float64] | None,
    order: int,
    background: float,
) -> None:
    index, vector, moves = _embed(index_matrix, displacement, vector_matrix, out.shape)
    target = out.reshape(_three(out.shape))
    source = _native(moving).reshape(_three(moving.shape))
    kernel = _warp_linear if order == 1 else _warp_nearest
    outside = round_to(np.array([background], np.float64), out.dtype)[0]
    over_slabs(
        lambda a, b: kernel(source, index, vector, moves, outside, target, a, b), _planes(target)
    )


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (3 - len(shape)) + tuple(shape)


def _planes(out: NDArray[Any]) -> int:
    """Slabs are cut along axis 1, which is long in two and in three dimensions."""
    return int(out.shape[1])


def _embed(
    index_matrix: NDArray[np.float64],
    displacement: NDArray[Any] | None,
    vector_matrix: NDArray[np.float64] | None,
    shape: tuple[int, ...],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any]]:
    """Lift a 2-D map to 3-D, where axis 0 has one plane that maps to itself."""
    n = len(shape)
    index = np.eye(3, 4)
    index[3 - n :, 3 - n : 3] = index_matrix[:, :n]
    index[3 - n :, 3] = index_matrix[:, n]
    vector = np.zeros((3, n))
    vector[3 - n :] = np.eye(n) if vector_matrix is None else vector_matrix
    if displacement is None:
        return index, vector, np.empty((0, 0, 0, n), np.float32)
    return index, vector, displacement.reshape((*_three(shape), n))


@njit(nogil=True, cache=True, inline="always")
def _position(index, vector, moves, i, j, k):  # type: ignore[no-untyped-def]
    x = index[0, 0] * i + index[0, 1] * j + index[0, 2] * k + index[0, 3]
    y = index[1, 0] * i + index[1, 1] * j + index[1, 2] * k + index[1, 3]
    z = index[2, 0] * i + index[2, 1] * j + index[2, 2] * k + index[2, 3]
    if moves.shape[0] > 0:
        for c in range(moves.shape[3]):
            d = moves[i, j, k, c]
            x += vector[0, c] * d
            y += vector[1, c] * d
            z += vector[2, c] * d
    return x, y, z


@njit(nogil=True, cache=True, inline="always")
def _bracket(x, n):  # type: ignore[no-untyped-def]
    """Lower voxel, upper voxel and the weight of the upper one, clamped to the image."""
    if x <= 0.0:
        return 0, 0, 0.0
    if x >= n - 1:
        return n - 1, n - 1, 0.0
    low = int(x)
    return low, low + 1, x - low


@njit(nogil=True, cache=True)
def _warp_linear(moving, index, vector, moves, background, out, start, stop):  # type: ignore[no-untyped-def]
    nx, ny, nz = moving.shape
    for i in range(out.shape[0]):
        for j in range(start, stop):
            for k in range(out.shape[2]):
                x, y, z = _position(index, vector, moves, i, j, k)
                inside = -0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5 and -0.5 <= z < nz - 0.5
                if not inside:
                    out[i, j, k] = background
                    continue
                x0, x1, fx = _bracket(x, nx)
                y0, y1, fy = _bracket(y, ny)
                z0, z1, fz = _bracket(z, nz)
                v00 = moving[x0, y0, z0] * (1.0 - fz) + moving[x0, y0, z1] * fz
                v01 = moving[x0, y1, z0] * (1.0 - fz) + moving[x0, y1, z1] * fz
                v10 = moving[x1, y0, z0] * (1.0 - fz) + moving[x1, y0, z1] * fz
                v11 = moving[x1, y1, z0] * (1.0 - fz) + moving[x1, y1, z1] * fz
                v0 = v00 * (1.0 - fy) + v01 * fy
                v1 = v10 * (1.0 - fy) + v11 * fy
                out[i, j, k] = v0 * (1.0 - fx) + v1 * fx


@njit(nogil=True, cache=True)
def _warp_nearest(moving, index, vector, moves, background, out, start, stop):  # type: ignore[no-untyped-def]
    nx, ny, nz = moving.shape
    for i in range(out.shape[0]):
        for j in range(start, stop):
            for k in range(out.shape[2]):
                x, y, z = _position(index, vector, moves, i, j, k)
                inside = -0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5 and -0.5 <= z < nz - 0.5
                if inside:
                    # The sum rounds up to the next voxel where x is just below a half.
                    a = min(int(x + 0.5), nx - 1)
                    b = min(int(y + 0.5), ny - 1)
                    c = min(int(z + 0.5), nz - 1)
                    out[i, j, k] = moving[a, b, c]
                else:
                    out[i, j, k] = background


@njit(nogil=True, cache=True)
def _sample_vectors(field, index, vector, moves, out, start, stop):  # type: ignore[no-untyped-def]
    nx, ny, nz, components = field.shape
    for i in range(out.shape[0]):
        for j in range(start, stop):
            for k in range(out.shape[2]):
                x, y, z = _position(index, vector, moves, i, j, k)
                x0, x1, fx = _bracket(x, nx)
                y0, y1, fy = _bracket(y, ny)
                z0, z1, fz = _bracket(z, nz)
                for c in range(components):
                    v00 = field[x0, y0, z0, c] * (1.0 - fz) + field[x0, y0, z1, c] * fz
                    v01 = field[x0, y1, z0, c] * (1.0 - fz) + field[x0, y1, z1, c] * fz
                    v10 = field[x1, y0, z0, c] * (1.0 - fz) + field[x1, y0, z1, c] * fz
                    v11 = field[x1, y1, z0, c] * (1.0 - fz) + field[x1, y1, z1, c] * fz
                    v0 = v00 * (1.0 - fy) + v01 * fy
                    v1 = v10 * (1.0 - fy) + v11 * fy
                    out[i, j, k, c] = v0 * (1.0 - fx) + v1 * fx
