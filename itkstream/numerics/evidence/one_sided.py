"""Content that only one image shows, where the other was painted over, as a skull beside a brain.

The edge of what was left in the painted image is then matched with any edge of what was not: on a
template of the brain and a whole head, the deformation drew the cortex to the scalp: 5.0 voxels off
(median; 95th percentile 11.6), while local correlation rose from 0.39 to 0.56. With the painted
part left out it is 1.6 and 3.7 off; from head to template 1.6 and 3.1 instead of 2.8 and 7.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.geometry import AffineTransform, Grid, Image, Transform
from itkstream.numerics.blurring import gaussian_blur
from itkstream.numerics.checks import TO_DEVIATION
from itkstream.numerics.evidence.contrast import cubic_factors
from itkstream.numerics.evidence.ground import bright_ground
from itkstream.numerics.evidence.quality import border_of, tissue_mask
from itkstream.numerics.sampling.pyramid import shrink
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, WarpSettings, warp_block

__all__ = [
    "Ground",
    "ImageContent",
    "find_layer",
    "find_one_sided",
    "find_shown",
    "lay_mask",
    "painted_background",
]

Mask = NDArray[np.bool_]

# Painted images have one value on most of their border, and on so much of all.
_LEAST_BORDER, _LEAST_SHARE = 0.5, 0.1
# Tissue that the other image shows there counts where it is thicker than twice so many voxels: the
# outlines of two individuals differ. It is one-sided where there is so much of it, compared to the
# tissue of the fixed image: 0.55 and 0.30 on a head and a brain, at most 0.10 on nine other pairs.
_THIN_VOX = 3
_LEAST_ONE_SIDED = 0.2
# So far from what is left, the painted part still shows where that ends. With 2 voxels the edge
# draws a brain of 38 voxels to the scalp again: 2.9 voxels off, 0.2 with 1 or none.
_RIM_VOX = 1
# Of a voxel that is painted in the moving image, its neighbours there are.
_ALL = 0.99
# An empty ground differs, where it is slightly blurred, by so many of its deviations at most, or
# by so much of the image's range; its deviation is a smaller share of that. Of tissue and of
# medium that reach the border that share is 0.03 to 0.3, of grounds at most 0.012.
_BLUR_VOX, _DEVIATIONS, _RANGE_SHARE, _MOST_NOISE = 1.0, 5.0, 0.03, 0.02
# So far beside an empty ground, the edge of the tissue still draws the medium to it: the error near
# it is 1.15 voxels (95th percentile) with 0, 0.49 with 2 and 0.24 with 4 on nuclei.
_BESIDE_VOX = 4
# So much of what both show must be left, or they are of other contrasts: 0.61 to 0.87 are of bodies
# with medium or fur (64 to 112 voxels wide), 0.02 to 0.37 of tissue whose ground is bright in one.
_LEAST_LEFT = 0.5
# Of a layer, one image shows so many times as much on the other's ground as that on its own.
_MORE = 4
# What has so much less texture than is usual in tissue is plain. 95 % of phantom layers of medium
# have less than 0.01 to 0.04 of that of nuclei and membranes, 0.3 of that of a mouse (and 0.5 of
# that of faint clouds, by noise); 95 % of torn tissue has more than 0.37.
_PLAIN = 0.15
# Medium is at least so bright, compared to tissue: what is darker may be a ground with much noise.
_BRIGHT = 0.5
_WINDOW_VOX, _LAG_VOX, _SPECK_VOX, _LEAST_LIGHT = 7, 2, 2, 0.25
# Voxels of a level on which a ground, or what was painted over, can be told.
_LOOKED_AT = 1e6
# Gaps of the content that are closed: half their width.
_GAP_VOX = 3
# Tissue may hide most of the ground's noise on the border, but not this much of it.
_GROUND_PERCENT = 40


def painted_background(image: NDArray[Any]) -> Mask:
    """Voxels of exactly one value that reach the border; none where that is not most of it."""
    values, counts = np.unique(border_of(image), return_counts=True)
    if not len(values) or counts.max() < _LEAST_BORDER * counts.sum():
        return np.zeros(image.shape, bool)
    # Parts that do not reach the border are dark tissue.
    found = _reaching_border(np.asarray(image) == values[np.argmax(counts)])
    return np.asarray(found if found.mean() > _LEAST_SHARE else np.zeros_like(found))


@dataclass(frozen=True, eq=False)
class Ground:
    """An empty ground, and what stands out of it, gaps and all.

    Parameters
    ----------
    empty : ndarray of bool
        Voxels of a ground that reaches the border and shows nothing but even noise, dark or bright.
    content : ndarray of bool
        Voxels that differ from it, but for specks.
    """

    empty: Mask
    content: Mask

    @classmethod
    def of(cls, image: NDArray[Any]) -> Ground:
        """Tell the ground of an image; nothing is either where most of the border is no ground.

        Voxels that are not finite are taken for ground.
        """
        nothing = cls(np.zeros(image.shape, bool), np.zeros(image.shape, bool))
        content = _standing_out(np.asarray(image, np.float32))
        if content is None:
            return nothing
        empty = _reaching_border(~_filled(content))
        is_most = border_of(empty.astype(float)).mean() >= _LEAST_BORDER
        return cls(empty, content) if is_most and empty.mean() > _LEAST_SHARE else nothing


def _standing_out(values: NDArray[np.float32]) -> Mask | None:
    """Voxels that differ from the ground at the border, but for specks; None for no even ground."""
    bright = bright_ground(values)
    if bright is not None:
        values = bright - values
    border = border_of(values)
    if not border.size:
        return None
    filled = np.where(np.isfinite(values), values, np.median(border))
    light = gaussian_blur(filled, _BLUR_VOX)
    edge = border_of(light)
    level = np.percentile(edge, _GROUND_PERCENT)
    noise = TO_DEVIATION * float(np.median(level - edge[edge <= level]))
    low, high = np.percentile(light, (1, 99.5))
    if bright is None and noise > _MOST_NOISE * (high - low):
        return None
    least = max(_DEVIATIONS * noise, _RANGE_SHARE * (high - low))
    return np.asarray(ndimage.binary_opening(np.abs(light - level) > least))


def _filled(content: Mask) -> Mask:
    """Content without narrow gaps."""
    room, inner = _GAP_VOX + 1, (slice(_GAP_VOX + 1, -_GAP_VOX - 1),) * content.ndim
    closed = ndimage.binary_closing(np.pad(content, room), iterations=_GAP_VOX)
    return np.asarray(closed[inner])


def _reaching_border(mask: Mask) -> Mask:
    """Parts of a mask that reach the border; the frame joins them."""
    parts, _ = ndimage.label(np.pad(mask, 1, constant_values=True))
    return np.asarray((parts == parts.flat[0])[(slice(1, -1),) * mask.ndim])


@dataclass(frozen=True, eq=False)
class ImageContent:
    """Content of an image, told once for all transforms that are tried.

    Of two brains of 20 Mvoxel, of which neither was painted over, that takes 0.8 s of a core, and
    what follows from it through a transform 0.1: a level of them tells.

    Parameters
    ----------
    image : Image
        In memory.
    """

    image: Image

    @cached_property
    def painted(self) -> Mask:
        """Its `painted_background`."""
        return painted_background(self.image.read())

    @cached_property
    def tissue(self) -> Mask:
        """Its `tissue_mask`."""
        return tissue_mask(self.image.read())

    @cached_property
    def ground(self) -> Ground:
        """Its ground, and what stands out of it."""
        return Ground.of(self.image.read())

    @cached_property
    def level(self) -> tuple[ImageContent, int]:
        """A level of a large image that tells what it shows, and voxels per axis of its voxels."""
        factors = _level_factors(self.image)
        if max(factors) == 1:
            return self, 1
        level = Image(*shrink(self.image.read(), self.image.grid, factors))
        return ImageContent(level), max(factors)


def find_one_sided(fixed: ImageContent, moving: ImageContent, transform: Transform) -> Mask:
    """Fixed voxels that do not count, as one image shows nothing where the other shows much.

    It was painted over there, or has an empty ground. None where there is little of it. The
    transform aligns the images roughly.
    """
    painted = _beside_painted(fixed, moving, transform)
    return painted if painted.any() else _beside_ground(fixed, moving, transform)


def _beside_painted(fixed: ImageContent, moving: ImageContent, transform: Transform) -> Mask:
    """Voxels that were painted over in one image, which do not count.

    A level of large images tells whether there are any.
    """
    left_out = np.zeros(fixed.image.shape, bool)
    (first, edge), (second, _) = fixed.level, moving.level
    here, there = _painted_over(first, second, transform, _thin_on(edge))
    if here:
        left_out |= _without_rim(fixed.painted)
    if there:
        grids = moving.image.grid, transform, fixed.image.grid
        left_out |= _without_rim(_warped(moving.painted, *grids) > _ALL)
    return left_out


def _painted_over(
    fixed: ImageContent, moving: ImageContent, transform: Transform, thin: int
) -> tuple[bool, bool]:
    """Whether one image shows much tissue where the fixed one was painted, or the moving one."""
    if not (fixed.painted.any() or moving.painted.any()):
        return False, False
    grids = moving.image.grid, transform, fixed.image.grid
    here = fixed.painted & ~fixed.tissue & (_warped(moving.tissue, *grids) > 0.5)
    there = (_warped(moving.painted & ~moving.tissue, *grids) > _ALL) & fixed.tissue
    return _is_much(here, fixed.tissue, thin), _is_much(there, fixed.tissue, thin)


def find_layer(fixed: ImageContent, moving: ImageContent, transform: Transform) -> Mask:
    """Fixed voxels of which nobody expects a counterpart, as no tissue lies there in either image.

    One has an empty ground there, on which the other shows a layer: of any kind where the ground is
    that of the fixed image; else a plain one, as mounting medium is. Textured content of the fixed
    image may be tissue that was torn off the moving one.
    """
    return _beside_ground(fixed, moving, transform, spares_tissue=True)


def _beside_ground(
    fixed: ImageContent, moving: ImageContent, transform: Transform, spares_tissue: bool = False
) -> Mask:
    """Voxels of an empty ground of one image, which do not count where the other shows much.

    What the fixed image shows there counts if it may be tissue, where that is to be spared. A level
    of large images tells whether there are any, and which are plain.
    """
    grid = fixed.image.grid
    left_out = np.zeros(grid.shape, bool)
    (first, edge), (second, other_edge) = fixed.level, moving.level
    small, coarse = _Grounds.of(first, second, transform), first.image.grid
    lights = first.image.read(), warp_block(second.image, transform, coarse, NAN_OUTSIDE)
    thin = _thin_on(edge)
    textured = small.textured(lights, thin, spares_tissue)
    is_left_out = small.shows_much(textured, thin)
    if not any(is_left_out):
        return left_out
    grounds = small
    if max(edge, other_edge) > 1:
        grounds = _Grounds.of(fixed, moving, transform)
        here, there = (lay_mask(Image(m, coarse), _still(coarse), grid) for m in textured)
        textured = here.read(), there.read()
    empty = grounds.fixed.empty, grounds.lost
    for ground, kept, leaves in zip(empty, textured, is_left_out, strict=True):
        left_out |= ground & ~kept & leaves
    left_out = ndimage.binary_dilation(left_out, iterations=_BESIDE_VOX)
    is_beside = (grounds.both & ~left_out).sum() > _LEAST_LEFT * grounds.both.sum()
    return np.asarray(left_out if is_beside else np.zeros_like(left_out))


@dataclass(frozen=True, eq=False)
class _Grounds:
    """The ground of the fixed image, and of the moving one as seen on its lattice.

    `shown` is content of the moving image, and `both` are voxels in which neither has a ground.
    With `fill`, one of the images shows something everywhere.
    """

    fixed: Ground
    lost: Mask
    shown: Mask
    both: Mask
    fill: bool

    @classmethod
    def of(cls, fixed: ImageContent, moving: ImageContent, transform: Transform) -> _Grounds:
        """Tell the grounds of two images that a transform aligns roughly."""
        first, second = fixed.ground, moving.ground
        grids = moving.image.grid, transform, fixed.image.grid
        fills = [not ground.empty.any() for ground in (first, second)]
        if all(fills):
            nothing = np.zeros(fixed.image.shape, bool)
            return cls(first, nothing, nothing, nothing, True)
        first, second = (
            Ground(ground.empty, np.isfinite(one.image.read())) if is_full else ground
            for ground, one, is_full in zip((first, second), (fixed, moving), fills, strict=True)
        )
        empty, content = (_warped(part, *grids) for part in (second.empty, second.content))
        inside = _warped(np.ones(moving.image.shape, bool), *grids) > _ALL
        both = ~first.empty & inside & (empty < 0.5)
        return cls(first, empty > _ALL, content > 0.5, both, any(fills))

    @property
    def layers(self) -> tuple[Mask, Mask]:
        """Content of the moving image on the ground of the fixed one, and the other way."""
        return self.fixed.empty & self.shown, self.lost & self.fixed.content

    def textured(
        self, lights: tuple[NDArray[Any], NDArray[Any]], thin: int, spares_tissue: bool
    ) -> tuple[Mask, Mask]:
        """Parts of both layers that count as they may be tissue: where an image fills its frame.

        And what the fixed one shows, where tissue is spared. `lights` are both images on the fixed
        lattice.
        """
        none = np.zeros(self.both.shape, bool)
        here, there = (
            _textured(np.asarray(values, np.float32), layer, self.both, thin)
            if (self.fill or spares) and _thick(layer, thin) > self._least
            else none
            for values, layer, spares in zip(
                lights[::-1], self.layers, (False, spares_tissue), strict=True
            )
        )
        return here, there

    @property
    def _least(self) -> float:
        """Voxels of a layer below which there is little of it."""
        return _LEAST_ONE_SIDED * int(self.both.sum())

    def shows_much(self, textured: tuple[Mask, Mask], thin: int) -> tuple[bool, bool]:
        """Whether the moving image shows much on the fixed one's ground, or the other way.

        Tissue that is not aligned yet does both, about as much. What is textured does not count.
        """
        least = self._least
        if not least:
            return False, False
        here, there = (
            _thick(layer & ~kept, thin) for layer, kept in zip(self.layers, textured, strict=True)
        )
        return here > max(least, _MORE * there), there > max(least, _MORE * here)


def _textured(values: NDArray[np.float32], layer: Mask, tissue: Mask, thin: int) -> Mask:
    """Parts of a layer that have texture, as tissue has, by how bright they are.

    All of it where there is no tissue to tell by, or it is no brighter than a noisy ground. Edges
    are no texture.
    """
    known = np.isfinite(values)
    inner, other = (ndimage.binary_erosion(m, iterations=thin) & known for m in (layer, tissue))
    if not (inner.any() and other.any()):
        return layer
    dark, bright = np.percentile(values[known], (1, 99))
    smooth = ndimage.gaussian_filter(np.where(known, values, dark), _BLUR_VOX)
    ground = float(np.percentile(smooth[known], 1))
    light, usual_light = (float(values[mask].mean()) - ground for mask in (inner, other))
    if light < _BRIGHT * usual_light:
        return layer
    contrast = _contrast(values, inner, dark, bright)
    usual = float(np.median(_contrast(values, other, dark, bright)[other]))
    specks = (np.nan_to_num(contrast) > _PLAIN * usual) & inner
    parts = ndimage.binary_opening(specks, iterations=_SPECK_VOX)
    return np.asarray(ndimage.binary_dilation(parts, iterations=2 * thin, mask=layer))


def _contrast(
    values: NDArray[np.float32], mask: Mask, dark: float, bright: float
) -> NDArray[np.float32]:
    """Covariance of voxels with those two off, which noise has not, by their squared brightness.

    Around each voxel of a mask, of the mask's voxels alone.
    """

    def summed(part: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(
            ndimage.uniform_filter(part.astype(np.float32), _WINDOW_VOX, mode="constant")
        )

    mean = summed(np.where(mask, values, 0)) / np.maximum(summed(mask), 1e-6)
    off = np.where(mask, values - mean, np.float32(0))
    total, count = (np.zeros(values.shape, np.float32) for _ in range(2))
    for axis in (k for k, n in enumerate(values.shape) if n > _LAG_VOX):
        ahead = [(slice(None),) * axis + (s,) for s in (slice(_LAG_VOX, None), slice(-_LAG_VOX))]
        total[ahead[0]] += off[ahead[0]] * off[ahead[1]]
        count[ahead[0]] += mask[ahead[0]] & mask[ahead[1]]
    light = np.maximum(mean - dark, _LEAST_LIGHT * (bright - dark))
    # Averaged twice, as noise of faint tissue looks like texture.
    found = summed(summed(total)) / np.maximum(summed(summed(count)), 1e-6)
    return np.asarray(found / light**2, np.float32)


def find_shown(image: Image) -> Image | None:
    """Find where an image may show anything: all of it but its empty ground.

    That is told on a level of a large image. None where no ground is certain, and where voxels are
    left out already, by a mask or as they are NaN.
    """
    voxels, factors = image.read(), _level_factors(image)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        return None
    level, grid = shrink(voxels, image.grid, factors)
    shown = ~Ground.of(level).empty
    return None if shown.all() else lay_mask(Image(shown, grid), _still(grid), image.grid)


def lay_mask(mask: Image, transform: Transform, grid: Grid) -> Image:
    """Lay a mask of the moving image on the voxels of a grid; nothing is in it beyond."""
    return Image(_warped(mask.read(), mask.grid, transform, grid) > 0.5, grid)


def _still(grid: Grid) -> Transform:
    return AffineTransform(np.eye(grid.ndim + 1), grid.axes)


def _level_factors(image: Image) -> tuple[int, ...]:
    return cubic_factors(image.grid, _LOOKED_AT, slack=0.25)


def _thin_on(edge: int) -> int:
    """Half the width of what is thin, in voxels of a level, of so many voxels per axis."""
    return max(1, round(_THIN_VOX / edge))


def _is_much(one_sided: Mask, tissue: Mask, thin: int) -> bool:
    least = _LEAST_ONE_SIDED * tissue.sum()
    # Thick parts, which take long to tell, are no more than all.
    return bool(one_sided.sum() > least and _thick(one_sided, thin) > least)


def _thick(mask: Mask, thin: int) -> int:
    """Voxels of a mask that belong to parts thicker than twice so many."""
    return int(ndimage.binary_opening(mask, iterations=thin).sum())


def _without_rim(mask: Mask) -> Mask:
    return np.asarray(ndimage.binary_erosion(mask, iterations=_RIM_VOX, border_value=1))


def _warped(mask: Mask, of: Grid, transform: Transform, grid: Grid) -> NDArray[np.float32]:
    """A mask on the voxels of the moving grid on those of the fixed one, between 0 and 1."""
    values = Image(mask.astype(np.float32), of)
    settings = WarpSettings(background=0.0, dtype=np.float32)
    return np.asarray(warp_block(values, transform, grid, settings))
