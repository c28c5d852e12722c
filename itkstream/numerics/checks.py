"""Images as the numerics take them: real numbers on a grid, NaN for voxels without a value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError

__all__ = [
    "TO_DEVIATION",
    "check_image",
    "counting_voxels",
    "floating_dtype",
    "mark_voxels",
    "without_infinities",
]

TO_DEVIATION = 1.4826
"""From the median absolute deviation of Gaussian noise to its standard one."""


def check_image(what: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Refuse an array that holds no real numbers on a grid of this shape."""
    if array.shape != shape:
        raise InputError(f"{what} has shape {array.shape}, which does not fit a grid of {shape}")
    if array.dtype.kind not in "buif":
        raise InputError(f"{what} must hold real numbers; got {array.dtype}")


def floating_dtype(dtype: np.dtype[Any]) -> np.dtype[np.floating[Any]]:
    """Single precision where it holds all values of a type, else double."""
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)


def without_infinities(image: Any, xp: Any = np) -> Any:
    """An image whose infinite voxels are NaN: like those, they do not count.

    `xp` is the namespace of the image, as numpy.
    """
    if image.dtype.kind != "f" or not xp.isinf(image).any():
        return image
    return xp.where(xp.isinf(image), image.dtype.type(np.nan), image)


def counting_voxels(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The fixed or moving image, contiguous, with NaN where a voxel does not count."""
    check_image(f"the {name} image", array, shape)
    image: NDArray[np.float32] = mark_voxels(name, np.ascontiguousarray(array, np.float32))
    return image


def mark_voxels(name: str, image: Any, xp: Any = np) -> Any:
    """Mark voxels that do not count by NaN, and refuse an image of which none does.

    `xp` is the namespace of the image, as numpy.
    """
    if xp.isfinite(image).all():
        return image
    marked = without_infinities(image, xp)
    if xp.isnan(marked).all():
        raise InputError(
            f"the {name} image holds nothing but NaN, infinities and what the {name} mask leaves "
            f"out: no voxel of the {name} image counts"
        )
    return marked
