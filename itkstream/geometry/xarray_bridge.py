"""Arrays and grids to xarray. Imported when it is asked for: xarray need not be installed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry.grid import Grid
from itkstream.geometry.lazy_array import ArraySource

try:
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing
except ImportError as error:
    raise InputError(
        "xarray is not installed: pip install xarray, or take the voxels by read()"
    ) from error

__all__ = ["to_data_array"]

_COMPONENT = "component"


def to_data_array(data: Any, grid: Grid, name: str = "") -> xarray.DataArray:
    """Label scalars, grid.shape, or vectors, grid.shape + (n,), as an xarray.DataArray.

    Coordinates are places of voxels along the axes, in µm. Arrays of numpy and dask stay as they
    are; stored ones are read where they are used. Vectors get a dimension more, whose coordinate
    names the axes they lie along.
    """
    lattice = grid.in_unit("micrometer")
    if not np.array_equal(np.abs(lattice.direction), np.eye(grid.ndim)):
        raise InputError(
            "an xarray.DataArray has one coordinate per axis, and the axes of this image lie "
            "aslant in space: resample it on a straight grid first, or use its voxels (read()) and "
            "its grid"
        )
    dims: tuple[str, ...] = lattice.axes
    places: dict[str, Any] = {
        axis: (axis, _places(lattice, k), {"units": "micrometer"}) for k, axis in enumerate(dims)
    }
    if len(data.shape) == grid.ndim:
        return xarray.DataArray(_lazily(data, dims), places, dims, name or None)
    dims, places = (*dims, _COMPONENT), {**places, _COMPONENT: list(dims)}
    factor = lattice.spacing[0] / grid.spacing[0]
    vectors = xarray.DataArray(_lazily(data, dims), places, dims, name or None)
    scaled = vectors if factor == 1 else vectors * np.asarray(factor, data.dtype)
    return scaled.assign_attrs(units="micrometer")


def _places(grid: Grid, axis: int) -> NDArray[np.float64]:
    """The places of the voxels along one axis."""
    step = grid.spacing[axis] * grid.direction[axis][axis]
    return np.asarray(grid.origin[axis] + step * np.arange(grid.shape[axis]), np.float64)


def _lazily(data: ArraySource, dims: tuple[str, ...]) -> Any:
    """Data that xarray slices without reading them, if they are neither numpy's nor dask's."""
    if hasattr(data, "__array_function__"):
        return data
    return xarray.Variable(dims, indexing.LazilyIndexedArray(_Stored(data)))


class _Stored(BackendArray):
    """A stored array as xarray's own readers are; see its "How to add a new backend"."""

    def __init__(self, source: ArraySource) -> None:
        self.source, self.shape, self.dtype = source, source.shape, source.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        basic = indexing.IndexingSupport.BASIC
        return indexing.explicit_indexing_adapter(key, self.shape, basic, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        return np.asarray(self.source[key])
