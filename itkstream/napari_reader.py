"""Registration folders in napari: fixed, moving and aligned image as multiscale lazy layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from dask.tokenize import tokenize
from numpy.typing import NDArray

from itkstream.apply.fields import axes_of
from itkstream.errors import ItkstreamError
from itkstream.geometry import Image, default_axes
from itkstream.io import open_image, open_series
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.files import read_transform
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.registration.folder import ALIGNED, REPORT, registered_images

__all__ = ["get_reader", "read_layers"]

LayerData = tuple[Any, dict[str, Any], str]

_CHUNK = 256
_COLOURS = {"fixed": "magenta", "moving": "gray", "aligned": "green"}


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Tell napari whether this package reads a path.

    Parameters
    ----------
    path : str or list of str
        What the user opened.

    Returns
    -------
    callable or None
        `read_layers` for one folder that `register` wrote; None for anything else.
    """
    if isinstance(path, list):
        return get_reader(path[0]) if len(path) == 1 else None
    try:
        ours = (Location.parse(path) / REPORT).is_file()
    except ItkstreamError:
        return None
    return read_layers if ours else None


def read_layers(path: str | list[str]) -> list[LayerData]:
    """Read a registration folder as napari's layers; voxels are read as they are shown.

    Parameters
    ----------
    path : str or list of str
        The folder.

    Returns
    -------
    list of (data, attributes, type)
        Fixed, moving and aligned image: dask arrays from fine to coarse, and the map from voxels
        to the fixed image's space in µm. The moving image goes through the affine alone
        and is hidden at first. Where the original images are no longer found, only the aligned
        one comes.
    """
    folder = Location.parse(path[0] if isinstance(path, list) else path)
    transform = read_transform(folder)
    axes = default_axes(transform.ndim)[::-1]
    layers = [_layer(open_image(str(folder / ALIGNED), axes=axes), "aligned", axes)]
    try:
        fixed, moving = registered_images(folder)
    except ItkstreamError:
        return layers
    affine = affine_part(transform)
    back = affine.inverse().reorder(axes_of(transform), axes).matrix
    return [
        _layer(fixed, "fixed", axes),
        _layer(moving, "moving", axes, back),
        *layers,
    ]


def _layer(
    image: Image, name: str, axes: tuple[str, ...], affine: NDArray[np.float64] | None = None
) -> LayerData:
    levels = [level.reorder(axes).in_unit("micrometer") for level in _levels(image)]
    spacing = levels[0].grid.spacing
    # napari scales voxels first; what is left is where the image lies and how it is turned.
    placed = levels[0].grid.matrix / [*spacing, 1.0]
    arrays = [
        da.from_array(level.data, chunks=_CHUNK, name=f"{level.name}-{tokenize(level.recipe)}")
        for level in levels
    ]
    attributes = {
        "name": name,
        "scale": spacing,
        "affine": placed if affine is None else affine @ placed,
        "units": ("micrometer",) * len(axes),
        "axis_labels": axes,
        "rgb": False,
        "multiscale": len(arrays) > 1,
        "blending": "additive",
        "colormap": _COLOURS[name],
        "visible": name != "moving",
    }
    return (arrays if len(arrays) > 1 else arrays[0]), attributes, "image"


def _levels(image: Image) -> list[Image]:
    """An image and its coarser levels; only of the first one the lattice counts."""
    recipe = {key: said for key, said in image.recipe.items() if key not in ("level", "spacing")}
    if "crop" in recipe:
        return [image]
    levels = open_series(recipe.pop("path"), "level", **recipe)
    shapes = [level.shape for level in levels]
    return [image, *levels[shapes.index(image.shape) + 1 :]]
