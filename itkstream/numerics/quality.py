"""How good a registration is, measured on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from itkstream.numerics.correlation import mean_local_correlation

__all__ = ["WINDOW_RADIUS_VOX", "local_correlation_in_tissue", "tissue_mask"]

WINDOW_RADIUS_VOX = 12
"""The yardstick's window of 25 voxels."""

# Nuclei and the gaps between them are one tissue: the blur closes gaps of a few voxels.
_TISSUE_SIGMA_VOX = 4.0


def tissue_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Where an image shows tissue rather than background.

    The blurred image is split in two by Otsu's threshold on a logarithmic scale of intensity.

    Parameters
    ----------
    image : ndarray
        Bright tissue on a darker background; NaN counts as background.

    Returns
    -------
    ndarray of bool
        True in tissue; everywhere where the image is constant.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on
    Systems, Man, and Cybernetics 9 (1979) 62-66, doi:10.1109/TSMC.1979.4310076.
    """
    values = image.astype(np.float32)
    known = np.isfinite(values)
    darkest = values.min(where=known, initial=np.inf) if known.any() else 0.0
    smooth = gaussian_filter(np.where(known, values, darkest), _TISSUE_SIGMA_VOX)
    smooth = np.log(smooth - smooth.min() + 1.0)
    if smooth.max() == smooth.min():
        return np.ones(image.shape, bool)
    return np.asarray(smooth > _otsu(smooth))


def local_correlation_in_tissue(
    fixed: NDArray[Any], aligned: NDArray[Any], tissue: NDArray[np.bool_]
) -> float:
    """Mean squared local correlation over the tissue, in windows of 25 voxels.

    Parameters
    ----------
    fixed, aligned : ndarray
        Two images on one grid; NaN in `aligned` marks voxels outside the moving image, which do
        not count.
    tissue : ndarray of bool
        Where to average.

    Returns
    -------
    float
        Between 0 and 1; computed in float64.
    """
    return mean_local_correlation(fixed, aligned, WINDOW_RADIUS_VOX, tissue)


def _otsu(values: NDArray[np.float32]) -> float:
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    between = np.nan_to_num(below * above * gap**2)
    return float(edges[int(np.argmax(between)) + 1])
