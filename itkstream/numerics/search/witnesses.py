"""Several witnesses of one pair, asked in turn: where blobs of one size say nothing, others may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import Image
from itkstream.numerics.matching.affine import has_few_planes
from itkstream.numerics.matching.contexts import ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings
from itkstream.numerics.matching.matches import REACH_VOX
from itkstream.numerics.matching.ransac import Model, RansacSettings, fit_ransac, fit_robustly
from itkstream.numerics.search.evidence import Evidence, Rematches, Witness, WitnessSettings

__all__ = ["LEAST_SETTLED", "RADII", "Settled", "Witnesses", "settle"]

Floats = NDArray[np.float64]

LEAST_SETTLED = 6
"""Fewer matches fit no affine."""

RADII = ((3.0, 10.0), (6.0, 20.0), (2.0, 6.0))
"""Radii of the blobs by which a start is judged, in voxels of the level."""

# Half width of the contexts in voxels.
_CONTEXT = 10
_POINTS = 1500
# Matches that a start brings about may be so many voxels from an affine; fewer than so many are
# fitted rigidly.
_SLACK = 3.0
_ENOUGH = 30
_ROUNDS = 3
# A fit that loses a few of many matches is nearer than the start it was made from.
_AS_MANY = 0.97
_TRIALS = 1000
# A blob is one that an affine was fitted to where it lies so many voxels from it. So many matches
# never agree by chance (40 at most were seen), and would leave too few blobs to judge by.
_SAME, _BEYOND_CHANCE = 3.0, 100


@frozen
class Settled:
    """A transform that was fitted to all supported matches, and their number."""

    matrix: Floats
    matches: int


@dataclass(frozen=True, eq=False)
class Witnesses:
    """Two images in memory, whose key points are found when they are first asked."""

    fixed: Image
    moving: Image
    _found: dict[int, Witness | None] = field(default_factory=dict)

    @property
    def voxel(self) -> float:
        """Median spacing of the fixed image."""
        return float(np.median(self.fixed.spacing))

    def __iter__(self) -> Iterator[Witness]:
        """The witnesses, the most telling first."""
        for number in range(len(RADII)):
            if number not in self._found:
                self._found[number] = self._make(number)
            witness = self._found[number]
            if witness is not None:
                yield witness

    def _make(self, number: int) -> Witness | None:
        """Find the key points of some radii; None where an image cannot show such blobs."""
        grid, voxel = self.fixed.grid, self.voxel
        window = ContextWindow((_CONTEXT * voxel,) * grid.ndim, ball=True)
        points = KeyPointSettings.from_voxels(*RADII[number], grid.spacing, nspots=_POINTS)
        settings = WitnessSettings(points, window.within(grid, self.moving.grid), REACH_VOX * voxel)
        try:
            return Witness.of(self.fixed, self.moving, settings)
        except (InputError, RegistrationError):
            return None

    def evidence(self, matrix: Floats, spent: Floats | None = None) -> Evidence:
        """Judge an affine by the witness that says most for it.

        Blobs at points that it was fitted to are held out: they are `spent` (m, n), in the fixed
        image.
        """
        best = Evidence(0, (), 0)
        for witness in self:
            which = None
            if spent is not None and 0 < len(spent) < _BEYOND_CHANCE:
                apart = cKDTree(spent).query(witness.fixed.points)[0]
                which = np.asarray(apart > _SAME * self.voxel)
            found = witness.evidence(matrix, which)
            if found.outcome == "convincing":
                return found
            if found.rank > best.rank:
                best = found
        return best

    def settled(self, matrix: Floats, model: Model) -> Iterator[Settled]:
        """Fit a transform to all matches that are supported where another puts them.

        Tissue that bends leaves right matches many voxels from any affine: few agree with one
        closely, and which is a matter of luck. One by each witness that has enough; none in a
        stack of few planes, whose matches do not tell all of an affine.
        """
        if has_few_planes(self.fixed.grid):
            return
        for witness in self:
            found = witness.rematch(witness.aligned(matrix))
            if found.abound:
                with suppress(RegistrationError):
                    yield _settled(witness, matrix, found, model)


def _settled(witness: Witness, matrix: Floats, found: Rematches, model: Model) -> Settled:
    """Fit to what is supported, and to what is supported then, in rounds."""
    for _ in range(_ROUNDS):
        which = found.supported
        change = fit_robustly(found.fixed_points[which], found.aligned_points[which], model)
        matrix = matrix @ change
        found = witness.rematch(witness.aligned(matrix))
    return Settled(matrix, int(found.supported.sum()))


def settle(witness: Witness, matrix: Floats, seed: int) -> Floats:
    """Fit an affine to the supported matches that a start brings about, again and again."""
    best, most = matrix, 0
    voxel = witness.settings.reach_um / REACH_VOX
    for _ in range(_ROUNDS + 1):
        found = witness.rematch(witness.aligned(matrix))
        which, count = found.supported, int(found.supported.sum())
        if count < _AS_MANY * most:
            break
        best, most = matrix, max(count, most)
        if count < LEAST_SETTLED:
            break
        model: Model = "affine" if count >= _ENOUGH else "rigid"
        settings = RansacSettings(
            model, _SLACK * voxel, _TRIALS, seed=seed, min_inliers=LEAST_SETTLED
        )
        change = fit_ransac(found.fixed_points[which], found.aligned_points[which], settings)
        if change.matrix is None:
            break
        matrix = matrix @ change.matrix
    return best
