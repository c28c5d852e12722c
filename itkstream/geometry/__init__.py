"""Value types: grids, images, blocks and transforms. Frozen, without input or output."""

from itkstream.geometry.blocks import Block, BlockGrid
from itkstream.geometry.grid import Grid, Slices, default_axes
from itkstream.geometry.image import ArraySource, ArrayView, Image

__all__ = [
    "ArraySource",
    "ArrayView",
    "Block",
    "BlockGrid",
    "Grid",
    "Image",
    "Slices",
    "default_axes",
]
