"""Parameters chosen from a pair whose affine is known, with the numbers that speak for each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.blocks.levels import factors_to_fit, read_coarse
from itkstream.estimate.stiffness import choose_stiffness
from itkstream.geometry import AffineTransform, Image
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.numerics.evidence.contrast import find_similarity
from itkstream.numerics.evidence.quality import tissue_mask
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.registration.steps.deformable import Deformable
from itkstream.registration.steps.local import LocalAffines
from itkstream.registration.steps.matched import MatchingChoice, said_of

__all__ = ["Setting", "choose_blocks", "choose_deformation", "matching_settings"]

Floats = NDArray[np.float64]

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


def matching_settings(choice: MatchingChoice) -> tuple[Setting, ...]:
    """The parameters of matching that were chosen, and how many matches agreed by others.

    Parameters
    ----------
    choice : MatchingChoice
        Of a sample.

    Returns
    -------
    tuple of Setting
        Radii, context and threshold.
    """
    values = choice.radii, choice.context, choice.threshold
    options = (
        "--radii {:g} {:g}".format(*choice.radii),
        f"--context-radius {choice.context}",
        f"--match-threshold {choice.threshold}",
    )
    tried = choice.by_radii, choice.by_context, choice.by_threshold
    names = "radii", "context radius", "match threshold"
    return tuple(
        Setting(name, value, option, f"matches that agree in a sample: {said_of(outcomes)}")
        for name, value, option, outcomes in zip(names, values, options, tried, strict=True)
    )


def choose_blocks(
    matching: MatchingChoice, rest_vox: float, deformable: Deformable, ndim: int
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
