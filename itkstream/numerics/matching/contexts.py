"""Contexts of points: the image around each, sampled on one lattice in µm and normalised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.numerics.compiling import compiled, helper
from itkstream.numerics.lift import lift_matrix, lift_values, lift_vectors
from itkstream.numerics.matching.filters import Filters, with_filters
from itkstream.numerics.matching.keypoints import as_points, finite_voxels
from itkstream.numerics.matching.scale_space import BlurredImage, blur, halve
from itkstream.numerics.threads import over_slabs

__all__ = ["ContextSource", "ContextWindow", "Contexts", "sample_around", "sample_contexts"]

Floats = NDArray[np.float64]

# 9 samples per axis found as many right matches as 13 and 25, also in heavy noise, in a sixteenth
# of the time of 25.
_SAMPLES_PER_SIDE = 4
# Half-way between two lattice points a wave as short as the lattice can hold is halved by this.
_BLUR_PER_STEP = float(np.sqrt(3.0) / 4)
# Integers up to here, and sums of products of such up to its square, are exact in single precision.
_EXACT_NORM = 4096.0


@dataclass(frozen=True)
class ContextWindow:
    """Extent and samples of a context, by which key points are compared.

    Parameters
    ----------
    half_width_um : tuple of float
        From its centre to its outermost samples, per axis.
    samples : int
        Samples per axis, odd.
    min_inside : float
        Fraction of the samples that must lie inside the image, at most 1. A point on a face of
        the image has one half.
    ball : bool
        Leave out the samples in the corners, which a turned window does not share.

    Raises
    ------
    InputError
        Where a value is out of range; the message names it.

    Examples
    --------
    >>> itkstream.features.ContextWindow((8.0, 8.0, 8.0), samples=5).samples
    5
    """

    half_width_um: tuple[float, ...]
    samples: int = 9
    min_inside: float = 0.5
    ball: bool = False

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

        Examples
        --------
        >>> itkstream.features.ContextWindow.from_voxels(4, (2.0, 0.5, 0.5)).half_width_um
        (8.0, 2.0, 2.0)
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

        Examples
        --------
        >>> window = itkstream.features.ContextWindow((8.0, 8.0, 8.0))
        >>> len(window.within(fixed.grid, moving.grid).half_width_um)
        3
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
        ndarray, (samples ** n, n), or fewer in a ball
            In µm.

        Examples
        --------
        >>> itkstream.features.ContextWindow((8.0, 8.0, 8.0), samples=3).offsets().shape
        (27, 3)
        """
        along = np.arange(self.samples) - self.samples // 2
        lattice = np.stack(np.meshgrid(*[along] * len(self.half_width_um), indexing="ij"), -1)
        lattice = lattice.reshape(-1, len(self.half_width_um))
        if self.ball:
            lattice = lattice[np.square(lattice).sum(axis=1) <= (self.samples // 2) ** 2 + 1]
        return np.asarray(lattice * self.step_um)


@dataclass(frozen=True, eq=False)
class Contexts:
    """Key points with their contexts, normalised.

    Parameters
    ----------
    points : ndarray, (m, n)
        Positions in µm.
    samples : ndarray, (m, k), float32
        Contexts, a row each.
    index : ndarray, (m,)
        Which of the given points each one is; those too near the border are left out.

    Examples
    --------
    >>> window = itkstream.features.ContextWindow((8.0, 8.0, 8.0), samples=5)
    >>> middle = [np.divide(fixed.shape, 2) * fixed.spacing]
    >>> contexts = itkstream.features.sample_contexts(fixed.read(), fixed.grid, middle, window)
    >>> len(contexts.samples)
    1
    """

    points: Floats
    samples: NDArray[np.float32]
    index: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.points)


def sample_contexts(
    image: NDArray[Any], grid: Grid, points: ArrayLike, window: ContextWindow
) -> Contexts:
    """Sample the context of each point, on a lattice in physical units.

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

    Examples
    --------
    >>> window = itkstream.features.ContextWindow((8.0, 8.0, 8.0), samples=5)
    >>> middle = [np.divide(fixed.shape, 2) * fixed.spacing]
    >>> itkstream.features.sample_contexts(fixed.read(), fixed.grid, middle, window).points.shape
    (1, 3)
    """
    return ContextSource.of(image, grid, window).sample(points)


@dataclass(frozen=True, eq=False)
class ContextSource:
    """An image blurred for contexts of a window, so that many may be sampled.

    Parameters
    ----------
    data : ndarray, float32
        The blurred image.
    grid : Grid
        Where its voxels lie.
    window : ContextWindow
        Extent and samples.
    """

    data: NDArray[np.float32]
    grid: Grid
    window: ContextWindow

    @classmethod
    def of(cls, image: NDArray[Any], grid: Grid, window: ContextWindow) -> ContextSource:
        """Blur an image to the step of the window's lattice."""
        voxels, _ = finite_voxels(image, grid)
        if len(window.half_width_um) != grid.ndim:
            raise InputError(
                f"a window of {len(window.half_width_um)} axes does not fit an image of {grid.ndim}"
            )
        data, coarse = with_filters(voxels, lambda filters: _blurred(voxels, grid, window, filters))
        return cls(np.asarray(data, np.float32), coarse, window)

    def sample(self, points: ArrayLike, turns: Floats | None = None) -> Contexts:
        """Sample the contexts of points, with lattices turned by matrices, one or one per point.

        Shapes: `points` (m, n); `turns` (n, n) or (m, n, n).
        """
        at, n = as_points(points), self.grid.ndim
        if at.shape[1] != n:
            raise InputError(f"points of {at.shape[1]} coordinates do not fit an image of {n} axes")
        to_index = self.grid.inverse_matrix[:-1, :-1]
        offsets = self.window.offsets()
        if turns is None or turns.ndim == 2:
            turned = offsets if turns is None else offsets @ turns.T
            offsets, each = turned @ to_index.T, None
        else:
            each = to_index @ turns
        samples, inside = sample_around(self.data, self.grid.to_index(at), offsets, each)
        kept = np.flatnonzero((inside >= self.window.min_inside) & samples.any(axis=1))
        return Contexts(at[kept], samples[kept], kept)


def _blurred(
    voxels: NDArray[Any], grid: Grid, window: ContextWindow, filters: Filters
) -> tuple[NDArray[Any], Grid]:
    """An image blurred to the step of a window's lattice, on a grid that is about as coarse."""
    image = BlurredImage(filters.load(voxels), grid, filters=filters)
    for axis, step in enumerate(window.step_um):
        while 2 * image.grid.spacing[axis] <= step * (1 + 1e-6) and image.grid.shape[axis] > 2:
            image = halve(image, axis)
    image = blur(image, _BLUR_PER_STEP * window.step_um)
    return filters.get(image.data), image.grid


def sample_around(
    data: NDArray[np.float32],
    centres: NDArray[np.float64],
    offsets: NDArray[np.float64],
    turns: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Sample an image linearly around each of many centres, and normalise each set of samples.

    Samples outside the image take no part: the mean and the norm are those of the samples inside,
    and the others become 0.

    The normalised samples are rounded to integers, of norm just below 4096. Every product and
    every partial sum in the scalar product of two such vectors is then a whole number that single
    precision holds exactly: a matrix library gives the same bits in whatever order and with
    however many threads it adds. What rounding costs a correlation is below 0.001.

    Shapes: `centres` (m, n); `offsets` (k, n), before each centre's own of the `turns` (m, n, n);
    returns `samples` (m, k), `inside` (m,).
    """
    volume = np.ascontiguousarray(data, np.float32).reshape(lift_values(data.shape, 1))
    at, steps = lift_vectors(centres), lift_vectors(offsets)
    samples = np.empty((len(at), len(steps)), np.float32)
    inside = np.empty(len(at), np.float64)
    # Rounding adds at most half a unit per sample to the norm.
    norm = _EXACT_NORM - 0.5 * math.sqrt(len(steps))
    outputs = (samples, inside)
    if turns is None:
        over_slabs(lambda a, b: _sample_slab(volume, at, steps, norm, outputs, a, b), len(at))
        return samples, inside
    both = steps, lift_matrix(turns)
    over_slabs(lambda a, b: _sample_turned(volume, at, both, norm, outputs, a, b), len(at))
    return samples, inside


@compiled
def _sample_slab(data, centres, steps, norm, outputs, start, stop):  # type: ignore[no-untyped-def]
    samples, inside = outputs
    for row in range(start, stop):
        inside[row] = _sample_around(data, centres[row], steps, norm, samples[row])


@compiled
def _sample_turned(data, centres, lattices, norm, outputs, start, stop):  # type: ignore[no-untyped-def]
    """Apart, since most runs turn nothing, and products of matrices take long to compile."""
    offsets, turns = lattices
    samples, inside = outputs
    for row in range(start, stop):
        steps = offsets @ turns[row].T
        inside[row] = _sample_around(data, centres[row], steps, norm, samples[row])


@helper
def _sample_around(data, centre, steps, norm, values):  # type: ignore[no-untyped-def]
    """Normalised values around a place; returns the share of them within the image."""
    x, y, z = centre[0], centre[1], centre[2]
    count, total = 0, 0.0
    for k in range(steps.shape[0]):
        value = _linear(data, x + steps[k, 0], y + steps[k, 1], z + steps[k, 2])
        values[k] = value
        if not math.isnan(value):
            count += 1
            total += values[k]
    _normalise(values, total / max(count, 1), norm)
    return count / steps.shape[0]


@helper
def _normalise(values, mean, norm):  # type: ignore[no-untyped-def]
    squares = 0.0
    for k in range(values.size):
        if not math.isnan(values[k]):
            squares += (values[k] - mean) ** 2
    # Below this, what varies is the rounding of single precision.
    varies = squares > values.size * (1e-6 * mean) ** 2
    scale = norm / math.sqrt(squares) if varies else 0.0
    for k in range(values.size):
        values[k] = 0.0 if math.isnan(values[k]) else np.rint((values[k] - mean) * scale)


@helper
def _linear(data, x, y, z):  # type: ignore[no-untyped-def]
    """Linear interpolation; NaN outside the voxels of the image."""
    nx, ny, nz = data.shape
    if not (-0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5 and -0.5 <= z < nz - 0.5):
        return math.nan
    x, y, z = min(max(x, 0.0), nx - 1.0), min(max(y, 0.0), ny - 1.0), min(max(z, 0.0), nz - 1.0)
    i, j, k = min(int(x), max(nx - 2, 0)), min(int(y), max(ny - 2, 0)), min(int(z), max(nz - 2, 0))
    u, v, w = np.float32(x - i), np.float32(y - j), np.float32(z - k)
    one = np.float32(1)
    i1, j1, k1 = min(i + 1, nx - 1), min(j + 1, ny - 1), min(k + 1, nz - 1)
    low = (one - v) * ((one - w) * data[i, j, k] + w * data[i, j, k1])
    low += v * ((one - w) * data[i, j1, k] + w * data[i, j1, k1])
    high = (one - v) * ((one - w) * data[i1, j, k] + w * data[i1, j, k1])
    high += v * ((one - w) * data[i1, j1, k] + w * data[i1, j1, k1])
    return (one - u) * low + u * high
