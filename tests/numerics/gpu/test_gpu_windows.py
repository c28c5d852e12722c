"""Local correlation on a GPU: the bits of the processors, on kernels that run as C++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated import EmulatedBackend, needs_compiler

from itkstream.numerics.deformation.correlation import local_correlation
from itkstream.numerics.evidence.quality import local_correlation_in_tissue
from itkstream.numerics.gpu.engine import using_engine

pytestmark = needs_compiler

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]


def images(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Counts, and what resembles them in part: with voxels that do not count, and a flat place."""
    rng = np.random.default_rng(0)
    fixed = rng.poisson(50, shape).astype(np.uint16)
    moving = (fixed + rng.normal(0, 5, shape)).astype(np.float32)
    moving[..., -3:], moving[..., 1, 2] = np.nan, np.inf
    fixed[..., 5:] = 7
    return fixed, moving


@pytest.mark.parametrize(
    ("shape", "radius"),
    [((13, 9, 11), 2), ((7, 12, 10), (1, 4, 3)), ((20, 16), 3), ((2, 3, 40), 6)],
)
def test_the_map_has_the_same_bits(shape: tuple[int, ...], radius: Any, both: Both) -> None:
    here, there = both(lambda: local_correlation(*images(shape), radius))
    np.testing.assert_array_equal(here, there)
    assert np.isnan(here).any()
    assert 0 < np.nanmax(here) <= 1


def test_the_mean_in_tissue_has_the_same_bits(both: Both) -> None:
    shape = (30, 28, 26)
    tissue = np.random.default_rng(1).random(shape) < 0.5
    here, there = both(lambda: local_correlation_in_tissue(*images(shape), tissue))
    assert here == there > 0


def test_images_in_double_precision_stay_on_the_processors(device: EmulatedBackend) -> None:
    with using_engine("gpu"):
        local_correlation(*(image.astype(float) for image in images((8, 8, 8))), 2)
    assert not device.launched


def test_a_plane_needs_room_for_the_sums_of_some_lines(use: Callable[[Any], None]) -> None:
    pair = images((60, 50))
    device = EmulatedBackend(memory=20 * pair[0].size)
    use(device)
    with using_engine("gpu"):
        local_correlation(*pair, 3)
    assert "sum_planes" in device.launched
