"""Key points and contexts by the filters of a GPU: the bits of the processors, in C++ here."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated import EmulatedBackend, needs_compiler
from scipy import ndimage

from itkstream.geometry import Grid
from itkstream.numerics.gpu.engine import using_engine
from itkstream.numerics.gpu.filters import FILTER_BYTES, DeviceFilters
from itkstream.numerics.matching.blobs import find_blobs
from itkstream.numerics.matching.contexts import ContextWindow, sample_contexts
from itkstream.numerics.matching.filters import HOST
from itkstream.numerics.matching.keypoints import KeyPointSettings, find_key_points

pytestmark = needs_compiler

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]


def cells(shape: tuple[int, ...], dtype: Any = np.uint16) -> np.ndarray:
    """Blobs of counts; NaN at one end where the type has it."""
    rng = np.random.default_rng(0)
    seeds = (rng.random(shape) < 0.004).astype(float)
    smooth = ndimage.gaussian_filter(seeds, 2.0) * 2e4
    image = rng.poisson(smooth + 20).astype(dtype)
    if image.dtype.kind == "f":
        image[:3] = np.nan
    return image


@pytest.mark.parametrize(
    ("image", "spacing", "kernels"),
    [
        (cells((40, 44, 38)), (1.5, 1.0, 1.0), {"halve_32"}),
        (cells((33, 35, 37), np.float32), (1.0, 1.0, 1.0), {"halve_64", "halve_32"}),
        (cells((64, 70)), (1.0, 1.0), {"halve_32"}),
        (cells((7, 60, 50)), (1.0, 1.0, 1.0), {"halve_64", "halve_32"}),
    ],
    ids=["volume", "masked", "plane", "discs"],
)
def test_key_points_have_the_same_bits(
    image: np.ndarray,
    spacing: tuple[float, ...],
    kernels: set[str],
    both: Both,
    device: EmulatedBackend,
) -> None:
    grid = Grid(image.shape, spacing)
    settings = KeyPointSettings(3.5, 7.0)
    here, there = both(lambda: find_key_points(image, grid, settings))
    assert len(here) > 10
    for one, other in zip(
        (here.positions, here.strengths, here.radii_um),
        (there.positions, there.strengths, there.radii_um),
        strict=True,
    ):
        assert one.tobytes() == other.tobytes()
    assert set(device.launched) == {"filter_axis", "laplacian", "mark_maxima"} | kernels


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float16", "float64", ">i2"])
def test_halves_of_all_types_have_the_same_bits(dtype: str) -> None:
    image = (np.random.default_rng(0).normal(100, 40, (9, 8, 7)) * 1.001).astype(dtype)
    filters = DeviceFilters(EmulatedBackend())
    for axis in range(3):
        there = filters.get(filters.halve(filters.load(image), axis))
        np.testing.assert_array_equal(HOST.halve(image, axis), there)


def test_of_equal_neighbours_the_first_counts() -> None:
    values = np.zeros((3, 12, 9, 8), np.float32)
    values[1, 2:4, 3, 3] = values[1:, 7, 2:4, 5] = values[:2, 9, 6:8, 2] = 1
    there = DeviceFilters(EmulatedBackend()).maxima(*values)
    np.testing.assert_array_equal(HOST.maxima(*values), there)
    np.testing.assert_array_equal(there, [[2, 3, 3], [7, 2, 5]])


def test_contexts_have_the_same_bits(both: Both, device: EmulatedBackend) -> None:
    image = cells((40, 36, 38))
    grid = Grid(image.shape, (1.0, 1.0, 1.0))
    points = np.random.default_rng(0).uniform(8, 28, (20, 3))
    window = ContextWindow((10.0, 10.0, 10.0))
    here, there = both(lambda: sample_contexts(image, grid, points, window))
    assert here.samples.tobytes() == there.samples.tobytes()
    assert len(here) == 20
    assert set(device.launched) == {"halve_32", "filter_axis"}


def test_memory_on_the_device_is_what_was_said(use: Callable[[Any], None]) -> None:
    """What numpy takes here is what a device's arrays take, where no axis is halved."""
    image = cells((48, 48, 48), np.float64)
    grid = Grid(image.shape, (1.0, 1.0, 1.0))
    use(EmulatedBackend())
    with using_engine("gpu"):
        tracemalloc.start()
        find_blobs(image, grid, np.repeat([[1.0], [1.4], [1.8], [2.2]], 3, axis=1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert 0.5 * FILTER_BYTES < peak / image.size < FILTER_BYTES


def test_large_integers_stay_on_the_processors(device: EmulatedBackend) -> None:
    image = cells((20, 20, 20), np.int64)
    with using_engine("gpu"):
        find_key_points(image, Grid(image.shape, (1.0, 1.0, 1.0)), KeyPointSettings(2.0, 4.0))
    assert not device.launched
