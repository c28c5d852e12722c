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
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.io.transforms.ngff.store import create_transform, read_transform, stored_axes

__all__ = ["ERROR_ARRAY", "create_inverse", "read_error_map"]

ERROR_ARRAY = "inverse_error"
"""Name of the array in a store that holds the error of every voxel of an inverse."""


def create_inverse(
    place: Location, affine: AffineTransform, grid: Grid, chunks: Sequence[int]
) -> zarr.Array[Any]:
    """Create a store for an inverse, its grid in any order of axes: the field, to be filled.

    An array for the error of every voxel lies beside it.
    """
    field = create_transform(place, affine, grid, chunks=chunks)
    order = grid.axis_order(stored_axes(grid))
    zarr.create_array(
        (place / ERROR_ARRAY).store(),
        shape=tuple(grid.shape[k] for k in order),
        dtype=np.float32,
        chunks=tuple(chunks[k] for k in order),
        dimension_names=stored_axes(grid),
    )
    return field


def read_error_map(path: str | os.PathLike[str], axes: Sequence[str] | None = None) -> Image:
    """Open the error of every voxel of a stored inverse, in voxels, on the field's lattice.

    Axes z, y, x unless others are asked for.
    """
    place = Location.parse(path) / ERROR_ARRAY
    if not (place / "zarr.json").is_file():
        raise MissingDataError(f"{path} has no {ERROR_ARRAY}: only stored inverses have one")
    array = ZarrArray.open(place)
    field = read_transform(path, array_axes(len(array.shape))).transforms[0]
    assert isinstance(field, DisplacementField)
    image = Image(ArrayView.whole(array), field.grid, str(place))
    return image.reorder(axes or field.grid.axes)
