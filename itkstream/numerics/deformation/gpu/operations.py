"""The operations of a descent on a GPU: arrays stay there from the first level to the last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.numerics.deformation.gpu.correlation import DeviceCorrelation
from itkstream.numerics.deformation.gpu.smoothing import CosineSmoother
from itkstream.numerics.deformation.kernels import SmoothingKernel, affine_trend, smooth_field
from itkstream.numerics.deformation.mind import PatchPairs
from itkstream.numerics.deformation.operations import Likeness
from itkstream.numerics.gpu.arrays import DeviceArrays
from itkstream.numerics.gpu.backend import Backend
from itkstream.numerics.gpu.filters import filter_axis
from itkstream.numerics.gpu.sampling import Placement, launch_vectors
from itkstream.numerics.sampling.folds import FoldRepair, repair_folds
from itkstream.numerics.sampling.pyramid import filters

__all__ = ["DeviceOperations"]


class DeviceOperations(DeviceArrays):
    """As `itkstream.numerics.deformation.operations.Operations`, on a device."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        # Of a level: one for forces and one for fields, and some for shorter steps.
        self._smoother = lru_cache(maxsize=4)(partial(CosineSmoother.of, xp=backend.xp))

    def shrink(
        self, image: Any, grid: Grid, factors: Sequence[int], sigma: float
    ) -> tuple[Any, Grid]:
        """As `pyramid.shrink`; voxels without a value are left out of every average."""
        xp = self.xp
        groups, taps = filters(image, grid, factors, sigma)
        if all(len(t) == 1 for t in taps):
            return image, grid
        present = xp.isfinite(image)
        if present.all():
            return self._filter(image, groups, taps), grid.shrink(groups)
        shares = self._filter(present.astype(np.float32), groups, taps)
        sums = self._filter(xp.where(present, image, np.float32(0)), groups, taps)
        means = sums / xp.maximum(shares, np.float32(1e-6))
        return xp.where(shares >= 0.5, means, np.float32(np.nan)), grid.shrink(groups)

    def resize(self, field: Any, from_grid: Grid, to_grid: Grid) -> Any:
        """As `fields.resize_field`."""
        index = (from_grid.inverse_matrix @ to_grid.matrix)[:3]
        none = self.xp.empty((0, 0, 0, 3), np.float32)
        source = self.xp.ascontiguousarray(field)
        return self._sample(source, index, np.eye(3), none, to_grid.shape)

    def correlation(
        self, fixed: Any, moving: Any, radius: tuple[int, ...], beside_others: bool
    ) -> Likeness:
        """As `Operations.correlation`."""
        return DeviceCorrelation(self.backend, (fixed, moving), radius, beside_others)

    def self_similarity(
        self, fixed: Any, moving: Any, pairs: PatchPairs, radius: tuple[int, ...]
    ) -> Likeness:
        """Refuse it: descriptors are compared on the processors only."""
        raise InputError(
            "self-similarity (similarity='mind') is computed on the processors: choose "
            "engine='cpu' or 'auto'"
        )

    def warp(
        self,
        moving: Any,
        maps: tuple[NDArray[np.float64], NDArray[np.float64]],
        nodes: Any,
        stride: tuple[int, ...],
        out: Any,
    ) -> None:
        """As `force.warp_through_nodes`."""
        self.backend.launch(
            "warp_nodes",
            out.shape[::-1],
            *(moving, *moving.shape, self._maps(*maps), nodes, *nodes.shape[:3]),
            *(*map(int, stride), out, *out.shape),
        )

    def smooth(
        self,
        field: Any,
        spacing: tuple[float, ...],
        kernel: SmoothingKernel,
        lattice_spacing: tuple[float, ...],
        spare_affine: bool = False,
        overwrite: bool = False,
    ) -> Any:
        """As `kernels.smooth_field`, with a result of its own.

        The grad-div term is left to the processors.
        """
        if kernel.is_identity:
            return field.copy()
        if kernel.b:
            here = self.get(field)
            return self.put(smooth_field(here, spacing, kernel, lattice_spacing, spare_affine))
        smoother = self._smoother(field.shape[:3], spacing, kernel, lattice_spacing)
        if not spare_affine:
            return smoother.smooth(field)
        trend = affine_trend(field, self.xp)
        return trend + smoother.smooth(field - trend)

    def solve(self, normal: Any, damping: float) -> Any:
        """As `force.solve_newton`."""
        small = self.xp.empty((*normal.shape[:3], 3), np.float32)
        nodes = math.prod(normal.shape[:3])
        self.backend.launch("solve_newton", (nodes,), normal, nodes, float(damping), small)
        return small

    def squares(self, field: Any) -> Any:
        """As `Operations.squares`: CuPy's einsum would multiply as many matrices as vectors."""
        x, y, z = (field[..., axis] for axis in range(3))
        return x * x + y * y + z * z

    def compose(self, first: Any, second: Any, grid: Grid) -> Any:
        """As `fields.compose`."""
        to_voxels = grid.inverse_matrix[:3, :3]
        out = self._sample(second, np.eye(3, 4), to_voxels, first, grid.shape)
        out += first
        return out

    def repair(self, field: Any, grid: Grid, minimum: float) -> FoldRepair:
        """As `folds.repair_folds`: folds are sought here, and repaired on the processors."""
        if grid.ndim == 3 and self._is_sound(field, grid, minimum):
            return FoldRepair(field, 0, 0, 0)
        found = repair_folds(self.get(field), grid, minimum)
        return replace(found, displacement=self.put(found.displacement))

    def _is_sound(self, field: Any, grid: Grid, minimum: float) -> bool:
        """Whether no voxel folds, nor has a NaN."""
        out = self.xp.empty(grid.shape, np.float32)
        to_index = self.put(np.ascontiguousarray(grid.inverse_matrix[:3, :3]))
        shape = grid.shape
        self.backend.launch("determinants", shape[::-1], field, *shape, to_index, out)
        return bool((out > minimum).all())

    def _sample(
        self,
        field: Any,
        index: NDArray[np.float64],
        vector: NDArray[np.float64],
        moves: Any,
        shape: tuple[int, ...],
    ) -> Any:
        """A field at mapped positions of a lattice."""
        out = self.xp.empty((*shape, 3), np.float32)
        maps = (*index.ravel().tolist(), 0.0, 0.0, 0.0), tuple(vector.ravel().tolist())
        placement = Placement((0, 0, 0), field.shape[:3], *maps, moves)
        launch_vectors(self.backend, field, placement, out)
        return out

    def _maps(self, index: NDArray[np.float64], vector: NDArray[np.float64]) -> Any:
        """The maps of indices and vectors as kernels take them."""
        return self.put(np.concatenate([index.ravel(), vector.ravel()]).astype(np.float64))

    def _filter(
        self, image: Any, groups: Sequence[int], taps: Sequence[NDArray[np.float32]]
    ) -> Any:
        """Convolve axis by axis and keep one sample per group."""
        for axis, (factor, weights) in enumerate(zip(groups, taps, strict=True)):
            if len(weights) > 1:
                image = filter_axis(self.backend, image, axis, weights, factor)
        return image
