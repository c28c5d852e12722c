"""Deformable registration: whole, or lazily block by block."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import ArrayLike, NDArray

from itkstream.block_kernels import deform_block
from itkstream.doors import as_pair, block_grid
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    AffineTransform,
    Block,
    BlockGrid,
    DisplacementField,
    Grid,
    Image,
    Transform,
)
from itkstream.lazy import Result, blend, map_blocks, once, readable
from itkstream.levels import LevelPlan, after_coarse, plan_levels, solve_coarse
from itkstream.masks import Mask
from itkstream.numerics.descent_settings import DescentSettings
from itkstream.numerics.fields import jacobian_determinant, shrink_field, to_positions
from itkstream.numerics.itk_settings import DeformSettings
from itkstream.numerics.mapping import map_on
from itkstream.steps import Deformable, Method
from itkstream.transform import piecewise_transform

__all__ = [
    "deformable_align",
    "prepare_coarse_field",
    "prepare_displacement",
    "prepare_fold_count",
    "prepare_piecewise_deformable_align",
    "prepare_positions",
]

logger = logging.getLogger(__name__)

Abcd = tuple[float, float, float, float]

COARSE_VOXELS = 20e6
"""Voxels of the level that is solved as a whole: some 1.5 GB while it is."""


def deformable_align(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    cc_radius: int = 12,
    gradient_smoothing: Abcd = (3.0, 0.0, 1.0, 2.0),
    field_smoothing: Abcd = (0.5, 0.0, 1.0, 6.0),
    iterations: Sequence[int] = (200, 100),
    shrink_factors: Sequence[int] = (2, 1),
    smooth_sigmas: Sequence[float] = (4.0, 2.0),
    step: float | None = None,
    *,
    method: Method = "lcc",
    settings: DeformSettings | None = None,
    fix_mask: Mask | None = None,
    mov_mask: Mask | None = None,
) -> NDArray[np.float32]:
    """Find the deformation between two images in memory.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed and moving image, already aligned by an affine.
    fix_spacing, mov_spacing : sequence of float or None
        Micrometers per voxel; None for an `Image`.
    cc_radius : int
        Radius of the correlation window, in voxels of each level.
    gradient_smoothing, field_smoothing : four floats
        (a, b, c, d) of the smoothing operators of the force and of the displacement, see
        `itkstream.numerics.kernels`.
    iterations : sequence of int
        At most so many per level, coarse to fine.
    shrink_factors : sequence of int
        Of the levels.
    smooth_sigmas : sequence of float
        Gaussian before shrinking, in micrometers.
    step : float, optional
        Longest displacement of one iteration, in micrometers; default the smallest fixed voxel
        spacing.
    method : {'lcc', 'demons', 'symmetric-demons', 'diffeomorphic-demons'}
        'lcc' follows local correlation, with the parameters above; the others are SimpleITK's
        demons with the defaults of `DemonsSettings`, scaled to the smallest fixed voxel spacing.
    settings : DescentSettings or DemonsSettings, optional
        All parameters in one value, instead of those above; its kind decides the method.
    fix_mask, mov_mask : Mask, optional
        Which voxels count, see `itkstream.masks.Mask`; others do not pull.

    Returns
    -------
    ndarray, fixed shape + (3,), float32
        Displacement in micrometers: the moving position of voxel p is ``p + displacement(p)``.

    Raises
    ------
    InputError
        Where parameters are invalid or contradict each other.
    RegistrationError
        Where the images do not overlap or hold no texture.
    """
    given = DescentSettings(
        cc_radius,
        gradient_smoothing,
        field_smoothing,
        iterations,
        shrink_factors,
        smooth_sigmas,
        step,
    )
    masks = (fix_mask, mov_mask)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, masks=masks)
    settings = _choose(method, settings, given, fixed.grid)
    estimate = deform_block(fixed, moving, AffineTransform(np.eye(fixed.ndim + 1)), settings)
    if estimate.displacement is None:
        raise RegistrationError(f"no deformation could be found: {estimate.reason}")
    return estimate.displacement


def prepare_piecewise_deformable_align(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    blocksize: Sequence[int],
    transpose: Sequence[bool] = (False, False),
    global_affine: ArrayLike | None = None,
    local_affines: ArrayLike | None = None,
    cc_radius: int = 12,
    gradient_smoothing: Abcd = (3.0, 0.0, 1.0, 2.0),
    field_smoothing: Abcd = (0.5, 0.0, 1.0, 6.0),
    iterations: Sequence[int] = (200, 100),
    shrink_factors: Sequence[int] = (2, 1),
    smooth_sigmas: Sequence[float] = (4.0, 2.0),
    step: float | None = None,
    *,
    overlap: Sequence[int] | int | None = None,
    method: Method = "lcc",
    settings: DeformSettings | None = None,
    coarse_voxels: float = COARSE_VOXELS,
    fix_mask: Mask | None = None,
    mov_mask: Mask | None = None,
) -> da.Array:
    """Prepare to find the deformation block by block, on top of affines.

    The coarse levels are solved on the whole image, shrunk until it fits in memory; every block
    starts from there and adds the levels that are left. It samples the original moving image
    through the whole chain: nothing is resampled twice and nothing is added that should be
    composed. Blocks are blended as a partition of unity over their overlaps. A block that fails
    (no texture, no overlap) continues its neighbours, and says so in the log.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed and moving image.
    fix_spacing, mov_spacing : sequence of float or None
        Micrometers per voxel, x first; None for an `Image`.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    transpose : two bools
        Whether the stored axes of fix and mov are reversed (z, y, x).
    global_affine : array_like, (4, 4), optional
        From fixed to moving points, in micrometers.
    local_affines : array_like, block grid + (4, 4), optional
        Applied before the global one; for the same blocksize.
    cc_radius, gradient_smoothing, field_smoothing, iterations, shrink_factors, smooth_sigmas, step
        As in `deformable_align`.
    overlap : int or sequence of int, optional
        Voxels each block looks beyond its border; default an eighth of the block.
    method : {'lcc', 'demons', 'symmetric-demons', 'diffeomorphic-demons'}
        As in `deformable_align`.
    settings : DescentSettings or DemonsSettings, optional
        All parameters of the deformation in one value; its kind decides the method.
    coarse_voxels : float
        Most voxels of the level on which the whole image is solved; 0 leaves the blocks alone.
    fix_mask, mov_mask : Mask, optional
        As in `deformable_align`; a stored mask is read block by block.

    Returns
    -------
    dask.array.Array, fixed shape + (3,), float64
        Lazy. The moving position of every fixed voxel, in micrometers, x first.
    """
    given = DescentSettings(
        cc_radius,
        gradient_smoothing,
        field_smoothing,
        iterations,
        shrink_factors,
        smooth_sigmas,
        step,
    )
    masks = (fix_mask, mov_mask)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose, masks)
    settings = _choose(method, settings, given, fixed.grid)
    affine = np.eye(fixed.ndim + 1) if global_affine is None else np.asarray(global_affine, float)
    initial: Transform = AffineTransform(affine)
    if local_affines is not None:
        initial = piecewise_transform(fixed.grid, local_affines, blocksize, affine, overlap)
    return prepare_positions(fixed, moving, initial, blocksize, settings, overlap, coarse_voxels)


def prepare_positions(
    fixed: Image,
    moving: Image,
    initial: Transform | Delayed,
    blocksize: Sequence[int],
    settings: DeformSettings,
    overlap: Sequence[int] | int | None = None,
    coarse_voxels: float = COARSE_VOXELS,
) -> da.Array:
    """Prepare where every fixed voxel lies after a deformation on top of an initial transform.

    Parameters
    ----------
    fixed, moving : Image
        The images, with the same axes.
    initial : Transform or Delayed
        Where the blocks start; it may still have to be computed.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    settings : DeformSettings
        Parameters of the deformation; their kind decides the engine.
    overlap : int or sequence of int, optional
        Voxels per side; default an eighth of the block.
    coarse_voxels : float
        Most voxels of the level on which the whole image is solved; 0 leaves the blocks alone.

    Returns
    -------
    dask.array.Array, fixed shape + (n,), float64
        Lazy. Moving positions in micrometers.
    """
    blocks = block_grid(fixed.shape, blocksize, overlap)
    task = _Task(fixed, moving, initial, settings, blocks)
    refinement, shared = _prepare_refinement(task, coarse_voxels)
    blocks = block_grid(fixed.shape, blocksize, 0)
    result = Result(np.float64, (fixed.ndim,))
    return map_blocks(_position_block, blocks, refinement, shared, result)


def prepare_displacement(
    fixed: Image,
    moving: Image,
    initial: Transform,
    blocksize: Sequence[int],
    settings: DeformSettings,
    overlap: Sequence[int] | int | None = None,
    coarse_voxels: float = COARSE_VOXELS,
) -> da.Array:
    """Prepare the deformation in front of the affine of an initial transform.

    Parameters
    ----------
    fixed, moving : Image
        The images, with the same axes.
    initial : Transform
        Where the blocks start: an affine, or local affines or a field followed by one.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    settings : DescentSettings or DemonsSettings
        Parameters of the deformation; their kind decides the engine.
    overlap : int or sequence of int, optional
        Voxels per side; default an eighth of the block.
    coarse_voxels : float
        Most voxels of the level on which the whole image is solved; 0 leaves the blocks alone.

    Returns
    -------
    dask.array.Array, fixed shape + (n,), float32
        Lazy. u in ``T(p) = affine(p + u(p))``, in micrometers, the initial displacement included.
    """
    fixed, moving = as_pair(fixed, moving, None, None)
    blocks = block_grid(fixed.shape, blocksize, overlap)
    task = _Task(fixed, moving, initial, settings, blocks)
    refinement, shared = _prepare_refinement(task, coarse_voxels)
    blocks = block_grid(fixed.shape, blocksize, 0)
    result = Result(np.float32, (fixed.ndim,))
    return map_blocks(_displacement_block, blocks, refinement, shared, result)


def prepare_coarse_field(field: da.Array, factors: Sequence[int]) -> da.Array:
    """Prepare a field on a coarser lattice: a smooth field needs no more to be stored.

    Parameters
    ----------
    field : dask.array.Array, shape + (n,), float32
        Its chunks, but for the last of an axis, must be multiples of `factors`.
    factors : sequence of int
        Voxels averaged per axis.

    Returns
    -------
    dask.array.Array, ceil(shape / factors) + (n,), float32
        Lazy; its lattice is ``grid.shrink(factors)``.

    Raises
    ------
    InputError
        Where a group of voxels would span two chunks.
    """
    for axis, (lengths, factor) in enumerate(zip(field.chunks[:-1], factors, strict=True)):
        if any(n % factor for n in lengths[:-1]):
            raise InputError(
                f"blocks of {lengths[0]} voxels on axis {axis} cannot be averaged in groups of "
                f"{factor}; use a blocksize that is a multiple of {factor}"
            )
    spatial = zip(field.chunks[:-1], factors, strict=True)
    chunks = tuple(tuple(-(-n // f) for n in lengths) for lengths, f in spatial)
    return field.map_blocks(
        shrink_field,
        factors=tuple(factors),
        chunks=(*chunks, field.chunks[-1]),
        meta=np.empty((0,) * field.ndim, np.float32),
    )


def prepare_fold_count(field: DisplacementField, blocksize: Sequence[int]) -> da.Array:
    """Prepare the least Jacobian determinant of a field and its number of folded voxels, per block.

    Parameters
    ----------
    field : DisplacementField
        In memory or stored.
    blocksize : sequence of int
        Voxels of a block per axis.

    Returns
    -------
    dask.array.Array, block grid + (2,), float64
        Lazy. Least determinant of the block's voxels, and how many are 0 or less.
    """
    blocks = block_grid(field.grid.shape, blocksize, 1)
    shared = {"grid": field.grid}
    return map_blocks(_fold_block, blocks, field.data, shared, Result(np.float64, (2,), "block"))


def _choose(
    method: Method, settings: DeformSettings | None, given: DescentSettings, grid: Grid
) -> DeformSettings:
    """The settings that the arguments of a door mean."""
    step = Deformable(method)
    if settings is not None:
        if method not in ("lcc", getattr(settings, "method", "lcc")):
            raise InputError(
                f"method {method!r} and settings {settings!r} contradict each other: give one"
            )
        return settings
    if method == "lcc":
        return given
    if given != DescentSettings():
        raise InputError(
            f"cc_radius, smoothings, iterations, levels and step given one by one are for method "
            f"'lcc'; for method {method!r} give settings={type(step.settings).__name__}(...)"
        )
    return step.settings_for(grid.spacing)


@dataclass(frozen=True, eq=False)
class _Task:
    """A deformation to be found block by block."""

    fixed: Image
    moving: Image
    initial: Transform | Delayed
    settings: DeformSettings
    blocks: BlockGrid


def _prepare_refinement(task: _Task, coarse_voxels: float) -> tuple[da.Array, dict[str, Any]]:
    """What the blocks add to where they start, blended; and where they start, for all to share.

    A block that fails lacks the refinement only.
    """
    initial, settings = task.initial, task.settings
    start: Any = initial
    if coarse_voxels and len(task.blocks) > 1:
        plan = plan_levels(task.fixed.grid, settings, coarse_voxels)
        settings = plan.fine
        start = once(_start, readable(task.fixed), task.moving, initial, plan)
    where = {"grid": task.fixed.grid, "initial": start}
    shared = {**where, "moving": task.moving, "settings": settings}
    # The vectors of a block, and how far they can be trusted.
    result = Result(np.float32, (task.fixed.ndim + 1,), "padded")
    padded = map_blocks(_refine_block, task.blocks, task.fixed.data, shared, result)
    return blend(padded, task.blocks), where


def _start(fixed: Image, moving: Image, initial: Transform, plan: LevelPlan) -> Transform:
    return after_coarse(solve_coarse(fixed, moving, initial, plan), initial)


def _refine_block(
    part: NDArray[Any],
    block: Block,
    *,
    grid: Grid,
    moving: Image,
    initial: Transform,
    settings: DeformSettings,
) -> NDArray[np.float32]:
    here = Image(part, grid.crop(block.padded))
    estimate = deform_block(here, moving, initial, settings)
    refinement = estimate.refinement()
    if refinement is not None:
        trust = np.full((*part.shape, 1), estimate.confidence(), np.float32)
        return np.concatenate([refinement, trust], axis=-1)
    if block.padded_shape == grid.shape:
        raise RegistrationError(f"no deformation could be found: {estimate.reason}")
    logger.warning(
        "block %s has no deformation of its own, as %s; it continues its neighbours",
        block.index,
        estimate.reason,
    )
    return np.full((*part.shape, part.ndim + 1), np.nan, np.float32)


def _displacement_block(
    part: NDArray[np.float32], block: Block, *, grid: Grid, initial: Transform
) -> NDArray[np.float32]:
    start = map_on(initial, grid.crop(block.core)).displacement
    return part if start is None else part + start


def _position_block(
    part: NDArray[np.float32], block: Block, *, grid: Grid, initial: Transform
) -> NDArray[np.float64]:
    mapping = map_on(initial, grid.crop(block.core))
    total = part if mapping.displacement is None else part + mapping.displacement
    return to_positions(total, mapping.grid, mapping.affine)


def _fold_block(part: NDArray[np.float32], block: Block, *, grid: Grid) -> NDArray[np.float64]:
    determinant = jacobian_determinant(part, grid.crop(block.padded))[block.core_in_padded]
    count = np.count_nonzero(~(determinant > 0))
    return np.array([float(determinant.min()), count]).reshape((1,) * grid.ndim + (2,))
