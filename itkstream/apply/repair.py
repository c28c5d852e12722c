"""Repair of the folds of a field: smoothed there, region by region, and unread elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.apply.folds import FoldedRegion, count_folds, find_folded_regions, foldable_chain
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    AffineTransform,
    DisplacementField,
    Grid,
    Slices,
    Transform,
    compose,
)
from itkstream.geometry.lazy_array import DerivedArray
from itkstream.numerics.sampling.folds import MINIMUM_JACOBIAN, repair_folds
from itkstream.workers import Resources

__all__ = ["repair_transform"]

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
    """
    simple = compose(transform)
    if isinstance(simple, AffineTransform):
        return transform
    chain = foldable_chain(simple, "repaired")
    field = chain.field
    determinants, counts = count_folds(field, resources)
    if not np.isfinite(determinants).all():
        raise InputError("the displacement field holds NaN or infinity: fill it first")
    repaired = _Patched(field.data, ())
    for region in find_folded_regions(field, counts):
        repaired = _with_repair(repaired, field.grid, region)
    if not repaired.patches:
        return transform
    return compose(DisplacementField(repaired, field.grid), chain.affine)


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


def _with_repair(data: _Patched, grid: Grid, region: FoldedRegion) -> _Patched:
    """A field with one of its folds smoothed, in as small a box around it as will do."""
    room = _ROOM
    while True:
        box = tuple(
            slice(max(0, a - room), min(n, b + room))
            for a, b, n in zip(region.first, region.stop, grid.shape, strict=True)
        )
        before = np.asarray(data[(*box, slice(None))], np.float32)
        result = repair_folds(before, grid.crop(box), MINIMUM_JACOBIAN)
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
