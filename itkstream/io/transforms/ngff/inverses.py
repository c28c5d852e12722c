"""Stores of inverses: a field and the affine after it, and the error of every voxel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr

from itkstream.errors import MissingDataError
from itkstream.geometry import (
    AffineTransform,
    ArrayView,
    DisplacementField,
    Grid,
    Image,
    array_axes,
)
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import ZarrArray, written_codecs
from itkstream.io.transforms.ngff.store import (
    FIELD_ARRAY,
    create_transform,
    read_transform,
    stored_axes,
)

__all__ = ["SOLUTION", "create_inverse", "inverse_parts", "read_error_map"]

_ERROR = "inverse_error"

SOLUTION = "solution"
"""Name of the array that holds vectors and errors together until all are there."""


def create_inverse(
    place: Location, affine: AffineTransform, grid: Grid, chunks: Sequence[int]
) -> zarr.Array[Any]:
    """Create the store of an inverse on a grid, in any order of axes, for block writers.

    Gives the array for its solution, (n + 1,) + stored shape: vectors as `as_stored` makes them,
    then errors in voxels. Each component has chunks of its own, so that it is read alone.
    """
    create_transform(place, affine, grid, chunks=chunks)
    order = grid.axis_order(stored_axes(grid))
    shape, cut = (tuple(sizes[k] for k in order) for sizes in (grid.shape, chunks))
    zarr.create_array(
        (place / _ERROR).store(),
        shape=shape,
        dtype=np.float32,
        chunks=cut,
        dimension_names=stored_axes(grid),
    )
    return zarr.create_array(
        (place / SOLUTION).store(),
        shape=(grid.ndim + 1, *shape),
        dtype=np.float32,
        chunks=(1, *cut),
        compressors=written_codecs(),
    )


def inverse_parts(place: Location) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
    """Open the field and the errors of a store that `create_inverse` made, to be filled."""
    field, errors = (zarr.open_array((place / n).store(), mode="r+") for n in (FIELD_ARRAY, _ERROR))
    return field, errors


def read_error_map(path: str | os.PathLike[str], axes: Sequence[str] | None = None) -> Image:
    """Open the error of every voxel of a stored inverse, in voxels, on the field's lattice.

    Axes z, y, x unless others are asked for.
    """
    place = Location.parse(path) / _ERROR
    if not (place / "zarr.json").is_file():
        raise MissingDataError(f"{path} has no {_ERROR}: only stored inverses have one")
    array = ZarrArray.open(place)
    field = read_transform(path, array_axes(len(array.shape))).transforms[0]
    assert isinstance(field, DisplacementField)
    image = Image(ArrayView.whole(array), field.grid, str(place))
    return image.reorder(axes or field.grid.axes)
