"""The moving image on the voxels of another, resampled where it is looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.apply.fields import axes_of
from itkstream.blocks.inputs import as_pair, block_grid
from itkstream.geometry import Grid, Image, LazyArray, Slices, Transform, box_shape
from itkstream.io.images.stores.ome_zarr_writer import coarser_grids
from itkstream.io.storage.stored import keeping_chunks
from itkstream.io.transforms.ngff.store import stored_axes
from itkstream.numerics.sampling.mapping import GridMap, affine_part, can_map_boxes
from itkstream.numerics.sampling.warping import WarpSettings, warp_part
from itkstream.serving.pyramids import levels_to_view

__all__ = ["tile_of", "warped_levels"]

# Voxels per axis of its blocks.
_BLOCK = 128
# A level of the moving image with nine tenths as many voxels as are wanted shows as much.
_ENOUGH = 0.9


def warped_levels(
    moving: Image, transform: Transform, grid: Grid, settings: WarpSettings, *, labels: bool = False
) -> list[Image]:
    """Prepare the moving image on a lattice and on coarser ones, axes as they are stored.

    The finest has the bits of `itkstream.write_resampled`; the coarser ones are resampled from the
    level of the moving image that has about as many voxels there.
    """
    inner = _reordered(grid, axes_of(transform))
    levels = levels_to_view(moving, labels=labels)
    sources = [as_pair(_as_image(inner), level, None, None)[1] for level in levels]
    settings = settings.for_image(sources[0])
    settings = replace(settings, dtype=settings.voxel_type(moving.dtype))
    transform = keeping_chunks(transform)
    grids = [inner, *(coarse for _, coarse in coarser_grids(inner, labels))]
    chosen = [sources[0], *(_fitting(sources, transform, coarse) for coarse in grids[1:])]
    return [
        Image(
            _Warped(source, transform, wanted, settings), wanted, moving.name, {}, moving.channel
        ).reorder(stored_axes(wanted))
        for source, wanted in zip(chosen, grids, strict=True)
    ]


def tile_of(transform: Transform, grid: Grid, settings: WarpSettings) -> int:
    """Voxels per axis of the finest level that are computed together: as few as cost no more."""
    inner = _reordered(grid, axes_of(transform))
    block = inner.crop(tuple(slice(0, min(_BLOCK, n)) for n in inner.shape))
    return 0 if settings.engine == "fast" and can_map_boxes(transform, block) else _BLOCK


def _reordered(grid: Grid, axes: tuple[str, ...]) -> Grid:
    """The lattice in µm, with the axes of a transform."""
    return grid.reorder(stored_axes(grid)).in_unit("micrometer").reorder(axes)


def _as_image(grid: Grid) -> Image:
    """A lattice as an image that takes no memory."""
    return Image(np.broadcast_to(np.uint8(0), grid.shape), grid)


def _fitting(levels: list[Image], transform: Transform, wanted: Grid) -> Image:
    """The coarsest level that has about as many voxels as a lattice, where it lies in the image."""
    affine = affine_part(transform).matrix
    fitting = levels[0]
    for level in levels[1:]:
        across = GridMap(wanted, affine).index_matrix(level.grid)[:, :-1]
        if abs(math.prod(np.linalg.svd(across, compute_uv=False))) >= _ENOUGH:
            fitting = level
    return fitting


@dataclass(frozen=True, eq=False)
class _Warped(LazyArray):
    """The moving image on a lattice, resampled where it is sliced."""

    moving: Image
    transform: Transform
    grid: Grid
    settings: WarpSettings

    @property
    def shape(self) -> tuple[int, ...]:
        return self.grid.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.settings.voxel_type(self.moving.dtype)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Resample a box, block by block: bits depend on where a block begins."""
        wanted = tuple(map(slice, start, stop))
        out = np.empty(box_shape(wanted), self.dtype)
        for block in self._blocks(wanted):
            spans = [
                (w.start, b.start, max(w.start, b.start), min(w.stop, b.stop))
                for w, b in zip(wanted, block, strict=True)
            ]
            into = tuple(slice(p - w, q - w) for w, _, p, q in spans)
            inside = tuple(slice(p - b, q - b) for _, b, p, q in spans)
            lattice = self.grid.crop(block)
            out[into] = warp_part(self.moving, self.transform, lattice, inside, self.settings)
        return out

    def _blocks(self, wanted: Slices) -> Iterator[Slices]:
        """The blocks of `itkstream.write_resampled` that a box touches."""
        blocks = block_grid(self.shape, (_BLOCK,) * self.ndim, 0)
        # The last block of an axis may be longer.
        spans = zip(wanted, blocks.numblocks, strict=True)
        touched = (range(min(w.start // _BLOCK, n - 1), -(-w.stop // _BLOCK)) for w, n in spans)
        for index in product(*touched):
            if all(i < n for i, n in zip(index, blocks.numblocks, strict=True)):
                yield blocks[index].core
