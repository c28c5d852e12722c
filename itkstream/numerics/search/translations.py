"""Shifts of one image against another by normalised correlation where both count, over FFT.

D. Padfield, "Masked object registration in the Fourier domain", IEEE Transactions on Image
Processing 21 (2012) 2706-2718, doi:10.1109/TIP.2011.2181402.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfftn, next_fast_len, rfftn

from itkstream.numerics.compiling import compiled

__all__ = ["MaskedCorrelation"]

Floats = NDArray[np.float32]

# Shifts by which the images overlap less along an axis, as a share of the smaller one, would wrap
# around shorter transforms: they are left out.
_WRAPPED = 0.3
# Variance below this share of the whole image's is rounding.
_LEAST_VARIANCE = 1e-3
_MOST = 0.999


@dataclass(frozen=True, eq=False)
class MaskedCorrelation:
    """A fixed image, transformed once, against which moving images are shifted.

    Parameters
    ----------
    shape : tuple of int
        Of the transforms.
    fixed, moving, wrapped : tuple of int
        Shapes of the images, and voxels of overlap per axis below which no shift is looked at.
    spectra : tuple of ndarray
        Of the mask of the fixed image, of the image and of its square.
    overlap : float
        Least overlap, in voxels.
    """

    shape: tuple[int, ...]
    fixed: tuple[int, ...]
    moving: tuple[int, ...]
    wrapped: tuple[int, ...]
    spectra: tuple[NDArray[np.complex64], ...]
    overlap: float

    @classmethod
    def of(cls, fixed: Floats, moving: tuple[int, ...], overlap: float) -> MaskedCorrelation:
        """Transform a fixed image, NaN where it does not count; mean 0 and deviation 1."""
        wrapped = tuple(int(_WRAPPED * min(n, m)) for n, m in zip(fixed.shape, moving, strict=True))
        lengths = zip(fixed.shape, moving, wrapped, strict=True)
        shape = tuple(next_fast_len(n + m - 1 - w, real=True) for n, m, w in lengths)
        spectra = tuple(rfftn(part, shape) for part in _parts(fixed))
        return cls(shape, fixed.shape, moving, wrapped, spectra, overlap)

    def best(self, moving: Floats) -> tuple[float, NDArray[np.intp]]:
        """Find the shift of the moving image, in voxels, at which correlation is worth most."""
        one, f, ff = self.spectra
        g1, g, gg = (np.conj(rfftn(part, self.shape)) for part in _parts(moving))
        products = (one * g1, f * g1, one * g, f * g, ff * g1, one * gg)
        sums = [irfftn(product, self.shape).ravel() for product in products]
        worth = _worths(*sums, self.overlap).reshape(self.shape)
        shifts = [
            np.where(np.arange(n) < f - w, np.arange(n), np.arange(n) - n)
            for n, f, w in zip(self.shape, self.fixed, self.wrapped, strict=True)
        ]
        for axis, (along, m, w) in enumerate(zip(shifts, self.moving, self.wrapped, strict=True)):
            beyond = np.moveaxis(worth, axis, 0)
            beyond[along <= w - m] = -np.inf
        at = np.unravel_index(int(worth.argmax()), self.shape)
        return float(worth[at]), np.array([s[k] for s, k in zip(shifts, at, strict=True)], np.intp)


def _parts(image: Floats) -> tuple[Floats, Floats, Floats]:
    counts = np.isfinite(image)
    filled = np.where(counts, image, np.float32(0))
    return counts.astype(np.float32), filled, filled**2


@compiled
def _worths(count, sf, sg, cross, sff, sgg, overlap):  # type: ignore[no-untyped-def]
    """Compute what correlation is worth at each shift: a corner may correlate well by chance."""
    worth = np.full(count.size, -np.inf, np.float32)
    for k in range(count.size):
        n = max(count[k], np.float32(1))
        if n < overlap:
            continue
        least = _LEAST_VARIANCE * n
        vf, vg = max(sff[k] - sf[k] ** 2 / n, least), max(sgg[k] - sg[k] ** 2 / n, least)
        score = (cross[k] - sf[k] * sg[k] / n) / math.sqrt(vf * vg)
        worth[k] = math.atanh(min(max(score, -_MOST), _MOST)) * math.sqrt(n)
    return worth
