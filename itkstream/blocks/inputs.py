"""Arguments of the public functions made into images, and checked once, here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.masks import Mask, masked
from itkstream.blocks.sources import readable
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    AffineTransform,
    ArraySource,
    BlockGrid,
    Grid,
    Image,
    Transform,
    transposed,
)
from itkstream.geometry.grid import UNIT_SIGNS
from itkstream.numerics.sampling.mapping import map_on

__all__ = [
    "as_pair",
    "block_grid",
    "check_one_channel",
    "check_start",
    "default_overlap",
    "reversed_axes",
]

# Points per axis of the fixed image that say where a transform leads.
_POINTS = 24

_SPACINGS = {"fixed": "fix_spacing", "moving": "mov_spacing"}

# An image that is so many times as large as the other along every axis has another unit.
_TOO_LARGE = 50


def as_pair(
    fix: Any,
    mov: Any,
    fix_spacing: Sequence[float] | None,
    mov_spacing: Sequence[float] | None,
    transpose: Sequence[bool] = (False, False),
    masks: tuple[Mask | None, Mask | None] = (None, None),
) -> tuple[Image, Image]:
    """The fixed and the moving image, with the same axes and in µm.

    Images are `Image`s, or numpy, dask or stored arrays of 2 or 3 axes with the µm per
    voxel of their axes after `transpose`, which reverses the stored axes (z, y, x) and those of a
    mask that is an array. The moving image's axes come in the fixed image's order; voxels that do
    not count are NaN. Raises `InputError` where an image is no array, lacks a spacing, or the two
    differ in dimension, and where a mask does not fit.
    """
    fixed = _as_image(fix, fix_spacing, transpose[0], "fixed").in_unit("micrometer")
    moving = _as_image(mov, mov_spacing, transpose[1], "moving").in_unit("micrometer")
    if fixed.ndim != moving.ndim:
        raise InputError(
            f"the fixed image has {fixed.ndim} axes and the moving image {moving.ndim}: choose a "
            "plane or a channel so that both have the same"
        )
    fixed = _masked(fixed, masks[0], transpose[0], "fixed")
    moving = _masked(moving, masks[1], transpose[1], "moving")
    return fixed, readable(moving.reorder(fixed.grid.axes))


def check_one_channel(*images: Any) -> None:
    """Refuse images with further channels, which this would not look at."""
    for image in images:
        if isinstance(image, Image) and image.others:
            raise InputError(
                f"{image.name or 'an image'} has {len(image.channels)} channels and one is taken "
                "here: give one of image.channels; itkstream.register takes several"
            )


def check_start(
    fixed: Image, moving: Image, start: Transform | None = None, *, anywhere: bool = False
) -> None:
    """Refuse images that cannot be registered from where a transform puts them; reads no voxel.

    `start` maps fixed to moving points, default as they are. Images may lie `anywhere`, apart too,
    where key points are matched. Raises `InputError` where one is so much larger than the other
    that its unit must be wrong, and `RegistrationError` where they do not overlap.
    """
    grid = fixed.grid.shrink([max(1, -(-n // _POINTS)) for n in fixed.shape])
    mapping = map_on(start or AffineTransform(np.eye(fixed.ndim + 1)), grid)
    points = grid.positions()
    if mapping.displacement is not None:
        points = points + mapping.displacement
    index = moving.grid.to_index(AffineTransform(mapping.affine).apply(points))
    index = index.reshape(-1, fixed.ndim)
    within = "" if start is None else " through the transform to start from"
    _check_scale((fixed, moving), grid, np.ptp(index, axis=0), within)
    inside = (index >= -1) & (index <= np.asarray(moving.shape))
    if not anywhere and not inside.all(axis=1).any():
        raise RegistrationError(
            f"the fixed image lies outside the moving image{within}: it comes to "
            f"{_span(moving.grid.to_physical(index))} {UNIT_SIGNS[moving.grid.unit]}, and the "
            f"moving image lies at {_span(_corners(moving.grid))}. Check origins, directions and "
            "units, and that a start maps fixed to moving points"
        )


def _check_scale(
    pair: tuple[Image, Image], lattice: Grid, reach: NDArray[np.float64], within: str
) -> None:
    """Refuse a moving image much larger, or smaller, than what the fixed one covers of it."""
    # The lattice begins and ends within the fixed image.
    steps = np.divide(lattice.spacing, pair[0].spacing)
    held = np.maximum((np.asarray(lattice.shape) - 1) * steps, 1)
    covered = np.maximum(reach / held * pair[0].shape, 1e-9)
    ratio = np.asarray(pair[1].shape) / covered
    larger = 1 if ratio.min() > _TOO_LARGE else 0
    if not larger and ratio.max() >= 1 / _TOO_LARGE:
        return
    times = float(np.median(ratio) if larger else 1 / np.median(ratio))
    names = ("fixed", "moving")
    sizes = (
        f"the {name} one has {' x '.join(map(str, image.shape))} voxels of "
        f"{' x '.join(f'{h:.4g}' for h in image.spacing)} {UNIT_SIGNS[image.grid.unit]}"
        for name, image in zip(names, pair, strict=True)
    )
    raise InputError(
        f"the {names[larger]} image is some {times:,.0f} times as large as the {names[1 - larger]} "
        f"one{within}: {'; '.join(sizes)}. Check the spacing of both, and the unit it is in"
    )


def _corners(grid: Grid) -> NDArray[np.float64]:
    ends = np.meshgrid(*((0, n - 1) for n in grid.shape), indexing="ij")
    return grid.to_physical(np.stack(ends, -1).reshape(-1, grid.ndim))


def _span(points: NDArray[np.float64]) -> str:
    """From where to where points lie, per axis."""
    ends = zip(points.min(axis=0), points.max(axis=0), strict=True)
    return " x ".join(f"({low:.4g} to {high:.4g})" for low, high in ends)


def block_grid(
    shape: tuple[int, ...], blocksize: Sequence[int], overlap: Sequence[int] | int | None
) -> BlockGrid:
    """The blocks of a fixed image; overlap in voxels per side, None for `default_overlap`."""
    sizes = _whole_numbers("blocksize", blocksize, shape)
    if overlap is None:
        return BlockGrid(shape, sizes, default_overlap(sizes))
    halo = _whole_numbers("overlap", overlap, shape)
    return BlockGrid(shape, sizes, halo * len(sizes) if np.ndim(overlap) == 0 else halo)


def _whole_numbers(name: str, given: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    numbers = np.ravel(given)
    if numbers.dtype.kind not in "iuf" or not np.array_equal(numbers, np.rint(numbers)):
        raise InputError(
            f"{name} needs whole numbers, one per axis of the fixed image of shape {shape}; got "
            f"{given!r}"
        )
    return tuple(int(n) for n in numbers)


def default_overlap(blocksize: Sequence[int]) -> tuple[int, ...]:
    """An eighth of the block on every side, as the tutorial has it."""
    return tuple(int(b) // 8 for b in blocksize)


def reversed_axes(array: ArraySource, spatial: int) -> ArraySource:
    """An array with its first `spatial` axes in reverse order; lazy where the array is."""
    order = (*reversed(range(spatial)), *range(spatial, len(array.shape)))
    reordered: ArraySource = transposed(array, order)
    return reordered


def _as_image(data: Any, spacing: Sequence[float] | None, transpose: bool, which: str) -> Image:
    if isinstance(data, Image):
        return _reversed(data) if transpose else data
    if not isinstance(data, ArraySource):
        raise InputError(
            f"the {which} image must be an array or an itkstream Image; got "
            f"{type(data).__name__}: open files with itkstream.open_image"
        )
    if spacing is None:
        raise InputError(
            f"the {which} image is an array without voxel spacing: pass {_SPACINGS[which]}, in "
            "micrometers, or an itkstream Image"
        )
    if len(data.shape) not in (2, 3):
        raise InputError(
            f"the {which} image must have 2 or 3 axes; got shape {tuple(data.shape)}: choose one "
            "channel and one time point"
        )
    array = reversed_axes(data, len(data.shape)) if transpose else data
    return Image(array, Grid(array.shape, tuple(np.ravel(spacing))), which)


def _masked(image: Image, mask: Any, transpose: bool, which: str) -> Image:
    if mask is None:
        return image
    if transpose and not isinstance(mask, Image) and len(getattr(mask, "shape", ())) == image.ndim:
        mask = reversed_axes(mask, image.ndim)
    return masked(readable(image), mask, which)


def _reversed(image: Image) -> Image:
    return image.reorder(tuple(reversed(image.grid.axes)))
