"""Images as they are served: levels, cut into chunks, and how a viewer should draw them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Grid, Image, Slices
from itkstream.serving.pyramids import CHUNK

__all__ = ["ServedImage", "contrast_of", "place_along_axes"]

# Percentiles of the voxels that are drawn black and in full colour, as in a report.
_CONTRAST = (0.5, 99.8)
# Voxels per axis of the places that tell them, at quarters of each axis.
_PLACE = 32
# In two dimensions a chunk has as many voxels as this one has.
_PLANE_CHUNK = 512


@dataclass(frozen=True)
class ServedImage:
    """An image under a name, axes as they are stored, from fine to coarse.

    Parameters
    ----------
    name : str
        Name of its group, and of the layer.
    levels : tuple of Image
        In µm.
    tile : int
        Voxels per axis of the finest level that are computed together where those of a chunk cost
        as much, a multiple of the chunk.
    colour : str
        As CSS has it.
    contrast : (float, float)
        Values drawn black and in full colour.
    labels, visible : bool
        Whether voxels are labels, and whether it is shown at first.
    """

    name: str
    levels: tuple[Image, ...]
    tile: int = 0
    colour: str = "white"
    contrast: tuple[float, float] = (0.0, 1.0)
    labels: bool = False
    visible: bool = True

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type, as it is sent."""
        return self.levels[0].dtype.newbyteorder("<")

    @cached_property
    def chunk(self) -> tuple[int, ...]:
        """Voxels per axis of a chunk of any level."""
        ndim = self.levels[0].ndim
        return (CHUNK if ndim == 3 else _PLANE_CHUNK,) * ndim

    @property
    def chunk_bytes(self) -> int:
        """Length of a chunk as it is sent."""
        return math.prod(self.chunk) * self.dtype.itemsize

    def holds(self, level: int, index: tuple[int, ...]) -> bool:
        """Whether there is a chunk of this index."""
        if level >= len(self.levels) or len(index) != len(self.chunk):
            return False
        counts = zip(index, self.chunk, self.levels[level].shape, strict=True)
        return all(0 <= i * c < n for i, c, n in counts)

    def tile_of(self, level: int, index: tuple[int, ...]) -> tuple[Slices, Slices]:
        """The voxels that are computed for a chunk, and where it lies in them."""
        sizes = [max(c, self.tile) if level == 0 else c for c in self.chunk]
        shape = self.levels[level].shape
        first = [i * c // t * t for i, c, t in zip(index, self.chunk, sizes, strict=True)]
        tile = tuple(slice(a, min(a + t, n)) for a, t, n in zip(first, sizes, shape, strict=True))
        starts = [i * c - a for i, c, a in zip(index, self.chunk, first, strict=True)]
        return tile, tuple(slice(s, s + c) for s, c in zip(starts, self.chunk, strict=True))

    def read(self, level: int, box: Slices) -> NDArray[Any]:
        """Read or compute a box of a level."""
        return np.ascontiguousarray(self.levels[level].data[box], self.dtype)

    def whole_chunk(self, part: NDArray[Any]) -> bytes:
        """Fill a chunk that sticks out of the image up with zeros."""
        room = [(0, c - n) for c, n in zip(self.chunk, part.shape, strict=True)]
        return np.pad(part, room).tobytes() if np.any(room) else part.tobytes()


def place_along_axes(grid: Grid) -> list[float]:
    """Place of the first voxel along the image's own axes, from where the space has its origin.

    Viewers know no direction of an image; all that are served together have that of the fixed one.
    """
    return (np.asarray(grid.direction).T @ grid.origin).tolist()


def contrast_of(image: Image) -> tuple[float, float]:
    """Read a few places of an image for the values to draw black and in full colour."""
    values = []
    for place in np.ndindex(*(2 if n > _PLACE else 1 for n in image.shape)):
        middles = [(1 + 2 * p) * n // 4 for p, n in zip(place, image.shape, strict=True)]
        starts = [max(0, min(m, n - _PLACE)) for m, n in zip(middles, image.shape, strict=True)]
        box = tuple(slice(s, s + min(n, _PLACE)) for s, n in zip(starts, image.shape, strict=True))
        values.append(np.asarray(image.data[box], np.float64).ravel())
    seen = np.concatenate(values)
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        return 0.0, 1.0
    low, high = map(float, np.percentile(seen, _CONTRAST))
    return (low, high) if high > low else (low, low + 1)
