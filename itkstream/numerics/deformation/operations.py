"""The array operations of a descent: what differs from one engine to another, and nothing else.

`descend` decides; an engine holds the arrays, where it computes with them, and does what is heavy.
All arrays of a descent come from one engine: those of `HostOperations` are numpy's, on the
processors, by the compiled functions of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Grid
from itkstream.numerics.deformation.correlation import LocalCorrelation
from itkstream.numerics.deformation.force import solve_newton, warp_through_nodes
from itkstream.numerics.deformation.kernels import SmoothingKernel, smooth_field
from itkstream.numerics.deformation.mind import PatchPairs, SelfSimilarity
from itkstream.numerics.gpu.arrays import Array, Arrays, HostArrays
from itkstream.numerics.sampling.fields import compose, resize_field
from itkstream.numerics.sampling.folds import FoldRepair, repair_folds
from itkstream.numerics.sampling.pyramid import shrink

__all__ = ["HOST", "HostOperations", "Likeness", "Operations"]


class Likeness(Protocol):
    """Measure of how alike a fixed image and a warped one are, and the way they grow more so."""

    def compare(self, warped: Array) -> float:
        """Measure it: 1 for the same image, 0 where nothing can be compared."""

    def collect(self, spacing: tuple[float, ...], stride: tuple[int, ...], out: Array) -> None:
        """Mean force of the voxels of each node, and Gauss-Newton matrix if `out` has room."""


class Operations(Arrays, Protocol):
    """Operations of an engine for a descent, on float32 arrays of three axes and fields of vectors.

    Shapes: images (x, y, z); fields (a, b, c, 3); normal matrices (a, b, c, 9).
    """

    def shrink(
        self, image: Array, grid: Grid, factors: Sequence[int], sigma: float
    ) -> tuple[Array, Grid]:
        """Smooth an image and average its voxels in groups, as `pyramid.shrink` does."""

    def resize(self, field: Array, from_grid: Grid, to_grid: Grid) -> Array:
        """Sample a field on another lattice in the same space."""

    def correlation(
        self, fixed: Array, moving: Array, radius: tuple[int, ...], beside_others: bool
    ) -> Likeness:
        """The squared local correlation of two images, see `LocalCorrelation`."""

    def self_similarity(
        self, fixed: Array, moving: Array, pairs: PatchPairs, radius: tuple[int, ...]
    ) -> Likeness:
        """The likeness of two images' descriptors, see `SelfSimilarity`."""

    def warp(
        self,
        moving: Array,
        maps: tuple[NDArray[np.float64], NDArray[np.float64]],
        nodes: Array,
        stride: tuple[int, ...],
        out: Array,
    ) -> None:
        """Sample an image through a field on nodes, see `warp_through_nodes`."""

    def smooth(
        self,
        field: Array,
        spacing: tuple[float, ...],
        kernel: SmoothingKernel,
        lattice_spacing: tuple[float, ...],
        spare_affine: bool = False,
        overwrite: bool = False,
    ) -> Array:
        """Smooth a field, over which the result may be written, see `smooth_field`."""

    def solve(self, normal: Array, damping: float) -> Array:
        """Solve ``(H + damping) v = g`` at each node; a field."""

    def squares(self, field: Array) -> Array:
        """Squared lengths of the vectors of a field."""

    def compose(self, first: Array, second: Array, grid: Grid) -> Array:
        """The displacement of the first field followed by the second."""

    def repair(self, field: Array, grid: Grid, minimum: float) -> FoldRepair:
        """Smooth a field where it folds, see `repair_folds`; it stays an array of the engine."""


class HostOperations(HostArrays):
    """The operations of the processors, on numpy arrays."""

    def shrink(
        self, image: NDArray[np.float32], grid: Grid, factors: Sequence[int], sigma: float
    ) -> tuple[NDArray[np.float32], Grid]:
        """As `Operations.shrink`."""
        return shrink(image, grid, factors, sigma)

    def resize(
        self, field: NDArray[np.float32], from_grid: Grid, to_grid: Grid
    ) -> NDArray[np.float32]:
        """As `Operations.resize`."""
        return resize_field(field, from_grid, to_grid)

    def correlation(
        self,
        fixed: NDArray[np.float32],
        moving: NDArray[np.float32],
        radius: tuple[int, ...],
        beside_others: bool,
    ) -> Likeness:
        """As `Operations.correlation`."""
        return LocalCorrelation(fixed, moving, radius, beside_others)

    def self_similarity(
        self,
        fixed: NDArray[np.float32],
        moving: NDArray[np.float32],
        pairs: PatchPairs,
        radius: tuple[int, ...],
    ) -> Likeness:
        """As `Operations.self_similarity`."""
        return SelfSimilarity(fixed, moving, pairs, radius)

    def warp(
        self,
        moving: NDArray[np.float32],
        maps: tuple[NDArray[np.float64], NDArray[np.float64]],
        nodes: NDArray[np.float32],
        stride: tuple[int, ...],
        out: NDArray[np.float32],
    ) -> None:
        """As `Operations.warp`."""
        warp_through_nodes(moving, *maps, nodes, stride, out)

    def smooth(
        self,
        field: NDArray[np.float32],
        spacing: tuple[float, ...],
        kernel: SmoothingKernel,
        lattice_spacing: tuple[float, ...],
        spare_affine: bool = False,
        overwrite: bool = False,
    ) -> NDArray[np.float32]:
        """As `Operations.smooth`."""
        return smooth_field(field, spacing, kernel, lattice_spacing, spare_affine, overwrite)

    def solve(self, normal: NDArray[np.float32], damping: float) -> NDArray[np.float32]:
        """As `Operations.solve`."""
        small = np.empty((*normal.shape[:-1], 3), np.float32)
        solve_newton(normal, damping, small)
        return small

    def squares(self, field: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `Operations.squares`."""
        return np.asarray(np.einsum("...c,...c->...", field, field))

    def compose(
        self, first: NDArray[np.float32], second: NDArray[np.float32], grid: Grid
    ) -> NDArray[np.float32]:
        """As `Operations.compose`."""
        return compose(first, second, grid)

    def repair(self, field: NDArray[np.float32], grid: Grid, minimum: float) -> FoldRepair:
        """As `Operations.repair`."""
        return repair_folds(field, grid, minimum)


HOST = HostOperations()
"""The engine of a descent that is told no other."""
