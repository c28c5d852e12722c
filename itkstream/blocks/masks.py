"""Masks: which voxels of an image count, whatever is done with it.

A mask turns an image into one whose other voxels are NaN, which key points, comparisons of
intensities, deformations and averages all leave out. It is read as the image is, part by part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, ArraySource, Grid, Image, LazyArray
from itkstream.geometry.grid import UNIT_SIGNS
from itkstream.numerics.sampling.interpolate import warp
from itkstream.numerics.sampling.mapping import map_on

__all__ = ["Mask", "MaskFunction", "masked"]

logger = logging.getLogger(__name__)

# Points per axis at which it is asked where a mask and its image lie.
_POINTS = 33
# Two grids are one where their corners lie no further apart, in voxels.
_SAME_VOX = 0.5
# Spacings of one image differ no more than this.
_SAME_SPACING = 0.01
# A mask that shares less of itself, and of its image, than this was not meant to lie there.
_MOST = 0.98
# Nor was one that is so much smaller than its image, or larger.
_LEAST = 1e-3

MaskFunction: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]

Mask: TypeAlias = (
    ArraySource | Image | Sequence[float] | tuple[ArraySource | Image, Sequence[int]] | MaskFunction
)
"""The meanings of a mask: which voxels count.

- An array or an `Image`: those where it is not 0 (nor NaN). An array may have another sampling
  than the image whose extent it covers; an `Image` lies where its grid says, and outside of it no
  voxel counts. One of the image's shape whose file says nothing of its place (spacing 1, origin 0)
  is taken to lie on the image's voxels, and the log says so.
- A list of intensities: those of other intensities.
- Labels, an array or an `Image`, and a list of those that count.
- A function: it is called with the voxels of each part of the image that is read, and returns an
  array of that shape.
"""


def masked(image: Image, mask: Mask, which: str = "image") -> Image:
    """An image of which the voxels that do not count are NaN; read only when the result is.

    It lies on the same grid and holds floating-point numbers. Messages call it the `which` image.
    Raises `InputError` where the mask does not fit.
    """
    choice = _parse(mask, image, which)
    return Image(_MaskedSource(image, choice), image.grid, image.name)


class _Choice(Protocol):
    """A choice of voxels of a part of the image: `_Sampled`, `_OtherThan` or `_Judged`."""

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
    def chunk_shape(self) -> tuple[int, ...] | None:
        return self.image.chunk_shape

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
        chosen = _not_zero(values) if self.labels is None else np.isin(values, self.labels)
        return warp(
            chosen.astype(np.uint8),
            mapping.index_matrix(near.grid),
            grid.shape,
            None,
            mapping.vector_matrix(near.grid),
            interpolator="nearest",
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
        return _not_zero(counts)


def _not_zero(values: NDArray[Any]) -> NDArray[np.bool_]:
    """True for numbers that are neither 0 nor NaN."""
    return np.asarray(np.isfinite(values) & (values != 0))


def _parse(mask: Any, image: Image, which: str) -> _Choice:
    """The kind of a mask: every meaning of `Mask` is one of these."""
    match mask:
        case Image():
            return _Sampled(_as_image(image, mask, which))
        case (ArraySource() | Image() as labels, chosen) if isinstance(mask, tuple):
            return _Sampled(_as_image(image, labels, which), _numbers(chosen, which))
        case ArraySource() if len(mask.shape) > 1:
            return _Sampled(_as_image(image, mask, which))
        case _ if callable(mask):
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
        return _placed(mask, image.grid, which)
    shape = tuple(mask.shape)
    if len(shape) != image.ndim:
        raise InputError(
            f"the {which} mask has shape {shape} and the image {image.shape}: give an array that "
            "covers the image, or an Image"
        )
    if shape != image.shape and sorted(shape) == sorted(image.shape):
        raise InputError(
            f"the {which} mask has shape {shape} and the image {image.shape}: transpose it, or "
            "give it as an Image that names its axes"
        )
    return Image(mask, _covering(image.grid, shape), f"{which} mask")


def _placed(mask: Image, grid: Grid, which: str) -> Image:
    """A mask where its grid says, in the unit and axes of the image; refused where it says wrong.

    Editors of labels leave spacing 1 and origin 0: a mask of the image's shape is then the image's.
    """
    nameless = _says_nothing(mask.grid)
    mask = mask.in_unit(grid.unit).reorder(grid.axes)
    places = f"{_place(mask.grid)}; the image has {_place(grid)}"
    if mask.shape == grid.shape:
        if _apart_vox(mask.grid, grid) <= _SAME_VOX:
            return mask
        if nameless:
            logger.warning(
                "the %s mask has %s: as it has the image's shape and says nothing of its place, it "
                "is taken to lie on the image's voxels",
                which,
                places,
            )
            return Image(mask.data, grid, mask.name)
        if not np.allclose(mask.spacing, grid.spacing, rtol=_SAME_SPACING):
            raise InputError(
                f"the {which} mask has the image's shape and another spacing: {places}. Give it "
                "the image's spacing, or pass it as an array"
            )
    _check_place(mask.grid, grid, f"the {which} mask", places, nameless)
    return mask


def _says_nothing(grid: Grid) -> bool:
    """Whether a grid is what a file has that was written without one."""
    along = np.isin(np.abs(grid.direction), (0.0, 1.0)).all()
    return bool(along and set(grid.spacing) == {1.0} and not np.any(grid.origin))


def _apart_vox(mask: Grid, grid: Grid) -> float:
    """Largest distance between the corners of two grids of one shape, in voxels of the second."""
    ends = np.meshgrid(*((0, n - 1) for n in grid.shape), indexing="ij")
    corners = np.stack(ends, -1).reshape(-1, grid.ndim)
    return float(np.abs(grid.to_index(mask.to_physical(corners)) - corners).max())


def _check_place(mask: Grid, grid: Grid, what: str, places: str, nameless: bool) -> None:
    """Refuse a mask that lies beside its image, and warn of one that seems misplaced.

    A mask may be larger than its image, or smaller, unless its file says nothing of its place:
    then another extent shows that it was made for other voxels.
    """
    covered, used = _share_inside(grid, mask), _share_inside(mask, grid)
    if not covered and not used:
        raise InputError(
            f"{what} lies outside the image: it has {places}. Check its unit, origin and "
            "direction, or pass it as an array of the image's voxels"
        )
    likely = min(covered, used) if nameless else max(covered, used)
    if likely < _MOST or min(covered, used) < _LEAST:
        logger.warning(
            "%s covers %.2g %% of the image and has %.2g %% of itself on it: it has %s. Where "
            "that is not meant, check its unit, origin and direction",
            what,
            100 * covered,
            100 * used,
            places,
        )


def _share_inside(grid: Grid, other: Grid) -> float:
    """The share of a grid's extent that lies in another's."""
    ends = (np.linspace(0, n - 1, min(n, _POINTS)) for n in grid.shape)
    points = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, grid.ndim)
    index = other.to_index(grid.to_physical(points))
    # Voxels of either are as wide as their spacing.
    inside = (index > -0.75) & (index < np.array(other.shape) - 0.25)
    return float(inside.all(axis=1).mean())


def _place(grid: Grid) -> str:
    """A grid in words."""
    numbers = (" x ".join(f"{v:.6g}" for v in values) for values in (grid.spacing, grid.origin))
    spacing, origin = numbers
    turned = "" if np.array_equal(grid.direction, np.eye(grid.ndim)) else ", turned axes"
    shape = " x ".join(map(str, grid.shape))
    return f"{shape} voxels of {spacing} {UNIT_SIGNS[grid.unit]} from {origin}{turned}"


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
