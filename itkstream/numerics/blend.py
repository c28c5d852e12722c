"""Joining the results of neighbouring blocks without a seam: partition-of-unity weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numba import njit
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Block, BlockGrid, Grid, PiecewiseAffine, Slices
from itkstream.numerics.threads import over_slabs

__all__ = ["NodeLattice", "blend_affines"]


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


@dataclass(frozen=True)
class NodeLattice:
    """The lattice on which results of neighbouring blocks meet, coarser than their voxels.

    Node k of an axis stands at the centre of the voxels ``[k f, (k + 1) f)``. Every block brings
    its vectors on the nodes that its padded region touches, each times the confidence of the
    block and followed by it: what is added up in that form is a weighted mean at the end.

    Fitted blocks share the nodes as a partition of unity, in which each counts by its confidence.
    A failed block, an empty array, gives way wherever fitted blocks hold half of the share or
    more. Inside it their values at its corners are passed on from corner to corner; a corner no
    fitted block touches has none, so that far from all of them the result fades to nothing. A
    corner on the border of the image has the value of the next one inside.

    Parameters
    ----------
    blocks : BlockGrid
        The blocks.
    factors : tuple of int
        Voxels per node and axis, at most an eighth of the blocksize: so the two nodes next to any
        voxel belong to blocks that touch its own.

    Raises
    ------
    InputError
        For other factors.
    """

    blocks: BlockGrid
    factors: tuple[int, ...]

    def __post_init__(self) -> None:
        n = len(self.blocks.shape)
        pairs = zip(self.factors, self.blocks.blocksize, strict=False)
        if len(self.factors) != n or any(f < 1 or (f > 1 and 8 * f > b) for f, b in pairs):
            raise InputError(
                f"blocks of {self.blocks.blocksize} voxels join on nodes of at least 1 voxel and "
                f"at most an eighth of their size; got {self.factors}"
            )

    def held(self, block: Block) -> Slices:
        """The nodes a block brings.

        Parameters
        ----------
        block : Block
            The block.

        Returns
        -------
        tuple of slice
            All whose voxels its padded region touches.
        """
        return tuple(
            slice(s.start // f, -(-s.stop // f))
            for s, f in zip(block.padded, self.factors, strict=True)
        )

    def wanted(self, block: Block) -> Slices:
        """The nodes between which the voxels of a block's core lie.

        Parameters
        ----------
        block : Block
            The block.

        Returns
        -------
        tuple of slice
            Inside the image.
        """
        spans = []
        for s, f, n in zip(block.core, self.factors, self.blocks.shape, strict=True):
            low = (2 * s.start - f + 1) // (2 * f)
            high = -((f - 1 - 2 * (s.stop - 1)) // (2 * f))
            spans.append(slice(max(0, low), min(-(-n // f), high + 1)))
        return tuple(spans)

    def pack(
        self, block: Block, vectors: NDArray[np.float32], confidence: float
    ) -> NDArray[np.float32]:
        """What a fitted block brings.

        Parameters
        ----------
        block : Block
            The block.
        vectors : ndarray, padded shape + (n,)
            Its result.
        confidence : float
            Positive.

        Returns
        -------
        ndarray, shape of the held nodes + (n + 1,), float32
            Linear between voxels, and beyond the outermost.
        """
        for axis, (s, p, f) in enumerate(
            zip(self.held(block), block.padded, self.factors, strict=True)
        ):
            if f > 1:
                vectors = _sample_axis(vectors, axis, _places(s, f) - p.start)
        trust = np.full((*vectors.shape[:-1], 1), confidence, np.float32)
        return np.concatenate([vectors * np.float32(confidence), trust], axis=-1)

    def no_pack(self) -> NDArray[np.float32]:
        """What a failed block brings.

        Returns
        -------
        ndarray, float32
            Empty.
        """
        n = len(self.factors)
        return np.empty((0,) * n + (n + 1,), np.float32)

    def join(
        self, block: Block, near: Sequence[tuple[Block, NDArray[np.float32]]]
    ) -> NDArray[np.float32]:
        """Blend a block with those that touch it.

        Parameters
        ----------
        block : Block
            The block.
        near : sequence of (Block, ndarray)
            It and those that touch it, in index order, and what each brings.

        Returns
        -------
        ndarray, shape of the wanted nodes + (n,), float32
            Two blocks find the same vectors at a node that both want.
        """
        region = self.wanted(block)
        shape = tuple(s.stop - s.start for s in region)
        total = np.zeros((*shape, len(shape) + 1), np.float32)
        weight = np.zeros(shape, np.float32)
        fitted = {other.index: (other, packed) for other, packed in near if packed.size}
        for other, packed in fitted.values():
            held = self.held(other)
            both = _common(held, region)
            share = self.share(other, both)
            here = _relative(both, region)
            weight[here] += share
            total[here] += share[..., None] * packed[_relative(both, held)]
        vectors = _weighted_mean(total)
        if len(fitted) == len(near):
            return vectors
        t = np.minimum(2 * weight, 1)[..., None]
        t *= t * (3 - 2 * t)
        return t * vectors + (1 - t) * self._stand_in(block, fitted, region)

    def share(self, block: Block, nodes: Slices) -> NDArray[np.float32]:
        """The share of one block in some nodes.

        Parameters
        ----------
        block : Block
            The block.
        nodes : tuple of slice
            Of the lattice.

        Returns
        -------
        ndarray, shape of the nodes, float32
            Between 0 and 1; over all blocks they sum to 1.
        """
        share = np.ones((), np.float64)
        for axis, (s, f) in enumerate(zip(nodes, self.factors, strict=True)):
            low, upper = self.blocks.weights(axis, _places(s, f))
            mine = block.index[axis]
            along = np.where(low == mine, 1.0 - upper, np.where(low + 1 == mine, upper, 0.0))
            share = share[..., None] * along
        return share.astype(np.float32)

    def _stand_in(
        self,
        block: Block,
        fitted: Mapping[tuple[int, ...], tuple[Block, NDArray[np.float32]]],
        region: Slices,
    ) -> NDArray[np.float32]:
        """Vectors on a region of nodes, smooth between the values at the corners of a block."""
        n = len(region)
        values = np.zeros((2,) * n + (n,), np.float32)
        for corner in product((0, 1), repeat=n):
            values[corner] = self._at_corner(block, corner, fitted)
        for axis, (s, f, c) in enumerate(zip(region, self.factors, block.core, strict=True)):
            # Constant as far as a neighbour's nodes: they have the same value for both blocks.
            edge = f if f > 1 else 0
            t = (_places(s, f) - (c.start - 0.5 + edge)) / (c.stop - c.start - 2 * edge)
            t = np.clip(t, 0, 1)
            values = _sample_axis(values, axis, t * t * (3 - 2 * t))
        return values

    def _at_corner(
        self,
        block: Block,
        corner: tuple[int, ...],
        fitted: Mapping[tuple[int, ...], tuple[Block, NDArray[np.float32]]],
    ) -> NDArray[np.float32]:
        touching, nodes = [], []
        for axis, (up, i) in enumerate(zip(corner, block.index, strict=True)):
            lengths = self.blocks.chunks[axis]
            last = len(lengths) - 1
            inner = min(max(i + up, 1), last) if last else i + up
            touching.append((inner - 1, inner) if last else (0,))
            border = sum(lengths[:inner]) - 0.5
            nodes.append(int(border) // self.factors[axis])
        total = np.zeros(len(corner) + 1, np.float32)
        for index in product(*touching):
            if index in fitted:
                other, packed = fitted[index]
                inside = (
                    min(max(k - s.start, 0), s.stop - s.start - 1)
                    for k, s in zip(nodes, self.held(other), strict=True)
                )
                total += packed[tuple(inside)]
        return _weighted_mean(total)


def _places(nodes: slice, factor: int) -> NDArray[np.float64]:
    """Where nodes stand, in voxels."""
    return np.arange(nodes.start, nodes.stop) * factor + (factor - 1) / 2


def _sample_axis(
    values: NDArray[np.float32], axis: int, places: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Linear between the values along an axis and beyond them."""
    low = np.clip(np.floor(places), 0, max(0, values.shape[axis] - 2)).astype(np.intp)
    upper = np.minimum(low + 1, values.shape[axis] - 1)
    part = (places - low).astype(np.float32)
    part = part.reshape(part.shape + (1,) * (values.ndim - axis - 1))
    below, above = values.take(low, axis), values.take(upper, axis)
    return np.asarray(below + part * (above - below), np.float32)


def _weighted_mean(total: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(
        total[..., :-1] / np.maximum(total[..., -1:], np.finfo(np.float32).tiny), np.float32
    )


def _common(first: Slices, second: Slices) -> Slices:
    return tuple(
        slice(max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop)))
        for a, b in zip(first, second, strict=True)
    )


def _relative(region: Slices, frame: Slices) -> Slices:
    return tuple(
        slice(r.start - f.start, r.stop - f.start) for r, f in zip(region, frame, strict=True)
    )


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
