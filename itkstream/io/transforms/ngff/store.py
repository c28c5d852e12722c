"""A registration as an OME-Zarr 0.6 scene: a displacement field, then an affine.

Layout of the store: the group ``displacement`` is an ordinary multiscale image whose first axis
has the type ``displacement``; the root's ``ome.scene`` holds the transformation from the
coordinate system ``fixed`` to ``moving`` as a sequence of that field and an affine. On disk axes,
components and matrices are in the order z, y, x, which NGFF readers expect.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    ArrayView,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    array_axes,
)
from itkstream.io.images.stores.ome_zarr import space_axes
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_store
from itkstream.io.storage.stored import tiles
from itkstream.io.storage.zarr_arrays import ZarrArray, written_codecs
from itkstream.io.transforms.ngff.scene import read_scene

__all__ = [
    "ERROR_ARRAY",
    "FIELD_ARRAY",
    "as_stored",
    "create_error_map",
    "create_transform",
    "read_error_map",
    "read_transform",
    "stored_axes",
    "write_store",
]

_FIELD = "displacement"
FIELD_ARRAY = f"{_FIELD}/0"
"""Where the displacement field lies in its store."""

ERROR_ARRAY = "inverse_error"
_CHUNK = 64


def create_transform(
    path: str | os.PathLike[str],
    affine: AffineTransform,
    grid: Grid,
    *,
    chunks: Sequence[int],
    overwrite: bool = False,
) -> zarr.Array[Any]:
    """Create the store of a registration with an empty displacement field, for block writers.

    Parameters
    ----------
    path : path
        The new store, a path or a URL.
    affine : AffineTransform
        Acts after the displacement.
    grid : Grid
        The field's lattice, in any order of axes.
    chunks : sequence of int
        Voxels per chunk and axis; components stay together.
    overwrite : bool
        Replace a Zarr store that is there, at once.

    Returns
    -------
    zarr.Array, (n,) + stored shape, float32
        The field, to be filled with what `as_stored` makes of it.

    Raises
    ------
    ExistingOutputError
        Where something is there that may not be replaced.
    """
    folder = claim_store(path, overwrite)
    order = grid.axis_order(stored_axes(grid))
    stored = grid.reorder(stored_axes(grid))
    matrix = affine.reorder(grid.axes, stored.axes).matrix
    zarr.create_group(folder.store(), zarr_format=3, attributes=_scene(matrix, stored, grid.axes))
    group = zarr.create_group(
        folder.child(_FIELD).store(), zarr_format=3, attributes={"ome": _multiscale(stored)}
    )
    return group.create_array(
        "0",
        shape=(grid.ndim, *stored.shape),
        dtype=np.float32,
        chunks=(grid.ndim, *(min(chunks[k], grid.shape[k]) for k in order)),
        dimension_names=("c", *stored.axes),
        compressors=written_codecs(),
    )


def create_error_map(
    path: str | os.PathLike[str], grid: Grid, *, chunks: Sequence[int]
) -> zarr.Array[Any]:
    """Create an array for the error of every voxel beside the field of a store.

    Parameters
    ----------
    path : path
        A store that `create_transform` made.
    grid : Grid
        The field's lattice, in any order of axes.
    chunks : sequence of int
        Voxels per chunk and axis.

    Returns
    -------
    zarr.Array, stored shape, float32
        To be filled.
    """
    order = grid.axis_order(stored_axes(grid))
    return zarr.create_array(
        (Location.parse(path) / ERROR_ARRAY).store(),
        shape=tuple(grid.shape[k] for k in order),
        dtype=np.float32,
        chunks=tuple(chunks[k] for k in order),
        dimension_names=stored_axes(grid),
    )


def read_error_map(path: str | os.PathLike[str], axes: Sequence[str] | None = None) -> Image:
    """Open the error of every voxel of a stored inverse, in voxels.

    Parameters
    ----------
    path : path
        A store that `itkstream.apply.products.write_inverse` made.
    axes : sequence of str, optional
        The wanted order of axes; default the stored one, z, y, x.

    Returns
    -------
    Image
        Lazy, on the field's lattice.

    Raises
    ------
    MissingDataError
        Where the store has none.
    """
    place = Location.parse(path) / ERROR_ARRAY
    if not (place / "zarr.json").is_file():
        raise MissingDataError(f"{path} has no {ERROR_ARRAY}: only stored inverses have one")
    array = ZarrArray.open(place)
    field = read_transform(path, array_axes(len(array.shape))).transforms[0]
    assert isinstance(field, DisplacementField)
    image = Image(ArrayView.whole(array), field.grid, str(place))
    return image.reorder(axes or field.grid.axes)


def write_store(
    path: str | os.PathLike[str], field: DisplacementField, affine: AffineTransform
) -> None:
    """Write a displacement field and the affine after it as a store, chunk by chunk.

    Parameters
    ----------
    path : Path
        The new store.
    field : DisplacementField
        Acts first; it may be stored and larger than memory. Kept as float32.
    affine : AffineTransform
        Acts on what the field gives.

    Raises
    ------
    ExistingOutputError
        Where something is there.
    """
    grid = field.grid
    chunks = tuple(min(_CHUNK, n) for n in grid.shape)
    target = create_transform(path, affine, grid, chunks=chunks)
    order = grid.axis_order(stored_axes(grid))
    for box in tiles(grid.shape, chunks):
        part = np.asarray(field.data[(*box, slice(None))])
        target[(slice(None), *(box[k] for k in order))] = as_stored(part, grid.crop(box))


def stored_axes(grid: Grid) -> tuple[str, ...]:
    """The order of axes in a store.

    Parameters
    ----------
    grid : Grid
        2-D or 3-D.

    Returns
    -------
    tuple of str
        ``("z", "y", "x")`` or ``("y", "x")``.
    """
    return array_axes(grid.ndim)


def as_stored(field: Any, grid: Grid) -> Any:
    """A displacement field as `create_transform` stores it.

    Parameters
    ----------
    field : numpy.ndarray or dask.array.Array, grid.shape + (n,)
        Vectors in array-axis order; further components stay behind them.
    grid : Grid
        Its lattice.

    Returns
    -------
    numpy.ndarray or dask.array.Array, (n,) + stored shape
        Lazy where the field is.
    """
    order = grid.axis_order(stored_axes(grid))
    further = range(grid.ndim, field.shape[-1])
    return field.transpose(grid.ndim, *order)[[*order, *further]]


def read_transform(
    path: str | os.PathLike[str], axes: Sequence[str] | None = None
) -> CompositeTransform:
    """Open the store of a registration; the field stays on disk.

    Parameters
    ----------
    path : path
        As given to `create_transform`.
    axes : sequence of str, optional
        The wanted order of axes and components; default that of the grid it was made with.

    Returns
    -------
    CompositeTransform
        The displacement field, then the affine.

    Raises
    ------
    MissingDataError
        Where there is no store.
    InputError
        Where the store is no registration of this kind.
    """
    found = read_scene(Location.parse(path), axes)
    if isinstance(found, CompositeTransform):
        return found
    raise InputError(
        f"{path} holds no displacement field followed by an affine, as itkstream register writes it"
    )


def _scene(matrix: NDArray[np.float64], grid: Grid, axes: tuple[str, ...]) -> dict[str, Any]:
    """Metadata of the root; `axes` are those of the points before they were stored."""
    systems = [{"name": name, "axes": space_axes(grid)} for name in ("fixed", "moving")]
    sequence = {
        "type": "sequence",
        "name": "registration",
        "input": {"name": "fixed"},
        "output": {"name": "moving"},
        "transformations": [
            {"type": "displacements", "path": _FIELD, "interpolation": "linear"},
            {"type": "affine", "affine": matrix[:-1].tolist()},
        ],
    }
    own = {
        "shape": grid.shape,
        "spacing": grid.spacing,
        "origin": grid.origin,
        "direction": grid.direction,
        "axes": grid.axes,
        "unit": grid.unit,
    }
    return {
        "ome": {
            "version": "0.6",
            "scene": {"coordinateSystems": systems, "coordinateTransformations": [sequence]},
        },
        # NGFF has no word for a direction matrix on the field's own lattice; the whole grid
        # stands here, and its scale and translation in the field's metadata as well.
        # The transform is handed out with the axes it came with, unless others are asked for.
        "itkstream": {"grid": own, "axes": axes},
    }


def _multiscale(grid: Grid) -> dict[str, Any]:
    axes = [{"name": "c", "type": "displacement", "discrete": True}, *space_axes(grid)]
    to_physical = {
        "type": "sequence",
        "input": {"path": "0"},
        "output": {"name": "intrinsic"},
        "transformations": [
            {"type": "scale", "scale": [1.0, *grid.spacing]},
            {"type": "translation", "translation": [0.0, *grid.origin]},
        ],
    }
    return {
        "version": "0.6",
        "multiscales": [
            {
                "name": _FIELD,
                "coordinateSystems": [{"name": "intrinsic", "axes": axes}],
                "datasets": [{"path": "0", "coordinateTransformations": [to_physical]}],
            }
        ],
    }
