"""Folds of a field: counted block by block, and the boxes that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import block_grid
from itkstream.compute.execute import compute
from itkstream.geometry import Block, DisplacementField, Grid, Transform
from itkstream.geometry.chains import FieldChain
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.workers import Resources

__all__ = [
    "FoldedRegion",
    "count_folds",
    "find_folded_regions",
    "foldable_chain",
    "prepare_fold_count",
]

# Voxels per block and axis in which folds are counted.
_BLOCK = 128


@dataclass(frozen=True)
class FoldedRegion:
    """Folded voxels that touch each other: their number, and the box that holds them.

    `first` is the first voxel of the box per array axis, `stop` the one after the last.
    """

    first: tuple[int, ...]
    stop: tuple[int, ...]
    voxels: int
    least_jacobian: float

    def touches(self, other: FoldedRegion) -> bool:
        """Whether the boxes have a voxel in common or side by side."""
        spans = zip(self.first, self.stop, other.first, other.stop, strict=True)
        return all(a <= d and c <= b for a, b, c, d in spans)

    def join(self, other: FoldedRegion) -> FoldedRegion:
        """Make one region of both."""
        return FoldedRegion(
            tuple(map(min, self.first, other.first)),
            tuple(map(max, self.stop, other.stop)),
            self.voxels + other.voxels,
            min(self.least_jacobian, other.least_jacobian),
        )


def foldable_chain(transform: Transform, verb: str) -> FieldChain:
    """Take a transform apart whose folds are to be `verb`: "checked" or "repaired"."""
    return FieldChain.of(
        transform,
        f"an affine, a displacement field, or a field followed by affines can be {verb}; got "
        "{kinds}: make it a field first, by itkstream.transform.as_field or `itkstream export "
        "--like`",
    )


def count_folds(
    field: DisplacementField, resources: Resources | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least Jacobian determinant and number of folded voxels, per block, over the whole field."""
    stretch = compute(prepare_fold_count(field, (_BLOCK,) * field.ndim), resources)
    return stretch[..., 0], stretch[..., 1]


def prepare_fold_count(field: DisplacementField, blocksize: Sequence[int]) -> da.Array:
    """Prepare the least Jacobian determinant of a field and its number of folded voxels, per block.

    Parameters
    ----------
    field : DisplacementField
        In memory or stored.
    blocksize : sequence of int
        Voxels of a block per axis.

    Returns
    -------
    dask.array.Array, block grid + (2,), float64
        Lazy. Least determinant of the block's voxels, and how many are 0 or less.
    """
    blocks = block_grid(field.grid.shape, blocksize, 1)
    shared = {"grid": field.grid}
    return map_blocks(_fold_block, blocks, field.data, shared, Result(np.float64, (2,), "block"))


def _fold_block(part: NDArray[np.float32], block: Block, *, grid: Grid) -> NDArray[np.float64]:
    determinant = jacobian_determinant(part, grid.crop(block.padded))[block.core_in_padded]
    count = np.count_nonzero(~(determinant > 0))
    return np.array([float(determinant.min()), count]).reshape((1,) * grid.ndim + (2,))


def find_folded_regions(
    field: DisplacementField, counts: NDArray[np.float64]
) -> list[FoldedRegion]:
    """The folded regions of a field; only blocks with folds, by their `counts`, are read."""
    blocks = block_grid(field.grid.shape, (_BLOCK,) * field.ndim, 1)
    found: list[FoldedRegion] = []
    for index in np.argwhere(counts > 0):
        block = blocks[tuple(int(i) for i in index)]
        part = np.asarray(field.data[(*block.padded, slice(None))])
        determinant = jacobian_determinant(part, field.grid.crop(block.padded))
        corner = [c.start for c in block.core]
        for region in _regions_in(determinant[block.core_in_padded], corner):
            found = _add_region(found, region)
    return found


def _add_region(regions: list[FoldedRegion], new: FoldedRegion) -> list[FoldedRegion]:
    """Add a region, joined with those it touches: folds cross borders of blocks."""
    apart = []
    for old in regions:
        if old.touches(new):
            new = old.join(new)
        else:
            apart.append(old)
    return [*apart, new]


def _regions_in(determinant: NDArray[np.float32], corner: list[int]) -> Iterator[FoldedRegion]:
    from skimage.measure import label, regionprops

    for region in regionprops(label(~(determinant > 0)), determinant):
        yield FoldedRegion(
            tuple(c + s.start for c, s in zip(corner, region.slice, strict=True)),
            tuple(c + s.stop for c, s in zip(corner, region.slice, strict=True)),
            int(region.num_pixels),
            float(region.intensity_min),
        )
