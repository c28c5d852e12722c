"""Value types: grids, images, blocks and transforms. Frozen, without input or output."""

from itkstream.geometry.blocks import Block, BlockGrid
from itkstream.geometry.chains import CompositeTransform, compose, named_axes, steps_of, with_axes
from itkstream.geometry.grid import Grid, Slices, array_axes, axis_order, box_shape, default_axes
from itkstream.geometry.image import ChannelPair, Image, joined_channels
from itkstream.geometry.landmarks import Landmarks
from itkstream.geometry.lazy_array import ArraySource, ArrayView, LazyArray, transposed
from itkstream.geometry.splines import BSplineTransform, LandmarkSpline
from itkstream.geometry.transforms import (
    AffineTransform,
    DisplacementField,
    PiecewiseAffine,
    Transform,
)

__all__ = [
    "AffineTransform",
    "ArraySource",
    "ArrayView",
    "BSplineTransform",
    "Block",
    "BlockGrid",
    "ChannelPair",
    "CompositeTransform",
    "DisplacementField",
    "Grid",
    "Image",
    "LandmarkSpline",
    "Landmarks",
    "LazyArray",
    "PiecewiseAffine",
    "Slices",
    "Transform",
    "array_axes",
    "axis_order",
    "box_shape",
    "compose",
    "default_axes",
    "joined_channels",
    "named_axes",
    "steps_of",
    "transposed",
    "with_axes",
]


def __dir__() -> list[str]:
    return __all__
