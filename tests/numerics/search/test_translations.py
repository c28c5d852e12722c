"""Masked correlation over FFT is that of the voxels both images have, shift by shift."""

from __future__ import annotations

import numpy as np
import pytest

from itkstream.numerics.search.translations import MaskedCorrelation


def directly(fixed: np.ndarray, moving: np.ndarray, shift: tuple[int, ...]) -> tuple[float, int]:
    """Correlation of what overlaps and counts in both, and of how many voxels."""
    ours, theirs = [], []
    for n, m, s in zip(fixed.shape, moving.shape, shift, strict=True):
        ours.append(slice(max(s, 0), min(n, m + s)))
        theirs.append(slice(max(-s, 0), min(m, n - s)))
    a, b = fixed[tuple(ours)].ravel(), moving[tuple(theirs)].ravel()
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[both], b[both])[0, 1]), int(both.sum())


@pytest.mark.parametrize("shift", [(5, -3), (0, 0), (-6, 7)])
def test_a_known_shift_is_found_between_masked_images(shift: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    scene = rng.normal(size=(60, 60)).astype(np.float32)
    fixed = scene[15:39, 15:45].copy()
    moving = scene[15 + shift[0] : 37 + shift[0], 15 + shift[1] : 41 + shift[1]] * 3 + 2
    fixed[:4, :9], moving[-5:, 3:7] = np.nan, np.nan
    worth, found = MaskedCorrelation.of(fixed, moving.shape, 100).best(moving)
    assert tuple(found) == shift
    correlation, count = directly(fixed, moving, shift)
    assert correlation == pytest.approx(1, abs=1e-5)
    # Correlation itself is cut at 0.999.
    assert worth == pytest.approx(np.arctanh(0.999) * np.sqrt(count), rel=1e-3)


def test_its_worth_is_that_of_the_best_shift_in_three_axes() -> None:
    rng = np.random.default_rng(2)
    fixed, moving = (rng.normal(size=s).astype(np.float32) for s in ((9, 8, 10), (7, 9, 8)))
    fixed[0, :3], moving[2:4, 5] = np.nan, np.nan
    least = 150
    worth, found = MaskedCorrelation.of(fixed, moving.shape, least).best(moving)
    values = {}
    for shift in np.ndindex(9, 9, 9):
        at = tuple(k - 4 for k in shift)
        if min(n - abs(s) for n, s in zip((7, 8, 8), at, strict=True)) <= 2:
            continue
        correlation, count = directly(fixed, moving, at)
        if count >= least:
            values[at] = np.arctanh(correlation) * np.sqrt(count)
    best = max(values, key=lambda at: values[at])
    assert tuple(found) == best
    assert worth == pytest.approx(values[best], rel=1e-3)


def test_too_small_an_overlap_is_no_shift() -> None:
    rng = np.random.default_rng(3)
    scene = rng.normal(size=(40, 20)).astype(np.float32)
    fixed, moving = scene[:20], scene[13:33]
    assert tuple(MaskedCorrelation.of(fixed, moving.shape, 100).best(moving)[1]) == (13, 0)
    assert tuple(MaskedCorrelation.of(fixed, moving.shape, 150).best(moving)[1]) != (13, 0)
