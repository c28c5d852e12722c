"""Joining the results of neighbouring blocks without a seam: partition-of-unity weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import Block, BlockGrid, Grid, PiecewiseAffine, Slices
from itkstream.numerics.threads import over_slabs

__all__ = ["blend_affines", "blend_blocks", "block_share", "fill_failed"]


def blend_affines(local: PiecewiseAffine, grid: Grid) -> NDArray[np.float32]:
    """The displacement of blended local affines on the voxels of a grid.

    Parameters
    ----------
    local : PiecewiseAffine
        The affines and their blocks.
    grid : Grid
        A part of the blocks' own lattice, or a coarser or finer one of the same direction.

    Returns
    -------
    ndarray, grid.shape + (n,), float32
        ``sum_b share_b(p) (matrix_b p) - p``.

    Raises
    ------
    InputError
        Where the grid is rotated against the blocks.
    """
    n = grid.ndim
    if not np.allclose(grid.direction, local.grid.direction):
        raise InputError(
            "local affines are blended along the axes of the image they were found in; the grid "
            f"wanted has the direction {grid.direction}, that image {local.grid.direction}"
        )
    moves = _lift(((local.matrices - np.eye(n + 1)) @ local.grid.matrix)[..., :-1, :], n)
    start = local.grid.to_index(grid.origin)
    step = np.asarray(grid.spacing) / local.grid.spacing
    at = [np.zeros(1)] * (3 - n)
    tables = [(np.zeros(1, np.intp), np.zeros(1))] * (3 - n)
    for axis, length in enumerate(grid.shape):
        at.append(start[axis] + step[axis] * np.arange(length))
        tables.append(local.blocks.weights(axis, at[-1]))
    low = tuple(t[0] for t in tables)
    upper = tuple(t[1] for t in tables)
    out = np.empty((*map(len, at), n), np.float32)
    over_slabs(lambda a, b: _blend(moves, low, upper, tuple(at), out, a, b), out.shape[1])
    return out.reshape((*grid.shape, n))


def block_share(blocks: BlockGrid, block: Block, region: Slices) -> NDArray[np.float32]:
    """The share of one block in the voxels of a region.

    Parameters
    ----------
    blocks : BlockGrid
        All blocks.
    block : Block
        One of them.
    region : tuple of slice
        Voxels of the whole image.

    Returns
    -------
    ndarray, region shape, float32
        Between 0 and 1; over all blocks they sum to 1.
    """
    share = np.ones((), np.float64)
    for axis, s in enumerate(region):
        low, upper = blocks.weights(axis, np.arange(s.start, s.stop))
        mine = block.index[axis]
        along = np.where(low == mine, 1.0 - upper, np.where(low + 1 == mine, upper, 0.0))
        share = share[..., None] * along
    return share.astype(np.float32)


def blend_blocks(
    blocks: BlockGrid, block: Block, parts: Sequence[tuple[Block, NDArray[Any]]]
) -> NDArray[np.float32]:
    """Blend the padded results of a block and its neighbours over the block's core.

    Parts that hold NaN (failed blocks) leave their share to the others; voxels no part reaches
    continue their surroundings smoothly.

    Parameters
    ----------
    blocks : BlockGrid
        All blocks.
    block : Block
        The one whose core is wanted.
    parts : sequence of (Block, ndarray)
        Neighbours and the vectors on their padded regions, shape padded + (n,).

    Returns
    -------
    ndarray, core shape + (n,), float32
        The weighted mean; 0 where all parts failed.
    """
    core = block.core
    total = np.zeros((*block.core_shape, len(core)), np.float32)
    weight = np.zeros(block.core_shape, np.float32)
    for other, values in parts:
        both = tuple(
            slice(max(c.start, p.start), min(c.stop, p.stop))
            for c, p in zip(core, other.padded, strict=True)
        )
        if any(s.stop <= s.start for s in both):
            continue
        piece = values[_relative(both, other.padded)]
        if np.isnan(piece).any():
            continue
        share = block_share(blocks, other, both)
        here = _relative(both, core)
        total[here] += share[..., None] * piece
        weight[here] += share
    return _normalise(total, weight, blocks.overlap)


def fill_failed(
    matrices: NDArray[np.float64], blocks: BlockGrid, grid: Grid
) -> NDArray[np.float64]:
    """Give failed blocks an affine drawn from the blocks around them.

    A failed block takes the mean of the fitted blocks nearest to it (up to twice the least
    distance), weighted by the inverse square of the distance in physical units. Only fitted
    blocks count, so the result does not depend on the order of filling.

    Parameters
    ----------
    matrices : ndarray, blocks.numblocks + (n + 1, n + 1)
        Affines, NaN where a block failed.
    blocks : BlockGrid
        The blocks.
    grid : Grid
        The image's lattice.

    Returns
    -------
    ndarray
        A copy without NaN.

    Raises
    ------
    RegistrationError
        Where every block failed.
    """
    n = grid.ndim
    flat = np.array(matrices, np.float64).reshape(-1, n + 1, n + 1)
    fitted = np.isfinite(flat).all(axis=(1, 2))
    if not fitted.any():
        raise RegistrationError(
            f"all {len(flat)} blocks failed to find an affine: use larger blocks, a lower "
            "match_threshold, or radii that fit the nuclei"
        )
    centres = grid.to_physical(blocks.centres()).reshape(-1, n)
    known, places = flat[fitted], centres[fitted]
    for b in np.flatnonzero(~fitted):
        distance = np.linalg.norm(places - centres[b], axis=1)
        near = distance <= 2 * distance.min()
        flat[b] = np.average(known[near], axis=0, weights=1.0 / distance[near] ** 2)
    return flat.reshape(np.shape(matrices))


def _relative(region: Slices, frame: Slices) -> Slices:
    return tuple(
        slice(r.start - f.start, r.stop - f.start) for r, f in zip(region, frame, strict=True)
    )


def _normalise(
    total: NDArray[np.float32], weight: NDArray[np.float32], overlap: tuple[int, ...]
) -> NDArray[np.float32]:
    known = weight > 0
    if not known.any():
        return np.zeros_like(total)
    # Where every block has its part the weights sum to 1 up to rounding: leave those bits alone.
    short = known & (np.abs(weight - 1.0) > 1e-5)
    total[short] /= weight[short][:, None]
    if known.all():
        return total
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    spread = total[tuple(nearest)]
    sigma = (*(max(1.0, float(o)) for o in overlap), 0.0)
    smooth = gaussian_filter(spread, sigma, mode="nearest")
    total[~known] = smooth[~known]
    return total


def _lift(moves: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Give matrices (..., n, n + 1) of a 2-D image the leading block and voxel axis of 3-D."""
    lead = (1,) * (3 - n)
    padded = np.zeros((*moves.shape[:-2], n, 4))
    padded[..., 3 - n :] = moves
    return padded.reshape(lead + padded.shape)


@njit(nogil=True, cache=True)
def _blend(moves, low, upper, at, out, start, stop):  # type: ignore[no-untyped-def]
    total = np.zeros(out.shape[3])
    for i in range(out.shape[0]):
        for j in range(start, stop):
            for k in range(out.shape[2]):
                total[:] = 0.0
                for corner in range(8):
                    a = corner >> 2
                    b = (corner >> 1) & 1
                    d = corner & 1
                    share = upper[0][i] if a else 1.0 - upper[0][i]
                    share *= upper[1][j] if b else 1.0 - upper[1][j]
                    share *= upper[2][k] if d else 1.0 - upper[2][k]
                    if share == 0.0:
                        continue
                    m = moves[low[0][i] + a, low[1][j] + b, low[2][k] + d]
                    for c in range(total.size):
                        move = m[c, 0] * at[0][i] + m[c, 1] * at[1][j] + m[c, 2] * at[2][k]
                        total[c] += share * (move + m[c, 3])
                for c in range(total.size):
                    out[i, j, k, c] = total[c]
