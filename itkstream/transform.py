"""Applying transforms to images: whole, or lazily block by block.

All functions map points of the fixed image to points of the moving image, in micrometers, and
resample the moving image on the fixed image's voxels with one interpolation through the whole
chain. Positions outside the moving image take `background`; its border is ITK's (half a voxel
beyond the outermost centres).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import SimpleITK as sitk
from dask.delayed import Delayed
from numpy.typing import ArrayLike, DTypeLike, NDArray

from itkstream.algebra import (
    as_field,
    crop_transform,
    fold_affine,
    prepare_jacobian,
    prepare_sample,
    sample_transform,
)
from itkstream.block_kernels import AnyTransform, WarpSettings, warp_block, warp_mapped
from itkstream.coarsening import coarsen_field
from itkstream.doors import as_pair, block_grid, reversed_axes
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    ArraySource,
    Block,
    BlockGrid,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    PiecewiseAffine,
    Transform,
    compose,
)
from itkstream.inversion import apply_to_points, invert_transform, prepare_invert
from itkstream.lazy import Halo, Result, map_blocks, once, readable
from itkstream.numerics.fields import to_displacement
from itkstream.numerics.mapping import GridMap, map_on

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

# What the image tells of its background holds where nothing is asked for.
_TOLD = WarpSettings(background=None)

# A coarse field's chunk is cut at whole voxels: with two more on each side every position of the
# block has its two neighbours.
_COARSE_HALO_VOX = 2


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
        Micrometers per voxel; None for an `Image`.
    affine : array_like, (4, 4)
        From fixed to moving points, in micrometers ((3, 3) for 2-D images).
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
    """
    settings = _settings(order, interpolator, engine, background, dtype)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing)
    return apply_transform(fixed, moving, AffineTransform(np.asarray(affine)), settings)


def apply_transform(
    fixed: Image | Grid,
    moving: Image,
    transform: AnyTransform,
    settings: WarpSettings | None = None,
) -> NDArray[Any]:
    """Resample the moving image through any transform, in memory.

    Parameters
    ----------
    fixed : Image or Grid
        The fixed image, or any other lattice in its space on which the result is wanted.
    moving : Image
        The moving image.
    transform : Transform or SimpleITK.Transform
        From fixed to moving points.
    settings : WarpSettings, optional
        Interpolation, engine, background, type; default linear, with the background that the
        image's border tells.

    Returns
    -------
    ndarray, shape of the fixed image
        The moving image, aligned.
    """
    fixed, moving = as_pair(_wanted(fixed), moving, None, None)
    return warp_block(moving, transform, fixed.grid, settings or _TOLD)


def prepare_apply_transform(
    fixed: Image | Grid,
    moving: Image,
    transform: AnyTransform,
    blocksize: Sequence[int],
    settings: WarpSettings | None = None,
) -> da.Array:
    """Prepare to resample the moving image through any transform, block by block.

    Parameters
    ----------
    fixed : Image or Grid
        The fixed image, or any other lattice in its space on which the result is wanted.
    moving : Image
        The moving image.
    transform : Transform or SimpleITK.Transform
        From fixed to moving points; stored fields are read around each block.
    blocksize : sequence of int
        Voxels of a block per axis.
    settings : WarpSettings, optional
        Interpolation, engine, background, type.

    Returns
    -------
    dask.array.Array, shape of the fixed image
        Lazy; one task a block.
    """
    fixed, moving = as_pair(_wanted(fixed), moving, None, None)
    settings = settings or _TOLD
    blocks = block_grid(fixed.shape, blocksize, 0)
    shared = {
        "moving": moving,
        "transform": transform,
        "fixed_grid": fixed.grid,
        "settings": _complete(settings, moving),
    }
    return map_blocks(_apply_block, blocks, None, shared, Result(settings.voxel_type(moving.dtype)))


def prepare_apply_to_series(
    fixed: Image | Grid,
    series: Sequence[Image],
    transform: Transform,
    blocksize: Sequence[int],
    settings: WarpSettings | None = None,
) -> da.Array:
    """Prepare to resample several images of one lattice: channels, or a time series.

    The transform is evaluated once for all of them.

    Parameters
    ----------
    fixed : Image or Grid
        The fixed image, or any other lattice in its space on which the results are wanted.
    series : sequence of Image
        Moving images with the same grid and voxel type, such as `itkstream.io.open_series` opens.
    transform : Transform
        From fixed to moving points.
    blocksize : sequence of int
        Voxels of a block per axis.
    settings : WarpSettings, optional
        Interpolation, engine, background, type.

    Returns
    -------
    dask.array.Array, (m,) + shape of the fixed image
        Lazy; one task a block.

    Raises
    ------
    InputError
        Where the images are none, or differ in grid or type.
    """
    pairs = [as_pair(_wanted(fixed), moving, None, None) for moving in series]
    if len({(moving.grid, moving.dtype) for _, moving in pairs}) != 1:
        raise InputError(
            "a series has at least one image, and all of its images have one grid and voxel type; "
            f"got {[(m.shape, str(m.dtype)) for _, m in pairs]}"
        )
    grid, settings = pairs[0][0].grid, settings or _TOLD
    shared = {"series": tuple(moving for _, moving in pairs), "transform": transform}
    shared |= {"fixed_grid": grid, "settings": _complete(settings, pairs[0][1])}
    result = Result(settings.voxel_type(pairs[0][1].dtype), (len(pairs),))
    blocks = block_grid(grid.shape, blocksize, 0)
    together = map_blocks(_apply_series_block, blocks, None, shared, result)
    return together.transpose(grid.ndim, *range(grid.ndim))


def piecewise_transform(
    fixed: Grid,
    local_affines: ArrayLike,
    blocksize: Sequence[int],
    global_affine: ArrayLike | None = None,
    overlap: Sequence[int] | int | None = None,
) -> Transform:
    """Local affines, blended over their overlaps, followed by a global one.

    Parameters
    ----------
    fixed : Grid
        The fixed image's lattice.
    local_affines : array_like, block grid + (n + 1, n + 1)
        From fixed points to points of the globally aligned image, in micrometers.
    blocksize : sequence of int
        The one they were computed with.
    global_affine : array_like, (n + 1, n + 1), optional
        From there to moving points.
    overlap : int or sequence of int, optional
        Half width of the blend, in voxels; default an eighth of the block.

    Returns
    -------
    Transform
        ``p -> global_affine(sum_b share_b(p) local_b(p))``.
    """
    blocks = block_grid(fixed.shape, blocksize, overlap)
    local = PiecewiseAffine(np.asarray(local_affines, float), blocks, fixed)
    if global_affine is None:
        return local
    return CompositeTransform((local, AffineTransform(np.asarray(global_affine))))


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
        Micrometers per voxel, x first; None for an `Image`.
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
        Micrometers per voxel, x first; None for an `Image`.
    transform : array of shape + (3,), Transform, or SimpleITK.Transform
        Moving positions in micrometers of the fixed image's voxels, as
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
    """
    settings = _settings(order, interpolator, engine, background, dtype)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose)
    if isinstance(transform, (Transform, sitk.Transform)):
        return prepare_apply_transform(fixed, moving, transform, blocksize, settings)
    field = _as_field(transform, fixed.ndim, transpose[2])
    blocks = block_grid(fixed.shape, blocksize, 0)
    by = _field_factors(tuple(field.shape), fixed.shape, factors)
    halo = None if max(by) == 1 else Halo(by, _COARSE_HALO_VOX)
    shared = {
        "moving": moving,
        "cut": _FieldCut(blocks, fixed.grid, halo),
        "settings": _complete(settings, moving),
        "flip": transpose[2],
    }
    result = Result(settings.voxel_type(moving.dtype))
    return map_blocks(_apply_field_block, blocks, field, shared, result, halo)


def prepare_field(transform: Transform, grid: Grid, blocksize: Sequence[int]) -> da.Array:
    """Prepare the displacement of a transform in front of its affine part.

    Parameters
    ----------
    transform : Transform
        From fixed to moving points.
    grid : Grid
        Where the vectors are wanted.
    blocksize : sequence of int
        Voxels of a block per axis.

    Returns
    -------
    dask.array.Array, grid.shape + (n,), float32
        Lazy. u in ``T(p) = affine(p + u(p))``, with `itkstream.numerics.mapping.affine_part`.
    """
    blocks = block_grid(grid.shape, blocksize, 0)
    shared = {"transform": transform, "grid": grid}
    return map_blocks(_field_block, blocks, None, shared, Result(np.float32, (grid.ndim,)))


@dataclass(frozen=True)
class _FieldCut:
    """Which voxels a part of a position field holds."""

    blocks: BlockGrid
    fixed: Grid
    halo: Halo | None

    def grid(self, block: Block) -> Grid:
        if self.halo is None:
            return self.fixed.crop(block.core)
        whole = self.fixed.shrink(self.halo.factors)
        return whole.crop(self.halo.region(self.blocks, block, whole.shape))


def _field_block(
    _part: None, block: Block, *, transform: Transform, grid: Grid
) -> NDArray[np.float32]:
    here = grid.crop(block.core)
    moves = map_on(transform, here).displacement
    return np.zeros((*here.shape, here.ndim), np.float32) if moves is None else moves


def _apply_block(
    _part: None,
    block: Block,
    *,
    moving: Image,
    transform: AnyTransform,
    fixed_grid: Grid,
    settings: WarpSettings,
) -> NDArray[Any]:
    return warp_block(moving, transform, fixed_grid.crop(block.core), settings)


def _apply_series_block(
    _part: None,
    block: Block,
    *,
    series: tuple[Image, ...],
    transform: Transform,
    fixed_grid: Grid,
    settings: WarpSettings,
) -> NDArray[Any]:
    mapping = map_on(transform, fixed_grid.crop(block.core))
    return np.stack([warp_mapped(moving, mapping, settings) for moving in series], axis=-1)


def _apply_field_block(
    part: NDArray[Any],
    block: Block,
    *,
    moving: Image,
    cut: _FieldCut,
    settings: WarpSettings,
    flip: bool,
) -> NDArray[Any]:
    grid = cut.grid(block)
    moves = to_displacement(part[..., ::-1] if flip else part, grid)
    target = cut.fixed.crop(block.core)
    if cut.halo is None:
        return warp_mapped(moving, GridMap(target, np.eye(grid.ndim + 1), moves), settings)
    return warp_block(moving, DisplacementField(moves, grid), target, settings)


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


def _complete(settings: WarpSettings, moving: Image) -> WarpSettings | Delayed:
    """The settings with a background, which may have to be told from the image: once, lazily."""
    if settings.background is not None:
        return settings
    return once(_with_background, settings, readable(moving), early=True)


def _with_background(settings: WarpSettings, moving: Image) -> WarpSettings:
    return settings.for_image(moving)


def _wanted(fixed: Image | Grid) -> Image:
    """A lattice as an image that takes no memory."""
    if isinstance(fixed, Image):
        return fixed
    return Image(np.broadcast_to(np.uint8(0), fixed.shape), fixed)


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


def _field_factors(
    field: tuple[int, ...], fixed: tuple[int, ...], given: Sequence[int] | None
) -> tuple[int, ...]:
    fitting = [
        {f for f in range(-(-n // m), n + 1) if -(-n // f) == m}
        for n, m in zip(fixed, field[:-1], strict=True)
    ]
    if given is not None:
        fitting = [{int(f)} & fits for f, fits in zip(given, fitting, strict=True)]
    if not all(fitting):
        raise InputError(
            f"a position field of shape {field} does not fit a fixed image of shape {fixed}: "
            "expected the same shape, or ceil(shape / factor) for whole factors"
        )
    # Several factors may give one shape; most fields are coarser by the same one on every axis.
    common = set.intersection(*fitting)
    return tuple(min(common or fits) for fits in fitting)


def _reversed_matrices(matrices: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    blocks = matrices.transpose(*reversed(range(ndim)), ndim, ndim + 1)
    order = [*reversed(range(ndim)), ndim]
    return np.asarray(blocks[..., order, :][..., :, order])
