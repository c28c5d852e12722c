"""Cutting a grid into blocks that tile it once, each with a halo of its neighbours' voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError
from itkstream.geometry.grid import Slices, box_shape

__all__ = ["Block", "BlockGrid"]


@dataclass(frozen=True)
class Block:
    """One block: where its core and its padded region lie in the whole image.

    Parameters
    ----------
    index : tuple of int
        Position in the block grid.
    core : tuple of slice
        The voxels this block owns.
    padded : tuple of slice
        Core plus overlap, clipped at the border of the image.

    Examples
    --------
    >>> blocks = itkstream.geometry.BlockGrid((20, 20), (10, 10), (2, 2))
    >>> blocks[1, 0].core
    (slice(10, 20, None), slice(0, 10, None))
    """

    index: tuple[int, ...]
    core: Slices
    padded: Slices

    @property
    def core_in_padded(self) -> Slices:
        """The core as slices of the padded array."""
        return tuple(
            slice(c.start - p.start, c.stop - p.start)
            for c, p in zip(self.core, self.padded, strict=True)
        )

    @property
    def core_shape(self) -> tuple[int, ...]:
        """Voxels of the core per axis."""
        return box_shape(self.core)

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Voxels of the padded region per axis."""
        return box_shape(self.padded)


@dataclass(frozen=True)
class BlockGrid:
    """Blocks whose cores tile an array exactly once.

    Cores have `blocksize` voxels; what remains at the end of an axis is a block of its own if it
    has at least half of them, and otherwise joins the block before it: slivers register badly
    and cannot hold an overlap.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the whole array per axis.
    blocksize : sequence of int
        Core voxels per axis.
    overlap : sequence of int, optional
        Halo voxels per side and axis, at most a quarter of the block; default 0.

    Raises
    ------
    InputError
        Where the lengths differ, a block has no voxel, or the overlap is too wide.

    Examples
    --------
    >>> blocks = itkstream.geometry.BlockGrid((20, 30), (10, 10), (2, 2))
    >>> blocks.numblocks
    (2, 3)
    """

    shape: tuple[int, ...]
    blocksize: tuple[int, ...]
    overlap: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.shape)
        object.__setattr__(self, "shape", tuple(int(v) for v in self.shape))
        for name, fallback, least in (("blocksize", None, 1), ("overlap", (0,) * n, 0)):
            given = tuple(int(v) for v in getattr(self, name)) or fallback or ()
            if len(given) != n or min(given) < least:
                raise InputError(
                    f"{name} needs {n} whole numbers >= {least}, one per axis of the fixed image "
                    f"of shape {self.shape}; got {getattr(self, name)}"
                )
            object.__setattr__(self, name, given)
        for axis, (halo, size, blocks) in enumerate(
            zip(self.overlap, self.blocksize, self.numblocks, strict=True)
        ):
            if blocks > 1 and 4 * halo > size:
                raise InputError(
                    f"an overlap of {halo} voxels on axis {axis} is more than a quarter of the "
                    f"blocksize {size}; use an overlap of at most {size // 4} or larger blocks"
                )

    @cached_property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Core lengths per axis, as dask writes chunks."""
        return tuple(_tile(n, size) for n, size in zip(self.shape, self.blocksize, strict=True))

    @cached_property
    def numblocks(self) -> tuple[int, ...]:
        """Blocks per axis."""
        return tuple(len(c) for c in self.chunks)

    def __len__(self) -> int:
        return int(np.prod(self.numblocks))

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in product(*map(range, self.numblocks)))

    def __getitem__(self, index: Sequence[int]) -> Block:
        core, padded = [], []
        for axis, i in enumerate(index):
            start = i * self.blocksize[axis]
            stop = start + self.chunks[axis][i]
            halo = self.overlap[axis]
            core.append(slice(start, stop))
            padded.append(slice(max(0, start - halo), min(self.shape[axis], stop + halo)))
        return Block(tuple(index), tuple(core), tuple(padded))

    def touching(
        self, index: Sequence[int], axes: Sequence[int] | None = None
    ) -> Iterator[tuple[int, ...]]:
        """Find the places of a block and of those that touch it in the block grid.

        Parameters
        ----------
        index : sequence of int
            The block's.
        axes : sequence of int, optional
            Look along these axes only; default all.

        Returns
        -------
        iterator of tuple of int
            Up to 3 to the power of the axes, in index order.

        Examples
        --------
        >>> blocks = itkstream.geometry.BlockGrid((20, 30), (10, 10), (2, 2))
        >>> (0, 1) in list(blocks.touching((0, 0)))
        True
        """
        along = range(len(self.shape)) if axes is None else axes
        spans = (
            range(max(0, i - 1), min(n, i + 2)) if axis in along else (i,)
            for axis, (i, n) in enumerate(zip(index, self.numblocks, strict=True))
        )
        return product(*spans)

    def weights(self, axis: int, index: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Shares of neighbouring blocks in voxels along one axis: a partition of unity.

        Across the border of two cores the share passes smoothly (3t² - 2t³) from one block to the
        other over the overlap on both sides. No voxel has more than two blocks per axis; its
        shares in n dimensions are products of those per axis.

        Parameters
        ----------
        axis : int
            Array axis.
        index : array_like, (m,)
            Voxel indices, fractions allowed; outside the array the nearest block has it all.

        Returns
        -------
        block : ndarray, (m,)
            The lower of the two blocks.
        share : ndarray, (m,)
            Share of the upper one, ``block + 1``, between 0 and 1; 0 where there is none.

        Examples
        --------
        >>> blocks = itkstream.geometry.BlockGrid((20, 30), (10, 10), (2, 2))
        >>> low, upper = blocks.weights(0, [2.0, 9.5])
        >>> upper
        array([0. , 0.5])
        """
        x = np.asarray(index, float)
        borders = np.cumsum(self.chunks[axis])[:-1] - 0.5
        if not borders.size:
            return np.zeros(x.shape, np.intp), np.zeros(x.shape)
        middles = np.concatenate([[-np.inf], (borders[1:] + borders[:-1]) / 2, [np.inf]])
        near = np.searchsorted(middles, x, side="right") - 1
        near = np.clip(near, 0, len(borders) - 1)
        # Without overlap the share jumps between two voxels; any width far below one will do.
        width = 2 * self.overlap[axis] or 1e-9
        t = np.clip((x - borders[near]) / width + 0.5, 0.0, 1.0)
        return near, t * t * (3.0 - 2.0 * t)

    def centres(self) -> NDArray[np.float64]:
        """The middle of every core, in fractional voxel indices.

        Returns
        -------
        ndarray, numblocks + (n,)
            Voxel indices.

        Examples
        --------
        >>> blocks = itkstream.geometry.BlockGrid((20, 30), (10, 10), (2, 2))
        >>> blocks.centres().shape
        (2, 3, 2)
        """
        per_axis = []
        for axis, chunks in enumerate(self.chunks):
            starts = np.arange(len(chunks)) * self.blocksize[axis]
            per_axis.append(starts + (np.asarray(chunks) - 1) / 2)
        return np.stack(np.meshgrid(*per_axis, indexing="ij"), axis=-1)


def _tile(length: int, size: int) -> tuple[int, ...]:
    whole, rest = divmod(length, size)
    if whole == 0:
        return (length,)
    if 2 * rest >= size:
        return (size,) * whole + (rest,)
    return (size,) * (whole - 1) + (size + rest,)
