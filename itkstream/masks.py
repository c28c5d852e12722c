"""Masks: which voxels of an image count, whatever is done with it.

A mask turns an image into one whose other voxels are NaN, which key points, comparisons of
intensities, deformations and averages all leave out. It is read as the image is, part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, ArraySource, Grid, Image, LazyArray
from itkstream.numerics.interpolate import warp
from itkstream.numerics.mapping import map_on

__all__ = ["Mask", "MaskFunction", "masked"]

MaskFunction: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]

Mask: TypeAlias = (
    ArraySource | Image | Sequence[float] | tuple[ArraySource | Image, Sequence[int]] | MaskFunction
)
"""What says which voxels count.

- An array or an `Image`: those where it is not 0 (nor NaN). An array may have another sampling
  than the image whose extent it covers; an `Image` lies where its grid says, and outside of it no
  voxel counts.
- A list of intensities: those of other intensities.
- Labels, an array or an `Image`, and a list of those that count.
- A function: it is called with the voxels of each part of the image that is read, and returns an
  array of that shape.
"""


def masked(image: Image, mask: Mask, which: str = "image") -> Image:
    """An image of which the voxels that do not count are NaN.

    Parameters
    ----------
    image : Image
        numpy or stored; read only when the result is.
    mask : Mask
        Which voxels count.
    which : str
        How messages call the image.

    Returns
    -------
    Image
        On the same grid, of floating-point numbers.

    Raises
    ------
    InputError
        Where the mask does not fit the image.
    """
    return Image(_MaskedSource(image, _choice(image, mask, which)), image.grid, image.name)


class _Choice(Protocol):
    """Which voxels of a part count."""

    def __call__(self, voxels: NDArray[Any], grid: Grid) -> NDArray[np.bool_]: ...


@dataclass(frozen=True, eq=False)
class _MaskedSource(LazyArray):
    """The voxels of an image, NaN where they do not count."""

    image: Image
    choice: _Choice

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(self.image.dtype, np.float32)

    @property
    def together(self) -> tuple[int, ...] | None:
        return self.image.together

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        part = self.image[tuple(map(slice, start, stop))]
        voxels = part.read()
        counts = self.choice(voxels, part.grid)
        return np.where(counts, voxels.astype(self.dtype), np.nan).astype(self.dtype)


@dataclass(frozen=True, eq=False)
class _Sampled:
    """Voxels that lie on chosen voxels of another image."""

    mask: Image
    labels: tuple[int, ...] | None = None

    def __call__(self, voxels: NDArray[Any], grid: Grid) -> NDArray[np.bool_]:
        mapping = map_on(AffineTransform(np.eye(grid.ndim + 1)), grid)
        crop = mapping.crop_of(self.mask.grid)
        if crop is None:
            return np.zeros(grid.shape, bool)
        near = self.mask[crop]
        values = near.read()
        if self.labels is None:
            chosen = np.isfinite(values) & (values != 0)
        else:
            chosen = np.isin(values, self.labels)
        return warp(
            chosen.astype(np.uint8),
            mapping.index_matrix(near.grid),
            grid.shape,
            None,
            mapping.vector_matrix(near.grid),
            order=0,
            background=0,
            dtype=np.dtype(np.uint8),
        ).astype(bool)


@dataclass(frozen=True)
class _OtherThan:
    """Voxels of other intensities than some."""

    intensities: tuple[float, ...]

    def __call__(self, voxels: NDArray[Any], grid: Grid) -> NDArray[np.bool_]:
        return ~np.isin(voxels, self.intensities)


@dataclass(frozen=True, eq=False)
class _Judged:
    """Voxels that a user's function chooses."""

    function: MaskFunction

    def __call__(self, voxels: NDArray[Any], grid: Grid) -> NDArray[np.bool_]:
        counts = np.asarray(self.function(voxels))
        if counts.shape != voxels.shape:
            raise InputError(
                f"a mask function must return an array of the shape of its argument, "
                f"{voxels.shape}; got {counts.shape}"
            )
        return counts.astype(bool)


def _choice(image: Image, mask: Any, which: str) -> _Choice:
    if isinstance(mask, tuple) and len(mask) == 2 and isinstance(mask[0], (Image, ArraySource)):
        return _Sampled(_as_image(image, mask[0], which), _numbers(mask[1], which))
    if isinstance(mask, Image) or (isinstance(mask, ArraySource) and len(mask.shape) > 1):
        return _Sampled(_as_image(image, mask, which))
    if callable(mask):
        return _Judged(mask)
    return _OtherThan(_numbers(mask, which))


def _numbers(values: Any, which: str) -> tuple[Any, ...]:
    try:
        numbers = np.ravel(values)
    except ValueError:
        numbers = np.array([None])
    if not len(numbers) or numbers.dtype.kind not in "iufb":
        raise InputError(
            f"the {which} mask must be an array, an Image, a list of intensities that do not "
            f"count, (labels, those that count), or a function; got {values!r}"
        )
    return tuple(numbers.tolist())


def _as_image(image: Image, mask: Any, which: str) -> Image:
    """The mask as an image in the unit and axes of the other."""
    if isinstance(mask, Image):
        if mask.ndim != image.ndim:
            raise InputError(
                f"the {which} mask has {mask.ndim} axes and the image {image.ndim}; "
                "give one of the same axes"
            )
        return mask.in_unit(image.grid.unit).reorder(image.grid.axes)
    shape = tuple(mask.shape)
    if len(shape) != image.ndim:
        raise InputError(
            f"the {which} mask has shape {shape} and the image {image.shape}: give an array that "
            "covers the image, or an Image"
        )
    return Image(mask, _covering(image.grid, shape), f"{which} mask")


def _covering(grid: Grid, shape: tuple[int, ...]) -> Grid:
    """A lattice of another shape over the same extent.

    Where the shape is that of the image averaged in groups of voxels, it is the lattice of the
    groups, though the last one may stick out.
    """
    ratios = []
    for n, m in zip(grid.shape, shape, strict=True):
        group = -(-n // m)
        ratios.append(float(group) if -(-n // group) == m else n / m)
    first = (np.array(ratios) - 1) / 2
    spacing = tuple(h * r for h, r in zip(grid.spacing, ratios, strict=True))
    return replace(
        grid, shape=shape, spacing=spacing, origin=tuple(grid.to_physical(first).tolist())
    )
