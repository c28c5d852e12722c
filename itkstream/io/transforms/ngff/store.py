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

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, CompositeTransform, Grid, array_axes
from itkstream.geometry.chains import FieldChain
from itkstream.io.images.stores.ome_zarr import space_axes
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_store
from itkstream.io.storage.stored import tiles
from itkstream.io.storage.zarr_arrays import written_codecs
from itkstream.io.transforms.ngff.scene import read_scene

__all__ = [
    "FIELD_ARRAY",
    "as_stored",
    "create_transform",
    "read_transform",
    "stored_axes",
    "write_store",
]

_FIELD = "displacement"
FIELD_ARRAY = f"{_FIELD}/0"
"""Path of the displacement field in its store."""

_CHUNK = 64


def create_transform(
    path: str | os.PathLike[str],
    affine: AffineTransform,
    grid: Grid,
    *,
    chunks: Sequence[int],
    overwrite: bool = False,
) -> zarr.Array[Any]:
    """Create a new store with an affine after an empty field on a grid, for block writers.

    Gives the field, (n,) + stored shape, to be filled with what `as_stored` makes; its components
    share the chunks, which are in the order of the grid. `overwrite` replaces a store at once.
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


def write_store(path: str | os.PathLike[str], chain: FieldChain) -> None:
    """Write a field, as float32, and the affine after it as a new store, chunk by chunk."""
    field = chain.field
    grid = field.grid
    chunks = tuple(min(_CHUNK, n) for n in grid.shape)
    target = create_transform(path, chain.affine, grid, chunks=chunks)
    order = grid.axis_order(stored_axes(grid))
    for box in tiles(grid.shape, chunks):
        part = np.asarray(field.data[(*box, slice(None))])
        target[(slice(None), *(box[k] for k in order))] = as_stored(part, grid.crop(box))


def stored_axes(grid: Grid) -> tuple[str, ...]:
    """The order of axes in a store: z, y, x, or y, x."""
    return array_axes(grid.ndim)


def as_stored(field: Any, grid: Grid) -> Any:
    """A field, grid.shape + (n,), as it is stored, (n,) + stored shape; lazy where it is.

    Further components stay behind the vectors.
    """
    order = grid.axis_order(stored_axes(grid))
    further = range(grid.ndim, field.shape[-1])
    return field.transpose(grid.ndim, *order)[[*order, *further]]


def read_transform(
    path: str | os.PathLike[str], axes: Sequence[str] | None = None
) -> CompositeTransform:
    """Open the store of a registration; the field stays on disk.

    Axes as of the grid that it was made with, unless others are asked for.
    """
    found = read_scene(Location.parse(path), axes)
    if isinstance(found, CompositeTransform):
        return found
    raise InputError(
        f"{path} holds no displacement field followed by an affine, as itkstream register writes it"
    )


def _scene(matrix: NDArray[np.float64], grid: Grid, axes: tuple[str, ...]) -> dict[str, Any]:
    """The metadata of the root; `axes` are those of the points before they were stored."""
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
