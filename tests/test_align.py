"""Lists of steps in blocks: against the truth of a phantom, without seams, lazily."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from itkstream.affine import intensity_affine, ransac_affine
from itkstream.align import prepare_piecewise_align
from itkstream.compute.execute import compute
from itkstream.deform import prepare_piecewise_deformable_align
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Image
from itkstream.numerics.threads import using_threads
from itkstream.phantoms import PhantomPair
from itkstream.registration.steps import Deformable, IntensityAffine, LocalAffines, RansacAffine

MATCHING: dict[str, Any] = {"match_threshold": 0.5, "cc_radius": 6}
RANSAC = RansacAffine(radii=((2.0, 6.0),), **MATCHING)
INTENSITY = IntensityAffine("translation", iterations=(20, 10))
SIZE = (32, 28, 24)
OVERLAP = (8, 7, 6)


def positions(pair: PhantomPair, steps: Any, size: Any = SIZE, **others: Any) -> np.ndarray:
    overlap = OVERLAP if size == SIZE else None
    lazy = prepare_piecewise_align(
        pair.fixed, pair.moving, None, None, steps, size, overlap=overlap, **others
    )
    assert (lazy.shape, lazy.dtype) == ((*pair.fixed.shape, 3), np.float64)
    return compute(lazy)


def median_error(pair: PhantomPair, found: np.ndarray) -> float:
    off = np.linalg.norm(found - pair.truth(pair.fixed.grid.positions()), axis=-1)
    inner = (slice(4, -4),) * 3
    return float(np.median(off[inner][pair.tissue[inner]]))


@pytest.fixture(scope="module")
def affine(pair: PhantomPair) -> np.ndarray:
    return np.array(pair.truth.matrix)


def test_one_block_is_the_direct_call(pair: PhantomPair) -> None:
    whole = ransac_affine(
        pair.fixed, pair.moving, None, None, 2, 6, 0.5, 6,
        align_threshold=1.5 * float(np.median(pair.fixed.spacing)),
    )  # fmt: skip
    found = positions(pair, [RANSAC], pair.fixed.shape)
    grid = pair.fixed.grid
    # The map is kept as float32 displacements of some micrometers.
    np.testing.assert_allclose(found, AffineTransform(whole).apply(grid.positions()), atol=1e-5)


def test_intensities_in_one_block_are_the_direct_call(pair: PhantomPair) -> None:
    settings = INTENSITY.settings_for(pair.fixed.spacing)
    whole = intensity_affine(pair.fixed, pair.moving, None, None, settings=settings)
    found = positions(pair, [INTENSITY], pair.fixed.shape)
    wanted = AffineTransform(whole).apply(pair.fixed.grid.positions())
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_affines_of_blocks_bend_closer_to_the_truth(pair: PhantomPair, affine: np.ndarray) -> None:
    rough = affine.copy()
    rough[:3, 3] += (1.5, -1.0, 1.0)
    before = median_error(pair, AffineTransform(rough).apply(pair.fixed.grid.positions()))
    one = positions(pair, [RANSAC], initial_transform=rough)
    two = positions(pair, [INTENSITY], initial_transform=rough)
    # The truth bends by 2 micrometers: one affine for all is 0.35 off in the median.
    assert median_error(pair, one) < 0.7
    assert median_error(pair, two) < 0.7
    assert before > 1.5
    for found in (one, two):
        steps = np.linalg.norm(np.diff(found - affine[:3, 3], axis=0), axis=-1)
        # Blended affines of neighbours that agree leave no jump at a border.
        assert steps[31].max() < 1.2 * np.delete(steps, range(28, 36), axis=0).max()


@pytest.mark.slow
def test_a_deformation_follows_the_affines(pair: PhantomPair) -> None:
    steps = [RANSAC, LocalAffines(blocksize=32, radii=(2, 6), **MATCHING), Deformable()]
    found = positions(pair, steps)
    assert median_error(pair, found) < 0.4
    with using_threads(1):
        np.testing.assert_array_equal(positions(pair, steps), found)


def test_a_deformation_alone_is_the_tutorials_function(
    pair: PhantomPair, affine: np.ndarray
) -> None:
    step = Deformable(iterations=(6, 3), shrink_factors=(2, 1))
    found = positions(pair, [step], initial_transform=AffineTransform(affine))
    lazy = prepare_piecewise_deformable_align(
        pair.fixed, pair.moving, None, None, SIZE, global_affine=affine, overlap=OVERLAP,
        settings=step.settings_for(pair.fixed.spacing), mov_is="original",
    )  # fmt: skip
    np.testing.assert_array_equal(found, compute(lazy))


def test_flags_turn_stored_zyx_arrays(pair: PhantomPair) -> None:
    spacing = pair.fixed.spacing
    lazy = prepare_piecewise_align(
        pair.fixed.read().T, pair.moving.read().T, spacing, pair.moving.spacing, [RANSAC], SIZE,
        (True, True), overlap=OVERLAP,
    )  # fmt: skip
    np.testing.assert_array_equal(compute(lazy), positions(pair, [RANSAC]))


def test_blocks_keep_where_they_start_and_say_why(
    pair: PhantomPair, affine: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    lattice = IntensityAffine(
        "translation", optimizer="exhaustive", step=9.0, search_steps=1, iterations=(1,),
        shrink_factors=(1,), smooth_sigmas=(0.0,),
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "itkstream"):
        found = positions(pair, [lattice], initial_transform=affine)
    assert "keeps where it starts, as the metric did not improve" in caplog.text
    wanted = AffineTransform(affine).apply(pair.fixed.grid.positions())
    np.testing.assert_allclose(found, wanted, atol=1e-4)


class Untouched:
    """An image nobody may read."""

    def __init__(self, image: Image) -> None:
        self.shape, self.dtype = image.shape, image.dtype

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("voxels were read")


def test_nothing_is_read_before_it_is_computed(pair: PhantomPair) -> None:
    fixed, moving = (Image(Untouched(im), im.grid) for im in (pair.fixed, pair.moving))
    steps = [RANSAC, INTENSITY, LocalAffines(blocksize=32), Deformable()]
    lazy = prepare_piecewise_align(fixed, moving, None, None, steps, SIZE, overlap=OVERLAP)
    with pytest.raises(AssertionError, match="voxels were read"):
        lazy.compute()


@pytest.mark.parametrize(
    ("steps", "size", "message"),
    [
        ([], SIZE, "at least one step"),
        (RANSAC, SIZE, "in brackets"),
        ([Deformable(), RANSAC], SIZE, "must be the last step"),
        ([RANSAC], (32, 28), "blocksize needs 3"),
    ],
)
def test_bad_lists_and_blocks(pair: PhantomPair, steps: Any, size: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_piecewise_align(pair.fixed, pair.moving, None, None, steps, size)
