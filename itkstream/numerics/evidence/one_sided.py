"""Content that only one image shows, where the other was painted over, as a skull beside a brain.

The edge of what was left in the painted image is then matched with any edge of what was not: on a
template of the brain and a whole head, the deformation drew the cortex to the scalp: 5.0 voxels off
(median; 95th percentile 11.6), while local correlation rose from 0.39 to 0.56. With the painted
part left out it is 1.6 and 3.7 off; from head to template 1.6 and 3.1 instead of 2.8 and 7.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.geometry import Image, Transform
from itkstream.numerics.checks import TO_DEVIATION
from itkstream.numerics.evidence.contrast import cubic_factors
from itkstream.numerics.evidence.ground import bright_ground
from itkstream.numerics.evidence.quality import border_of, tissue_mask
from itkstream.numerics.sampling.pyramid import shrink
from itkstream.numerics.sampling.warping import WarpSettings, warp_block

__all__ = ["Ground", "find_one_sided", "painted_background"]

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
# Of a layer, one image shows so many times as much on the other's ground as that on its own.
_MORE = 4
# Voxels of a level on which a ground can be told.
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
    light = ndimage.gaussian_filter(filled, _BLUR_VOX)
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


def find_one_sided(fixed: Image, moving: Image, transform: Transform) -> Mask:
    """Fixed voxels that do not count, as one image shows nothing where the other shows much.

    It was painted over there, or has an empty ground. None where there is little of it. The
    transform aligns the images roughly.
    """
    painted = _beside_painted(fixed, moving, transform)
    return painted if painted.any() else _beside_ground(fixed, moving, transform)


def _beside_painted(fixed: Image, moving: Image, transform: Transform) -> Mask:
    """Voxels that were painted over in one image, which do not count."""
    first, second = (image.read() for image in (fixed, moving))
    painted, blank = painted_background(first), painted_background(second)
    left_out = np.zeros(fixed.shape, bool)
    if not (painted.any() or blank.any()):
        return left_out
    tissue, others = tissue_mask(first), tissue_mask(second)
    shown = _warped(others, fixed, moving, transform) > 0.5
    if _is_much(painted & ~tissue & shown, tissue):
        left_out |= _without_rim(painted)
    if _is_much((_warped(blank & ~others, fixed, moving, transform) > _ALL) & tissue, tissue):
        left_out |= _without_rim(_warped(blank, fixed, moving, transform) > _ALL)
    return left_out


def _beside_ground(fixed: Image, moving: Image, transform: Transform) -> Mask:
    """Voxels of an empty ground of one image, which do not count where the other shows much.

    A level of large images tells whether there are any.
    """
    left_out = np.zeros(fixed.shape, bool)
    (first, edge), (second, other_edge) = (_shrunk(image) for image in (fixed, moving))
    grounds = _Grounds.of(first, second, transform)
    is_left_out = grounds.shows_much(max(1, round(_THIN_VOX / edge)))
    if not any(is_left_out):
        return left_out
    if max(edge, other_edge) > 1:
        grounds = _Grounds.of(fixed, moving, transform)
    for ground, leaves in zip((grounds.fixed.empty, grounds.lost), is_left_out, strict=True):
        left_out |= ground & leaves
    return np.asarray(ndimage.binary_dilation(left_out, iterations=_BESIDE_VOX))


@dataclass(frozen=True, eq=False)
class _Grounds:
    """The ground of the fixed image, and of the moving one as seen on its lattice."""

    fixed: Ground
    lost: Mask
    shown: Mask
    both: Mask

    @classmethod
    def of(cls, fixed: Image, moving: Image, transform: Transform) -> _Grounds:
        """Tell the grounds of two images that a transform aligns roughly."""
        first, second = (Ground.of(image.read()) for image in (fixed, moving))
        if not (first.empty.any() and second.empty.any()):
            nothing = np.zeros(fixed.shape, bool)
            return cls(first, nothing, nothing, nothing)
        empty, content = (
            _warped(part, fixed, moving, transform) for part in (second.empty, second.content)
        )
        inside = _warped(np.ones(moving.shape, bool), fixed, moving, transform) > _ALL
        return cls(first, empty > _ALL, content > 0.5, ~first.empty & inside & (empty < 0.5))

    def shows_much(self, thin: int) -> tuple[bool, bool]:
        """Whether the moving image shows much on the fixed one's ground, or the other way.

        Tissue that is not aligned yet does both, about as much.
        """
        here = _thick(self.fixed.empty & self.shown, thin)
        there = _thick(self.lost & self.fixed.content, thin)
        least = _LEAST_ONE_SIDED * int(self.both.sum())
        if not least:
            return False, False
        return here > max(least, _MORE * there), there > max(least, _MORE * here)


def _shrunk(image: Image) -> tuple[Image, int]:
    """A level of a large image that tells of its ground, and voxels per axis of its voxels."""
    factors = cubic_factors(image.grid, _LOOKED_AT, slack=0.25)
    return Image(*shrink(image.read(), image.grid, factors)), max(factors)


def _is_much(one_sided: Mask, tissue: Mask) -> bool:
    return bool(_thick(one_sided, _THIN_VOX) > _LEAST_ONE_SIDED * tissue.sum())


def _thick(mask: Mask, thin: int) -> int:
    """Voxels of a mask that belong to parts thicker than twice so many."""
    return int(ndimage.binary_opening(mask, iterations=thin).sum())


def _without_rim(mask: Mask) -> Mask:
    return np.asarray(ndimage.binary_erosion(mask, iterations=_RIM_VOX, border_value=1))


def _warped(mask: Mask, fixed: Image, moving: Image, transform: Transform) -> NDArray[np.float32]:
    """A mask of the moving image on the fixed one, between 0 and 1."""
    image = Image(mask.astype(np.float32), moving.grid)
    return np.asarray(
        warp_block(image, transform, fixed.grid, WarpSettings(background=0.0, dtype=np.float32))
    )
