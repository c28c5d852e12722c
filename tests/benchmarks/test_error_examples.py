"""The benchmark of the error map, on pairs so small that a table can be fitted in seconds."""

from dataclasses import replace

import numpy as np
import pytest
from error_examples import Example, judge, load_examples, make_examples, roc_area
from error_map import table_of
from error_pairs import Recipe, list_recipes, register_recipe
from fit_error import fit_table

from itkstream.geometry import Grid
from itkstream.judge.error_map import ErrorLattice
from itkstream.numerics.evidence.radius import EVIDENCE, Curve, RadiusTable, Surface, load_table

KINDS = ("good", "undeformed", "slipped", "half")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    recipes = [Recipe(kind, "nuclei", 5, (96, 80), (1.0, 1.0)) for kind in KINDS]
    first = list(load_examples(recipes, folder))
    again = list(load_examples(recipes, folder))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.evidence, two.evidence)
    return first


def test_a_pair_is_judged_by_coarser_overviews():
    recipe = Recipe("good", "nuclei", 5, (160, 144), (1.0, 1.0))
    fine, coarse = (judge(example, load_table()) for example in make_examples(recipe, [2, 6]))
    assert fine.true_p95 == coarse.true_p95
    assert fine.median_radius < coarse.median_radius
    assert coarse.covered > 0.9


def test_the_truth_of_a_pair_is_true():
    pair = register_recipe(Recipe("perturbed", "nuclei", 3, (96, 80), (1.0, 1.0)))
    # Where the perturbation is least, both images show the same.
    near = pair.tissue & (pair.error < np.nanpercentile(pair.error, 10))
    fixed = pair.fixed.read()
    aligned = np.zeros_like(fixed)
    index = pair.moving.grid.to_index(pair.transform.apply(pair.fixed.grid.positions()))
    inside = ((index >= 0) & (index <= np.subtract(pair.moving.shape, 1))).all(axis=-1)
    aligned[inside] = pair.moving.read()[tuple(np.rint(index[inside]).astype(int).T)]
    both = near & inside
    assert np.corrcoef(fixed[both], aligned[both])[0, 1] > 0.7


def test_a_fitted_table_covers_what_it_was_fitted_on(examples):
    table = fit_table(examples, [replace(e, scale=2.0) for e in examples])
    assert set(table.near) == {2.0}
    judged = [judge(example, table) for example in examples]
    assert np.mean([j.covered for j in judged]) > 0.9
    text = table_of(examples, table)
    assert all(f"| {kind} | 1 |" in text for kind in KINDS)
    assert "Area under the ROC curve" in text


def test_every_kind_texture_and_seed_is_a_pair_of_its_own():
    recipes = list_recipes(("nuclei", "smooth"), range(4))
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    assert {len(recipe.shape) for recipe in recipes} == {2, 3}


def test_judgements_are_plain_arithmetic():
    lattice = ErrorLattice.of(Grid((32, 32), (1.0, 1.0)))
    evidence = np.zeros((4, 4, len(EVIDENCE)), np.float32)
    evidence[3] = np.nan
    voxels = np.array([[4, 4], [4, 12], [12, 4], [28, 28]])
    example = Example("good", "nuclei", lattice, evidence, voxels, np.array([0.5, 0.9, 1.5, 9.0]))
    level = Surface(([0.0, 1.0], [0.0, 1.0]), np.zeros((2, 2)))
    found = judge(example, RadiusTable(level, Curve([0.0, 1.0], [0.0, 0.0])))
    assert found.covered == 0.75
    assert found.unknown == 0.25
    assert found.median_radius == pytest.approx(1)
    assert roc_area(np.array([1.0, 2.0, np.nan]), np.array([False, True, True])) == 1
    assert roc_area(np.array([1.0, 1.0]), np.array([False, True])) == 0.5
