"""A deformation found block by block, from a coarse solution of the whole image."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, judged, map_blocks, map_neighbours, once
from itkstream.blocks.inputs import as_pair, block_grid
from itkstream.blocks.levels import Levels, prepare_levels
from itkstream.errors import InputError, RegistrationError, describe_region
from itkstream.estimate.coarse import Aids, LevelledPair, plan_levels, prepare_start
from itkstream.estimate.content import find_landmarks, prepare_content
from itkstream.geometry import (
    Block,
    BlockGrid,
    ChannelPair,
    Grid,
    Image,
    Landmarks,
    PiecewiseAffine,
    Slices,
    Transform,
    steps_of,
)
from itkstream.geometry.grid import voxels_spanning
from itkstream.numerics.deformation.continuation import Beyond
from itkstream.numerics.deformation.descent import node_factors
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.engines import BARREN, DeformEstimate, deform_block
from itkstream.numerics.itk.settings import DeformSettings
from itkstream.numerics.sampling.blend import NodeLattice, blend_points
from itkstream.numerics.sampling.fields import (
    Places,
    node_vectors,
    resize_field,
    shrink_field,
    to_positions,
)
from itkstream.numerics.sampling.mapping import GridMap, map_on

__all__ = ["deform_blocks", "field_factors", "prepare_displacement", "prepare_positions"]


logger = logging.getLogger(__name__)

# Where the whole image was solved first, many blocks need no verdict, which is a task more for each
# and holds what they bring until the last is done: that fails where nothing is to be found.
_JUDGED_BLOCKS = 27

# Why a block brings nothing, by number.
_REASONS = ("it is empty", *BARREN.values(), "no voxel of an image counts there")

# Blocks join along the first axis, then along the others.
_FIRST = (0,)

COARSE_VOXELS = 20e6
"""Voxels of the level that is solved as a whole: some 1.5 GB while it is."""


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
        Lazy. Moving positions in µm.

    Examples
    --------
    >>> identity = itkstream.AffineTransform(np.eye(4))
    >>> settings = itkstream.deform.DescentSettings(iterations=(20, 10))
    >>> lazy = itkstream.deform.prepare_positions(fixed, moving, identity, (32, 32, 32), settings)
    >>> lazy.shape == (*fixed.shape, 3)
    True
    """
    blocks = block_grid(fixed.shape, blocksize, overlap)
    task = Task(fixed, moving, initial, settings, blocks, coarse_voxels, skip_empty)
    return prepare_deformation(task, positions_of(fixed.grid))


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
        Both images with at most `coarse_voxels` voxels, where they are known; default they are
        averaged.

    Returns
    -------
    dask.array.Array, ceil(fixed shape / factors) + (n,), float32
        Lazy. u in ``T(p) = affine(p + u(p))``, in µm, the initial displacement included;
        its lattice is ``fixed.grid.shrink(factors)``.

    Raises
    ------
    InputError
        Where a group of voxels would span two blocks.

    Examples
    --------
    >>> identity = itkstream.AffineTransform(np.eye(4))
    >>> settings = itkstream.deform.DescentSettings(iterations=(20, 10))
    >>> lazy = itkstream.deform.prepare_displacement(
    ...     fixed, moving, identity, (32, 32, 32), settings
    ... )
    >>> lazy.shape[-1]
    3
    """
    fixed, moving = as_pair(fixed, moving, None, None)
    blocks = block_grid(fixed.shape, blocksize, overlap)
    task = Task(fixed, moving, initial, settings, blocks, coarse_voxels, skip_empty, levels)
    return prepare_deformation(task, displacement_of(blocks, fixed.grid, factors))


def deform_blocks(
    grid: Grid, blocksize: int, overlap: int | None, coarse_voxels: float
) -> BlockGrid:
    """Cut the fixed image for a deformation: into one block where it fits in memory.

    Parameters
    ----------
    grid : Grid
        Of the fixed image.
    blocksize : int
        Voxels of a block per axis, without its overlap.
    overlap : int, optional
        Voxels per side; default an eighth of the block.
    coarse_voxels : float
        Most voxels of a level that is solved as a whole.

    Returns
    -------
    BlockGrid
        With their overlaps.

    Examples
    --------
    >>> itkstream.deform.deform_blocks(fixed.grid, 256, None, 2e7).numblocks
    (1, 1, 1)
    """
    size = grid.shape if grid.size <= coarse_voxels else (blocksize,) * grid.ndim
    return block_grid(grid.shape, size, overlap)


def field_factors(settings: DeformSettings, grid: Grid, blocks: BlockGrid) -> tuple[int, ...]:
    """Choose how coarse the lattice is that holds what a deformation finds.

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

    Examples
    --------
    >>> blocks = itkstream.deform.deform_blocks(fixed.grid, 256, None, 2e7)
    >>> settings = itkstream.deform.DescentSettings()
    >>> len(itkstream.deform.field_factors(settings, fixed.grid, blocks))
    3
    """
    half = (2,) * grid.ndim
    if len(blocks) > 1:
        nodes = _joining_factors(settings, grid, blocks)
    elif isinstance(settings, DescentSettings):
        nodes = node_factors(grid, settings)
    else:
        return half
    return max(nodes, half, key=math.prod)


@dataclass(frozen=True, eq=False)
class Task:
    """A deformation to be found block by block, from an initial transform.

    The kind of the settings decides the engine. `coarse_voxels` is the most a level may have on
    which the whole image is solved first, 0 for none; `levels` are both images at so many voxels,
    where they are known. `others` are further channels that drive it, with their levels. Landmarks
    are soft constraints of the whole image and of the blocks that hold them. Where some are to be
    reached, blocks that hold none of these stay as they start. With `continues`, the field goes on
    smoothly where no fixed voxel counts.
    """

    fixed: Image
    moving: Image
    initial: Transform | Delayed
    settings: DeformSettings
    blocks: BlockGrid
    coarse_voxels: float = COARSE_VOXELS
    skip_empty: bool = False
    levels: Levels | None = None
    landmarks: Landmarks | None = None
    to_reach: Landmarks | None = None
    continues: bool = False
    others: tuple[LevelledPair, ...] = ()

    @property
    def images(self) -> tuple[Image, Image]:
        """Fixed and moving."""
        return self.fixed, self.moving

    @property
    def level_voxels(self) -> float:
        """Most voxels of the levels, on which blocks are searched for content at least."""
        return self.coarse_voxels or COARSE_VOXELS

    def guide(self, settings: DeformSettings, beyond: Beyond) -> _Guide:
        """The guide of blocks; their field goes on along `beyond` where that is wanted."""
        others = tuple(ChannelPair(p.fixed, p.moving, p.weight) for p in self.others)
        aids = Aids(self.landmarks, beyond if self.continues else None, others)
        return _Guide(settings, aids, self.to_reach is not None)

    @cached_property
    def coarse_levels(self) -> Levels:
        """Both images, averaged; to be computed where they are not known."""
        return self.levels or prepare_levels(*self.images, self.level_voxels)

    @property
    def pairs(self) -> tuple[LevelledPair, ...]:
        """All channels, the leading one first."""
        return (LevelledPair(*self.images, self.coarse_levels), *self.others)


@dataclass(frozen=True, eq=False)
class _Guide:
    """Settings and aids that the deformation of a block follows."""

    settings: DeformSettings
    aids: Aids
    others_stay: bool = False

    def deform(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform,
        box: Slices,
        places: Places | None = None,
    ) -> DeformEstimate:
        """Deform a block, which is a box of the fixed image; vectors at its places, or at all."""
        aids = self.aids
        others = tuple(pair[box] for pair in aids.others)
        return deform_block(
            fixed, moving, initial, self.settings, aids.landmarks, aids.beyond, others, places
        )


@dataclass(frozen=True)
class Output:
    """The lattice and the form in which a result is wanted; positions, through what follows."""

    grid: Grid
    factors: tuple[int, ...]
    positions: bool = False
    after: Transform | None = None

    @property
    def result(self) -> Result:
        """Its dtype and shape, for the graph."""
        dtype = np.float64 if self.positions else np.float32
        return Result(dtype, (self.grid.ndim,), factors=self.factors)

    def cut(self, block: Block) -> Grid:
        """Find the lattice on which the vectors of a block are wanted."""
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


def positions_of(grid: Grid, after: Transform | None = None) -> Output:
    """Want the moving position of every fixed voxel, also through a transform that follows."""
    return Output(grid, (1,) * grid.ndim, True, after)


def displacement_of(blocks: BlockGrid, grid: Grid, factors: Sequence[int] | None = None) -> Output:
    """Want a vector for so many voxels, default 1; these groups must not span two blocks."""
    by = tuple(int(f) for f in factors or (1,) * grid.ndim)
    for axis, (lengths, factor) in enumerate(zip(blocks.chunks, by, strict=True)):
        if any(n % factor for n in lengths[:-1]):
            raise InputError(
                f"blocks of {lengths[0]} voxels on axis {axis} cannot be averaged in groups of "
                f"{factor}; use a blocksize that is a multiple of {factor}"
            )
    return Output(grid, by)


def prepare_deformation(task: Task, output: Output) -> da.Array:
    """Prepare a deformation: one block is the direct call; several join on nodes."""
    fixed, blocks = task.fixed, task.blocks
    if len(blocks) == 1:
        known = {"initial": task.initial, "guide": task.guide(task.settings, "affine")}
        shared = {"moving": task.moving, "output": output, **known}
        return map_blocks(_only_block, blocks, fixed.data, shared, output.result)
    start, settings = _prepare_whole(task)
    nodes = NodeLattice(blocks, _joining_factors(settings, fixed.grid, blocks))
    where = {"grid": fixed.grid, "initial": start, "nodes": nodes}
    packed = Result(np.float32, (fixed.ndim + 2,), "block")
    guide = task.guide(settings, "start")
    found = map_blocks(
        _refine_block,
        blocks,
        fixed.data,
        {**where, "moving": task.moving, "guide": guide},
        packed,
        keep=_prepare_keep(task, start),
    )
    rows = map_neighbours(_join_row, blocks, found, {"nodes": nodes}, packed, _FIRST)
    others = range(1, fixed.ndim)
    joined = map_neighbours(
        _join_block, blocks, rows, {**where, "output": output}, output.result, others
    )
    if task.coarse_voxels and len(blocks) > _JUDGED_BLOCKS:
        return joined
    return judged(joined, found, _brought, _judge_blocks)


def _prepare_whole(task: Task) -> tuple[Transform | Delayed, DeformSettings]:
    """Prepare the whole image's solution, where blocks start, and the settings left to them."""
    if not task.coarse_voxels:
        return task.initial, task.settings
    plan = plan_levels(task.fixed.grid, task.settings, task.coarse_voxels)
    aids = Aids(task.landmarks, "affine" if task.continues else None)
    start = prepare_start(task.pairs, task.initial, plan, task.level_voxels, aids)
    return start, plan.fine


def _prepare_keep(task: Task, start: Transform | Delayed) -> Delayed | None:
    """Prepare to find the blocks that are computed; None where all are."""
    where = task.fixed.grid, task.blocks
    if task.to_reach is not None:
        return once(find_landmarks, task.to_reach, *where)
    if not task.skip_empty:
        return None
    content, *further = (
        prepare_content(
            (pair.fixed, pair.moving), start, task.blocks, task.level_voxels, pair.levels
        )
        for pair in task.pairs
    )
    for other in further:
        content = once(np.logical_or, content, other)
    if task.landmarks is None:
        return content
    # Where images show nothing, landmarks may still say something.
    return once(np.logical_or, content, once(find_landmarks, task.landmarks, *where))


def _joining_factors(settings: DeformSettings, grid: Grid, blocks: BlockGrid) -> tuple[int, ...]:
    """Voxels per node on which blocks join: as the engine's, where these are the same for all.

    Elsewhere nodes of two voxels lose little.
    """
    # A B-spline's control points lie further apart than any nodes here.
    strides = np.ravel(getattr(settings, "node_stride", 2))
    stride = int(strides[-1]) * int(np.ravel(settings.shrink_factors)[-1])
    wanted = voxels_spanning(stride * min(grid.spacing), grid.spacing)
    factors = []
    for factor, size, halo in zip(wanted, blocks.blocksize, blocks.overlap, strict=True):
        if 8 * factor > size or size % factor or halo % factor:
            factor = min(factor, 2)
        factors.append(factor if 8 * factor <= size else 1)
    return tuple(factors)


def _only_block(
    part: NDArray[Any],
    block: Block,
    *,
    moving: Image,
    output: Output,
    initial: Transform,
    guide: _Guide,
) -> NDArray[Any]:
    settings = guide.settings
    estimate = guide.deform(Image(part, output.grid), moving, initial, block.padded)
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
    guide: _Guide,
) -> NDArray[np.float32]:
    if part is None and guide.others_stay:
        return nodes.still_pack(block)
    if part is None:
        logger.debug("block %s is empty", block.index)
        return nodes.no_pack()
    here = Image(part, grid.crop(block.padded))
    estimate = guide.deform(here, moving, initial, block.padded, nodes.places(block))
    refinement = estimate.refinement()
    if refinement is not None:
        return nodes.pack(refinement, estimate.confidence())
    logger.info(
        "the block at %s has no deformation of its own, as %s; it continues its neighbours",
        describe_region(block.core, grid.axes),
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
    output: Output,
) -> NDArray[Any]:
    added = nodes.finish(block, nodes.add(block, near, range(1, grid.ndim)))
    on_nodes = grid.shrink(nodes.factors).crop(nodes.wanted(block))
    start = map_on(initial, output.cut(block))
    total = resize_field(added, on_nodes, start.grid)
    if start.displacement is not None:
        total += start.displacement
    return output.form(total, start)
