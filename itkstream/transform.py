"""Applying transforms to images: whole, or lazily block by block.

All functions map points of the fixed image to points of the moving image, in µm, and
resample the moving image on the fixed image's voxels with one interpolation through the whole
chain. Positions outside the moving image take `background`; its border is ITK's (half a voxel
beyond the outermost centres).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, DTypeLike, NDArray

from itkstream.apply.coarsening import coarsen_field
from itkstream.apply.fields import (
    as_field,
    crop_transform,
    fold_affine,
    prepare_jacobian,
    prepare_sample,
    sample_transform,
)
from itkstream.apply.inversion import invert_transform, prepare_invert
from itkstream.apply.points import apply_to_points
from itkstream.apply.resampling import (
    PositionLattice,
    apply_transform,
    piecewise_transform,
    position_factors,
    prepare_apply_positions,
    prepare_apply_to_series,
    prepare_apply_transform,
    prepare_field,
)
from itkstream.blocks.inputs import as_pair, reversed_axes
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, ArraySource, Transform, compose
from itkstream.numerics.sampling.warping import WarpSettings

__all__ = [
    "apply_global_affine",
    "apply_to_points",
    "apply_transform",
    "as_field",
    "coarsen_field",
    "compose",
    "crop_transform",
    "fold_affine",
    "invert_transform",
    "piecewise_transform",
    "prepare_apply_local_affines",
    "prepare_apply_position_field",
    "prepare_apply_to_series",
    "prepare_apply_transform",
    "prepare_field",
    "prepare_invert",
    "prepare_jacobian",
    "prepare_sample",
    "sample_transform",
]


def __dir__() -> list[str]:
    return __all__


def apply_global_affine(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    affine: ArrayLike,
    *,
    order: int = 1,
    interpolator: str | None = None,
    engine: str | None = None,
    background: float | None = None,
    dtype: DTypeLike | None = None,
) -> NDArray[Any]:
    """Resample the moving image through one affine, in memory.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed and moving image.
    fix_spacing, mov_spacing : sequence of float or None
        µm per voxel; None for an `Image`.
    affine : array_like, (4, 4)
        From fixed to moving points, in µm ((3, 3) for 2-D images).
    order : {1, 0, 2, 3}
        Linear, nearest, quadratic or cubic B-spline.
    interpolator : str, optional
        An ITK interpolator by name, instead of `order`.
    engine : {'fast', 'itk'}, optional
        See `WarpSettings`.
    background : float, optional
        Value outside the moving image; default told from its border: that of bright fields and of
        images with negative values, else 0.
    dtype : dtype, optional
        Voxel type of the result; default that of the moving image.

    Returns
    -------
    ndarray, shape of the fixed image
        The moving image, aligned.

    Examples
    --------
    >>> still = itkstream.transform.apply_global_affine(fixed, moving, None, None, np.eye(4))
    >>> still.shape == fixed.shape
    True
    """
    settings = _settings(order, interpolator, engine, background, dtype)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing)
    return apply_transform(fixed, moving, AffineTransform(np.asarray(affine)), settings)


def prepare_apply_local_affines(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    local_affines: ArrayLike,
    blocksize: Sequence[int],
    global_affine: ArrayLike | None = None,
    transpose: Sequence[bool] = (False, False, False),
    *,
    overlap: Sequence[int] | int | None = None,
    order: int = 1,
    interpolator: str | None = None,
    engine: str | None = None,
    background: float | None = None,
    dtype: DTypeLike | None = None,
) -> da.Array:
    """Prepare to resample the moving image through local affines and a global one.

    The affines of neighbouring blocks are blended as a partition of unity over the overlap, so
    there are no seams, and composed with the global affine, so the image is interpolated once.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed image (only its shape counts), and original moving image: one that the affines
        aligned already would be moved twice.
    fix_spacing, mov_spacing : sequence of float or None
        µm per voxel, x first; None for an `Image`.
    local_affines : array_like, block grid + (4, 4)
        From `itkstream.affine.prepare_piecewise_ransac_affine`.
    blocksize : sequence of int
        The one they were computed with, scaled to the voxels of this fixed image if it is a
        finer level.
    global_affine : array_like, (4, 4), optional
        Applied after the local ones.
    transpose : three bools
        Whether the stored axes of fix, mov and local_affines are reversed (z, y, x).
    overlap : int or sequence of int, optional
        Half width of the blend, in voxels; default an eighth of the block.
    order, interpolator, engine, background, dtype
        As in `apply_global_affine`.

    Returns
    -------
    dask.array.Array, shape of the fixed image, x first
        Lazy.

    Examples
    --------
    >>> affines = np.tile(np.eye(4), (1, 1, 1, 1, 1))
    >>> lazy = itkstream.transform.prepare_apply_local_affines(
    ...     fixed, moving, None, None, affines, fixed.shape
    ... )
    >>> lazy.shape == fixed.shape
    True
    """
    settings = _settings(order, interpolator, engine, background, dtype)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose)
    matrices = np.asarray(local_affines, float)
    if transpose[2]:
        matrices = _reversed_matrices(matrices, fixed.ndim)
    transform = piecewise_transform(fixed.grid, matrices, blocksize, global_affine, overlap)
    return prepare_apply_transform(fixed, moving, transform, blocksize, settings)


def prepare_apply_position_field(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    transform: Any,
    blocksize: Sequence[int],
    transpose: Sequence[bool] = (False, False, False),
    *,
    factors: Sequence[int] | None = None,
    order: int = 1,
    interpolator: str | None = None,
    engine: str | None = None,
    background: float | None = None,
    dtype: DTypeLike | None = None,
) -> da.Array:
    """Prepare to resample the moving image through a field of positions.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed (only its shape counts) and moving image.
    fix_spacing, mov_spacing : sequence of float or None
        µm per voxel, x first; None for an `Image`.
    transform : array of shape + (3,), Transform, or SimpleITK.Transform
        Moving positions in µm of the fixed image's voxels, as
        `itkstream.deform.prepare_piecewise_deformable_align` returns; numpy, stored or dask. It
        may be coarser than the fixed image by whole factors (``ceil(shape / factor)`` voxels,
        each the mean of its group). Or any transform of this package or of SimpleITK.
    blocksize : sequence of int
        Voxels of a block per axis.
    transpose : three bools
        Whether the stored axes of fix, mov and transform are reversed; for the latter the
        components are as well.
    factors : sequence of int, optional
        Fixed voxels per voxel of a coarse field, x first. Default what the shapes tell; a field
        of very few voxels does not tell it.
    order, interpolator, engine, background, dtype
        As in `apply_global_affine`.

    Returns
    -------
    dask.array.Array, shape of the fixed image, x first
        Lazy.

    Raises
    ------
    InputError
        Where the field's shape is no whole-factor reduction of the fixed image's.

    Examples
    --------
    >>> positions = fixed.grid.positions()
    >>> lazy = itkstream.transform.prepare_apply_position_field(
    ...     fixed, moving, None, None, positions, (32, 32, 32)
    ... )
    >>> lazy.shape == fixed.shape
    True
    """
    settings = _settings(order, interpolator, engine, background, dtype)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose)
    if isinstance(transform, (Transform, sitk.Transform)):
        return prepare_apply_transform(fixed, moving, transform, blocksize, settings)
    field = _as_field(transform, fixed.ndim, transpose[2])
    by = position_factors(tuple(field.shape), fixed.shape, factors)
    target = PositionLattice(fixed.grid, by, transpose[2])
    return prepare_apply_positions(target, moving, field, blocksize, settings)


def _settings(
    order: int,
    interpolator: str | None,
    engine: str | None,
    background: float | None,
    dtype: DTypeLike | None,
) -> WarpSettings:
    names = {0: "nearest", 1: "linear", 2: "quadratic-bspline", 3: "bspline"}
    if interpolator is None and order not in names:
        raise InputError(f"order must be one of {tuple(names)}; got {order}")
    return WarpSettings(interpolator or names[order], engine, background, dtype)  # type: ignore[arg-type]


def _as_field(field: Any, ndim: int, transpose: bool) -> ArraySource:
    if not isinstance(field, ArraySource):
        raise InputError(
            f"transform must be a position field, a Transform or a SimpleITK.Transform; got "
            f"{type(field).__name__}"
        )
    if len(field.shape) != ndim + 1 or field.shape[-1] != ndim:
        raise InputError(
            f"a position field of a {ndim}-D image has {ndim + 1} axes, of which the last holds "
            f"{ndim} components; got shape {tuple(field.shape)}"
        )
    return reversed_axes(field, ndim) if transpose else field


def _reversed_matrices(matrices: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    blocks = matrices.transpose(*reversed(range(ndim)), ndim, ndim + 1)
    order = [*reversed(range(ndim)), ndim]
    return np.asarray(blocks[..., order, :][..., :, order])
