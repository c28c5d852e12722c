"""Blurs on all threads, beside scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from itkstream.numerics import blurring
from itkstream.numerics.threads import using_threads


@pytest.mark.parametrize("shape", [(40, 41, 42), (3, 70, 1100), (50, 2100), (5, 9)])
@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_the_bits_are_those_of_scipy(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], sigma: float
) -> None:
    """Lines shorter than the blur, of more than a chunk, and of one voxel are among them."""
    monkeypatch.setattr(blurring, "_FEW_VOXELS", 0)
    image = np.random.default_rng(0).normal(100, 30, shape).astype(np.float32)
    wanted = ndimage.gaussian_filter(image, sigma)
    for threads in (1, 3):
        with using_threads(threads):
            np.testing.assert_array_equal(blurring.gaussian_blur(image, sigma), wanted)
