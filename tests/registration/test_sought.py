"""Tried where few of the matches agree: all that support one another, and those off the ground."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from itkstream.blocks.masks import masked
from itkstream.geometry import AffineTransform, ChannelPair, Image, Transform
from itkstream.numerics.evidence.one_sided import find_shown
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair
from itkstream.progress.reporters import LogReporter
from itkstream.registration.scene import Scene
from itkstream.registration.settings import Content
from itkstream.registration.steps import RansacAffine
from itkstream.registration.steps.matched import align_channel, choose_matching
from itkstream.registration.steps.ransac import Attempt
from itkstream.workers import Resources

STEP = RansacAffine(search="never", radii=((2, 6),), cc_radius=6, match_threshold=0.5)
WIDE = STEP.evolve(cc_radius=11, match_threshold=0.7)


@pytest.fixture(scope="module")
def nuclei() -> PhantomPair:
    """Nuclei in a body, on a ground that is empty but for noise."""
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.03, warp_um=2)
    return make_pair(PhantomSettings((72, 60, 48), (1.0, 1.0, 1.0), 3, motion=motion))


@pytest.fixture(scope="module")
def bent() -> PhantomPair:
    """Nuclei that lie up to 5 µm from any affine."""
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.03, warp_um=5)
    return make_pair(PhantomSettings((72, 60, 48), (1.0, 1.0, 1.0), 3, motion=motion))


def attempt(
    fixed: Image,
    moving: Image,
    content: Content,
    threshold: float,
    start: Transform | None = None,
    step: RansacAffine = STEP,
) -> Attempt:
    makers = (lambda: fixed), (lambda: moving)
    reporter = LogReporter()
    scene = Scene(fixed, moving, 20e6, Resources(), reporter, makers, content=content)
    return step.evolve(align_threshold=threshold).attempt(scene, start)


def error_um(pair: PhantomPair, found: Attempt) -> float:
    matrix = found.affine.matrix
    assert matrix is not None
    return float(pair.error(AffineTransform(matrix).apply).summary()["median_um"])


def lie_on(mask: Image, points: Any) -> np.ndarray:
    index = np.rint(mask.grid.to_index(np.asarray(points))).astype(int)
    return np.asarray(mask.read()[tuple(index.T)])


def test_few_that_agree_closely_are_settled_by_all_that_support_one_another(
    bent: PhantomPair,
) -> None:
    """One in nine agrees within half a voxel, on an affine that is 1.6 times as far off."""
    images = bent.fixed, bent.moving
    few, many = (attempt(*images, "all", threshold) for threshold in (0.5, 1.5))
    told = few.facts["settled"]
    assert told["matches"] > 3 * few.facts["inliers"]
    assert told["local_correlation"][1] > told["local_correlation"][0]
    assert "settled" not in many.facts
    assert error_um(bent, few) < 1.1 * error_um(bent, many)


def test_key_points_off_ground_are_kept_where_voxels_agree_better(nuclei: PhantomPair) -> None:
    """Truth: the affine of the phantom."""
    images = nuclei.fixed, nuclei.moving
    found, before = (attempt(*images, content, 0.3) for content in ("common", "all"))
    told = found.facts["empty_ground"]
    assert told["left_out"]
    assert set(told["share"]) == {"fixed", "moving"}
    assert told["local_correlation"][1] > told["local_correlation"][0]
    assert error_um(nuclei, found) <= error_um(nuclei, before)
    shown = find_shown(nuclei.fixed)
    assert shown is not None
    on = [lie_on(shown, one.facts["drawn_points"]["differ"]).all() for one in (found, before)]
    assert on == [True, False]
    assert "empty_ground" not in before.facts


def test_where_they_are_no_better_all_stays_to_the_last_bit(nuclei: PhantomPair) -> None:
    images = nuclei.fixed, nuclei.moving
    found, before = (attempt(*images, content, 0.5) for content in ("common", "all"))
    np.testing.assert_array_equal(found.affine.matrix, before.affine.matrix)
    assert not found.facts.pop("empty_ground")["left_out"]
    assert found.facts == before.facts


@pytest.mark.parametrize("start", [None, AffineTransform(np.eye(4))])
def test_parts_in_another_order_are_told_though_aligned_images_hide_them(
    nuclei: PhantomPair, start: Transform | None
) -> None:
    """Two slabs change places: one affine brings either together, 72 µm from that of the other.

    Of whole images what lies outside is shifted; from a start that is known, what the first
    matching saw is kept.
    """
    swapped = Image(np.roll(nuclei.moving.read(), 36, axis=0), nuclei.moving.grid)
    told = attempt(nuclei.fixed, swapped, "all", 1.0, start).facts["elsewhere"]
    assert told["apart_um"] == pytest.approx(72, rel=0.1)
    assert told["inliers"] > 0.2 * told["agree"]


def test_a_slab_too_thin_for_contexts_is_told_by_its_voxels(nuclei: PhantomPair) -> None:
    """A fifth is at the other end; contexts of its key points reach over its seams."""
    rolled = Image(np.roll(nuclei.moving.read(), 14, axis=0), nuclei.moving.grid)
    told = attempt(nuclei.fixed, rolled, "all", 1.0, step=WIDE).facts["elsewhere"]
    assert told["apart_um"] == pytest.approx(72, rel=0.1)


def test_a_mask_says_where_instead(nuclei: PhantomPair) -> None:
    counts = np.ones(nuclei.fixed.shape, bool)
    counts[:2] = False
    found = attempt(masked(nuclei.fixed, counts), nuclei.moving, "common", 0.3)
    assert set(found.facts["empty_ground"]["share"]) == {"moving"}


def test_masks_go_with_the_parts_and_the_alignment_of_images(nuclei: PhantomPair) -> None:
    """Truth: the voxels moved by hand; no key point of a sample lies elsewhere."""
    shift, mask = np.eye(4), find_shown(nuclei.fixed)
    shift[1, 3] = -7
    assert mask is not None
    pair = ChannelPair(nuclei.fixed, nuclei.fixed, sought=(mask, mask))
    aligned = align_channel(pair, AffineTransform(shift))
    here, there = aligned.sought
    assert here is mask
    assert there is not None
    np.testing.assert_array_equal(there.read()[:, 7:], mask.read()[:, :-7])
    assert not there.read()[:, :7].any()
    choice = choose_matching([pair], STEP, STEP.radii, np.eye(4), True)
    assert all(lie_on(mask, points).all() for points in choice.found.points)
    box = (slice(3, 9), slice(None), slice(5, None))
    part = pair[box].sought[0]
    assert part is not None
    assert part.grid == pair[box].fixed.grid
