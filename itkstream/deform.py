"""Deformable registration: whole, or lazily block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.apply.folds import prepare_fold_count
from itkstream.apply.resampling import piecewise_transform
from itkstream.blocks.inputs import as_pair, block_grid, check_one_channel, check_start
from itkstream.blocks.levels import prepare_levels
from itkstream.blocks.masks import Mask
from itkstream.errors import InputError, RegistrationError
from itkstream.estimate.aligned import MovIs, checked_mov_is, prepare_start_of
from itkstream.estimate.deformation import (
    COARSE_VOXELS,
    Task,
    deform_blocks,
    field_factors,
    positions_of,
    prepare_deformation,
    prepare_displacement,
    prepare_positions,
)
from itkstream.geometry import AffineTransform, Grid, Transform
from itkstream.numerics.deformation.settings import DescentSettings, Similarity
from itkstream.numerics.engines import deform_block
from itkstream.numerics.gpu.engine import Engine, computing
from itkstream.numerics.itk.settings import BsplineSettings, DeformSettings, DemonsSettings
from itkstream.registration.steps import Deformable, Method

__all__ = [
    "BsplineSettings",
    "DemonsSettings",
    "DescentSettings",
    "deform_blocks",
    "deformable_align",
    "field_factors",
    "prepare_displacement",
    "prepare_fold_count",
    "prepare_piecewise_deformable_align",
    "prepare_positions",
]


def __dir__() -> list[str]:
    return __all__


Abcd = tuple[float, float, float, float]


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
    similarity: Similarity = "lcc",
    settings: DeformSettings | None = None,
    fix_mask: Mask | None = None,
    mov_mask: Mask | None = None,
    engine: Engine | None = None,
) -> NDArray[np.float32]:
    """Find the deformation between two images in memory.

    Parameters
    ----------
    fix, mov : array or Image
        Fixed and moving image, already aligned by an affine.
    fix_spacing, mov_spacing : sequence of float or None
        µm per voxel; None for an `Image`.
    cc_radius : int
        Radius of the correlation window, in voxels of each level.
    gradient_smoothing, field_smoothing : four floats
        (a, b, c, d) of the smoothing operators of the force and of the displacement: the inverse of
        the d-th power of ``c - (a/2) laplacian - (b/2) grad div``; a and b are areas.
    iterations : sequence of int
        At most so many per level, coarse to fine.
    shrink_factors : sequence of int
        Of the levels.
    smooth_sigmas : sequence of float
        Gaussian before shrinking, in µm.
    step : float, optional
        Longest displacement of one iteration, in µm; default the smallest fixed voxel
        spacing.
    method : {'lcc', 'demons', 'symmetric-demons', 'diffeomorphic-demons', 'bspline'}
        'lcc' follows local correlation, with the parameters above; the others are SimpleITK's
        with the defaults of `DemonsSettings` and `BsplineSettings`, scaled to the smallest fixed
        voxel spacing.
    similarity : {'lcc', 'mind'}
        What method 'lcc' follows: local correlation of intensities or, for images whose contrasts
        differ, of self-similarity descriptors; see `DescentSettings`.
    settings : DeformSettings, optional
        All parameters in one value, instead of those above; its kind decides the method.
    fix_mask, mov_mask : Mask, optional
        Which voxels count, see `itkstream.Mask`; others do not pull.
    engine : {'cpu', 'gpu', 'auto'}, optional
        What computes method 'lcc', as in `itkstream.Resources`; default the processors.

    Returns
    -------
    ndarray, fixed shape + (3,), float32
        Displacement in µm: the moving position of voxel p is ``p + displacement(p)``.

    Raises
    ------
    InputError
        Where parameters are invalid or contradict each other, or this machine lacks a GPU that is
        asked for.
    RegistrationError
        Where the images do not overlap or hold no texture.

    Examples
    --------
    >>> positions = itkstream.deform.deformable_align(
    ...     fixed, moving, None, None, 4, iterations=(3,), shrink_factors=(2,), smooth_sigmas=(1,)
    ... )
    >>> positions.shape == (*fixed.shape, 3)
    True
    """
    given = _lcc_settings(
        cc_radius=cc_radius,
        gradient_smoothing=gradient_smoothing,
        field_smoothing=field_smoothing,
        iterations=iterations,
        shrink_factors=shrink_factors,
        smooth_sigmas=smooth_sigmas,
        step=step,
        similarity=similarity,
    )
    masks = (fix_mask, mov_mask)
    check_one_channel(fix, mov)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, masks=masks)
    settings = _choose(method, settings, given, fixed.grid)
    check_start(fixed, moving)
    with computing(engine):
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
    similarity: Similarity = "lcc",
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
        µm per voxel, x first; None for an `Image`.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    transpose : two bools
        Whether the stored axes of fix and mov are reversed (z, y, x).
    global_affine : array_like, (4, 4), optional
        From fixed to original moving points, in µm.
    local_affines : array_like, block grid + (4, 4), optional
        Applied before the global one; for the same blocksize.
    cc_radius, gradient_smoothing, field_smoothing, iterations, shrink_factors, smooth_sigmas, step
        As in `deformable_align`.
    overlap : int or sequence of int, optional
        Voxels each block looks beyond its border; default an eighth of the block.
    method : {'lcc', 'demons', 'symmetric-demons', 'diffeomorphic-demons', 'bspline'}
        As in `deformable_align`.
    similarity : {'lcc', 'mind'}
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
        Lazy. The original moving image's position of every fixed voxel, in µm, x first. With
        ``itkstream.execute(..., engine="gpu")`` a GPU computes it.

    Raises
    ------
    InputError
        For images, affines or parameters that cannot be used.

    Examples
    --------
    >>> lazy = itkstream.deform.prepare_piecewise_deformable_align(
    ...     fixed, moving, None, None, (32, 32, 32), global_affine=np.eye(4)
    ... )
    >>> lazy.shape == (*fixed.shape, 3)
    True
    """
    given = _lcc_settings(
        cc_radius=cc_radius,
        gradient_smoothing=gradient_smoothing,
        field_smoothing=field_smoothing,
        iterations=iterations,
        shrink_factors=shrink_factors,
        smooth_sigmas=smooth_sigmas,
        step=step,
        similarity=similarity,
    )
    masks = (fix_mask, mov_mask)
    check_one_channel(fix, mov)
    fixed, moving = as_pair(fix, mov, fix_spacing, mov_spacing, transpose, masks)
    settings = _choose(method, settings, given, fixed.grid)
    blocks = block_grid(fixed.shape, blocksize, overlap)
    mov_is = checked_mov_is(mov_is)
    if global_affine is None and local_affines is None:
        start = AffineTransform(np.eye(fixed.ndim + 1))
        check_start(fixed, moving, start, anywhere=True)
        task = Task(fixed, moving, start, settings, blocks, coarse_voxels, skip_empty)
        return prepare_deformation(task, positions_of(fixed.grid))
    affines: Transform = AffineTransform(
        np.eye(fixed.ndim + 1) if global_affine is None else np.asarray(global_affine, float)
    )
    if local_affines is not None:
        affines = piecewise_transform(fixed.grid, local_affines, blocksize, global_affine, overlap)
    if mov_is == "original":
        check_start(fixed, moving, affines)
    levels = prepare_levels(fixed, moving, coarse_voxels or COARSE_VOXELS)
    start = prepare_start_of(levels, affines, mov_is)
    task = Task(fixed, moving, start, settings, blocks, coarse_voxels, skip_empty, levels)
    output = positions_of(fixed.grid, affines if mov_is == "aligned" else None)
    return prepare_deformation(task, output)


def _lcc_settings(**given: Any) -> DescentSettings:
    """The settings of method 'lcc': one number, or one per level, as they are given."""
    return DescentSettings(**given)


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
            f"cc_radius, smoothings, iterations, levels, step and similarity given one by one are "
            f"for method 'lcc'; for method {method!r} give "
            f"settings={type(step.settings).__name__}(...)"
        )
    return step.settings_for(grid.spacing)
