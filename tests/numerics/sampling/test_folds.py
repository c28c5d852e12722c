"""Folds are found, mended, and nothing else is touched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.numerics.sampling.folds import repair_folds

GRID = Grid((32, 28, 30), (1.84, 1.84, 1.68))


def rough_field(amplitude, sigma=2.0, seed=0, grid=GRID):
    rng = np.random.default_rng(seed)
    parts = [ndimage.gaussian_filter(rng.normal(size=grid.shape), sigma) for _ in grid.shape]
    field = np.stack(parts, axis=-1)
    return (field * amplitude / np.abs(field).max()).astype(np.float32)


def test_an_unfolded_field_is_returned_as_it_is():
    field = rough_field(1.0)
    repair = repair_folds(field, GRID)
    assert repair.displacement is field
    assert (repair.iterations, repair.folded_before, repair.folded_after) == (0, 0, 0)


@given(st.floats(4, 200), st.floats(0.5, 3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=12)
def test_every_fold_goes(amplitude, sigma, seed):
    field = rough_field(amplitude, sigma, seed)
    repair = repair_folds(field, GRID, 0.05)
    assert repair.folded_after == 0
    assert jacobian_determinant(repair.displacement, GRID).min() > 0.05


def test_only_the_neighbourhood_of_a_fold_changes():
    field = np.zeros((*GRID.shape, 3), np.float32)
    field[..., 1] = 0.4
    field[16, 14, 15, 0] = 9.0
    before = field.copy()
    repair = repair_folds(field, GRID)
    assert repair.folded_before > 0
    assert repair.folded_after == 0
    np.testing.assert_array_equal(field, before)
    changed = np.argwhere((repair.displacement != before).any(axis=-1))
    # A single voxel is mended in the first rounds, whose boxes reach some 20 voxels at most.
    assert repair.iterations <= 4
    assert np.abs(changed - (16, 14, 15)).max() <= 20
    assert (repair.displacement[2, 2, 2] == before[2, 2, 2]).all()


def test_planes_are_mended_too():
    grid = Grid((40, 36), (0.5, 2.0))
    field = rough_field(12.0, 1.5, grid=grid)
    repair = repair_folds(field, grid)
    assert repair.folded_before > 0
    assert jacobian_determinant(repair.displacement, grid).min() > 0


def test_the_bound_on_rounds_is_kept_and_reported():
    repair = repair_folds(rough_field(200.0), GRID, 0.05, max_iterations=1)
    assert repair.iterations == 1
    assert repair.folded_after > 0


def test_bad_input_is_named():
    field = rough_field(1.0)
    with pytest.raises(InputError, match="determinant"):
        repair_folds(field, GRID, 1.0)
    with pytest.raises(InputError, match="shape"):
        repair_folds(field[1:], GRID)
    field[3, 3, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        repair_folds(field, GRID)
