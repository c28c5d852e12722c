"""Voxels without a value: NaN stands for them, whatever an image holds there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError

__all__ = ["counting_voxels", "without_infinities"]


def without_infinities(image: NDArray[Any]) -> NDArray[Any]:
    """An image whose infinite voxels are NaN: like those, they do not count.

    Parameters
    ----------
    image : ndarray
        Of real numbers.

    Returns
    -------
    ndarray
        The image itself where it has none.
    """
    if image.dtype.kind != "f" or not np.isinf(image).any():
        return image
    return np.where(np.isinf(image), image.dtype.type(np.nan), image)


def counting_voxels(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """An image as the deformations take it: NaN where it does not count.

    Parameters
    ----------
    name : str
        How messages call it.
    array : ndarray
        Of real numbers; NaN and infinities do not count.

    Returns
    -------
    ndarray, float32
        Contiguous.

    Raises
    ------
    InputError
        Where no voxel counts.
    """
    image = without_infinities(np.ascontiguousarray(array, np.float32))
    if np.isnan(image).all():
        raise InputError(
            f"the {name} image holds nothing but NaN, infinities and what the {name} mask leaves "
            "out: no voxel counts"
        )
    return image
