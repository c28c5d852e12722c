"""Whether what an affine puts outside the other image fits there elsewhere.

Slabs that were put back in another order, or tiles of a mosaic, are aligned in part by one affine.
The rest of either image then lies outside the other, as it does where each was photographed from
another place. Unlike there, it fits by another shift.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.matching.affine import Elsewhere
from itkstream.numerics.search.evidence import Evidence
from itkstream.numerics.search.lattice import best_shift, cubes, cubic_grid
from itkstream.numerics.search.witnesses import Witnesses

__all__ = ["find_outside"]

Floats = NDArray[np.float64]

# Parts of less than so much of either image are not looked at.
_LEAST = 0.15
# Voxels along the longer axis of the level on which they are shifted, and how much of the smaller
# part has to overlap.
_LENGTHS = {2: 192, 3: 48}
_OVERLAP = 0.3


def find_outside(witnesses: Witnesses, matrix: Floats, evidence: Evidence) -> Elsewhere | None:
    """Shift what lies outside of either image against that of the other; None where nothing fits.

    The best shift, with the turn and stretch of the affine, is judged as a start is; `evidence` is
    that for the affine.
    """
    fixed, moving = witnesses.fixed, witnesses.moving
    extents = (np.max(np.multiply(i.grid.shape, i.grid.spacing)) for i in (fixed, moving))
    spacing, there = max(extents) / _LENGTHS[fixed.ndim], AffineTransform(matrix)
    beyond = (
        _beyond(cubic_grid(fixed.grid, spacing), moving.grid, there),
        _beyond(cubic_grid(moving.grid, spacing), fixed.grid, there.inverse()),
    )
    if min(outside.mean() for outside in beyond) < _LEAST:
        return None
    still, other = (
        _cut(cubes(image, spacing), outside)
        for image, outside in zip((fixed, moving), beyond, strict=True)
    )
    n = fixed.ndim
    start = best_shift(still, other, matrix[:n, :n], _OVERLAP).matrix
    found = witnesses.evidence(start)
    if found.outcome != "convincing":
        return None
    apart_um = float(np.linalg.norm((start - matrix)[:n, n]))
    return Elsewhere(found.supported, apart_um, evidence.supported)


def _beyond(grid: Grid, other: Grid, there: AffineTransform) -> NDArray[np.bool_]:
    """Voxels of a grid that a transform puts outside another."""
    return ~other.contains(there.apply(grid.positions()))


def _cut(image: Image, kept: NDArray[np.bool_]) -> Image:
    return Image(np.where(kept, image.read(), np.float32(np.nan)), image.grid)
