"""Cells around the nuclei of a phantom, and the spots in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from itkstream.geometry import Grid
from itkstream.phantoms.camera import plane_by_plane
from itkstream.phantoms.tissue import Scene, depths_at

__all__ = ["CellShapes", "SpotTable", "draw_spots"]

# Nuclei near a point that are asked whether it is theirs.
_NEAR = 8
# Spots beside all cells, per spot that was put into one.
_ASTRAY = 0.05


@dataclass(frozen=True, eq=False)
class CellShapes:
    """Cells: an ellipsoidal nucleus each and some µm around it, up to the half way to the next.

    `frames` (k, 3, 3) take offsets from the centres (k, 3) to unit balls; `radii` (k,) in µm.
    `rim_um` within its border, a cell has no spots.
    """

    centres: NDArray[np.float64]
    frames: NDArray[np.float64]
    radii: NDArray[np.float64]
    cytoplasm_um: float
    rim_um: float

    @classmethod
    def of(cls, scene: Scene, radii: NDArray[np.float64], sizes: tuple[float, float]) -> CellShapes:
        """Cells around the nuclei of a scene; `sizes` of cytoplasm and rim, in µm."""
        count = len(radii)
        return cls(scene.bodies.centres[:count], scene.bodies.frames[:count], radii, *sizes)

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.centres)

    def owners(self, points: NDArray[np.float64]) -> NDArray[np.int32]:
        """Number of the cell at each point (m, 3), counted from 1; 0 between cells."""
        which, inside, _ = self._nearest(points)
        return np.where(inside, which + 1, 0).astype(np.int32)

    def _nearest(self, points: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        """Index of the nearest cell at each point, whether it is within, and not in the rim."""
        near = min(_NEAR, len(self.radii))
        _, which = self._tree.query(points, near)
        which = which.reshape(len(points), near)
        offsets = points[:, None] - self.centres[which]
        local = np.einsum("mkij,mkj->mki", self.frames[which], offsets)
        beyond = (np.linalg.norm(local, axis=-1) - 1) * self.radii[which]
        first = beyond.argmin(axis=1)
        rows = np.arange(len(points))
        own = beyond[rows, first]
        beyond[rows, first] = np.inf
        # The border between two cells is where both are as far.
        to_border = np.minimum(self.cytoplasm_um - own, (beyond.min(axis=1) - own) / 2)
        return which[rows, first], own < self.cytoplasm_um, to_border >= self.rim_um

    def labels(self, grid: Grid) -> NDArray[np.int32]:
        """Number of the cell at each voxel."""
        return plane_by_plane(grid, np.int32, self.owners)

    def draw(
        self, counts: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """At most so many points for each cell, evenly within its rim, and their cells."""
        which = np.repeat(np.arange(len(counts)), counts)
        towards = rng.normal(size=(len(which), 3))
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        reach = 1 + (self.cytoplasm_um - self.rim_um) / self.radii[which]
        local = towards * (reach * rng.uniform(0, 1, len(which)) ** (1 / 3))[:, None]
        outwards = np.linalg.inv(self.frames)[which]
        points = self.centres[which] + np.einsum("mij,mj->mi", outwards, local)
        found, _, kept = self._nearest(points)
        kept &= found == which
        return points[kept], (found[kept] + 1).astype(np.int32)


@dataclass(frozen=True, eq=False)
class SpotTable:
    """Spots of one round: positions (m, 3) in its own space and in the reference's, in µm.

    `cells` (m,) are numbers of the labels, 0 between cells; `channels` (m,) count from 1, as 0 are
    the nuclei.
    """

    points: NDArray[np.float64]
    reference: NDArray[np.float64]
    cells: NDArray[np.int32]
    channels: NDArray[np.int64]


def draw_spots(
    scene: Scene, shapes: CellShapes, per_cell: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Draw the spots of one channel in tissue space, and their cells; none where a nucleus is gone.

    Half of the cells express the gene, each at a rate of its own.
    """
    count = len(shapes.radii)
    rates = 2 * per_cell * rng.lognormal(-0.125, 0.5, count) * (rng.uniform(0, 1, count) < 0.5)
    points, cells = shapes.draw(rng.poisson(rates), rng)
    low, high = shapes.centres.min(axis=0), shapes.centres.max(axis=0)
    astray = rng.uniform(low, high, (4 * int(_ASTRAY * len(points)) + 4, 3))
    between = (shapes.owners(astray) == 0) & (depths_at(astray, scene.tissue) > 0)
    astray = astray[between][: int(_ASTRAY * len(points))]
    shown = np.r_[True, scene.bodies.brightness[:count] > 0]
    points, cells = points[shown[cells]], cells[shown[cells]]
    return np.concatenate([points, astray]), np.r_[cells, np.zeros(len(astray), np.int32)]
