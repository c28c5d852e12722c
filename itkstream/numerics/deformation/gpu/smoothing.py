"""Smoothing of fields on nodes by cosine transforms that are matrix products.

A GPU multiplies matrices faster than it does anything else, and nodes are few along an axis: the
transform of 128 nodes is one product of 128 x 128 numbers with all lines. The operator, and the
reflection that continues a field to a length that is quick to transform on the processors, are
those of `itkstream.numerics.deformation.kernels`: results agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from itkstream.numerics.deformation.kernels import SmoothingKernel, squared_waves

__all__ = ["CosineSmoother"]


@dataclass(frozen=True, eq=False)
class CosineSmoother:
    """A kernel without grad-div term, for fields on one lattice; its arrays are on the device.

    Parameters
    ----------
    there, back : tuple of ndarray
        For each axis the cosine transform, and the way back.
    weights : ndarray
        By which the kernel multiplies each wave.
    xp : module
        The namespace of the arrays.
    """

    there: tuple[Any, ...]
    back: tuple[Any, ...]
    weights: Any
    xp: Any

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        spacing: tuple[float, ...],
        kernel: SmoothingKernel,
        steps: tuple[float, ...],
        xp: Any,
    ) -> CosineSmoother:
        """For a lattice of three axes, see `squared_waves`."""
        there, back = zip(*(map(xp.asarray, _bases(n)) for n in shape), strict=True)
        waves = [
            xp.asarray(squared_waves(len(basis), h, s))
            for basis, h, s in zip(there, spacing, steps, strict=True)
        ]
        squares = waves[0][:, None, None] + waves[1][:, None] + waves[2]
        weights = (np.float32(kernel.c) + np.float32(kernel.a) * squares) ** np.float32(-kernel.d)
        return cls(there, back, weights, xp)

    def smooth(self, field: Any) -> Any:
        """Smooth each component of a field (a, b, c, components)."""
        xp = self.xp
        parts = xp.ascontiguousarray(xp.moveaxis(field, -1, 0))
        spectrum = _along_all(parts, self.there, xp)
        spectrum *= self.weights
        smooth = _along_all(spectrum, self.back, xp)
        return xp.ascontiguousarray(xp.moveaxis(smooth, 0, -1))


def _along_all(parts: Any, matrices: Sequence[Any], xp: Any) -> Any:
    """Multiply the lines along each axis of (components, a, b, c) with a matrix."""
    first, second, third = matrices
    parts = xp.matmul(parts, third.T)
    parts = xp.matmul(second, parts)
    components, a, b, c = parts.shape
    parts = xp.matmul(first, parts.reshape(components, a, b * c))
    return parts.reshape(components, len(first), b, c)


@lru_cache(maxsize=64)
def _bases(n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The orthonormal cosine transform of n nodes that are reflected, and the way back to them."""
    padded = fft.next_fast_len(n, real=True)
    whole = fft.dct(np.eye(padded), norm="ortho", axis=0)
    there = whole[:, :n].copy()
    for beyond in range(n, padded):
        there[:, 2 * n - 1 - beyond] += whole[:, beyond]
    return there.astype(np.float32), whole[:, :n].T.astype(np.float32)
