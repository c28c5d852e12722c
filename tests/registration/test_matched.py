"""Parameters of matching that are left open are chosen from the data where few matches agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itkstream.cli.config import read_config
from itkstream.geometry import AffineTransform, ChannelPair, Image
from itkstream.numerics.matching.affine import PLENTY_OF_INLIERS
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair
from itkstream.pipelines import register
from itkstream.progress.reporters import LogReporter
from itkstream.registration.scene import Scene
from itkstream.registration.steps import RansacAffine, RegisterSettings
from itkstream.registration.steps.matched import choose_matching
from itkstream.registration.steps.matching import COMMON_RADII
from itkstream.registration.steps.ransac import Attempt
from itkstream.workers import Resources

USUAL = {"radii": ((2, 6),), "cc_radius": 12, "match_threshold": 0.7}


def small_pair(radii_um: tuple[float, float], seed: int) -> PhantomPair:
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.03, warp_um=2)
    spacing = (1.0, 1.0, 1.2)
    settings = PhantomSettings((48, 40, 36), spacing, seed, radii_um=radii_um, motion=motion)
    return make_pair(settings)


@pytest.fixture(scope="module")
def few() -> PhantomPair:
    """Of these nuclei most matches agree by contexts half as wide as the usual."""
    return small_pair((2.0, 4.0), 5)


def attempt(pair: PhantomPair, **changes: Any) -> Attempt:
    images = pair.fixed, pair.moving
    makers = (lambda: images[0]), (lambda: images[1])
    scene = Scene(*images, 16e6, Resources(), LogReporter(), makers)
    return RansacAffine(search="never", **changes).attempt(scene, None)


def error_um(pair: PhantomPair, found: Attempt) -> float:
    matrix = found.affine.matrix
    assert matrix is not None
    return float(pair.error(AffineTransform(matrix).apply).summary()["median_um"])


def test_where_few_agree_what_is_left_open_is_chosen_and_said(few: PhantomPair) -> None:
    usual, found = attempt(few, **USUAL), attempt(few)
    chosen = found.facts["chosen"]
    assert usual.facts["inliers"] < PLENTY_OF_INLIERS
    assert found.facts["inliers"] > 1.2 * usual.facts["inliers"]
    assert error_um(few, found) < 1.1 * error_um(few, usual)
    assert chosen["context_radius"] != 12
    assert str(found.facts["inliers"]) in chosen["why"]
    assert f"{chosen['context_radius']}: " in chosen["anew"]["sample"]["context_radius"]
    before, after = chosen["anew"]["local_correlation"]
    assert after > before


def test_what_voxels_do_not_bear_out_is_left() -> None:
    pair = small_pair((1.5, 3.0), 3)
    found, usual = attempt(pair), attempt(pair, **USUAL)
    told = found.facts["chosen"]["anew"]
    assert told["inliers"][1] > told["inliers"][0] == found.facts["inliers"]
    assert told["local_correlation"][1] < told["local_correlation"][0]
    assert "do not agree better" in found.facts["chosen"]["why"]
    np.testing.assert_array_equal(found.affine.matrix, usual.affine.matrix)


def test_plenty_of_matches_are_left_as_they_are(pair: PhantomPair) -> None:
    found, usual = attempt(pair), attempt(pair, **USUAL)
    assert found.facts["inliers"] >= PLENTY_OF_INLIERS
    assert "anew" not in found.facts["chosen"]
    np.testing.assert_array_equal(found.affine.matrix, usual.affine.matrix)


def test_what_is_given_stays(few: PhantomPair) -> None:
    chosen = attempt(few, cc_radius=10, radii=((2, 6),)).facts["chosen"]
    assert chosen["context_radius"] == 10
    assert chosen["radii"] == [2, 6]
    given = RansacAffine(**USUAL, nspots=150)
    still = np.eye(4)
    pairs = [ChannelPair(few.fixed, few.moving)]
    choice = choose_matching(pairs, given, given.radii, still, True)
    assert (choice.radii, choice.context, choice.threshold) == ((2, 6), 12, 0.7)
    assert len(choice.by_context) == len(choice.by_threshold) == 1
    assert max(choice.found.stages.found) <= 150


def test_all_channels_are_asked(few: PhantomPair) -> None:
    """Here the first shows nothing: what the second tells is chosen."""
    dark = Image(np.zeros(few.fixed.shape, np.float32), few.fixed.grid)
    alone = [ChannelPair(few.fixed, few.moving)]
    both = [ChannelPair(dark, few.moving), *alone]
    first, second = (
        choose_matching(pairs, RansacAffine(), COMMON_RADII, np.eye(4), True)
        for pairs in (alone, both)
    )
    assert (first.context, first.threshold) == (second.context, second.threshold)
    assert first.found.stages.inliers == second.found.stages.inliers


def test_the_file_of_a_run_repeats_the_choice(few: PhantomPair, tmp_path: Path) -> None:
    settings = RegisterSettings(report=False)
    step = RansacAffine(search="never")
    first = register(few.fixed, few.moving, tmp_path / "first", [step], settings)
    config = read_config(tmp_path / "first" / "registration.json")
    assert config.steps == (step,)
    again = register(few.fixed, few.moving, tmp_path / "again", config.steps, settings)
    chosen = [run.facts["steps"][1]["chosen"] for run in (first, again)]
    assert chosen[0] == chosen[1]
    assert chosen[0]["context_radius"] != 12
    points = few.fixed.grid.corners()
    np.testing.assert_array_equal(first.transform.apply(points), again.transform.apply(points))
