"""Folds of a field: counted block by block, boxed, and smoothed away, region by region."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import block_grid
from itkstream.compute.execute import compute
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    AffineTransform,
    Block,
    DisplacementField,
    Grid,
    Slices,
    Transform,
    compose,
)
from itkstream.geometry.chains import FieldChain
from itkstream.geometry.lazy_array import DerivedArray
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.numerics.sampling.folds import MINIMUM_JACOBIAN, repair_folds
from itkstream.workers import Resources

__all__ = [
    "FoldedRegion",
    "count_folds",
    "find_folded_regions",
    "foldable_chain",
    "prepare_fold_count",
    "repair_transform",
    "unfold",
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
    field: DisplacementField, resources: Resources | None = None, least: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least Jacobian determinant, and number of voxels not above `least`, per block of a field."""
    stretch = compute(prepare_fold_count(field, (_BLOCK,) * field.ndim, least), resources)
    return stretch[..., 0], stretch[..., 1]


def prepare_fold_count(
    field: DisplacementField, blocksize: Sequence[int], least: float = 0.0
) -> da.Array:
    """Prepare the least Jacobian determinant of a field and its number of folded voxels, per block.

    Parameters
    ----------
    field : DisplacementField
        In memory or stored.
    blocksize : sequence of int
        Voxels of a block per axis.
    least : float
        Determinant that a voxel must exceed; one of 0 is folded.

    Returns
    -------
    dask.array.Array, block grid + (2,), float64
        Lazy. Least determinant of the block's voxels, and how many are not above `least`.

    Examples
    --------
    >>> grid = itkstream.Grid((8, 8, 8), (1, 1, 1))
    >>> still = itkstream.DisplacementField(np.zeros((8, 8, 8, 3), np.float32), grid)
    >>> itkstream.deform.prepare_fold_count(still, (8, 8, 8)).compute()
    array([[[[1., 0.]]]])
    """
    blocks = block_grid(field.grid.shape, blocksize, 1)
    shared = {"grid": field.grid, "least": least}
    return map_blocks(_fold_block, blocks, field.data, shared, Result(np.float64, (2,), "block"))


def _fold_block(
    part: NDArray[np.float32], block: Block, *, grid: Grid, least: float
) -> NDArray[np.float64]:
    determinant = jacobian_determinant(part, grid.crop(block.padded))[block.core_in_padded]
    count = np.count_nonzero(~(determinant > least))
    return np.array([float(determinant.min()), count]).reshape((1,) * grid.ndim + (2,))


def find_folded_regions(
    field: DisplacementField, counts: NDArray[np.float64], least: float = 0.0
) -> list[FoldedRegion]:
    """The folded regions of a field; only blocks with folds, by their `counts`, are read."""
    blocks = block_grid(field.grid.shape, (_BLOCK,) * field.ndim, 1)
    found: list[FoldedRegion] = []
    for index in np.argwhere(counts > 0):
        block = blocks[tuple(int(i) for i in index)]
        part = np.asarray(field.data[(*block.padded, slice(None))])
        determinant = jacobian_determinant(part, field.grid.crop(block.padded))
        corner = [c.start for c in block.core]
        for region in _regions_in(determinant[block.core_in_padded], corner, least):
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


def _regions_in(
    determinant: NDArray[np.float32], corner: list[int], least: float
) -> Iterator[FoldedRegion]:
    from skimage.measure import label, regionprops

    for region in regionprops(label(~(determinant > least)), determinant):
        yield FoldedRegion(
            tuple(c + s.start for c, s in zip(corner, region.slice, strict=True)),
            tuple(c + s.stop for c, s in zip(corner, region.slice, strict=True)),
            int(region.num_pixels),
            float(region.intensity_min),
        )


# Voxels around a fold that its repair may change, at first; doubled while that is not enough.
_ROOM = 16
# Changes of a vector reach the determinants of its neighbours.
_RIM = 2


def repair_transform(transform: Transform, *, resources: Resources | None = None) -> Transform:
    """Smooth a displacement field where it folds, and nowhere else.

    Each folded region is repaired in memory, with some room around it; the rest of the field is
    not read.

    Parameters
    ----------
    transform : Transform
        A displacement field, or one followed by affines; it may be stored.
    resources : Resources, optional
        Workers and threads.

    Returns
    -------
    Transform
        With patches over the field where it was folded; itself where nothing is. Write it with
        `itkstream.write_transform`.

    Raises
    ------
    InputError
        For other transforms, or a field with NaN.
    RegistrationError
        Where a region cannot be unfolded.

    Examples
    --------
    >>> repaired = itkstream.repair_transform(registration.transform)
    >>> itkstream.check_transform(repaired).folded_voxels
    0
    """
    simple = compose(transform)
    if isinstance(simple, AffineTransform):
        return transform
    chain = foldable_chain(simple, "repaired")
    field = unfold(chain.field, resources)
    return transform if field is chain.field else compose(field, chain.affine)


def unfold(
    field: DisplacementField, resources: Resources | None = None, least: float = 0.0
) -> DisplacementField:
    """Smooth a field where its Jacobian determinant is not above `least`; itself where it is."""
    determinants, counts = count_folds(field, resources, least)
    if not np.isfinite(determinants).all():
        raise InputError("the displacement field holds NaN or infinity: fill it first")
    repaired = _Patched(field.data, ())
    for region in find_folded_regions(field, counts, least):
        repaired = _with_repair(repaired, field.grid, region, max(least, MINIMUM_JACOBIAN))
    return DisplacementField(repaired, field.grid) if repaired.patches else field


@dataclass(frozen=True, eq=False)
class _Patched(DerivedArray):
    """A stored field with parts of it replaced; of patches that overlap, the last one holds."""

    patches: tuple[tuple[Slices, NDArray[np.float32]], ...]

    def with_patch(self, box: Slices, patch: NDArray[np.float32]) -> _Patched:
        return _Patched(self.source, (*self.patches, (box, patch)))

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        n = len(self.shape) - 1
        part = np.array(super().read(start, stop))
        components = slice(start[n], stop[n])
        for box, patch in self.patches:
            low = [max(a, b.start) for a, b in zip(start[:n], box, strict=True)]
            high = [min(z, b.stop) for z, b in zip(stop[:n], box, strict=True)]
            if any(a >= z for a, z in zip(low, high, strict=True)):
                continue
            there = [slice(a - s, z - s) for a, z, s in zip(low, high, start[:n], strict=True)]
            cut = zip(low, high, box, strict=True)
            here = [slice(a - b.start, z - b.start) for a, z, b in cut]
            part[tuple(there)] = patch[(*here, components)]
        return part


def _with_repair(data: _Patched, grid: Grid, region: FoldedRegion, minimum: float) -> _Patched:
    """A field with one of its folds smoothed, in as small a box around it as will do."""
    room = _ROOM
    while True:
        box = tuple(
            slice(max(0, a - room), min(n, b + room))
            for a, b, n in zip(region.first, region.stop, grid.shape, strict=True)
        )
        before = np.asarray(data[(*box, slice(None))], np.float32)
        result = repair_folds(before, grid.crop(box), minimum)
        changed = (before != result.displacement).any(axis=-1)
        whole = all(s.stop - s.start == n for s, n in zip(box, grid.shape, strict=True))
        if result.folded_after == 0 and (whole or _rim_kept(changed, box, grid)):
            return _with_changes(data, box, result.displacement, changed)
        if whole:
            raise RegistrationError(
                f"the fold between voxels {region.first} and {region.stop} cannot be smoothed "
                "away: register again with more smoothing of the field"
            )
        room *= 2


def _with_changes(
    data: _Patched, box: Slices, vectors: NDArray[np.float32], changed: NDArray[np.bool_]
) -> _Patched:
    """A field with the vectors of a box that did change; the others are not kept in memory."""
    if not changed.any():
        return data
    part = ndimage.find_objects(changed.astype(np.uint8))[0]
    place = tuple(
        slice(b.start + p.start, b.start + p.stop) for b, p in zip(box, part, strict=True)
    )
    return data.with_patch(place, vectors[part].copy())


def _rim_kept(changed: NDArray[np.bool_], box: Slices, grid: Grid) -> bool:
    """Whether the vectors that border on the rest of the field are as they were."""
    rim = changed.copy()
    rim[
        tuple(
            slice(_RIM if s.start else 0, None if s.stop == n else -_RIM)
            for s, n in zip(box, grid.shape, strict=True)
        )
    ] = False
    return not rim.any()
