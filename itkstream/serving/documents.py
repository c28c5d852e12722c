"""The paths of a server of images: metadata of Zarr 3 and OME-Zarr 0.5, and chunks.

References
----------
https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from itkstream.geometry import Grid
from itkstream.io.images.stores.ome_zarr import space_axes
from itkstream.serving.images import ServedImage, place_along_axes
from itkstream.serving.tiles import TileCache

__all__ = ["Document", "Documents"]

_METADATA = "zarr.json"
# Numbers as Zarr writes them, without zeros in front, and no longer than any there is.
_NUMBER = r"(?:0|[1-9]\d{0,8})"
_CHUNK_PATH = re.compile(rf"({_NUMBER})/c/({_NUMBER}(?:/{_NUMBER})*)")
_ARRAY_PATH = re.compile(rf"({_NUMBER})/{_METADATA}")


@dataclass(frozen=True)
class Document:
    """A file that a path leads to: its type, its length, and the function that makes it."""

    type: str
    length: int
    read: Callable[[], bytes]


class Documents:
    """All that is served: images under their names, and what belongs to each."""

    def __init__(self, images: Mapping[str, ServedImage], tiles: TileCache) -> None:
        self._images = dict(images)
        self._tiles = tiles

    def find(self, path: str) -> Document | None:
        """Find what lies at a path below the server's address; None where nothing does."""
        start, group, inside = (*path.split("/", 2), "", "")[:3]
        image = None if start else self._images.get(group)
        if image is None:
            return None
        if inside == _METADATA:
            return _as_json(_describe_group(image))
        if found := _ARRAY_PATH.fullmatch(inside):
            level = int(found[1])
            return _as_json(_describe_array(image, level)) if level < len(image.levels) else None
        if found := _CHUNK_PATH.fullmatch(inside):
            level, index = int(found[1]), tuple(map(int, found[2].split("/")))
            if image.holds(level, index):
                read = partial(self._chunk, group, level, index)
                return Document("application/octet-stream", image.chunk_bytes, read)
        return None

    def _chunk(self, group: str, level: int, index: tuple[int, ...]) -> bytes:
        image = self._images[group]
        box, inside = image.tile_of(level, index)
        key = (group, level, *(s.start for s in box))
        tile = self._tiles.get(key, partial(image.read, level, box))
        return image.whole_chunk(tile[inside])


def _as_json(content: dict[str, Any]) -> Document:
    text = json.dumps(content).encode()
    return Document("application/json", len(text), lambda: text)


def _describe_group(image: ServedImage) -> dict[str, Any]:
    """Metadata of a multiscale image; with those of its arrays, as nobody can list a server."""
    grids = [level.grid for level in image.levels]
    datasets = [
        {"path": str(level), "coordinateTransformations": _steps(grid)}
        for level, grid in enumerate(grids)
    ]
    multiscale = {"name": image.name, "axes": space_axes(grids[0]), "datasets": datasets}
    arrays = {str(level): _describe_array(image, level) for level in range(len(grids))}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"ome": {"version": "0.5", "multiscales": [multiscale]}},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }


def _steps(grid: Grid) -> list[dict[str, Any]]:
    """Scale and translation of a level along the image's own axes."""
    return [
        {"type": "scale", "scale": list(grid.spacing)},
        {"type": "translation", "translation": place_along_axes(grid)},
    ]


def _describe_array(image: ServedImage, level: int) -> dict[str, Any]:
    """Metadata of a level: chunks of plain numbers, little end first."""
    grid = image.levels[level].grid
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(grid.shape),
        "data_type": image.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(image.chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "fill_value": False if image.dtype.kind == "b" else 0,
        "dimension_names": list(grid.axes),
        "attributes": {},
    }
