"""Continuation of a displacement field to where no voxel counts, from what surrounds it.

Tissue that only one image shows says nothing about the displacement there. What is sound must not
be drawn to what happens to be there, and what is not must follow: so nodes without voxels that
count have no part in the smoothing of the others, while they are smoothed with these; far from
all, the field is the affine of what counts or, in a block, what the block starts from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.numerics.sampling.fields import shrink_field

__all__ = ["BORDER_VOX", "Beyond", "Continuation", "affine_trend", "counting_share"]

Floats = NDArray[np.float32]
Smoother = Callable[[Floats], Floats]

Beyond: TypeAlias = Literal["affine", "start"]
"""Guide of a field far from voxels that count: its own affine part, or the field it began as."""

BORDER_VOX = 16.0
"""Voxels beside what does not count whose displacement says less of the affine part."""

# Less than this of the sound nodes in the reach of a kernel is rounding.
_LEAST = np.float32(1e-6)


def counting_share(image: Floats, stride: tuple[int, ...]) -> Floats | None:
    """Share of the voxels of each node that count; None where all do, or none."""
    known = np.isfinite(image)
    if known.all() or not known.any():
        return None
    return np.clip(shrink_field(known[..., None].astype(np.float32), stride)[..., 0], 0, 1)


@dataclass(frozen=True, eq=False)
class Continuation:
    """Continuation of a field to where no voxel counts, along `home` or else its own affine part.

    Nodes have most say in that part where they lie `margin` from any that does not count: beside
    it, what lies in the place of the tissue draws the field. Shapes: `share` (a, b, c), of the
    voxels that count; `home` (a, b, c, 3).
    """

    share: Floats
    spacing: tuple[float, ...]
    margin: float
    home: Floats | None = None

    @cached_property
    def _say(self) -> Floats:
        apart = ndimage.distance_transform_edt(self.share > 0.5, sampling=self.spacing)
        say = self.share * np.minimum(apart / self.margin, 1).astype(np.float32) ** 2
        return say if say.any() else self.share

    def begin(self, u: Floats) -> Floats:
        """A field that is sound where voxels count, and far from there what it goes on along."""
        if self.home is not None:
            return u
        trend = affine_trend(u, self._say)
        return trend + self.share[..., None] * (u - trend)

    def smooth(self, u: Floats, before: Floats, smoother: Smoother) -> Floats:
        """Smooth a field after a step that led to it from the one before."""
        share = self.share[..., None]
        trend = affine_trend(u, self._say)
        weight = np.maximum(smoother(share), _LEAST)
        sound = trend + smoother(share * (u - trend)) / weight
        along, moved = self.home, u
        if along is None:
            along = trend
            moved = u + (1 - share) * (trend - affine_trend(before, self._say))
        beyond = along + smoother(moved - along)
        return np.asarray(beyond + share * (sound - beyond), np.float32)


def affine_trend(u: Floats, weights: Floats) -> Floats:
    """The affine field nearest to u, by weights of its nodes.

    Shapes: `u` (a, b, c, 3); `weights` (a, b, c).
    """
    lines = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in weights.shape]
    axes = np.meshgrid(*lines, indexing="ij", sparse=True)
    basis = [np.ones((1, 1, 1)), *axes]
    weighted = [weights * b for b in basis]
    matrix = np.array([[float((w * b).sum()) for b in basis] for w in weighted])
    right = np.array([[float((w * u[..., c]).sum()) for c in range(3)] for w in weighted])
    # Along axes with one node, or all weight in one plane, there is no slope to find.
    found = np.linalg.pinv(matrix, rcond=1e-6, hermitian=True) @ right
    return sum(b[..., None] * row for b, row in zip(basis, found, strict=True)).astype(np.float32)
