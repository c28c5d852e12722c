"""Affine registration from key points: whole, or lazily block by block."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from itkstream.block_kernels import AffineSettings, WarpSettings, affine_block, warp_block
from itkstream.doors import as_pair, block_grid
from itkstream.errors import ItkstreamError, RegistrationError
from itkstream.features import ContextWindow, KeyPointSettings, MatchSettings
from itkstream.geometry import AffineTransform, Block, BlockGrid, Grid, Image, Transform
from itkstream.lazy import Result, map_blocks
from itkstream.numerics.blend import fill_failed
from itkstream.numerics.mapping import map_on
from itkstream.ransac import RansacSettings

__all__ = ["prepare_local_affines", "prepare_piecewise_ransac_affine", "ransac_affine"]

logger = logging.getLogger(__name__)


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
    fix_mask: NDArray[Any] | None = None,
    mov_mask: NDArray[Any] | None = None,
    ransac: RansacSettings | None = None,
) -> NDArray[np.float64]:
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
    fix_mask, mov_mask : ndarray, optional
        Of the images' shapes; key points lie only where they are true.
    ransac : RansacSettings, optional
        Model, seed and limits of the fit, instead of an affine with `align_threshold`.

    Returns
    -------
    ndarray, (4, 4), float64
        From fixed to moving points, in micrometers ((3, 3) for 2-D images).

    Raises
    ------
    InputError
        For parameters or images that cannot be used.
    RegistrationError
        Where no trustworthy affine was found; the message says at which step it failed.
    """
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing)
    settings = _settings(
        fixed.grid, (min_radius, max_radius), match_threshold, cc_radius, nspots, num_sigma_max
    )
    settings = replace(settings, ransac=ransac or RansacSettings(threshold_um=align_threshold))
    estimate = affine_block(fixed, moving, settings, fix_mask, mov_mask)
    if estimate.matrix is None:
        raise RegistrationError(
            f"no affine found: {estimate.reason}. Check the spacings, or try other radii, a lower "
            "match_threshold or a larger align_threshold"
        )
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
) -> da.Array:
    """Prepare to find an affine in every block of two globally aligned images.

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
        Give blocks without an affine the mean of their neighbours'; else they are NaN.

    Returns
    -------
    dask.array.Array, block grid + (4, 4), float64
        Lazy. From fixed points to points of the globally aligned image, in micrometers.
    """
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose)
    settings = _settings(
        fixed.grid, (min_radius, max_radius), match_threshold, cc_radius, nspots, num_sigma_max
    )
    settings = replace(settings, ransac=RansacSettings(threshold_um=align_threshold))
    return prepare_local_affines(
        fixed, moving, None, blocksize, settings, overlap=overlap, fill=fill
    )


def prepare_local_affines(
    fixed: Image,
    moving: Image,
    initial: Transform | None,
    blocksize: Sequence[int],
    settings: AffineSettings,
    *,
    overlap: Sequence[int] | int | None = None,
    fill: bool = True,
) -> da.Array:
    """Prepare to find an affine in every block, before a transform that aligns them roughly.

    Parameters
    ----------
    fixed, moving : Image
        The images.
    initial : Transform or None
        From fixed to moving points; each block resamples its part of the moving image through it.
        None where the moving image is aligned already.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    settings : AffineSettings
        Parameters of every block.
    overlap : int or sequence of int, optional
        Voxels per side; default an eighth of the block.
    fill : bool
        Give blocks without an affine the mean of their neighbours'; else they are NaN.

    Returns
    -------
    dask.array.Array, block grid + (n + 1, n + 1), float64
        Lazy. They act before `initial`.
    """
    fixed, moving = as_pair(fixed, moving, None, None)
    blocks = block_grid(fixed.shape, blocksize, overlap)
    size = fixed.ndim + 1
    shared = {
        "grid": fixed.grid,
        "moving": moving,
        "initial": initial,
        "settings": settings,
        "alone": len(blocks) == 1,
    }
    result = Result(np.float64, (size, size), "block")
    found = map_blocks(_local_affine, blocks, fixed.data, shared, result)
    if not fill or len(blocks) == 1:
        return found
    return found.rechunk(found.shape).map_blocks(
        _filled, blocks=blocks, grid=fixed.grid, dtype=np.float64
    )


def _settings(
    grid: Grid,
    radii: tuple[float, float],
    match_threshold: float,
    cc_radius: int,
    nspots: int,
    num_sigma_max: int,
) -> AffineSettings:
    key_points = KeyPointSettings.from_voxels(
        *radii, grid.spacing, nspots=nspots, num_sigma_max=num_sigma_max
    )
    window = ContextWindow.from_voxels(cc_radius, grid.spacing)
    return AffineSettings(key_points, window, MatchSettings(match_threshold))


def _local_affine(
    part: NDArray[Any],
    block: Block,
    *,
    grid: Grid,
    moving: Image,
    initial: Transform | None,
    settings: AffineSettings,
    alone: bool,
) -> NDArray[np.float64]:
    here = Image(part, grid.crop(block.padded))
    try:
        near = moving if alone and initial is None else _aligned_part(here.grid, moving, initial)
        estimate = affine_block(here, near, settings)
        matrix, reason = estimate.matrix, estimate.reason
    except ItkstreamError as error:
        if alone:
            raise
        matrix, reason = None, str(error)
    if matrix is None and alone:
        raise RegistrationError(f"no affine found: {reason}")
    if matrix is None:
        logger.warning("block %s has no affine of its own: %s", block.index, reason)
        matrix = np.full((grid.ndim + 1,) * 2, np.nan)
    return matrix.reshape((1,) * grid.ndim + matrix.shape)


def _aligned_part(grid: Grid, moving: Image, initial: Transform | None) -> Image:
    """The moving image around a block, aligned; NaN where there is none."""
    if initial is not None:
        settings = WarpSettings(background=np.nan, dtype=np.float32)
        return Image(warp_block(moving, initial, grid, settings), grid)
    crop = map_on(AffineTransform(np.eye(grid.ndim + 1)), grid).crop_of(moving.grid)
    if crop is None:
        raise RegistrationError("it lies outside the moving image")
    return moving[crop]


def _filled(matrices: NDArray[np.float64], blocks: BlockGrid, grid: Grid) -> NDArray[np.float64]:
    # dask calls once with an empty array to learn the type.
    return fill_failed(matrices, blocks, grid) if matrices.size else matrices
