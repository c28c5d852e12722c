"""Registration folders in napari: images as lazy layers, the error map, vectors, key points.

``napari --plugin itkstream FOLDER`` opens one; without the plug-in's name napari reads folders by
itself, as stacks of pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from dask.tokenize import tokenize
from numpy.typing import NDArray

from itkstream.errors import ItkstreamError
from itkstream.geometry import (
    DisplacementField,
    Grid,
    Image,
    Transform,
    default_axes,
    steps_of,
)
from itkstream.io import open_image
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.files import read_transform
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.registration.folder import ALIGNED, ERROR, REPORT, read_report, registered_images
from itkstream.serving.pyramids import stored_levels

__all__ = ["get_reader", "read_layers"]

LayerData = tuple[Any, dict[str, Any], str]

_CHUNK = 256
_COLOURS = {"fixed": "magenta", "moving": "gray", "aligned": "green"}
# Vectors along the longest axis: more hide each other.
_VECTORS = 24
# Percentiles that are black and bright, and voxels up to which all are asked, as of a coarse level.
_SHOWN = (0.5, 99.8)
_ASKED = 2**24


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
        to the fixed image's space in µm. The moving image goes through the affine alone. Hidden at
        first are that one, the error map, the displacement as vectors, thinned out, and the key
        points that told the affine, where the folder has them. Where the original images are no
        longer found, what else there is comes without them.
    """
    folder = Location.parse(path[0] if isinstance(path, list) else path)
    stored = read_transform(folder)
    axes = default_axes(stored.ndim)[::-1]
    transform = read_transform(folder, axes)
    layers = [_layer(open_image(str(folder / ALIGNED), axes=axes), "aligned", axes)]
    try:
        fixed, moving = registered_images(folder)
    except ItkstreamError:
        pass
    else:
        back = affine_part(transform).inverse().matrix
        layers = [_layer(fixed, "fixed", axes), _layer(moving, "moving", axes, back), *layers]
    return [*layers, *_error(folder, axes), *_vectors(transform), *_key_points(folder, axes)]


def _error(folder: Location, axes: tuple[str, ...]) -> list[LayerData]:
    """The radius that holds the true place with 95 % probability, in µm."""
    if not (folder / ERROR).exists():
        return []
    image = open_image(str(folder / ERROR), axes=axes)
    data, attributes, kind = _layer(image, "error (µm)", axes)
    drawn = {"colormap": "magma", "blending": "translucent", "opacity": 0.5, "multiscale": False}
    return [(data[0] if isinstance(data, list) else data, attributes | drawn, kind)]


def _vectors(transform: Transform) -> list[LayerData]:
    """The displacement at some nodes, from where points are to where the affine takes over."""
    field = next((s for s in steps_of(transform) if isinstance(s, DisplacementField)), None)
    if field is None:
        return []
    step = -(-max(field.grid.shape) // _VECTORS)
    # From the middle of the first group, so that no side has more room than the other.
    spans = [range(min(step, n) // 2, n, step) for n in field.grid.shape]
    nodes = field.grid.subsample(spans).positions()
    moves = np.asarray(field.data[tuple(slice(s.start, s.stop, s.step) for s in spans)])
    # In distances of nodes: napari shows those within half a unit of the plane it is at.
    apart = np.multiply(field.grid.spacing, step)
    ends = np.stack([nodes, moves], axis=-2).reshape(-1, 2, field.ndim) / apart
    attributes = {
        "name": "displacement",
        "scale": tuple(apart.tolist()),
        "units": ("micrometer",) * field.ndim,
        "axis_labels": field.grid.axes,
        "vector_style": "arrow",
        "edge_color": "cyan",
        "edge_width": 1 / 16,
        "visible": False,
    }
    return [(ends, attributes, "vectors")]


def _key_points(folder: Location, axes: tuple[str, ...]) -> list[LayerData]:
    """Key points of the fixed image whose matches told the affine, and those that did not agree."""
    report = read_report(folder)
    found = [step["drawn_points"] for step in report.get("steps", []) if step.get("drawn_points")]
    if not found:
        return []
    grid = Grid(**report["fixed"]["grid"])
    order = grid.axis_order(axes)
    kinds = {"agree": "lime", "differ": "red"}
    drawn = {name: found[0][name] for name in kinds if found[0].get(name)}
    points = np.concatenate([np.asarray(points)[:, order] for points in drawn.values()])
    attributes = {
        "name": "key points",
        "units": ("micrometer",) * len(axes),
        "axis_labels": axes,
        "size": 6 * min(grid.in_unit("micrometer").spacing),
        "face_color": [kinds[name] for name, points in drawn.items() for _ in points],
        "visible": False,
    }
    return [(points, attributes, "points")]


def _layer(
    image: Image, name: str, axes: tuple[str, ...], affine: NDArray[np.float64] | None = None
) -> LayerData:
    levels = [level.reorder(axes).in_unit("micrometer") for level in stored_levels(image)]
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
        "colormap": _COLOURS.get(name, "gray"),
        "visible": name in ("fixed", "aligned"),
    }
    window = _window(levels[-1])
    attributes |= {"contrast_limits": window} if window else {}
    return (arrays if len(arrays) > 1 else arrays[0]), attributes, "image"


def _window(level: Image) -> tuple[float, float] | None:
    """The values to be black and bright: napari itself finds none for a layer that is hidden."""
    middle = level.shape[0] // 2
    part = level if level.grid.size <= _ASKED else level[middle : middle + 1]
    voxels = part.read()
    known = voxels[np.isfinite(voxels)]
    if not known.size or known.min() == known.max():
        return None
    low, high = np.percentile(known, _SHOWN)
    return (float(low), float(high)) if low < high else (float(known.min()), float(known.max()))
