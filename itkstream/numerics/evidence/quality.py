"""Quality of a registration, measured on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from itkstream.numerics.blurring import gaussian_blur
from itkstream.numerics.checks import TO_DEVIATION
from itkstream.numerics.deformation.correlation import mean_local_correlation
from itkstream.numerics.evidence.ground import bright_ground
from itkstream.numerics.threads import over_slabs

__all__ = [
    "WINDOW_RADIUS_VOX",
    "border_of",
    "content_mask",
    "local_correlation_in_tissue",
    "tissue_mask",
    "tissue_on",
]

WINDOW_RADIUS_VOX = 12
"""The yardstick's window of 25 voxels."""

# Nuclei and the gaps between them are one tissue: the blur closes gaps of a few voxels.
_TISSUE_SIGMA_VOX = 4.0

_LIGHT_SIGMA_VOX = 1.0
_DARK_PERCENT = 5
# The darkest twentieth of pure noise lies up to one deviation too low: 6 are left, which one voxel
# in a thousand million exceeds.
_CONTENT_DEVIATIONS = 7


def tissue_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels that show tissue rather than background, which is dark, or bright as a slide is.

    The blurred image is split in two by Otsu's threshold on a logarithmic scale of intensity.

    N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on
    Systems, Man, and Cybernetics 9 (1979) 62-66, doi:10.1109/TSMC.1979.4310076.
    """
    values = image.astype(np.float32)
    return tissue_on(values, bright_ground(values))


def tissue_on(values: NDArray[np.float32], ground: NDArray[np.float32] | None) -> NDArray[np.bool_]:
    """Tell tissue, as `tissue_mask` does, on a bright ground that is known, or on a dark one."""
    if ground is not None:
        values = ground - values
    known = np.isfinite(values)
    darkest = values.min(where=known, initial=np.inf) if known.any() else 0.0
    smooth = gaussian_blur(np.where(known, values, darkest), _TISSUE_SIGMA_VOX)
    light = _logarithm(smooth)
    if light.max() == light.min():
        return np.ones(values.shape, bool)
    return np.asarray(light > _otsu(light))


def border_of(image: NDArray[Any]) -> NDArray[Any]:
    """The finite voxels of all faces of an image."""
    ends = [np.take(image, (0, -1), axis).ravel() for axis in range(image.ndim)]
    border = np.concatenate(ends)
    return border[np.isfinite(border)]


def content_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels that show anything but background and its noise, however faint.

    The darkest twentieth, after blurring, is taken for background. Its noise is what differs from
    one voxel to the next; a slightly blurred voxel that exceeds the background by seven standard
    deviations of what the blur leaves of that noise is content. Where there is no background, the
    darkest tissue has texture that a blur keeps, and so is content too.
    """
    voxels = np.asarray(image, np.float32)
    known = np.isfinite(voxels)
    voxels = np.where(known, voxels, voxels[known].min(initial=np.inf))
    if not known.any():
        return known
    heavy = gaussian_blur(voxels, _TISSUE_SIGMA_VOX)
    dark = heavy <= np.percentile(heavy, _DARK_PERCENT)
    voxels = voxels - np.median(voxels[dark])
    # Beyond the border lies background: to mirror the noise there would double it.
    light = gaussian_filter(voxels, _LIGHT_SIGMA_VOX, mode="constant")
    rough = np.abs((voxels - light)[dark])
    # What a Gaussian of one voxel leaves of white noise, along each axis.
    kept = np.sqrt(1 / (2 * np.sqrt(np.pi) * _LIGHT_SIGMA_VOX)) ** image.ndim
    noise = kept * TO_DEVIATION * np.median(rough)
    content = light > _CONTENT_DEVIATIONS * noise
    return np.asarray(content if content.any() else np.ones(image.shape, bool))


def local_correlation_in_tissue(
    fixed: NDArray[Any], aligned: NDArray[Any], tissue: NDArray[np.bool_]
) -> float:
    """Mean squared local correlation over the tissue, in windows of 25 voxels."""
    return mean_local_correlation(fixed, aligned, WINDOW_RADIUS_VOX, tissue)


def _logarithm(smooth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithm of what exceeds the darkest voxel by more than nothing."""
    out, darkest = np.empty_like(smooth), smooth.min()

    def slab(start: int, stop: int) -> None:
        part = out[start:stop]
        np.subtract(smooth[start:stop], darkest, out=part)
        part += 1.0
        np.log(part, out=part)

    over_slabs(slab, len(smooth))
    return out


def _histogram(values: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Counts in 256 bins from the least value to the greatest, and the bins' edges."""
    ends = values.min(), values.max()
    found: list[NDArray[np.intp]] = []
    over_slabs(
        lambda a, b: found.append(np.histogram(values[a:b], bins=256, range=ends)[0]), len(values)
    )
    return np.sum(found, axis=0), np.histogram_bin_edges(values[:0], bins=256, range=ends)


def _otsu(values: NDArray[np.float32]) -> float:
    counts, edges = _histogram(values)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    between = np.nan_to_num(below * above * gap**2)
    return float(edges[int(np.argmax(between)) + 1])
