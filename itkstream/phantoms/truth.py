"""The true map between the rounds, in closed form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError
from itkstream.numerics.compiling import compiled
from itkstream.phantoms.lattice import extent_of, in_three
from itkstream.phantoms.settings import PhantomSettings

__all__ = ["SyntheticTransform", "draw_truth"]


_FORMAT = "itkstream synthetic transform 1"
_LEAST_JACOBIAN = 0.5
_BUMPS = 14


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

    Examples
    --------
    >>> shift = ((1.0, 0, 0, 5), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0))
    >>> itkstream.phantoms.SyntheticTransform(shift)(np.zeros((1, 3)))
    array([[5., 0., 0.]])
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
        centres = in_three(np.asarray(self.centres, float).reshape(-1, n))
        vectors = in_three(np.asarray(self.vectors, float).reshape(-1, n))
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

        Examples
        --------
        >>> shift = ((1.0, 0, 0, 5), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0))
        >>> truth = itkstream.phantoms.SyntheticTransform(shift)
        >>> truth.inverse(np.array([[5.0, 0, 0]])).round(6) + 0
        array([[0., 0., 0.]])
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

        Examples
        --------
        >>> shift = ((1.0, 0, 0, 5), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0))
        >>> truth = itkstream.phantoms.SyntheticTransform(shift)
        >>> truth.jacobian_determinant(np.zeros((1, 3)))
        array([1.])
        """
        return self._run(_determinant, points)[..., 0]

    def to_json(self) -> str:
        """Write the map as text.

        Returns
        -------
        str
            JSON; `from_json` gives back an equal transform.

        Examples
        --------
        >>> shift = ((1.0, 0, 0, 5), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0))
        >>> truth = itkstream.phantoms.SyntheticTransform(shift)
        >>> "matrix" in truth.to_json()
        True
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

        Examples
        --------
        >>> shift = ((1.0, 0, 0, 5), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0))
        >>> truth = itkstream.phantoms.SyntheticTransform(shift)
        >>> itkstream.phantoms.SyntheticTransform.from_json(truth.to_json()) == truth
        True
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
        flat = in_three(given.reshape(-1, self.ndim))
        out = np.empty_like(flat)
        kernel(flat, self._arrays, out)
        return np.ascontiguousarray(out[:, : self.ndim]).reshape(given.shape)


def draw_truth(settings: PhantomSettings) -> SyntheticTransform:
    """Draw the map between the rounds.

    Parameters
    ----------
    settings : PhantomSettings
        Sizes, seed and motion.

    Returns
    -------
    SyntheticTransform
        Fixed to moving points, in µm.

    Raises
    ------
    InputError
        Where the deformation asked for is too strong for the size of the image.
    """
    rng = np.random.default_rng([settings.seed, 1])
    grid, motion = settings.fixed_grid, settings.motion
    matrix = _draw_affine(settings, rng)
    extent = np.asarray(extent_of(grid))
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
            f"a deformation of {motion.warp_um} µm over {extent_of(grid)} µm has a Jacobian as low "
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
    shift = draw(n) * motion.shift * extent_of(fixed)
    matrix[:n, n] = middles[1] + shift - matrix[:n, :n] @ middles[0]
    return matrix


class _Map(NamedTuple):
    """A `SyntheticTransform` as the kernels take it: three axes, contiguous arrays."""

    linear: NDArray[np.float64]
    inverse: NDArray[np.float64]
    offset: NDArray[np.float64]
    centres: NDArray[np.float64]
    vectors: NDArray[np.float64]
    widths: NDArray[np.float64]


@compiled
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


@compiled
def _det(m: Any) -> float:
    return (
        m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
        - m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
        + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
    )


@compiled
def _forward(points: Any, true: Any, out: Any) -> None:
    moved, slope = np.empty(3), np.empty((3, 3))
    for n in range(len(points)):
        _bend(points[n], true, moved, slope)
        for i in range(3):
            out[n, i] = true.offset[i]
            for j in range(3):
                out[n, i] += true.linear[i, j] * moved[j]


@compiled
def _determinant(points: Any, true: Any, out: Any) -> None:
    moved, slope = np.empty(3), np.empty((3, 3))
    affine = _det(true.linear)
    for n in range(len(points)):
        _bend(points[n], true, moved, slope)
        out[n, :] = affine * _det(slope)


@compiled
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


@compiled
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


def _tuples(rows: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in rows)
