"""Residual shifts of patches: how an aligned image fits if it is moved once more, here or there.

Around each node of a lattice a patch of the fixed image is compared with the aligned one at every
shift within a reach, by normalised correlation of what is left of both after their means over a
window. A descent looks no further than its windows; the reach is wider. What a right place has is a
lone peak at no shift; where content is another, far shifts fit as well as none.
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

MEASURES = ("fit", "best", "shift", "far", "spread", "twin", "blur", "seen")
"""Numbers that `measure_patches` finds at each node.

``fit``: correlation at no shift; ``best``: the greatest; ``shift``: how far away that is, in
voxels; ``far``: the greatest, and ``spread`` the deviation, at shifts of three voxels and more;
``twin``: how well the patch fits the fixed image that far away; ``blur``: the shift, in voxels,
that costs as much correlation as noise does; ``seen``: the share of the patch that counts in both
images.
"""

LEAST_SEEN = 0.25
"""A patch with a smaller share of its voxels in sight tells nothing."""

_WINDOW, _STRIDE = 16, 8
_NEAR = 3.0
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
    lags = _Lags.of(search, spacing)
    first, second = (_Band.of(image, search) for image in (fixed, aligned))
    places = list(product(*nodes))
    out = np.full((len(places), len(MEASURES)), np.nan, np.float32)

    def measure(start: int, stop: int) -> None:
        for k in range(start, stop, _BATCH):
            some = places[k : min(k + _BATCH, stop)]
            out[k : k + len(some)] = _measure(first, second, search, lags, some)

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


@dataclass(frozen=True, eq=False)
class _Lags:
    """All shifts within a reach: how far each leads, in the smallest spacing."""

    distance: Floats
    steps: tuple[float, ...]

    @classmethod
    def of(cls, search: PatchSearch, spacing: Sequence[float]) -> _Lags:
        # An axis of one plane has no shifts.
        least = min((h for h, r in zip(spacing, search.reach, strict=True) if r), default=1.0)
        steps = tuple(h / least for h in spacing)
        along = [np.arange(-r, r + 1) * s for r, s in zip(search.reach, steps, strict=True)]
        square = sum(x**2 for x in np.meshgrid(*along, indexing="ij", sparse=True))
        return cls(np.sqrt(square).astype(np.float32), steps)


def _measure(
    fixed: _Band,
    aligned: _Band,
    search: PatchSearch,
    lags: _Lags,
    places: Sequence[tuple[int, ...]],
) -> Floats:
    """The numbers of some nodes."""
    size = tuple(w + 2 * r for w, r in zip(search.window, search.reach, strict=True))
    starts = _patch_starts(places, search, fixed.shape) + np.add(search.window, search.reach)
    weights = reduce(np.multiply.outer, map(_taper, search.window))
    patches = _cut(fixed.values, starts, search.window) * weights
    axes = tuple(range(1, starts.shape[1] + 1))
    across = np.conj(fft.rfftn(patches, size, axes))
    energy = _cut(fixed.energy, starts, (1,) * len(size))
    shown = _cut(fixed.seen, starts, (1,) * len(size))
    count = 1.0 / float((weights**2).sum())

    def correlate(other: _Band) -> Floats:
        corner = starts - search.reach
        spectrum = across * fft.rfftn(_cut(other.values, corner, size), size, axes)
        spans = tuple(slice(2 * r + 1) for r in search.reach)
        shared = fft.irfftn(spectrum, size, axes)[(slice(None), *spans)]
        around = tuple(2 * r + 1 for r in search.reach)
        seen = _cut(other.seen, corner, around)
        # Of what is seen of each alone, only a part is seen of both.
        both = np.minimum(seen, shown) / np.maximum(np.maximum(seen, shown), _TINY)
        power = energy * _cut(other.energy, corner, around) * both
        found = shared / np.sqrt(np.maximum(power, _TINY))
        return np.where((seen >= LEAST_SEEN) & (power > _TINY), found, 0.0)

    numbers = _judge(correlate(aligned), correlate(fixed), lags, count)
    there = np.minimum(shown, _cut(aligned.seen, starts, (1,) * len(size)))
    known = (there.ravel() >= LEAST_SEEN) & (energy.ravel() > _LEAST_TEXTURE)
    numbers[~known] = np.nan
    return np.column_stack([numbers, there.ravel()]).astype(np.float32)


def _patch_starts(
    places: Sequence[tuple[int, ...]], search: PatchSearch, shape: Sequence[int]
) -> NDArray[np.intp]:
    """First voxels of the patches around nodes; those at the border lie inside the image."""
    middle = np.array(places) * search.stride + np.array(search.stride) // 2
    return np.clip(middle - np.array(search.window) // 2, 0, np.subtract(shape, search.window))


def _cut(values: Floats, starts: NDArray[np.intp], shape: Sequence[int]) -> Floats:
    """Boxes of one shape from several corners."""
    return sliding_window_view(values, shape)[tuple(starts.T)]


def _judge(cross: Floats, own: Floats, lags: _Lags, count: float) -> Floats:
    """The numbers of `MEASURES` from correlations of patches at all shifts, nodes first."""
    nodes = len(cross)
    flat, far = cross.reshape(nodes, -1), lags.distance.ravel() >= _NEAR
    middle = flat.shape[1] // 2
    fit = flat[:, middle]
    top = flat.argmax(axis=1)
    best = flat[np.arange(nodes), top]
    shift = _distances(cross, top, lags)
    if far.any():
        beyond, spread = flat[:, far].max(axis=1), flat[:, far].std(axis=1)
        twin = own.reshape(nodes, -1)[:, far].max(axis=1)
    else:
        beyond, spread, twin = (np.zeros(nodes) for _ in range(3))
    clear = np.maximum(fit, 0.05)
    blur = np.sqrt((1 - clear**2).clip(0) / clear**2 / count * _widths(own, lags))
    return np.stack([fit, best, shift, beyond, spread, twin, blur], axis=1)


def _distances(cross: Floats, top: NDArray[np.intp], lags: _Lags) -> Floats:
    """Distances of peaks from no shift, between the shifts that were tried."""
    index = np.array(np.unravel_index(top, cross.shape[1:]))
    nodes = np.arange(len(cross))
    square = np.zeros(len(cross))
    for axis, step in enumerate(lags.steps):
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


def _widths(own: Floats, lags: _Lags) -> NDArray[np.float64]:
    """Sum over axes of the inverse curvature of a patch's correlation with itself."""
    middle = tuple(n // 2 for n in own.shape[1:])
    total = np.zeros(len(own))
    for axis, step in enumerate(lags.steps):
        if own.shape[axis + 1] > 1:
            near = [
                own[(slice(None), *(m + d if a == axis else m for a, m in enumerate(middle)))]
                for d in (-1, 1)
            ]
            total += step**2 / np.maximum(2 - near[0] - near[1], 0.01)
    return total
