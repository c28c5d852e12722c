"""Splines as ITK has them: B-splines on a lattice, and one that carries landmarks to landmarks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve
from scipy.ndimage import map_coordinates
from scipy.spatial.distance import cdist

from itkstream.errors import InputError, unknown_name
from itkstream.geometry.grid import Grid
from itkstream.geometry.transforms import GridTransform, Transform, checked_axes

__all__ = ["BSplineTransform", "LandmarkSpline"]

_KERNELS = ("r", "r2logr", "r3")
# Points times landmarks in memory at a time: some 50 MB.
_PAIRS = 2**20
_MAX_ITERATIONS = 50
_MAX_HALVINGS = 12
# Shares of the extent of the landmarks: thickness below which they lie in one plane,
_FLAT = 1e-9
# distance from its place at which an image is there, and beyond which it counts as missed.
_TOLERANCE = 1e-12
_UNSOLVED = 1e-6

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class BSplineTransform(GridTransform):
    """``p -> p + sum_k B(i(p) - k) c_k``, as ITK and elastix have it; p itself beyond the lattice.

    Parameters
    ----------
    coefficients : array_like, grid.shape + (n,)
        Of the control points, in the unit of the grid.
    grid : Grid
        The lattice of control points.
    order : {3, 2, 1}
        Of the B-splines.

    Raises
    ------
    InputError
        Where shapes or order do not fit, or a coefficient is not finite.

    References
    ----------
    D. Rueckert et al., "Nonrigid registration using free-form deformations: application to breast
    MR images", IEEE Transactions on Medical Imaging 18 (1999) 712-721, doi:10.1109/42.796284.

    Examples
    --------
    >>> grid = itkstream.Grid((7, 7), (10, 10), (-20, -20), axes=("y", "x"))
    >>> spline = itkstream.BSplineTransform(np.full((7, 7, 2), 0.5), grid)
    >>> spline.apply([10, 10])
    array([10.5, 10.5])
    """

    coefficients: NDArray[np.float64]
    grid: Grid
    order: int = 3

    def __post_init__(self) -> None:
        coefficients = np.array(self.coefficients, np.float64)
        wanted = (*self.grid.shape, self.grid.ndim)
        if coefficients.shape != wanted:
            raise InputError(
                f"B-splines on control points of shape {self.grid.shape} have coefficients of "
                f"shape {wanted}; got {coefficients.shape}"
            )
        if not np.isfinite(coefficients).all():
            raise InputError("B-spline coefficients must be finite; got NaN or infinity")
        if self.order not in (1, 2, 3) or min(self.grid.shape) <= self.order:
            raise InputError(
                f"B-splines are of order 1, 2 or 3 with more control points per axis; got order "
                f"{self.order} and {self.grid.shape} control points"
            )
        coefficients.flags.writeable = False
        object.__setattr__(self, "coefficients", coefficients)

    def reaches(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Mark the points (..., n) that all B-splines around them reach: those `apply` moves."""
        index = self.grid.to_index(points)
        edge = 0.5 * (self.order - 1)
        last = np.asarray(self.grid.shape) - 1 - edge
        return np.asarray(((index >= edge) & (index < last)).all(axis=-1))

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points; those that not all B-splines reach stay where they are, as in ITK."""
        p = np.asarray(points, float)
        reached = self.reaches(p)
        where = self.grid.to_index(p[reached]).T
        out = p.copy()
        for c in range(self.ndim):
            out[reached, c] += map_coordinates(
                self.coefficients[..., c],
                where,
                output=np.float64,
                order=self.order,
                mode="nearest",
                prefilter=False,
            )
        return out


@dataclass(frozen=True, eq=False)
class LandmarkSpline(Transform):
    """``p -> p + A p + b + sum_k U(|p - l_k|) w_k``, which carries landmarks to landmarks.

    Parameters
    ----------
    fixed_landmarks, moving_landmarks : array_like, (m, n)
        Where each landmark is in the fixed and in the moving image, in one physical unit and in
        array-axis order; at least n + 1, not all in one plane.
    kernel : {'r', 'r2logr', 'r3'}
        U: ITK's ThinPlateSplineKernelTransform, ThinPlateR2LogRSplineKernelTransform, or
        VolumeSplineKernelTransform.
    inverse : bool
        The inverse of the spline from moving to fixed landmarks, found point by point, in place of
        the spline from fixed to moving ones: Slicer stores landmark registrations so.
    axes : sequence of str, optional
        Names of the coordinates of its points, first to last; None where nothing says them.

    Raises
    ------
    InputError
        Where shapes do not fit, landmarks are not finite, coincide or lie in one plane, or the
        kernel is unknown.

    References
    ----------
    M. H. Davis et al., "A physics-based coordinate transformation for 3-D image matching", IEEE
    Transactions on Medical Imaging 16 (1997) 317-328, doi:10.1109/42.585766.

    Examples
    --------
    >>> fixed_points = np.array([[0, 0], [0, 10], [10, 0], [10, 10.0]])
    >>> spline = itkstream.LandmarkSpline(fixed_points, fixed_points + 1)
    >>> spline.apply([5, 5]).round(6)
    array([6., 6.])
    """

    fixed_landmarks: NDArray[np.float64]
    moving_landmarks: NDArray[np.float64]
    kernel: str = "r"
    inverse: bool = False
    axes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("fixed_landmarks", "moving_landmarks"):
            points = np.array(getattr(self, name), np.float64)
            points.flags.writeable = False
            object.__setattr__(self, name, points)
        fixed, moving = self.fixed_landmarks, self.moving_landmarks
        if fixed.ndim != 2 or fixed.shape[1] not in (2, 3) or fixed.shape != moving.shape:
            raise InputError(
                "landmarks are two lists of as many 2-D or 3-D points; got shapes "
                f"{fixed.shape} and {moving.shape}"
            )
        if not (np.isfinite(fixed).all() and np.isfinite(moving).all()):
            raise InputError("landmarks must be finite; got NaN or infinity")
        if self.kernel not in _KERNELS:
            raise unknown_name("kernel", self.kernel, _KERNELS)
        object.__setattr__(self, "axes", checked_axes(self.axes, self.ndim))
        start = moving if self.inverse else fixed
        if len(start) <= self.ndim or not _are_apart(start):
            raise InputError(
                f"a spline needs {self.ndim + 1} landmarks or more, no two in one place and not "
                f"all in one plane; got {len(start)}"
            )

    @property
    def ndim(self) -> int:
        """Dimensions of the space."""
        return self.fixed_landmarks.shape[1]

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points."""
        p = np.asarray(points, float)
        flat = p.reshape(-1, self.ndim)
        step = max(1, _PAIRS // len(self.fixed_landmarks))
        map_some = self._spline.backward if self.inverse else self._spline.forward
        parts = [map_some(flat[k : k + step]) for k in range(0, len(flat), step)]
        return np.concatenate(parts).reshape(p.shape) if parts else p.copy()

    @cached_property
    def _spline(self) -> _Spline:
        fixed, moving = self.fixed_landmarks, self.moving_landmarks
        start, end = (moving, fixed) if self.inverse else (fixed, moving)
        return _Spline.between(start, end, self.kernel)


@dataclass(frozen=True, eq=False)
class _Spline:
    """A spline in coordinates whose origin and unit are the landmarks' centre and extent.

    The extent changes r2logr by a multiple of r², which the weights, orthogonal to all affines,
    turn into an affine: the spline stays the same.
    """

    kernel: str
    centre: NDArray[np.float64]
    extent: float
    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    linear: NDArray[np.float64]
    shift: NDArray[np.float64]

    @classmethod
    def between(cls, start: NDArray[np.float64], end: NDArray[np.float64], kernel: str) -> _Spline:
        m, n = start.shape
        centre, extent = start.mean(axis=0), float(np.ptp(start, axis=0).max())
        nodes = (start - centre) / extent
        system = np.zeros((m + n + 1, m + n + 1))
        system[:m, :m] = _radial(kernel, cdist(nodes, nodes))
        system[:m, m:] = np.column_stack([nodes, np.ones(m)])
        system[m:, :m] = system[:m, m:].T
        moves = np.zeros((m + n + 1, n))
        moves[:m] = (end - start) / extent
        found = solve(system, moves, assume_a="sym")
        return cls(kernel, centre, extent, nodes, found[:m], found[m:-1].T, found[-1])

    def forward(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._map((points - self.centre) / self.extent) * self.extent + self.centre

    def backward(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse, by Newton's iteration; a step that brings no image nearer is halved."""
        wanted = (points - self.centre) / self.extent
        affine = np.eye(len(self.shift)) + self.linear
        found: NDArray[np.float64] = (wanted - self.shift) @ np.linalg.pinv(affine).T
        miss = self._map(found) - wanted
        active = np.arange(len(points))
        for _ in range(_MAX_ITERATIONS):
            active = active[np.linalg.norm(miss[active], axis=1) > _TOLERANCE]
            if not active.size:
                break
            stuck = self._step(found, miss, wanted, active)
            active = np.setdiff1d(active, stuck, assume_unique=True)
        size = np.linalg.norm(miss, axis=1)
        if (size > _UNSOLVED).any():
            _log.warning(
                "the spline through the landmarks folds: no inverse was found for %d of %d points; "
                "each is given the best place found, whose image is at most %.3g away",
                int((size > _UNSOLVED).sum()),
                len(points),
                float(size.max()) * self.extent,
            )
        return found * self.extent + self.centre

    def _step(
        self,
        found: NDArray[np.float64],
        miss: NDArray[np.float64],
        wanted: NDArray[np.float64],
        active: NDArray[np.intp],
    ) -> NDArray[np.intp]:
        """Improve the active points of `found`, and their `miss`, in place; those not improved."""
        slope = self._jacobian(found[active])
        # Where it folds the slope has no inverse.
        move = (np.linalg.pinv(slope) @ miss[active][..., None])[..., 0]
        for _ in range(_MAX_HALVINGS):
            tried = found[active] - move
            error = self._map(tried) - wanted[active]
            better = np.linalg.norm(error, axis=1) < np.linalg.norm(miss[active], axis=1)
            found[active[better]], miss[active[better]] = tried[better], error[better]
            active, move = active[~better], move[~better] / 2
            if not active.size:
                break
        return active

    def _map(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        bent = _radial(self.kernel, cdist(p, self.nodes)) @ self.weights
        return np.asarray(p + p @ self.linear.T + self.shift + bent)

    def _jacobian(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """Derivative of each component along each axis, (m, n, n)."""
        n = p.shape[1]
        slope = _slope(self.kernel, cdist(p, self.nodes))
        moments = (self.weights[:, :, None] * self.nodes[:, None, :]).reshape(-1, n * n)
        bent = (slope @ self.weights)[:, :, None] * p[:, None, :]
        return np.asarray(np.eye(n) + self.linear + bent - (slope @ moments).reshape(-1, n, n))


def _are_apart(points: NDArray[np.float64]) -> bool:
    span = np.linalg.matrix_rank(points - points.mean(axis=0), rtol=_FLAT)
    return bool(span == points.shape[1] and len(np.unique(points, axis=0)) == len(points))


def _radial(kernel: str, r: NDArray[np.float64]) -> NDArray[np.float64]:
    if kernel == "r":
        return r
    if kernel == "r3":
        return r**3
    return r**2 * np.log(r, out=np.zeros_like(r), where=r > 0)


def _slope(kernel: str, r: NDArray[np.float64]) -> NDArray[np.float64]:
    """The derivative of the kernel, over r: times a vector from a node, its gradient."""
    if kernel == "r":
        return np.divide(1, r, out=np.zeros_like(r), where=r > 0)
    if kernel == "r3":
        return 3 * r
    return 2 * np.log(r, out=np.zeros_like(r), where=r > 0) + 1
