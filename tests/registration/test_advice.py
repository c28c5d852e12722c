"""Advice names the true fault of a pair, the stage that lost key points, and options that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import itkstream
from itkstream.advice import Advice, advise
from itkstream.cli.app import register as register_command
from itkstream.errors import RegistrationError
from itkstream.estimate.misfits import MIRRORED, find_loss, find_misfits, usual_remedies
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io import write_n5
from itkstream.io.images.orientation import orientation_transform
from itkstream.numerics.matching.affine import Stages
from itkstream.phantoms import PhantomPair
from itkstream.pipelines import register
from itkstream.progress.reporters import LogReporter
from itkstream.registration.advice.advice import _code, advise_briefly
from itkstream.registration.scene import Finding, Scene, State
from itkstream.registration.steps import LocalAffines, RansacAffine, RegisterSettings
from itkstream.workers import Resources

QUICK = RansacAffine(radii=((2, 6),), match_threshold=0.5, cc_radius=8, search="never")


def scene_of(fixed: Image, moving: Image) -> Scene:
    levels = (lambda: fixed), (lambda: moving)
    return Scene(fixed, moving, 20e6, Resources(), LogReporter(), levels)


def spaced(image: Image, *times: float) -> Image:
    spacing = tuple(h * t for h, t in zip(image.spacing, times, strict=True))
    return Image(image.data, replace(image.grid, spacing=spacing))


def dark(image: Image) -> Image:
    voxels = np.asarray(image.read())
    return Image(voxels.max() - voxels, image.grid)


def error_um(pair: PhantomPair, transform: Any) -> float:
    return pair.error(transform.apply).summary()["median_um"]


@pytest.fixture(scope="module")
def advice(pair: PhantomPair) -> Advice:
    return advise(pair.fixed, pair.moving)


def numbers_after(option: str, text: str) -> list[float]:
    return [float(n) for n in re.search(rf"{option} ([\d.,e+-]+)", text)[1].split(",")]  # type: ignore[index]


@pytest.mark.parametrize("times", [(0.5, 0.5, 0.5), (1.0, 1.0, 2.0), (1.0, 1.0, 3.0)])
def test_a_wrong_spacing_is_told_with_the_right_one(
    pair: PhantomPair, times: tuple[float, ...]
) -> None:
    found = advise_briefly((pair.fixed, spaced(pair.moving, *times)), LogReporter())
    (misfit,) = found.misfits
    assert misfit.kind == "spacing"
    assert not found.matches
    told = numbers_after("--moving-spacing", misfit.remedy)
    # The pair itself is stretched by up to 2 %, and what is told has three digits.
    np.testing.assert_allclose(told, pair.moving.spacing, rtol=0.1)


def test_a_unit_that_is_off_is_told(pair: PhantomPair) -> None:
    choices = [QUICK.settings_for(pair.fixed.spacing, (2.0, 6.0))]
    (misfit,) = find_misfits(pair.fixed, spaced(pair.moving, 1e3, 1e3, 1e3), choices)
    told = numbers_after("--moving-spacing", misfit.remedy)
    np.testing.assert_allclose(told, pair.moving.spacing, rtol=0.1)


def test_an_inverted_contrast_is_told_and_its_option_mends_it(pair: PhantomPair) -> None:
    moving = dark(pair.moving)
    found = advise_briefly((pair.fixed, moving), LogReporter())
    assert [misfit.kind for misfit in found.misfits] == ["contrast"]
    assert "--contrast inverted" in found.misfits[0].remedy
    scene = scene_of(pair.fixed, moving)
    mended = QUICK.evolve(contrast="inverted")
    affine = mended.find(scene, State(None, 0.0), lambda: pytest.fail("nothing is stored"))
    assert isinstance(affine, Finding)
    assert error_um(pair, affine.change) < 1  # the warp bends by 2 µm
    local = LocalAffines(
        radii=(2, 6), match_threshold=0.5, cc_radius=6, blocksize=40, contrast="inverted"
    )
    start = State(affine.change, 0.0)
    bent = local.find(scene, start, lambda: pytest.fail("nothing is stored"))
    assert isinstance(bent, Finding)
    assert error_um(pair, bent.transform(start)) < error_um(pair, affine.change)


@pytest.mark.slow
def test_a_mirror_image_is_told(pair: PhantomPair) -> None:
    moving = Image(np.ascontiguousarray(pair.moving.read()[::-1]), pair.moving.grid)
    attempt = RansacAffine().attempt(scene_of(pair.fixed, moving), None)
    assert attempt.misfits == (MIRRORED,)
    assert attempt.loss is not None


@pytest.mark.slow
def test_sound_pairs_and_unrelated_ones_have_no_fault(pair: PhantomPair, advice: Advice) -> None:
    assert advice.misfits == ()
    assert advice.matches
    rng = np.random.default_rng(4)
    blocks = pair.moving.read().reshape(8, 8, 7, 8, 6, 8).transpose(0, 2, 4, 1, 3, 5)
    shuffled = rng.permutation(blocks.reshape(-1, 8, 8, 8)).reshape(blocks.shape)
    moving = shuffled.transpose(0, 3, 1, 4, 2, 5).reshape(pair.moving.shape)
    choices = [QUICK.settings_for(pair.fixed.spacing, (2.0, 6.0))]
    assert find_misfits(pair.fixed, Image(moving, pair.moving.grid), choices) == ()


@pytest.mark.parametrize(
    ("stages", "stage"),
    [
        (None, "blobs"),
        (Stages((12, 900), (12, 900), 3, 0), "blobs"),
        (Stages((900, 800), (300, 700), 40, 20), "contexts"),
        (Stages((900, 800), (900, 700), 12, 0), "matches"),
        (Stages((900, 800), (900, 700), 200, 12), "inliers"),
        (Stages((900, 800), (900, 700), 200, 150), "held out"),
    ],
)
def test_the_stage_that_lost_key_points_is_named(stages: Stages | None, stage: str) -> None:
    loss = find_loss(stages)
    assert loss.stage == stage
    assert usual_remedies(loss)


def test_too_few_spots_are_lost_at_their_stage(pair: PhantomPair) -> None:
    voxels = np.random.default_rng(0).normal(100, 1, pair.moving.shape).astype(np.float32)
    voxels[20:26, 20:26, 20:26] += 500
    empty = Image(voxels, pair.moving.grid)
    few = QUICK.evolve(nspots=8).attempt(scene_of(pair.fixed, empty), None)
    assert few.loss is not None
    assert few.loss.stage == "blobs"
    assert "--radii" in few.advice
    wide = RansacAffine(search="never", cc_radius=60).attempt(scene_of(pair.fixed, empty), None)
    assert wide.loss is not None
    assert wide.loss.stage == "contexts"
    assert "--context-radius" in wide.advice


def test_the_chosen_parameters_find_more_and_are_options(pair: PhantomPair, advice: Advice) -> None:
    chosen = {setting.name: setting.value for setting in advice.settings}
    step = RansacAffine(
        radii=(chosen["radii"],),
        cc_radius=chosen["context radius"],
        match_threshold=chosen["match threshold"],
    )
    ours, usual = (
        s.attempt(scene_of(pair.fixed, pair.moving), None).facts["inliers"]
        for s in (step, RansacAffine())
    )
    assert ours >= usual
    assert error_um(pair, AffineTransform(np.array(step.attempt(
        scene_of(pair.fixed, pair.moving), None).affine.matrix))) < 1  # fmt: skip
    context = register_command.make_context(
        "register", ["a", "b", "--out", "c", *advice.options.split()]
    )
    assert context.params["radii"] == chosen["radii"]
    assert set(chosen) >= {"level", "block", "overlap", "local block", "stiffness", "similarity"}
    assert repr(advice).splitlines() == advice.describe()
    json.dumps(advice.facts)


def test_all_options_that_are_named_exist(pair: PhantomPair) -> None:
    known = {name for param in register_command.params for name in param.opts}
    folder = Path(itkstream.__file__).parent
    for file in ("estimate/misfits.py", "registration/advice/advice.py"):
        named = set(re.findall(r"--[a-z][a-z-]+", (folder / file).read_text()))
        assert named <= known, file


@pytest.mark.parametrize(
    "linear",
    [
        np.eye(3)[list(order)] * np.array(signs)
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ],
)
def test_a_turn_is_told_as_it_is_read(linear: np.ndarray[Any, Any]) -> None:
    grid = Grid((20, 30, 40), (2.0, 1.0, 1.0), axes=("z", "y", "x"))
    image = Image(np.zeros(grid.shape), grid)
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    code = _code(matrix, image)
    found = orientation_transform(image, image, "LPS", code)
    np.testing.assert_allclose(found.matrix[:3, :3], linear, atol=1e-12)


def test_the_command_advises(
    pair: PhantomPair, tmp_path: Path, command: Callable[..., SimpleNamespace]
) -> None:
    for name, image in (("fixed", pair.fixed), ("moving", dark(pair.moving))):
        write_n5(tmp_path / f"{name}.n5", "s0", image.read(), image.grid, chunks=(32, 32, 32))
    paths = [str(tmp_path / f"{name}.n5" / "s0") for name in ("fixed", "moving")]
    done = command("advise", *paths, "--json")
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["misfits"][0]["kind"] == "contrast"
    assert len(list(tmp_path.iterdir())) == 2


def turned(image: Image, degrees: float) -> AffineTransform:
    """A turn about the middle of an image, in the plane of its first two axes."""
    matrix, angle = np.eye(4), np.deg2rad(degrees)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = image.grid.to_physical((np.array(image.shape) - 1) / 2)
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle
    return AffineTransform(matrix, image.grid.axes)


def test_a_start_that_is_right_needs_no_search(pair: PhantomPair) -> None:
    start = AffineTransform(pair.truth.matrix, pair.fixed.grid.axes)
    found = advise(pair.fixed, pair.moving, initial_transform=start)
    assert found.outcome == "convincing"
    assert found.misfits == ()
    assert "--match-threshold" in found.options


def test_a_start_that_is_wrong_is_told(pair: PhantomPair) -> None:
    wrong = turned(pair.fixed, 90)
    found = advise(pair.fixed, pair.moving, initial_transform=wrong)
    assert found.outcome == "convincing"
    assert "--initial" in found.misfits[0].remedy


def test_key_points_that_are_masked_do_not_count(pair: PhantomPair, advice: Advice) -> None:
    counts = np.zeros(pair.fixed.shape, np.uint8)
    counts[: pair.fixed.shape[0] // 2] = 1
    masked = advise(pair.fixed, pair.moving, fixed_mask=counts)
    assert masked.outcome == "convincing"
    assert masked.stages["found"][0] < 0.7 * advice.stages["found"][0]
    assert masked.stages["found"][1] == advice.stages["found"][1]


def test_a_run_that_fails_says_what_to_change(pair: PhantomPair) -> None:
    moving = spaced(pair.moving, 0.5, 0.5, 0.5)
    with pytest.raises(RegistrationError, match=r"no affine found.*were lost.*--moving-spacing"):
        QUICK.find(scene_of(pair.fixed, moving), State(None, 0.0), lambda: pytest.fail("stored"))


def test_a_run_records_what_it_chose_and_why(pair: PhantomPair) -> None:
    found = RansacAffine().attempt(scene_of(pair.fixed, pair.moving), None)
    chosen = found.facts["chosen"]
    assert chosen["radii"] == list(found.affine.radii or ())
    assert chosen["match_threshold"] == 0.7
    assert chosen["context_radius"] == 12
    assert [tuple(t["radii"]) for t in chosen["tried"]] == [(6, 20), (3, 10), (2, 6)][
        : len(chosen["tried"])
    ]
    best = max(t.get("inliers", 0) for t in chosen["tried"])
    assert f"{best} matches agree" in chosen["why"]
    assert QUICK.attempt(scene_of(pair.fixed, pair.moving), None).facts["chosen"]["why"] == (
        "they were given"
    )


def test_a_run_whose_verdict_is_failed_says_what_to_change(
    pair: PhantomPair, tmp_path: Path
) -> None:
    """Here only its start is wrong."""
    wrong = np.eye(4)
    wrong[:3, 3] = 30.0
    settings = RegisterSettings(blocksize=32, report=False)
    done = register(
        pair.fixed, pair.moving, tmp_path / "out", [], settings, initial_transform=wrong
    )
    assert done.verdict.outcome == "failed"
    lines = done.facts["advice"]["lines"]
    assert lines[0].startswith("the images match")
    assert "leave --initial out" in lines[-1]
