"""Affines of all blocks, found together from the matches of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, judged, map_blocks
from itkstream.blocks.inputs import as_pair, block_grid
from itkstream.errors import InputError, ItkstreamError, RegistrationError
from itkstream.estimate.content import prepare_content
from itkstream.geometry import AffineTransform, Block, BlockGrid, Grid, Image, Transform
from itkstream.numerics.itk.affine import intensity_block
from itkstream.numerics.itk.settings import IntensitySettings
from itkstream.numerics.matching.affine import (
    ALIGN_THRESHOLD_VOX,
    AffineSettings,
    best_affine_block,
)
from itkstream.numerics.matching.consistency import (
    CONFIDENCE_COLUMNS,
    ConsistencySettings,
    Evidence,
    evidence_of,
    evidence_size,
    own_confidence,
    solve_consistent,
)
from itkstream.numerics.matching.keypoints import Correspondences
from itkstream.numerics.matching.ransac import AffineEstimate, Model, RansacSettings, fit_ransac
from itkstream.numerics.sampling.mapping import map_on
from itkstream.numerics.sampling.warping import WarpSettings, warp_block

__all__ = ["prepare_local_affines", "split_local_affines"]


logger = logging.getLogger(__name__)

# What a block tries when it has too few matches for an affine, with the least inliers of each.
_FALLBACKS: tuple[tuple[Model, int], ...] = (("rigid", 6), ("translation", 4))

# A block contradicts its neighbours where it is further from what they predict than a match may be
# from its affine, this many times: 5 µm at the default threshold, see `ConsistencySettings`.
_CONTRADICTION = 2.5

# Voxels of the level on which blocks are searched for content.
_CONTENT_VOXELS = 20e6


# An affine by intensities counts for as many matches as these make in a block.
_POINTS_PER_AXIS = 4


def prepare_local_affines(
    fixed: Image,
    moving: Image,
    initial: Transform | Delayed | None,
    blocksize: Sequence[int],
    settings: AffineSettings | Sequence[AffineSettings] | IntensitySettings,
    *,
    overlap: Sequence[int] | int | None = None,
    fill: bool = True,
    skip_empty: bool = False,
    smaller: Sequence[AffineSettings] = (),
) -> da.Array:
    """Prepare to find an affine in every block, before a transform that aligns them roughly.

    Parameters
    ----------
    fixed, moving : Image
        The images.
    initial : Transform, Delayed or None
        From fixed to moving points; each block resamples its part of the moving image through it.
        It may still have to be computed. None where the moving image is aligned already.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    settings : AffineSettings, a sequence of them, or IntensitySettings
        Parameters of every block: for key points, of which a block tries several until matches
        abound, or for intensities.
    overlap : int or sequence of int, optional
        Voxels per side; default an eighth of the block.
    fill : bool
        Find the affines of all blocks together, so that neighbours agree and blocks without
        matches continue theirs; else each has its own, or NaN.
    skip_empty : bool
        Leave out blocks in which a coarse level of neither image shows more than background and
        its noise: they are not read, and count as blocks without matches.
    smaller : sequence of AffineSettings
        Those that a block tries which cannot show the blobs of any of the `settings`.

    Returns
    -------
    dask.array.Array, block grid + (k,), float64
        Lazy; `split_local_affines` takes it apart.
    """
    fixed, moving = as_pair(fixed, moving, None, None)
    blocks = block_grid(fixed.shape, blocksize, overlap)
    by_intensity = isinstance(settings, IntensitySettings)
    choices = (settings,) if isinstance(settings, (AffineSettings, IntensitySettings)) else settings
    if not by_intensity:
        _check_blobs([*choices, *smaller], blocks, fixed.grid)
    shared = {
        "grid": fixed.grid,
        "moving": moving,
        "initial": initial,
        "settings": settings if by_intensity else tuple(choices),
        "alone": len(blocks) == 1,
    }
    if smaller:
        shared["smaller"] = tuple(smaller)
    size = (fixed.ndim + 1) ** 2
    result = Result(np.float64, (size + evidence_size(fixed.ndim),), "block")
    keep = None
    if skip_empty and len(blocks) > 1:
        still = AffineTransform(np.eye(fixed.ndim + 1))
        start = still if initial is None else initial
        keep = prepare_content((fixed, moving), start, blocks, _CONTENT_VOXELS)
    find = _local_refinement if by_intensity else _local_affine
    found = map_blocks(find, blocks, fixed.data, shared, result, keep=keep)
    common = fill and len(blocks) > 1
    if common:
        found = found.rechunk(found.shape)
    result = found.map_blocks(
        _common if common else _each,
        blocks=blocks,
        grid=fixed.grid,
        settings=ConsistencySettings(scale_um=_CONTRADICTION * _slack(choices, fixed.grid)),
        chunks=(*found.chunks[:-1], (size + len(CONFIDENCE_COLUMNS),)),
        meta=np.empty((0,) * found.ndim),
    )
    if common or len(blocks) == 1:
        return result
    return judged(result, found, _brought, _judge_blocks)


def _check_blobs(choices: Sequence[Any], blocks: BlockGrid, grid: Grid) -> None:
    """Refuse blocks none of which can show the blobs that are sought."""
    per_axis = zip(blocks.chunks, blocks.overlap, strict=True)
    lengths = [{n + 2 * halo for n in chunk} for chunk, halo in per_axis]
    for sizes in product(*lengths):
        shape = tuple(map(min, sizes, grid.shape))
        here = replace(grid, shape=shape)
        if any(settings.key_points.fit(here) for settings in choices):
            return
    greatest = min(settings.key_points.radii(grid.ndim)[1].max() for settings in choices)
    extent = " x ".join(f"{n * h:.4g}" for n, h in zip(shape, grid.spacing, strict=True))
    raise InputError(
        f"blocks of {extent} {grid.unit}s with their overlap cannot show blobs of radius "
        f"{greatest:.4g}: lower max_radius or use larger blocks"
    )


def split_local_affines(packed: Any, ndim: int) -> tuple[Any, Any]:
    """Take apart what `prepare_local_affines` prepares.

    Parameters
    ----------
    packed : numpy.ndarray or dask.array.Array, block grid + (k,)
        Computed or lazy.
    ndim : int
        Dimensions of the images.

    Returns
    -------
    matrices : block grid + (n + 1, n + 1)
        From fixed points to points of the roughly aligned image.
    confidence : block grid + (4,)
        Matches, root mean square residual, disagreement with the neighbours (both in
        micrometers), and confidence between 0 and 1.
    """
    size = ndim + 1
    matrices = packed[..., : size * size]
    return matrices.reshape((*packed.shape[:-1], size, size)), packed[..., size * size :]


def _local_affine(
    part: NDArray[Any] | None,
    block: Block,
    *,
    grid: Grid,
    moving: Image,
    initial: Transform | None,
    settings: tuple[AffineSettings, ...],
    alone: bool,
    smaller: tuple[AffineSettings, ...] = (),
) -> NDArray[np.float64]:
    n = grid.ndim
    matrix, inliers = np.full((n + 1, n + 1), np.nan), np.empty((2, 0, n))
    if part is None:
        return _row(matrix, (inliers[0], inliers[1]), block, grid)
    here = Image(part, grid.crop(block.padded))
    try:
        near = moving if alone and initial is None else _aligned_part(here.grid, moving, initial)
        choices = _holding(here.grid, settings) or _holding(here.grid, smaller) or settings
        estimate, pairs, best = best_affine_block(here, near, choices)
        if not alone:
            estimate = _simpler(estimate, pairs, best.ransac)
        reason = estimate.reason
        if estimate.matrix is not None:
            matrix = estimate.matrix
            inliers = np.stack([pairs.fixed_points, pairs.moving_points])[:, estimate.inliers]
    except ItkstreamError as error:
        if alone:
            raise
        reason = str(error)
    if reason and alone:
        raise RegistrationError(f"no affine found: {reason}")
    if reason:
        logger.info("block %s has no affine of its own: %s", block.index, reason)
    return _row(matrix, (inliers[0], inliers[1]), block, grid)


def _holding(grid: Grid, choices: Sequence[AffineSettings]) -> list[AffineSettings]:
    """The settings whose blobs a block can show."""
    return [settings for settings in choices if settings.key_points.fit(grid)]


def _local_refinement(
    part: NDArray[Any] | None,
    block: Block,
    *,
    grid: Grid,
    moving: Image,
    initial: Transform | None,
    settings: IntensitySettings,
    alone: bool,
) -> NDArray[np.float64]:
    n = grid.ndim
    matrix, points = np.full((n + 1, n + 1), np.nan), np.empty((0, n))
    if part is None:
        return _row(matrix, (points, points), block, grid)
    here = Image(part, grid.crop(block.padded))
    try:
        near = moving if alone and initial is None else _aligned_part(here.grid, moving, initial)
        estimate = intensity_block(here, near, np.eye(n + 1), settings)
        reason = estimate.reason
        # Where the images could be compared and nothing better was found, the start is the best.
        if estimate or np.isfinite(estimate.before):
            matrix = estimate.matrix
            points = _lattice(grid.crop(block.core))
    except ItkstreamError as error:
        if alone:
            raise
        reason = str(error)
    if reason:
        logger.info("block %s keeps where it starts, as %s", block.index, reason)
    targets = points @ matrix[:n, :n].T + matrix[:n, n]
    return _row(matrix, (points, targets), block, grid)


def _lattice(grid: Grid) -> NDArray[np.float64]:
    """Points that stand for all of a block, as matches would."""
    ends = [np.linspace(0, length - 1, _POINTS_PER_AXIS) for length in grid.shape]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1)
    return grid.to_physical(index.reshape(-1, grid.ndim))


def _row(
    matrix: NDArray[np.float64],
    matches: tuple[NDArray[np.float64], NDArray[np.float64]],
    block: Block,
    grid: Grid,
) -> NDArray[np.float64]:
    """A block's own affine and the evidence for it, as one element of the blocks' array."""
    middle = [(s.start + s.stop - 1) / 2 for s in block.core]
    evidence = evidence_of(*matches, grid.to_physical(middle))
    row = np.concatenate([matrix.ravel(), evidence.packed()])
    return row.reshape((1,) * grid.ndim + row.shape)


def _slack(choices: Sequence[AffineSettings | IntensitySettings], grid: Grid) -> float:
    """How far a match may be from its affine, in micrometers."""
    first = choices[0]
    if isinstance(first, AffineSettings):
        return first.ransac.threshold_um
    return ALIGN_THRESHOLD_VOX * float(np.median(grid.spacing))


def _simpler(
    estimate: AffineEstimate, pairs: Correspondences, ransac: RansacSettings
) -> AffineEstimate:
    """The estimate, or one by a model that needs fewer matches: rigid, then translation."""
    for model, least in _FALLBACKS:
        if estimate or ransac.model != "affine":
            break
        simpler = replace(ransac, model=model, min_inliers=min(least, ransac.min_inliers))
        estimate = fit_ransac(pairs.fixed_points, pairs.moving_points, simpler)
    return estimate


def _aligned_part(grid: Grid, moving: Image, initial: Transform | None) -> Image:
    """The moving image around a block, aligned; NaN where there is none."""
    if initial is not None:
        settings = WarpSettings(background=np.nan, dtype=np.float32)
        return Image(warp_block(moving, initial, grid, settings), grid)
    crop = map_on(AffineTransform(np.eye(grid.ndim + 1)), grid).crop_of(moving.grid)
    if crop is None:
        raise RegistrationError("it lies outside the moving image")
    return moving[crop]


def _each(
    rows: NDArray[np.float64], blocks: BlockGrid, grid: Grid, settings: ConsistencySettings
) -> NDArray[np.float64]:
    """Every block's own affine and confidence."""
    size = (grid.ndim + 1) ** 2
    evidence = Evidence.unpacked(rows[..., size:], grid.ndim)
    return np.concatenate([rows[..., :size], own_confidence(evidence, settings)], axis=-1)


def _brought(row: NDArray[np.float64]) -> int:
    """Whether a block found an affine of its own."""
    return int(np.isfinite(row[..., 0]).all())


def _judge_blocks(brought: NDArray[np.intp]) -> None:
    """Say how many blocks failed; raise where all did."""
    failed = brought.size - np.count_nonzero(brought)
    if failed == brought.size:
        raise RegistrationError(
            f"all {failed} blocks failed to find an affine: use larger blocks, a lower "
            "match_threshold, or radii that fit the nuclei"
        )
    if failed:
        logger.warning(
            "%d of %d blocks have no affine of their own (the log at level info says why)",
            failed,
            brought.size,
        )


def _common(
    rows: NDArray[np.float64], blocks: BlockGrid, grid: Grid, settings: ConsistencySettings
) -> NDArray[np.float64]:
    """The affines of all blocks, found together, and their confidence."""
    size = (grid.ndim + 1) ** 2
    evidence = Evidence.unpacked(rows[..., size:], grid.ndim)
    _judge_blocks(np.isfinite(rows[..., 0]).astype(np.intp))
    matrices, confidence = solve_consistent(evidence, blocks, grid, settings)
    flat = matrices.reshape((*rows.shape[:-1], size))
    return np.concatenate([flat, confidence], axis=-1)
