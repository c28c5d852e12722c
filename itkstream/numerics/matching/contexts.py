"""The surroundings of points, sampled, normalised and compared."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from itkstream.numerics.lift import lift_values, lift_vectors
from itkstream.numerics.threads import over_slabs

__all__ = ["correlate", "sample_around"]

# Integers up to here, and sums of products of such up to its square, are exact in single precision.
_EXACT_NORM = 4096.0


def sample_around(
    data: NDArray[np.float32], centres: NDArray[np.float64], offsets: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Sample an image linearly around each of many centres, and normalise each set of samples.

    Samples outside the image take no part: the mean and the norm are those of the samples inside,
    and the others become 0.

    The normalised samples are rounded to integers, of norm just below 4096. Every product and
    every partial sum in the scalar product of two such vectors is then a whole number that single
    precision holds exactly: a matrix library gives the same bits in whatever order and with
    however many threads it adds. What rounding costs a correlation is below 0.001.

    Shapes: `centres` (m, n); `offsets` (k, n); returns `samples` (m, k), `inside` (m,).
    """
    volume = np.ascontiguousarray(data, np.float32).reshape(lift_values(data.shape, 1))
    at, steps = lift_vectors(centres), lift_vectors(offsets)
    samples = np.empty((len(at), len(steps)), np.float32)
    inside = np.empty(len(at), np.float64)
    # Rounding adds at most half a unit per sample to the norm.
    norm = _EXACT_NORM - 0.5 * math.sqrt(len(steps))
    outputs = (samples, inside)
    over_slabs(lambda a, b: _sample_slab(volume, at, steps, norm, outputs, a, b), len(at))
    return samples, inside


def correlate(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlate every set of samples with every other.

    Shapes: `a` and `b` (m, k) and (l, k); returns (m, l).
    """
    scores = a @ b.T
    scores *= _inverse_norms(a)[:, None]
    scores *= _inverse_norms(b)
    return scores


def _inverse_norms(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.sqrt(np.einsum("ij,ij->i", samples, samples))
    return np.asarray(1 / np.maximum(norms, 1), np.float32)


@njit(nogil=True, cache=True)
def _sample_slab(data, centres, offsets, norm, outputs, start, stop):  # type: ignore[no-untyped-def]
    for row in range(start, stop):
        values = outputs[0][row]
        x, y, z = centres[row, 0], centres[row, 1], centres[row, 2]
        count, total = 0, 0.0
        for k in range(offsets.shape[0]):
            value = _linear(data, x + offsets[k, 0], y + offsets[k, 1], z + offsets[k, 2])
            values[k] = value
            if not math.isnan(value):
                count += 1
                total += values[k]
        outputs[1][row] = count / offsets.shape[0]
        _normalise(values, total / max(count, 1), norm)


@njit(nogil=True, cache=True)
def _normalise(values, mean, norm):  # type: ignore[no-untyped-def]
    squares = 0.0
    for k in range(values.size):
        if not math.isnan(values[k]):
            squares += (values[k] - mean) ** 2
    # Below this, what varies is the rounding of single precision.
    varies = squares > values.size * (1e-6 * mean) ** 2
    scale = norm / math.sqrt(squares) if varies else 0.0
    for k in range(values.size):
        values[k] = 0.0 if math.isnan(values[k]) else np.rint((values[k] - mean) * scale)


@njit(nogil=True, cache=True)
def _linear(data, x, y, z):  # type: ignore[no-untyped-def]
    """Linear interpolation; NaN outside the voxels of the image."""
    nx, ny, nz = data.shape
    if not (-0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5 and -0.5 <= z < nz - 0.5):
        return math.nan
    x, y, z = min(max(x, 0.0), nx - 1.0), min(max(y, 0.0), ny - 1.0), min(max(z, 0.0), nz - 1.0)
    i, j, k = min(int(x), max(nx - 2, 0)), min(int(y), max(ny - 2, 0)), min(int(z), max(nz - 2, 0))
    u, v, w = np.float32(x - i), np.float32(y - j), np.float32(z - k)
    one = np.float32(1)
    i1, j1, k1 = min(i + 1, nx - 1), min(j + 1, ny - 1), min(k + 1, nz - 1)
    low = (one - v) * ((one - w) * data[i, j, k] + w * data[i, j, k1])
    low += v * ((one - w) * data[i, j1, k] + w * data[i, j1, k1])
    high = (one - v) * ((one - w) * data[i1, j, k] + w * data[i1, j, k1])
    high += v * ((one - w) * data[i1, j1, k] + w * data[i1, j1, k1])
    return (one - u) * low + u * high
