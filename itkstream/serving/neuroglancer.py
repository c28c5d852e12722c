"""A link that opens images of this server in neuroglancer.

References
----------
https://github.com/google/neuroglancer
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from itkstream.serving.images import ServedImage, place_along_axes

__all__ = ["VIEWER", "link_to", "unseen_by_neuroglancer"]

VIEWER = "https://neuroglancer-demo.appspot.com"
"""The neuroglancer of its authors."""

_SHOWN = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32")
_METRES = 1e-6
# Pixels of a panel along its longer side, about.
_PANEL = 500
_SHADER = """#uicontrol invlerp contrast(range=[{low}, {high}])
#uicontrol vec3 colour color(default="{colour}")
void main() {{
  emitRGB(colour * contrast());
}}
"""


def link_to(address: str, images: Mapping[str, ServedImage], viewer: str = VIEWER) -> str:
    """Make the link to a viewer that shows all images of a server as layers, laid over each other.

    It holds the server's address and how the layers are drawn; nothing is sent by making it.
    """
    grid = next(iter(images.values())).levels[0].grid
    names = ("x", "y", "z")[: grid.ndim]
    places = grid.reorder(names)
    finest = min(places.spacing)
    extent = max(n * s for n, s in zip(places.shape, places.spacing, strict=True))
    centre = np.divide(place_along_axes(places), places.spacing) + np.divide(places.shape, 2)
    state: dict[str, Any] = {
        "dimensions": {
            name: [spacing * _METRES, "m"]
            for name, spacing in zip(names, places.spacing, strict=True)
        },
        "position": centre.tolist(),
        "crossSectionScale": extent / finest / _PANEL,
        "projectionScale": extent / finest,
        "layers": [_layer(f"{address}/{group}", image) for group, image in images.items()],
        "layout": "4panel" if grid.ndim == 3 else "xy",
    }
    return f"{viewer.rstrip('/')}/#!{quote(json.dumps(state, separators=(',', ':')))}"


def unseen_by_neuroglancer(image: ServedImage) -> bool:
    """Whether an image has a voxel type that neuroglancer does not read."""
    return image.dtype.name not in _SHOWN


def _layer(source: str, image: ServedImage) -> dict[str, Any]:
    layer: dict[str, Any] = {"source": f"zarr3://{source}", "name": image.name}
    if not image.visible:
        layer["visible"] = False
    if image.labels:
        return {"type": "segmentation", **layer}
    low, high = image.contrast
    if image.dtype.kind in "iu":
        low, high = round(low), max(round(high), round(low) + 1)
    shader = _SHADER.format(low=low, high=high, colour=image.colour)
    return {"type": "image", **layer, "shader": shader, "blend": "additive", "opacity": 1}
