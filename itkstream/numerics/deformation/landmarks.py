"""Landmarks in the deformable descent: soft constraints beside what the images say.

A landmark asks the displacement at its fixed point to lead to its moving point. Like a voxel, it
adds a force and a Gauss-Newton matrix, to the nodes around it with Gaussian weights; one solution
per node then weighs it against the images. Where these show nothing, landmarks alone decide, each
node by those around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import AffineTransform, Grid, Landmarks, Slices
from itkstream.numerics.lift import lift_vectors

__all__ = ["WIDTH", "LandmarkPull", "Targets", "expect_moves"]

Floats = NDArray[np.float64]

WEIGHT = 0.1
"""Matrix of a landmark that was placed within 1 unit of length, in squared correlation per unit^2.

Well textured voxels of edge 1 have about as much, 0.05 to 0.1 at nuclei: a landmark placed as
exactly as a voxel is large and the image around it then have half of the say each.
"""

WIDTH = 3.5
"""Width of a landmark's Gaussian in voxels of the level: wide on coarse levels, where it reaches
from landmark to landmark, and narrow on fine ones, where what is left of a miss must not pull at
what the images show beside it.

tests/benchmarks/bare_tissue.py, 72 x 60 x 48 voxels, two seeds: errors in tissue without texture
and in the textured tissue beside it, in voxels, with sixty landmarks in the former placed within
0.5 voxel; and with sixty in all of the tissue placed within 1 voxel, as they are by default.

======  =====  ===========  ===========  ===========  ===========
WEIGHT  WIDTH  bare         textured     bare         textured
======  =====  ===========  ===========  ===========  ===========
no landmarks   1.42, 1.37   0.17, 0.17   1.42, 1.37   0.17, 0.17
-------------  -----------  -----------  -----------  -----------
0.03    3.5    0.44, 0.48   0.15, 0.16   1.20, 0.88   0.18, 0.17
0.1     3.5    0.38, 0.44   0.16, 0.17   1.10, 0.69   0.22, 0.22
0.3     3.5    0.38, 0.44   0.19, 0.19   1.04, 0.63   0.28, 0.29
0.1     2.5    0.38, 0.44   0.17, 0.18   1.13, 0.73   0.22, 0.22
0.1     5      0.40, 0.46   0.20, 0.20   1.07, 0.64   0.24, 0.24
======  =====  ===========  ===========  ===========  ===========
"""

REACH = 3.0
"""Standard deviations beyond which a landmark adds nothing: exp(-4.5) is 1 %."""


@dataclass(frozen=True, eq=False)
class Targets:
    """Landmarks as points and the displacements wanted there, along the axes of a fixed lattice.

    Shapes: `points` (m, 3); `moves` (m, 3); `sigmas` (m,); `trust` (m,).
    """

    points: Floats
    moves: Floats
    sigmas: Floats
    trust: Floats

    @classmethod
    def of(cls, landmarks: Landmarks, grid: Grid, affine: Floats) -> Targets:
        """Find the displacements in front of an affine that landmarks in a fixed image ask for."""
        index = grid.to_index(landmarks.fixed)
        inside = ((index >= -0.5) & (index <= np.subtract(grid.shape, 0.5))).all(axis=1)
        kept = landmarks.select(inside).placed_within(max(grid.spacing))
        moves = AffineTransform(affine).inverse().apply(kept.moving) - kept.fixed
        direction = np.asarray(grid.direction)
        trust = np.ones(len(kept)) if kept.trust is None else kept.trust
        assert kept.sigma_um is not None
        return cls(
            lift_vectors(index[inside] * grid.spacing),
            lift_vectors(moves @ direction),
            kept.sigma_um,
            trust,
        )

    def pull(self, nodes: Grid, voxel: float) -> LandmarkPull | None:
        """Their pull on the nodes of a level with voxels of some length; None for no landmark."""
        if not len(self.points):
            return None
        # Between nodes a narrower Gaussian would be lost.
        long = [h for h, n in zip(nodes.spacing, nodes.shape, strict=True) if n > 1]
        width = max(WIDTH * voxel, *long) if long else WIDTH * voxel
        # A coarse level places nothing better than to half of its voxels.
        weights = WEIGHT * self.trust / (self.sigmas**2 + (voxel / 2) ** 2)
        return LandmarkPull(nodes.to_index(self.points), self.moves, weights, nodes, width)


@dataclass(frozen=True, eq=False)
class LandmarkPull:
    """The part of landmarks in the normal matrices of a level.

    Shapes: `index` (m, 3), in nodes; `moves` (m, 3), the displacements wanted; `weights` (m,).
    """

    index: Floats
    moves: Floats
    weights: Floats
    nodes: Grid
    width: float

    def penalty(self, u: NDArray[np.float32]) -> float:
        """Mean squared miss of the nodes, in the unit of squared correlation."""
        miss = self.moves - _at(u, self.index)[0]
        sizes = np.einsum("mc,mc->m", miss, miss) * self.weights * self._shares
        return float(sizes.sum() / math.prod(self.nodes.shape))

    def add(self, normal: NDArray[np.float32], u: NDArray[np.float32]) -> None:
        """Add forces, and matrices if there are any, to those of the images, in place.

        Shapes: `normal` nodes + (3 or 9,); `u` nodes + (3,).
        """
        there, slope = _at(u, self.index)
        jacobian = np.eye(3) + slope / np.asarray(self.nodes.spacing)
        miss = self.moves - there
        # The step acts first, then u: its effect at a landmark is the Jacobian of the map there.
        force = np.einsum("mab,ma->mb", jacobian, miss)
        matrix = np.einsum("mab,mac->mbc", jacobian, jacobian)
        parts = np.stack([*force.T, *(matrix[:, a, b] for a, b in _ELEMENTS)], axis=1)
        parts = (parts * self.weights[:, None])[:, : normal.shape[-1]].astype(np.float32)
        for (box, share), part in zip(self._footprints(), parts, strict=True):
            normal[box] += share[..., None] * part

    def _footprints(self) -> Iterator[tuple[Slices, NDArray[np.float32]]]:
        """The nodes around each landmark, and its shares there."""
        for place in self.index:
            box, share = self._footprint(place)
            yield box, share / self._crowding[box]

    @cached_property
    def _shares(self) -> Floats:
        """Sum of the shares of each landmark, which the displacement does not change."""
        return np.array([share.sum(dtype=np.float64) for _, share in self._footprints()])

    @cached_property
    def _crowding(self) -> NDArray[np.float32]:
        """Landmarks at each node, at least 1: together they have the say of one.

        Else many of them would outvote the images around them.
        """
        total = np.zeros(self.nodes.shape, np.float32)
        largest = max(float(self.weights.max()), 1e-30)
        for place, weight in zip(self.index, self.weights, strict=True):
            box, share = self._footprint(place)
            total[box] += np.float32(weight / largest) * share
        return np.maximum(total, np.float32(1.0))

    def _footprint(self, place: Floats) -> tuple[Slices, NDArray[np.float32]]:
        box, shares = [], []
        for x, n, h in zip(place, self.nodes.shape, self.nodes.spacing, strict=True):
            reach = REACH * self.width / h
            first = max(0, math.ceil(x - reach))
            last = min(n, math.floor(x + reach) + 1)
            box.append(slice(first, last))
            away = (np.arange(first, last) - x) * h / self.width
            shares.append(np.exp(-0.5 * away**2))
        product = shares[0][:, None, None] * shares[1][:, None] * shares[2]
        return tuple(box), product.astype(np.float32)


# Rows and columns of a matrix in the order in which forces are collected.
_ELEMENTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def _at(u: NDArray[Any], index: Floats) -> tuple[Floats, Floats]:
    """A field between its nodes and its slopes per node; beyond the outer ones it goes on so.

    Shapes: `u` (a, b, c, 3); `index` (m, 3); returns (m, 3) and (m, 3, 3), components first.
    """
    last = np.maximum(np.subtract(u.shape[:3], 2), 0)
    low = np.clip(np.floor(index), 0, last).astype(np.intp)
    beyond = np.minimum(low + 1, np.subtract(u.shape[:3], 1))
    part = np.where(beyond > low, index - low, 0.0)
    value, slope = np.zeros((len(index), 3)), np.zeros((len(index), 3, 3))
    for corner in np.ndindex(2, 2, 2):
        at = np.where(corner, beyond, low)
        shares = np.where(corner, part, 1.0 - part)
        vectors = u[at[:, 0], at[:, 1], at[:, 2]].astype(np.float64)
        value += shares.prod(axis=1)[:, None] * vectors
        for axis in range(3):
            others = np.delete(shares, axis, axis=1).prod(axis=1)
            sign = np.where(beyond[:, axis] > low[:, axis], 2.0 * corner[axis] - 1.0, 0.0)
            slope[:, :, axis] += (others * sign)[:, None] * vectors
    return value, slope


def expect_moves(normal: NDArray[np.float32], moves: NDArray[np.float32]) -> None:
    """Replace the forces of normal matrices, in place, by those that lead to given moves.

    The matrices stay: they say how sure the images are of each place.

    Shapes: `normal` nodes + (9,); `moves` nodes + (3,).
    """
    normal[..., :3] = normal[..., 3:6] * moves
    for element, (a, b) in enumerate(_ELEMENTS[3:], 6):
        normal[..., a] += normal[..., element] * moves[..., b]
        normal[..., b] += normal[..., element] * moves[..., a]
