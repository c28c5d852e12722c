"""Residual shifts of patches: how an aligned image fits if it is moved once more, here or there.

Around each node of a lattice a patch of the fixed image is compared with the aligned one at every
shift within a reach, by normalised correlation of what is left of both after their means over a
window. What a right place has is a peak at no shift; where content is another, others fit as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import correlate1d, uniform_filter

from itkstream.geometry import Grid
from itkstream.geometry.grid import voxels_spanning
from itkstream.numerics.threads import over_slabs

__all__ = ["LEAST_SEEN", "MEASURES", "PatchSearch", "gradient_magnitude", "measure_patches"]

Floats = NDArray[np.float32]

MEASURES = ("fit", "shift", "seen")
"""Numbers that `measure_patches` finds at each node.

``fit``: correlation at no shift; ``shift``: how far away the greatest one is, in voxels; ``seen``:
the share of the patch that counts in both images.
"""

LEAST_SEEN = 0.25
"""A patch with a smaller share of its voxels in sight tells nothing."""

_WINDOW, _STRIDE = 16, 8
# Patches whose correlations are computed at a time: some 20 MB.
_BATCH = 24
_TINY = 1e-12
# Deviation of the weights of a patch, in its edges; texture below so much of the mean is rounding.
_TAPER = 0.25
_EVEN = 1e-4
# Mean square of an even image, 1 where there is texture.
_LEAST_TEXTURE = 1e-3


@dataclass(frozen=True)
class PatchSearch:
    """Sizes of a search on a lattice, per axis, in voxels of it.

    Parameters
    ----------
    window : tuple of int
        Edges of the patches, even, or 1.
    stride : tuple of int
        Voxels per node.
    reach : tuple of int
        The greatest shift.
    """

    window: tuple[int, ...]
    stride: tuple[int, ...]
    reach: tuple[int, ...]

    @classmethod
    def of(cls, grid: Grid, reach: int) -> PatchSearch:
        """The search that suits a lattice; shifts reach so many of its smallest voxels."""
        sizes: list[tuple[int, ...]] = []
        for length in (_WINDOW, _STRIDE, reach):
            spans = voxels_spanning(length * grid.least_spacing, grid.spacing)
            sizes.append(tuple(min(s, n) for s, n in zip(spans, grid.shape, strict=True)))
        window = tuple(max(1, w // 2 * 2) if w > 1 else 1 for w in sizes[0])
        shifts = tuple(min(r, n // 2) for r, n in zip(sizes[2], grid.shape, strict=True))
        return cls(window, sizes[1], shifts)

    @property
    def halo(self) -> tuple[int, ...]:
        """Voxels around a node's own that its numbers depend on."""
        return tuple(2 * (w // 2) + r + 1 for w, r in zip(self.window, self.reach, strict=True))


def measure_patches(
    fixed: NDArray[Any],
    aligned: NDArray[Any],
    search: PatchSearch,
    spacing: Sequence[float],
    nodes: Sequence[range],
) -> Floats:
    """Numbers of `MEASURES` at nodes, along a last axis; only ``seen`` where a patch tells nothing.

    Voxels that are NaN do not count. Node k of an axis stands in the middle of voxels k * stride
    and following; `nodes` are those wanted, per axis.
    """
    # Shifts count in the smallest voxel, of axes along which there are any.
    least = min((h for h, r in zip(spacing, search.reach, strict=True) if r), default=1.0)
    steps = [h / least for h in spacing]
    first, second = (_Band.of(image, search) for image in (fixed, aligned))
    places = list(product(*nodes))
    out = np.full((len(places), len(MEASURES)), np.nan, np.float32)

    def measure(start: int, stop: int) -> None:
        for k in range(start, stop, _BATCH):
            some = places[k : min(k + _BATCH, stop)]
            out[k : k + len(some)] = _measure(first, second, search, steps, some)

    over_slabs(measure, len(places))
    return out.reshape((*map(len, nodes), len(MEASURES)))


def gradient_magnitude(image: NDArray[Any], spacing: Sequence[float]) -> Floats:
    """Length of the gradient, which contrasts share that have edges in common."""
    values = np.asarray(image, np.float32)
    least = min(spacing)
    square = np.zeros_like(values)
    for axis, (n, h) in enumerate(zip(values.shape, spacing, strict=True)):
        if n > 1:
            square += (np.gradient(values, axis=axis) * np.float32(least / h)) ** 2
    return np.sqrt(square)


@dataclass(frozen=True, eq=False)
class _Band:
    """An image less its mean over a window, 0 where it is not seen, with room around it.

    `energy` and `seen` are means, over a patch from each voxel on, of its square and of what is
    seen.
    """

    values: Floats
    energy: Floats
    seen: Floats
    shape: tuple[int, ...]

    @classmethod
    def of(cls, image: NDArray[Any], search: PatchSearch) -> _Band:
        """The band of an image, which may hold NaN."""
        seen = np.isfinite(image).astype(np.float32)
        values = np.where(seen > 0, image, 0).astype(np.float32)
        _even_out(values, seen, search.window)
        room = [(w + r, w + r) for w, r in zip(search.window, search.reach, strict=True)]
        values, seen = (np.pad(part, room) for part in (values, seen))
        energy, seen = (_weigh(part, search.window) for part in (values * values, seen))
        return cls(values, energy, seen, image.shape)


def _even_out(values: Floats, seen: Floats, window: Sequence[int]) -> None:
    """Take the mean over a window from an image, in place, and divide it by its deviation there.

    Dim tissue then counts as bright. It is 0 where it is not seen, before and after.
    """
    size = [w + 1 if w > 1 else 1 for w in window]
    share = uniform_filter(seen, size, mode="constant")
    np.maximum(share, _TINY, out=share)
    mean = uniform_filter(values, size, mode="constant")
    mean /= share
    values -= mean
    values *= seen
    square = uniform_filter(values * values, size, mode="constant")
    square /= share
    np.maximum(square, 0, out=square)
    mean *= _EVEN
    mean *= mean
    square += mean
    square += np.float32(_TINY)
    values /= np.sqrt(square, out=square)


def _taper(n: int) -> Floats:
    """Weights of the voxels of a patch along an axis, greatest in the middle, of sum 1."""
    x = (np.arange(n) - (n - 1) / 2) / max(n * _TAPER, 1e-9)
    weights = np.exp(-0.5 * x * x)
    return np.asarray(weights / weights.sum(), np.float32)


def _weigh(values: Floats, window: Sequence[int]) -> Floats:
    """Weighted means over the patch that begins at each voxel."""
    for axis, n in enumerate(window):
        if n > 1:
            values = correlate1d(values, _taper(n), axis, mode="constant", origin=-(n // 2))
    return values


def _measure(
    fixed: _Band,
    aligned: _Band,
    search: PatchSearch,
    steps: Sequence[float],
    places: Sequence[tuple[int, ...]],
) -> Floats:
    """The numbers of some nodes."""
    starts = _patch_starts(places, search, fixed.shape) + np.add(search.window, search.reach)
    single = (1,) * starts.shape[1]
    energy, shown = (_cut(part, starts, single) for part in (fixed.energy, fixed.seen))
    around = tuple(2 * r + 1 for r in search.reach)
    corner = starts - search.reach
    seen = _cut(aligned.seen, corner, around)
    # Of what is seen of each alone, only a part is seen of both.
    both = np.minimum(seen, shown) / np.maximum(np.maximum(seen, shown), _TINY)
    power = energy * _cut(aligned.energy, corner, around) * both
    found = _shared(fixed, aligned, search, starts) / np.sqrt(np.maximum(power, _TINY))
    found = np.where((seen >= LEAST_SEEN) & (power > _TINY), found, 0.0)
    flat = found.reshape(len(found), -1)
    fit, shift = flat[:, flat.shape[1] // 2], _distances(found, flat.argmax(axis=1), steps)
    there = np.minimum(shown, _cut(aligned.seen, starts, single)).ravel()
    known = (there >= LEAST_SEEN) & (energy.ravel() > _LEAST_TEXTURE)
    numbers = [np.where(known, part, np.nan) for part in (fit, shift)]
    return np.stack([*numbers, there], axis=1).astype(np.float32)


def _shared(
    fixed: _Band, aligned: _Band, search: PatchSearch, starts: NDArray[np.intp]
) -> NDArray[Any]:
    """Means of the product of both images over patches, at all shifts of the aligned one."""
    size = tuple(w + 2 * r for w, r in zip(search.window, search.reach, strict=True))
    axes = tuple(range(1, starts.shape[1] + 1))
    weights = reduce(np.multiply.outer, map(_taper, search.window))
    patches = np.conj(fft.rfftn(_cut(fixed.values, starts, search.window) * weights, size, axes))
    spectrum = fft.rfftn(_cut(aligned.values, starts - search.reach, size), size, axes)
    spans = tuple(slice(2 * r + 1) for r in search.reach)
    return np.asarray(fft.irfftn(patches * spectrum, size, axes)[(slice(None), *spans)])


def _patch_starts(
    places: Sequence[tuple[int, ...]], search: PatchSearch, shape: Sequence[int]
) -> NDArray[np.intp]:
    """First voxels of the patches around nodes; those at the border lie inside the image."""
    middle = np.array(places) * search.stride + np.array(search.stride) // 2
    return np.clip(middle - np.array(search.window) // 2, 0, np.subtract(shape, search.window))


def _cut(values: Floats, starts: NDArray[np.intp], shape: Sequence[int]) -> Floats:
    """Boxes of one shape from several corners."""
    return sliding_window_view(values, shape)[tuple(starts.T)]


def _distances(cross: NDArray[Any], top: NDArray[np.intp], steps: Sequence[float]) -> Floats:
    """Distances of peaks from no shift, between the shifts that were tried."""
    index = np.array(np.unravel_index(top, cross.shape[1:]))
    nodes = np.arange(len(cross))
    square = np.zeros(len(cross))
    for axis, step in enumerate(steps):
        n = cross.shape[axis + 1]
        if n == 1:
            continue
        inner = np.clip(index[axis], 1, n - 2)
        low, mid, high = (
            cross[(nodes, *(inner + d if a == axis else index[a] for a in range(len(index))))]
            for d in (-1, 0, 1)
        )
        bend = 2 * mid - low - high
        between = np.where(bend > 1e-6, (high - low) / 2 / np.maximum(bend, 1e-6), 0.0)
        between = np.where(inner == index[axis], between.clip(-0.5, 0.5), 0.0)
        square += ((index[axis] - n // 2 + between) * step) ** 2
    return np.sqrt(square)
