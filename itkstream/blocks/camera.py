"""Images without what their camera adds to every plane (`itkstream.numerics.camera`).

A pattern is as large as a plane. It is found in tiles of it, from a sample of planes spread over
the stack, and taken out as the image is read, part by part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.sources import readable
from itkstream.geometry import ArraySource, Block, BlockGrid, Grid, Image, LazyArray, Slices
from itkstream.io.storage.stored import tiles
from itkstream.numerics.camera import MARGIN, count_pattern, find_pattern, repair_planes

__all__ = [
    "can_tell_pattern",
    "describe_pattern",
    "prepare_pattern",
    "read_pattern",
    "shows_pattern",
    "without_pattern",
]

# A tile is about a camera's image: what is put together of many is judged camera by camera.
_TILE = 2048
# Pixels per axis of a look at a larger plane; all of it is read only where one shows something.
_LOOK = 512
_LOOKS = ((0.5, 0.5), (0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8))
# Places along the stack, and neighbouring planes at each, whose noise their mean lowers.
_PLACES, _PLANES = 8, 3
# In fewer planes, and pixels, tissue stays where it is too.
_LEAST_PLANES = 2 * _PLACES
_LEAST_PIXELS = 16


def can_tell_pattern(grid: Grid) -> bool:
    """Whether an image is a stack of planes in which a camera's pattern can be told from tissue."""
    if grid.ndim == 2:
        return False
    planes = grid.shape[_across(grid)]
    return planes >= _LEAST_PLANES and min(_plane_shape(grid)) >= _LEAST_PIXELS


def shows_pattern(image: Image) -> bool:
    """Whether a few looks at the planes of an image show what its camera adds to each."""
    plane, across = _plane_shape(image.grid), _across(image.grid)
    looks = _LOOKS if max(plane) > 2 * _LOOK else _LOOKS[:1]
    size = _LOOK if max(plane) > 2 * _LOOK else max(plane)
    for place in looks:
        spans = []
        for n, share in zip(plane, place, strict=True):
            start = round(share * max(0, n - size))
            spans.append(slice(start, min(n, start + size)))
        if np.any(find_pattern(_sample(image.data, tuple(spans), across))):
            return True
    return False


def prepare_pattern(image: Image) -> da.Array:
    """Prepare to find what the camera of an image adds to every plane, tile by tile.

    Lazy, of the shape of a plane: to be subtracted, and NaN where a pixel says nothing.
    """
    shared = {"image": image.data, "across": _across(image.grid)}
    return map_blocks(_pattern_tile, _tiles(image.grid), None, shared, Result(np.float32))


def read_pattern(image: Image) -> NDArray[np.float32]:
    """Find what the camera of an image in memory adds to every plane, here and now."""
    out = np.empty(_plane_shape(image.grid), np.float32)
    for block in _tiles(image.grid):
        out[block.core] = _pattern_tile(None, block, image=image.data, across=_across(image.grid))
    return out


def describe_pattern(pattern: ArraySource, grid: Grid) -> dict[str, Any]:
    """Say what a pattern holds, for a report; empty where it holds nothing.

    Single pixels, lines along each axis of a plane, and the deviation of what every pixel adds.
    """
    names = [axis for axis in grid.axes if axis != "z"]
    pixels, lines, noise = 0, [0, 0], 0.0
    for tile in tiles(pattern.shape, (_TILE,) * 2):
        found = count_pattern(np.asarray(pattern[tile]))
        pixels, noise = pixels + found.pixels, max(noise, found.noise)
        lines = [a + b for a, b in zip(lines, found.lines, strict=True)]
    if not (pixels or any(lines) or noise):
        return {}
    along = {f"lines_along_{name}": n for name, n in zip(names, lines, strict=True)}
    return {"pixels": pixels, **along, "noise": noise}


def without_pattern(image: Image, pattern: ArraySource) -> Image:
    """An image without a pattern; read only when the result is."""
    return Image(_Repaired(readable(image), pattern), image.grid, image.name)


@dataclass(frozen=True, eq=False)
class _Repaired(LazyArray):
    """The voxels of an image without what its camera adds to every plane."""

    image: Image
    pattern: ArraySource

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.image.dtype

    @property
    def chunk_shape(self) -> tuple[int, ...] | None:
        return self.image.chunk_shape

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        across = _across(self.image.grid)
        box, inner = [], []
        for axis, (a, b, n) in enumerate(zip(start, stop, self.shape, strict=True)):
            room = 0 if axis == across else MARGIN
            low = max(0, a - room)
            box.append(slice(low, min(n, b + room)))
            inner.append(slice(a - low, b - low))
        plane = tuple(span for axis, span in enumerate(box) if axis != across)
        voxels = np.moveaxis(self.image[tuple(box)].read(), across, 0)
        repaired = repair_planes(voxels, np.asarray(self.pattern[plane]))
        return np.moveaxis(repaired, 0, across)[tuple(inner)]


def _across(grid: Grid) -> int:
    """The axis along which planes follow each other."""
    return grid.axes.index("z")


def _plane_shape(grid: Grid) -> tuple[int, ...]:
    return tuple(n for axis, n in enumerate(grid.shape) if axis != _across(grid))


def _tiles(grid: Grid) -> BlockGrid:
    return BlockGrid(_plane_shape(grid), (_TILE,) * 2)


def _pattern_tile(
    _part: None, block: Block, *, image: ArraySource, across: int
) -> NDArray[np.float32]:
    """The pattern in a tile of the plane."""
    return find_pattern(_sample(image, block.core, across))


def _sample(image: ArraySource, plane: Slices, across: int) -> NDArray[np.float32]:
    """Means of a few neighbouring planes at some places along the stack, far apart."""
    starts = np.linspace(0, image.shape[across] - _PLANES, _PLACES + 2)[1:-1].astype(int).tolist()
    means = []
    for start in starts:
        box = (*plane[:across], slice(start, start + _PLANES), *plane[across:])
        means.append(np.asarray(image[box]).mean(axis=across, dtype=np.float32))
    return np.stack(means)
