"""Key points of two images, their surroundings, and which of them correspond.

All lengths are physical, so that images of different voxel sizes match: blobs are sought by their
radius in µm, and their surroundings are sampled on one lattice in µm.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import Grid
from itkstream.numerics.checks import check_image
from itkstream.numerics.matching.blobs import find_blobs
from itkstream.numerics.matching.contexts import correlate, sample_around
from itkstream.numerics.matching.scale_space import BlurredImage, blur, halve

__all__ = [
    "ContextWindow",
    "Contexts",
    "Correspondences",
    "KeyPointSettings",
    "KeyPoints",
    "MatchSettings",
    "find_key_points",
    "match",
    "sample_contexts",
]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# The widths searched reach this far beyond the radii asked for, as in the 2021 code: a blob of the
# least or greatest radius responds most, by noise and shape, to either side of it.
_SCALE_MARGINS = (0.8, 1.2)
# Neighbouring widths differ by this factor at least; on the tutorial's images 5, 8 and 10 widths
# from 9 to 42 µm found the same number of right matches within 1 %.
_LEAST_SCALE_RATIO = 1.35
# 9 samples per axis found as many right matches as 13 and 25, also in heavy noise, in a sixteenth
# of the time of 25.
_SAMPLES_PER_SIDE = 4
# Half-way between two lattice points a wave as short as the lattice can hold is halved by this.
_BLUR_PER_STEP = float(np.sqrt(3.0) / 4)
# An image of fewer planes along an axis has no blobs inside: they are sought in the mean of its
# planes. So are blobs that are thicker than an image of few planes.
_LEAST_PLANES = 5
_FEW_PLANES = 12
# Rows of the score matrix held at a time: 512 x 5000 scores take 10 MB.
_ROWS = 512


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
        """
        greatest = self.radii(grid.ndim)[1]
        extent = np.asarray(grid.shape) * grid.spacing
        return _flat_axis(grid, greatest) is not None or bool((extent >= 2 * greatest).all())


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
        """
        points = _points(positions)
        return cls(points, np.ones(len(points)), np.full(len(points), np.nan))

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class ContextWindow:
    """The neighbourhood by which key points are compared.

    Parameters
    ----------
    half_width_um : tuple of float
        From its centre to its outermost samples, per axis.
    samples : int
        Samples per axis, odd.
    min_inside : float
        Fraction of the samples that must lie inside the image, at most 1. A point on a face of
        the image has one half.

    Raises
    ------
    InputError
        Where a value is out of range; the message names it.
    """

    half_width_um: tuple[float, ...]
    samples: int = 9
    min_inside: float = 0.5

    def __post_init__(self) -> None:
        width = tuple(float(w) for w in self.half_width_um)
        object.__setattr__(self, "half_width_um", width)
        if len(width) not in (2, 3) or not np.isfinite(width).all() or min(width) <= 0:
            raise InputError(f"half_width_um needs 2 or 3 positive lengths; got {width}")
        if self.samples < 3 or self.samples % 2 == 0:
            raise InputError(f"samples must be odd and at least 3; got {self.samples}")
        if not 0 < self.min_inside <= 1:
            raise InputError(f"min_inside must lie in (0, 1]; got {self.min_inside}")

    @classmethod
    def from_voxels(cls, cc_radius: int, spacing: Sequence[float]) -> ContextWindow:
        """A window of ``2 * cc_radius + 1`` voxels of the fixed image.

        Parameters
        ----------
        cc_radius : int
            Voxels from the centre to each side, at least 1. From 6 on, not every voxel is sampled.
        spacing : sequence of float
            Spacing of the fixed image in µm.

        Returns
        -------
        ContextWindow
            With about 9 samples per axis.
        """
        if cc_radius < 1:
            raise InputError(f"cc_radius must be at least 1 voxel; got {cc_radius}")
        stride = max(1, round(cc_radius / _SAMPLES_PER_SIDE))
        half_width = tuple(cc_radius * float(h) for h in spacing)
        return cls(half_width, 2 * max(1, cc_radius // stride) + 1)

    @property
    def step_um(self) -> Floats:
        """Distance of neighbouring samples per axis."""
        return np.asarray(self.half_width_um) / (self.samples // 2)

    def within(self, *grids: Grid) -> ContextWindow:
        """The window for images that may be thinner than it is.

        Parameters
        ----------
        *grids : Grid
            Of the images.

        Returns
        -------
        ContextWindow
            No wider along any axis than the thinnest of the images, so that a point on a face of a
            few planes has half of it, as on a face of any image; the same one where all are
            thicker.
        """
        width = np.asarray(self.half_width_um)
        for grid in grids:
            room = np.abs(grid.direction) @ (np.asarray(grid.spacing) * np.asarray(grid.shape))
            # Of a single plane, its own thickness.
            least = np.abs(grid.direction) @ np.asarray(grid.spacing) / 2
            thin = room < 2 * np.asarray(self.half_width_um)
            width = np.where(thin, np.minimum(width, np.maximum(room / 2 - least, least)), width)
        if np.array_equal(width, self.half_width_um):
            return self
        return replace(self, half_width_um=tuple(width.tolist()))

    def offsets(self) -> Floats:
        """Positions of the samples relative to the centre.

        Returns
        -------
        ndarray, (samples ** n, n)
            In µm.
        """
        along = np.arange(self.samples) - self.samples // 2
        lattice = np.stack(np.meshgrid(*[along] * len(self.half_width_um), indexing="ij"), -1)
        return np.asarray(lattice.reshape(-1, len(self.half_width_um)) * self.step_um)


@dataclass(frozen=True, eq=False)
class Contexts:
    """Key points with their normalised neighbourhoods.

    Parameters
    ----------
    points : ndarray, (m, n)
        Positions in µm.
    samples : ndarray, (m, k), float32
        Neighbourhoods, a row each.
    index : ndarray, (m,)
        Which of the given points each one is; those too near the border are left out.
    """

    points: Floats
    samples: NDArray[np.float32]
    index: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class MatchSettings:
    """Parameters by which pairs of key points correspond.

    Parameters
    ----------
    threshold : float
        Least correlation of the neighbourhoods, between -1 and 1.
    max_distance_um : float, optional
        Greatest distance of the two positions, for images that are nearly aligned; default any.
    max_ambiguity : float, optional
        Greatest ratio of the second best correlation to the best, over moving points at least
        `distinct_um` from the best one; default any, since the mutual choice and the robust fit
        after it remove nearly all wrong matches.
    distinct_um : float
        See `max_ambiguity`.

    Raises
    ------
    InputError
        Where a value is out of range; the message names it.
    """

    threshold: float = 0.75
    max_distance_um: float | None = None
    max_ambiguity: float | None = None
    distinct_um: float = 0.0

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise InputError(f"threshold must lie between -1 and 1; got {self.threshold}")
        for name in ("max_distance_um", "max_ambiguity"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be positive, or None for no limit; got {value}")
        if not self.distinct_um >= 0:
            raise InputError(f"distinct_um must be at least 0; got {self.distinct_um}")


@dataclass(frozen=True, eq=False)
class Correspondences:
    """Matched points, in the order of the fixed points.

    Parameters
    ----------
    fixed_points, moving_points : ndarray, (m, n)
        Positions in µm.
    correlations : ndarray, (m,)
        Correlation of the neighbourhoods.
    fixed_index, moving_index : ndarray, (m,)
        Which key points they are.
    """

    fixed_points: Floats
    moving_points: Floats
    correlations: Floats
    fixed_index: NDArray[np.intp]
    moving_index: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.correlations)


def find_key_points(image: NDArray[Any], grid: Grid, settings: KeyPointSettings) -> KeyPoints:
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
    """
    voxels, allowed = _finite_voxels(image, grid)
    return _find_blobs(voxels, allowed, grid, settings)


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
        raise InputError(
            f"an image of {extent.round(1).tolist()} µm cannot show blobs of radius "
            f"{greatest.round(1).tolist()} µm; lower max_radius or use larger blocks"
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


def sample_contexts(
    image: NDArray[Any], grid: Grid, points: ArrayLike, window: ContextWindow
) -> Contexts:
    """Sample the neighbourhood of each point, on a lattice in physical units.

    The image is first blurred to the step of the lattice, so that images of other voxel sizes give
    the same samples.

    Parameters
    ----------
    image : ndarray
        2-D or 3-D.
    grid : Grid
        Where the voxels lie, in µm.
    points : array_like, (m, n)
        Positions in µm: `KeyPoints.positions`, or any others.
    window : ContextWindow
        Extent and samples.

    Returns
    -------
    Contexts
        Without the points whose window lies too far outside the image.

    Raises
    ------
    InputError
        Where shapes differ.
    RegistrationError
        Where the image is constant or has no finite voxel.
    """
    voxels, _ = _finite_voxels(image, grid)
    at = _points(points)
    if at.shape[1] != grid.ndim or len(window.half_width_um) != grid.ndim:
        raise InputError(
            f"points of {at.shape[1]} coordinates and a window of {len(window.half_width_um)} do "
            f"not fit an image of {grid.ndim} axes"
        )
    blurred = BlurredImage(voxels, grid)
    for axis, step in enumerate(window.step_um):
        while 2 * blurred.grid.spacing[axis] <= step * (1 + 1e-6) and blurred.grid.shape[axis] > 2:
            blurred = halve(blurred, axis)
    blurred = blur(blurred, _BLUR_PER_STEP * window.step_um)
    data = np.asarray(blurred.data, np.float32)
    to_index = blurred.grid.inverse_matrix[:-1, :-1]
    samples, inside = sample_around(data, blurred.grid.to_index(at), window.offsets() @ to_index.T)
    kept = np.flatnonzero((inside >= window.min_inside) & samples.any(axis=1))
    return Contexts(at[kept], samples[kept], kept)


def match(fixed: Contexts, moving: Contexts, settings: MatchSettings) -> Correspondences:
    """Pair the points whose neighbourhoods correlate best, each with the other.

    Parameters
    ----------
    fixed, moving : Contexts
        Sampled with the same window.
    settings : MatchSettings
        Threshold and limits.

    Returns
    -------
    Correspondences
        Every point at most once; none where nothing correlates well enough.

    Raises
    ------
    InputError
        Where the two were sampled with different windows.
    """
    if fixed.samples.shape[1] != moving.samples.shape[1]:
        raise InputError(
            f"contexts of {fixed.samples.shape[1]} and {moving.samples.shape[1]} samples cannot be "
            "compared; sample both with the same window"
        )
    if not len(fixed) or not len(moving):
        return _correspondences(fixed, moving, np.empty(0, np.intp), np.empty(0, np.intp))
    forth, back, accepted = _best_partners(fixed, moving, settings)
    mutual = np.flatnonzero(accepted & (back[forth] == np.arange(len(fixed))))
    logger.info("%d matches of %d and %d key points", len(mutual), len(fixed), len(moving))
    return _correspondences(fixed, moving, mutual, forth[mutual])


def _best_partners(
    fixed: Contexts, moving: Contexts, settings: MatchSettings
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Each fixed point's best moving one, the reverse, and which fixed points have a good one."""
    forth = np.empty(len(fixed), np.intp)
    accepted = np.empty(len(fixed), bool)
    back = np.zeros(len(moving), np.intp)
    back_score = np.full(len(moving), -np.inf, np.float32)
    for start in range(0, len(fixed), _ROWS):
        rows = slice(start, start + _ROWS)
        scores = correlate(fixed.samples[rows], moving.samples)
        if settings.max_distance_um is not None:
            apart = cdist(fixed.points[rows], moving.points) > settings.max_distance_um
            scores[apart] = -np.inf
        forth[rows] = scores.argmax(axis=1)
        accepted[rows] = _accepted(scores, forth[rows], moving.points, settings)
        best = scores.argmax(axis=0)
        top = scores[best, np.arange(len(moving))]
        better = top > back_score
        back[better], back_score[better] = best[better] + start, top[better]
    return forth, back, accepted


def _accepted(
    scores: NDArray[np.float32],
    best: NDArray[np.intp],
    points: Floats,
    settings: MatchSettings,
) -> NDArray[np.bool_]:
    """Rows with a best score above the threshold and, if wanted, no rival elsewhere."""
    top = scores[np.arange(len(best)), best]
    accepted = top > settings.threshold
    if settings.max_ambiguity is None:
        return accepted
    elsewhere = cdist(points[best], points) > settings.distinct_um
    second = np.where(elsewhere, scores, np.float32(-np.inf)).max(axis=1)
    return np.asarray(accepted & (second <= settings.max_ambiguity * top))


def _correspondences(
    fixed: Contexts, moving: Contexts, i: NDArray[np.intp], j: NDArray[np.intp]
) -> Correspondences:
    products = np.einsum("ij,ij->i", fixed.samples[i], moving.samples[j], dtype=np.float64)
    norms = np.ones(len(i))
    for part in (fixed.samples[i], moving.samples[j]):
        norms *= np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
    return Correspondences(
        fixed.points[i], moving.points[j], products / norms, fixed.index[i], moving.index[j]
    )


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


def _finite_voxels(
    image: NDArray[Any], grid: Grid
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
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


def _points(positions: ArrayLike) -> Floats:
    points = np.asarray(positions, np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
        raise InputError(
            f"points must be finite numbers of shape (m, 2) or (m, 3), in µm; got {points.shape}"
        )
    return points
