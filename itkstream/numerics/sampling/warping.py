"""Resampling of the part of an image that a grid needs, through any transform."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import SimpleITK as sitk
from numpy.typing import DTypeLike, NDArray

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Slices,
    Transform,
    itk_bridge,
)
from itkstream.numerics.sampling.background import background_of
from itkstream.numerics.sampling.interpolate import INTERPOLATORS, Part, as_voxel, round_to, warp
from itkstream.numerics.sampling.mapping import GridMap, can_map_boxes, map_on

__all__ = ["NAN_OUTSIDE", "AnyTransform", "WarpSettings", "warp_block", "warp_mapped", "warp_part"]


AnyTransform: TypeAlias = Transform | sitk.Transform

Engine = Literal["fast", "itk"]

# B-splines and windowed sincs reach further than their neighbours: the poles of a cubic B-spline
# have decayed below single precision after 12 voxels.
_WIDE_MARGIN_VOX = 12


@dataclass(frozen=True)
class WarpSettings:
    """Parameters of the resampling of an image.

    Parameters
    ----------
    interpolator : str
        'linear', 'bspline', 'quadratic-bspline', 'gaussian', 'hamming-sinc', 'cosine-sinc',
        'welch-sinc', 'lanczos-sinc', 'blackman-sinc'; for labels 'nearest', 'label-linear' (the one
        with the greatest linear weight: smoother borders, a third of a voxel nearer to the true
        ones than nearest), 'label-gaussian'.
    engine : {'fast', 'itk'}, optional
        'fast' (numba) knows linear, nearest and label-linear; 'itk' resamples each block with
        SimpleITK and knows all. Default the fastest that can.
    background : float or int, optional
        Value outside the moving image; clipped to the range of integers. None: what
        the border of a bright or signed image shows, else 0; 0 between labels.
    dtype : dtype, optional
        Voxel type of the result; default that of the moving image.

    Raises
    ------
    InputError
        For an unknown engine or interpolator, or a pair that does not go together; for a `dtype`
        that is none of real numbers.

    Examples
    --------
    >>> labels = itkstream.open_image("examples/labels.ome.zarr")
    >>> nearest = itkstream.WarpSettings("nearest")
    >>> registration.apply(labels, nearest).dtype == labels.dtype
    True
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
        quick = self.interpolator in INTERPOLATORS
        engine = self.engine or ("fast" if quick else "itk")
        if engine not in get_args(Engine):
            raise InputError(f"engine must be one of {get_args(Engine)}; got {engine!r}")
        if engine == "fast" and not quick:
            raise InputError(
                f"engine 'fast' interpolates {', '.join(INTERPOLATORS)}; use engine='itk' for "
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

        Examples
        --------
        >>> itkstream.WarpSettings(dtype="float32").voxel_type("uint16")
        dtype('float32')
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

        Examples
        --------
        >>> itkstream.WarpSettings(background=None).for_image(moving).background
        0.0
        """
        if self.background is not None:
            return self
        labels = self.interpolator in itk_bridge.CHOOSING
        return replace(self, background=0.0 if labels else background_of(moving))

    @property
    def margin_vox(self) -> int:
        """Moving voxels read around the sampled positions."""
        return 0 if self.interpolator in INTERPOLATORS else _WIDE_MARGIN_VOX


def warp_block(
    moving: Image, transform: AnyTransform, grid: Grid, settings: WarpSettings
) -> NDArray[Any]:
    """Resample the moving image on the voxels of a grid, reading only what that needs.

    Returns grid.shape.
    """
    if isinstance(transform, sitk.Transform):
        moves = itk_bridge.sample_transform(transform, grid)
        return warp_mapped(moving, GridMap(grid, np.eye(grid.ndim + 1), moves), settings, transform)
    return warp_mapped(moving, map_on(transform, grid), settings)


def warp_part(
    moving: Image, transform: Transform, grid: Grid, box: Slices, settings: WarpSettings
) -> NDArray[Any]:
    """Resample the moving image on a box of a grid: the bits that `warp_block` gives there.

    Where those depend on the whole block, all of it is resampled.
    """
    if settings.engine == "fast" and can_map_boxes(transform, grid):
        return warp_mapped(moving, map_on(transform, grid, box), settings)
    return warp_block(moving, transform, grid, settings)[box]


def warp_mapped(
    moving: Image, mapping: GridMap, settings: WarpSettings, itk: sitk.Transform | None = None
) -> NDArray[Any]:
    """Resample the moving image through a map that is already evaluated on the wanted voxels.

    Returns mapping.shape. A part of a grid is for the engine 'fast' alone.
    """
    dtype = settings.voxel_type(moving.dtype)
    settings = settings.for_image(moving)
    background = as_voxel(settings.background or 0, dtype)
    chooses = settings.interpolator in itk_bridge.CHOOSING
    if not chooses:
        # Samples go through doubles; so that all blocks agree, what is beyond them does as well.
        background = round_to(np.array([background], np.float64), dtype)[0]
    crop = mapping.crop_of(moving.grid, settings.margin_vox * max(moving.spacing))
    if crop is None:
        return np.full(mapping.shape, background, dtype)
    part = Image(moving[crop].read(), moving.grid.crop(crop))
    if background == 0 and _is_blank(part.data):
        return np.zeros(mapping.shape, dtype)
    if settings.engine == "fast":
        return warp(
            Part(part.data, tuple(s.start for s in crop), moving.shape),
            mapping.index_matrix(moving.grid),
            mapping.shape,
            mapping.displacement,
            mapping.vector_matrix(moving.grid),
            first=mapping.first,
            interpolator=settings.interpolator,
            background=background,
            dtype=dtype,
        )
    if chooses:
        # Values that are not mixed may take their last type first: labels keep all their bits.
        part = Image(round_to(part.data, dtype), part.grid)
    resampled = itk_bridge.resample(
        part,
        itk or itk_bridge.to_itk_transform(_as_transform(mapping), mapping.grid.axes),
        mapping.grid,
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


NAN_OUTSIDE = WarpSettings(background=np.nan, dtype=np.float32)
"""Images to be compared: NaN, which does not count, where there is none of the moving image."""
