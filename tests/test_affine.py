"""Affines from key points: against the truth of a phantom, in one block and in many."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import pytest
from scipy.ndimage import affine_transform

from itkstream.affine import intensity_affine, prepare_piecewise_ransac_affine, ransac_affine
from itkstream.apply.resampling import piecewise_transform
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.itk.settings import IntensitySettings
from itkstream.numerics.matching.ransac import RansacSettings
from itkstream.numerics.threads import using_threads
from itkstream.phantoms import PhantomPair
from itkstream.transform import apply_global_affine

BLOBS: dict[str, Any] = {"min_radius": 2, "max_radius": 6, "match_threshold": 0.5, "cc_radius": 6}
SIZE = (32, 28, 24)


@pytest.fixture(scope="module")
def whole(pair: PhantomPair) -> np.ndarray:
    return ransac_affine(pair.fixed, pair.moving, None, None, **BLOBS)


@pytest.fixture(scope="module")
def rough(pair: PhantomPair, whole: np.ndarray) -> np.ndarray:
    """The moving image through the global affine, as the tutorial prepares the piecewise step."""
    return apply_global_affine(pair.fixed, pair.moving, None, None, whole)


@pytest.fixture(scope="module")
def local(pair: PhantomPair, rough: np.ndarray) -> np.ndarray:
    spacing = pair.fixed.spacing
    fixed = pair.fixed.read()
    lazy = prepare_piecewise_ransac_affine(
        fixed, rough, spacing, spacing, **BLOBS, blocksize=SIZE, overlap=6
    )
    assert lazy.shape == (2, 2, 2, 4, 4)
    return lazy.compute()


def test_finds_the_truth(pair: PhantomPair, whole: np.ndarray) -> None:
    assert (whole.shape, whole.dtype) == ((4, 4), np.float64)
    found = pair.error(AffineTransform(whole).apply).summary()
    before = pair.error(lambda p: p).summary()
    # The truth bends by 2 micrometers: its best affine is 0.35 off in the median.
    assert found["median_um"] < 0.6
    assert found["median_um"] < 0.3 * before["median_um"]


def test_same_bits_in_one_block_every_container_and_thread_count(
    stored: Callable[..., Any], pair: PhantomPair, whole: np.ndarray
) -> None:
    spacing = pair.fixed.spacing
    for kind in ("numpy", "dask", "zarr", "n5"):
        fixed, moving = (stored(kind, im.read(), im.grid) for im in (pair.fixed, pair.moving))
        with using_threads(1 if kind == "zarr" else 2):
            direct = ransac_affine(fixed, moving, spacing, spacing, **BLOBS)
            lazy = prepare_piecewise_ransac_affine(
                fixed, moving, spacing, spacing, **BLOBS, blocksize=pair.fixed.shape
            )
            np.testing.assert_array_equal(direct, whole)
            np.testing.assert_array_equal(lazy.compute(), whole[None, None, None])


def test_many_blocks_agree_in_every_container(
    stored: Callable[..., Any], pair: PhantomPair, rough: np.ndarray, local: np.ndarray
) -> None:
    grid, spacing = pair.fixed.grid, pair.fixed.spacing
    for kind in ("dask", "zarr"):
        fixed, moving = stored(kind, pair.fixed.read(), grid), stored(kind, rough, grid)
        lazy = prepare_piecewise_ransac_affine(
            fixed, moving, spacing, spacing, **BLOBS, blocksize=SIZE, overlap=6
        )
        with using_threads(1):
            np.testing.assert_array_equal(lazy.compute(), local)


def test_flags_turn_stored_zyx_arrays(
    pair: PhantomPair, rough: np.ndarray, local: np.ndarray
) -> None:
    spacing = pair.fixed.spacing
    lazy = prepare_piecewise_ransac_affine(
        pair.fixed.read().T, rough.T, spacing, spacing, **BLOBS, blocksize=SIZE, overlap=6,
        transpose=(True, True),
    )  # fmt: skip
    np.testing.assert_array_equal(lazy.compute(), local)


def test_local_affines_bend_closer_to_the_truth(
    pair: PhantomPair, whole: np.ndarray, local: np.ndarray
) -> None:
    transform = piecewise_transform(pair.fixed.grid, local, SIZE, whole, 6)
    found = pair.error(transform.apply).summary()
    before = pair.error(AffineTransform(whole).apply).summary()
    assert found["median_um"] < before["median_um"]
    assert (local[..., 3, :] == [0, 0, 0, 1]).all()


def test_a_block_without_texture_continues_its_neighbours(
    pair: PhantomPair, rough: np.ndarray, local: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    fixed = pair.fixed.read().copy()
    fixed[:38, :34, :30] = 100
    arguments = (fixed, rough, pair.fixed.spacing, pair.fixed.spacing)
    with caplog.at_level(logging.INFO, "itkstream"):
        own, filled = dask.compute(
            *(
                prepare_piecewise_ransac_affine(
                    *arguments, **BLOBS, blocksize=SIZE, overlap=6, fill=fill
                )
                for fill in (False, True)
            )
        )
    assert "the block at x 0-31, y 0-27, z 0-23 has no affine of its own" in caplog.text
    assert "it has no key points" in caplog.text
    assert np.isnan(own[0, 0, 0]).all()
    assert np.isfinite(own[1, 1, 1]).all()
    assert np.isfinite(filled).all()
    centre = pair.fixed.grid.to_physical((16, 14, 12))
    moved = [m[:3, :3] @ centre + m[:3, 3] - centre for m in filled.reshape(-1, 4, 4)]
    # Its move lies within, or near, those its neighbours make of the same place.
    others = np.array(moved[1:])
    slack = 0.5
    assert (moved[0] > others.min(0) - slack).all()
    assert (moved[0] < others.max(0) + slack).all()
    # Far from the hole little changes: the voxels there are the same, the tie to others is not.
    corner = pair.fixed.grid.to_physical((48, 42, 36))
    change = (filled[1, 1, 1] - local[1, 1, 1]) @ [*corner, 1]
    assert np.abs(change).max() < 0.5


def test_all_blocks_failed(pair: PhantomPair) -> None:
    noise = np.random.default_rng(0).integers(0, 99, pair.fixed.shape).astype(np.uint16)
    spacing = pair.fixed.spacing
    lazy = prepare_piecewise_ransac_affine(
        pair.fixed.read(), noise, spacing, spacing, **{**BLOBS, "match_threshold": 0.99},
        blocksize=SIZE,
    )  # fmt: skip
    with pytest.raises(RegistrationError, match="all 8 blocks failed to find an affine"):
        lazy.compute()


def test_images_bring_their_own_units_and_axes(pair: PhantomPair, whole: np.ndarray) -> None:
    # The same pair, with lengths in nanometers: radii are in voxels, thresholds in micrometers.
    found = ransac_affine(
        pair.fixed.in_unit("nanometer"), pair.moving.in_unit("millimeter"), None, None, **BLOBS
    )
    # Spacings are rounded by the conversion, in the last bit.
    np.testing.assert_allclose(found, whole, atol=1e-6)
    moving = pair.moving.reorder(("z", "x", "y"))
    np.testing.assert_array_equal(ransac_affine(pair.fixed, moving, None, None, **BLOBS), whole)


def test_masks_and_models(pair: PhantomPair) -> None:
    mask = pair.tissue.copy()
    mask[:, :, 24:] = False
    rigid = RansacSettings(model="rigid", threshold_um=3.0)
    found = ransac_affine(pair.fixed, pair.moving, None, None, **BLOBS, fix_mask=mask, ransac=rigid)
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)


def test_in_two_dimensions() -> None:
    rng = np.random.default_rng(0)
    grid = Grid((160, 150), (0.5, 0.5))
    p = grid.positions()
    fixed = np.zeros(grid.shape)
    for c in rng.uniform(2, 76, (140, 2)):
        fixed += rng.uniform(50, 200) * np.exp(-np.sum((p - c) ** 2, -1) / (2 * 1.1**2))
    true = np.array([[1.02, 0.03, 1.5], [-0.02, 0.99, -2.0], [0, 0, 1]])
    # moving(q) = fixed(true^-1 q), in voxels of 0.5.
    back = np.linalg.inv(true)
    moving = affine_transform(fixed, back[:2, :2], back[:2, 2] / 0.5, order=3)
    found = ransac_affine(fixed, moving, (0.5, 0.5), (0.5, 0.5), 3, 7, 0.6, cc_radius=8)
    assert found.shape == (3, 3)
    points = grid.positions()[::20, ::20]
    error = AffineTransform(found).apply(points) - AffineTransform(true).apply(points)
    assert np.abs(error).max() < 0.25  # half a voxel


CUBE = (40, 40, 40)
TINY = np.random.default_rng(0).integers(0, 99, (8, 8, 8))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"mov": np.zeros((9, 9)), "mov_spacing": (1, 1)},
            InputError,
            "fixed image has 3 axes and the moving image 2",
        ),
        ({"mov": np.full(CUBE, 7)}, RegistrationError, "every voxel of the image is 7"),
        ({"fix": np.full(CUBE, np.nan)}, RegistrationError, "no voxel of the image is finite"),
        ({"mov": TINY}, InputError, r"cannot show blobs of radius.*take smaller radii"),
        (
            {"mov": TINY, "min_radius": 1, "max_radius": 2, "cc_radius": 12},
            RegistrationError,
            "no affine found: .* key points in the fixed and 12 in the moving",
        ),
        ({"nspots": 6}, RegistrationError, "6 key points in the fixed and 6 in the moving"),
        ({"nspots": 0}, InputError, "nspots must be a whole number >= 1"),
        ({"match_threshold": 0.999}, RegistrationError, "gave 0 matches above 0.999"),
        ({"match_threshold": 1.5}, InputError, "threshold must lie between -1 and 1"),
        ({"min_radius": 9}, InputError, "radii must be pairs of smallest and largest"),
        ({"cc_radius": 0}, InputError, "cc_radius must be a whole number >= 1"),
        ({"fix_spacing": (1, 0, 1)}, InputError, "spacing must be positive"),
        ({"mov_spacing": (1, 1, -1)}, InputError, "spacing must be positive"),
        ({"align_threshold": -1.0}, InputError, "align_threshold"),
    ],
)  # fmt: skip
def test_bad_input(
    pair: PhantomPair, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    spacing = pair.fixed.spacing
    good = {"fix": pair.fixed.read(), "mov": pair.moving.read(), **BLOBS}
    with pytest.raises(kind, match=message):
        ransac_affine(**{**good, "fix_spacing": spacing, "mov_spacing": spacing, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocksize": (32, 28)}, "blocksize needs 3"),
        ({"overlap": 9}, "more than a quarter of the blocksize 32|28"),
        ({"overlap": (4, 4)}, "overlap needs 3"),
    ],
)
def test_bad_blocks(pair: PhantomPair, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_piecewise_ransac_affine(
            pair.fixed, pair.moving, None, None, **BLOBS, **{"blocksize": SIZE, **change}
        )


def test_an_empty_overlap_fails_every_block(pair: PhantomPair) -> None:
    away = Image(pair.moving.data, Grid(pair.moving.shape, pair.moving.spacing, (9e3, 0, 0)))
    lazy = prepare_piecewise_ransac_affine(pair.fixed, away, None, None, **BLOBS, blocksize=SIZE)
    with pytest.raises(RegistrationError, match="all 8 blocks failed"):
        lazy.compute()


def test_intensities_refine_an_affine(pair: PhantomPair) -> None:
    start = np.array(pair.truth.matrix)
    start[:3, 3] += (2.0, -1.5, 1.0)
    found = intensity_affine(pair.fixed, pair.moving, None, None, start)
    before, after = (pair.error(AffineTransform(m).apply).summary() for m in (start, found))
    # The truth bends by 2 micrometers, and part of the nuclei look different.
    assert after["median_um"] < 0.6 < before["median_um"]
    spacing = pair.fixed.spacing
    arrays = intensity_affine(
        pair.fixed.read(), pair.moving.read(), spacing, pair.moving.spacing, start,
        settings=IntensitySettings().scaled(min(spacing)),
    )  # fmt: skip
    np.testing.assert_array_equal(arrays, found)


def test_masks_and_the_lack_of_a_start_reach_the_method(pair: PhantomPair) -> None:
    few = IntensitySettings(model="translation", iterations=(5, 5))
    mask = np.zeros(pair.fixed.shape, bool)
    mask[20:50, 10:40, 10:40] = True
    free, fixed, moving = (
        intensity_affine(pair.fixed, pair.moving, None, None, settings=few, **masks)
        for masks in ({}, {"fix_mask": mask}, {"mov_mask": mask})
    )
    assert not np.array_equal(free, fixed)
    assert not np.array_equal(free, moving)
    np.testing.assert_array_equal(free[:3, :3], np.eye(3))


def test_the_log_says_why_an_affine_was_kept(
    pair: PhantomPair, caplog: pytest.LogCaptureFixture
) -> None:
    start = np.eye(4)
    start[:3, 3] = 1e4
    with caplog.at_level(logging.WARNING):
        kept = intensity_affine(pair.fixed, pair.moving, None, None, start)
    np.testing.assert_array_equal(kept, start)
    assert "initial affine is kept" in caplog.text


def test_takes_key_points_from_a_segmentation(pair: PhantomPair) -> None:
    there = pair.truth(pair.nuclei)
    inside = pair.moving.grid.to_index(there)
    seen = ((inside > 0) & (inside < np.subtract(pair.moving.shape, 1))).all(axis=1)
    estimate = ransac_affine(
        pair.fixed,
        pair.moving,
        None,
        None,
        **BLOBS,
        fix_points=pair.nuclei,
        mov_points=there[seen],
        return_estimate=True,
    )
    # Exact centroids: what is left is the truth's own bend, as in test_finds_the_truth.
    assert pair.error(AffineTransform(estimate.matrix).apply).summary()["median_um"] < 0.6
    assert estimate.inliers.sum() > 20
    assert np.median(estimate.residuals[estimate.inliers]) < 1.0
    assert len(estimate.residuals) == len(estimate.inliers)


def test_limits_of_matches_act(pair: PhantomPair) -> None:
    def matches(**limits: float) -> int:
        found = ransac_affine(
            pair.fixed, pair.moving, None, None, **BLOBS, **limits, return_estimate=True
        )
        return len(found.inliers)

    free = matches()
    assert 0 < matches(max_ambiguity=0.6) < free
    # Partners that are too far no longer win against the right one: there may be more matches.
    assert 0 < matches(max_distance=6.0) != free
