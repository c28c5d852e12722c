"""Bright blobs: maxima over position and scale of the scale-normalised Laplacian of Gaussian.

References
----------
.. [1] T. Lindeberg, "Feature detection with automatic scale selection", International Journal of
   Computer Vision 30 (1998) 79-116, :doi:`10.1023/A:1008045108935`.
.. [2] M. Brown and D. Lowe, "Invariant features from interest point groups", British Machine
   Vision Conference 2002, :doi:`10.5244/C.16.23` (the quadratic fit).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from itkstream.geometry import Grid
from itkstream.numerics.compiling import compiled, helper
from itkstream.numerics.matching.scale_space import (
    BlurredImage,
    blur,
    halvings,
    laplacian,
    neighbours,
    rows_of,
    shrink_for,
)
from itkstream.numerics.threads import over_slabs

__all__ = ["Blobs", "find_blobs", "find_maxima", "fit_peaks"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Blobs:
    """Blobs in an image.

    Parameters
    ----------
    positions : ndarray, (m, n)
        Centres in physical units.
    scales : ndarray, (m,)
        Which of the scales, counted from 0.
    strengths : ndarray, (m,)
        Contrast of the blob against its surroundings, in the image's intensity unit.
    """

    positions: Floats
    scales: NDArray[np.intp]
    strengths: Floats

    def select(self, which: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Blobs:
        """Some of the blobs."""
        return Blobs(self.positions[which], self.scales[which], self.strengths[which])


def find_blobs(data: NDArray[np.generic], grid: Grid, sigmas: Floats) -> Blobs:
    """Find bright blobs of several sizes.

    A blob is a voxel whose scale-normalised Laplacian exceeds that of its neighbours in space and
    in scale; its position is then fitted between voxels. Large scales are computed on a halved
    image.

    Shapes: `sigmas` (k, n).
    """
    found: list[tuple[Floats, NDArray[np.intp], Floats]] = []
    image = BlurredImage(data, grid)
    for first, last in _same_grid(grid, sigmas):
        image = shrink_for(image, sigmas[first])
        found.extend(_blobs_on(image, sigmas, first, last))
    positions, scales, strengths = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((*positions.T[::-1], -strengths))
    blobs = Blobs(positions, scales, strengths).select(order)
    return blobs.select(_first_of_their_place(blobs, grid, sigmas))


def find_maxima(
    below: NDArray[np.float32], here: NDArray[np.float32], above: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Positive voxels larger than all their neighbours in space and scale.

    Of equal neighbours the first in index order counts, so that a peak between two voxels is
    found, and once.

    Returns (m, n).
    """
    if min(here.shape) < 3:
        return np.empty((0, here.ndim), np.intp)
    keep = np.zeros(here.shape, bool)
    scales = tuple(rows_of(np.ascontiguousarray(values)) for values in (below, here, above))
    kept = rows_of(keep)
    over_slabs(lambda a, b: _mark_maxima(scales, kept, a, b), here.shape[0] - 2)
    return np.stack(np.unravel_index(np.flatnonzero(keep), keep.shape), axis=-1)


def fit_peaks(values: NDArray[np.float32], index: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Fit a quadratic to the neighbourhood of each maximum.

    Shapes: `index` (m, n); returns `position` (m, n), `height` (m,).
    """
    m, n = index.shape
    unit = np.eye(n, dtype=np.intp)

    def at(offset: NDArray[np.intp]) -> Floats:
        return values[tuple((index + offset).T)].astype(np.float64)

    centre = at(np.zeros(n, np.intp))
    gradient, hessian = np.empty((m, n)), np.empty((m, n, n))
    for a in range(n):
        plus, minus = at(unit[a]), at(-unit[a])
        gradient[:, a] = (plus - minus) / 2
        hessian[:, a, a] = plus + minus - 2 * centre
        for b in range(a):
            mixed = at(unit[a] + unit[b]) + at(-unit[a] - unit[b])
            mixed -= at(unit[a] - unit[b]) + at(unit[b] - unit[a])
            hessian[:, a, b] = hessian[:, b, a] = mixed / 4
    # A saddle or a ridge has no peak to fit: such a point stays on its voxel.
    curved = np.linalg.eigvalsh(hessian)
    sharp = curved[:, -1] < 1e-3 * curved[:, 0]
    hessian[~sharp], gradient[~sharp] = -np.eye(n), 0
    shift = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
    shift = np.clip(shift, -0.5, 0.5)
    height = centre + 0.5 * np.einsum("ma,ma->m", gradient, shift)
    return index + shift, height


def _same_grid(grid: Grid, sigmas: Floats) -> Iterator[tuple[int, int]]:
    """First and last scale of each run of scales that share a grid."""
    for _, run in groupby(range(len(sigmas)), key=lambda k: halvings(grid, sigmas[k])):
        members = list(run)
        yield members[0], members[-1]


def _blobs_on(
    image: BlurredImage, sigmas: Floats, first: int, last: int
) -> Iterator[tuple[Floats, NDArray[np.intp], Floats]]:
    """Positions, scales and strengths of the blobs of scales `first` to `last`, scale by scale."""
    least = np.full(image.grid.shape, -np.inf, np.float32)
    stack = [least]
    for k in range(first, last + 2):
        if k <= last:
            image = blur(image, sigmas[k])
        stack.append(laplacian(image) if k <= last else least)
        if len(stack) == 3:
            index = find_maxima(*stack)
            position, strength = fit_peaks(stack[1], index)
            yield image.grid.to_physical(position), np.full(len(index), k - 1), strength
            stack.pop(0)


def _first_of_their_place(blobs: Blobs, grid: Grid, sigmas: Floats) -> NDArray[np.bool_]:
    """Blobs, the strongest first, that have none kept before them within half their radius."""
    kept = np.ones(len(blobs.scales), bool)
    if not kept.size:
        return kept
    # Blobs are round in units of their width along each array axis.
    places = grid.to_index(blobs.positions) * grid.spacing / sigmas[0]
    sizes = np.exp(np.log(sigmas / sigmas[0]).mean(axis=1))
    reach = 0.5 * np.sqrt(grid.ndim) * sizes[blobs.scales]
    for k, near in enumerate(KDTree(places).query_ball_point(places, reach)):
        kept[k] = not any(j < k and kept[j] for j in near)
    return kept


@compiled
def _mark_maxima(scales, keep, start, stop):  # type: ignore[no-untyped-def]
    """Those that no face neighbour exceeds, which are few, are compared with all the others."""
    values = scales[1]
    edge = min(1, values.shape[1] - 1)  # 0 where a plane lies row by row
    for i in range(start + 1, stop + 1):
        for j in range(edge, values.shape[1] - edge):
            row, (above, below), (front, back), (left, right) = neighbours(values, i, j, edge)
            found = keep[i, j, 1:-1]
            for k in range(row.shape[0]):
                here = row[k]
                largest = (here > above[k]) & (here >= below[k]) & (here > left[k])
                largest &= (here >= right[k]) & (here > 0)
                largest &= (edge == 0) | ((here > front[k]) & (here >= back[k]))
                found[k] = largest
            for k in range(row.shape[0]):
                if found[k]:
                    found[k] = _exceeds_all(scales, (i, j, k + 1), edge)


@helper
def _exceeds_all(scales, place, edge):  # type: ignore[no-untyped-def]
    """Whether a voxel exceeds all its neighbours; of those that follow in order, none is larger."""
    below, values, above = scales
    i, j, k = place
    here = values[i, j, k]
    for a in range(i - 1, i + 2):
        for b in range(j - edge, j + edge + 1):
            for c in range(k - 1, k + 2):
                if not (here > below[a, b, c] and here >= above[a, b, c]):
                    return False
                is_before = (a, b, c) < (i, j, k)
                if here < values[a, b, c] or (is_before and here == values[a, b, c]):
                    return False
    return True
