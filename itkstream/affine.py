"""Affine registration: from key points, whole or lazily block by block; refined by intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.blocks.inputs import as_pair, check_one_channel, check_start
from itkstream.blocks.masks import Mask
from itkstream.errors import RegistrationError
from itkstream.estimate.affines import logger, prepare_local_affines, split_local_affines
from itkstream.geometry import AffineTransform, ChannelPair, Image
from itkstream.numerics.gpu.engine import Engine, computing
from itkstream.numerics.itk.intensity import intensity_block
from itkstream.numerics.itk.settings import IntensitySettings
from itkstream.numerics.matching.affine import AffineSettings, affine_block
from itkstream.numerics.matching.ransac import AffineEstimate, RansacSettings
from itkstream.registration.steps import IntensityAffine, RansacAffine

__all__ = [
    "AffineEstimate",
    "IntensitySettings",
    "RansacSettings",
    "intensity_affine",
    "prepare_local_affines",
    "prepare_piecewise_ransac_affine",
    "ransac_affine",
    "split_local_affines",
]


def __dir__() -> list[str]:
    return __all__


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
    engine: Engine | None = None,
) -> NDArray[np.float64] | AffineEstimate:
    """Find the affine between two images in memory.

    Bright blobs are found in both, paired by the correlation of their contexts, and an
    affine is fitted that most pairs agree with.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed and moving image.
    fix_spacing, mov_spacing : sequence of float or None
        µm per voxel; None for an `Image`.
    min_radius, max_radius : float
        Radii of the blobs, in voxels of the fixed image.
    match_threshold : float
        Least correlation of two contexts that match, up to 1.
    cc_radius : int
        Half width of the contexts, the windows around key points, in voxels of the fixed image.
    nspots : int
        Most key points per image.
    align_threshold : float
        Greatest distance of a match from the affine, in µm.
    num_sigma_max : int
        Most blob widths searched.
    fix_mask, mov_mask : Mask, optional
        Which voxels count, see `itkstream.Mask`: no key point lies on another.
    fix_points, mov_points : array_like, (m, 3), optional
        Key points of your own, in µm, such as the centroids of a segmentation.
    max_distance : float, optional
        Greatest distance of two points that match, in µm; default any.
    max_ambiguity : float, optional
        Greatest ratio of the second best correlation to the best, below 1; default any.
    ransac : RansacSettings, optional
        Model, seed and limits of the fit, instead of an affine with `align_threshold`.
    return_estimate : bool
        Return the estimate instead: matrix, inliers and residuals of all matches.
    engine : {'cpu', 'gpu', 'auto'}, optional
        What computes, as in `itkstream.Resources`; default the processors.

    Returns
    -------
    ndarray, (4, 4), float64, or AffineEstimate
        From fixed to moving points, in µm ((3, 3) for 2-D images).

    Raises
    ------
    InputError
        For parameters or images that cannot be used, and a GPU that this machine lacks.
    RegistrationError
        Where no trustworthy affine was found; the message says at which step it failed.

    Examples
    --------
    >>> matrix = itkstream.affine.ransac_affine(fixed, moving, None, None, 2, 6, 0.6)
    >>> matrix.shape
    (4, 4)
    """
    masks = (fix_mask, mov_mask)
    check_one_channel(fix, mov)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, masks=masks)
    check_start(fixed, moving, anywhere=True)
    settings = _settings(
        fixed,
        (min_radius, max_radius),
        match_threshold=match_threshold,
        cc_radius=cc_radius,
        nspots=nspots,
        num_sigma_max=num_sigma_max,
        align_threshold=align_threshold,
        max_distance=max_distance,
        max_ambiguity=max_ambiguity,
    )
    settings = replace(settings, ransac=ransac or settings.ransac)
    own = tuple(None if p is None else np.asarray(p, float) for p in (fix_points, mov_points))
    pair = ChannelPair(fixed, moving)
    with computing(engine):
        estimate = affine_block([pair], settings, (own[0], own[1])).estimate
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
        µm per voxel; None for an `Image`.
    initial : array_like, (4, 4), optional
        Where to start, from fixed to moving points in µm; default identity.
    settings : IntensitySettings, optional
        Model, metric, optimizer, sampling and levels; default those of `IntensitySettings`, scaled
        to the smallest fixed voxel spacing.
    fix_mask, mov_mask : Mask, optional
        Which voxels count, see `itkstream.Mask`; others are not compared.

    Returns
    -------
    ndarray, (4, 4), float64
        From fixed to moving points, in µm ((3, 3) for 2-D images).

    Raises
    ------
    InputError
        For images, masks or an affine that cannot be used.

    Examples
    --------
    >>> settings = itkstream.affine.IntensitySettings("translation", iterations=(20, 10))
    >>> itkstream.affine.intensity_affine(fixed, moving, None, None, settings=settings).shape
    (4, 4)
    """
    masks = (fix_mask, mov_mask)
    check_one_channel(fix, mov)
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
        µm per voxel; None for an `Image`.
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
        Lazy. From fixed points to points of the globally aligned image, in µm.
    confidence : dask.array.Array, block grid + (4,), float64
        Only with `return_confidence`. Matches, root mean square residual, disagreement with the
        neighbours (both in µm), and confidence between 0 and 1. Compute both with one
        call of ``dask.compute`` to find the matches once.

    Examples
    --------
    >>> lazy = itkstream.affine.prepare_piecewise_ransac_affine(
    ...     fixed, moving, None, None, 2, 6, 0.6, (32, 32, 32)
    ... )
    >>> lazy.shape[-2:]
    (4, 4)
    """
    masks = (fix_mask, mov_mask)
    check_one_channel(fix, mov)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose, masks)
    check_start(fixed, moving, anywhere=True)
    settings = _settings(
        fixed,
        (min_radius, max_radius),
        match_threshold=match_threshold,
        cc_radius=cc_radius,
        nspots=nspots,
        num_sigma_max=num_sigma_max,
        align_threshold=align_threshold,
    )
    packed = prepare_local_affines(
        fixed, moving, None, blocksize, settings, overlap=overlap, fill=fill
    )
    matrices, confidence = split_local_affines(packed, fixed.ndim)
    return (matrices, confidence) if return_confidence else matrices


def _settings(fixed: Image, radii: tuple[float, float], **parameters: Any) -> AffineSettings:
    """Check the parameters, and scale them to the voxels of the fixed image."""
    return RansacAffine(radii=(radii,), **parameters).settings_for(fixed.spacing, radii)
