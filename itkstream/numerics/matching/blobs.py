"""Bright blobs: maxima over position and scale of the scale-normalised Laplacian of Gaussian.

References
----------
.. [1] T. Lindeberg, "Feature detection with automatic scale selection", International Journal of
   Computer Vision 30 (1998) 79-116, :doi:`10.1023/A:1008045108935`.
.. [2] M. Brown and D. Lowe, "Invariant features from interest point groups", British Machine
   Vision Conference 2002, :doi:`10.5244/C.16.23` (the quadratic fit).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from itkstream.geometry import Grid
from itkstream.numerics.gpu.arrays import Array
from itkstream.numerics.matching.filters import HOST, Filters, with_filters
from itkstream.numerics.matching.scale_space import (
    BlurredImage,
    blur,
    halvings,
    laplacian,
    shrink_for,
)

__all__ = ["Blobs", "around", "find_blobs", "fit_peaks"]

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
    found = with_filters(data, lambda filters: _all_blobs(data, grid, sigmas, filters))
    positions, scales, strengths = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((*positions.T[::-1], -strengths))
    blobs = Blobs(positions, scales, strengths).select(order)
    return blobs.select(_first_of_their_place(blobs, grid, sigmas))


def around(
    values: Array, index: NDArray[np.intp], filters: Filters = HOST
) -> NDArray[np.floating[Any]]:
    """The values of voxels that are not on the border, and of their neighbours, in index order.

    Shapes: `index` (m, n); returns (m, 3 ** n).
    """
    strides = np.array([math.prod(values.shape[a + 1 :]) for a in range(values.ndim)])
    steps = np.tensordot(strides, np.indices((3,) * values.ndim) - 1, 1).ravel()
    places = filters.put((index @ strides)[:, None] + steps)
    return filters.get(values.reshape(-1)[places])


def fit_peaks(near: NDArray[np.floating[Any]], index: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Fit a quadratic to the neighbourhood of each maximum.

    Shapes: `near` (m, 3 ** n), see `around`; `index` (m, n); returns `position` (m, n),
    `height` (m,).
    """
    m, n = index.shape
    unit = np.eye(n, dtype=np.intp)

    def at(offset: NDArray[np.intp]) -> Floats:
        place = np.ravel_multi_index(tuple(offset + 1), (3,) * n)
        return near[:, place].astype(np.float64)

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


def _all_blobs(
    data: NDArray[np.generic], grid: Grid, sigmas: Floats, filters: Filters
) -> list[tuple[Floats, NDArray[np.intp], Floats]]:
    """Positions, scales and strengths of the blobs of all scales."""
    found: list[tuple[Floats, NDArray[np.intp], Floats]] = []
    image = BlurredImage(filters.load(data), grid, filters=filters)
    for first, last in _same_grid(grid, sigmas):
        image = shrink_for(image, sigmas[first])
        found.extend(_blobs_on(image, sigmas, first, last))
    return found


def _blobs_on(
    image: BlurredImage, sigmas: Floats, first: int, last: int
) -> Iterator[tuple[Floats, NDArray[np.intp], Floats]]:
    """Positions, scales and strengths of the blobs of scales `first` to `last`, scale by scale."""
    filters = image.filters
    least = filters.xp.full(image.grid.shape, -np.inf, np.float32)
    stack = [least]
    for k in range(first, last + 2):
        if k <= last:
            image = blur(image, sigmas[k])
        stack.append(laplacian(image) if k <= last else least)
        if len(stack) == 3:
            index = filters.maxima(*stack)
            position, strength = fit_peaks(around(stack[1], index, filters), index)
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
