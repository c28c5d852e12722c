"""Arrays and grids to xarray, which is imported when it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from itkstream.errors import InputError
from itkstream.geometry.grid import Grid

__all__ = ["to_data_array"]

COMPONENT = "component"
"""The dimension of vectors; its coordinate names the axes they lie along."""


def to_data_array(data: Any, grid: Grid, name: str = "") -> Any:
    """Label scalars, grid.shape, or vectors, grid.shape + (n,), as an xarray.DataArray.

    Coordinates are places of voxels along the axes, in µm. Arrays of numpy and dask stay as they
    are; others are read.
    """
    xarray = _xarray()
    lattice = grid.in_unit("micrometer")
    straight = np.abs(np.asarray(lattice.direction))
    if not np.array_equal(straight, np.eye(grid.ndim)):
        raise InputError(
            "an xarray.DataArray has one coordinate per axis, and the axes of this image lie "
            "aslant in space: resample it on a straight grid first, or use its voxels (read()) and "
            "its grid"
        )
    dims: tuple[str, ...] = lattice.axes
    places = {
        axis: (axis, _places(lattice, k), {"units": "micrometer"}) for k, axis in enumerate(dims)
    }
    array = data if hasattr(data, "__array_function__") else np.asarray(data[...])
    if array.ndim == grid.ndim:
        return xarray.DataArray(array, places, dims, name or None)
    coordinates = {**places, COMPONENT: (COMPONENT, list(dims))}
    factor = lattice.spacing[0] / grid.spacing[0]
    return xarray.DataArray(
        array * np.asarray(factor, array.dtype) if factor != 1 else array,
        coordinates,
        (*dims, COMPONENT),
        name or None,
        {"units": "micrometer"},
    )


def _places(grid: Grid, axis: int) -> Any:
    """The places of the voxels along one axis."""
    step = grid.spacing[axis] * grid.direction[axis][axis]
    return grid.origin[axis] + step * np.arange(grid.shape[axis])


def _xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise InputError(
            "xarray is not installed: pip install xarray, or take the voxels by read()"
        ) from error
    return xarray
