"""A part of the fixed image, and the part of the moving one that it may lie in."""

from __future__ import annotations

from typing import Any

import numpy as np

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Grid, Image, Slices, Transform
from itkstream.io import open_image
from itkstream.io.images.crop import crop_slices, crop_text
from itkstream.numerics.sampling.mapping import affine_part

__all__ = ["cropped", "cropped_pair"]

# On either side the moving part is larger than the fixed one by this share of its length: nobody
# knows yet how far apart they are.
_MARGIN = 0.5


def cropped_pair(
    pair: tuple[Image, Image], crop: Any, initial: Transform | None
) -> tuple[Image, Image]:
    """Cut both images: the fixed one as it is said, the moving one around where that may lie.

    `initial` says where that is, default where the images' own positions put it. Positions stay
    those of the whole images. Raises an `InputError` for a crop that is none, or empty.
    """
    fixed, moving = pair
    box = crop_slices(crop_text(crop), fixed.grid)
    here = fixed.grid.crop(box)
    return cropped(fixed, box), cropped(moving, _around(here, moving, initial))


def cropped(image: Image, box: Slices) -> Image:
    """Cut an image; one that was opened from a file can be opened so again."""
    if "path" not in image.recipe:
        return image[box]
    if "crop" in image.recipe:
        raise InputError(f"{image.name} is cropped already: give one crop for it")
    # The file's axes may be in another order than those the image was given by now.
    stored = open_image(**image.recipe).grid.axes
    spans = [box[image.grid.axes.index(axis)] for axis in stored]
    opened = open_image(**image.recipe, crop=spans)
    return opened.reorder(image.grid.axes).in_unit(image.grid.unit)


def _around(grid: Grid, moving: Image, initial: Transform | None) -> Slices:
    """The moving voxels in which a fixed box may lie."""
    affine = affine_part(initial) if initial is not None else AffineTransform(np.eye(grid.ndim + 1))
    within = grid.in_unit("micrometer").reorder(moving.grid.axes)
    corners = affine.reorder(grid.axes, moving.grid.axes).apply(within.corners())
    index = moving.grid.in_unit("micrometer").to_index(corners)
    low, high = index.min(axis=0), index.max(axis=0)
    margin = _MARGIN * (high - low)
    starts = np.maximum(np.floor(low - margin), 0).astype(int)
    stops = np.minimum(np.ceil(high + margin) + 1, moving.shape).astype(int)
    if (stops <= starts).any():
        raise InputError(
            f"the moving image {moving.name} shows nothing near the crop: give an initial "
            "transform (--initial) that says where it is, or another crop"
        )
    return tuple(slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))
