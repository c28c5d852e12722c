"""Evidence tells right affines from wrong ones, also from those fitted to chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from itkstream.geometry import Image
from itkstream.numerics.search.evidence import Evidence
from itkstream.numerics.search.witnesses import Witnesses, settle
from itkstream.phantoms import PhantomPair


@pytest.fixture(scope="module")
def witnesses(turned: tuple[Image, Image, np.ndarray]) -> Witnesses:
    return Witnesses(turned[0], turned[1])


@pytest.fixture
def rough(turned: tuple[Image, Image, np.ndarray]) -> np.ndarray:
    """The true affine, some voxels off."""
    matrix = turned[2].copy()
    matrix[:3, 3] += (4.0, -3.0, 3.0)
    return matrix


def test_the_truth_convinces(witnesses: Witnesses, turned: tuple[Image, Image, np.ndarray]) -> None:
    evidence = witnesses.evidence(turned[2])
    assert evidence.outcome == "convincing"
    assert evidence.supported > 3 * evidence.level
    assert evidence.facts()["supported_matches"] == evidence.supported


def test_wrong_affines_are_at_chance_level(witnesses: Witnesses) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        wrong = np.eye(4)
        wrong[:3, :3] += rng.normal(0, 0.05, (3, 3))
        wrong[:3, 3] = rng.uniform(-8, 8, 3)
        assert witnesses.evidence(wrong).outcome == "chance"


def test_a_half_turn_too_many_does_not_convince(
    pair: PhantomPair, turned: tuple[Image, Image, np.ndarray], witnesses: Witnesses
) -> None:
    middle = pair.fixed.grid.to_physical((np.array(pair.fixed.shape) - 1) / 2)
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    assert witnesses.evidence(turned[2] @ turn).outcome == "chance"


def test_blobs_it_was_fitted_to_say_nothing_for_an_affine(
    witnesses: Witnesses, turned: tuple[Image, Image, np.ndarray]
) -> None:
    witness = next(iter(witnesses))
    found = witness.rematch(witness.aligned(turned[2]))
    spent = found.fixed_points[found.supported][:40]
    free, held = witnesses.evidence(turned[2]), witnesses.evidence(turned[2], spent)
    assert 0 < held.asked <= free.asked - len(spent)
    assert held.supported <= free.supported - len(spent)


def test_a_rough_start_is_settled_by_its_matches(
    witnesses: Witnesses,
    turned: tuple[Image, Image, np.ndarray],
    rough: np.ndarray,
    error_um: Callable[[Image, np.ndarray, np.ndarray], float],
) -> None:
    settled = settle(next(iter(witnesses)), rough, seed=0)
    # The phantom bends by up to 2 µm.
    assert error_um(turned[0], settled, turned[2]) < 2
    assert error_um(turned[0], settled, turned[2]) < 0.5 * error_um(turned[0], rough, turned[2])


def test_a_rough_affine_is_fitted_to_all_that_is_supported(
    witnesses: Witnesses,
    turned: tuple[Image, Image, np.ndarray],
    rough: np.ndarray,
    error_um: Callable[[Image, np.ndarray, np.ndarray], float],
) -> None:
    found = next(witnesses.settled(rough, "affine"))
    assert found.matches > 60
    assert error_um(turned[0], found.matrix, turned[2]) < 1
    shifted = next(witnesses.settled(rough, "translation")).matrix
    np.testing.assert_array_equal(shifted[:3, :3], rough[:3, :3])


def test_nothing_is_fitted_where_little_is_supported(witnesses: Witnesses) -> None:
    wrong = np.eye(4)
    wrong[:3, 3] = 7.0
    assert not list(witnesses.settled(wrong, "affine"))


@pytest.mark.parametrize(
    ("supported", "chance", "outcome"),
    [
        (0, (), "chance"),
        (24, (0, 0), "convincing"),
        (23, (0, 0), "doubtful"),
        (15, (), "chance"),
        (100, (33, 1), "convincing"),
        (100, (34, 1), "doubtful"),
        (100, (64, 1), "chance"),
    ],
)
def test_outcomes_are_counted_in_chance_levels(
    supported: int, chance: tuple[int, ...], outcome: str
) -> None:
    assert Evidence(supported, chance, 200).outcome == outcome


def test_the_same_pair_is_judged_the_same(turned: tuple[Image, Image, np.ndarray]) -> None:
    one, other = (Witnesses(turned[0], turned[1]).evidence(turned[2]) for _ in range(2))
    assert one == other
