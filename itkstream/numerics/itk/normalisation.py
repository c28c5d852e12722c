"""Local normalisation: images at one brightness and contrast everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

__all__ = ["normalise_locally"]

# Variance, relative to that of the image, below which a window holds no texture.
_LEAST_VARIANCE = 1e-3


def normalise_locally(image: NDArray[np.float32], radius: int | None) -> NDArray[np.float32]:
    """The image at mean 0 and deviation 1, of the whole or of the window around each voxel."""
    counts = np.isfinite(image)
    values = image[counts].astype(np.float64)
    mean, deviation = (values.mean(), values.std()) if values.size else (0.0, 0.0)
    if deviation == 0:
        return np.where(counts, np.float32(0), image)
    image = ((image - mean) / deviation).astype(np.float32)
    if radius is None:
        return image
    filled = np.where(counts, image, np.float32(0))
    size = 2 * int(radius) + 1
    share = np.maximum(uniform_filter(counts.astype(np.float32), size), 1e-6)
    local = uniform_filter(filled, size) / share
    square = uniform_filter(filled * filled, size) / share
    spread = np.sqrt(np.maximum(square - local**2, _LEAST_VARIANCE))
    return np.asarray((image - local) / spread, np.float32)
