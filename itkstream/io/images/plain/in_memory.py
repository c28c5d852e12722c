"""Images of other libraries, and plain arrays, taken as they are: nothing is copied but from ITK.

Known by the module of their class, so that none of these libraries need be installed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import ArraySource, Grid, Image, array_axes, default_axes
from itkstream.geometry.itk_bridge import from_itk_geometry, from_itk_image
from itkstream.io import open_image
from itkstream.io.units import parse_unit

__all__ = ["as_image"]

# Steps between coordinates that differ by less are equal: float32 coordinates of large images do.
_EVEN = 1e-3


def as_image(
    given: Any,
    spacing: float | Sequence[float] | None = None,
    axes: str | Sequence[str] | None = None,
    *,
    unit: str | None = None,
) -> Image:
    """Take an image as whatever it comes: a file, an array, or the image of another library.

    Parameters
    ----------
    given : path, array, xarray.DataArray, SimpleITK.Image, itk.Image or Image
        numpy, dask and Zarr arrays stay where they are, also inside xarray. A DataArray says its
        axes by its dimensions, and spacing and origin by its coordinates, in the unit that their
        attribute ``units`` names; dimensions of length 1 beside x, y and z are left out. Images of
        SimpleITK and itk say spacing, origin and direction; their voxels come with axes z, y, x.
    spacing : float or sequence of float, optional
        Distance of voxels: a number, or one per axis. Needed for arrays.
    axes : str or sequence of str, optional
        Names of the axes, such as "zyx"; needed for arrays before anything is written of them.
    unit : str, optional
        Unit of these numbers, and of ITK's; default µm.

    Returns
    -------
    Image
        The same voxels on their grid.

    Raises
    ------
    InputError
        For something else, an array without spacing, a spacing for an image that says its own,
        coordinates that are not evenly spaced, or dimensions beside x, y and z.

    Examples
    --------
    >>> import numpy as np
    >>> from itkstream import as_image
    >>> as_image(np.zeros((10, 20, 30)), spacing=(2, 0.5, 0.5), axes="zyx").grid.spacing
    (2.0, 0.5, 0.5)
    """
    if isinstance(given, (str, os.PathLike)):
        return open_image(given, voxel_spacing=spacing, axes=axes, unit=unit)
    library = type(given).__module__.partition(".")[0]
    if library == "xarray":
        return _from_xarray(given, spacing, axes, unit)
    if isinstance(given, Image) or library in ("SimpleITK", "itk"):
        if spacing is not None or axes is not None:
            raise InputError(f"{_kind(given)} says its own spacing and axes: leave yours out")
        return given if isinstance(given, Image) else _from_itk(given, library, unit)
    if not isinstance(given, ArraySource):
        raise InputError(
            "an image is a path, an array, an xarray.DataArray, a SimpleITK or itk image, or an "
            f"itkstream.Image; got {_kind(given)}"
        )
    if spacing is None:
        raise InputError(
            f"{_kind(given)} does not say how far its voxels lie apart: pass spacing, a number or "
            "one per axis, in µm"
        )
    lengths = _per_axis(spacing, given.shape)
    return Image(
        given, Grid(given.shape, lengths, axes=tuple(axes or ()), unit=unit or "micrometer")
    )


def _from_xarray(
    given: Any,
    spacing: float | Sequence[float] | None,
    axes: str | Sequence[str] | None,
    unit: str | None,
) -> Image:
    """An xarray.DataArray, whose dimensions and coordinates say where its voxels lie."""
    single = [name for name, n in given.sizes.items() if n == 1 and str(name).lower() not in "xyz"]
    given = given.isel(dict.fromkeys(single, 0))
    names = tuple(axes or (str(name).lower() for name in given.dims))
    if sorted(names) != list(default_axes(len(names))) or len(names) not in (2, 3):
        raise InputError(
            f"a DataArray with dimensions {tuple(given.dims)}: choose one of each beside x, y and "
            "z, as by isel(c=0), or pass axes"
        )
    places = [_along(given, dimension) for dimension in given.dims]
    steps = [step for _, step in places]
    if spacing is None and None in steps:
        raise InputError(
            f"nothing says how far the voxels of the DataArray lie apart along "
            f"{given.dims[steps.index(None)]}: give it a coordinate, or pass spacing"
        )
    lengths = (
        tuple(abs(step) for step in steps if step is not None)
        if spacing is None
        else _per_axis(spacing, given.shape)
    )
    # Coordinates that descend turn their axis.
    turned = np.diag([-1.0 if step is not None and step < 0 else 1.0 for step in steps])
    origin, direction = tuple(start for start, _ in places), tuple(map(tuple, turned))
    grid = Grid(given.shape, lengths, origin, direction, names, unit or _unit_of(given))
    return Image(given.data, grid, str(given.name or ""))


def _along(given: Any, dimension: Any) -> tuple[float, float | None]:
    """The first place along a dimension, and the step to the next, None where nothing says it."""
    # Asked for, a coordinate that is not there is counted from 0.
    if dimension not in given.coords:
        return 0.0, None
    return _even(np.asarray(given.coords[dimension]), str(dimension))


def _unit_of(given: Any) -> str:
    """The unit of the coordinates of a DataArray; µm where they name none."""
    known = (given.coords[dimension].attrs for dimension in given.dims)
    stated = {str(attributes["units"]) for attributes in known if attributes.get("units")}
    units = {parse_unit(unit) for unit in stated}
    if len(units) > 1:
        raise InputError(f"coordinates are in several units, {sorted(units)}: pass unit")
    return next(iter(units), "micrometer")


def _even(places: NDArray[Any], name: str) -> tuple[float, float | None]:
    """The first of some coordinates, and the step between them; None for a single one."""
    if places.dtype.kind not in "iuf" or not np.isfinite(places).all():
        raise InputError(f"the coordinates of {name} must be finite numbers; got {places.dtype}")
    if len(places) < 2:
        return float(places[0]), None
    steps = np.diff(places.astype(float))
    step = float(steps.mean())
    if not step or np.abs(steps - step).max() > _EVEN * abs(step):
        raise InputError(
            f"the coordinates of {name} are not evenly spaced: from {steps.min():g} to "
            f"{steps.max():g}. Interpolate the array on even ones first"
        )
    return float(places[0]), step


def _from_itk(given: Any, library: str, unit: str | None) -> Image:
    """An image of SimpleITK or itk, axes z, y, x."""
    lengths = unit or "micrometer"
    if library == "SimpleITK":
        return from_itk_image(given, array_axes(given.GetDimension()), lengths)
    voxels = np.array(given)
    size = tuple(map(int, given.GetLargestPossibleRegion().GetSize()))
    if voxels.shape != size[::-1]:
        raise InputError(
            f"expected one value per voxel of {size}; got an array of shape {voxels.shape}"
        )
    grid = from_itk_geometry(
        size, given.GetSpacing(), given.GetOrigin(), np.asarray(given.GetDirection()), lengths
    )
    return Image(voxels, grid.reorder(array_axes(len(size))))


def _per_axis(spacing: float | Sequence[float], shape: Sequence[int]) -> tuple[float, ...]:
    """One spacing per axis; a single number holds for all."""
    numbers = tuple(map(float, np.ravel(spacing)))
    return numbers * len(shape) if len(numbers) == 1 else numbers


def _kind(given: Any) -> str:
    return f"{type(given).__module__.partition('.')[0]}.{type(given).__name__}"
