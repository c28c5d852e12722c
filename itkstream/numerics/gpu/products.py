"""Products of many vectors with many on a GPU; what is not asked for does not leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from itkstream.numerics.gpu.arrays import DeviceArrays
from itkstream.numerics.gpu.dispatch import in_batches

__all__ = ["DeviceProducts", "product_bytes"]

_ROW_BYTES = 40
"""Scores of a row take 4 bytes each, distances and their squares 24, what is masked 5, scaled 4."""


class DeviceProducts(DeviceArrays):
    """As `itkstream.numerics.matching.products.Products`, on a device."""

    def distances(self, points: Any, others: Any) -> Any:
        """As `Products.distances`, added up in the order of the axes."""
        total = self.xp.square(points[:, 0, None] - others[:, 0])
        for axis in range(1, points.shape[1]):
            total += self.xp.square(points[:, axis, None] - others[:, axis])
        return self.xp.sqrt(total)

    def best_near(self, scores: Any, values: Any, others: Any, slack: float) -> tuple[Any, Any]:
        """As `Products.best_near`; only the best leave the device."""
        agree = self.xp.ones(scores.shape, bool)
        for k in range(values.shape[1]):
            agree &= self.xp.abs(values[:, k, None] - others[:, k]) <= slack
        near = self.xp.where(agree, scores, np.float32(-1))
        return self.get(near.argmax(axis=1)), self.get(near.max(axis=1))

    def in_rows(self, length: int, most: int, work: Callable[[int, int], None]) -> None:
        """As `Products.in_rows`: they halve where there is no memory for them."""
        in_batches(length, work, self.backend, most)


def product_bytes(shape: tuple[int, ...]) -> float:
    """Memory of a device without which it is of no use to multiply vectors (m, k) with others."""
    return shape[0] * (4.0 * shape[1] + 8 * 3 + _ROW_BYTES)
