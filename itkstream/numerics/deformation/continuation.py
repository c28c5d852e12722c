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
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.numerics.sampling.fields import shrink_field

__all__ = ["BORDER_VOX", "AffineTrend", "Beyond", "Continuation", "counting_share", "say_of"]

Floats = NDArray[np.float32]
Smoother = Callable[[Any], Any]

Beyond: TypeAlias = Literal["affine", "start"]
"""Guide of a field far from voxels that count: its own affine part, or the field it began as."""

BORDER_VOX = 16.0
"""Voxels beside what does not count whose displacement says less of the affine part."""

# Less than this of the sound nodes in the reach of a kernel is rounding.
_LEAST = np.float32(1e-6)


def counting_share(image: Any, stride: tuple[int, ...], xp: Any = np) -> Any | None:
    """Share of the voxels of each node that count; None where all do, or none.

    `xp` is the namespace of the image, as numpy.
    """
    known = xp.isfinite(image)
    if known.all() or not known.any():
        return None
    return xp.clip(shrink_field(known[..., None].astype(np.float32), stride, xp)[..., 0], 0, 1)


def say_of(share: Floats, spacing: tuple[float, ...], margin: float) -> Floats:
    """Weigh the nodes for the affine part of a field.

    Nodes have most say in that part where they lie `margin` from any that does not count: beside
    it, what lies in the place of the tissue draws the field.
    """
    apart = ndimage.distance_transform_edt(share > 0.5, sampling=spacing)
    say = share * np.minimum(apart / margin, 1).astype(np.float32) ** 2
    return say if say.any() else share


@dataclass(frozen=True, eq=False)
class Continuation:
    """Continuation of a field to where no voxel counts, along `home` or else its own affine part.

    Shapes: `share` (a, b, c), of the voxels that count; `say` (a, b, c), see `say_of`; `home`
    (a, b, c, 3). All are arrays of the namespace `xp`.
    """

    share: Any
    say: Any
    home: Any | None = None
    xp: Any = np

    @cached_property
    def _trend(self) -> AffineTrend:
        return AffineTrend.of(self.say, self.xp)

    def begin(self, u: Any) -> Any:
        """A field that is sound where voxels count, and far from there what it goes on along."""
        if self.home is not None:
            return u
        trend = self._trend(u)
        return trend + self.share[..., None] * (u - trend)

    def smooth(self, u: Any, before: Any, smoother: Smoother) -> Any:
        """Smooth a field after a step that led to it from the one before."""
        share = self.share[..., None]
        trend = self._trend(u)
        weight = self.xp.maximum(smoother(share), _LEAST)
        sound = trend + smoother(share * (u - trend)) / weight
        along, moved = self.home, u
        if along is None:
            along = trend
            moved = u + (1 - share) * (trend - self._trend(before))
        beyond = along + smoother(moved - along)
        return self.xp.asarray(beyond + share * (sound - beyond), np.float32)


@dataclass(frozen=True, eq=False)
class AffineTrend:
    """The affine field nearest to a field, by weights of its nodes; called with fields.

    Shapes: `weights` (a, b, c); fields (a, b, c, 3); `basis` four functions of the place that
    spread to (a, b, c); `inverse` (4, 4), of their products. All are of the namespace `xp`.
    """

    weights: Any
    basis: tuple[Any, ...]
    inverse: Any
    xp: Any

    @classmethod
    def of(cls, weights: Any, xp: Any = np) -> AffineTrend:
        """For all fields on the nodes that have these weights."""
        lines = [xp.linspace(-1, 1, n) if n > 1 else xp.zeros(1) for n in weights.shape]
        basis = (xp.ones((1, 1, 1)), *xp.meshgrid(*lines, indexing="ij", sparse=True))
        weighted = (weights * b for b in basis)
        matrix = np.array([[float((w * b).sum()) for b in basis] for w in weighted])
        # Along axes with one node, or all weight in one plane, there is no slope to find.
        inverse = np.linalg.pinv(matrix, rcond=1e-6, hermitian=True)
        return cls(weights, basis, xp.asarray(inverse), xp)

    def __call__(self, u: Any) -> Any:
        """The trend of a field, float32."""
        # One by one: each is as large as a component.
        weighted = (self.weights * b for b in self.basis)
        sums = [self.xp.stack([(w * u[..., c]).sum() for c in range(3)]) for w in weighted]
        rows = self.inverse @ self.xp.stack(sums)
        trend = sum(b[..., None] * row for b, row in zip(self.basis, rows, strict=True))
        return trend.astype(np.float32)
