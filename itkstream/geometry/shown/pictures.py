"""Planes of images as grey pictures."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry.grid import array_axes
from itkstream.geometry.image import Image

__all__ = ["plane_png", "stretched", "thumbnail"]

# Of a thumbnail: voxels to draw at most, and voxels to read for it, half a second of a disk.
_DRAWN = 320
_READ = 2**27


def plane_png(image: Image) -> bytes:
    """Draw the middle plane of an image in grey, as the bytes of a PNG.

    Parameters
    ----------
    image : Image
        Of 2 or 3 axes; of three, the plane across the first in the order z, y, x is drawn.

    Returns
    -------
    bytes
        The picture.

    Examples
    --------
    >>> itkstream.overlay.plane_png(fixed)[1:4]
    b'PNG'
    """
    from matplotlib.image import imsave

    shown = image.reorder(array_axes(image.ndim))
    plane = shown.data if shown.ndim == 2 else shown.data[shown.shape[0] // 2]
    grey = stretched(np.asarray(plane), (1.0, 99.7))
    picture = BytesIO()
    imsave(picture, np.repeat(grey[..., None], 3, axis=-1), format="png")
    return picture.getvalue()


def thumbnail(image: Image) -> bytes | None:
    """Draw the middle plane of an image, every so many voxels; None where it is slow to read."""
    shown = image.reorder(array_axes(image.ndim))
    middle = (slice(shown.shape[0] // 2, shown.shape[0] // 2 + 1),) if shown.ndim == 3 else ()
    rows, columns = shown.shape[-2:]
    depth = (shown.chunk_shape or (1,))[0] if shown.ndim == 3 else 1
    if depth * rows * columns > _READ:
        return None
    step = math.ceil(max(rows, columns) / _DRAWN)
    return plane_png(shown[(*middle, slice(None, None, step), slice(None, None, step))])


def stretched(picture: NDArray[Any], contrast: tuple[float, float]) -> NDArray[np.float32]:
    """Scale a picture to 0 ... 1 between two percentiles of what it shows; the dim is opened."""
    from skimage.exposure import rescale_intensity

    values = np.asarray(picture, np.float32)
    # Resampling fills with 0 what lies outside the moving image: not a part of its range.
    seen = np.isfinite(values) & (values != 0)
    if not seen.any():
        return np.zeros_like(values)
    low, high = np.percentile(values[seen], contrast)
    shown = (low, high if high > low else low + 1.0)
    scaled = rescale_intensity(np.where(seen, values, low), shown, (0.0, 1.0))
    # The square root opens the dim nuclei that a linear scale hides beside the bright ones.
    return np.sqrt(scaled).astype(np.float32)
