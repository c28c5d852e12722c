"""Local correlation on a GPU: window sums axis by axis, some planes at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from itkstream.numerics.deformation.correlation import ValueRange, window_codes
from itkstream.numerics.gpu.backend import Backend

__all__ = ["DeviceCorrelation"]

LINES = 16
"""Lines whose correlations one thread of the kernel `correlate` adds up."""

SHARE = 12
"""The planes whose window sums are held are at most such a part of all.

Six doubles after one axis and six after the next are 96 bytes a voxel, 8 for each of all voxels.
"""

_SUMS = 6


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
        self._radius = radius
        self._beside_others = beside_others
        ranges = _range_of(fixed, xp), _range_of(moving, xp)
        window = np.asarray(radius, np.int64)
        self._code = backend.put(window_codes(*ranges, window, fixed.shape))
        self._residual, self._weight = xp.empty_like(fixed), xp.empty_like(fixed)
        self._planes = max(1, fixed.shape[0] // SHARE)

    def compare(self, warped: Any) -> float:
        """Mean squared local correlation with the warped image."""
        self._warped = warped
        nx, ny, nz = warped.shape
        totals = self._backend.xp.empty((2, nx, -(-ny // LINES), nz))
        sums = self._room(ny, nz)
        for start in range(0, nx, self._planes):
            self._correlate(start, min(self._planes, nx - start), sums, totals)
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

    def _room(self, ny: int, nz: int) -> tuple[Any, Any]:
        """Room for the sums of as many planes as there is memory for: halves, down to one."""
        while True:
            shape = (_SUMS, self._planes, ny, nz)
            try:
                return self._backend.xp.empty(shape), self._backend.xp.empty(shape)
            except MemoryError:
                if self._planes == 1:
                    raise
                self._planes //= 2
                self._backend.release()

    def _correlate(self, start: int, planes: int, sums: tuple[Any, Any], totals: Any) -> None:
        launch, (nx, ny, nz) = self._backend.launch, self._warped.shape
        images, (first, second) = (self._fixed, self._warped), sums
        launch(
            "sum_planes",
            (ny * nz,),
            *(*images, nx, ny * nz, self._code, int(self._radius[0]), start, planes, first),
        )
        sheets = _SUMS * planes
        launch("sum_lines", (nz, sheets), first, sheets, ny, nz, int(self._radius[1]), second)
        launch(
            "correlate",
            (nz, totals.shape[2], planes),
            *(*images, nx, ny, nz, self._code, second, int(self._radius[2]), start, planes),
            *(self._beside_others, self._residual, self._weight, totals),
        )


def _range_of(image: Any, xp: Any) -> ValueRange:
    """The range of the finite values of an image of a device."""
    counting = xp.isfinite(image)
    if not counting.any():
        return ValueRange(0.0, 0.0)
    low = xp.where(counting, image, np.float32(np.inf)).min()
    return ValueRange(float(low), float(xp.where(counting, image, np.float32(-np.inf)).max()))
