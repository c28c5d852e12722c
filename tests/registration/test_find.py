"""What the steps' own parameters do in a run; those of a method are tested where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.phantoms import PhantomPair
from itkstream.pipelines import Registration, register
from itkstream.progress.reporters import LogReporter
from itkstream.registration.scene import (
    Finding,
    Nothing,
    Scene,
    State,
    judged_by_descriptors,
)
from itkstream.registration.steps import (
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    RegisterSettings,
    Step,
)
from itkstream.workers import Resources

MATCHING: dict[str, Any] = {"match_threshold": 0.5, "cc_radius": 6}
RANSAC = RansacAffine(radii=((2, 6),), **MATCHING)
LOCAL = LocalAffines(radii=(2, 6), blocksize=40, overlap=4, **MATCHING)

MATCHING_CHANGES: dict[str, Any] = {
    "match_threshold": 0.7,
    "cc_radius": 4,
    "nspots": 60,
    "num_sigma_max": 1,
    "align_threshold": 0.6,
    "max_distance": 5.0,
    "max_ambiguity": 0.6,
    "model": "rigid",
}
RANSAC_CHANGES = {**MATCHING_CHANGES, "radii": ((3, 6),)}
LOCAL_CHANGES = {**MATCHING_CHANGES, "radii": (3, 6), "blocksize": 32, "overlap": 8}


@pytest.fixture(scope="module")
def scene(pair: PhantomPair) -> Scene:
    levels = (lambda: pair.fixed, lambda: pair.moving)
    return Scene(pair.fixed, pair.moving, 20e6, Resources(), LogReporter(), levels)


def found(scene: Scene, step: Step, start: AffineTransform | None = None) -> Finding | Nothing:
    return step.find(scene, State(start, 0.0), lambda: pytest.fail("nothing is stored"))


def folded(pair: PhantomPair) -> Scene:
    """A pair whose moving image shows dark what is neither dim nor bright."""
    bright = pair.moving.read() / np.percentile(pair.moving.read(), 99)
    voxels = (1000 * (1 + np.cos(7 * np.sqrt(bright)))).astype(np.uint16)
    other = Image(voxels, pair.moving.grid)
    levels = (lambda: pair.fixed, lambda: other)
    return Scene(pair.fixed, other, 20e6, Resources(), LogReporter(), levels)


def moved(finding: Finding | Nothing, pair: PhantomPair) -> np.ndarray[Any, Any]:
    assert isinstance(finding, Finding), finding.reason
    return finding.change.apply(pair.fixed.grid.positions()[::6, ::6, ::6])


@pytest.fixture(scope="module")
def rough(pair: PhantomPair) -> AffineTransform:
    matrix = np.array(pair.truth.matrix)
    matrix[:3, 3] += (1.5, -1.0, 1.0)
    return AffineTransform(matrix)


@pytest.fixture(scope="module")
def one_affine(scene: Scene, pair: PhantomPair) -> np.ndarray[Any, Any]:
    return moved(found(scene, RANSAC), pair)


@pytest.fixture(scope="module")
def many_affines(scene: Scene, pair: PhantomPair, rough: AffineTransform) -> np.ndarray[Any, Any]:
    return moved(found(scene, LOCAL, rough), pair)


@pytest.mark.parametrize("name", RANSAC_CHANGES)
def test_each_parameter_of_an_affine_acts(
    scene: Scene, pair: PhantomPair, one_affine: np.ndarray[Any, Any], name: str
) -> None:
    other = moved(found(scene, RANSAC.evolve(**{name: RANSAC_CHANGES[name]})), pair)
    assert not np.array_equal(other, one_affine)


@pytest.mark.parametrize("name", LOCAL_CHANGES)
def test_each_parameter_of_local_affines_acts(
    scene: Scene, pair: PhantomPair, rough: AffineTransform,
    many_affines: np.ndarray[Any, Any], name: str,
) -> None:  # fmt: skip
    other = moved(found(scene, LOCAL.evolve(**{name: LOCAL_CHANGES[name]}), rough), pair)
    assert not np.array_equal(other, many_affines)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "threshold"), [(RANSAC, 0.2), (LOCAL, 0.3)])
def test_seeds_act(
    scene: Scene, pair: PhantomPair, rough: AffineTransform, step: Step, threshold: float
) -> None:
    # Where an affine is clear, every seed finds it; so tight a threshold leaves it open. Where
    # fewer still agree, blocks follow all matches that support one another.
    unclear = step.evolve(align_threshold=threshold)
    start = rough if step is LOCAL else None
    one, other = (moved(found(scene, unclear.evolve(seed=n), start), pair) for n in (0, 1))
    assert not np.array_equal(one, other)


def test_no_parameter_is_left_out() -> None:
    # Where key points convince, nothing is searched: tests/registration/test_starts.py.
    for step, others in ((RANSAC, {*RANSAC_CHANGES, "search"}), (LOCAL, {*LOCAL_CHANGES})):
        # A contrast: tests/registration/test_advice.py.
        assert {field.name for field in attrs.fields(type(step))} == others | {"seed", "contrast"}


class Listener(LogReporter):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.slow
@pytest.mark.parametrize("contrast", ["same", "folded"])
def test_a_deformation_follows_what_suits_the_contrast(
    pair: PhantomPair, rough: AffineTransform, tmp_path: Path, contrast: str
) -> None:
    moving = folded(pair).moving if contrast == "folded" else pair.moving
    listener = Listener()

    def run(place: str, **parameters: Any) -> Registration:
        steps = [Deformable(iterations=(12, 8, 4), **parameters)]
        start: dict[str, Any] = {"initial_transform": rough, "reporter": listener}
        settings = RegisterSettings(error_map=False, report=False)
        return register(pair.fixed, moving, tmp_path / place, steps, settings, **start)

    result = run("auto")
    facts = result.facts["steps"][1]
    wanted = "lcc" if contrast == "same" else "mind"
    assert facts["similarity"] == wanted
    assert (facts["contrast_coherence"] < 0.62) == (wanted == "mind")
    assert ("information_by_mind" in facts) == (wanted == "mind")
    assert any(f"similarity '{wanted}'" in note for note in listener.notes)
    points = pair.fixed.grid.positions()[::6, ::6, ::6]
    same = run("chosen", similarity=wanted)
    np.testing.assert_array_equal(same.transform.apply(points), result.transform.apply(points))
    # What is given is not chosen, but descriptors are judged.
    assert ("information_gain_deviations" in same.facts["steps"][1]) == (wanted == "mind")


@pytest.mark.parametrize("contrast", ["same", "folded"])
def test_an_affine_goes_by_what_suits_the_contrast(
    scene: Scene, pair: PhantomPair, rough: AffineTransform, contrast: str
) -> None:
    step = IntensityAffine(metric="auto")
    plain = IntensityAffine().find(scene, State(rough, 0.0), lambda: pytest.fail("stored"))
    if contrast == "folded":
        scene = folded(pair)
    chosen = found(scene, step, rough)
    assert isinstance(chosen, Finding)
    if contrast == "same":
        np.testing.assert_array_equal(moved(chosen, pair), moved(plain, pair))
        assert chosen.facts["similarity"] == "lcc"
        assert not chosen.required
        return
    assert chosen.facts["similarity"] == "mind"
    assert chosen.facts["descriptors_after"] > chosen.facts["descriptors_before"]
    # Local correlation, which is blind here, does not decide.
    assert chosen.required
    before, after = (pair.error(t.apply).vox for t in (rough, chosen.change))
    assert np.median(after) < 0.7 * np.median(before)


def test_an_affine_that_makes_descriptors_less_alike_is_left_out(
    scene: Scene, rough: AffineTransform
) -> None:
    away = rough.matrix.copy()
    away[:3, 3] += 4.0
    off = Finding(AffineTransform(away), whole=True)
    judged = judged_by_descriptors(scene, State(rough, 0.0), off)
    assert isinstance(judged, Nothing)
    assert "descriptors" in judged.reason
    assert judged.facts["descriptors_after"] < judged.facts["descriptors_before"]


@pytest.mark.parametrize("given", [{"stiffness": 1.0}, {"similarity": "mind"}])
def test_a_deformation_that_was_given_is_left_out_where_it_follows_chance(
    given: dict[str, Any],
) -> None:
    grid = Grid((56, 56, 56), (1.0, 1.0, 1.0))
    rng = np.random.default_rng(5)
    noise = (gaussian_filter(rng.normal(size=grid.shape), 1.2) for _ in range(2))
    fixed, moving = (Image(image.astype(np.float32), grid) for image in noise)
    levels = (lambda: fixed, lambda: moving)
    alone = Scene(fixed, moving, 20e6, Resources(), LogReporter(), levels)
    left_out = found(alone, Deformable(**given))
    assert isinstance(left_out, Nothing)
    assert "chance" in left_out.reason


@pytest.mark.parametrize("contrast", ["same", "folded"])
def test_local_affines_are_judged_by_what_suits_the_contrast(
    scene: Scene, pair: PhantomPair, rough: AffineTransform, contrast: str
) -> None:
    away = rough.matrix.copy()
    away[:3, 3] += 4.0
    off = Finding(AffineTransform(away), whole=True)
    if contrast == "folded":
        scene = folded(pair)
    judged = LOCAL._judged(scene, State(rough, 0.0), off)
    assert isinstance(judged, Nothing) == (contrast == "folded")


@pytest.mark.nightly
def test_blocks_and_overlaps_act_in_a_whole_run(
    pair: PhantomPair, rough: AffineTransform, tmp_path: Path
) -> None:
    points = pair.fixed.grid.positions()[::6, ::6, ::6]

    def run(step: Step, coarse_voxels: float = 20e6) -> bytes:
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        settings = RegisterSettings(coarse_voxels, 32, error_map=False, report=False)
        result = register(pair.fixed, pair.moving, place, [step], settings, initial_transform=rough)
        assert "dropped" not in result.facts["steps"][1]
        return result.transform.apply(points).tobytes()

    deform: dict[str, Any] = {"blocksize": 32, "overlap": 2, "iterations": (4, 2, 1)}
    bends = [deform, {**deform, "overlap": 8}, {**deform, "blocksize": 48}]
    # Half the voxels of the image: a deformation is found block by block.
    half = pair.fixed.grid.size / 2
    assert len({run(Deformable(**parameters), half) for parameters in bends}) == len(bends)
    assert run(LOCAL) != run(LOCAL.evolve(overlap=8))
