"""Which levels see the whole image, and what the blocks start from."""

from __future__ import annotations

import numpy as np
import pytest

from itkstream.errors import InputError, RegistrationError
from itkstream.estimate.coarse import after_coarse, plan_levels, solve_coarse
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.phantoms import PhantomPair

SETTINGS = DescentSettings(
    cc_radius=4, iterations=(20, 10, 5), shrink_factors=(4, 2, 1), smooth_sigmas=(2, 1, 0.5)
)


@pytest.mark.parametrize(
    ("voxels", "factors", "coarse", "fine"),
    [
        # All levels but the finest, which is the blocks'.
        (1e9, (2, 2, 2), (2, 1), (1,)),
        (64**3, (2, 2, 2), (2, 1), (1,)),
        (64**3 - 1, (4, 4, 4), (1,), (2, 1)),
        # None fits: the whole gets a level of its own, twice as coarse, the blocks all.
        (32**3 - 1, (8, 8, 8), (1,), (4, 2, 1)),
        (16**3 - 1, (16, 16, 16), (1,), (4, 2, 1)),
    ],
)
def test_levels_are_shared_out(
    voxels: float, factors: tuple[int, ...], coarse: tuple[int, ...], fine: tuple[int, ...]
) -> None:
    plan = plan_levels(Grid((128, 128, 128), (1, 1, 1)), SETTINGS, voxels)
    assert plan.factors == factors
    assert plan.coarse.shrink_factors == coarse
    assert plan.fine.shrink_factors == fine
    # The coarse level blurs in proportion to how much coarser it is than the first.
    assert plan.coarse.smooth_sigmas[0] == 2 * max(1, factors[0] / 4)


def test_refuses_less_than_a_voxel() -> None:
    with pytest.raises(InputError, match="coarse_voxels must be at least 1"):
        plan_levels(Grid((8, 8), (1, 1)), SETTINGS, 0.5)


def test_the_coarse_solution_starts_the_blocks(pair: PhantomPair) -> None:
    affine = AffineTransform(np.array(pair.truth.matrix))
    plan = plan_levels(pair.fixed.grid, SETTINGS, 1e6)
    field = solve_coarse(pair.fixed, pair.moving, affine, plan)
    start = after_coarse(field, affine)
    found = pair.error(start.apply).summary()
    assert found["median_um"] < 0.7 * pair.error(affine.apply).summary()["median_um"]
    assert field.grid == pair.fixed.grid.shrink((2, 2, 2)).shrink((2, 2, 2))


def test_a_coarse_level_without_texture_says_so(pair: PhantomPair) -> None:
    flat = Image(np.zeros(pair.moving.shape), pair.moving.grid)
    plan = plan_levels(pair.fixed.grid, SETTINGS, 1e6)
    with pytest.raises(RegistrationError, match="no correlation window holds texture"):
        solve_coarse(pair.fixed, flat, AffineTransform(np.eye(4)), plan)
