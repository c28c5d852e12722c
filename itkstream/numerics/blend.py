"""Joining the results of neighbouring blocks without a seam: partition-of-unity weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Block, BlockGrid, Grid, PiecewiseAffine, Slices
from itkstream.numerics.threads import over_slabs

__all__ = [
    "blend_affines",
    "blend_blocks",
    "block_share",
    "core_mean",
    "stand_in",
]


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


def core_mean(block: Block, values: NDArray[Any]) -> NDArray[np.float32]:
    """The mean vector of a block's result over its core.

    Parameters
    ----------
    block : Block
        The block.
    values : ndarray, padded shape + (n,)
        Its result.

    Returns
    -------
    ndarray, (n,), float32
        NaN where the result holds NaN: the block failed.
    """
    if np.isnan(values).any():
        return np.full(values.shape[-1], np.nan, np.float32)
    core = values[block.core_in_padded].reshape(-1, values.shape[-1])
    return np.asarray(core.mean(axis=0, dtype=np.float64), np.float32)


def stand_in(
    block: Block, near: Sequence[Block], means: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The vector that stands for a failed block: the mean of the fitted blocks that touch it.

    Parameters
    ----------
    block : Block
        The failed one.
    near : sequence of Block
        Those that touch it; itself among them does no harm.
    means : sequence of ndarray, (n,)
        Their `core_mean`.

    Returns
    -------
    ndarray, (n,), float32
        Weighted by the inverse square of the distance in blocks; 0 where no fitted block touches
        it, so that far from all of them the result fades to nothing.
    """
    total, weight = np.zeros(len(block.index)), 0.0
    for other, mean in zip(near, means, strict=True):
        squared = sum((i - j) ** 2 for i, j in zip(block.index, other.index, strict=True))
        if squared and not np.isnan(mean).any():
            total += mean / squared
            weight += 1.0 / squared
    return np.asarray(total / max(weight, np.finfo(float).tiny), np.float32)


def blend_blocks(
    blocks: BlockGrid,
    block: Block,
    parts: Sequence[tuple[Block, NDArray[Any]]],
    confidence: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Blend the results of a block and its neighbours over the block's core.

    Fitted blocks share their voxels as a partition of unity, in which each counts by its
    confidence. A failed block is a single vector, its `stand_in`; it gives way wherever fitted
    blocks hold half of the share or more, so that it takes nothing from a fitted neighbour.

    Parameters
    ----------
    blocks : BlockGrid
        All blocks.
    block : Block
        The one whose core is wanted.
    parts : sequence of (Block, ndarray)
        Neighbours and the vectors on their padded regions, shape padded + (n,); of failed ones
        the vector that stands for them, shape (n,).
    confidence : sequence of float, optional
        Positive weights of the parts; default all equal.

    Returns
    -------
    ndarray, core shape + (n,), float32
        Continuous across blocks, whichever failed.
    """
    total = np.zeros((*block.core_shape, len(block.core)), np.float32)
    spare = np.zeros_like(total)
    weight = np.zeros(block.core_shape, np.float32)
    trusted = np.zeros_like(weight)
    for (other, values), trust in zip(parts, confidence or [1.0] * len(parts), strict=True):
        both = tuple(
            slice(max(c.start, p.start), min(c.stop, p.stop))
            for c, p in zip(block.core, other.padded, strict=True)
        )
        if any(s.stop <= s.start for s in both):
            continue
        share = block_share(blocks, other, both)
        here = _relative(both, block.core)
        if values.ndim == 1:
            spare[here] += share[..., None] * values
        else:
            weight[here] += share
            share *= np.float32(trust)
            total[here] += share[..., None] * values[_relative(both, other.padded)]
            trusted[here] += share
    total /= np.maximum(trusted, np.finfo(np.float32).tiny)[..., None]
    if all(values.ndim > 1 for _, values in parts):
        return total
    return _filled(total, spare, weight)


def _relative(region: Slices, frame: Slices) -> Slices:
    return tuple(
        slice(r.start - f.start, r.stop - f.start) for r, f in zip(region, frame, strict=True)
    )


def _filled(
    fitted: NDArray[np.float32], spare: NDArray[np.float32], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Pass from the fitted part to the stand-ins, `spare / (1 - weight)`."""
    w = weight[..., None]
    tiny = np.finfo(np.float32).tiny
    t = np.minimum(2 * w, 1)
    trust = t * t * (3 - 2 * t)
    # Where the fitted blocks have all, 1 - weight is nothing but rounding.
    stood_in = np.where(trust < 1, spare / np.maximum(1 - w, tiny), 0)
    return np.asarray(trust * fitted + (1 - trust) * stood_in, np.float32)


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
