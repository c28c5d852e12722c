"""Parameters chosen from a pair whose affine is known, with the numbers that speak for each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.blocks.levels import factors_to_fit, read_coarse
from itkstream.blocks.sources import readable
from itkstream.errors import RegistrationError
from itkstream.estimate.stiffness import choose_stiffness
from itkstream.geometry import AffineTransform, ChannelPair, Image
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.numerics.evidence.contrast import find_similarity
from itkstream.numerics.evidence.quality import tissue_mask
from itkstream.numerics.matching.affine import MatchedAffine, Stages, affine_block
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.registration.scene import Radii
from itkstream.registration.steps.deformable import Deformable
from itkstream.registration.steps.local import LocalAffines
from itkstream.registration.steps.matching import COMMON_RADII, choose_radii
from itkstream.registration.steps.ransac import RansacAffine

__all__ = ["Matching", "Setting", "choose_blocks", "choose_deformation", "choose_matching"]

Floats = NDArray[np.float64]

# Parameters of matching are tried on so many voxels of the level that `register` matches, and on
# a share of its key points: 4 of the 16 million of an expansion microscopy pair.
_SAMPLE = 4e6
_LEAST_SPOTS = 300
# Voxels around where the affine puts the sample in the moving level.
_MARGIN = 16
# Half widths of contexts, beside the default of 12 voxels, and thresholds. On that pair, shrunk 1,
# 2 and 4 times, and on the demo, all contexts of 8 to 18 voxels had 0.96 to 1 of the inliers of the
# best but on the smallest (0.45 to 1, the more the smaller they were); threshold 0.5 had
# 0.99 and more, 0.7 had 0.83 to 1.
_CONTEXTS, _SMALLEST = (8, 18), 6
_THRESHOLDS = (0.7, 0.6, 0.5)
# Another value is taken for this gain; of thresholds, the highest with this share of all inliers.
_GAIN, _NEARLY = 1.02, 0.98
# Matches that determine an affine of a block well; fewer are fitted rigidly.
_PER_BLOCK = 30
_LOCAL_BLOCKS = (128, 192, 256)
# Voxels of the level on which contrast and stiffness are told.
_DEFORMED = 3e5


@frozen
class Setting:
    """A parameter that was chosen.

    Parameters
    ----------
    name : str
        The parameter.
    value : object
        Its value; lengths in voxels: of the level the affine is found on, but those of blocks and
        overlaps of the deformation, which are of the fixed image.
    option : str
        The option of the command line; empty where `register` does so without.
    why : str
        The numbers that speak for it.
    """

    name: str
    value: Any
    option: str
    why: str


@frozen(eq=False)
class Matching:
    """Parameters of matching by which most key points of a sample agree, and why."""

    radii: Radii
    step: RansacAffine
    found: MatchedAffine
    settings: tuple[Setting, ...]
    sampled: int

    @property
    def density(self) -> float:
        """Matches that agree, per voxel."""
        return self.found.stages.inliers / self.sampled


def choose_matching(pair: tuple[Image, Image], matrix: Floats, as_they_lie: bool) -> Matching:
    """Choose radii of blobs, then contexts, then the threshold, by the matches that agree.

    The pair are the levels that `register` matches, perhaps not in memory. Of these, a part is
    matched, where the affine of the matrix lays it; where images do not match as they lie, the
    moving one is laid there before. A `RegistrationError` where too few of a sample agree.
    """
    fixed, moving, share = _sample(pair, matrix)
    if not as_they_lie:
        moved = warp_block(moving, AffineTransform(matrix), fixed.grid, NAN_OUTSIDE)
        moving = Image(moved, fixed.grid)
    usual = RansacAffine()
    spots = max(_LEAST_SPOTS, round(usual.nspots * share))
    step = usual.evolve(match_threshold=_THRESHOLDS[-1], nspots=spots)
    chosen = choose_radii([ChannelPair(fixed, moving)], step, COMMON_RADII, plenty=fixed.grid.size)
    if chosen.found.best.estimate.matrix is None:
        raise RegistrationError(f"a sample does not match: {chosen.found.best.estimate.reason}")
    tries = _Tries(fixed, moving, chosen.radii)
    step, found, contexts = tries.with_context(step, chosen.found.best)
    found, thresholds = tries.with_threshold(found)
    threshold = found.settings.matching.threshold
    radii = {f"{low:g} {high:g}": stages for (low, high), stages in chosen.outcomes}
    settings = (
        _setting("radii", chosen.radii, "--radii {:g} {:g}".format(*chosen.radii), radii),
        _setting("context radius", step.cc_radius, f"--context-radius {step.cc_radius}", contexts),
        _setting("match threshold", threshold, f"--match-threshold {threshold}", thresholds),
    )
    step = step.evolve(match_threshold=threshold, nspots=usual.nspots, radii=(chosen.radii,))
    return Matching(chosen.radii, step, found, settings, fixed.grid.size)


@frozen(eq=False)
class _Tries:
    """A sample of both images, whose key points are matched by one parameter or another."""

    fixed: Image
    moving: Image
    radii: Radii

    def with_context(
        self, step: RansacAffine, found: MatchedAffine
    ) -> tuple[RansacAffine, MatchedAffine, dict[str, Stages | None]]:
        """The half width of contexts by which most matches agree, and what was tried."""
        tried: dict[str, Stages | None] = {str(step.cc_radius): found.stages}
        for width in (*_CONTEXTS, _SMALLEST):
            if width == _SMALLEST and step.cc_radius != _CONTEXTS[0]:
                break
            other = step.evolve(cc_radius=width)
            settings = other.settings_for(self.fixed.spacing, self.radii)
            again = affine_block(self.fixed, self.moving, settings, found.points)
            tried[str(width)] = again.stages
            if again.stages.inliers > _GAIN * found.stages.inliers:
                step, found = other, again
        return step, found, tried

    def with_threshold(
        self, found: MatchedAffine
    ) -> tuple[MatchedAffine, dict[str, Stages | None]]:
        """The highest threshold that keeps nearly all matches that agree, and what was tried."""
        tried: dict[str, Stages | None] = {}
        for threshold in _THRESHOLDS:
            fewer = found.above(threshold, self.fixed.grid)
            tried[str(threshold)] = fewer.stages
            if fewer.stages.inliers >= _NEARLY * found.stages.inliers:
                return fewer, tried
        return found, tried


def choose_blocks(
    matching: Matching, rest_vox: float, deformable: Deformable, ndim: int
) -> tuple[Setting, ...]:
    """Choose blocks of the piecewise affine, and overlap of those of the deformation.

    Nearly all matches lie within `rest_vox`, in voxels of the fixed image, from the affine.
    """
    counts = {size: round(matching.density * size**ndim) for size in _LOCAL_BLOCKS}
    local = next((size for size, count in counts.items() if count >= _PER_BLOCK), 0)
    told = ", ".join(f"{count} in {size} voxels an axis" for size, count in counts.items())
    block = deformable.blocksize
    usual, most = block // 8, block // 4
    overlap = min(max(usual, math.ceil(rest_vox)), most)
    return (
        Setting(
            "local block",
            local,
            "" if local == LocalAffines().blocksize else f"--local-block {local}",
            f"matches to a block: {told}; {_PER_BLOCK} determine an affine well",
        ),
        Setting(
            "block",
            block,
            "" if block == Deformable().blocksize else f"--block {block}",
            "it fits the memory",
        ),
        Setting(
            "overlap",
            overlap,
            "" if overlap == usual else f"--overlap {overlap}",
            f"95 % of the matches lie within {rest_vox:.2g} voxels of the affine; "
            f"{usual} is the least, a quarter of a block the most",
        ),
    )


def choose_deformation(fixed: Image, moving: Image, matrix: Floats) -> tuple[Setting, ...]:
    """Choose what the deformation follows and how stiff it is, on a coarse level."""
    start = AffineTransform(matrix)
    small, other = (read_coarse(i, factors_to_fit(i.grid, _DEFORMED)) for i in (fixed, moving))
    tissue = tissue_mask(small.read())
    aligned = warp_block(other, start, small.grid, NAN_OUTSIDE)
    contrast = find_similarity(small, aligned, tissue)
    similarity = Setting(
        "similarity", contrast.similarity, "", f"{contrast.reason}; register decides it again"
    )
    if contrast.similarity != "lcc":
        return (similarity,)
    settings = PIPELINE_DEFAULTS.for_voxels(small.spacing)
    told = choose_stiffness(small, other, start, settings, tissue)
    hidden = ", ".join(f"{k}: {v:.3f}" for k, v in sorted(told.correlations.items()))
    why = f"correlation of voxels hidden from it on a coarse level, by stiffness, {hidden}"
    if told.is_chance:
        why += f"; no better than {told.start:.3f} without a deformation"
    stiffness = Setting("stiffness", told.stiffness, "", f"{why}; register decides it again")
    return similarity, stiffness


def _setting(name: str, value: Any, option: str, tried: dict[str, Stages | None]) -> Setting:
    """A parameter of matching, and how many matches agreed by each value that was tried."""
    told = "; ".join(
        f"{text}: {stages.inliers} of {stages.matches}" if stages else f"{text}: none"
        for text, stages in tried.items()
    )
    return Setting(name, value, option, f"matches that agree in a sample: {told}")


def _sample(pair: tuple[Image, Image], matrix: Floats) -> tuple[Image, Image, float]:
    """The middle of the fixed level, where the moving one lies for it, and its share of the whole.

    Both are read.
    """
    fixed, moving = (readable(image) for image in pair)
    edge = min(1.0, (_SAMPLE / fixed.grid.size) ** (1 / fixed.ndim))
    box = tuple(_middle(n, edge) for n in fixed.shape)
    part = fixed[box]
    corners = AffineTransform(matrix).apply(part.grid.corners())
    index = moving.grid.to_index(corners)
    low = np.clip(np.floor(index.min(axis=0)).astype(int) - _MARGIN, 0, moving.shape)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1 + _MARGIN, 0, moving.shape)
    if edge == 1 or (high - low < _MARGIN).any():
        part, other = fixed, moving
    else:
        other = moving[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    read = [Image(image.read(), image.grid, image.name) for image in (part, other)]
    return read[0], read[1], part.grid.size / fixed.grid.size


def _middle(length: int, share: float) -> slice:
    size = max(1, round(share * length))
    first = (length - size) // 2
    return slice(first, first + size)
