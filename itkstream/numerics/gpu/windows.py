"""Window sums of two images on a GPU, axis by axis and some planes at a time, and correlations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.numerics.gpu.backend import Backend

__all__ = ["WindowSums", "correlate_windows", "correlation_bytes"]

SHARE = 12
"""The planes whose window sums are held are at most such a part of all.

Six doubles after one axis and six after the next are 96 bytes a voxel, 8 for each of all voxels.
"""

_SUMS = 6


class WindowSums:
    """Sums over the windows around the voxels of some planes, along axes 0 and 1.

    They are the bits that the processors find: whole numbers that doubles hold exactly.

    Parameters
    ----------
    backend : Backend
        The device.
    code : ndarray, (5,)
        Offset and scale of the values of either image, and the least count of a window.
    radius : tuple of int
        Of the window, voxels per axis.
    shape : tuple of int
        Of the images, three axes. Both are kept as the kernels take them: one plane as so many
        planes of one line each, as sums are held for some planes and not for all.
    """

    def __init__(
        self,
        backend: Backend,
        code: NDArray[np.float64],
        radius: tuple[int, ...],
        shape: tuple[int, ...],
    ) -> None:
        self.code = backend.put(code)
        self.radius, self.shape = (_planes_first(shape, values) for values in (radius, shape))
        self._backend = backend
        self._planes = max(1, self.shape[0] // SHARE)

    def each(self, first: Any, second: Any, use: Callable[[int, int, Any, Any], None]) -> None:
        """Call ``use(start, planes, sums, spare)`` for so many planes from one on, until all are.

        What is `spare`, as long as the sums, may be written over.
        """
        nx, ny, nz = self.shape
        along, across = self._room(ny, nz)
        for start in range(0, nx, self._planes):
            planes = min(self._planes, nx - start)
            self._backend.launch(
                "sum_planes",
                (ny * nz,),
                *(first, second, nx, ny * nz, self.code, int(self.radius[0]), start, planes),
                along,
            )
            sheets = _SUMS * planes
            self._backend.launch(
                "sum_lines", (nz, sheets), along, sheets, ny, nz, int(self.radius[1]), across
            )
            use(start, planes, across, along)

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


def _planes_first(shape: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    """Values of three axes; those of the first two change places where there is one plane."""
    first, second, third = values
    return (second, first, third) if shape[0] == 1 else values


def correlation_bytes(shape: tuple[int, ...]) -> float:
    """Memory of a device without which it is of no use to correlate images: sums of one plane."""
    planes, *plane = _planes_first(shape, shape)
    return (2 * 4 * planes + 2 * 8 * _SUMS) * math.prod(plane)


def correlate_windows(
    backend: Backend,
    images: tuple[NDArray[np.float32], NDArray[np.float32]],
    code: NDArray[np.float64],
    radius: tuple[int, ...],
    out: NDArray[np.float64],
) -> None:
    """Squared correlation of two images in the window around each voxel, into an array of its own.

    Shapes: images and `out` (x, y, z).
    """
    first, second = map(backend.put, images)
    sums = WindowSums(backend, code, radius, out.shape)
    _, ny, nz = sums.shape
    target = out.reshape(sums.shape)

    def use(start: int, planes: int, found: Any, spare: Any) -> None:
        squares = spare[0, :planes]
        backend.launch(
            "correlate_windows",
            (nz, ny, planes),
            *(first, second, ny, nz, sums.code, found, int(sums.radius[2]), start, planes, squares),
        )
        target[start : start + planes] = backend.get(squares)

    sums.each(first, second, use)
