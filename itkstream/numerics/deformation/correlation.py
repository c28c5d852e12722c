"""Local correlation of two images in box windows, and what drives a registration by it.

Window sums run over the array and cost the same for every radius. Images are rounded to a lattice
of values so fine that it does not matter and so coarse that every window sum is exact in float64:
nothing drifts along a running sum, a constant region has variance zero, and results do not depend
on how threads share the planes. Integer images of up to 18 bits are not rounded at all.

Voxels that are NaN in either image take no part: windows at borders and masks hold fewer voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.numerics.checks import floating_dtype, without_infinities
from itkstream.numerics.compiling import compiled, expanded, helper
from itkstream.numerics.deformation.force import collect_forces
from itkstream.numerics.gpu.backend import Backend
from itkstream.numerics.gpu.dispatch import on_engine
from itkstream.numerics.gpu.windows import correlate_windows, correlation_bytes
from itkstream.numerics.lift import lift_values
from itkstream.numerics.threads import over_slabs

__all__ = [
    "LocalCorrelation",
    "ValueRange",
    "correlation_residual",
    "local_correlation",
    "mean_local_correlation",
    "window_codes",
]

LEAST_FILLED = 0.1
"""Windows with a smaller share of valid voxels do not count; a cut corner window holds 1/8."""


@dataclass(frozen=True)
class ValueRange:
    """The values an image takes, for exact window sums.

    Parameters
    ----------
    low, high : float
        Finite bounds of the values.
    """

    low: float
    high: float

    @classmethod
    def of(cls, *images: NDArray[Any]) -> ValueRange:
        """The range of the finite values of some images."""
        lows = [float(np.fmin.reduce(a, axis=None)) for a in images]
        highs = [float(np.fmax.reduce(a, axis=None)) for a in images]
        if not np.isfinite(lows + highs).all():
            return cls(0.0, 0.0)
        return cls(min(lows), max(highs))

    def code(self, window: int) -> tuple[float, float]:
        """Offset and scale: sums of products of ``rint((value - offset) * scale)`` are exact."""
        offset = math.floor((self.low + self.high) / 2)
        bits = math.floor((52 - math.log2(window)) / 2)
        reach = max(self.high - offset, offset - self.low, 1e-30)
        return float(offset), 2.0 ** math.floor(bits - math.log2(reach) - 1e-9)


def local_correlation(
    a: NDArray[Any], b: NDArray[Any], radius: int | Sequence[int]
) -> NDArray[np.float64]:
    """Squared correlation of two images in a window of ``2 * radius + 1`` voxels around each voxel.

    0 where an image is constant in the window, NaN at voxels that do not count.
    """
    images = _pair(a, b)
    window = _window(radius, images[0].ndim)
    code = window_codes(ValueRange.of(images[0]), ValueRange.of(images[1]), window, images[0].shape)
    out = np.empty(lift_values(images[0].shape, 1))
    first, second = (image.reshape(out.shape) for image in images)

    def on_processors() -> None:
        over_slabs(lambda i, j: _quality(first, second, code, window, out, i, j), out.shape[0])

    def on_device(gpu: Backend) -> None:
        correlate_windows(gpu, (first, second), code, tuple(window.tolist()), out)

    if first.dtype == np.float32:
        on_engine(on_device, on_processors, correlation_bytes(out.shape))
    else:
        on_processors()
    return out.reshape(a.shape)


def mean_local_correlation(
    a: NDArray[Any],
    b: NDArray[Any],
    radius: int | Sequence[int],
    mask: NDArray[np.bool_] | None = None,
) -> float:
    """Mean of `local_correlation` over voxels that count, in a mask that windows reach beyond."""
    values = local_correlation(a, b, radius)
    if mask is not None:
        values = values[np.asarray(mask, bool)]
    counting = np.isfinite(values)
    return float(values[counting].mean()) if counting.any() else 0.0


def correlation_residual(
    images: tuple[NDArray[np.float32], NDArray[np.float32]],
    ranges: tuple[ValueRange, ValueRange],
    radius: int | Sequence[int],
    residual: NDArray[np.float32],
    weight: NDArray[np.float32],
    beside_others: bool = False,
) -> float:
    """The part of the second image that is not locally proportional to the first.

    In each window both images are normalised to mean 0 and deviation 1; with their correlation r
    the residual of the central voxel is ``fixed - r * warped`` and the weight is r over the
    deviation of the warped image. The ascent direction of squared local correlation is then
    ``residual * weight * gradient(warped)`` and its Gauss-Newton matrix
    ``weight**2 * gradient(warped) gradient(warped)^T``. Beside other channels, see
    `LocalCorrelation`.

    Avants et al., Medical Image Analysis 12 (2008) 26-41, doi:10.1016/j.media.2007.06.004, for the
    central-voxel gradient of local correlation.
    """
    shape = images[0].shape
    window = _window(radius, 3)
    code = window_codes(*ranges, window, shape)
    totals = np.zeros((shape[0], 2))
    over_slabs(
        lambda i, j: _residual(
            images, (code, window, beside_others), (residual, weight), totals, i, j
        ),
        shape[0],
    )
    total, count = totals.sum(axis=0)
    return float(total / count) if count else 0.0


class LocalCorrelation:
    """Squared local correlation of a fixed image with a moving one as it is warped, and its pull.

    `radius` is that of the window, in voxels per axis. Beside other channels, force and matrix of a
    voxel count by the eighth power of its correlation once more: where a channel shows noise alone,
    its steep gradients would hold what another one moves. Of two channels with half of the nuclei
    each, means of three seeds, that leaves 0.077 / 0.199 voxels (median / 95th percentile) against
    0.082 / 0.219 by the fourth power; alone they leave 0.119 / 0.394. With small nuclei 0.051 /
    0.109 against 0.051 / 0.110, with a warp of 9 µm 0.113 / 0.316 against 0.117 / 0.320.
    """

    def __init__(
        self,
        fixed: NDArray[np.float32],
        moving: NDArray[np.float32],
        radius: tuple[int, ...],
        beside_others: bool = False,
    ) -> None:
        self._beside_others = beside_others
        self._fixed = self._warped = fixed
        self._ranges = ValueRange.of(fixed), ValueRange.of(moving)
        self._radius = radius
        self._residual, self._weight = np.empty_like(fixed), np.empty_like(fixed)

    def compare(self, warped: NDArray[np.float32]) -> float:
        """Mean squared local correlation with the warped image."""
        self._warped = warped
        images = self._fixed, warped
        return correlation_residual(
            images,
            self._ranges,
            self._radius,
            self._residual,
            self._weight,
            self._beside_others,
        )

    def collect(
        self, spacing: tuple[float, ...], stride: tuple[int, ...], out: NDArray[np.float32]
    ) -> None:
        """Mean force, and Gauss-Newton matrix if wanted, of the voxels of each node."""
        collect_forces(self._warped, (self._residual, self._weight), spacing, stride, out)


def _pair(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both images in single precision where it holds them: the descents use that, compiled."""
    if a.shape != b.shape or a.ndim not in (2, 3):
        raise InputError(
            "local correlation needs two 2-D or 3-D images of one shape; "
            f"got shapes {a.shape} and {b.shape}"
        )
    wanted = np.promote_types(floating_dtype(a.dtype), floating_dtype(b.dtype))
    # Another function would be compiled for arrays that cannot be written.
    first, second = (np.require(image, wanted, ["C", "W"]) for image in (a, b))
    return without_infinities(first), without_infinities(second)


def _window(radius: int | Sequence[int], ndim: int) -> NDArray[np.int64]:
    given = np.asarray(radius)
    if given.dtype.kind not in "iu" or given.min() < 1 or given.size not in (1, ndim):
        raise InputError(f"radius must be a whole number >= 1, or one per axis; got {radius}")
    window = np.zeros(3, np.int64)
    window[3 - ndim :] = given
    return window


def window_codes(
    first: ValueRange, second: ValueRange, window: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Offset and scale of both images, and the least count of a window."""
    full = math.prod(int(2 * r + 1) for r in window)
    lengths = lift_values(shape, 1)
    cut = math.prod(min(int(2 * r + 1), n) for r, n in zip(window, lengths, strict=True))
    return np.array([*first.code(full), *second.code(full), max(2.0, LEAST_FILLED * cut)])


@helper
def _add_plane(a, b, code, sign, columns):  # type: ignore[no-untyped-def]
    """Add one plane, or take it away, to the sums along axis 0."""
    for j in range(a.shape[0]):
        for k in range(a.shape[1]):
            x = np.rint((np.float64(a[j, k]) - code[0]) * code[1])
            y = np.rint((np.float64(b[j, k]) - code[2]) * code[3])
            if x == x and y == y:
                columns[0, j, k] += sign
                columns[1, j, k] += sign * x
                columns[2, j, k] += sign * y
                columns[3, j, k] += sign * x * x
                columns[4, j, k] += sign * y * y
                columns[5, j, k] += sign * x * y


@helper
def _add_row(columns, j, sign, rows):  # type: ignore[no-untyped-def]
    """Add one row of the plane of sums, or take it away, to the sums along axes 0 and 1."""
    for q in range(columns.shape[0]):
        for k in range(columns.shape[2]):
            rows[q, k] += sign * columns[q, j, k]


@helper
def _window_line(rows, radius, sums):  # type: ignore[no-untyped-def]
    """Running sums along axis 2, of an even number of rows.

    Two at a time, as an addition to a sum waits for the one before it: 2.7 instead of 9.4 ns for
    the six sums of a voxel.
    """
    n = rows.shape[1]
    for q in range(0, rows.shape[0], 2):
        a = b = 0.0
        for k in range(-radius, n):
            enters, leaves = k + radius, k - radius - 1
            if enters < n and leaves >= 0:
                a += rows[q, enters] - rows[q, leaves]
                b += rows[q + 1, enters] - rows[q + 1, leaves]
            elif enters < n:
                a += rows[q, enters]
                b += rows[q + 1, enters]
            elif leaves >= 0:
                a -= rows[q, leaves]
                b -= rows[q + 1, leaves]
            if k >= 0:
                sums[q, k], sums[q + 1, k] = a, b


@helper
def next_line(columns, j, window, rows, sums):  # type: ignore[no-untyped-def]
    """Sums of the windows centred on row j, given those sums along axis 1 of row j - 1."""
    if j == 0:
        rows[:] = 0.0
        for y in range(min(window[1], columns.shape[1])):
            _add_row(columns, y, 1.0, rows)
    if j + window[1] < columns.shape[1]:
        _add_row(columns, j + window[1], 1.0, rows)
    if j > window[1]:
        _add_row(columns, j - window[1] - 1, -1.0, rows)
    _window_line(rows, window[2], sums)


@helper
def _next_plane(a, b, code, window, i, start, columns):  # type: ignore[no-untyped-def]
    """Sums along axis 0 of the windows centred on plane i, given those of plane i - 1."""
    radius = window[0]
    if i == start:
        for x in range(max(0, i - radius), min(a.shape[0], i + radius)):
            _add_plane(a[x], b[x], code, 1.0, columns)
    if i + radius < a.shape[0]:
        _add_plane(a[i + radius], b[i + radius], code, 1.0, columns)
    if i > start and i > radius:
        _add_plane(a[i - radius - 1], b[i - radius - 1], code, -1.0, columns)


@expanded
def _moments(sums, k, least):  # type: ignore[no-untyped-def]
    """Means, variances and covariance; zero variance for constant and almost empty windows."""
    n = sums[0, k]
    if n < least:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    ma = sums[1, k] / n
    mb = sums[2, k] / n
    va = sums[3, k] / n - ma * ma
    vb = sums[4, k] / n - mb * mb
    # A quarter of a step of the value lattice, squared: above rounding, below any real contrast.
    if va < 0.0625 or vb < 0.0625:
        return ma, mb, 0.0, 0.0, 0.0
    return ma, mb, va, vb, sums[5, k] / n - ma * mb


@compiled
def _quality(a, b, code, window, out, start, stop):  # type: ignore[no-untyped-def]
    columns = np.zeros((6, *a.shape[1:]))
    rows = np.zeros((6, a.shape[2]))
    sums = np.zeros((6, a.shape[2]))
    for i in range(start, stop):
        _next_plane(a, b, code, window, i, start, columns)
        for j in range(a.shape[1]):
            next_line(columns, j, window, rows, sums)
            for k in range(a.shape[2]):
                _, _, va, vb, vab = _moments(sums, k, code[4])
                out[i, j, k] = min(vab * vab / (va * vb), 1.0) if va > 0.0 else 0.0
                if np.isnan(a[i, j, k]) or np.isnan(b[i, j, k]):
                    out[i, j, k] = np.nan


@helper
def _residual_line(a, b, code, beside_others, sums, residual, weight):  # type: ignore[no-untyped-def]
    total = 0.0
    count = 0
    for k in range(a.shape[0]):
        residual[k] = 0.0
        weight[k] = 0.0
        x = (np.float64(a[k]) - code[0]) * code[1]
        y = (np.float64(b[k]) - code[2]) * code[3]
        if x != x or y != y:
            continue
        count += 1
        ma, mb, va, vb, vab = _moments(sums, k, code[4])
        if va > 0.0:
            residual[k] = (x - ma - vab / vb * (y - mb)) / math.sqrt(va)
            weight[k] = vab / (math.sqrt(va) * vb) * code[3]
            if beside_others:
                share = min(vab * vab / (va * vb), 1.0)
                residual[k] *= share * share
                weight[k] *= share * share
            total += vab * vab / (va * vb)
    return total, count


@compiled
def _residual(images, how, outputs, totals, start, stop):  # type: ignore[no-untyped-def]
    a, b = images
    code, window, beside_others = how
    columns = np.zeros((6, *a.shape[1:]))
    rows = np.zeros((6, a.shape[2]))
    sums = np.zeros((6, a.shape[2]))
    residual, weight = outputs
    for i in range(start, stop):
        _next_plane(a, b, code, window, i, start, columns)
        for j in range(a.shape[1]):
            next_line(columns, j, window, rows, sums)
            total, count = _residual_line(
                a[i, j], b[i, j], code, beside_others, sums, residual[i, j], weight[i, j]
            )
            totals[i, 0] += total
            totals[i, 1] += count
