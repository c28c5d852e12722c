"""One block at a time: pure functions from arrays and grids to arrays.

The public doors map these over many blocks, or call them once with the whole image as the one
block; there is no other implementation of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    ChannelPair,
    DisplacementField,
    Grid,
    Image,
    Landmarks,
    Transform,
)
from itkstream.numerics.deformation.continuation import Beyond
from itkstream.numerics.deformation.descent import (
    Channel,
    Descent,
    Frame,
    LevelReport,
    node_factors,
)
from itkstream.numerics.deformation.gpu.descent import descend_on_engine
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.itk.bspline import descend_bspline
from itkstream.numerics.itk.demons import descend_demons
from itkstream.numerics.itk.settings import BsplineSettings, DeformSettings, DemonsSettings
from itkstream.numerics.sampling.fields import Places, pick_vectors
from itkstream.numerics.sampling.mapping import GridMap, map_on

__all__ = ["BARREN", "DeformEstimate", "deform_block"]


# The settings say which engine they are for.
_ENGINES: dict[type[DeformSettings], Callable[..., Descent]] = {
    DescentSettings: descend_on_engine,
    DemonsSettings: descend_demons,
    BsplineSettings: descend_bspline,
}

_LEAST_CONFIDENCE = 0.01

BARREN = {
    "no overlap": "it lies outside the moving image",
    "no texture": (
        "no correlation window holds texture of both images: is one constant there, left out by "
        "its mask, or smaller than the window?"
    ),
}
"""Why a deformation had nothing to go by, and what that tells a user."""


@dataclass(frozen=True, eq=False)
class DeformEstimate:
    """The deformation of one block, or why there is none; true in a condition when there is one.

    Parameters
    ----------
    displacement : ndarray, block shape + (n,), float32, or None
        u in ``T(p) = affine(p + u(p))``, physical units; at as many places as were wanted.
    initial : GridMap
        The initial transform on the block; where vectors are wanted at places, maybe on nodes.
    levels : tuple of LevelReport
        What each level did.
    reason : str
        Why there is no displacement; empty where there is.
    begun : ndarray, optional
        The initial displacement where the other is; None for 0.
    """

    displacement: NDArray[np.float32] | None
    initial: GridMap
    levels: tuple[LevelReport, ...] = ()
    reason: str = ""
    begun: NDArray[np.float32] | None = None

    def __bool__(self) -> bool:
        return self.displacement is not None

    @property
    def mapping(self) -> GridMap | None:
        """The map that was found, on the block; None where there is none for all voxels."""
        if self.displacement is None or self.displacement.shape[:-1] != self.initial.grid.shape:
            return None
        return GridMap(self.initial.grid, self.initial.affine, self.displacement)

    def confidence(self) -> float:
        """Mean squared local correlation of the finest level, at least 0.01: a weight in blends."""
        return max(_LEAST_CONFIDENCE, self.levels[-1].after) if self.levels else 1.0

    def refinement(self) -> NDArray[np.float32] | None:
        """The displacement that the deformation adds to the initial one.

        Shapes: as `displacement`.
        """
        if self.displacement is None or self.begun is None:
            return self.displacement
        return self.displacement - self.begun


def deform_block(
    fixed: Image,
    moving: Image,
    initial: Transform,
    settings: DeformSettings,
    landmarks: Landmarks | None = None,
    beyond: Beyond | None = None,
    others: Sequence[ChannelPair] = (),
    places: Places | None = None,
) -> DeformEstimate:
    """Refine a transform by a deformation, in one block; landmarks outside it do not count.

    Beyond the voxels that count the field of `DescentSettings` goes on as `descend` says; only it
    is driven by `others`, further channels of the block and the moving image. Vectors are wanted
    at `places` of the block, or at all voxels.
    """
    is_descent = isinstance(settings, DescentSettings)
    on_nodes = places is not None and landmarks is None
    start = _Start.of(initial, fixed.grid, settings, on_nodes)
    mapping = start.mapping
    # The coarsest correlation window is as far as a block looks beyond where it starts.
    coarsest = max(settings.shrink_factors) * max(np.ravel(settings.cc_radius))
    margin = float((coarsest + max(start.factors) / 2 - 0.5) * max(fixed.grid.spacing))
    if landmarks is not None:
        margin = max(margin, _farthest(landmarks, mapping))
    crop = mapping.crop_of(moving.grid, margin)
    if crop is None:
        return DeformEstimate(None, mapping, (), BARREN["no overlap"])
    part = moving[crop]
    further: dict[str, Any] = {} if beyond is None else {"beyond": beyond}
    if is_descent:
        # What is not wanted need not leave a GPU.
        further["places"] = places
    if others:
        further["others"] = [
            Channel(pair.fixed.read(), pair.moving[crop].read(), pair.weight) for pair in others
        ]
    frame = Frame(fixed.grid, part.grid, mapping.affine)
    try:
        descent = _ENGINES[type(settings)](
            fixed.read(),
            part.read(),
            frame,
            settings,
            initial=start.displacement,
            landmarks=landmarks,
            **further,
        )
    except InputError as error:
        return DeformEstimate(None, mapping, (), str(error))
    if all(level.stopped in BARREN for level in descent.levels):
        reason = BARREN[descent.levels[-1].stopped]
        return DeformEstimate(None, mapping, descent.levels, reason)
    vectors = pick_vectors(descent.displacement, None if is_descent else places)
    return DeformEstimate(vectors, mapping, descent.levels, begun=start.at(places))


@dataclass(frozen=True, eq=False)
class _Start:
    """The initial transform on the voxels of a block, or the centres of so many voxels per axis.

    A descent passes through such nodes in any case, which are far fewer.
    """

    mapping: GridMap
    factors: tuple[int, ...]
    voxels: Grid

    @classmethod
    def of(
        cls, initial: Transform, voxels: Grid, settings: DeformSettings, on_nodes: bool
    ) -> _Start:
        """On all voxels, or on the nodes of a descent."""
        factors = (1,) * voxels.ndim
        if on_nodes and isinstance(settings, DescentSettings):
            factors = node_factors(voxels, settings)
        return cls(map_on(initial, voxels.shrink(factors)), factors, voxels)

    @property
    def displacement(self) -> DisplacementField | NDArray[np.float32] | None:
        """The displacement as an engine takes it."""
        moves = self.mapping.displacement
        if moves is None or max(self.factors) == 1:
            return moves
        return DisplacementField(moves, self.mapping.grid)

    def at(self, places: Places | None) -> NDArray[np.float32] | None:
        """The displacement at places among the voxels, or at all of these."""
        if places is None or self.mapping.displacement is None:
            return self.mapping.displacement
        axes = zip(places, self.voxels.shape, self.factors, strict=True)
        among = (((np.arange(n) if p is None else p) - (f - 1) / 2) / f for p, n, f in axes)
        vectors: NDArray[np.float32] = pick_vectors(self.mapping.displacement, tuple(among))
        return vectors


def _farthest(landmarks: Landmarks, mapping: GridMap) -> float:
    """Greatest distance from where a map puts a landmark of its grid to where it should be."""
    grid = mapping.grid
    index = np.rint(grid.to_index(landmarks.fixed)).astype(np.intp)
    inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
    points = landmarks.fixed[inside]
    if mapping.displacement is not None:
        points = points + mapping.displacement[tuple(index[inside].T)]
    away = AffineTransform(mapping.affine).apply(points) - landmarks.moving[inside]
    return float(np.linalg.norm(away, axis=1).max(initial=0.0))
