"""Lattices: the places of the voxels of an image in physical space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError

__all__ = [
    "MICROMETERS_PER_UNIT",
    "UNIT_SIGNS",
    "Grid",
    "Slices",
    "array_axes",
    "axis_order",
    "box_shape",
    "default_axes",
    "voxels_spanning",
]

Slices = tuple[slice, ...]

MICROMETERS_PER_UNIT = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}

UNIT_SIGNS = {
    "angstrom": "Å",
    "nanometer": "nm",
    "micrometer": "µm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
}
"""Units as they are written behind a number."""

_STRAIGHT = {n: tuple(tuple(map(float, row)) for row in np.eye(n)) for n in (2, 3)}


def box_shape(box: Slices) -> tuple[int, ...]:
    """Count the voxels of a box per axis.

    Parameters
    ----------
    box : tuple of slice
        One per axis, each with a start and a stop.

    Returns
    -------
    tuple of int
        Voxels per axis.

    Examples
    --------
    >>> itkstream.geometry.box_shape((slice(2, 5), slice(0, 10)))
    (3, 10)
    """
    return tuple(s.stop - s.start for s in box)


def voxels_spanning(length: float, spacing: Sequence[float]) -> tuple[int, ...]:
    """Count the voxels of each axis that span a length best, at least one."""
    return tuple(max(1, round(length / h)) for h in spacing)


def default_axes(ndim: int) -> tuple[str, ...]:
    """Name the axes of an array that came without names: x first.

    Parameters
    ----------
    ndim : int
        2 or 3.

    Returns
    -------
    tuple of str
        ``("x", "y")`` or ``("x", "y", "z")``.

    Examples
    --------
    >>> itkstream.geometry.default_axes(2)
    ('x', 'y')
    """
    return ("x", "y", "z")[:ndim]


def array_axes(ndim: int) -> tuple[str, ...]:
    """Name the axes of images as numpy and NGFF have them: x last.

    Parameters
    ----------
    ndim : int
        2 or 3.

    Returns
    -------
    tuple of str
        ``("y", "x")`` or ``("z", "y", "x")``.

    Examples
    --------
    >>> itkstream.geometry.array_axes(3)
    ('z', 'y', 'x')
    """
    return tuple(reversed(default_axes(ndim)))


def axis_order(stored: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Find the places of some wanted axes among others.

    Parameters
    ----------
    stored : sequence of str
        Axis names in the order that something has.
    wanted : sequence of str
        The same names in the wanted order.

    Returns
    -------
    tuple of int
        ``stored[order[k]] == wanted[k]``.

    Raises
    ------
    InputError
        Where these are not the same names.

    Examples
    --------
    >>> itkstream.geometry.axis_order("xyz", "zyx")
    (2, 1, 0)
    """
    if sorted(wanted) != sorted(stored):
        raise InputError(f"axes {tuple(wanted)} are no permutation of {tuple(stored)}")
    return tuple(tuple(stored).index(a) for a in wanted)


@dataclass(frozen=True)
class Grid:
    """A regular lattice of voxel centres in physical space.

    Voxel ``i`` lies at ``direction @ (i * spacing) + origin``. All tuples, and all physical
    coordinates, are in array-axis order: component 0 belongs to array axis 0, whatever its name.

    Parameters
    ----------
    shape : sequence of int
        Voxels per axis; two or three axes.
    spacing : sequence of float
        Distance of neighbouring voxel centres per axis, in `unit`.
    origin : sequence of float, optional
        Position of the centre of voxel 0, in `unit`; default 0.
    direction : array_like, optional
        Orthonormal matrix (n, n) whose column k is the direction of array axis k; default
        identity.
    axes : sequence of str, optional
        Axis names, a permutation of ``x, y`` or ``x, y, z``. Without them `default_axes` are
        assumed, and nothing that names axes (ITK's files) is written.
    unit : str
        Length unit of spacing and origin, one of `MICROMETERS_PER_UNIT`.
    axes_stated : bool, optional
        Whether the names were given rather than assumed; default whether `axes` are.

    Raises
    ------
    InputError
        Where a value does not fit; the message names it.

    Examples
    --------
    >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
    >>> print(grid)
    zyx 10 x 20 x 30, 2 x 0.5 x 0.5 micrometer
    >>> grid.to_physical([[1, 2, 4]])
    array([[2., 1., 2.]])
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...] = ()
    direction: tuple[tuple[float, ...], ...] = ()
    axes: tuple[str, ...] = ()
    unit: str = "micrometer"
    axes_stated: bool | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{step:.6g}" for step in self.spacing)
        return f"{''.join(self.axes)} {shape}, {spacing} {self.unit}"

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise InputError(
                f"an image has 2 or 3 axes of at least one voxel; got shape {tuple(self.shape)}"
            )
        n = len(shape)
        spacing = _floats("spacing", self.spacing, n)
        if min(spacing) <= 0:
            raise InputError(
                f"spacing must be positive on every axis; got {spacing}. "
                "Give the distance of neighbouring voxel centres, in micrometers"
            )
        origin = _floats("origin", self.origin if len(self.origin) else (0.0,) * n, n)
        axes = tuple(self.axes) or default_axes(n)
        if sorted(axes) != list(default_axes(n)):
            raise InputError(f"axes must be a permutation of {default_axes(n)}; got {axes}")
        if self.unit not in MICROMETERS_PER_UNIT:
            raise InputError(
                f"unknown length unit {self.unit!r}; known: {', '.join(MICROMETERS_PER_UNIT)}"
            )
        normalised = {
            "shape": shape,
            "spacing": spacing,
            "origin": origin,
            "direction": _rotation(self.direction, n),
            "axes": axes,
            "axes_stated": bool(self.axes) if self.axes_stated is None else self.axes_stated,
        }
        for name, value in normalised.items():
            object.__setattr__(self, name, value)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """Homogeneous matrix (n + 1, n + 1) from voxel index to physical position."""
        m = np.eye(self.ndim + 1)
        m[:-1, :-1] = np.asarray(self.direction) * self.spacing
        m[:-1, -1] = self.origin
        return m

    @cached_property
    def inverse_matrix(self) -> NDArray[np.float64]:
        """Homogeneous matrix (n + 1, n + 1) from physical position to voxel index."""
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    def to_physical(self, index: ArrayLike) -> NDArray[np.float64]:
        """Map voxel indices to physical positions.

        Parameters
        ----------
        index : array_like, (..., n)
            Voxel indices; fractions are allowed.

        Returns
        -------
        ndarray, (..., n)
            Positions, in `unit`.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.to_physical([[1, 2, 4]])
        array([[2., 1., 2.]])
        """
        m = self.matrix
        return np.asarray(np.asarray(index, float) @ m[:-1, :-1].T + m[:-1, -1])

    def to_index(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map physical positions to fractional voxel indices.

        Parameters
        ----------
        points : array_like, (..., n)
            Positions, in `unit`.

        Returns
        -------
        ndarray, (..., n)
            Voxel indices.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.to_index([[2, 1, 2]])
        array([[1., 2., 4.]])
        """
        m = self.inverse_matrix
        return np.asarray(points, float) @ m[:-1, :-1].T + m[:-1, -1]

    def positions(self) -> NDArray[np.float64]:
        """Physical positions of all voxels.

        Returns
        -------
        ndarray, shape + (n,)
            Positions in `unit`; 8 n bytes per voxel.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.positions().shape
        (10, 20, 30, 3)
        """
        index = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1)
        return self.to_physical(index)

    def corners(self) -> NDArray[np.float64]:
        """Physical positions of the corner voxels.

        Returns
        -------
        ndarray, (2 ** n, n)
            Positions in `unit`.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.corners()[-1]
        array([18. ,  9.5, 14.5])
        """
        return self.to_physical(self._corners(0))

    def outer_corners(self) -> NDArray[np.float64]:
        """Physical positions of the outer corners of the voxels at the corners.

        Returns
        -------
        ndarray, (2**n, n), float64
            Half a voxel beyond `corners`.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.outer_corners()[0]
        array([-1.  , -0.25, -0.25])
        """
        return self.to_physical(self._corners(0.5))

    def _corners(self, beyond: float) -> NDArray[np.float64]:
        """Indices of the corner voxels, or of places so far beyond them."""
        ends = np.meshgrid(*((-beyond, n - 1 + beyond) for n in self.shape), indexing="ij")
        return np.stack(ends, axis=-1).reshape(-1, self.ndim)

    @property
    def least_spacing(self) -> float:
        """Smallest spacing along the axes of more than one voxel; 1 where there is none."""
        sides = zip(self.spacing, self.shape, strict=True)
        return min((h for h, n in sides if n > 1), default=1.0)

    def contains(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Tell which points lie in a voxel: as in ITK, up to half a voxel beyond the outer centres.

        Parameters
        ----------
        points : array_like, (..., n)
            Physical positions.

        Returns
        -------
        ndarray of bool, (...)
            True inside.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.contains([[4, 2, 2], [99, 2, 2]])
        array([ True, False])
        """
        index = self.to_index(points)
        inside = (index >= -0.5) & (index < np.subtract(self.shape, 0.5))
        return np.asarray(inside.all(axis=-1))

    def crop(self, slices: Slices) -> Grid:
        """The grid of a sub-array.

        Parameters
        ----------
        slices : tuple of slice
            One slice per axis, step 1, inside the shape.

        Returns
        -------
        Grid
            Its origin is the position of the first voxel kept.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.crop((slice(5, 10), slice(0, 20), slice(0, 30))).origin
        (10.0, 0.0, 0.0)
        """
        start = [s.start or 0 for s in slices]
        stop = [n if s.stop is None else s.stop for s, n in zip(slices, self.shape, strict=True)]
        return replace(
            self,
            shape=tuple(b - a for a, b in zip(start, stop, strict=True)),
            origin=tuple(self.to_physical(start)),
        )

    def subsample(self, spans: Sequence[range]) -> Grid:
        """The grid of every n-th voxel of a sub-array.

        Parameters
        ----------
        spans : sequence of range
            The voxels that are kept, one range per axis; one that descends turns its axis around.

        Returns
        -------
        Grid
            Its origin is the position of the first voxel kept.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.subsample((range(0, 10, 2), range(20), range(30))).spacing
        (4.0, 0.5, 0.5)
        """
        signs = np.sign([span.step for span in spans])
        turned = np.asarray(self.direction) * signs + 0.0  # + 0.0: no negative zeros
        return replace(
            self,
            shape=tuple(map(len, spans)),
            spacing=tuple(s * abs(span.step) for s, span in zip(self.spacing, spans, strict=True)),
            origin=tuple(self.to_physical([span.start for span in spans])),
            direction=self.direction if signs.min() > 0 else tuple(map(tuple, turned)),
        )

    def shrink(self, factors: Sequence[int]) -> Grid:
        """The grid of an image whose voxels are averaged in groups.

        Averaging `f` voxels moves the first centre by ``(f - 1) / 2`` fine voxels. A group that
        sticks out at the end keeps the full spacing.

        Parameters
        ----------
        factors : sequence of int
            Voxels per group and axis.

        Returns
        -------
        Grid
            Shape ``ceil(shape / factors)``.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> print(grid.shrink((1, 4, 4)))
        zyx 10 x 5 x 8, 2 x 2 x 2 micrometer
        """
        first = [(f - 1) / 2 for f in factors]
        return replace(
            self,
            shape=tuple(-(-n // f) for n, f in zip(self.shape, factors, strict=True)),
            spacing=tuple(s * f for s, f in zip(self.spacing, factors, strict=True)),
            origin=tuple(self.to_physical(first)),
        )

    def reorder(self, axes: Sequence[str]) -> Grid:
        """The same lattice with its array axes in another order.

        Physical coordinates follow the array axes, so they are permuted as well.

        Parameters
        ----------
        axes : sequence of str
            The wanted order of the axis names.

        Returns
        -------
        Grid
            A grid whose `axes` are those given.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.reorder("xyz").shape
        (30, 20, 10)
        """
        order = self.axis_order(axes)
        direction = np.asarray(self.direction)[np.ix_(order, order)]
        return replace(
            self,
            shape=tuple(self.shape[k] for k in order),
            spacing=tuple(self.spacing[k] for k in order),
            origin=tuple(self.origin[k] for k in order),
            direction=tuple(map(tuple, direction)),
            axes=tuple(axes),
        )

    def named(self, axes: Sequence[str]) -> Grid:
        """State the names of the array axes of the lattice.

        Parameters
        ----------
        axes : sequence of str
            Their names, first to last.

        Returns
        -------
        Grid
            Nothing is moved: see `reorder` for that.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> itkstream.Grid((4, 4), (1, 1)).named("yx").axes
        ('y', 'x')
        """
        return replace(self, axes=tuple(axes), axes_stated=True)

    def axis_order(self, axes: Sequence[str]) -> tuple[int, ...]:
        """Find the places of the wanted axes in this grid.

        Parameters
        ----------
        axes : sequence of str
            Axis names in the wanted order.

        Returns
        -------
        tuple of int
            ``self.axes[order[k]] == axes[k]``.

        Raises
        ------
        InputError
            Where these are other axes.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.axis_order("xyz")
        (2, 1, 0)
        """
        return axis_order(self.axes, axes)

    def in_unit(self, unit: str) -> Grid:
        """The same lattice with its lengths in another unit.

        Parameters
        ----------
        unit : str
            One of `MICROMETERS_PER_UNIT`.

        Returns
        -------
        Grid
            Spacing and origin converted.

        Examples
        --------
        >>> grid = itkstream.Grid((10, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
        >>> grid.in_unit("nanometer").spacing
        (2000.0, 500.0, 500.0)
        """
        if unit == self.unit:
            return self
        if unit not in MICROMETERS_PER_UNIT:
            raise InputError(
                f"unknown length unit {unit!r}; known: {', '.join(MICROMETERS_PER_UNIT)}"
            )
        scale = MICROMETERS_PER_UNIT[self.unit] / MICROMETERS_PER_UNIT[unit]
        return replace(
            self,
            spacing=tuple(s * scale for s in self.spacing),
            origin=tuple(o * scale for o in self.origin),
            unit=unit,
        )


def _floats(name: str, values: Sequence[float], n: int) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in np.ravel(values))
    if len(numbers) != n:
        raise InputError(f"{name} needs one number per axis, {n}; got {len(numbers)}: {numbers}")
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} must be finite; got {numbers}")
    return numbers


def _rotation(direction: ArrayLike, n: int) -> tuple[tuple[float, ...], ...]:
    # Thousands of grids are made of others, most of them straight: they need no second look.
    if direction is _STRAIGHT[n]:
        return _STRAIGHT[n]
    matrix = np.asarray(direction, float)
    if matrix.size == 0:
        return _STRAIGHT[n]
    if matrix.size != n * n:
        raise InputError(f"direction must be a {n} x {n} matrix; got {matrix.size} numbers")
    matrix = matrix.reshape(n, n)
    # File formats keep directions in float32 or as text of a few digits: 1e-4 lets them in.
    if not np.allclose(matrix.T @ matrix, np.eye(n), atol=1e-4):
        raise InputError(f"direction must be an orthonormal matrix; got {matrix.tolist()}")
    return tuple(tuple(float(v) for v in row) for row in matrix)
