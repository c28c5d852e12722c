"""One number for how little a field bends, chosen by voxels that the descent does not see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from attrs import evolve
from scipy.ndimage import gaussian_filter

from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.numerics.evidence.stiffness import (
    LEAST_STIFFNESS,
    climb,
    for_trial,
    gain_in_cubes,
    hidden_correlation,
    hide_cubes,
    number_cubes,
    prolonged,
    stiffened,
)


def scores(best: float, loss: float) -> Callable[[float], np.ndarray]:
    """Hidden voxels, worse by `loss` for each factor of four from the best stiffness."""
    return lambda s: np.full(1000, 1 - 0.3 * loss ** abs(np.log(s / best) / np.log(4)))


@pytest.mark.parametrize("best", [1 / 64, 1 / 16, 1.0, 4.0, 16.0])
def test_the_best_stiffness_is_climbed_to(best) -> None:
    found, tried = climb(scores(best, 1.2))
    assert found == best
    assert max(tried, key=tried.get) == best
    assert min(tried) >= LEAST_STIFFNESS


def test_a_small_gain_is_no_reason_to_bend_more() -> None:
    assert climb(scores(1 / 16, 1.03))[0] == 1


def test_what_has_paid_is_gone_on_with_for_less() -> None:
    """Also where a softer field, undamped as it is compared, foretells as much but for noise."""
    gains = {1.0: 0.60, 1 / 4: 0.64, 1 / 16: 0.639, 1 / 64: 0.63}
    assert climb(lambda s: np.full(1000, gains[s]))[0] == 1 / 16


def test_too_few_hidden_voxels_tell_nothing() -> None:
    found, tried = climb(lambda s: np.full(10, 1 - s / 100))
    assert found == 1
    assert set(tried.values()) == {0.0}


def test_a_softer_field_is_smoothed_less_and_looks_closer() -> None:
    assert stiffened(PIPELINE_DEFAULTS, 1) is PIPELINE_DEFAULTS
    soft, stiff = stiffened(PIPELINE_DEFAULTS, 1 / 16), stiffened(PIPELINE_DEFAULTS, 4)
    for number in range(3):
        levels = [s.level(number) for s in (soft, PIPELINE_DEFAULTS, stiff)]
        field = [level.field_smoothing.a for level in levels]
        # Large parts move apart on the coarsest level.
        softer = 1 / 16**2 if number == 0 else 1 / 16
        np.testing.assert_allclose(field, field[1] * np.array([softer, 1, 4]))
        force = [level.gradient_smoothing.a for level in levels]
        assert force[0] < force[1] < force[2]
    assert soft.cc_radius == (3, 3, 3)
    assert soft.node_stride == (1, 2, 2)
    assert stiff.iterations == PIPELINE_DEFAULTS.iterations


def test_a_single_level_is_as_soft_as_asked_for() -> None:
    single = PIPELINE_DEFAULTS.select(slice(2, None))
    a = stiffened(single, 1 / 4).level(0).field_smoothing.a
    assert a == pytest.approx(single.level(0).field_smoothing.a / 4)


def test_stiffnesses_are_compared_at_one_damping() -> None:
    for stiffness in (1 / 16, 1, 4):
        tried = for_trial(PIPELINE_DEFAULTS, stiffness)
        assert tried.damping == PIPELINE_DEFAULTS.damping
        kept = stiffened(PIPELINE_DEFAULTS, stiffness)
        assert (kept.damping > tried.damping) == (stiffness < 1)
        assert evolve(kept, damping=tried.damping) == tried


def test_a_softer_field_goes_on_once_it_is_judged() -> None:
    for stiffness, times in ((1 / 16, 2), (1 / 4, 2), (1, 1), (4, 1)):
        judged = stiffened(PIPELINE_DEFAULTS, stiffness)
        first, *others = judged.iterations
        found = prolonged(judged, stiffness)
        assert found == evolve(judged, iterations=(first, *(times * n for n in others)))


def test_stiffness_and_units_go_together() -> None:
    left = stiffened(PIPELINE_DEFAULTS.for_voxels((2.0, 2.0, 2.0)), 1 / 4)
    right = stiffened(PIPELINE_DEFAULTS, 1 / 4).for_voxels((2.0, 2.0, 2.0))
    np.testing.assert_allclose(left.field_smoothing, right.field_smoothing)
    np.testing.assert_allclose(left.gradient_smoothing, right.gradient_smoothing)


def test_a_quarter_is_hidden_in_cubes_of_one_physical_size() -> None:
    hidden = hide_cubes((64, 192, 192), (3.0, 1.0, 1.0))
    assert 0.2 < hidden.mean() < 0.3
    for axis, edge in enumerate((3, 8, 8)):
        others = tuple({0, 1, 2} - {axis})
        borders = np.flatnonzero(np.diff(hidden, axis=axis).any(axis=others)) + 1
        assert not (borders % edge).any()
    np.testing.assert_array_equal(hidden, hide_cubes((64, 192, 192), (3.0, 1.0, 1.0)))


def test_hidden_voxels_do_not_see_the_others() -> None:
    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.normal(size=(48, 48, 48)), 1).astype(np.float32)
    hidden = hide_cubes(image.shape, (1.0, 1.0, 1.0))
    spoilt = np.where(hidden, image, rng.normal(size=image.shape)).astype(np.float32)
    found = hidden_correlation(image, spoilt, hidden, (1.0, 1.0, 1.0))
    assert found.size == hidden.sum()
    # Values are rounded to a lattice before they are summed.
    np.testing.assert_allclose(found, 1, atol=1e-6)


@pytest.mark.parametrize(("gain", "least", "most"), [(0.0, -4, 4), (0.02, 6, 60)])
def test_a_gain_counts_where_most_cubes_gain(gain: float, least: float, most: float) -> None:
    rng = np.random.default_rng(4)
    cubes = number_cubes((48, 48, 48), (1.0, 1.0, 1.0)).ravel()
    assert np.unique(cubes).size == 6**3
    before = rng.uniform(0.2, 0.4, cubes.size)
    # What differs between cubes, not between their voxels, tells how sure a gain is.
    after = before + gain + 0.03 * rng.normal(size=cubes.max() + 1)[cubes]
    after[:1000] = np.nan
    assert least < gain_in_cubes(before, after, cubes) < most
    few = cubes < 7
    assert np.isnan(gain_in_cubes(before[few], after[few], cubes[few]))
