"""Matches by scores that a GPU multiplies: the bits of the processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated import EmulatedBackend, needs_compiler
from scipy import ndimage

from itkstream.geometry import Grid
from itkstream.numerics.gpu.engine import using_engine
from itkstream.numerics.gpu.products import DeviceProducts
from itkstream.numerics.matching.contexts import Contexts, ContextSource, ContextWindow
from itkstream.numerics.matching.matches import Correspondences, MatchSettings, match
from itkstream.numerics.matching.products import HOST
from itkstream.numerics.search.turned import Sided, match_turned

RNG = np.random.default_rng(0)


def contexts(near: np.ndarray, noise: float) -> Contexts:
    """Vectors of whole numbers, of norm below 4096, that resemble those given."""
    samples = near + RNG.normal(0, noise, near.shape)
    samples -= samples.mean(axis=1, keepdims=True)
    samples *= 4080 / np.linalg.norm(samples, axis=1, keepdims=True)
    points = np.linspace(0, 100, len(near))[:, None] * [1.0, 0.5, 0.2]
    return Contexts(points, np.rint(samples).astype(np.float32), np.arange(len(near)))


SHARED = RNG.normal(0, 1, (700, 40))
# Two moving points have one context: the first of them is the best.
PAIR = contexts(SHARED[:600], 0.3), contexts(SHARED[100:][[*range(600), 50, 7]], 0.3)


def bits(found: Correspondences) -> bytes:
    parts = found.fixed_index, found.moving_index, found.correlations
    return b"".join(np.asarray(part).tobytes() for part in parts)


@pytest.mark.parametrize(
    "settings",
    [
        MatchSettings(),
        MatchSettings(0.6, max_distance_um=40.0),
        MatchSettings(0.5, max_ambiguity=0.8, distinct_um=0.5),
    ],
    ids=["any", "near", "distinct"],
)
def test_matches_have_the_same_bits(
    settings: MatchSettings, use: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = EmulatedBackend()
    use(device)
    expected = match(*PAIR, settings)
    assert len(expected) > 100
    sent: list[tuple[int, ...]] = []
    monkeypatch.setattr(device, "get", lambda array: sent.append(array.shape) or array.copy())
    with using_engine("gpu"):
        assert bits(match(*PAIR, settings)) == bits(expected)
    # Winners come back, and no scores.
    assert sent
    assert all(len(shape) == 1 for shape in sent)


def test_less_memory_takes_fewer_rows_at_a_time(
    device: EmulatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bits(match(*PAIR, MatchSettings()))
    samples = PAIR[1].samples
    rows: list[int] = []

    def put(array: np.ndarray) -> np.ndarray:
        if array.shape[1] == samples.shape[1] and array is not samples:
            if len(array) > 200:
                raise MemoryError
            rows.append(len(array))
        return array.copy()

    monkeypatch.setattr(device, "put", put)
    with using_engine("gpu"):
        assert bits(match(*PAIR, MatchSettings())) == expected
    assert sum(rows) == len(PAIR[0])
    assert max(rows) <= 200


def test_the_best_of_those_nearby_is_that_of_the_processors() -> None:
    scores = np.rint(RNG.uniform(-1, 1, (30, 50)) * 10).astype(np.float32) / 10
    values, others = RNG.uniform(0, 1, (30, 3)), RNG.uniform(0, 1, (50, 3))
    here = HOST.best_near(scores, values, others, 0.12)
    there = DeviceProducts(EmulatedBackend()).best_near(scores, values, others, 0.12)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other)
    assert -1 in here[1]
    assert (here[1] > 0).any()


@needs_compiler
def test_turned_matches_have_the_same_bits(both: Callable[[Callable[[], Any]], Any]) -> None:
    """Whose contexts are blurred by the filters of the device, and multiplied there."""
    image = ndimage.gaussian_filter(RNG.normal(0, 1, (36, 38, 40)), 1.5).astype(np.float32)
    grid, points = Grid(image.shape, (1.0, 1.0, 1.0)), RNG.uniform(8, 28, (60, 3))
    window = ContextWindow((5.0, 5.0, 5.0), ball=True)

    def matched() -> list[np.ndarray]:
        side = Sided(ContextSource.of(image, grid, window), points, np.eye(3))
        found = match_turned(side, side)
        return [found.fixed_points, found.moving_points, found.turns]

    here, there = both(matched)
    assert len(here[0]) > 100
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other)
