"""Products of contexts with contexts: what differs from one engine to another, and nothing else.

Contexts are vectors of whole numbers whose products single precision holds exactly, see
`sample_around`: scores have the same bits on every engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from itkstream.numerics.compiling import compiled
from itkstream.numerics.gpu.arrays import Array, Arrays, HostArrays
from itkstream.numerics.gpu.backend import Backend
from itkstream.numerics.gpu.dispatch import on_engine
from itkstream.numerics.gpu.products import DeviceProducts, product_bytes

__all__ = ["HOST", "HostProducts", "Products", "correlate", "with_products"]

Result = TypeVar("Result")


class Products(Arrays, Protocol):
    """Operations of an engine on sets of samples and on points."""

    def distances(self, points: Array, others: Array) -> Array:
        """Distances of points (m, n) from points (l, n); returns (m, l)."""

    def best_near(
        self, scores: Array, values: Array, others: Array, slack: float
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Find the best score of each row among the columns of about the same values, and where.

        -1 where all of these differ by more than the slack. Shapes: `scores` (m, l), `values`
        (m, n), `others` (l, n); returns (m,) each.
        """

    def in_rows(self, length: int, most: int, work: Callable[[int, int], None]) -> None:
        """Call ``work(start, stop)`` on ranges of at most so many rows that cover all."""


class HostProducts(HostArrays):
    """The operations of the processors, on numpy arrays."""

    def distances(
        self, points: NDArray[np.float64], others: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """As `Products.distances`."""
        return cdist(points, others)

    def best_near(
        self,
        scores: NDArray[np.float32],
        values: NDArray[np.float64],
        others: NDArray[np.float64],
        slack: float,
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """As `Products.best_near`."""
        partner, score = np.empty(len(scores), np.intp), np.empty(len(scores), np.float32)
        _best_near(scores, values, others, slack, partner, score)
        return partner, score

    def in_rows(self, length: int, most: int, work: Callable[[int, int], None]) -> None:
        """As `Products.in_rows`."""
        for start in range(0, length, most):
            work(start, min(start + most, length))


HOST = HostProducts()


def with_products(samples: NDArray[np.float32], compute: Callable[[Products], Result]) -> Result:
    """Call a function with the operations of this process's engine.

    It holds `samples` (m, k) there, with which others are multiplied.
    """

    def on_device(gpu: Backend) -> Result:
        return compute(DeviceProducts(gpu))

    return on_engine(on_device, lambda: compute(HOST), product_bytes(samples.shape))


def correlate(a: Array, b: Array, xp: Any = np) -> Array:
    """Correlate every set of samples with every other; `xp` is the namespace of the arrays.

    Shapes: `a` and `b` (m, k) and (l, k); returns (m, l).
    """
    scores = a @ b.T
    scores *= _inverse_norms(a, xp)[:, None]
    scores *= _inverse_norms(b, xp)
    return scores


def _inverse_norms(samples: Array, xp: Any) -> Array:
    norms = xp.sqrt(xp.einsum("ij,ij->i", samples, samples))
    return xp.asarray(1 / xp.maximum(norms, 1), np.float32)


@compiled
def _best_near(scores, values, others, slack, partner, score):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        partner[i], score[i] = 0, -1
        for j in range(len(others)):
            if scores[i, j] > score[i]:
                agree = True
                for k in range(values.shape[1]):
                    agree = agree and abs(values[i, k] - others[j, k]) <= slack
                if agree:
                    partner[i], score[i] = j, scores[i, j]
