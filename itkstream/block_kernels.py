"""One block at a time: pure functions from arrays and grids to arrays.

The public doors map these over many blocks, or call them once with the whole image as the one
block; there is no other implementation of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import SimpleITK as sitk
from numpy.typing import DTypeLike, NDArray

from itkstream import itk_bridge
from itkstream.background import background_of
from itkstream.errors import InputError, RegistrationError
from itkstream.features import (
    ContextWindow,
    Correspondences,
    KeyPointSettings,
    MatchSettings,
    find_key_points,
    match,
    sample_contexts,
)
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Transform,
)
from itkstream.numerics.descent import Descent, Frame, LevelReport, descend
from itkstream.numerics.descent_settings import DescentSettings
from itkstream.numerics.interpolate import Part, as_voxel, round_to, warp
from itkstream.numerics.itk_bspline import descend_bspline
from itkstream.numerics.itk_methods import (
    IntensityEstimate,
    descend_demons,
    fit_intensity_affine,
)
from itkstream.numerics.itk_settings import (
    BsplineSettings,
    DeformSettings,
    DemonsSettings,
    IntensitySettings,
)
from itkstream.numerics.mapping import GridMap, map_on
from itkstream.ransac import AffineEstimate, RansacSettings, fit_in_planes, fit_ransac

__all__ = [
    "BARREN",
    "AffineSettings",
    "AnyTransform",
    "DeformEstimate",
    "WarpSettings",
    "affine_block",
    "best_affine_block",
    "deform_block",
    "intensity_block",
    "warp_block",
    "warp_mapped",
]

AnyTransform: TypeAlias = Transform | sitk.Transform

T = TypeVar("T")
Both: TypeAlias = tuple[T | None, T | None]
"""Something of the fixed and of the moving image, or nothing."""

Engine = Literal["fast", "itk"]

# B-splines and windowed sincs reach further than their neighbours: the poles of a cubic B-spline
# have decayed below single precision after 12 voxels.
_WIDE_MARGIN_VOX = 12

# The settings say which engine they are for.
_ENGINES: dict[type[DeformSettings], Callable[..., Descent]] = {
    DescentSettings: descend,
    DemonsSettings: descend_demons,
    BsplineSettings: descend_bspline,
}

_LEAST_CONFIDENCE = 0.01

# Enough agreeing matches that no other settings need be tried.
_PLENTY_OF_INLIERS = 200

# Matches in so few planes may not tell how an affine acts across them.
_FEW_PLANES = 12

BARREN = {
    "no overlap": "it lies outside the moving image",
    "no texture": (
        "no correlation window holds texture of both images: is one constant there, left out by "
        "its mask, or smaller than the window?"
    ),
}
"""Why a deformation had nothing to go by, and what that tells a user."""


@dataclass(frozen=True)
class AffineSettings:
    """How an affine is found from key points.

    Parameters
    ----------
    key_points : KeyPointSettings
        Which blobs are key points.
    window : ContextWindow
        The neighbourhoods that are compared.
    matching : MatchSettings
        Which pairs correspond.
    ransac : RansacSettings
        How the transform is fitted to them.
    """

    key_points: KeyPointSettings
    window: ContextWindow
    matching: MatchSettings = field(default_factory=MatchSettings)
    ransac: RansacSettings = field(default_factory=RansacSettings)


@dataclass(frozen=True, eq=False)
class DeformEstimate:
    """The deformation of one block, or why there is none; true in a condition when there is one.

    Parameters
    ----------
    displacement : ndarray, block shape + (n,), float32, or None
        u in ``T(p) = affine(p + u(p))``, physical units.
    initial : GridMap
        The initial transform on the block.
    levels : tuple of LevelReport
        What each level did.
    reason : str
        Why there is no displacement; empty where there is.
    """

    displacement: NDArray[np.float32] | None
    initial: GridMap
    levels: tuple[LevelReport, ...] = ()
    reason: str = ""

    def __bool__(self) -> bool:
        return self.displacement is not None

    def confidence(self) -> float:
        """How far the block can be trusted beside its neighbours.

        Returns
        -------
        float
            Mean squared local correlation at its finest level, at least 0.01.
        """
        return max(_LEAST_CONFIDENCE, self.levels[-1].after) if self.levels else 1.0

    def refinement(self) -> NDArray[np.float32] | None:
        """What the deformation adds to the initial displacement.

        Returns
        -------
        ndarray, block shape + (n,), float32, or None
            Physical vectors; None where there is no deformation.
        """
        if self.displacement is None or self.initial.displacement is None:
            return self.displacement
        return self.displacement - self.initial.displacement


@dataclass(frozen=True)
class WarpSettings:
    """How an image is resampled.

    Parameters
    ----------
    interpolator : str
        'linear', 'nearest', or another of `itkstream.itk_bridge.INTERPOLATORS`.
    engine : {'fast', 'itk'}, optional
        'fast' (numba) knows linear and nearest; 'itk' resamples each block with SimpleITK and
        knows all. Default the fastest that can.
    background : float or int, optional
        Value outside the moving image; clipped to the range of integers. None: what
        `itkstream.background.background_of` tells from the image; 0 between labels.
    dtype : dtype, optional
        Voxel type of the result; default that of the moving image.

    Raises
    ------
    InputError
        For an unknown engine or interpolator, or a pair that does not go together; for a `dtype`
        that is none of real numbers.
    """

    interpolator: str = "linear"
    engine: Engine | None = None
    background: float | None = 0.0
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        if self.interpolator not in itk_bridge.INTERPOLATORS:
            raise InputError(
                f"unknown interpolator {self.interpolator!r}; "
                f"known: {', '.join(itk_bridge.INTERPOLATORS)}"
            )
        quick = self.interpolator in ("linear", "nearest")
        engine = self.engine or ("fast" if quick else "itk")
        if engine not in get_args(Engine):
            raise InputError(f"engine must be one of {get_args(Engine)}; got {engine!r}")
        if engine == "fast" and not quick:
            raise InputError(
                f"engine 'fast' interpolates linear or nearest; use engine='itk' for "
                f"{self.interpolator!r}"
            )
        object.__setattr__(self, "engine", engine)
        if self.dtype is not None:
            self.voxel_type(self.dtype)

    def voxel_type(self, moving: DTypeLike) -> np.dtype[Any]:
        """The voxel type of what becomes of an image.

        Parameters
        ----------
        moving : dtype
            Voxel type of the moving image.

        Returns
        -------
        dtype
            Of the result.

        Raises
        ------
        InputError
            Where one of the two does not hold truth values, integers or floats of at most 64 bits,
            or the result cannot hold the background.
        """
        found = _real(moving if self.dtype is None else self.dtype)
        _real(moving)
        as_voxel(self.background or 0, found)
        return found

    def for_image(self, moving: Image) -> WarpSettings:
        """The settings with a background, told from the image where none is given.

        Parameters
        ----------
        moving : Image
            The moving image.

        Returns
        -------
        WarpSettings
            The same ones where a background is given.
        """
        if self.background is not None:
            return self
        labels = self.interpolator in itk_bridge.CHOOSING
        return replace(self, background=0.0 if labels else background_of(moving))

    @property
    def margin_vox(self) -> int:
        """Moving voxels read around the sampled positions."""
        return 0 if self.interpolator in ("linear", "nearest") else _WIDE_MARGIN_VOX


def affine_block(
    fixed: Image,
    moving: Image,
    settings: AffineSettings,
    points: Both[NDArray[np.float64]] = (None, None),
) -> tuple[AffineEstimate, Correspondences]:
    """Find the affine between two images in memory from their key points.

    Parameters
    ----------
    fixed, moving : Image
        In memory, with the same axes; voxels that are NaN do not count.
    settings : AffineSettings
        Parameters of every step.
    points : (ndarray or None, ndarray or None)
        Key points of one's own, (m, n) in physical units, instead of blobs.

    Returns
    -------
    estimate : AffineEstimate
        False in a condition, with the reason, where no trustworthy affine was found.
    pairs : Correspondences
        The matches; `estimate.inliers` tells those that agree.

    Raises
    ------
    InputError
        Where an image is thinner than the blobs.
    RegistrationError
        Where an image is constant or has no finite voxel.
    """
    sides = ("fixed", fixed, points[0]), ("moving", moving, points[1])
    window = settings.window.within(fixed.grid, moving.grid)
    contexts, found, doubts = [], [], []
    for which, image, own in sides:
        voxels = image.read()
        try:
            if own is None:
                own = find_key_points(voxels, image.grid, settings.key_points).positions
            contexts.append(sample_contexts(voxels, image.grid, own, window))
        except (InputError, RegistrationError) as error:
            raise type(error)(f"{which} image: {error}") from None
        found.append(len(own))
        doubts.append(_what_is_left_out(which, voxels))
    pairs = match(contexts[0], contexts[1], settings.matching)
    estimate = _fit(pairs, fixed.grid, settings.ransac)
    if estimate:
        return estimate, pairs
    kept = [len(side) for side in contexts]
    if kept != found:
        doubts.append(
            f"{kept[0]} and {kept[1]} of them have enough of the image around them: a smaller "
            "cc_radius, the half width of the window, keeps more"
        )
    said = "; ".join(filter(None, doubts))
    reason = (
        f"{found[0]} key points in the fixed and {found[1]} in the moving image"
        f"{f' ({said})' if said else ''} gave {len(pairs)} matches above "
        f"{settings.matching.threshold}: {estimate.reason}"
    )
    return replace(estimate, reason=reason), pairs


def _what_is_left_out(which: str, voxels: NDArray[Any]) -> str:
    """How much of an image counts; empty where all does."""
    share = float(np.isfinite(voxels).mean()) if voxels.dtype.kind == "f" else 1.0
    if share == 1:
        return ""
    return (
        f"{share:.2g} of the {which} image counts, the rest is NaN, infinite or left out by the "
        f"{which} mask"
    )


def _fit(pairs: Correspondences, grid: Grid, settings: RansacSettings) -> AffineEstimate:
    """The transform of matches; in a stack of a few planes one that keeps these, if need be."""
    estimate = fit_ransac(pairs.fixed_points, pairs.moving_points, settings)
    axis = int(np.argmin(grid.shape))
    if estimate or grid.ndim < 3 or grid.shape[axis] > _FEW_PLANES:
        return estimate
    normal = np.asarray(grid.direction)[:, axis]
    return fit_in_planes(pairs.fixed_points, pairs.moving_points, normal, settings) or estimate


def best_affine_block(
    fixed: Image, moving: Image, choices: Sequence[AffineSettings]
) -> tuple[AffineEstimate, Correspondences, AffineSettings]:
    """Find the affine between two images in memory with the settings that find most matches.

    Parameters
    ----------
    fixed, moving : Image
        In memory, with the same axes.
    choices : sequence of AffineSettings
        Tried one after the other until matches abound.

    Returns
    -------
    estimate : AffineEstimate
        Of the best settings; false in a condition where none gave a trustworthy affine.
    pairs : Correspondences
        Their matches.
    settings : AffineSettings
        The best ones.

    Raises
    ------
    InputError, RegistrationError
        Where all fail, the error of the first: see `affine_block`.
    """
    best: tuple[AffineEstimate, Correspondences, AffineSettings] | None = None
    failure: InputError | RegistrationError | None = None
    for settings in choices:
        try:
            found = (*affine_block(fixed, moving, settings), settings)
        except (InputError, RegistrationError) as error:
            failure = failure or error
            continue
        if best is None or found[0].inliers.sum() > best[0].inliers.sum():
            best = found
        if best[0].inliers.sum() >= _PLENTY_OF_INLIERS:
            break
    if best is None:
        raise failure or InputError("choices needs at least one AffineSettings; got none")
    return best


def intensity_block(
    fixed: Image,
    moving: Image,
    initial: NDArray[np.float64],
    settings: IntensitySettings,
) -> IntensityEstimate:
    """Refine an affine between two images in memory by their intensities.

    Parameters
    ----------
    fixed, moving : Image
        In memory, with the same axes.
    initial : ndarray, (n + 1, n + 1)
        Where to start, from fixed to moving points.
    settings : IntensitySettings
        Parameters.

    Returns
    -------
    IntensityEstimate
        False in a condition, with the initial matrix and the reason, where none is better.

    Raises
    ------
    InputError
        For images or an affine that cannot be used.
    """
    frame = Frame(fixed.grid, moving.grid, initial)
    return fit_intensity_affine(fixed.read(), moving.read(), frame, settings)


def deform_block(
    fixed: Image,
    moving: Image,
    initial: Transform,
    settings: DeformSettings,
    progress: Callable[[int, int, float], None] | None = None,
) -> DeformEstimate:
    """Refine a transform by a deformation, in one block.

    Parameters
    ----------
    fixed : Image
        The block, in memory.
    moving : Image
        The whole moving image; only the part that the block can reach is read.
    initial : Transform
        Where to start, from fixed to moving points.
    settings : DeformSettings
        Parameters of the deformation; their kind decides the engine.
    progress : callable, optional
        Called with level, iteration and squared correlation.

    Returns
    -------
    DeformEstimate
        With the whole displacement in front of the initial transform's affine.
    """
    mapping = map_on(initial, fixed.grid)
    # The coarsest correlation window is as far as a block looks beyond where it starts.
    coarsest = max(settings.shrink_factors) * max(np.ravel(settings.cc_radius))
    crop = mapping.crop_of(moving.grid, float(coarsest * max(fixed.grid.spacing)))
    if crop is None:
        return DeformEstimate(None, mapping, (), BARREN["no overlap"])
    part = moving[crop]
    frame = Frame(fixed.grid, part.grid, mapping.affine)
    try:
        descent = _ENGINES[type(settings)](
            fixed.read(),
            part.read(),
            frame,
            settings,
            initial=mapping.displacement,
            progress=progress,
        )
    except InputError as error:
        return DeformEstimate(None, mapping, (), str(error))
    if all(level.stopped in BARREN for level in descent.levels):
        reason = BARREN[descent.levels[-1].stopped]
        return DeformEstimate(None, mapping, descent.levels, reason)
    return DeformEstimate(descent.displacement, mapping, descent.levels)


def warp_block(
    moving: Image, transform: AnyTransform, grid: Grid, settings: WarpSettings
) -> NDArray[Any]:
    """Resample the moving image on the voxels of a grid, reading only what that needs.

    Parameters
    ----------
    moving : Image
        In memory or stored, with the axes of `grid`.
    transform : Transform or SimpleITK.Transform
        From fixed to moving points.
    grid : Grid
        The voxels wanted, in fixed space.
    settings : WarpSettings
        Interpolation, engine, background, type.

    Returns
    -------
    ndarray, grid.shape
        The resampled voxels.
    """
    if isinstance(transform, sitk.Transform):
        moves = itk_bridge.sample_transform(transform, grid)
        return warp_mapped(moving, GridMap(grid, np.eye(grid.ndim + 1), moves), settings, transform)
    return warp_mapped(moving, map_on(transform, grid), settings)


def warp_mapped(
    moving: Image, mapping: GridMap, settings: WarpSettings, itk: sitk.Transform | None = None
) -> NDArray[Any]:
    """Resample the moving image through a map that is already evaluated on the wanted voxels.

    Parameters
    ----------
    moving : Image
        In memory or stored.
    mapping : GridMap
        Where each wanted voxel lies in the moving image.
    settings : WarpSettings
        Interpolation, engine, background, type.
    itk : SimpleITK.Transform, optional
        The ITK transform `mapping` was sampled from; the ITK engine then uses the original.

    Returns
    -------
    ndarray, mapping.grid.shape
        The resampled voxels.
    """
    dtype = settings.voxel_type(moving.dtype)
    settings = settings.for_image(moving)
    background = as_voxel(settings.background or 0, dtype)
    chooses = settings.interpolator in itk_bridge.CHOOSING
    if not chooses:
        # Samples go through doubles; so that all blocks agree, what is beyond them does as well.
        background = round_to(np.array([background], np.float64), dtype)[0]
    grid = mapping.grid
    crop = mapping.crop_of(moving.grid, settings.margin_vox * max(moving.spacing))
    if crop is None:
        return np.full(grid.shape, background, dtype)
    part = Image(moving[crop].read(), moving.grid.crop(crop))
    if background == 0 and _is_blank(part.data):
        return np.zeros(grid.shape, dtype)
    if settings.engine == "fast":
        return warp(
            Part(part.data, tuple(s.start for s in crop), moving.shape),
            mapping.index_matrix(moving.grid),
            grid.shape,
            mapping.displacement,
            mapping.vector_matrix(moving.grid),
            order=1 if settings.interpolator == "linear" else 0,
            background=background,
            dtype=dtype,
        )
    if chooses:
        # Values that are not mixed may take their last type first: labels keep all their bits.
        part = Image(round_to(part.data, dtype), part.grid)
    resampled = itk_bridge.resample(
        part,
        itk or itk_bridge.to_itk_transform(_as_transform(mapping), grid.axes),
        grid,
        interpolator=settings.interpolator,
        background=background,
    )
    return round_to(resampled, dtype)


def _is_blank(voxels: NDArray[Any]) -> bool:
    """Whether all are 0, of which every interpolator makes 0; -0.0 is left to it."""
    return not voxels.any() and not (voxels.dtype.kind == "f" and np.signbit(voxels).any())


def _real(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise InputError(f"{dtype!r} is no voxel type: {error}") from error
    if found.kind not in "biuf" or found.itemsize > 8:
        raise InputError(
            "images that are resampled hold truth values, integers or floats of up to 64 bits; got "
            f"{found}: take the real and the imaginary part one by one, or cast to float64"
        )
    return found


def _as_transform(mapping: GridMap) -> Transform:
    affine = AffineTransform(mapping.affine)
    if mapping.displacement is None:
        return affine
    return CompositeTransform((DisplacementField(mapping.displacement, mapping.grid), affine))
