"""Images resampled through transforms, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import ArrayLike, NDArray

from itkstream.blocks.graph import Halo, Result, map_blocks, once
from itkstream.blocks.inputs import as_pair, block_grid
from itkstream.blocks.sources import readable
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
)
from itkstream.numerics.sampling.fields import to_displacement
from itkstream.numerics.sampling.mapping import GridMap, map_on
from itkstream.numerics.sampling.warping import AnyTransform, WarpSettings, warp_block, warp_mapped

__all__ = [
    "PositionLattice",
    "apply_transform",
    "piecewise_transform",
    "position_factors",
    "prepare_apply_positions",
    "prepare_apply_to_series",
    "prepare_apply_transform",
    "prepare_field",
]


# The background comes from the image where none is asked for.
_DEFAULT = WarpSettings(background=None)

# A coarse field's chunk is cut at whole voxels: with two more on each side every position of the
# block has its two neighbours.
_COARSE_HALO_VOX = 2


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

    Examples
    --------
    >>> warped = itkstream.transform.apply_transform(fixed, moving, registration.transform)
    >>> warped.shape == fixed.shape
    True
    """
    fixed, moving = as_pair(_wanted(fixed), moving, None, None)
    return warp_block(moving, transform, fixed.grid, settings or _DEFAULT)


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

    Examples
    --------
    >>> lazy = itkstream.transform.prepare_apply_transform(
    ...     fixed, moving, registration.transform, (32, 32, 32)
    ... )
    >>> lazy[0].compute().shape == fixed.shape[1:]
    True
    """
    fixed, moving = as_pair(_wanted(fixed), moving, None, None)
    settings = settings or _DEFAULT
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

    Examples
    --------
    >>> genes = itkstream.io.open_series("examples/round2.ome.zarr", "channel")
    >>> lazy = itkstream.transform.prepare_apply_to_series(
    ...     fixed, genes, registration.transform, (32, 32, 32)
    ... )
    >>> lazy.shape == (3, *fixed.shape)
    True
    """
    pairs = [as_pair(_wanted(fixed), moving, None, None) for moving in series]
    if len({(moving.grid, moving.dtype) for _, moving in pairs}) != 1:
        raise InputError(
            "a series has at least one image, and all of its images have one grid and voxel type; "
            f"got {[(m.shape, str(m.dtype)) for _, m in pairs]}"
        )
    grid, settings = pairs[0][0].grid, settings or _DEFAULT
    shared = {"series": tuple(moving for _, moving in pairs), "transform": transform}
    shared |= {"fixed_grid": grid, "settings": _complete(settings, pairs[0][1])}
    result = Result(settings.voxel_type(pairs[0][1].dtype), (len(pairs),))
    blocks = block_grid(grid.shape, blocksize, 0)
    series_last = map_blocks(_apply_series_block, blocks, None, shared, result)
    return series_last.transpose(grid.ndim, *range(grid.ndim))


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
        From fixed points to points of the globally aligned image, in µm.
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

    Examples
    --------
    >>> affines = np.tile(np.eye(4), (1, 1, 1, 1, 1))
    >>> whole = itkstream.transform.piecewise_transform(fixed.grid, affines, fixed.shape)
    >>> whole.ndim
    3
    """
    blocks = block_grid(fixed.shape, blocksize, overlap)
    local = PiecewiseAffine(np.asarray(local_affines, float), blocks, fixed)
    if global_affine is None:
        return local
    return CompositeTransform((local, AffineTransform(np.asarray(global_affine))))


def prepare_apply_positions(
    target: PositionLattice,
    moving: Image,
    field: ArraySource,
    blocksize: Sequence[int],
    settings: WarpSettings,
) -> da.Array:
    """Prepare to resample the moving image through a field of positions."""
    blocks = block_grid(target.grid.shape, blocksize, 0)
    halo = None if max(target.factors) == 1 else Halo(target.factors, _COARSE_HALO_VOX)
    shared = {
        "moving": moving,
        "cut": _FieldCut(blocks, target.grid, halo),
        "settings": _complete(settings, moving),
        "flip": target.reversed,
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
        Lazy. u in ``T(p) = affine(p + u(p))``, with the product of all affines of the
        transform; the identity where it has none.

    Examples
    --------
    >>> lazy = itkstream.transform.prepare_field(registration.transform, fixed.grid, (64, 64, 64))
    >>> lazy.shape == (*fixed.shape, 3)
    True
    """
    blocks = block_grid(grid.shape, blocksize, 0)
    shared = {"transform": transform, "grid": grid}
    return map_blocks(_field_block, blocks, None, shared, Result(np.float32, (grid.ndim,)))


@dataclass(frozen=True)
class PositionLattice:
    """The lattice of a field of positions: a grid, voxels per node, and the order of vectors."""

    grid: Grid
    factors: tuple[int, ...]
    reversed: bool


@dataclass(frozen=True)
class _FieldCut:
    """The voxels that a part of a position field holds."""

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


def _complete(settings: WarpSettings, moving: Image) -> WarpSettings | Delayed:
    """The settings with a background, found in the image where none is given: once, lazily."""
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


def position_factors(
    field: tuple[int, ...], fixed: tuple[int, ...], given: Sequence[int] | None
) -> tuple[int, ...]:
    """Fixed voxels per node of a field of positions, from both shapes."""
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
