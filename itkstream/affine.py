"""Affine registration: from key points, whole or lazily block by block; refined by intensities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import ArrayLike, NDArray

from itkstream.block_kernels import (
    AffineSettings,
    WarpSettings,
    affine_block,
    best_affine_block,
    intensity_block,
    warp_block,
)
from itkstream.doors import as_pair, block_grid, check_start
from itkstream.errors import InputError, ItkstreamError, RegistrationError
from itkstream.features import Correspondences
from itkstream.geometry import AffineTransform, Block, BlockGrid, Grid, Image, Transform
from itkstream.lazy import Result, judged, map_blocks
from itkstream.masks import Mask
from itkstream.numerics.consistency import (
    CONFIDENCE_COLUMNS,
    ConsistencySettings,
    Evidence,
    evidence_of,
    evidence_size,
    own_confidence,
    solve_consistent,
)
from itkstream.numerics.itk_settings import IntensitySettings
from itkstream.numerics.mapping import map_on
from itkstream.ransac import AffineEstimate, Model, RansacSettings, fit_ransac
from itkstream.steps import ALIGN_THRESHOLD_VOX, IntensityAffine, RansacAffine
from itkstream.whole_image import prepare_content

__all__ = [
    "intensity_affine",
    "prepare_local_affines",
    "prepare_piecewise_ransac_affine",
    "ransac_affine",
    "split_local_affines",
]

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


def ransac_affine(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    min_radius: float,
    max_radius: float,
    match_threshold: float,
    cc_radius: int = 12,
    nspots: int = 5000,
    align_threshold: float = 2.0,
    num_sigma_max: int = 10,
    *,
    fix_mask: Mask | None = None,
    mov_mask: Mask | None = None,
    fix_points: ArrayLike | None = None,
    mov_points: ArrayLike | None = None,
    max_distance: float | None = None,
    max_ambiguity: float | None = None,
    ransac: RansacSettings | None = None,
    return_estimate: bool = False,
) -> NDArray[np.float64] | AffineEstimate:
    """Find the affine between two images in memory.

    Bright blobs are found in both, paired by the correlation of their neighbourhoods, and an
    affine is fitted that most pairs agree with.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed and moving image.
    fix_spacing, mov_spacing : sequence of float or None
        Micrometers per voxel; None for an `Image`.
    min_radius, max_radius : float
        Radii of the blobs, in voxels of the fixed image.
    match_threshold : float
        Least correlation of two neighbourhoods that match, up to 1.
    cc_radius : int
        Half width of the neighbourhoods, in voxels of the fixed image.
    nspots : int
        Most key points per image.
    align_threshold : float
        Greatest distance of a match from the affine, in micrometers.
    num_sigma_max : int
        Most blob widths searched.
    fix_mask, mov_mask : Mask, optional
        Which voxels count, see `itkstream.masks.Mask`: no key point lies on another.
    fix_points, mov_points : array_like, (m, 3), optional
        Key points of your own, in micrometers, such as the centroids of a segmentation.
    max_distance : float, optional
        Greatest distance of two points that match, in micrometers; default any.
    max_ambiguity : float, optional
        Greatest ratio of the second best correlation to the best, below 1; default any.
    ransac : RansacSettings, optional
        Model, seed and limits of the fit, instead of an affine with `align_threshold`.
    return_estimate : bool
        Return the estimate instead: matrix, inliers and residuals of all matches.

    Returns
    -------
    ndarray, (4, 4), float64, or AffineEstimate
        From fixed to moving points, in micrometers ((3, 3) for 2-D images).

    Raises
    ------
    InputError
        For parameters or images that cannot be used.
    RegistrationError
        Where no trustworthy affine was found; the message says at which step it failed.
    """
    masks = (fix_mask, mov_mask)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, masks=masks)
    check_start(fixed, moving, anywhere=True)
    step = RansacAffine(
        radii=((min_radius, max_radius),),
        match_threshold=match_threshold,
        cc_radius=cc_radius,
        nspots=nspots,
        num_sigma_max=num_sigma_max,
        align_threshold=align_threshold,
        max_distance=max_distance,
        max_ambiguity=max_ambiguity,
    )
    settings = step.settings_for(fixed.spacing, (min_radius, max_radius))
    settings = replace(settings, ransac=ransac or settings.ransac)
    own = tuple(None if p is None else np.asarray(p, float) for p in (fix_points, mov_points))
    estimate, _ = affine_block(fixed, moving, settings, (own[0], own[1]))
    if estimate.matrix is None:
        raise RegistrationError(
            f"no affine found: {estimate.reason}. Check the spacings, or try other radii, a lower "
            "match_threshold or a larger align_threshold"
        )
    return estimate if return_estimate else estimate.matrix


def intensity_affine(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    initial: ArrayLike | None = None,
    *,
    settings: IntensitySettings | None = None,
    fix_mask: Mask | None = None,
    mov_mask: Mask | None = None,
) -> NDArray[np.float64]:
    """Refine an affine between two images in memory until their intensities agree best.

    SimpleITK's registration methods do the work. Where nothing better than the initial affine is
    found, that is returned and the log says why.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed and moving image.
    fix_spacing, mov_spacing : sequence of float or None
        Micrometers per voxel; None for an `Image`.
    initial : array_like, (4, 4), optional
        Where to start, from fixed to moving points in micrometers; default identity.
    settings : IntensitySettings, optional
        Model, metric, optimizer, sampling and levels; default those of `IntensitySettings`, scaled
        to the smallest fixed voxel spacing.
    fix_mask, mov_mask : Mask, optional
        Which voxels count, see `itkstream.masks.Mask`; others are not compared.

    Returns
    -------
    ndarray, (4, 4), float64
        From fixed to moving points, in micrometers ((3, 3) for 2-D images).

    Raises
    ------
    InputError
        For images, masks or an affine that cannot be used.
    """
    masks = (fix_mask, mov_mask)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, masks=masks)
    settings = settings or IntensityAffine().settings_for(fixed.spacing)
    start = np.eye(fixed.ndim + 1) if initial is None else np.asarray(initial, float)
    check_start(fixed, moving, AffineTransform(start), anywhere=True)
    estimate = intensity_block(fixed, moving, start, settings)
    if not estimate:
        logger.warning("the initial affine is kept, as %s", estimate.reason)
    return estimate.matrix


def prepare_piecewise_ransac_affine(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    min_radius: float,
    max_radius: float,
    match_threshold: float,
    blocksize: Sequence[int],
    cc_radius: int = 12,
    nspots: int = 5000,
    align_threshold: float = 2.0,
    num_sigma_max: int = 10,
    *,
    transpose: Sequence[bool] = (False, False),
    overlap: Sequence[int] | int | None = None,
    fill: bool = True,
    return_confidence: bool = False,
    fix_mask: Mask | None = None,
    mov_mask: Mask | None = None,
) -> da.Array | tuple[da.Array, da.Array]:
    """Prepare to find an affine in every block of two globally aligned images.

    The affines of all blocks are found together from the matches of each: neighbours hold each
    other, a block with few matches turns less and stretches less, one without any continues its
    neighbours, and one that contradicts them loses its say.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed image, and moving image resampled through the global affine.
    fix_spacing, mov_spacing : sequence of float or None
        Micrometers per voxel; None for an `Image`.
    min_radius, max_radius, match_threshold
        As in `ransac_affine`.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    cc_radius, nspots, align_threshold, num_sigma_max
        As in `ransac_affine`; `nspots` per block.
    transpose : two bools
        Whether the stored axes of fix and mov are reversed (z, y, x).
    overlap : int or sequence of int, optional
        Voxels each block looks beyond its border; default an eighth of the block.
    fill : bool
        Find the affines of all blocks together; else each has its own, or NaN.
    return_confidence : bool
        Return the confidence of each block as well.
    fix_mask, mov_mask : Mask, optional
        As in `ransac_affine`; a stored mask is read block by block.

    Returns
    -------
    matrices : dask.array.Array, block grid + (4, 4), float64
        Lazy. From fixed points to points of the globally aligned image, in micrometers.
    confidence : dask.array.Array, block grid + (4,), float64
        Only with `return_confidence`. Matches, root mean square residual, disagreement with the
        neighbours (both in micrometers), and confidence between 0 and 1. Compute both with one
        call of ``dask.compute`` to find the matches once.
    """
    masks = (fix_mask, mov_mask)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose, masks)
    check_start(fixed, moving, anywhere=True)
    step = RansacAffine(
        radii=((min_radius, max_radius),),
        match_threshold=match_threshold,
        cc_radius=cc_radius,
        nspots=nspots,
        num_sigma_max=num_sigma_max,
        align_threshold=align_threshold,
    )
    settings = step.settings_for(fixed.spacing, (min_radius, max_radius))
    packed = prepare_local_affines(
        fixed, moving, None, blocksize, settings, overlap=overlap, fill=fill
    )
    matrices, confidence = split_local_affines(packed, fixed.ndim)
    return (matrices, confidence) if return_confidence else matrices


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
