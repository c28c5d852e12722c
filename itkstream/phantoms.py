"""Synthetic two-round images of nuclei whose true transform is known in closed form.

A tissue of textured ellipsoids is a continuous function of position in fixed space. The fixed
image samples that function at its voxel centres; the moving image samples the same function at
the exact inverse of the true map, so neither is an interpolation of the other. Both then pass
through a microscope of their own: blur, uneven light, background and noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError
from itkstream.geometry.grid import Grid
from itkstream.geometry.image import Image
from itkstream.numerics.threads import over_slabs

__all__ = [
    "Motion",
    "PhantomPair",
    "PhantomSettings",
    "SyntheticTransform",
    "TargetError",
    "make_pair",
    "target_registration_error",
    "tutorial_settings",
]

PointMap = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_FORMAT = "itkstream synthetic transform 1"
_LEAST_JACOBIAN = 0.5
_BUMPS = 14
_SPOTS = 6
_SPOT_WIDTH = 0.17  # of a nucleus' radius
_CELL_UM = 4.0
_MIN_EXTENT_RADII = 2.0


@dataclass(frozen=True)
class SyntheticTransform:
    """A smooth invertible map of points, known exactly everywhere.

    A point moves by a sum of Gaussian bumps and then by an affine map: with
    ``d(p) = sum_k vectors[k] * exp(-|p - centres[k]|**2 / (2 * widths[k]**2))``, the point `p`
    goes to ``matrix @ (p + d(p), 1)``.

    Parameters
    ----------
    matrix : sequence, (n + 1, n + 1)
        Homogeneous affine matrix, lengths in µm; n is 2 or 3.
    centres : sequence, (k, n)
        Where the bumps stand, in µm.
    vectors : sequence, (k, n)
        What each bump adds at its centre, in µm.
    widths : sequence, (k,)
        Standard deviation of each bump, in µm.

    Raises
    ------
    InputError
        Where the shapes do not fit together.
    """

    matrix: tuple[tuple[float, ...], ...]
    centres: tuple[tuple[float, ...], ...] = ()
    vectors: tuple[tuple[float, ...], ...] = ()
    widths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, float)
        if matrix.shape not in ((3, 3), (4, 4)):
            raise InputError(f"matrix must be (3, 3) or (4, 4); got shape {matrix.shape}")
        n, k = len(matrix) - 1, len(self.widths)
        for name in ("centres", "vectors"):
            rows = np.asarray(getattr(self, name), float)
            if rows.size != k * n or len(rows) != k:
                raise InputError(
                    f"{name} must be ({k}, {n}), a row per bump; got shape {rows.shape}"
                )
            object.__setattr__(self, name, _tuples(rows.reshape(k, n)))
        object.__setattr__(self, "matrix", _tuples(matrix))
        object.__setattr__(self, "widths", tuple(float(w) for w in self.widths))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.matrix) - 1

    @cached_property
    def _arrays(self) -> _Map:
        # Kernels know three axes only; in two, the third is carried along and never moves.
        n = self.ndim
        linear, offset = np.eye(3), np.zeros(3)
        linear[:n, :n] = np.asarray(self.matrix)[:n, :n]
        offset[:n] = np.asarray(self.matrix)[:n, n]
        centres = _pad(np.asarray(self.centres, float).reshape(-1, n))
        vectors = _pad(np.asarray(self.vectors, float).reshape(-1, n))
        widths = np.asarray(self.widths, float)
        return _Map(
            linear, np.asarray(np.linalg.inv(linear), np.float64), offset, centres, vectors, widths
        )

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points.

        Parameters
        ----------
        points : array_like, (..., n)
            Fixed points, in µm.

        Returns
        -------
        ndarray, (..., n)
            Moving points, in µm.
        """
        return self._run(_forward, points)

    def inverse(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points back, by Newton's method to 1e-9 µm.

        Parameters
        ----------
        points : array_like, (..., n)
            Moving points, in µm.

        Returns
        -------
        ndarray, (..., n)
            Fixed points, in µm.
        """
        return self._run(_backward, points)

    def jacobian_determinant(self, points: ArrayLike) -> NDArray[np.float64]:
        """Local change of volume.

        Parameters
        ----------
        points : array_like, (..., n)
            Fixed points, in µm.

        Returns
        -------
        ndarray, (...)
            Determinant of the map's derivative.
        """
        return self._run(_determinant, points)[..., 0]

    def to_json(self) -> str:
        """Write the map as text.

        Returns
        -------
        str
            JSON; `from_json` gives back an equal transform.
        """
        return json.dumps(
            {
                "format": _FORMAT,
                "map": "moving = matrix @ (p + sum_k vectors[k] * "
                "exp(-|p - centres[k]|^2 / (2 widths[k]^2)), 1)",
                "unit": "micrometer",
                "matrix": self.matrix,
                "centres": self.centres,
                "vectors": self.vectors,
                "widths": self.widths,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> SyntheticTransform:
        """Read what `to_json` wrote.

        Parameters
        ----------
        text : str
            JSON.

        Returns
        -------
        SyntheticTransform
            Equal, to the last bit, to the one written.

        Raises
        ------
        InputError
            Where the text is something else.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"a synthetic transform is JSON text; {error}") from error
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise InputError(f'expected JSON with "format": "{_FORMAT}", as to_json writes it')
        try:
            parts = [values[name] for name in ("matrix", "centres", "vectors", "widths")]
        except KeyError as error:
            raise InputError(f"the synthetic transform lacks the entry {error}") from error
        return cls(*parts)

    def _run(self, kernel: Any, points: ArrayLike) -> NDArray[np.float64]:
        given = np.asarray(points, float)
        if given.ndim == 0 or given.shape[-1] != self.ndim:
            raise InputError(
                f"points must have {self.ndim} coordinates on the last axis; got shape "
                f"{given.shape}"
            )
        flat = _pad(given.reshape(-1, self.ndim))
        out = np.empty_like(flat)
        kernel(flat, self._arrays, out)
        return np.ascontiguousarray(out[:, : self.ndim]).reshape(given.shape)


@dataclass(frozen=True)
class Motion:
    """How far the moving image lies from the fixed one; zeros leave them aligned.

    The numbers are upper ends: each axis draws between half of the number and all of it, with
    either sign.

    Parameters
    ----------
    rotation_deg : float
        Rotation about every axis, in degrees.
    stretch : float
        Relative change of scale per axis.
    shear : float
        Entries of the shear matrix.
    shift : float
        Translation of the centre, as a fraction of the image's extent per axis.
    warp_um : float
        Greatest length of the smooth deformation, in µm.

    Raises
    ------
    InputError
        Where a number is negative or not finite, or the stretch would flatten the image.
    """

    rotation_deg: float = 4.0
    stretch: float = 0.03
    shear: float = 0.02
    shift: float = 0.06
    warp_um: float = 4.0

    def __post_init__(self) -> None:
        _check_not_negative(self, ("rotation_deg", "stretch", "shear", "shift", "warp_um"))
        if self.stretch >= 1:
            raise InputError(f"stretch must be below 1; got {self.stretch}. Try 0.03")


@dataclass(frozen=True)
class PhantomSettings:
    """What a phantom pair is made from.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the fixed image, two or three axes; the last of three is the optical axis.
    spacing : sequence of float
        Voxel spacing of the fixed image, in µm.
    seed : int
        Same settings, same seed: same bits.
    moving_shape : sequence of int, optional
        Voxels of the moving image; default `shape`.
    moving_spacing : sequence of float, optional
        Voxel spacing of the moving image, in µm; default `spacing`.
    radii_um : (float, float)
        Smallest and largest mean radius of the nuclei, in µm.
    density : float
        Nuclei tried per 1000 µm³ of tissue (1000 µm² in two axes: scaled to fill alike);
        crowding drops some.
    missing : float
        Fraction of nuclei that the second round does not show.
    restaining : float
        How much the second round's brightness, response and light differ, 0 (not at all) to 1.
    noise : float
        Multiplies shot and read noise; 0 is none.
    motion : Motion
        How the moving image lies.

    Raises
    ------
    InputError
        Where a value does not fit.
    """

    shape: tuple[int, ...] = (96, 80, 64)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.5)
    seed: int = 0
    moving_shape: tuple[int, ...] = ()
    moving_spacing: tuple[float, ...] = ()
    radii_um: tuple[float, float] = (3.0, 8.0)
    density: float = 1.6
    missing: float = 0.04
    restaining: float = 1.0
    noise: float = 1.0
    motion: Motion = field(default_factory=Motion)

    def __post_init__(self) -> None:
        _check_not_negative(self, ("density", "missing", "restaining", "noise", "seed"))
        low, high = self.radii_um
        if not 0 < low <= high:
            raise InputError(f"radii_um must be 0 < smallest <= largest; got {self.radii_um}")
        for name in ("missing", "restaining"):
            if getattr(self, name) > 1:
                raise InputError(f"{name} is a fraction, 0 to 1; got {getattr(self, name)}")
        if self.fixed_grid.ndim != self.moving_grid.ndim:
            raise InputError(
                f"fixed and moving need the same number of axes; got {self.fixed_grid.shape} and "
                f"{self.moving_grid.shape}"
            )
        if min(_extent(self.fixed_grid)) < _MIN_EXTENT_RADII * high:
            raise InputError(
                f"an image of {_extent(self.fixed_grid)} µm cannot hold nuclei of {high} µm "
                f"radius: give at least {_MIN_EXTENT_RADII * high} µm per axis, or smaller radii_um"
            )

    @property
    def fixed_grid(self) -> Grid:
        """Grid of the fixed image."""
        return Grid(self.shape, self.spacing)

    @property
    def moving_grid(self) -> Grid:
        """Grid of the moving image."""
        return Grid(self.moving_shape or self.shape, self.moving_spacing or self.spacing)


class TargetError(NamedTuple):
    """Distances between where a transform puts points and where they truly lie.

    Parameters
    ----------
    um : ndarray, (k,)
        Distances in µm.
    vox : ndarray, (k,)
        Distances in voxels of the moving image.
    """

    um: NDArray[np.float64]
    vox: NDArray[np.float64]

    def summary(self) -> dict[str, float]:
        """Median, 95th percentile and maximum.

        Returns
        -------
        dict of str to float
            Keys ``median_um, p95_um, max_um, median_vox, p95_vox, max_vox``.
        """
        return {
            f"{name}_{unit}": float(np.percentile(values, q))
            for unit, values in (("um", self.um), ("vox", self.vox))
            for name, q in (("median", 50), ("p95", 95), ("max", 100))
        }


@dataclass(frozen=True)
class PhantomPair:
    """Two images of one tissue and the true map between them.

    Parameters
    ----------
    fixed, moving : Image
        uint16 images in memory.
    truth : SyntheticTransform
        Fixed points to moving points, in µm.
    tissue : ndarray of bool
        Where the tissue is, on the grid of `fixed`.
    nuclei : ndarray, (k, n)
        Centres of the nuclei in fixed space, in µm.
    radii : ndarray, (k,)
        Their mean radii, in µm.
    """

    fixed: Image
    moving: Image
    truth: SyntheticTransform
    tissue: NDArray[np.bool_]
    nuclei: NDArray[np.float64]
    radii: NDArray[np.float64]

    def error(self, mapping: PointMap, stride: int = 4) -> TargetError:
        """Target registration error of a transform over the tissue.

        Parameters
        ----------
        mapping : callable
            Takes fixed points (k, n) in µm, returns moving points (k, n) in µm.
        stride : int
            Every how many voxels a point is taken, per axis.

        Returns
        -------
        TargetError
            See `target_registration_error`.
        """
        tissue = Image(self.tissue, self.fixed.grid)
        return target_registration_error(mapping, self.truth, tissue, self.moving.grid, stride)


def target_registration_error(
    mapping: PointMap,
    truth: PointMap,
    tissue: Image,
    moving_grid: Grid,
    stride: int = 1,
) -> TargetError:
    """Compare a transform with the true one, at tissue points seen in both images.

    Parameters
    ----------
    mapping : callable
        The transform to judge: fixed points (k, n) in µm to moving points (k, n) in µm.
    truth : callable
        The true map, of the same kind.
    tissue : Image
        Nonzero where the points are taken, in fixed space.
    moving_grid : Grid
        Points whose true match lies outside it are left out.
    stride : int
        Every how many voxels of `tissue` a point is taken, per axis.

    Returns
    -------
    TargetError
        One distance per point.

    Raises
    ------
    InputError
        Where no point is left, or `mapping` does not return one point per point.
    """
    kept = np.argwhere(np.asarray(tissue.read())[(slice(None, None, stride),) * tissue.ndim])
    points = tissue.grid.to_physical(kept * stride)
    true = truth(points)
    index = moving_grid.to_index(true)
    inside = ((index >= 0) & (index <= np.subtract(moving_grid.shape, 1))).all(axis=-1)
    if not inside.any():
        raise InputError(
            f"no tissue point, taken every {stride} voxels, has its true match inside the moving "
            "image; check the tissue mask and the grids, or take a smaller stride"
        )
    found = np.asarray(mapping(points[inside]), float)
    if found.shape != true[inside].shape:
        raise InputError(
            f"the transform must return points of shape {true[inside].shape}, one for each given; "
            f"got {found.shape}"
        )
    apart = moving_grid.to_index(found) - index[inside]
    return TargetError(
        np.linalg.norm(found - true[inside], axis=-1), np.linalg.norm(apart, axis=-1)
    )


def make_pair(settings: PhantomSettings | None = None) -> PhantomPair:
    """Make two images of one synthetic tissue, related by a known transform.

    Parameters
    ----------
    settings : PhantomSettings, optional
        Sizes, seed and motion; default ``PhantomSettings()``.

    Returns
    -------
    PhantomPair
        Images, true map and tissue mask.

    Raises
    ------
    InputError
        Where the deformation asked for is too strong for the size of the image.
    """
    settings = settings or PhantomSettings()
    fixed_grid, moving_grid = settings.fixed_grid, settings.moving_grid
    truth = _draw_truth(settings)
    tissue = _draw_tissue(fixed_grid, settings.seed)
    bodies, radii = _draw_bodies(settings, tissue)
    scene = _Scene(tissue, bodies, _sort_into_cells(bodies))
    second = scene._replace(bodies=_second_round(bodies, len(radii), settings))
    light = _render(scene, fixed_grid, _pad)
    light_again = _render(second, moving_grid, lambda p: _pad(truth.inverse(p)))
    fixed = _photograph(light, fixed_grid, settings, _camera(False, settings.restaining))
    moving = _photograph(light_again, moving_grid, settings, _camera(True, settings.restaining))
    return PhantomPair(
        Image(fixed, fixed_grid, "fixed"),
        Image(moving, moving_grid, "moving"),
        truth,
        _plane_by_plane(fixed_grid, np.bool_, lambda p: _depths(_pad(p), tissue) > 0),
        np.ascontiguousarray(bodies.centres[: len(radii), : fixed_grid.ndim]),
        radii,
    )


def tutorial_settings() -> PhantomSettings:
    """Describe the pair that the tutorial and the demo register.

    Returns
    -------
    PhantomSettings
        Two images of about 8 million voxels, 0.8 x 0.8 x 1.2 µm, of different shapes, some 25 µm
        apart.
    """
    return PhantomSettings(
        shape=(256, 224, 144),
        spacing=(0.8, 0.8, 1.2),
        seed=7,
        moving_shape=(240, 232, 152),
        motion=Motion(rotation_deg=5, stretch=0.035, shear=0.025, shift=0.1, warp_um=5),
    )


# --- the true map ---------------------------------------------------------------------------------


class _Map(NamedTuple):
    """A `SyntheticTransform` as the kernels take it: three axes, contiguous arrays."""

    linear: NDArray[np.float64]
    inverse: NDArray[np.float64]
    offset: NDArray[np.float64]
    centres: NDArray[np.float64]
    vectors: NDArray[np.float64]
    widths: NDArray[np.float64]


@njit(nogil=True, cache=True)
def _bend(p: Any, bumps: Any, moved: Any, slope: Any) -> None:
    """Write p + d(p) into `moved` and its derivative into `slope`."""
    for i in range(3):
        moved[i] = p[i]
        for j in range(3):
            slope[i, j] = 1.0 if i == j else 0.0
    for k in range(len(bumps.widths)):
        scale = 1.0 / (bumps.widths[k] * bumps.widths[k])
        x = p[0] - bumps.centres[k, 0]
        y = p[1] - bumps.centres[k, 1]
        z = p[2] - bumps.centres[k, 2]
        height = np.exp(-0.5 * scale * (x * x + y * y + z * z))
        for i in range(3):
            part = bumps.vectors[k, i] * height
            moved[i] += part
            part *= scale
            slope[i, 0] -= part * x
            slope[i, 1] -= part * y
            slope[i, 2] -= part * z


@njit(nogil=True, cache=True)
def _det(m: Any) -> float:
    return (
        m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
        - m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
        + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
    )


@njit(nogil=True, cache=True)
def _forward(points: Any, true: Any, out: Any) -> None:
    moved, slope = np.empty(3), np.empty((3, 3))
    for n in range(len(points)):
        _bend(points[n], true, moved, slope)
        for i in range(3):
            out[n, i] = true.offset[i]
            for j in range(3):
                out[n, i] += true.linear[i, j] * moved[j]


@njit(nogil=True, cache=True)
def _determinant(points: Any, true: Any, out: Any) -> None:
    moved, slope = np.empty(3), np.empty((3, 3))
    affine = _det(true.linear)
    for n in range(len(points)):
        _bend(points[n], true, moved, slope)
        out[n, :] = affine * _det(slope)


@njit(nogil=True, cache=True)
def _backward(points: Any, true: Any, out: Any) -> None:
    moved, slope, goal, miss = np.empty(3), np.empty((3, 3)), np.empty(3), np.empty(3)
    for n in range(len(points)):
        for i in range(3):
            goal[i] = 0.0
            for j in range(3):
                goal[i] += true.inverse[i, j] * (points[n, j] - true.offset[j])
            out[n, i] = goal[i]
        for _ in range(50):  # 3 or 4 steps do; the bound ends a loop on points that are not finite
            _bend(out[n], true, moved, slope)
            for i in range(3):
                miss[i] = goal[i] - moved[i]
            _solve_onto(slope, miss, out[n])
            if abs(miss[0]) + abs(miss[1]) + abs(miss[2]) < 1e-9:
                break


@njit(nogil=True, cache=True)
def _solve_onto(m: Any, b: Any, x: Any) -> None:
    """Add the solution of ``m y = b`` to `x`, by Cramer's rule."""
    scale = 1.0 / _det(m)
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        step = 0.0
        for r in range(3):
            s, t = (r + 1) % 3, (r + 2) % 3
            step += (m[s, j] * m[t, k] - m[s, k] * m[t, j]) * b[r]
        x[i] += step * scale


def _draw_truth(settings: PhantomSettings) -> SyntheticTransform:
    rng = np.random.default_rng([settings.seed, 1])
    grid, motion = settings.fixed_grid, settings.motion
    matrix = _draw_affine(settings, rng)
    extent = np.asarray(_extent(grid))
    centres = rng.uniform(0.1, 0.9, (_BUMPS, grid.ndim)) * extent
    vectors = rng.normal(size=(_BUMPS, grid.ndim))
    widths = rng.uniform(0.16, 0.28, _BUMPS) * np.prod(extent) ** (1 / grid.ndim)
    if motion.warp_um == 0:
        return SyntheticTransform(_tuples(matrix))
    steps = [np.arange(0, length, widths.min() / 3) for length in extent]
    lattice = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, grid.ndim)
    build = partial(
        SyntheticTransform, centres=_tuples(centres), widths=tuple(float(w) for w in widths)
    )
    unit = build(_tuples(np.eye(grid.ndim + 1)), vectors=_tuples(vectors))
    vectors *= motion.warp_um / np.linalg.norm(unit(lattice) - lattice, axis=-1).max()
    truth = build(_tuples(matrix), vectors=_tuples(vectors))
    least = truth.jacobian_determinant(lattice).min() / np.linalg.det(matrix)
    if least < _LEAST_JACOBIAN:
        raise InputError(
            f"a deformation of {motion.warp_um} µm over {_extent(grid)} µm has a Jacobian as low "
            f"as {least:.2f}, below {_LEAST_JACOBIAN}; take a smaller warp_um or a larger image"
        )
    return truth


def _draw_affine(settings: PhantomSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    fixed, moving, motion = settings.fixed_grid, settings.moving_grid, settings.motion
    n = fixed.ndim

    def draw(size: int) -> NDArray[np.float64]:
        return np.asarray(rng.uniform(0.5, 1, size) * rng.choice([-1.0, 1.0], size))

    angles = draw(3) * motion.rotation_deg
    turn = Rotation.from_euler("zyx", angles if n == 3 else [angles[0], 0, 0], degrees=True)
    stretch = np.diag(1 + draw(n) * motion.stretch)
    shear = np.eye(n) + np.triu(draw(n * n).reshape(n, n), 1) * motion.shear
    matrix = np.eye(n + 1)
    matrix[:n, :n] = turn.as_matrix()[:n, :n] @ stretch @ shear
    middles = [grid.to_physical(np.subtract(grid.shape, 1) / 2) for grid in (fixed, moving)]
    shift = draw(n) * motion.shift * _extent(fixed)
    matrix[:n, n] = middles[1] + shift - matrix[:n, :n] @ middles[0]
    return matrix


# --- the tissue -----------------------------------------------------------------------------------


class _Tissue(NamedTuple):
    """A rounded box with wavy walls: centre, half widths (µm), waves (1/µm) and their phases."""

    centre: NDArray[np.float64]
    half: NDArray[np.float64]
    wave: NDArray[np.float64]
    phase: NDArray[np.float64]


class _Bodies(NamedTuple):
    """Soft textured ellipsoids; `frames` take an offset in µm to the unit ball."""

    centres: NDArray[np.float64]
    frames: NDArray[np.float64]
    reach: NDArray[np.float64]
    softness: NDArray[np.float64]
    brightness: NDArray[np.float64]
    rim: NDArray[np.float64]
    spots: NDArray[np.float64]


class _Cells(NamedTuple):
    """Which bodies reach into each cell of a lattice, as one list cut at `starts`."""

    origin: NDArray[np.float64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    members: NDArray[np.int64]


class _Scene(NamedTuple):
    tissue: _Tissue
    bodies: _Bodies
    cells: _Cells


@njit(nogil=True, cache=True)
def _depth(p: Any, tissue: Any) -> float:
    """How deep a point lies in the tissue, in µm; negative outside."""
    total = 0.0
    for i in range(3):
        j = (i + 1) % 3
        swing = 0.06 * np.sin(tissue.wave[j] * p[j] + tissue.phase[i])
        u = (p[i] - tissue.centre[i]) / tissue.half[i]
        if tissue.wave[i] > 0:
            u += swing
        total += u**6
    return (1.0 - total ** (1.0 / 6.0)) * tissue.half.min()


@njit(nogil=True, cache=True)
def _depths(points: Any, tissue: Any) -> Any:
    out = np.empty(len(points))
    for n in range(len(points)):
        out[n] = _depth(points[n], tissue)
    return out


def _draw_tissue(grid: Grid, seed: int) -> _Tissue:
    rng = np.random.default_rng([seed, 2])
    n, extent = grid.ndim, np.asarray(_extent(grid))
    centre, half, wave = np.zeros(3), np.full(3, np.inf), np.zeros(3)
    centre[:n] = extent * rng.uniform(0.485, 0.515, n)
    half[:n] = extent * 0.46
    wave[:n] = 2 * np.pi * rng.uniform(1.0, 1.8, n) / extent
    return _Tissue(centre, half, wave, rng.uniform(0, 2 * np.pi, 3))


def _draw_bodies(settings: PhantomSettings, tissue: _Tissue) -> tuple[_Bodies, NDArray[np.float64]]:
    """Nuclei first, then the fibres and specks between them; and the nuclei's mean radii."""
    rng = np.random.default_rng([settings.seed, 3])
    centres, radii = _place_nuclei(settings, tissue, rng)
    count = len(radii)
    fibres = _draw_points(settings, tissue, 4 * count, rng)
    long = np.concatenate(
        [_ellipsoids(radii, rng), rng.uniform([0.7, 0.7, 1.2], [1.2, 1.5, 6.0], (len(fibres), 3))]
    )
    soft_um = 0.6 * max(1.0, float(np.mean(settings.spacing)))
    total = len(long)
    turns = Rotation.from_quat(rng.normal(size=(total, 4))).as_matrix()
    nucleus = np.arange(total) < count
    bright = rng.lognormal(-0.1, 0.4, total) * np.where(nucleus, 1.0, 0.12)
    softness = np.minimum(soft_um / long.min(axis=1), 0.5)
    bodies = _Bodies(
        np.concatenate([centres, fibres]),
        turns / long[:, :, None],
        long.max(axis=1) * (1 + softness),
        softness,
        bright,
        np.where(nucleus, rng.uniform(-0.1, 0.5, total), 0.0),
        _draw_spots(nucleus, rng),
    )
    return bodies, radii


def _draw_points(
    settings: PhantomSettings, tissue: _Tissue, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """At most `count` points (k, 3) of the tissue, crowded in layers and clusters."""
    grid = settings.fixed_grid
    extent = np.asarray(_extent(grid))
    points = _pad(rng.uniform(0, 1, (count, grid.ndim)) * extent)
    cycles = rng.uniform(-1, 1, (3, 3)) * 3
    cycles[0] = (0.3, 2.5, 0.2)  # layers across the second axis, a little tilted
    turns = points[:, : grid.ndim] / extent @ cycles[:, : grid.ndim].T + rng.uniform(0, 1, 3)
    crowd = 0.55 + np.cos(2 * np.pi * turns) @ (0.28, 0.18, 0.18)
    kept = (rng.uniform(0, 1, count) < crowd) & (_depths(points, tissue) > 0)
    return points[kept]


def _place_nuclei(
    settings: PhantomSettings, tissue: _Tissue, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (k, 3) and mean radii (k,), large nuclei first; neighbours touch, none merge."""
    low, high = settings.radii_um
    extent = _extent(settings.fixed_grid)
    # A sheet of nuclei stands for a slab about one typical nucleus thick.
    thickness = 1.0 if len(extent) == 3 else low + high
    tries = int(np.prod(extent) * thickness * settings.density / 1000 / 0.55)
    centres = _draw_points(settings, tissue, tries, rng)
    large = rng.uniform(0, 1, len(centres)) < 0.35
    typical = np.where(large, low + 0.55 * (high - low), low + 0.22 * (high - low))
    radii = np.clip(typical * rng.lognormal(0, 0.15, len(centres)), low, high)
    order = np.argsort(-radii, kind="stable")
    centres, radii = centres[order], radii[order]
    if not len(radii):
        raise InputError(f"no nucleus fits {extent} µm at density {settings.density}; raise it")
    pairs = cKDTree(centres).query_pairs(2 * high, output_type="ndarray")
    gaps = np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)
    pairs = pairs[gaps < 0.82 * radii[pairs].sum(axis=1)]
    kept = np.ones(len(radii), bool)
    # In order of the smaller nucleus: the fate of the larger is settled when it is asked for.
    for first, second in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]:
        if kept[first]:
            kept[second] = False
    return centres[kept], radii[kept]


def _ellipsoids(radii: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Half axes (k, 3) of the given geometric mean."""
    axes = rng.uniform(0.72, 1.35, (len(radii), 3))
    mean = np.prod(axes, axis=1) ** (1 / 3)
    return np.asarray(axes * (radii / mean)[:, None])


def _draw_spots(nucleus: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Position in the unit ball and height (k, spots, 4): chromocentres, one dark nucleolus."""
    total = len(nucleus)
    spots = np.zeros((total, _SPOTS, 4))
    towards = rng.normal(size=(total, _SPOTS, 3))
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    spots[..., :3] = towards * rng.uniform(0.2, 0.8, (total, _SPOTS, 1))
    heights = rng.uniform(0.4, 1.6, (total, _SPOTS))
    heights *= rng.uniform(0, 1, (total, _SPOTS)) < 0.7
    heights[:, 0] = -0.4
    spots[..., 3] = heights * nucleus[:, None]
    return spots


def _second_round(bodies: _Bodies, nuclei: int, settings: PhantomSettings) -> _Bodies:
    """The same bodies stained again: brightness varies, some nuclei are gone."""
    rng = np.random.default_rng([settings.seed, 4])
    factor = rng.lognormal(0, 0.25 * settings.restaining, len(bodies.brightness))
    factor[:nuclei] *= rng.uniform(0, 1, nuclei) >= settings.missing
    return bodies._replace(brightness=bodies.brightness * factor)


def _sort_into_cells(bodies: _Bodies) -> _Cells:
    lowest = (bodies.centres - bodies.reach[:, None]).min(axis=0)
    highest = (bodies.centres + bodies.reach[:, None]).max(axis=0)
    counts = np.floor((highest - lowest) / _CELL_UM).astype(np.int64) + 1
    first = ((bodies.centres - bodies.reach[:, None] - lowest) / _CELL_UM).astype(np.int64)
    last = ((bodies.centres + bodies.reach[:, None] - lowest) / _CELL_UM).astype(np.int64)
    sizes = np.zeros(int(np.prod(counts)) + 1, np.int64)
    nothing = np.empty(0, np.int64)
    _fill_cells(first, last, counts, sizes, nothing)
    starts = np.concatenate([[0], np.cumsum(sizes[:-1])])
    members = np.empty(int(starts[-1]), np.int64)
    _fill_cells(first, last, counts, starts.copy(), members)
    return _Cells(lowest, counts, starts, members)


@njit(nogil=True, cache=True)
def _fill_cells(first: Any, last: Any, counts: Any, cursor: Any, members: Any) -> None:
    """Advance the cursor of every cell a body reaches into, listing it there if there is room."""
    for b in range(len(first)):
        for i in range(first[b, 0], last[b, 0] + 1):
            for j in range(first[b, 1], last[b, 1] + 1):
                for k in range(first[b, 2], last[b, 2] + 1):
                    cell = (i * counts[1] + j) * counts[2] + k
                    if len(members) > 0:
                        members[cursor[cell]] = b
                    cursor[cell] += 1


# --- light and camera -----------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _ramp(t: float) -> float:
    """0 below 0, 1 above 1, smooth between."""
    t = min(1.0, max(0.0, t))
    return t * t * (3.0 - 2.0 * t)


@njit(nogil=True, cache=True)
def _body_light(p: Any, bodies: Any, b: int, u: Any) -> float:
    """Light of body `b` at `p`; `u` is scratch."""
    for i in range(3):
        u[i] = 0.0
        for j in range(3):
            u[i] += bodies.frames[b, i, j] * (p[j] - bodies.centres[b, j])
    radius = np.sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2])
    soft = bodies.softness[b]
    inside = _ramp((1.0 + soft - radius) / (2.0 * soft))
    if inside == 0.0:
        return 0.0
    value = 0.5 + bodies.rim[b] * (_ramp(radius / 0.9) - 0.5)
    for s in range(bodies.spots.shape[1]):
        height = bodies.spots[b, s, 3]
        if height != 0.0:
            x = u[0] - bodies.spots[b, s, 0]
            y = u[1] - bodies.spots[b, s, 1]
            z = u[2] - bodies.spots[b, s, 2]
            value += height * np.exp(-(x * x + y * y + z * z) / (2 * _SPOT_WIDTH * _SPOT_WIDTH))
    return inside * bodies.brightness[b] * max(value, 0.05)


@njit(nogil=True, cache=True)
def _light(points: Any, scene: Any, out: Any) -> None:
    """Light of the scene at points (k, 3): bodies and the glow of the tissue between them."""
    cells, counts, u = scene.cells, scene.cells.counts, np.empty(3)
    for n in range(len(points)):
        p = points[n]
        out[n] = 0.04 * _ramp(_depth(p, scene.tissue) / 8.0)
        i = int(np.floor((p[0] - cells.origin[0]) / _CELL_UM))
        j = int(np.floor((p[1] - cells.origin[1]) / _CELL_UM))
        k = int(np.floor((p[2] - cells.origin[2]) / _CELL_UM))
        if 0 <= i < counts[0] and 0 <= j < counts[1] and 0 <= k < counts[2]:
            cell = (i * counts[1] + j) * counts[2] + k
            for m in range(cells.starts[cell], cells.starts[cell + 1]):
                out[n] += _body_light(p, scene.bodies, cells.members[m], u)


def _render(
    scene: _Scene, grid: Grid, locate: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Light at every voxel; `locate` takes voxel positions (k, n) to tissue positions (k, 3)."""

    def plane(points: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(points))
        _light(locate(points), scene, out)
        return out

    return _plane_by_plane(grid, np.float32, plane)


def _plane_by_plane(
    grid: Grid, dtype: Any, evaluate: Callable[[NDArray[np.float64]], NDArray[Any]]
) -> NDArray[Any]:
    """Evaluate a function of position on a grid, holding the positions of few planes at once."""
    out = np.empty(grid.shape, dtype)

    def planes(start: int, stop: int) -> None:
        for k in range(start, stop):
            cut = (slice(k, k + 1), *(slice(0, n) for n in grid.shape[1:]))
            points = grid.crop(cut).positions().reshape(-1, grid.ndim)
            out[k] = evaluate(points).reshape(grid.shape[1:])

    over_slabs(planes, grid.shape[0])
    return out


@dataclass(frozen=True)
class _Camera:
    """What turns light into counts: blur (µm, across and along the optical axis) and response."""

    stream: int
    gain: float
    gamma: float
    offset: float
    unevenness: float
    blur_um: tuple[float, float] = (0.45, 1.1)
    counts_per_electron: float = 0.25
    read_noise: float = 2.5


def _camera(second: bool, restaining: float) -> _Camera:
    change = restaining if second else 0.0
    return _Camera(
        stream=6 if second else 5,
        gain=2600.0 - 700.0 * change,
        gamma=1.0 + 0.2 * change,
        offset=120.0 + 30.0 * change,
        unevenness=0.08 + 0.14 * change,
    )


def _photograph(
    light: NDArray[np.float32], grid: Grid, settings: PhantomSettings, camera: _Camera
) -> NDArray[np.uint16]:
    rng = np.random.default_rng([settings.seed, camera.stream])
    across, along = camera.blur_um
    blur = [across, across, along][: grid.ndim]
    counts = camera.gain * light**camera.gamma
    counts = ndimage.gaussian_filter(counts, np.divide(blur, grid.spacing), mode="nearest")
    for axis, n in enumerate(grid.shape):
        phase = rng.uniform(0, 2 * np.pi)
        wave = 1 + camera.unevenness * np.cos(np.pi * 1.3 * np.arange(n) / n + phase)
        counts *= np.expand_dims(
            wave.astype(np.float32), [a for a in range(grid.ndim) if a != axis]
        )
    if settings.noise > 0:
        per_electron = camera.counts_per_electron * settings.noise**2
        counts = rng.poisson(counts / per_electron).astype(np.float32) * np.float32(per_electron)
        read = rng.standard_normal(grid.shape, np.float32)
        counts += np.float32(camera.read_noise * settings.noise) * read
    return np.clip(np.rint(counts + camera.offset), 0, 65535).astype(np.uint16)


# --- small helpers --------------------------------------------------------------------------------


def _extent(grid: Grid) -> tuple[float, ...]:
    return tuple((n - 1) * s for n, s in zip(grid.shape, grid.spacing, strict=True))


def _pad(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (k, 2) or (k, 3) with a third coordinate, 0 where it is new."""
    out = np.zeros((len(points), 3))
    out[:, : points.shape[1]] = points
    return out


def _tuples(rows: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in rows)


def _check_not_negative(settings: Any, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (np.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be a finite number >= 0; got {value}")
