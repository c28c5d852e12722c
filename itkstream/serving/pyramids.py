"""Levels of an image for a viewer: those of its file, and means of these down to a small one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.sources import readable
from itkstream.geometry import ArraySource, Image, LazyArray
from itkstream.io import open_series
from itkstream.io.images.stores.ome_zarr_writer import coarsen, coarser_grids
from itkstream.io.storage.stored import keeping_chunks

__all__ = ["CHUNK", "levels_to_view", "stored_levels"]

CHUNK = 64
"""Voxels per axis of what is computed, kept and sent together."""


def stored_levels(image: Image) -> list[Image]:
    """List an image and the coarser levels of its file."""
    chosen = ("level", "spacing")  # of the first level only the lattice counts
    recipe = {key: said for key, said in image.recipe.items() if key not in chosen}
    if "path" not in recipe or "crop" in recipe:
        return [image]
    levels = open_series(recipe.pop("path"), "level", **recipe)
    shapes = [level.shape for level in levels]
    return [image, *levels[shapes.index(image.shape) + 1 :]]


def levels_to_view(image: Image, *, labels: bool = False) -> list[Image]:
    """List an image and coarser ones, as `itkstream.io.write_pyramid` goes down.

    Levels of the file are taken as they are; below the last, groups of voxels are averaged as they
    are looked at, and of labels the first is kept.
    """
    # A spacing said of the image would be taken for that of every level of its file.
    stated = "voxel_spacing" in image.recipe
    levels = [_kept(level) for level in ([image] if stated else stored_levels(image))]
    for factors, grid in coarser_grids(levels[-1].grid, labels):
        data = _Coarsened(levels[-1].data, factors, labels)
        levels.append(_kept(Image(data, grid, image.name)))
    return levels


def _kept(image: Image) -> Image:
    """Keep the chunks of an image that were read last: they are needed again beside."""
    image = readable(image)
    return replace(image, data=keeping_chunks(image.data))


@dataclass(frozen=True, eq=False)
class _Coarsened(LazyArray):
    """An array shrunk by whole factors where it is sliced."""

    source: ArraySource
    factors: tuple[int, ...]
    labels: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(-(-n // f) for n, f in zip(self.source.shape, self.factors, strict=True))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.source.dtype)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Elements per axis that are kept together."""
        return tuple(min(CHUNK, n) for n in self.shape)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        spans = zip(start, stop, self.factors, self.source.shape, strict=True)
        fine = tuple(slice(a * f, min(b * f, n)) for a, b, f, n in spans)
        return coarsen(np.asarray(self.source[fine]), self.factors, self.labels)
