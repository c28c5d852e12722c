"""Tissue without counterpart: what a fixed image shows and the moving one does not.

Tissue may be torn, missing, replaced by other tissue, or beside what only one preparation keeps.
A deformation follows whatever lies there: with half of the tissue replaced by other nuclei it was
4.5 voxels off in that half (median; 95th percentile 8.5), and said so nowhere. So a deformation is
tried on a coarse level from which cubes of the fixed image are hidden, and it is asked whether
what it foretells in them is seen there. Where it is not, anywhere near, nothing says how the
tissue moved.

Mean correlation of hidden voxels around each voxel, 1st percentile of the tissue: 0.54 and 0.42 in
two people's brains and two fish, 0.30 in two people's lungs, 0.60 to 0.92 in real and synthetic
nuclei, membranes and neurons; where tissue was replaced or torn out, 95th percentile: 0.14 to 0.24.
None of those pairs has tissue left out; they are registered as before, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.geometry import Grid, Image
from itkstream.geometry.grid import voxels_spanning
from itkstream.numerics.deformation.descent import Frame
from itkstream.numerics.deformation.gpu.descent import descend_on_engine
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.numerics.evidence.contrast import cubic_factors, signed_correlation
from itkstream.numerics.evidence.quality import tissue_mask
from itkstream.numerics.evidence.stiffness import hide_cubes
from itkstream.numerics.sampling.mapping import GridMap
from itkstream.numerics.sampling.pyramid import shrink
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_mapped

__all__ = ["Counterpart", "find_counterpart"]

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

LEAST_AGREEMENT = 0.2
"""Mean correlation of hidden voxels below which tissue has no counterpart."""

# Voxels beside such tissue belong to it where they agree less than this share of what most do. With
# 0.62 the displacement that goes on is better by a third, and sound tissue at the border worse.
_BESIDE = 0.55
# Where most agrees less than this, it does not say what should: 0.34 in two neighbouring sections
# that are far apart as yet, 0.77 in two people's lungs.
_LEAST_USUAL = 0.5

LEAST_MISSING = 0.03
"""Share of the tissue below which it changes little whether it counts."""

MOST_MISSING = 0.6
"""Share of the tissue above which the images are not aligned, rather than torn."""

_RADIUS = 4
# Share of a window that is hidden, at least.
_LEAST_SHARE = 0.1
# Deviation of the Gaussian by which voxels are averaged; planes hold fewer of them.
_POOLED = {2: 12.0, 3: 5.0}
# Fewer hidden voxels than this share of a pool tell nothing.
_LEAST_POOL = 1e-3
# Tissue without counterpart fills so much of a cube that is two deviations wide, at least.
_LEAST_SEED = 0.15
# Where so few of the squares have the sign of most, intensities do not say what belongs together.
_ONE_CONTRAST = 0.7
_MOST_REGIONS = 20
_LEAST_VOXELS, _MOST_VOXELS = 1.2e5, 1e6
_SHARE_OF_VOXELS = 1 / 8


@dataclass(frozen=True, eq=False)
class Counterpart:
    """Tissue of a fixed image without counterpart in a moving one.

    `missing` and `tissue`, of either image where it could be judged, are masks on the coarse
    `grid`; `agreement` is the mean correlation of hidden voxels around each, NaN where unknown.
    `reason` says why nothing may be left out all the same; it is empty where there is none.
    """

    missing: Mask
    tissue: Mask
    agreement: Floats
    grid: Grid
    reason: str = ""

    @property
    def share(self) -> float:
        """Share of the tissue without counterpart."""
        return float((self.missing & self.tissue).sum() / max(self.tissue.sum(), 1))

    @property
    def is_usable(self) -> bool:
        """Whether there is something to leave out."""
        return not self.reason and self.share >= LEAST_MISSING

    def facts(self, fixed: Grid) -> dict[str, Any]:
        """Facts for a report, with regions in voxels of the fixed image and in its unit."""
        facts = {
            "share_of_tissue": round(self.share, 4),
            "left_out": self.is_usable,
            "regions": self._regions(fixed),
        }
        return facts | ({"reason": self.reason} if self.reason else {})

    def describe(self) -> str:
        """The finding in words; empty where all tissue has a counterpart."""
        if self.share < LEAST_MISSING:
            return ""
        said = f"{100 * self.share:.0f} % of the tissue has no counterpart in the moving image: "
        if self.reason:
            return f"{said}all of it counts, as {self.reason}"
        return f"{said}it moves with what surrounds it"

    def _regions(self, fixed: Grid) -> list[dict[str, Any]]:
        """The largest connected parts: share of the tissue, and the box around each."""
        parts, count = ndimage.label(self.missing)
        sizes = np.bincount(parts[self.tissue], minlength=count + 1)[1:] / self.tissue.sum()
        boxes = ndimage.find_objects(parts)
        order = np.argsort(-sizes, kind="stable")[:_MOST_REGIONS]
        return [
            {"share_of_tissue": round(float(sizes[n]), 4), **self._box(boxes[n], fixed)}
            for n in order
            if sizes[n] > 0
        ]

    def _box(self, box: tuple[slice, ...], fixed: Grid) -> dict[str, Any]:
        """First and last voxel of the fixed image in a box of the coarse one, and their places."""
        index = fixed.to_index(self.grid.crop(box).outer_corners())
        last = np.subtract(fixed.shape, 1)
        first = np.clip(np.ceil(index.min(axis=0) - 1e-6), 0, last).astype(int)
        final = np.clip(np.floor(index.max(axis=0) + 1e-6), 0, last).astype(int)
        places = fixed.to_physical(np.stack([first, final]).astype(float))
        return {
            "voxels": [first.tolist(), final.tolist()],
            "um": np.sort(places, axis=0).round(3).tolist(),
        }


def find_counterpart(fixed: Image, aligned: NDArray[Any], tissue: Mask) -> Counterpart:
    """Find the tissue without counterpart in the moving image, which is resampled on the fixed.

    NaN voxels do not count. Shapes: `aligned`, `tissue` fixed.shape.
    """
    level = _Level.of(fixed, np.asarray(aligned, np.float32), tissue)
    first = _judge(level, level.agreement(level.hidden))
    if not first.is_usable:
        return first
    # What lies in its place has drawn the sound tissue beside it away. Without that, this agrees,
    # and so does whatever a continued field foretells.
    again = level.agreement(level.hidden | first.missing)
    return _judge(level, np.fmax(first.agreement, again))


@dataclass(frozen=True, eq=False)
class _Level:
    """Both images on a coarse lattice, the voxels that are hidden, and those with content."""

    fixed: Floats
    moving: Floats
    content: Mask
    hidden: Mask
    grid: Grid

    @classmethod
    def of(cls, fixed: Image, aligned: Floats, tissue: Mask) -> _Level:
        """Average a fixed image, and a moving one that is resampled on it."""
        factors = _factors(fixed.grid)
        a, grid = shrink(np.asarray(fixed.read(), np.float32), fixed.grid, factors)
        b, _ = shrink(aligned, fixed.grid, factors)
        inside, _ = shrink(tissue.astype(np.float32), fixed.grid, factors)
        content = ((inside >= 0.5) | tissue_mask(b)) & np.isfinite(a) & np.isfinite(b)
        return cls(a, b, content, hide_cubes(a.shape, grid.spacing), grid)

    def agreement(self, unseen: Mask) -> Floats:
        """Correlation of unseen voxels with what a descent foretells that does not see them.

        Averaged around each voxel, and positive where it has the sign of most.
        """
        foretold = self._foretell(unseen)
        radius = voxels_spanning(_RADIUS * min(self.grid.spacing), self.grid.spacing)
        found = np.full(self.fixed.shape, np.nan)
        known = np.isfinite(self.fixed) & np.isfinite(foretold) & unseen
        if known.any():
            found = signed_correlation(self.fixed, foretold, known, radius, _LEAST_SHARE)
        found = np.clip(found, -1.0, 1.0)
        found[~self.content] = np.nan
        return (np.sign(_sign(found)) * _pooled(found, self.grid)).astype(np.float32)

    def _foretell(self, unseen: Mask) -> Floats:
        """The moving image through the displacement by which it is most like what is seen."""
        seen, still = np.where(unseen, np.float32(np.nan), self.fixed), np.eye(self.grid.ndim + 1)
        if not (np.isfinite(seen) & np.isfinite(self.moving)).any():
            return self.moving
        settings = PIPELINE_DEFAULTS.for_voxels(self.grid.spacing)
        frame = Frame(self.grid, self.grid, still)
        found = descend_on_engine(seen, self.moving, frame, settings, beyond="affine")
        mapping = GridMap(self.grid, still, found.displacement)
        return warp_mapped(Image(self.moving, self.grid), mapping, NAN_OUTSIDE)


def _judge(level: _Level, agreement: Floats) -> Counterpart:
    judged = level.content & np.isfinite(agreement)
    found = Counterpart(_spread(agreement), judged, agreement, level.grid)
    if found.share > MOST_MISSING or _usual(agreement) < _LEAST_USUAL:
        return replace(found, reason="images that are not aligned, or in other contrasts, look so")
    return found


def _usual(agreement: Floats) -> float:
    """The agreement of the better part of the tissue."""
    known = agreement[np.isfinite(agreement)]
    return float(np.percentile(known, 75)) if known.size else 0.0


def _sign(values: NDArray[np.float64]) -> float:
    """Share of squares that have the sign of most less that of the others, with that sign.

    0 where it is too small to tell, as where intensities of the images do not go together.
    """
    known = values[np.isfinite(values)]
    squares = float((known**2).sum())
    sign = float((known * np.abs(known)).sum()) / squares if squares else 0.0
    return sign if abs(sign) >= _ONE_CONTRAST else 0.0


def _factors(grid: Grid) -> tuple[int, ...]:
    """Voxels per axis of a level on which an eighth of the voxels is left, near to cubes."""
    most = min(max(_SHARE_OF_VOXELS * grid.size, _LEAST_VOXELS), _MOST_VOXELS)
    return cubic_factors(grid, most, slack=0.25)


def _pooled(values: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Mean of the values in a Gaussian around each voxel; NaN where hardly any is known."""
    known = np.isfinite(values)
    sigma = [_POOLED[grid.ndim] * min(grid.spacing) / h for h in grid.spacing]
    weight = ndimage.gaussian_filter(known.astype(float), sigma, mode="constant", truncate=3)
    total = ndimage.gaussian_filter(
        np.where(known, values, 0.0), sigma, mode="constant", truncate=3
    )
    return np.where(weight > _LEAST_POOL, total / np.maximum(weight, _LEAST_POOL), np.nan)


def _spread(agreement: Floats) -> Mask:
    """Voxels that hardly agree, and those beside them that agree much less than most do."""
    least = max(LEAST_AGREEMENT, _BESIDE * _usual(agreement))
    parts, count = ndimage.label(agreement < least)
    hardly = np.bincount(parts[agreement < LEAST_AGREEMENT], minlength=count + 1)
    large = hardly >= _LEAST_SEED * (2 * _POOLED[agreement.ndim]) ** agreement.ndim
    large[0] = False
    return np.asarray(large[parts])
