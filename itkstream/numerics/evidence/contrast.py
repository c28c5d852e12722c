"""Evidence whether two images show tissue in one contrast, or whether intensities mislead.

Squared local correlation rises by any displacement that follows it, whether or not it is true.
Where both images have one contrast, though, its sign is the same nearly everywhere. Where signs
differ, both similarities are tried on a coarse level, and neither is asked: what a histogram tells
of one image by the other (mutual information), which neither of them follows, says which was right,
and whether the one that is chosen leads anywhere: the gain must stand out among small cubes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from attrs import evolve
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from itkstream.geometry import Grid, Image
from itkstream.numerics.deformation.descent import Frame, measure_likeness
from itkstream.numerics.deformation.gpu.descent import descend_on_engine
from itkstream.numerics.deformation.settings import (
    PIPELINE_DEFAULTS,
    PIPELINE_MIND,
    DescentSettings,
    Similarity,
)
from itkstream.numerics.evidence.stiffness import gain_in_cubes, number_cubes
from itkstream.numerics.sampling.mapping import GridMap
from itkstream.numerics.sampling.pyramid import shrink
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_mapped

__all__ = [
    "ContrastEvidence",
    "coherence",
    "cubic_factors",
    "descriptor_likeness",
    "find_similarity",
    "information_by_voxel",
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

SURE = 4.0
"""Standard errors by which a gain in information is more than chance.

Measured, by descriptors: 10 for two stains, 7 to 11 for blobs in random contrast; -1.4 to 2.2 for
unrelated blobs, nuclei and noise.
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
    deviations : float
        Gain in information by a descent on descriptors, in standard errors over cubes; NaN where
        these are not chosen, or where there are too few cubes.
    """

    similarity: Similarity
    coherence: float
    information: tuple[float, float] | None = None
    deviations: float = math.nan

    @property
    def is_chance(self) -> bool:
        """The images tell no more of each other after a descent on descriptors, but by chance."""
        return self.deviations < SURE

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers for a report."""
        facts: dict[str, Any] = {"similarity": self.similarity}
        if math.isfinite(self.coherence):
            facts["contrast_coherence"] = self.coherence
        if self.information is not None:
            facts["information_by_lcc"], facts["information_by_mind"] = self.information
        if math.isfinite(self.deviations):
            facts["information_gain_deviations"] = round(self.deviations, 1)
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
    fixed: Image,
    aligned: NDArray[Any],
    tissue: NDArray[np.bool_],
    given: Literal["mind"] | None = None,
) -> ContrastEvidence:
    """Find the similarity that suits a fixed image and a moving one resampled on it.

    NaN voxels do not count. Where 'mind' is given, what speaks for it is found. Shapes: `aligned`,
    `tissue` fixed.shape.
    """
    level = _Level.of(fixed, aligned, tissue)
    agree = coherence(level.fixed, level.aligned, level.counts)
    if given is None and not agree < COHERENT:
        return ContrastEvidence("lcc", agree)
    moved_by_mind = level.follow(PIPELINE_MIND)
    if given is not None:
        return ContrastEvidence(given, agree, None, level.gain(moved_by_mind))
    moved_by_lcc = level.follow(PIPELINE_DEFAULTS)
    by_lcc, by_mind = level.information(moved_by_lcc), level.information(moved_by_mind)
    if by_mind > max(GAIN * by_lcc, by_lcc + LEAST_GAIN):
        return ContrastEvidence("mind", agree, (by_lcc, by_mind), level.gain(moved_by_mind))
    return ContrastEvidence("lcc", agree, (by_lcc, by_mind))


@dataclass(frozen=True, eq=False)
class _Level:
    """Two images on one coarse lattice, and where both the first and its tissue count."""

    fixed: Floats
    aligned: Floats
    counts: NDArray[np.bool_]
    grid: Grid

    @classmethod
    def of(cls, fixed: Image, aligned: NDArray[Any], tissue: NDArray[np.bool_]) -> _Level:
        """Average a fixed image and one that is aligned with it."""
        factors = cubic_factors(fixed.grid, _VOXELS)
        images = [np.asarray(voxels, np.float32) for voxels in (fixed.read(), aligned)]
        a, b = (shrink(image, fixed.grid, factors)[0] for image in images)
        inside, grid = shrink(tissue.astype(np.float32), fixed.grid, factors)
        return cls(a, b, (inside >= 0.5) & np.isfinite(a), grid)

    def follow(self, settings: DescentSettings) -> Floats:
        """The second image through the displacement that a coarse descent finds."""
        coarse = evolve(settings.select(slice(-3, -1)), shrink_factors=_LEVELS)
        still = np.eye(self.grid.ndim + 1)
        frame = Frame(self.grid, self.grid, still)
        here = coarse.for_voxels(self.grid.spacing)
        found = descend_on_engine(self.fixed, self.aligned, frame, here)
        mapping = GridMap(self.grid, still, found.displacement)
        return warp_mapped(Image(self.aligned, self.grid), mapping, NAN_OUTSIDE)

    def information(self, moved: Floats) -> float:
        """Mutual information of the first image and the second, as it was moved."""
        return mutual_information(self.fixed[self.counts], moved[self.counts])

    def gain(self, moved: Floats) -> float:
        """Gain in information by moving the second image, in standard errors over cubes."""
        known = self.counts & np.isfinite(self.aligned) & np.isfinite(moved)
        if not known.any():
            return math.nan
        before, after = (
            information_by_voxel(self.fixed[known], image[known]) for image in (self.aligned, moved)
        )
        cubes = number_cubes(self.grid.shape, self.grid.spacing)[known]
        return gain_in_cubes(before, after, cubes)


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
    return float(information_by_voxel(a[known], b[known]).mean()) if known.any() else 0.0


def information_by_voxel(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Information that each voxel of one image holds of that of the other, in nats.

    Their mean is the mutual information. Shapes: both (voxels,), finite.
    """
    first, second = _ranked(a), _ranked(b)
    joint = np.bincount(first * _BINS + second, minlength=_BINS**2).reshape(_BINS, _BINS)
    share = joint / joint.sum()
    chance = share.sum(axis=1)[:, None] * share.sum(axis=0)
    told = np.log(share, out=np.zeros_like(share), where=share > 0)
    told -= np.log(chance, out=np.zeros_like(chance), where=share > 0)
    return np.asarray(told[first, second])


def _ranked(values: NDArray[Any]) -> NDArray[np.int64]:
    edges = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def cubic_factors(grid: Grid, voxels: float, slack: float = 0.0) -> tuple[int, ...]:
    """Voxels per axis of a level with at most so many, near to cubes.

    With some slack, in voxels, fewer are averaged, and the level has a little more.
    """
    edge = (math.prod(grid.spacing) * grid.size / voxels) ** (1 / grid.ndim)
    return tuple(max(1, math.ceil(edge / h - slack)) for h in grid.spacing)
