"""Deformable registration: whole, or lazily block by block."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import ArrayLike, NDArray

from itkstream.already_aligned import MovIs, checked_mov_is, prepare_start_of
from itkstream.block_kernels import BARREN, deform_block
from itkstream.doors import as_pair, block_grid, check_start
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    AffineTransform,
    Block,
    BlockGrid,
    DisplacementField,
    Grid,
    Image,
    PiecewiseAffine,
    Transform,
    steps_of,
)
from itkstream.lazy import Result, judged, map_blocks, map_neighbours
from itkstream.levels import Levels, prepare_levels
from itkstream.masks import Mask
from itkstream.numerics.blend import NodeLattice, blend_points
from itkstream.numerics.descent import node_factors
from itkstream.numerics.descent_settings import DescentSettings
from itkstream.numerics.fields import (
    jacobian_determinant,
    node_vectors,
    resize_field,
    shrink_field,
    to_positions,
)
from itkstream.numerics.itk_settings import DeformSettings
from itkstream.numerics.mapping import GridMap, map_on
from itkstream.steps import Deformable, Method
from itkstream.transform import piecewise_transform
from itkstream.whole_image import plan_levels, prepare_content, prepare_start

__all__ = [
    "deform_blocks",
    "deformable_align",
    "field_factors",
    "prepare_displacement",
    "prepare_fold_count",
    "prepare_piecewise_deformable_align",
    "prepare_positions",
]

logger = logging.getLogger(__name__)

Abcd = tuple[float, float, float, float]

# Where the whole image was solved first, many blocks need no verdict, which is a task more for each
# and holds what they bring until the last is done: that fails where nothing is to be found.
_JUDGED_BLOCKS = 27

# Why a block brings nothing, by number.
_REASONS = ("it is empty", *BARREN.values(), "no voxel of an image counts there")

# Blocks join along the first axis, then along the others.
_FIRST = (0,)

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
    method : {'lcc', 'demons', 'symmetric-demons', 'diffeomorphic-demons', 'bspline'}
        'lcc' follows local correlation, with the parameters above; the others are SimpleITK's
        with the defaults of `DemonsSettings` and `BsplineSettings`, scaled to the smallest fixed
        voxel spacing.
    settings : DeformSettings, optional
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
    check_start(fixed, moving)
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
    skip_empty: bool = False,
    fix_mask: Mask | None = None,
    mov_mask: Mask | None = None,
    mov_is: MovIs = "aligned",
) -> da.Array:
    """Prepare to find the deformation block by block, and compose it with the affines before it.

    The deformation is found between the fixed image and the moving image as it is given. With
    `global_affine` or `local_affines`, which aligned it, the positions are composed with these, so
    they are the complete map to the original moving image. With ``mov_is="original"`` that image
    itself is given, and each block samples it through affines and deformation at once: it is
    interpolated once less, so a little more is found.

    The coarse levels are solved on the whole image, shrunk until it fits in memory; every block
    starts from there and adds the levels that are left. Blocks are blended as a partition of unity
    over their overlaps. A block that fails (no texture, no overlap) continues its neighbours, and
    says so in the log.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed image, and moving image resampled through the affines, if there are any; see
        `mov_is`.
    fix_spacing, mov_spacing : sequence of float or None
        Micrometers per voxel, x first; None for an `Image`.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    transpose : two bools
        Whether the stored axes of fix and mov are reversed (z, y, x).
    global_affine : array_like, (4, 4), optional
        From fixed to original moving points, in micrometers.
    local_affines : array_like, block grid + (4, 4), optional
        Applied before the global one; for the same blocksize.
    cc_radius, gradient_smoothing, field_smoothing, iterations, shrink_factors, smooth_sigmas, step
        As in `deformable_align`.
    overlap : int or sequence of int, optional
        Voxels each block looks beyond its border; default an eighth of the block.
    method : {'lcc', 'demons', 'symmetric-demons', 'diffeomorphic-demons', 'bspline'}
        As in `deformable_align`.
    settings : DeformSettings, optional
        All parameters of the deformation in one value; its kind decides the method.
    coarse_voxels : float
        Most voxels of the level on which the whole image is solved; 0 leaves the blocks alone.
    skip_empty : bool
        Leave out blocks in which a coarse level of neither image shows more than background and
        its noise: they are not read, and continue their neighbours.
    fix_mask, mov_mask : Mask, optional
        As in `deformable_align`; a stored mask is read block by block.
    mov_is : {'aligned', 'original'}
        Whether `mov` was resampled through the affines already. When the result is computed, and
        before any block is, a coarse level of both images is looked at: where their local
        correlation is clearly higher the other way, the run ends with `RefusedInputError`; where
        it is mildly higher, the log warns. Without affines both mean the same.

    Returns
    -------
    dask.array.Array, fixed shape + (3,), float64
        Lazy. The original moving image's position of every fixed voxel, in micrometers, x first.

    Raises
    ------
    InputError
        For images, affines or parameters that cannot be used.
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
    blocks = block_grid(fixed.shape, blocksize, overlap)
    mov_is = checked_mov_is(mov_is)
    if global_affine is None and local_affines is None:
        start = AffineTransform(np.eye(fixed.ndim + 1))
        check_start(fixed, moving, start, anywhere=True)
        task = _Task(fixed, moving, start, settings, blocks, skip_empty)
        return _prepare(task, _positions_of(fixed.grid), coarse_voxels)
    affines: Transform = AffineTransform(
        np.eye(fixed.ndim + 1) if global_affine is None else np.asarray(global_affine, float)
    )
    if local_affines is not None:
        affines = piecewise_transform(fixed.grid, local_affines, blocksize, global_affine, overlap)
    if mov_is == "original":
        check_start(fixed, moving, affines)
    levels = prepare_levels(fixed, moving, coarse_voxels or COARSE_VOXELS)
    start = prepare_start_of(levels, affines, mov_is)
    task = _Task(fixed, moving, start, settings, blocks, skip_empty, levels)
    output = _positions_of(fixed.grid, affines if mov_is == "aligned" else None)
    return _prepare(task, output, coarse_voxels)


def prepare_positions(
    fixed: Image,
    moving: Image,
    initial: Transform | Delayed,
    blocksize: Sequence[int],
    settings: DeformSettings,
    overlap: Sequence[int] | int | None = None,
    coarse_voxels: float = COARSE_VOXELS,
    skip_empty: bool = False,
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
    skip_empty : bool
        As in `prepare_piecewise_deformable_align`.

    Returns
    -------
    dask.array.Array, fixed shape + (n,), float64
        Lazy. Moving positions in micrometers.
    """
    blocks = block_grid(fixed.shape, blocksize, overlap)
    task = _Task(fixed, moving, initial, settings, blocks, skip_empty)
    return _prepare(task, _positions_of(fixed.grid), coarse_voxels)


def prepare_displacement(
    fixed: Image,
    moving: Image,
    initial: Transform,
    blocksize: Sequence[int],
    settings: DeformSettings,
    overlap: Sequence[int] | int | None = None,
    coarse_voxels: float = COARSE_VOXELS,
    factors: Sequence[int] | None = None,
    skip_empty: bool = False,
    levels: Levels | None = None,
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
    settings : DeformSettings
        Parameters of the deformation; their kind decides the engine.
    overlap : int or sequence of int, optional
        Voxels per side; default an eighth of the block.
    coarse_voxels : float
        Most voxels of the level on which the whole image is solved; 0 leaves the blocks alone.
    factors : sequence of int, optional
        Voxels per vector and axis, default 1: `field_factors` says how many lose nothing. A single
        block gives the vectors of the engine's own nodes for these, and means for others.
    skip_empty : bool
        As in `prepare_piecewise_deformable_align`.
    levels : Levels, optional
        Both images with at most `coarse_voxels` voxels, where they are known: as
        `itkstream.levels.prepare_levels` makes them by default.

    Returns
    -------
    dask.array.Array, ceil(fixed shape / factors) + (n,), float32
        Lazy. u in ``T(p) = affine(p + u(p))``, in micrometers, the initial displacement included;
        its lattice is ``fixed.grid.shrink(factors)``.

    Raises
    ------
    InputError
        Where a group of voxels would span two blocks.
    """
    fixed, moving = as_pair(fixed, moving, None, None)
    blocks = block_grid(fixed.shape, blocksize, overlap)
    by = tuple(int(f) for f in factors or (1,) * fixed.ndim)
    for axis, (lengths, factor) in enumerate(zip(blocks.chunks, by, strict=True)):
        if any(n % factor for n in lengths[:-1]):
            raise InputError(
                f"blocks of {lengths[0]} voxels on axis {axis} cannot be averaged in groups of "
                f"{factor}; use a blocksize that is a multiple of {factor}"
            )
    task = _Task(fixed, moving, initial, settings, blocks, skip_empty, levels)
    return _prepare(task, _Output(fixed.grid, by), coarse_voxels)


def deform_blocks(grid: Grid, step: Deformable, coarse_voxels: float) -> BlockGrid:
    """The blocks of a step: one for an image that fits in memory.

    Parameters
    ----------
    grid : Grid
        Of the fixed image.
    step : Deformable
        The step.
    coarse_voxels : float
        Most voxels of a level that is solved as a whole.

    Returns
    -------
    BlockGrid
        With their overlaps.
    """
    size = grid.shape if grid.size <= coarse_voxels else (step.blocksize,) * grid.ndim
    return block_grid(grid.shape, size, step.overlap)


def field_factors(settings: DeformSettings, grid: Grid, blocks: BlockGrid) -> tuple[int, ...]:
    """How coarse the lattice is that holds what a deformation finds.

    Parameters
    ----------
    settings : DeformSettings
        Parameters of the deformation.
    grid : Grid
        Of the fixed image.
    blocks : BlockGrid
        Its blocks.

    Returns
    -------
    tuple of int
        For the `factors` of `prepare_displacement`: voxels per node on which the field is
        computed, or on which blocks join; 2 per axis where that is unknown or finer.
    """
    half = (2,) * grid.ndim
    if len(blocks) > 1:
        nodes = _joining_factors(settings, grid, blocks)
    elif isinstance(settings, DescentSettings):
        nodes = node_factors(grid, settings)
    else:
        return half
    return max(nodes, half, key=math.prod)


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
    skip_empty: bool
    levels: Levels | None = None


@dataclass(frozen=True)
class _Output:
    """On which lattice the result is wanted, and in which form; positions, through what follows."""

    grid: Grid
    factors: tuple[int, ...]
    positions: bool = False
    after: Transform | None = None

    @property
    def result(self) -> Result:
        dtype = np.float64 if self.positions else np.float32
        return Result(dtype, (self.grid.ndim,), factors=self.factors)

    def cut(self, block: Block) -> Grid:
        """Where the vectors of a block are wanted."""
        spans = zip(block.core, self.factors, strict=True)
        region = tuple(slice(s.start // f, -(-s.stop // f)) for s, f in spans)
        return self.grid.shrink(self.factors).crop(region)

    def form(self, displacement: NDArray[np.float32], where: GridMap) -> NDArray[Any]:
        """A displacement in front of the affine of a map, in the form that is wanted."""
        if not self.positions:
            return displacement
        points = to_positions(displacement, where.grid, where.affine)
        for step in () if self.after is None else steps_of(self.after):
            if isinstance(step, PiecewiseAffine):
                points = blend_points(step, points)
            else:
                points = step.apply(points)
        return points


def _positions_of(grid: Grid, after: Transform | None = None) -> _Output:
    return _Output(grid, (1,) * grid.ndim, True, after)


def _prepare(task: _Task, output: _Output, coarse_voxels: float) -> da.Array:
    """One block is the direct call; several add to where they start, and join on nodes."""
    settings, start = task.settings, task.initial
    fixed, blocks = task.fixed, task.blocks
    shared: dict[str, Any] = {"moving": task.moving, "output": output}
    if len(blocks) == 1:
        shared |= {"initial": start, "settings": settings}
        return map_blocks(_only_block, blocks, fixed.data, shared, output.result)
    images, keep = (fixed, task.moving), None
    voxels, levels = coarse_voxels or COARSE_VOXELS, task.levels
    plan = plan_levels(fixed.grid, settings, coarse_voxels) if coarse_voxels else None
    if levels is None and (plan or task.skip_empty):
        levels = prepare_levels(*images, voxels)
    if plan and levels:
        settings = plan.fine
        start = prepare_start(images, task.initial, plan, voxels, levels)
    nodes = NodeLattice(blocks, _joining_factors(settings, fixed.grid, blocks))
    where = {"grid": fixed.grid, "initial": start, "nodes": nodes}
    shared = {**where, "moving": task.moving, "settings": settings}
    packed = Result(np.float32, (fixed.ndim + 2,), "block")
    if task.skip_empty:
        keep = prepare_content(images, start, blocks, voxels, levels)
    found = map_blocks(_refine_block, blocks, fixed.data, shared, packed, keep=keep)
    rows = map_neighbours(_join_row, blocks, found, {"nodes": nodes}, packed, _FIRST)
    others = range(1, fixed.ndim)
    where["output"] = output
    joined = map_neighbours(_join_block, blocks, rows, where, output.result, others)
    if plan and len(blocks) > _JUDGED_BLOCKS:
        return joined
    return judged(joined, found, _brought, _judge_blocks)


def _joining_factors(settings: DeformSettings, grid: Grid, blocks: BlockGrid) -> tuple[int, ...]:
    """Voxels per node on which blocks join: as the engine's, where these are the same for all.

    Elsewhere nodes of two voxels lose little.
    """
    # A B-spline's control points lie further apart than any nodes here.
    strides = np.ravel(getattr(settings, "node_stride", 2))
    stride = int(strides[-1]) * int(np.ravel(settings.shrink_factors)[-1])
    factors = []
    for h, size, halo in zip(grid.spacing, blocks.blocksize, blocks.overlap, strict=True):
        factor = max(1, round(stride * min(grid.spacing) / h))
        if 8 * factor > size or size % factor or halo % factor:
            factor = min(factor, 2)
        factors.append(factor if 8 * factor <= size else 1)
    return tuple(factors)


def _only_block(
    part: NDArray[Any],
    block: Block,
    *,
    moving: Image,
    output: _Output,
    initial: Transform,
    settings: DeformSettings,
) -> NDArray[Any]:
    estimate = deform_block(Image(part, output.grid), moving, initial, settings)
    if estimate.displacement is None:
        raise RegistrationError(f"no deformation could be found: {estimate.reason}")
    on_nodes = isinstance(settings, DescentSettings) and output.factors == node_factors(
        output.grid, settings
    )
    coarse = (node_vectors if on_nodes else shrink_field)(estimate.displacement, output.factors)
    return output.form(coarse, estimate.initial)


def _refine_block(
    part: NDArray[Any] | None,
    block: Block,
    *,
    grid: Grid,
    initial: Transform,
    nodes: NodeLattice,
    moving: Image,
    settings: DeformSettings,
) -> NDArray[np.float32]:
    if part is None:
        logger.debug("block %s is empty", block.index)
        return nodes.no_pack()
    estimate = deform_block(Image(part, grid.crop(block.padded)), moving, initial, settings)
    refinement = estimate.refinement()
    if refinement is not None:
        return nodes.pack(block, refinement, estimate.confidence())
    logger.info(
        "block %s has no deformation of its own, as %s; it continues its neighbours",
        block.index,
        estimate.reason,
    )
    known = estimate.reason in _REASONS
    return nodes.no_pack(_REASONS.index(estimate.reason) if known else len(_REASONS) - 1)


def _brought(pack: NDArray[np.float32]) -> int:
    """-1 for a deformation, else the number of the reason why there is none."""
    return -1 if pack.size else len(pack)


def _judge_blocks(brought: NDArray[np.intp]) -> None:
    """Say how many blocks failed and mostly why; raise where all did."""
    failed = brought[brought > 0]
    if not failed.size and (brought < 0).any():
        return
    reason = _REASONS[np.bincount(failed).argmax()] if failed.size else _REASONS[0]
    if (brought >= 0).all():
        raise RegistrationError(
            f"no deformation could be found in any of {brought.size} blocks; mostly, {reason}"
        )
    logger.warning(
        "%d of %d blocks have no deformation of their own and continue their neighbours; mostly, "
        "%s (the log at level info names each)",
        failed.size,
        brought.size,
        reason,
    )


def _join_row(
    near: list[tuple[Block, NDArray[np.float32]]], block: Block, *, nodes: NodeLattice
) -> NDArray[np.float32]:
    return nodes.add(block, near, _FIRST)


def _join_block(
    near: list[tuple[Block, NDArray[np.float32]]],
    block: Block,
    *,
    grid: Grid,
    initial: Transform,
    nodes: NodeLattice,
    output: _Output,
) -> NDArray[Any]:
    added = nodes.finish(block, nodes.add(block, near, range(1, grid.ndim)))
    on_nodes = grid.shrink(nodes.factors).crop(nodes.wanted(block))
    start = map_on(initial, output.cut(block))
    total = resize_field(added, on_nodes, start.grid)
    if start.displacement is not None:
        total += start.displacement
    return output.form(total, start)


def _fold_block(part: NDArray[np.float32], block: Block, *, grid: Grid) -> NDArray[np.float64]:
    determinant = jacobian_determinant(part, grid.crop(block.padded))[block.core_in_padded]
    count = np.count_nonzero(~(determinant > 0))
    return np.array([float(determinant.min()), count]).reshape((1,) * grid.ndim + (2,))
