"""Is a transform sound: no folds, and an inverse that leads back. And the repair of folds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.apply.folds import prepare_fold_count
from itkstream.apply.inversion import apply_to_points
from itkstream.blocks.inputs import block_grid
from itkstream.compute.execute import compute
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    AffineTransform,
    DisplacementField,
    Grid,
    LazyArray,
    Slices,
    Transform,
    compose,
    steps_of,
)
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.numerics.sampling.folds import MINIMUM_JACOBIAN, repair_folds
from itkstream.workers import Resources

__all__ = ["Certificate", "FoldedRegion", "certify", "check_transform", "repair_transform"]

_BLOCK = 128
# What an inverse may be off, in voxels of the field: at the middle point, and at the worst.
_MEDIAN_VOX, _WORST_VOX = 0.01, 0.1
_REGIONS = 1000
# Voxels around a fold that its repair may change, at first; doubled while that is not enough.
_ROOM = 16
# Changes of a vector reach the determinants of its neighbours.
_RIM = 2


@dataclass(frozen=True)
class FoldedRegion:
    """Folded voxels that touch each other.

    Parameters
    ----------
    first, stop : tuple of int
        The box that holds them, in voxels of the field: its first voxel, and the one after the
        last, per array axis.
    voxels : int
        How many.
    least_jacobian : float
        The worst of them.
    """

    first: tuple[int, ...]
    stop: tuple[int, ...]
    voxels: int
    least_jacobian: float


@dataclass(frozen=True)
class Certificate:
    """What was found out about a transform.

    Parameters
    ----------
    least_jacobian : float
        Least local volume ratio of the displacement (of the affine, where there is no field).
    folded_voxels, voxels : int
        Voxels of the field whose ratio is 0 or less, of so many.
    median_inverse_error_vox, largest_inverse_error_vox : float
        Distance from x to ``T^-1(T(x))`` at points drawn inside the field, in its smallest voxel
        spacing.
    regions : tuple of FoldedRegion
        Where the folds are, the worst first; a thousand at most.
    """

    least_jacobian: float
    folded_voxels: int
    voxels: int
    median_inverse_error_vox: float
    largest_inverse_error_vox: float
    regions: tuple[FoldedRegion, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the transform is not sound; empty where it is."""
        reasons = []
        if self.folded_voxels or self.least_jacobian <= 0:
            reasons.append(f"{self.folded_voxels} of {self.voxels} voxels are folded")
        if not self.median_inverse_error_vox <= _MEDIAN_VOX:
            reasons.append(
                f"the inverse is {self.median_inverse_error_vox:.3g} voxels off at the median "
                f"point; at most {_MEDIAN_VOX} is sound"
            )
        if not self.largest_inverse_error_vox <= _WORST_VOX:
            reasons.append(
                f"the inverse is {self.largest_inverse_error_vox:.3g} voxels off at the worst "
                f"point; at most {_WORST_VOX} is sound"
            )
        return tuple(reasons)


def certify(
    transform: Transform, *, name: str = "TRANSFORM", resources: Resources | None = None
) -> dict[str, Any]:
    """Check a transform; the result as JSON has it.

    Parameters
    ----------
    transform : Transform
        As for `check_transform`.
    name : str
        Its path, for the command that repairs it.
    resources : Resources, optional
        Workers and threads.

    Returns
    -------
    dict
        ``passed``, ``failures``, the numbers and the regions of `Certificate`, and ``repair``: a
        command, where something is folded.

    Raises
    ------
    InputError
        As `check_transform`.
    """
    found = check_transform(transform, resources=resources)
    command = f"itkstream repair {name} repaired.ome.zarr" if found.folded_voxels else None
    return {
        "passed": not found.failures,
        "failures": list(found.failures),
        **asdict(found),
        "repair": command,
    }


def check_transform(
    transform: Transform,
    *,
    samples: int = 2000,
    seed: int = 0,
    resources: Resources | None = None,
) -> Certificate:
    """Check a transform: folds over the whole field, block by block, and its inverse at points.

    Parameters
    ----------
    transform : Transform
        An affine, a displacement field, or a field followed by affines; it may be stored.
    samples : int
        Points at which the inverse is tried.
    seed : int
        Seed of their choice.
    resources : Resources, optional
        Workers and threads.

    Returns
    -------
    Certificate
        Numbers, and what is wrong.

    Raises
    ------
    InputError
        Where the field holds NaN, or the transform is of another kind.
    """
    field, affine = _field_and_affine(transform, "checked")
    if field is None:
        # An affine that mirrors the image folds nothing and has an exact inverse.
        return Certificate(abs(float(np.linalg.det(affine.matrix))), 0, 0, 0.0, 0.0)
    grid = field.grid
    stretch = compute(prepare_fold_count(field, (_BLOCK,) * grid.ndim), resources)
    least = float(stretch[..., 0].min())
    if not np.isfinite(least):
        raise InputError("the displacement field holds NaN or infinity: it is no transform")
    error = _inverse_errors(transform, grid, samples, seed)
    regions = sorted(_regions(field, stretch[..., 1]), key=lambda r: r.least_jacobian)
    return Certificate(
        least,
        int(stretch[..., 1].sum()),
        grid.size,
        float(np.median(error)),
        float(error.max()),
        tuple(regions[:_REGIONS]),
    )


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
    field, affine = _field_and_affine(transform, "repaired")
    if field is None:
        return transform
    stretch = compute(prepare_fold_count(field, (_BLOCK,) * field.ndim), resources)
    if not np.isfinite(stretch[..., 0]).all():
        raise InputError("the displacement field holds NaN or infinity: fill it first")
    repaired = _Patched(field.data, ())
    for region in _regions(field, stretch[..., 1]):
        repaired = _with_repair(repaired, field.grid, region)
    if not repaired.patches:
        return transform
    return compose(DisplacementField(repaired, field.grid), affine)


@dataclass(frozen=True, eq=False)
class _Patched(LazyArray):
    """A stored field with parts of it replaced; of patches that overlap, the last one holds."""

    source: Any
    patches: tuple[tuple[Slices, NDArray[np.float32]], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.source.dtype)

    def with_patch(self, box: Slices, patch: NDArray[np.float32]) -> _Patched:
        return _Patched(self.source, (*self.patches, (box, patch)))

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        n = len(self.shape) - 1
        part = np.array(self.source[tuple(map(slice, start, stop))])
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


def _field_and_affine(
    transform: Transform, what: str
) -> tuple[DisplacementField | None, AffineTransform]:
    steps = steps_of(compose(transform))
    field = steps[0] if isinstance(steps[0], DisplacementField) else None
    affines = steps if field is None else steps[1:]
    if any(not isinstance(step, AffineTransform) for step in affines):
        kinds = ", ".join(type(step).__name__ for step in steps)
        raise InputError(
            f"an affine, a displacement field, or a field followed by affines can be {what}; got "
            f"{kinds}: make it a field first, by itkstream.transform.as_field or `itkstream export "
            "--like`"
        )
    after = compose(AffineTransform(np.eye(transform.ndim + 1)), *affines)
    assert isinstance(after, AffineTransform)
    return field, after


def _inverse_errors(
    transform: Transform, grid: Grid, samples: int, seed: int
) -> NDArray[np.float64]:
    inside = np.random.default_rng(seed).uniform(0, 1, (samples, grid.ndim))
    points = grid.to_physical(inside * (np.asarray(grid.shape) - 1))
    there = apply_to_points(transform, points).points
    back = apply_to_points(transform, there, inverse=True).points
    error: NDArray[np.float64] = np.linalg.norm(back - points, axis=1) / min(grid.spacing)
    return error


def _regions(field: DisplacementField, counts: NDArray[np.float64]) -> list[FoldedRegion]:
    """Only blocks with folds are read again; what touches across their borders is joined."""
    blocks = block_grid(field.grid.shape, (_BLOCK,) * field.ndim, 1)
    found: list[FoldedRegion] = []
    for index in np.argwhere(counts > 0):
        block = blocks[tuple(int(i) for i in index)]
        part = np.asarray(field.data[(*block.padded, slice(None))])
        determinant = jacobian_determinant(part, field.grid.crop(block.padded))
        corner = [c.start for c in block.core]
        for region in _in_block(determinant[block.core_in_padded], corner):
            found = _joined(found, region)
    return found


def _in_block(determinant: NDArray[np.float32], corner: list[int]) -> Iterator[FoldedRegion]:
    folded = ~(determinant > 0)
    labels, _ = ndimage.label(folded, np.ones((3,) * folded.ndim))
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        own = labels[box] == number
        yield FoldedRegion(
            tuple(c + s.start for c, s in zip(corner, box, strict=True)),
            tuple(c + s.stop for c, s in zip(corner, box, strict=True)),
            int(own.sum()),
            float(determinant[box][own].min()),
        )


def _joined(regions: list[FoldedRegion], new: FoldedRegion) -> list[FoldedRegion]:
    apart = []
    for old in regions:
        touch = all(
            a <= d and c <= b
            for a, b, c, d in zip(old.first, old.stop, new.first, new.stop, strict=True)
        )
        if not touch:
            apart.append(old)
            continue
        new = FoldedRegion(
            tuple(map(min, old.first, new.first)),
            tuple(map(max, old.stop, new.stop)),
            old.voxels + new.voxels,
            min(old.least_jacobian, new.least_jacobian),
        )
    return [*apart, new]


def _with_repair(data: _Patched, grid: Grid, region: FoldedRegion) -> _Patched:
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
    """Only the part that did change is kept in memory."""
    if not changed.any():
        return data
    part = ndimage.find_objects(changed.astype(np.uint8))[0]
    place = tuple(
        slice(b.start + p.start, b.start + p.stop) for b, p in zip(box, part, strict=True)
    )
    return data.with_patch(place, vectors[part].copy())


def _rim_kept(changed: NDArray[np.bool_], box: Slices, grid: Grid) -> bool:
    """Whether a repair left alone what borders on the rest of the field."""
    rim = changed.copy()
    rim[
        tuple(
            slice(_RIM if s.start else 0, None if s.stop == n else -_RIM)
            for s, n in zip(box, grid.shape, strict=True)
        )
    ] = False
    return not rim.any()
