"""Joining the results of neighbouring blocks without a seam: partition-of-unity weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Block, BlockGrid, Grid, PiecewiseAffine, Slices, box_shape
from itkstream.numerics.compiling import compiled
from itkstream.numerics.sampling.fields import Places, sample_axis
from itkstream.numerics.threads import over_slabs

__all__ = ["NodeLattice", "blend_affines", "blend_points"]


def blend_affines(local: PiecewiseAffine, grid: Grid) -> NDArray[np.float32]:
    """The displacement of blended local affines on the voxels of a grid.

    Returns grid.shape + (n,).
    """
    n = grid.ndim
    if not np.allclose(grid.direction, local.grid.direction):
        raise InputError(
            "local affines are blended along the axes of the image they were found in; the grid "
            f"wanted has the direction {grid.direction}, that image {local.grid.direction}"
        )
    start = local.grid.to_index(grid.origin)
    step = np.asarray(grid.spacing) / local.grid.spacing
    at = [np.zeros(1)] * (3 - n)
    tables = [(np.zeros(1, np.intp), np.zeros(1))] * (3 - n)
    near: list[slice] = []
    for axis, length in enumerate(grid.shape):
        at.append(start[axis] + step[axis] * np.arange(length))
        low, upper = local.blocks.weights(axis, at[-1])
        near.append(slice(int(low.min()), int(low.max()) + 2))
        tables.append((low - low.min(), upper))
    # Of all blocks only those that reach this grid; there may be very many.
    matrices = local.matrices[tuple(near)]
    moves = _lift(((matrices - np.eye(n + 1)) @ local.grid.matrix)[..., :-1, :], n)
    lows, uppers = tuple(t[0] for t in tables), tuple(t[1] for t in tables)
    out = np.empty((*map(len, at), n), np.float32)
    over_slabs(lambda a, b: _blend(moves, lows, uppers, tuple(at), out, a, b), out.shape[1])
    return out.reshape((*grid.shape, n))


def blend_points(local: PiecewiseAffine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map any points through blended local affines, as `PiecewiseAffine.apply` does, but fast.

    Shapes: `points` (..., n); returns (..., n).
    """
    n = local.ndim
    flat = np.ascontiguousarray(points, np.float64).reshape(-1, n)
    matrices = local.matrices.reshape(-1, n + 1, n + 1)
    counts = np.asarray(local.blocks.numblocks)
    out = np.zeros_like(flat)

    def some(start: int, stop: int) -> None:
        index = local.grid.to_index(flat[start:stop])
        tables = [local.blocks.weights(axis, index[:, axis]) for axis in range(n)]
        lows, uppers = (np.stack([table[k] for table in tables]) for k in (0, 1))
        _blend_points(flat[start:stop], lows, uppers, counts, matrices, out[start:stop])

    over_slabs(some, len(flat))
    return out.reshape(points.shape)


# Eight float32 shares that make up 1 may miss it by this.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class NodeLattice:
    """The lattice on which results of neighbouring blocks meet, coarser than their voxels.

    Node k of an axis stands at the centre of the voxels ``[k f, (k + 1) f)``. Every block brings
    `pack`: its vectors on the nodes that its padded region touches, times its confidence, then the
    confidence, then 1. In that form neighbours are added up, each times its share, along one axis
    after the other, and what is divided at the end, by `finish`, is a weighted mean.

    Fitted blocks share the nodes as a partition of unity, in which each counts by its confidence.
    A failed block, an empty array, gives way wherever fitted blocks hold half of the share or
    more. Inside it their values at its corners are passed on from corner to corner; a corner that
    no fitted block touches has none, so that far from all of them the result fades to nothing. A
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
        """The nodes a block brings."""
        return tuple(
            slice(s.start // f, -(-s.stop // f))
            for s, f in zip(block.padded, self.factors, strict=True)
        )

    def wanted(self, block: Block) -> Slices:
        """The nodes between which the voxels of a block's core lie."""
        spans = []
        for s, f, n in zip(block.core, self.factors, self.blocks.shape, strict=True):
            low = (2 * s.start - f + 1) // (2 * f)
            high = -((f - 1 - 2 * (s.stop - 1)) // (2 * f))
            spans.append(slice(max(0, low), min(-(-n // f), high + 1)))
        return tuple(spans)

    def places(self, block: Block) -> Places:
        """Find the places of the nodes a block brings among the voxels of its padded region."""
        spans = zip(self.held(block), block.padded, self.factors, strict=True)
        return tuple(_places(s, f) - p.start if f > 1 else None for s, p, f in spans)

    def pack(self, vectors: NDArray[np.float32], confidence: float) -> NDArray[np.float32]:
        """Pack what a fitted block adds: its vectors at its `places`.

        Shapes: `vectors` shape of the held nodes + (n,); returns the same + (n + 2,).
        """
        packed = np.ones((*vectors.shape[:-1], vectors.shape[-1] + 2), np.float32)
        packed[..., :-2] = vectors
        packed[..., :-1] *= np.float32(confidence)
        return packed

    def still_pack(self, block: Block) -> NDArray[np.float32]:
        """Pack no change at all, for sure, of a block that keeps what is known.

        Shapes: returns shape of the held nodes + (n + 2,).
        """
        n = len(self.factors)
        packed = np.zeros((*box_shape(self.held(block)), n + 2), np.float32)
        packed[..., n:] = 1.0
        return packed

    def no_pack(self, why: int = 0) -> NDArray[np.float32]:
        """An empty array, which a failed block brings; its length along the first axis says why."""
        n = len(self.factors)
        return np.empty((why, *(0,) * (n - 1), n + 2), np.float32)

    def add(
        self,
        block: Block,
        near: Sequence[tuple[Block, NDArray[np.float32]]],
        axes: Sequence[int],
    ) -> NDArray[np.float32]:
        """Add a block and those that touch it along some axes, each times its share."""
        total = self.no_pack()
        region = self.wanted(block)
        places = [_places(s, f) for s, f in zip(region, self.factors, strict=True)]
        tables = {axis: self.blocks.weights(axis, places[axis]) for axis in axes}
        for other, packed in near:
            if not packed.size:
                continue
            if not total.size:
                shape = list(packed.shape)
                for axis in axes:
                    shape[axis] = len(places[axis])
                total = np.zeros(shape, np.float32)
            here: list[slice] = [slice(None)] * len(region)
            there = list(here)
            share = np.ones((1,) * packed.ndim, np.float32)
            for axis in axes:
                wanted, held = region[axis], self.held(other)[axis]
                first = max(wanted.start, held.start)
                last = max(first, min(wanted.stop, held.stop))
                here[axis] = slice(first - wanted.start, last - wanted.start)
                there[axis] = slice(first - held.start, last - held.start)
                along = _share(other.index[axis], tables[axis])[here[axis]]
                share = share * np.expand_dims(along, tuple({*range(packed.ndim)} - {axis}))
            total[tuple(here)] += share * packed[tuple(there)]
        return total

    def finish(self, block: Block, total: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vectors of what was added up along all axes.

        Shapes: `total` shape of the wanted nodes + (n + 2,); returns shape of the wanted nodes +
        (n,).
        """
        if not total.size:
            shape = box_shape(self.wanted(block))
            return np.zeros((*shape, len(shape)), np.float32)
        trust = np.maximum(total[..., -2:-1], np.finfo(np.float32).tiny)
        vectors = np.asarray(total[..., :-2] / trust, np.float32)
        weight = total[..., -1:]
        if weight.min() > 1 - _ROUNDING:
            return vectors
        t = np.minimum(2 * weight, 1)
        t = t * t * (3 - 2 * t)
        return np.asarray(t * vectors + (1 - t) * self._stand_in(block, vectors), np.float32)

    def _stand_in(self, block: Block, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Smooth between the values at the corners of a block."""
        region = self.wanted(block)
        values = vectors
        for axis, s in enumerate(region):
            ends = [k - s.start for k in self._corners(block, axis)]
            values = values.take(np.clip(ends, 0, s.stop - s.start - 1), axis)
        for axis, (s, f, c) in enumerate(zip(region, self.factors, block.core, strict=True)):
            # Constant as far as a neighbour's nodes: they have the same value for both blocks.
            edge = f if f > 1 else 0
            t = (_places(s, f) - (c.start - 0.5 + edge)) / (c.stop - c.start - 2 * edge)
            t = np.clip(t, 0, 1)
            values = sample_axis(values, axis, t * t * (3 - 2 * t))
        return values

    def _corners(self, block: Block, axis: int) -> list[int]:
        """The nodes at both ends of a block, or twice the inner one at the border of the image."""
        count = self.blocks.numblocks[axis]
        ends = [block.core[axis].start - 1, block.core[axis].stop - 1]
        if count > 1 and block.index[axis] == 0:
            ends[0] = ends[1]
        elif count > 1 and block.index[axis] == count - 1:
            ends[1] = ends[0]
        return [end // self.factors[axis] for end in ends]


def _places(nodes: slice, factor: int) -> NDArray[np.float64]:
    """Positions of nodes, in voxels."""
    return np.arange(nodes.start, nodes.stop) * factor + (factor - 1) / 2


def _share(block: int, table: tuple[NDArray[np.intp], NDArray[np.float64]]) -> NDArray[np.float32]:
    """The share of one block along an axis."""
    low, upper = table
    share = np.where(low == block, 1.0 - upper, np.where(low + 1 == block, upper, 0.0))
    return share.astype(np.float32)


def _lift(moves: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Give matrices (..., n, n + 1) of a 2-D image the leading block and voxel axis of 3-D."""
    lead = (1,) * (3 - n)
    padded = np.zeros((*moves.shape[:-2], n, 4))
    padded[..., 3 - n :] = moves
    return padded.reshape(lead + padded.shape)


@compiled
def _blend(moves, low, upper, at, out, start, stop):  # type: ignore[no-untyped-def]
    """Along a row the affines of each block are lines; those of four blocks are one line."""
    blocks, n = moves.shape[2], out.shape[3]
    line = np.empty((blocks, n, 2))
    for i in range(out.shape[0]):
        for j in range(start, stop):
            line[:] = 0.0
            for corner in range(4):
                share = upper[0][i] if corner >> 1 else 1.0 - upper[0][i]
                share *= upper[1][j] if corner & 1 else 1.0 - upper[1][j]
                if share == 0.0:
                    continue
                plane = moves[low[0][i] + (corner >> 1), low[1][j] + (corner & 1)]
                for d in range(blocks):
                    for c in range(n):
                        m = plane[d, c]
                        line[d, c, 0] += share * (m[0] * at[0][i] + m[1] * at[1][j] + m[3])
                        line[d, c, 1] += share * m[2]
            for k in range(out.shape[2]):
                d, share, z = low[2][k], upper[2][k], at[2][k]
                for c in range(n):
                    move = line[d, c, 0] + line[d, c, 1] * z
                    if share > 0.0:
                        other = line[d + 1, c, 0] + line[d + 1, c, 1] * z
                        move += share * (other - move)
                    out[i, j, k, c] = move


@compiled
def _blend_points(points, lows, uppers, counts, matrices, out):  # type: ignore[no-untyped-def]
    """Add up what the blocks around each point make of it; those without a share are left out."""
    n = points.shape[1]
    for k in range(points.shape[0]):
        for corner in range(2**n):
            share, block = 1.0, 0
            for a in range(n):
                step = (corner >> a) & 1
                share *= uppers[a, k] if step else 1.0 - uppers[a, k]
                block = block * counts[a] + min(lows[a, k] + step, counts[a] - 1)
            if share == 0.0:
                continue
            for i in range(n):
                moved = matrices[block, i, n]
                for j in range(n):
                    moved += matrices[block, i, j] * points[k, j]
                out[k, i] += share * moved
