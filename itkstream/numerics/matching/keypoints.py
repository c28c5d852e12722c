"""Key points of an image: bright blobs, sought by their radius in µm.

Lengths are physical, so that images of different voxel sizes have the same key points.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import Grid, Image
from itkstream.numerics.checks import check_image
from itkstream.numerics.matching.blobs import find_blobs

__all__ = ["KeyPointSettings", "KeyPoints", "as_points", "find_key_points", "finite_voxels"]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# The widths searched reach this far beyond the radii asked for, as in the 2021 code: a blob of the
# least or greatest radius responds most, by noise and shape, to either side of it.
_SCALE_MARGINS = (0.8, 1.2)
# Neighbouring widths differ by this factor at least; on the tutorial's images 5, 8 and 10 widths
# from 9 to 42 µm found the same number of right matches within 1 %.
_LEAST_SCALE_RATIO = 1.35
# An image of fewer planes along an axis has no blobs inside: they are sought in the mean of its
# planes. So are blobs that are thicker than an image of few planes.
_LEAST_PLANES = 5
_FEW_PLANES = 12


@dataclass(frozen=True)
class KeyPointSettings:
    """Parameters of the blobs that are key points.

    Parameters
    ----------
    min_radius_um, max_radius_um : float or sequence of float
        Least and greatest radius of a blob, in µm; one number, or one per axis for blobs that are
        elongated along an axis.
    nspots : int
        Most key points per image; the strongest are kept.
    num_sigma_max : int
        Most widths searched between the radii.

    Raises
    ------
    InputError
        Where a value is out of range; the message names it.

    Examples
    --------
    >>> itkstream.features.KeyPointSettings(2.0, 6.0, nspots=1000).nspots
    1000
    """

    min_radius_um: float | tuple[float, ...]
    max_radius_um: float | tuple[float, ...]
    nspots: int = 5000
    num_sigma_max: int = 10

    def __post_init__(self) -> None:
        for name in ("min_radius_um", "max_radius_um"):
            given = getattr(self, name)
            value = tuple(map(float, given)) if np.ndim(given) else float(given)
            object.__setattr__(self, name, value)
        least, greatest = np.asarray(self.min_radius_um), np.asarray(self.max_radius_um)
        sizes = {x.size for x in (least, greatest)} - {1}
        finite = np.isfinite(least).all() and np.isfinite(greatest).all()
        if len(sizes) > 1 or not finite or (least <= 0).any() or (least > greatest).any():
            raise InputError(
                "blob radii must satisfy 0 < min_radius_um <= max_radius_um, one number each or "
                f"one per axis; got {self.min_radius_um} and {self.max_radius_um}"
            )
        if self.nspots < 1 or self.num_sigma_max < 1:
            raise InputError(
                f"nspots and num_sigma_max must be at least 1; got {self.nspots} and "
                f"{self.num_sigma_max}"
            )

    @classmethod
    def from_voxels(
        cls,
        min_radius: float | Sequence[float],
        max_radius: float | Sequence[float],
        spacing: Sequence[float],
        **others: int,
    ) -> KeyPointSettings:
        """Settings from radii in voxels.

        Parameters
        ----------
        min_radius, max_radius : float or sequence of float
            Radii in voxels of the fixed image. One number means round blobs, counted in voxels of
            the median spacing: that of the two finer or equal axes, where a radius is judged by
            eye. Numbers per axis are taken along each axis.
        spacing : sequence of float
            Spacing of the fixed image in µm.
        **others : int
            `nspots`, `num_sigma_max`.

        Returns
        -------
        KeyPointSettings
            The same radii in µm.

        Examples
        --------
        >>> itkstream.features.KeyPointSettings.from_voxels(2, 6, (0.5, 0.5, 0.5)).max_radius_um
        3.0
        """
        h = np.asarray(spacing, float)
        radii = [
            tuple(float(v) for v in np.asarray(r) * h) if np.ndim(r) else float(r * np.median(h))
            for r in (min_radius, max_radius)
        ]
        return cls(radii[0], radii[1], **others)

    def radii(self, ndim: int) -> tuple[Floats, Floats]:
        """Least and greatest radius per axis.

        Parameters
        ----------
        ndim : int
            Number of axes.

        Returns
        -------
        tuple of ndarray, (ndim,)
            In µm.

        Examples
        --------
        >>> least, most = itkstream.features.KeyPointSettings(2.0, 6.0).radii(3)
        >>> most
        array([6., 6., 6.])
        """
        both = [
            np.atleast_1d(np.asarray(r, float)) for r in (self.min_radius_um, self.max_radius_um)
        ]
        if any(r.size not in (1, ndim) for r in both):
            raise InputError(f"blob radii must be one number or {ndim}, one per axis")
        return np.broadcast_to(both[0], ndim), np.broadcast_to(both[1], ndim)

    def fit(self, grid: Grid) -> bool:
        """Whether an image can show the largest blobs.

        Parameters
        ----------
        grid : Grid
            Of the image.

        Returns
        -------
        bool
            False where one is thicker than the image, unless that is a stack of a few planes.

        Examples
        --------
        >>> itkstream.features.KeyPointSettings(2.0, 6.0).fit(fixed.grid)
        True
        """
        greatest = self.radii(grid.ndim)[1]
        extent = np.asarray(grid.shape) * grid.spacing
        return _flat_axis(grid, greatest) is not None or bool((extent >= 2 * greatest).all())


KnownPoints: TypeAlias = Callable[[KeyPointSettings], Floats]
"""Gives the positions of an image's key points by settings, (m, n) in µm."""


@dataclass(frozen=True, eq=False)
class KeyPoints:
    """Points that should be found again in another image, the strongest first.

    Parameters
    ----------
    positions : ndarray, (m, n)
        In µm.
    strengths : ndarray, (m,)
        Contrast of each blob with its surroundings, in the image's intensity unit.
    radii_um : ndarray, (m,)
        Radius of each blob; NaN where it is not known.

    Examples
    --------
    >>> settings = itkstream.features.KeyPointSettings(2.0, 6.0)
    >>> points = itkstream.features.find_key_points(fixed.read(), fixed.grid, settings)
    >>> len(points.strengths) == len(points.positions)
    True
    """

    positions: Floats
    strengths: Floats
    radii_um: Floats

    @classmethod
    def from_positions(cls, positions: ArrayLike) -> KeyPoints:
        """Key points found elsewhere, such as the centroids of a segmentation.

        Parameters
        ----------
        positions : array_like, (m, n)
            In µm; n is 2 or 3.

        Returns
        -------
        KeyPoints
            In the given order.

        Examples
        --------
        >>> len(itkstream.features.KeyPoints.from_positions([[1, 2, 3]]).strengths)
        1
        """
        points = as_points(positions)
        return cls(points, np.ones(len(points)), np.full(len(points), np.nan))

    def __len__(self) -> int:
        return len(self.positions)


def find_key_points(
    image: NDArray[Any],
    grid: Grid,
    settings: KeyPointSettings,
    sought: NDArray[np.bool_] | None = None,
) -> KeyPoints:
    """Find bright blobs.

    A blob of radius R is a maximum, over position and width, of the scale-normalised Laplacian of
    the image blurred by a Gaussian of standard deviation ``R / sqrt(n)``. Widths run from 0.8
    times the least radius to 1.2 times the greatest; a blob that is clearest at either end counts
    as well. Positions are fitted between voxels. In a 3-D image of a few planes that are thinner
    than the blobs together, blobs are discs: found in the mean of the planes, in their middle.

    Parameters
    ----------
    image : ndarray
        2-D or 3-D. Voxels that are not finite are taken as the mean of the others, and no key
        point lies on one.
    grid : Grid
        Where the voxels lie, in µm.
    settings : KeyPointSettings
        Radii and number.
    sought : ndarray of bool, optional
        Voxels on which key points may lie; default all. The others are seen all the same.

    Returns
    -------
    KeyPoints
        At most `nspots`, by falling strength, then rising position; none nearer than half its
        radius to a stronger one.

    Raises
    ------
    InputError
        Where shapes differ, or the image is thinner than the largest blob.
    RegistrationError
        Where the image is constant or has no finite voxel.

    Examples
    --------
    >>> settings = itkstream.features.KeyPointSettings(2.0, 6.0)
    >>> points = itkstream.features.find_key_points(fixed.read(), fixed.grid, settings)
    >>> points.positions.shape[1]
    3
    """
    voxels, allowed = finite_voxels(image, grid)
    if sought is not None:
        allowed = sought if allowed is None else allowed & sought
    return _find_blobs(voxels, allowed, grid, settings)


def sought_once(image: Image, mask: Image | None = None) -> KnownPoints:
    """Positions of the key points of an image, by settings; sought once by each of them.

    The mask says where, if there is one, as `find_key_points` takes it.
    """

    def find(settings: KeyPointSettings) -> Floats:
        sought = None if mask is None else mask.read()
        return find_key_points(image.read(), image.grid, settings, sought).positions

    return cache(find)


def _find_blobs(
    voxels: NDArray[Any],
    allowed: NDArray[np.bool_] | None,
    grid: Grid,
    settings: KeyPointSettings,
) -> KeyPoints:
    least, greatest = settings.radii(grid.ndim)
    flat = _flat_axis(grid, greatest)
    if flat is not None:
        return _find_discs(voxels, grid, settings, allowed, flat)
    extent = np.asarray(grid.shape) * grid.spacing
    if not settings.fit(grid):
        width, radius = (" x ".join(f"{v:.4g}" for v in vs) for vs in (extent, greatest))
        raise InputError(
            f"an image of {width} µm cannot show blobs of radius {radius} µm: take smaller radii "
            "or larger blocks"
        )
    sigmas = _widths(least, greatest, settings.num_sigma_max)
    found = find_blobs(voxels, grid, sigmas)
    if allowed is not None:
        nearest = np.rint(grid.to_index(found.positions)).astype(np.intp)
        nearest = np.clip(nearest, 0, np.asarray(grid.shape) - 1)
        found = found.select(allowed[tuple(nearest.T)])
    found = found.select(slice(settings.nspots))
    logger.info("%d key points in an image of shape %s", len(found.strengths), grid.shape)
    radii = np.sqrt(grid.ndim) * np.exp(np.log(sigmas).mean(axis=1))
    return KeyPoints(found.positions, found.strengths, radii[found.scales])


def _flat_axis(grid: Grid, greatest: Floats) -> int | None:
    """The axis along which a 3-D image is no more than a few planes, thinner than its blobs."""
    if grid.ndim < 3:
        return None
    shape = np.asarray(grid.shape)
    thick = shape * grid.spacing >= 2 * greatest
    axis = int(np.argmin(shape * grid.spacing))
    if not np.delete(thick, axis).all() or shape[axis] > _FEW_PLANES:
        return None
    return axis if shape[axis] < _LEAST_PLANES or not thick[axis] else None


def _find_discs(
    voxels: NDArray[Any],
    grid: Grid,
    settings: KeyPointSettings,
    allowed: NDArray[np.bool_] | None,
    axis: int,
) -> KeyPoints:
    """Blobs of the mean over the planes of an axis, in the middle of these."""
    others = [k for k in range(grid.ndim) if k != axis]
    plane = Grid(tuple(grid.shape[k] for k in others), tuple(grid.spacing[k] for k in others))
    least, greatest = (r[others] for r in settings.radii(grid.ndim))
    flat = replace(settings, min_radius_um=tuple(least), max_radius_um=tuple(greatest))
    mask = None if allowed is None else np.asarray(allowed.any(axis=axis))
    found = _find_blobs(voxels.mean(axis=axis), mask, plane, flat)
    index = np.insert(plane.to_index(found.positions), axis, (grid.shape[axis] - 1) / 2, axis=1)
    return KeyPoints(grid.to_physical(index), found.strengths, found.radii_um)


def _widths(least: Floats, greatest: Floats, most: int) -> Floats:
    """Standard deviations (k, n) of the blurs, rising by one factor per axis."""
    first, last = _SCALE_MARGINS[0] * least, _SCALE_MARGINS[1] * greatest
    span = float(np.log(last / first).max() / np.log(_LEAST_SCALE_RATIO))
    count = min(most, int(np.ceil(span)) + 1)
    steps = np.linspace(0, 1, count)[:, None] if count > 1 else np.array([[0.5]])
    return np.asarray(first * (last / first) ** steps / np.sqrt(len(least)))


def finite_voxels(image: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Voxels, the mean where they are not finite, and where they are (None: everywhere)."""
    voxels = np.asarray(image)
    check_image("the image", voxels, grid.shape)
    finite = None
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        finite = np.isfinite(voxels)
        if not finite.any():
            raise RegistrationError(
                "no voxel of the image is finite, or the mask leaves none: it has no key points"
            )
        voxels = np.where(finite, voxels, voxels[finite].mean(dtype=np.float64))
    if voxels.min() == voxels.max():
        raise RegistrationError(
            f"every voxel of the image is {voxels.flat[0]}: it has no key points; check the "
            "dataset, the channel and the mask"
        )
    return voxels, finite


def as_points(positions: ArrayLike) -> Floats:
    """Check positions and bring them into one form, (m, n)."""
    points = np.asarray(positions, np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
        raise InputError(
            f"points must be finite numbers of shape (m, 2) or (m, 3), in µm; got {points.shape}"
        )
    return points
