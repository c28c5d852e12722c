"""A registration as an OME-Zarr 0.6 scene: a displacement field, then an affine.

Layout of the store: the group ``displacement`` is an ordinary multiscale image whose first axis
has the type ``displacement``; the root's ``ome.scene`` holds the transformation from the
coordinate system ``fixed`` to ``moving`` as a sequence of that field and an affine. Components and
matrices are in array-axis order, as NGFF and this package both have it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    ArrayView,
    CompositeTransform,
    DisplacementField,
    Grid,
)
from itkstream.io.outputs import claim_store
from itkstream.io.zarr_arrays import ZarrArray, zarr_attributes

__all__ = ["create_transform", "read_transform"]

_FIELD = "displacement"


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
        The new store.
    affine : AffineTransform
        Acts after the displacement.
    grid : Grid
        The field's lattice.
    chunks : sequence of int
        Voxels per chunk and axis; components stay together.
    overwrite : bool
        Replace a Zarr store that is there.

    Returns
    -------
    zarr.Array, (n,) + grid.shape, float32
        The field, component first, to be filled.

    Raises
    ------
    ExistingOutputError
        Where something is there that may not be replaced.
    """
    folder = Path(path).expanduser().absolute()
    claim_store(folder, overwrite)
    zarr.create_group(str(folder), zarr_format=3, attributes=_scene(affine, grid))
    group = zarr.create_group(
        str(folder / _FIELD), zarr_format=3, attributes={"ome": _multiscale(grid)}
    )
    return group.create_array(
        "0",
        shape=(grid.ndim, *grid.shape),
        dtype=np.float32,
        chunks=(grid.ndim, *(min(c, n) for c, n in zip(chunks, grid.shape, strict=True))),
        dimension_names=("c", *grid.axes),
    )


def read_transform(path: str | os.PathLike[str]) -> CompositeTransform:
    """Open the store of a registration; the field stays on disk.

    Parameters
    ----------
    path : path
        As given to `create_transform`.

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
    folder = Path(path).expanduser().absolute()
    if not (folder / "zarr.json").is_file():
        raise MissingDataError(f"there is no transform store {path}")
    attributes = zarr_attributes(folder)
    try:
        steps = attributes["ome"]["scene"]["coordinateTransformations"][0]["transformations"]
        affine = np.vstack([steps[1]["affine"], np.eye(len(steps[1]["affine"]) + 1)[-1]])
        grid = Grid(**attributes["itkstream"]["grid"])
        array = ZarrArray.open(folder / steps[0]["path"] / "0")
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{path} holds no displacement field followed by an affine, as itkstream register "
            "writes it"
        ) from error
    data = ArrayView.whole(array).transpose((*range(1, grid.ndim + 1), 0))
    return CompositeTransform((DisplacementField(data, grid), AffineTransform(affine)))


def _scene(affine: AffineTransform, grid: Grid) -> dict[str, Any]:
    systems = [{"name": name, "axes": _axes(grid)} for name in ("fixed", "moving")]
    sequence = {
        "type": "sequence",
        "name": "registration",
        "input": {"name": "fixed"},
        "output": {"name": "moving"},
        "transformations": [
            {"type": "displacements", "path": _FIELD, "interpolation": "linear"},
            {"type": "affine", "affine": affine.matrix[:-1].tolist()},
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
        "itkstream": {"grid": own},
    }


def _axes(grid: Grid) -> list[dict[str, Any]]:
    return [{"name": name, "type": "space", "unit": grid.unit} for name in grid.axes]


def _multiscale(grid: Grid) -> dict[str, Any]:
    component = {"name": "c", "type": "displacement", "discrete": True}
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
                "coordinateSystems": [{"name": "intrinsic", "axes": [component, *_axes(grid)]}],
                "datasets": [{"path": "0", "coordinateTransformations": [to_physical]}],
            }
        ],
    }
