"""A list of steps block by block, on top of each other; nothing is computed yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import ArrayLike, NDArray

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import as_pair, block_grid, check_start
from itkstream.blocks.masks import Mask
from itkstream.errors import InputError
from itkstream.estimate.affines import prepare_local_affines, split_local_affines
from itkstream.estimate.deformation import COARSE_VOXELS, prepare_positions
from itkstream.geometry import (
    AffineTransform,
    Block,
    BlockGrid,
    CompositeTransform,
    Grid,
    Image,
    PiecewiseAffine,
    Transform,
    steps_of,
)
from itkstream.numerics.sampling.fields import to_positions
from itkstream.numerics.sampling.mapping import map_on
from itkstream.registration.steps import (
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    Step,
    checked_steps,
)

__all__ = ["prepare_piecewise_align"]


AffineStep: TypeAlias = RansacAffine | IntensityAffine | LocalAffines
Start: TypeAlias = Transform | Delayed | None


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
        Micrometers per voxel, x first; None for an `Image`.
    steps : sequence of Step
        `RansacAffine`, `IntensityAffine`, `LocalAffines`, `Deformable`. A `Deformable` can only be
        the last; its blocks, and those of `RansacAffine` and `IntensityAffine`, are of this
        function's `blocksize` and `overlap`. `LocalAffines` has its own.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    transpose : two bools
        Whether the stored axes of fix and mov are reversed (z, y, x).
    initial_transform : Transform or array_like, (4, 4), optional
        Where the first step starts, from fixed to moving points in micrometers; default identity.
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
        Lazy. The moving position of every fixed voxel, in micrometers, x first.

    Raises
    ------
    InputError
        For images, steps or blocks that cannot be used.
    """
    steps = _in_order(steps)
    masks = (fix_mask, mov_mask)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose, masks)
    blocks = block_grid(fixed.shape, blocksize, overlap)
    start = _as_start(initial_transform)
    check_start(fixed, moving, start, anywhere=start is None)
    known: Start = start
    for step in steps:
        if isinstance(step, Deformable):
            begin = AffineTransform(np.eye(fixed.ndim + 1)) if known is None else known
            settings = step.settings_for(fixed.spacing)
            return prepare_positions(
                fixed, moving, begin, blocks.blocksize, settings, blocks.overlap, coarse_voxels
            )
        known = _refined(fixed, moving, known, step, blocks)
    shared = {"grid": fixed.grid, "initial": known}
    cores = block_grid(fixed.shape, blocksize, 0)
    return map_blocks(_positions, cores, None, shared, Result(np.float64, (fixed.ndim,)))


def _in_order(steps: Sequence[Step]) -> tuple[Step, ...]:
    checked = checked_steps(steps)
    if not checked:
        raise InputError("steps needs at least one step; got none")
    if any(isinstance(step, Deformable) for step in checked[:-1]):
        raise InputError(
            "a Deformable must be the last step of blocks, as its field is not stored between "
            f"steps; got {checked}: use itkstream.register, or one call after the other"
        )
    return checked


def _as_start(given: Transform | ArrayLike | None) -> Transform | None:
    if given is None or isinstance(given, Transform):
        return given
    return AffineTransform(np.asarray(given))


def _refined(
    fixed: Image, moving: Image, start: Start, step: AffineStep, blocks: BlockGrid
) -> Delayed:
    """The transform after an affine of every block, still to be computed."""
    settings: Any
    if isinstance(step, IntensityAffine):
        settings = step.settings_for(fixed.spacing)
    elif isinstance(step, RansacAffine):
        settings = [step.settings_for(fixed.spacing, radii) for radii in step.radii]
    else:
        choices = RansacAffine().radii if step.radii is None else (step.radii,)
        settings = [step.settings_for(fixed.spacing, radii) for radii in choices]
        blocks = block_grid(fixed.shape, (step.blocksize,) * fixed.ndim, step.overlap)
    packed = prepare_local_affines(
        fixed, moving, start, blocks.blocksize, settings, overlap=blocks.overlap
    )
    known = start if isinstance(start, Delayed) else dask.delayed(start, traverse=False)
    return dask.delayed(_before)(packed, blocks, fixed.grid, known)


def _before(
    packed: NDArray[np.float64], blocks: BlockGrid, grid: Grid, known: Transform | None
) -> Transform:
    """The blocks' affines, and then what was known before."""
    local = PiecewiseAffine(split_local_affines(packed, grid.ndim)[0], blocks, grid)
    if known is None:
        return local
    return CompositeTransform((local, *steps_of(known)))


def _positions(_part: None, block: Block, *, grid: Grid, initial: Transform) -> NDArray[np.float64]:
    here = grid.crop(block.core)
    mapping = map_on(initial, here)
    moves = mapping.displacement
    if moves is None:
        return AffineTransform(mapping.affine).apply(here.positions())
    return to_positions(moves, here, mapping.affine)
