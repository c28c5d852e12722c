"""Evidence whether two images show tissue in one contrast, or whether intensities mislead.

Squared local correlation rises by any displacement that follows it, whether or not it is true.
Where both images have one contrast, though, its sign is the same nearly everywhere. Where signs
differ, both similarities are tried on a coarse level, and neither is asked: what a histogram tells
of one image by the other (mutual information), which neither of them follows, says which was right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from attrs import evolve
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from itkstream.geometry import Grid, Image
from itkstream.numerics.deformation.descent import Frame, descend, measure_likeness
from itkstream.numerics.deformation.settings import (
    PIPELINE_DEFAULTS,
    PIPELINE_MIND,
    DescentSettings,
    Similarity,
)
from itkstream.numerics.sampling.mapping import GridMap
from itkstream.numerics.sampling.pyramid import shrink
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_mapped

__all__ = [
    "ContrastEvidence",
    "coherence",
    "cubic_factors",
    "descriptor_likeness",
    "find_similarity",
    "mutual_information",
    "signed_correlation",
]

Floats = NDArray[np.float32]

COHERENT = 0.62
"""Coherence of images in one contrast, at least.

Measured after an affine: 0.80 (lungs of two people), 0.83 (two heads, MRI), 0.85 to 0.99 (vessels,
membranes, nuclei, neurons, fish, brains), as much where one is inverted; 0.38 for two stains of a
fish, 0.00 to 0.62 for half of the images in random contrast, in the other half of which
correlation serves, and 0.17 for two neighbouring sections, far apart as yet.
"""

GAIN, LEAST_GAIN = 1.02, 0.01
"""So many times the information, and so many nats more, must be there after descriptors, for these
to be chosen.

Measured: 1.15 times for two stains, 0.07 nats more; 0.88 to 1.00 for images in one contrast, 0.96
for those sections. In random contrast 0.74 to 1.31.
"""

_VOXELS = 2e5
_WINDOW = 4
_BINS = 24
_LEVELS = (2, 1)


@dataclass(frozen=True)
class ContrastEvidence:
    """The similarity that suits two images, and why.

    Parameters
    ----------
    similarity : {'lcc', 'mind'}
        Which one a descent should follow.
    coherence : float
        How much signs of local correlation agree, 0 to 1; NaN where there is no texture.
    information : (float, float) or None
        Mutual information, in nats, after a coarse descent on local correlation and one on
        descriptors; None where signs said enough.
    """

    similarity: Similarity
    coherence: float
    information: tuple[float, float] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers for a report."""
        facts: dict[str, Any] = {"similarity": self.similarity}
        if math.isfinite(self.coherence):
            facts["contrast_coherence"] = self.coherence
        if self.information is not None:
            facts["information_by_lcc"], facts["information_by_mind"] = self.information
        return facts

    @property
    def reason(self) -> str:
        """The evidence in words."""
        agree = f"signs of local correlation agree to {self.coherence:.2f}"
        if self.information is None:
            return agree if math.isfinite(self.coherence) else "there is no texture to compare"
        by_lcc, by_mind = self.information
        return f"{agree}; information is {by_lcc:.3f} by 'lcc' and {by_mind:.3f} by 'mind'"


def find_similarity(
    fixed: Image, aligned: NDArray[Any], tissue: NDArray[np.bool_]
) -> ContrastEvidence:
    """Find the similarity that suits a fixed image and a moving one resampled on it.

    NaN voxels do not count. Shapes: `aligned`, `tissue` fixed.shape.
    """
    factors = cubic_factors(fixed.grid, _VOXELS)
    images = [np.asarray(voxels, np.float32) for voxels in (fixed.read(), aligned)]
    a, b = (shrink(image, fixed.grid, factors)[0] for image in images)
    inside, grid = shrink(tissue.astype(np.float32), fixed.grid, factors)
    counts = (inside >= 0.5) & np.isfinite(a)
    agree = coherence(a, b, counts)
    if not agree < COHERENT:
        return ContrastEvidence("lcc", agree)
    by_lcc, by_mind = (
        mutual_information(a[counts], _follow(a, b, grid, settings)[counts])
        for settings in (PIPELINE_DEFAULTS, PIPELINE_MIND)
    )
    better = by_mind > max(GAIN * by_lcc, by_lcc + LEAST_GAIN)
    return ContrastEvidence("mind" if better else "lcc", agree, (by_lcc, by_mind))


def descriptor_likeness(fixed: Image, aligned: NDArray[Any], tissue: NDArray[np.bool_]) -> float:
    """Mean squared local correlation of descriptors in the tissue, 0 to 1.

    Shapes: `aligned`, `tissue` fixed.shape.
    """
    a = np.where(tissue, fixed.read(), np.nan).astype(np.float32)
    frame = Frame(fixed.grid, fixed.grid, np.eye(fixed.ndim + 1))
    look = evolve(PIPELINE_MIND.select(slice(-1, None)), shrink_factors=(1,))
    b = np.asarray(aligned, np.float32)
    if not (np.isfinite(a) & np.isfinite(b)).any():
        return 0.0
    return measure_likeness(a, b, frame, look.for_voxels(fixed.spacing))


def coherence(a: Floats, b: Floats, counts: NDArray[np.bool_]) -> float:
    """Squared mean of local correlation over its mean square: 1 where all signs agree.

    NaN where no window in `counts` holds texture of both images.
    """
    known = np.isfinite(a) & np.isfinite(b)
    if not (known & counts).any():
        return math.nan
    r = signed_correlation(a, b, known, (_WINDOW,) * a.ndim, least_share=0.5)[counts]
    r = r[np.isfinite(r)]
    square = float((r * r).mean()) if r.size else 0.0
    return float(r.mean()) ** 2 / square if square else math.nan


def signed_correlation(
    a: Floats, b: Floats, counts: NDArray[np.bool_], radius: Sequence[int], least_share: float
) -> NDArray[np.float64]:
    """Correlation in windows of the voxels that count, with its sign.

    NaN at voxels that do not count, without texture in either image, and where less than a share of
    the window counts. The images are finite where voxels count.
    """
    size = [2 * r + 1 for r in radius]

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return uniform_filter(values.astype(float), size, mode="constant")

    x, y = (np.where(counts, image - image[counts].mean(), 0.0).astype(float) for image in (a, b))
    share = mean(counts)
    share[share < least_share] = np.nan
    mx, my = mean(x) / share, mean(y) / share
    vx, vy = mean(x * x) / share - mx * mx, mean(y * y) / share - my * my
    # Rounding of the running means, which is no contrast, lies far below.
    textured = (vx > 1e-6 * x.var()) & (vy > 1e-6 * y.var()) & counts
    found = np.full(a.shape, np.nan)
    both = mean(x * y) / share - mx * my
    found[textured] = both[textured] / np.sqrt(vx[textured] * vy[textured])
    return found


def mutual_information(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Information that one image holds of the other, in nats; intensities are binned by rank.

    Voxels that are NaN in either do not count; 0 where none is left.
    """
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return 0.0
    first, second = (_ranked(image[known]) for image in (a, b))
    joint = np.bincount(first * _BINS + second, minlength=_BINS**2).reshape(_BINS, _BINS)
    share = joint / joint.sum()
    chance = share.sum(axis=1)[:, None] * share.sum(axis=0)
    shown = share > 0
    return float(np.sum(share[shown] * np.log(share[shown] / chance[shown])))


def _ranked(values: NDArray[Any]) -> NDArray[np.int64]:
    edges = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def cubic_factors(grid: Grid, voxels: float, slack: float = 0.0) -> tuple[int, ...]:
    """Voxels per axis of a level with at most so many, near to cubes.

    With some slack, in voxels, fewer are averaged, and the level has a little more.
    """
    edge = (math.prod(grid.spacing) * grid.size / voxels) ** (1 / grid.ndim)
    return tuple(max(1, math.ceil(edge / h - slack)) for h in grid.spacing)


def _follow(a: Floats, b: Floats, grid: Grid, settings: DescentSettings) -> Floats:
    """The second image through the displacement that a coarse descent finds."""
    coarse = evolve(settings.select(slice(-3, -1)), shrink_factors=_LEVELS)
    still = np.eye(grid.ndim + 1)
    found = descend(a, b, Frame(grid, grid, still), coarse.for_voxels(grid.spacing))
    return warp_mapped(Image(b, grid), GridMap(grid, still, found.displacement), NAN_OUTSIDE)
