"""Whether what an affine puts outside the other image fits there elsewhere.

Slabs that were put back in another order, or tiles of a mosaic, are aligned in part by one affine.
The rest of either image then lies outside the other, as it does where each was photographed from
another place. Unlike there, it fits by another shift.
"""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.search.lattice import best_shift, cubes
from itkstream.numerics.search.witnesses import Witnesses

__all__ = ["Outside", "find_outside"]

Floats = NDArray[np.float64]

# Parts of less than so much of either image are not looked at.
_LEAST = 0.15
# Voxels along the longer axis of the level on which they are shifted, and how much of the smaller
# part has to overlap.
_LENGTHS = {2: 192, 3: 48}
_OVERLAP = 0.3


@frozen
class Outside:
    """Another place at which parts fit: matches that support it, and how far it is from the first.

    `apart_um` is the distance between where either puts a point.
    """

    matches: int
    apart_um: float


def find_outside(witnesses: Witnesses, matrix: Floats) -> Outside | None:
    """Shift what lies outside of either image against that of the other; None where nothing fits.

    The best shift, with the turn and stretch of the affine, is judged as a start is.
    """
    fixed, moving = witnesses.fixed, witnesses.moving
    extents = (np.max(np.multiply(i.grid.shape, i.grid.spacing)) for i in (fixed, moving))
    spacing, there = max(extents) / _LENGTHS[fixed.ndim], AffineTransform(matrix)
    still = _beyond(cubes(fixed, spacing), moving.grid, there)
    other = _beyond(cubes(moving, spacing), fixed.grid, there.inverse())
    if still is None or other is None:
        return None
    n = fixed.ndim
    start = best_shift(still, other, matrix[:n, :n], _OVERLAP).matrix
    evidence = witnesses.evidence(start)
    if evidence.outcome != "convincing":
        return None
    return Outside(evidence.supported, float(np.linalg.norm((start - matrix)[:n, n])))


def _beyond(image: Image, other: Grid, there: AffineTransform) -> Image | None:
    """The part of an image that lies outside another grid; None where that is little."""
    outside = ~other.contains(there.apply(image.grid.positions()))
    if outside.mean() < _LEAST:
        return None
    return Image(np.where(outside, image.read(), np.float32(np.nan)), image.grid)
