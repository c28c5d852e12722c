"""A list of steps block by block, on top of each other; nothing is computed yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike

from itkstream.blocks.inputs import as_pair, block_grid, check_one_channel, check_start
from itkstream.blocks.masks import Mask
from itkstream.errors import InputError
from itkstream.estimate.deformation import COARSE_VOXELS
from itkstream.geometry import AffineTransform, Transform
from itkstream.registration.scene import BlockScene, Start
from itkstream.registration.steps import Step, checked_steps

__all__ = ["prepare_piecewise_align"]


def __dir__() -> list[str]:
    return __all__


def prepare_piecewise_align(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    steps: Sequence[Step],
    blocksize: Sequence[int],
    transpose: Sequence[bool] = (False, False),
    initial_transform: Transform | ArrayLike | None = None,
    *,
    overlap: Sequence[int] | int | None = None,
    coarse_voxels: float = COARSE_VOXELS,
    fix_mask: Mask | None = None,
    mov_mask: Mask | None = None,
) -> da.Array:
    """Prepare to align two images by a list of steps, block by block.

    Each step is done in all blocks before the next begins, and starts from what they agreed on:
    affines of the blocks are solved together and blended, so there are no seams, a block without
    matches continues its neighbours, and one that contradicts them loses its say. With one block,
    that is each step on the whole image.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed and moving image.
    fix_spacing, mov_spacing : sequence of float or None
        µm per voxel, x first; None for an `Image`.
    steps : sequence of Step
        `RansacAffine`, `IntensityAffine`, `LocalAffines`, `Deformable`. A `Deformable` can only be
        the last; its blocks, and those of `RansacAffine` and `IntensityAffine`, are of this
        function's `blocksize` and `overlap`. `LocalAffines` has its own.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    transpose : two bools
        Whether the stored axes of fix and mov are reversed (z, y, x).
    initial_transform : Transform or array_like, (4, 4), optional
        Where the first step starts, from fixed to moving points in µm; default identity.
    overlap : int or sequence of int, optional
        Voxels each block looks beyond its border; default an eighth of the block.
    coarse_voxels : float
        Most voxels of the level on which a deformation is first solved as a whole; 0 leaves its
        blocks alone.
    fix_mask, mov_mask : Mask, optional
        Which voxels count, see `itkstream.Mask`; a stored mask is read block by block.

    Returns
    -------
    dask.array.Array, fixed shape + (3,), float64
        Lazy. The moving position of every fixed voxel, in µm, x first.

    Raises
    ------
    InputError
        For images, steps or blocks that cannot be used.

    Examples
    --------
    >>> steps = [itkstream.RansacAffine(radii=[(2, 6)])]
    >>> lazy = itkstream.align.prepare_piecewise_align(
    ...     fixed, moving, None, None, steps, fixed.shape
    ... )
    >>> lazy.shape == (*fixed.shape, 3)
    True
    """
    steps = _in_order(steps)
    masks = (fix_mask, mov_mask)
    check_one_channel(fix, mov)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose, masks)
    blocks = block_grid(fixed.shape, blocksize, overlap)
    start = _as_start(initial_transform)
    check_start(fixed, moving, start, anywhere=start is None)
    scene = BlockScene(fixed, moving, blocks, coarse_voxels)
    known: Start = start
    for step in steps[:-1]:
        known = step.prepare_transform(scene, known)
    return steps[-1].prepare_positions(scene, known)


def _in_order(steps: Sequence[Step]) -> tuple[Step, ...]:
    checked = checked_steps(steps)
    if not checked:
        raise InputError("steps needs at least one step; got none")
    for step in checked[:-1]:
        if step.finds_field:
            raise InputError(
                f"a {type(step).__name__} must be the last step of blocks, as its field is not "
                f"stored between steps; got {checked}: use itkstream.register, or one call after "
                "the other"
            )
    return checked


def _as_start(given: Transform | ArrayLike | None) -> Transform | None:
    if given is None or isinstance(given, Transform):
        return given
    return AffineTransform(np.asarray(given))
