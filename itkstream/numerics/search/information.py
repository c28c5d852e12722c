"""The start whose mutual information stands out: for stains that share no contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Image
from itkstream.numerics.evidence.contrast import descriptor_likeness
from itkstream.numerics.evidence.quality import tissue_mask
from itkstream.numerics.itk.intensity import intensity_block
from itkstream.numerics.itk.settings import IntensitySettings
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.numerics.search.lattice import cubes

__all__ = ["Informed", "most_informed"]

Floats = NDArray[np.float64]
Refined: TypeAlias = tuple[float, Floats]

# Voxels along the longest axis of the level on which information is measured.
_LENGTHS = {2: 128, 3: 56}
# Starts that end less apart than this share of the image are one.
_SAME = 0.25
# All starts are refined at half the level, which takes a sixth of the time, and rigidly: an affine
# may shrink the image onto what it finds (by 35 % there), and is lost. So many of the best are
# refined to the end, for at most so many rounds that gain so large a share each, and so many of the
# others are refined once, to be compared with.
_FINISHED, _ROUNDS, _GAIN = 3, 6, 0.003
_COMPARED = 3
# The best stands out if the next differs by so large a share of the information, and if
# descriptors, which were not asked, are so much alike, and so many times as much as after any other
# start. Two stains, as they lie and turned: 0.20 to 0.31, 1.5 to 2.2 times, after a lead of 0.14 to
# 0.36; images of two kinds: up to 0.21, up to 1.8 times, never both, after a lead of up to 0.4.
_STANDS_OUT, _ALIKE, _TIMES = 0.1, 0.15, 1.5
# So much alike at half the level, or there is no use in going on.
_PROMISING = 0.05

_HALF = IntensitySettings(
    "rigid",
    "mutual-information",
    shrink_factors=(4, 2),
    smooth_sigmas=(2, 1),
    iterations=(100, 100),
)
_WHOLE = evolve(
    _HALF, model="affine", shrink_factors=(2, 1), smooth_sigmas=(1, 0), iterations=(100, 60)
)


@dataclass(frozen=True, eq=False)
class Informed:
    """A start refined by mutual information, how far it is ahead of the next that differs, and how
    much alike descriptors are, there and at most after those others.
    """

    matrix: Floats
    information: float
    lead: float
    likeness: float
    likeness_of_others: float

    @property
    def stands_out(self) -> bool:
        """Whether no other start comes near."""
        alike = self.likeness >= max(_ALIKE, _TIMES * self.likeness_of_others)
        return self.lead >= _STANDS_OUT and alike


def most_informed(fixed: Image, moving: Image, starts: Sequence[Floats]) -> Informed | None:
    """Refine starts by mutual information on a coarse level, and find the best.

    Mattes et al., IEEE Transactions on Medical Imaging 22 (2003) 120-128,
    doi:10.1109/TMI.2003.809072.
    """
    grids = fixed.grid, moving.grid
    extent = max(float(np.max(np.multiply(g.shape, g.spacing))) for g in grids)
    spacing = extent / _LENGTHS[fixed.ndim]
    small = cubes(fixed, spacing), cubes(moving, spacing)
    coarse = [found for start in starts if (found := _refined(small, start, _HALF))]
    coarse.sort(key=lambda found: -found[0])
    first = coarse[:_FINISHED]
    if max((_likeness(small, m) for _, m in first), default=0.0) < _PROMISING:
        return None
    finished = [found for _, m in first if (found := _finished(small, m))]
    if not finished:
        return None
    best, matrix = max(finished, key=lambda found: found[0])
    others = [m for _, m in coarse if _apart(fixed, matrix, m) > _SAME * extent]
    compared = [f for m in others[:_COMPARED] if (f := _refined(small, m, _WHOLE))]
    lead = (best - max((v for v, _ in compared), default=0.0)) / best if best > 0 else 0.0
    if lead < _STANDS_OUT:
        return Informed(matrix, best, lead, 0.0, 0.0)
    rest = [m for _, m in compared] + others[_COMPARED:]
    alike = max((_likeness(small, m) for m in rest), default=0.0)
    return Informed(matrix, best, lead, _likeness(small, matrix), alike)


def _likeness(pair: tuple[Image, Image], matrix: Floats) -> float:
    """Likeness of descriptors in the fixed tissue."""
    fixed, moving = pair
    aligned = warp_block(moving, AffineTransform(matrix), fixed.grid, NAN_OUTSIDE)
    return descriptor_likeness(fixed, aligned, tissue_mask(fixed.read()))


def _finished(pair: tuple[Image, Image], start: Floats) -> Refined | None:
    """Information and matrix of a start that is refined as long as that helps."""
    best = None
    for _ in range(_ROUNDS):
        found = _refined(pair, start, _WHOLE)
        if found is None or (best and found[0] <= best[0] * (1 + _GAIN)):
            break
        best, start = found, found[1]
    return best


def _refined(
    pair: tuple[Image, Image], start: Floats, settings: IntensitySettings
) -> Refined | None:
    """Information on the last level, and matrix, of a start refined once."""
    try:
        found = intensity_block(*pair, start, settings.for_voxels(pair[0].spacing))
    except InputError:
        return None
    value = -(found.after if found else found.before)
    return (value, found.matrix) if np.isfinite(value) else None


def _apart(image: Image, one: Floats, other: Floats) -> float:
    """Greatest distance of where two matrices lead the corners of an image."""
    n = image.ndim
    corners = image.grid.corners()
    change = one - other
    return float(np.linalg.norm(corners @ change[:n, :n].T + change[:n, n], axis=1).max())
