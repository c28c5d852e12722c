"""Affines of all blocks from images: a phantom pair of which some blocks show nothing."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import dask
import numpy as np
import pytest

from itkstream.affine import prepare_piecewise_ransac_affine
from itkstream.errors import RegistrationError
from itkstream.estimate.affines import prepare_local_affines, split_local_affines
from itkstream.geometry import AffineTransform, BlockGrid, Image, PiecewiseAffine
from itkstream.numerics.matching.affine import AffineSettings
from itkstream.numerics.matching.consistency import CONFIDENCE_COLUMNS
from itkstream.numerics.matching.contexts import ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings
from itkstream.numerics.matching.matches import MatchSettings
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair

SPACING = (1.0, 1.0, 1.0)
BLOCKSIZE = (48, 48, 48)
BLOCKS = BlockGrid((144, 120, 96), BLOCKSIZE, (6, 6, 6))
# One in the middle of a face of the block grid, one at a corner; not neighbours.
CONSTANT = ((1, 1, 0), (0, 2, 1))
MATCHES, RESIDUAL, DISAGREEMENT, CONFIDENCE = range(len(CONFIDENCE_COLUMNS))

Found = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def tissue() -> PhantomPair:
    """144 x 120 x 96 voxels, aligned but for a smooth warp of 4 µm and a little of an affine."""
    motion = Motion(rotation_deg=0.3, stretch=0.004, shear=0.003, shift=0.003, warp_um=4)
    return make_pair(PhantomSettings(BLOCKS.shape, SPACING, 5, radii_um=(2.5, 5.0), motion=motion))


def voxels(image: Image) -> np.ndarray[Any, Any]:
    return np.array(image.data)


def without(image: Image, blocks: tuple[tuple[int, ...], ...]) -> np.ndarray[Any, Any]:
    """The image, constant in these blocks and their overlaps."""
    out = voxels(image)
    for index in blocks:
        out[BLOCKS[index].padded] = 200
    return out


def find(fixed: Any, moving: Any, **options: Any) -> Found:
    prepared = prepare_piecewise_ransac_affine(
        fixed, moving, SPACING, SPACING, 2.5, 5.0, 0.6, BLOCKSIZE, 8,
        return_confidence=True, **options,
    )  # fmt: skip
    for array, last in zip(prepared, ((4, 4), (4,)), strict=True):
        assert array.shape == (*BLOCKS.numblocks, *last)
        assert array.dtype == np.float64
    computed: Found = dask.compute(*prepared)
    return computed


@pytest.fixture(scope="module")
def whole(tissue: PhantomPair) -> Found:
    return find(voxels(tissue.fixed), voxels(tissue.moving))


@pytest.fixture(scope="module")
def holed(tissue: PhantomPair) -> Found:
    return find(without(tissue.fixed, CONSTANT), voxels(tissue.moving))


def median_error(
    tissue: PhantomPair, matrices: np.ndarray[Any, Any], blocks: tuple[tuple[int, ...], ...] = ()
) -> float:
    """Over the tissue, or the tissue in these blocks."""
    kept = np.full(tissue.tissue.shape, not blocks)
    for index in blocks:
        kept[BLOCKS[index].core] = True
    local = PiecewiseAffine(matrices, BLOCKS, tissue.fixed.grid)
    judged = replace(tissue, tissue=tissue.tissue & kept)
    return judged.error(local.apply).summary()["median_um"]


def test_every_block_finds_its_affine(tissue: PhantomPair, whole: Found) -> None:
    matrices, confidence = whole
    assert confidence[..., MATCHES].min() > 100
    # Matches within 2 µm of the affine: of a uniform ball the root mean square is 1.5.
    assert 0.3 < confidence[..., RESIDUAL].min() < confidence[..., RESIDUAL].max() < 1.5
    assert confidence[..., DISAGREEMENT].max() < 2.5
    assert confidence[..., CONFIDENCE].min() > 0.9
    identity = np.broadcast_to(np.eye(4), matrices.shape)
    assert median_error(tissue, identity) > 1.5
    assert median_error(tissue, matrices) < 0.5


def test_constant_blocks_continue_their_neighbours(
    tissue: PhantomPair, whole: Found, holed: Found
) -> None:
    matrices, confidence = holed
    constant = np.zeros(BLOCKS.numblocks, bool)
    for index in CONSTANT:
        constant[index] = True
    assert np.array_equal(confidence[..., MATCHES] == 0, constant)
    assert (confidence[constant, CONFIDENCE] == 0).all()
    assert np.isnan(confidence[constant, RESIDUAL]).all()
    assert (confidence[~constant, CONFIDENCE] > 0.9).all()
    assert median_error(tissue, matrices) < 1.1 * median_error(tissue, whole[0])
    # What a block's neighbours cannot know is the curvature of the warp inside it.
    identity = np.broadcast_to(np.eye(4), matrices.shape)
    assert median_error(tissue, matrices, CONSTANT) < 0.8
    assert median_error(tissue, matrices, CONSTANT) < median_error(tissue, identity, CONSTANT) / 2


def test_a_block_that_shows_another_place_loses_its_say(tissue: PhantomPair, whole: Found) -> None:
    # The fixed block is moved by 12 voxels: its matches agree with one another, and are wrong.
    index = (1, 1, 0)
    fixed = voxels(tissue.fixed)
    part = BLOCKS[index].padded
    fixed[part] = np.roll(fixed, 12, axis=0)[part]
    matrices, confidence = find(fixed, voxels(tissue.moving))
    assert confidence[(*index, MATCHES)] > 100
    assert confidence[(*index, DISAGREEMENT)] > 10
    assert confidence[(*index, CONFIDENCE)] < 0.1
    others = np.delete(
        confidence[..., CONFIDENCE].ravel(), np.ravel_multi_index(index, BLOCKS.numblocks)
    )
    assert others.min() > 0.9
    assert median_error(tissue, matrices, (index,)) < 1.5
    assert median_error(tissue, matrices) < 1.2 * median_error(tissue, whole[0])


def test_unfilled_blocks_are_nan(
    tissue: PhantomPair, holed: Found, caplog: pytest.LogCaptureFixture
) -> None:
    fixed = without(tissue.fixed, CONSTANT)
    caplog.set_level(logging.INFO, "itkstream")
    with dask.config.set(scheduler="synchronous"):
        matrices, confidence = find(fixed, voxels(tissue.moving), fill=False)
    failed = np.isnan(matrices).all(axis=(-1, -2))
    assert [tuple(i) for i in np.argwhere(failed)] == sorted(CONSTANT)
    assert np.isfinite(matrices[~failed]).all()
    assert np.array_equal(confidence[..., MATCHES], holed[1][..., MATCHES])
    assert np.isnan(confidence[..., DISAGREEMENT]).all()
    assert sum("has no affine of its own" in r.getMessage() for r in caplog.records) == 2


def test_an_initial_transform_is_undone_per_block(tissue: PhantomPair, whole: Found) -> None:
    # The moving image is declared to lie 40 µm further on; the initial transform says so.
    grid = replace(tissue.moving.grid, origin=(40.0, -25.0, 10.0))
    shift = np.eye(4)
    shift[:3, 3] = grid.origin
    settings = AffineSettings(
        KeyPointSettings.from_voxels(2.5, 5.0, SPACING),
        ContextWindow.from_voxels(8, SPACING),
        MatchSettings(0.6),
    )
    lazy = prepare_local_affines(
        tissue.fixed,
        Image(voxels(tissue.moving), grid),
        AffineTransform(shift),
        BLOCKSIZE,
        settings,
    )
    matrices, confidence = split_local_affines(lazy.compute(), 3)
    # Where a block reaches beyond the moving image it is NaN there, once, and cropped, once: other
    # key points at the border of the image.
    assert np.array_equal(confidence[..., MATCHES] > 100, whole[1][..., MATCHES] > 100)
    assert median_error(tissue, matrices) < 1.05 * median_error(tissue, whole[0])


def test_all_blocks_constant_is_an_error() -> None:
    nothing = np.full((64, 64, 32), 7, np.uint16)
    lazy = prepare_piecewise_ransac_affine(
        nothing, nothing, SPACING, SPACING, 2.5, 5.0, 0.6, (32, 32, 32)
    )
    with pytest.raises(RegistrationError, match="all 4 blocks failed"):
        lazy.compute()
