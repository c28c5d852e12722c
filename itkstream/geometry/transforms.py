"""Transforms: frozen values that map points of the fixed image to points of the moving image.

Points and matrices are in array-axis order of the fixed grid and in its unit, as everywhere in
this package; `itkstream.geometry.itk_bridge` turns them to ITK's x, y, z.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from itkstream.errors import InputError
from itkstream.geometry.blocks import BlockGrid
from itkstream.geometry.grid import Grid, array_axes, axis_order, default_axes
from itkstream.geometry.lazy_array import ArraySource
from itkstream.geometry.shown.html import card

__all__ = [
    "AffineTransform",
    "DisplacementField",
    "GridTransform",
    "PiecewiseAffine",
    "Transform",
    "checked_axes",
]

# Ratio of an affine's greatest stretch to its least beyond which its inverse is rounding alone.
_SINGULAR = 1e12
# Of positions computed in another order, far from the origin.
_ROUNDING_VOX = 0.01


class Transform(ABC):
    """A map from fixed points to moving points, which can be written for other programs.

    A subclass says what `ndim` is, and how `apply` maps points.

    Examples
    --------
    >>> itkstream.read_transform("registered").apply([[20.0, 40.0, 40.0]]).shape
    (1, 3)
    """

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Dimensions of the space."""

    @property
    def axes(self) -> tuple[str, ...] | None:
        """Names of the coordinates of its points, first to last; None where nothing says them."""
        return None

    @abstractmethod
    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points.

        Parameters
        ----------
        points : array_like, (..., n)
            Fixed positions.

        Returns
        -------
        ndarray, (..., n)
            Moving positions.

        Examples
        --------
        >>> twice = itkstream.AffineTransform(np.diag([2, 2, 2, 1]), axes=("z", "y", "x"))
        >>> twice.apply([[1, 2, 3]])
        array([[2., 4., 6.]])
        """

    def write(
        self,
        path: str | os.PathLike[str],
        axes: Sequence[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> float:
        """Write a file that ITK, 3D Slicer and ANTs read, and check it at points.

        Parameters
        ----------
        path : path
            Its ending chooses the format: see `itkstream.write_transform`.
        axes : sequence of str, optional
            Names of the coordinates of its points, first to last; needed where its own `axes` are
            None.
        overwrite : bool
            Replace an existing file.

        Returns
        -------
        float
            Largest difference at the points that were compared, in the unit of the transform.

        Raises
        ------
        InputError
            Where the format cannot hold this transform (the message says which can), or nothing
            says what its axes are.
        ExistingOutputError
            Where the file exists.
        ItkstreamError
            Where what was written does not map points as it should; nothing is left behind.

        Examples
        --------
        >>> twice = itkstream.AffineTransform(np.diag([2, 2, 2, 1]), axes=("z", "y", "x"))
        >>> twice.write("twice.tfm")
        0.0
        """
        # The package's own door: file formats lie floors above, and are loaded when one is written.
        from itkstream import write_transform

        return write_transform(path, self, axes, overwrite=overwrite)

    def to_sitk(self, axes: Sequence[str] | None = None) -> Any:
        """The transform as SimpleITK has it, in memory, from fixed to moving points, x first.

        Parameters
        ----------
        axes : sequence of str, optional
            Names of the coordinates of its points, first to last; needed where its own `axes` are
            None.

        Returns
        -------
        SimpleITK.Transform
            In the unit of this one, µm: the spacing of an image that it acts on must be too.
            Fields take 24 bytes a node in 3-D.

        Raises
        ------
        InputError
            Where ITK has no such transform, or nothing says what its axes are.

        Examples
        --------
        >>> twice = itkstream.AffineTransform(np.diag([2, 2, 2, 1]), axes=("z", "y", "x"))
        >>> twice.to_sitk().TransformPoint((1.0, 2.0, 3.0))
        (2.0, 4.0, 6.0)
        """
        from itkstream.geometry.itk_bridge import to_itk_transform

        named = tuple(axes or self.axes or ())
        if not named:
            raise InputError(
                f"nothing says which coordinate of a point is x: give axes={array_axes(self.ndim)} "
                f"if points are {', '.join(array_axes(self.ndim))}"
            )
        return to_itk_transform(self, named)

    def _repr_html_(self) -> str:
        """Its parts in a line each, as Jupyter shows them."""
        return card(type(self).__name__, self._lines())

    def _lines(self) -> tuple[str, ...]:
        """Lines that a notebook shows of it."""
        return (repr(self),)


@dataclass(frozen=True, eq=False, repr=False)
class AffineTransform(Transform):
    """``p -> matrix @ [p, 1]``.

    Parameters
    ----------
    matrix : array_like, (n + 1, n + 1)
        Homogeneous and invertible; n is 2 or 3.
    axes : sequence of str, optional
        Names of the coordinates of its points, first to last: ``("z", "y", "x")``. None where
        nothing says them.

    Raises
    ------
    InputError
        Where the matrix is of another shape, not finite, not affine or singular, or the axes are
        no permutation of x, y (, z).

    Examples
    --------
    >>> shift = np.eye(4)
    >>> shift[:3, 3] = 1, 2, 3
    >>> transform = itkstream.AffineTransform(shift, axes=("z", "y", "x"))
    >>> transform.apply([10, 10, 10])
    array([11., 12., 13.])
    >>> transform.inverse().apply([11, 12, 13])
    array([10., 10., 10.])
    >>> transform.to_sitk().TransformPoint((10, 10, 10))
    (13.0, 12.0, 11.0)
    """

    matrix: NDArray[np.float64]
    axes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, np.float64)
        if matrix.shape not in ((3, 3), (4, 4)):
            raise InputError(f"an affine is a 3 x 3 or 4 x 4 matrix; got shape {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise InputError("an affine must be finite; got NaN or infinity: did its fit fail?")
        if not np.array_equal(matrix[-1], np.eye(len(matrix))[-1]):
            raise InputError(f"the last row of an affine is 0 ... 0 1; got {matrix[-1].tolist()}")
        if np.linalg.cond(matrix[:-1, :-1]) > _SINGULAR:
            raise InputError("an affine must be invertible; its determinant is 0")
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "axes", checked_axes(self.axes, self.ndim))

    def __repr__(self) -> str:
        rows = ", ".join(f"[{', '.join(f'{v:.6g}' for v in row)}]" for row in self.matrix[:-1])
        return f"AffineTransform({''.join(self.axes or ())}{' ' if self.axes else ''}[{rows}])"

    def _repr_html_(self) -> str:
        """The matrix, as Jupyter shows it."""
        names = self.axes or tuple(f"axis {k}" for k in range(self.ndim))
        rows = [
            (name, *(f"{v:.6g}" for v in row))
            for name, row in zip(names, self.matrix[:-1], strict=True)
        ]
        return card("AffineTransform", (), [("", *names, "shift"), *rows])

    @property
    def ndim(self) -> int:
        """Dimensions of the space."""
        return len(self.matrix) - 1

    @property
    def is_identity(self) -> bool:
        """Whether all points stay where they are."""
        return np.array_equal(self.matrix, np.eye(len(self.matrix)))

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points."""
        return np.asarray(points, float) @ self.matrix[:-1, :-1].T + self.matrix[:-1, -1]

    def reorder(self, stored: Sequence[str], wanted: Sequence[str]) -> AffineTransform:
        """The same map of points whose coordinates are in another order.

        Parameters
        ----------
        stored, wanted : sequence of str
            Axis names: the order of this transform's coordinates, and the wanted one.

        Returns
        -------
        AffineTransform
            Rows and columns permuted, to the bit; its axes are the wanted ones.

        Raises
        ------
        InputError
            Where these are not the same names, or the stored ones not those of the transform.

        Examples
        --------
        >>> twice = itkstream.AffineTransform(np.diag([2, 2, 2, 1]), axes=("z", "y", "x"))
        >>> twice.reorder("zyx", "xyz").axes
        ('x', 'y', 'z')
        """
        if self.axes not in (None, tuple(stored)):
            raise InputError(f"an affine of points {self.axes} has no points {tuple(stored)}")
        full = [*axis_order(stored, wanted), self.ndim]
        return AffineTransform(self.matrix[np.ix_(full, full)], tuple(wanted))

    def inverse(self) -> AffineTransform:
        """The map back.

        Returns
        -------
        AffineTransform
            From moving to fixed points.

        Examples
        --------
        >>> twice = itkstream.AffineTransform(np.diag([2, 2, 2, 1]), axes=("z", "y", "x"))
        >>> twice.inverse().apply([2, 4, 6])
        array([1., 2., 3.])
        """
        inverse = np.asarray(np.linalg.inv(self.matrix), np.float64)
        inverse[-1] = np.eye(len(inverse))[-1]
        return AffineTransform(inverse, self.axes)


class GridTransform(Transform):
    """A transform that is known on a grid of its own, whose axes are those of its points."""

    grid: Grid

    @property
    def ndim(self) -> int:
        """Dimensions of the space."""
        return self.grid.ndim

    @property
    def axes(self) -> tuple[str, ...] | None:
        """Names of the coordinates of its points; None where its grid only assumes them."""
        return self.grid.axes if self.grid.axes_stated else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.grid})"

    def reaches(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Mark the points (..., n) that lie within the voxels of the grid."""
        return self.grid.contains(points)


@dataclass(frozen=True, eq=False, repr=False)
class PiecewiseAffine(GridTransform):
    """One affine a block, blended into one smooth map over the overlaps of the blocks.

    Parameters
    ----------
    matrices : ndarray, blocks.numblocks + (n + 1, n + 1)
        The affines; finite.
    blocks : BlockGrid
        Which block owns which voxels; its overlap is the half width of the blend.
    grid : Grid
        The lattice the blocks cut.

    Raises
    ------
    InputError
        Where the shapes differ or a matrix is not finite.

    Examples
    --------
    >>> grid = itkstream.Grid((20, 20), (1, 1), axes=("y", "x"))
    >>> blocks = itkstream.geometry.BlockGrid((20, 20), (10, 10), (2, 2))
    >>> matrices = np.tile(np.eye(3), (2, 2, 1, 1))
    >>> matrices[1, :, 0, 2] = 4
    >>> itkstream.PiecewiseAffine(matrices, blocks, grid).apply([[2, 5], [17, 5]])
    array([[ 2.,  5.],
           [21.,  5.]])
    """

    matrices: NDArray[np.float64]
    blocks: BlockGrid
    grid: Grid

    def __post_init__(self) -> None:
        matrices = np.array(self.matrices, np.float64)
        wanted = (*self.blocks.numblocks, self.ndim + 1, self.ndim + 1)
        if matrices.shape != wanted:
            raise InputError(
                f"local affines of shape {matrices.shape} do not fit {self.blocks.numblocks} "
                f"blocks; expected {wanted}: were they computed with another blocksize?"
            )
        if not np.isfinite(matrices).all():
            raise InputError("local affines hold NaN: fill the failed blocks first")
        object.__setattr__(self, "matrices", matrices)

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points; outside the grid the nearest block's affine holds."""
        p = np.asarray(points, float)
        out = np.zeros(p.shape)
        for share, matrices in self._terms(self.grid.to_index(p)):
            mapped = np.einsum("...ij,...j->...i", matrices[..., :-1, :-1], p)
            out += share[..., None] * (mapped + matrices[..., :-1, -1])
        return out

    def _terms(
        self, index: NDArray[np.float64]
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        tables = [self.blocks.weights(axis, index[..., axis]) for axis in range(self.ndim)]
        for corner in product((0, 1), repeat=self.ndim):
            share = np.ones(index.shape[:-1])
            which = []
            for (low, upper), step, count in zip(
                tables, corner, self.blocks.numblocks, strict=True
            ):
                share = share * (upper if step else 1.0 - upper)
                which.append(np.minimum(low + step, count - 1))
            yield share, self.matrices[tuple(which)]


@dataclass(frozen=True, eq=False, repr=False)
class DisplacementField(GridTransform):
    """``p -> p + d(p)``, d sampled linearly on a grid of its own and constant beyond it.

    Parameters
    ----------
    data : ArraySource, grid.shape + (n,)
        Vectors in the unit of the grid; numpy, dask or stored.
    grid : Grid
        Where the vectors are; usually coarser than the image.

    Raises
    ------
    InputError
        Where the shapes do not fit.

    Examples
    --------
    >>> grid = itkstream.Grid((4, 5, 6), (8, 8, 8), axes=("z", "y", "x"))
    >>> field = itkstream.DisplacementField(np.ones((4, 5, 6, 3), np.float32), grid)
    >>> field.apply([10, 10, 10])
    array([11., 11., 11.])
    >>> field.to_xarray().dims
    ('z', 'y', 'x', 'component')
    """

    data: Any
    grid: Grid

    def __post_init__(self) -> None:
        wanted = (*self.grid.shape, self.grid.ndim)
        if not isinstance(self.data, ArraySource) or tuple(self.data.shape) != wanted:
            raise InputError(
                f"a displacement field on a grid of shape {self.grid.shape} has shape {wanted}; "
                f"got {tuple(getattr(self.data, 'shape', ()))}"
            )

    def to_xarray(self) -> Any:
        """The vectors as an xarray.DataArray, for which xarray must be installed.

        Returns
        -------
        xarray.DataArray
            In µm, the names of the axes as dimensions and, last, ``component``: the axis along
            which a number leads. Arrays of numpy and dask stay what they are; of stored ones is
            read what is used, in their unit if that is µm.

        Raises
        ------
        InputError
            Where xarray is not installed, or the axes of the grid lie aslant in space.

        Examples
        --------
        >>> grid = itkstream.Grid((4, 5, 6), (8, 8, 8), axes=("z", "y", "x"))
        >>> field = itkstream.DisplacementField(np.ones((4, 5, 6, 3), np.float32), grid)
        >>> float(field.to_xarray().sel(component="x").mean())
        1.0
        """
        from itkstream.geometry.xarray_bridge import to_data_array

        return to_data_array(self.data, self.grid, "displacement")

    def crop_around(self, points: NDArray[np.float64]) -> DisplacementField:
        """The part of the field that `apply` needs for some points, read into memory.

        Parameters
        ----------
        points : ndarray, (..., n)
            Fixed positions.

        Returns
        -------
        DisplacementField
            Gives the same results at these points.

        Examples
        --------
        >>> grid = itkstream.Grid((4, 5, 6), (8, 8, 8), axes=("z", "y", "x"))
        >>> field = itkstream.DisplacementField(np.ones((4, 5, 6, 3), np.float32), grid)
        >>> field.crop_around(np.array([[9.0, 9, 9]])).grid.shape
        (2, 2, 2)
        """
        index = self.grid.to_index(points).reshape(-1, self.ndim)
        shape = np.asarray(self.grid.shape)
        # A position on a node, give or take its rounding, has neighbours on both sides.
        low = np.clip(np.floor(index.min(axis=0) - _ROUNDING_VOX), 0, shape - 1).astype(int)
        high = np.floor(index.max(axis=0) + _ROUNDING_VOX) + 2
        high = np.clip(high, low + 1, shape).astype(int)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        part = np.asarray(self.data[(*box, slice(None))])
        return DisplacementField(part, self.grid.crop(box))

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points; reads only the part of the field around them."""
        p = np.asarray(points, float)
        if p.size == 0:
            return p.copy()
        near = self.crop_around(p)
        index = near.grid.to_index(p).reshape(-1, self.ndim).T
        moves = [
            map_coordinates(
                near.data[..., c],
                index,
                output=np.float64,
                order=1,
                mode="nearest",
                prefilter=False,
            )
            for c in range(self.ndim)
        ]
        return p + np.stack(moves, axis=-1).reshape(p.shape)


def checked_axes(axes: Sequence[str] | None, ndim: int) -> tuple[str, ...] | None:
    """The names of coordinates, or None; refuses those that are no permutation of x, y (, z)."""
    if axes is None:
        return None
    if sorted(axes) != list(default_axes(ndim)):
        raise InputError(f"axes must be a permutation of {default_axes(ndim)}; got {tuple(axes)}")
    return tuple(axes)
