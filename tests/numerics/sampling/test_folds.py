"""Folds are found, mended, and nothing else is touched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.numerics.sampling.folds import GROWTH, MARGIN, repair_folds

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


def repaired_whole(field, grid, minimum):
    """Repair with folds and their groups told in the whole field in each round."""
    field, rounds = field.copy(), 0
    while (folded := jacobian_determinant(field, grid) <= minimum).any():
        sigma = min(GROWTH**rounds, max(grid.shape) / 4)
        reach = MARGIN + round(2 * sigma)
        wide = ndimage.maximum_filter(folded, 2 * reach + 1, mode="constant")
        labels, _ = ndimage.label(wide, np.ones((3,) * grid.ndim))
        for found in ndimage.find_objects(labels):
            box = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in found)
            core = ndimage.maximum_filter(folded[box], 2 * MARGIN + 1).astype(np.float32)
            weight = ndimage.uniform_filter(core, 2 * (reach // 2) + 1, mode="nearest")
            for c in range(grid.ndim):
                values = field[..., c][box]
                mean = ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3.0)
                values += np.minimum(1.0, weight * 2) * (mean - values)
        rounds += 1
    return field


@pytest.mark.parametrize("shape", [(90, 70, 50), (150, 130)])
@pytest.mark.parametrize("folds", [1, 12, 60])
def test_folds_far_apart_are_mended_as_in_the_whole_field(shape, folds):
    grid = Grid(shape, (1.0, 1.5, 0.7)[: len(shape)])
    field = rough_field(0.3, 3.0, folds, grid)
    rng = np.random.default_rng(folds)
    for place in zip(*(rng.integers(0, n, folds) for n in shape), strict=True):
        field[place] += rng.normal(size=len(shape)) * 6
    got = repair_folds(field, grid, 0.05)
    assert got.folded_before > 0
    np.testing.assert_array_equal(got.displacement, repaired_whole(field, grid, 0.05))


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
