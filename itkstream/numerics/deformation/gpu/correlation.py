"""Local correlation on a GPU, and what drives a descent by it."""

from __future__ import annotations

from typing import Any

import numpy as np

from itkstream.numerics.deformation.correlation import ValueRange, window_codes
from itkstream.numerics.gpu.backend import Backend
from itkstream.numerics.gpu.windows import WindowSums

__all__ = ["DeviceCorrelation"]

LINES = 16
"""Lines whose correlations one thread of the kernel `correlate` adds up."""


class DeviceCorrelation:
    """As `itkstream.numerics.deformation.correlation.LocalCorrelation`, on a GPU.

    The sums are the same to the bit: whole numbers that doubles hold exactly.
    """

    def __init__(
        self,
        backend: Backend,
        images: tuple[Any, Any],
        radius: tuple[int, ...],
        beside_others: bool,
    ) -> None:
        fixed, moving = images
        xp = backend.xp
        self._backend = backend
        self._fixed = self._warped = fixed
        self._beside_others = beside_others
        ranges = _range_of(fixed, xp), _range_of(moving, xp)
        window = np.asarray(radius, np.int64)
        code = window_codes(*ranges, window, fixed.shape)
        self._sums = WindowSums(backend, code, radius, fixed.shape)
        self._residual, self._weight = xp.empty_like(fixed), xp.empty_like(fixed)

    def compare(self, warped: Any) -> float:
        """Mean squared local correlation with the warped image."""
        self._warped = warped
        (nx, ny, nz), radius = self._sums.shape, int(self._sums.radius[2])
        totals = self._backend.xp.empty((2, nx, -(-ny // LINES), nz))

        def use(start: int, planes: int, sums: Any, _: Any) -> None:
            self._backend.launch(
                "correlate",
                (nz, totals.shape[2], planes),
                *(self._fixed, warped, nx, ny, nz, self._sums.code, sums, radius),
                *(start, planes, self._beside_others, self._residual, self._weight, totals),
            )

        self._sums.each(self._fixed, warped, use)
        total, count = (float(part.sum()) for part in totals)
        return total / count if count else 0.0

    def collect(self, spacing: tuple[float, ...], stride: tuple[int, ...], out: Any) -> None:
        """Mean force, and Gauss-Newton matrix if wanted, of the voxels of each node."""
        nodes = out.shape[:3]
        self._backend.launch(
            "collect_forces",
            nodes[::-1],
            *(self._warped, self._residual, self._weight, *self._warped.shape),
            *(*map(float, spacing), *map(int, stride), out.shape[3], out, *nodes),
        )


def _range_of(image: Any, xp: Any) -> ValueRange:
    """The range of the finite values of an image of a device."""
    counting = xp.isfinite(image)
    if not counting.any():
        return ValueRange(0.0, 0.0)
    low = xp.where(counting, image, np.float32(np.inf)).min()
    return ValueRange(float(low), float(xp.where(counting, image, np.float32(-np.inf)).max()))
