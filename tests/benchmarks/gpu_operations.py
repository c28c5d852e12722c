"""What a GPU computes beside the descent, against the processors: same bits, and seconds.

`tests/benchmarks/gpu.py` runs it. Seconds include the way of images to the card and of results
back, as in a run, where blocks come from the processors' memory and go there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Grid
from itkstream.numerics.deformation.correlation import local_correlation
from itkstream.numerics.evidence.quality import WINDOW_RADIUS_VOX
from itkstream.numerics.gpu.engine import Engine, using_engine
from itkstream.numerics.matching.contexts import Contexts, ContextSource, ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings, find_key_points
from itkstream.numerics.matching.matches import MatchSettings, match
from itkstream.numerics.sampling.fields import resize_field
from itkstream.numerics.sampling.interpolate import warp

__all__ = ["compare_operations"]

Operation = Callable[[], NDArray[Any]]

# Voxels between the nodes of a field, as in a registration.
_NODES = 4
_SMALL = 32


def compare_operations(
    fixed: NDArray[np.float32], moving: NDArray[np.float32], points: int
) -> Iterator[dict[str, Any]]:
    """Compare both engines on each operation; so many contexts are matched."""
    for name, operation in _operations(fixed, moving, points).items():
        here, seconds_cpu = _timed(operation, "cpu")
        _timed(operation, "gpu")  # compiles
        there, seconds_gpu = _timed(operation, "gpu")
        yield {
            name: {
                "same_bits": bool(np.array_equal(here, there, equal_nan=True)),
                "seconds_cpu": round(seconds_cpu, 4),
                "seconds_gpu": round(seconds_gpu, 4),
            }
        }


def _operations(
    fixed: NDArray[np.float32], moving: NDArray[np.float32], points: int
) -> dict[str, Operation]:
    rng = np.random.default_rng(0)
    shape = fixed.shape
    grid = Grid(shape, (1.0,) * 3)
    nodes = grid.shrink((_NODES,) * 3)
    coarse = rng.normal(0, 1, (*nodes.shape, 3)).astype(np.float32)
    moves = resize_field(coarse, nodes, grid)
    counts = moving.astype(np.uint16)
    labels = rng.integers(0, 2**31, shape, np.uint32)
    still = np.eye(3, 4)
    part = (slice(_SMALL),) * 3
    small, moved = counts[part], np.ascontiguousarray(moves[part])
    # As large as in the descent's pair: nuclei of about three voxels.
    blobs = KeyPointSettings(3.0, 7.0, nspots=points)
    window = ContextWindow((8.0,) * 3)
    pair = _contexts(rng, points), _contexts(rng, points)
    return {
        "warp": lambda: warp(counts, still, shape, moves),
        "warp_labels": lambda: warp(labels, still, shape, moves, interpolator="nearest"),
        "warp_small": lambda: warp(small, still, small.shape, moved),
        "field": lambda: resize_field(coarse, nodes, grid),
        "local_correlation": lambda: local_correlation(fixed, moving, WINDOW_RADIUS_VOX),
        "key_points": lambda: find_key_points(fixed, grid, blobs).positions,
        "context_blur": lambda: ContextSource.of(fixed, grid, window).data,
        "matches": lambda: match(*pair, MatchSettings(0.1)).correlations,
    }


def _contexts(rng: np.random.Generator, count: int) -> Contexts:
    """Contexts of 9 x 9 x 9 whole numbers, of norms just below 4096."""
    samples = rng.normal(0, 1, (count, 729))
    samples *= 4080 / np.linalg.norm(samples, axis=1, keepdims=True)
    points = rng.uniform(0, 100, (count, 3))
    return Contexts(points, np.rint(samples).astype(np.float32), np.arange(count))


def _timed(operation: Operation, engine: Engine) -> tuple[NDArray[Any], float]:
    began = time.perf_counter()
    with using_engine(engine):
        found = operation()
    return found, time.perf_counter() - began
