"""Wrong affines are noticed, and the right one is found from anywhere, in steps and whole runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.numerics.search.evidence import Evidence
from itkstream.numerics.search.initial import Found, SearchResult
from itkstream.phantoms import PhantomPair
from itkstream.pipelines import plan
from itkstream.progress.reporters import LogReporter
from itkstream.registration.scene import Finding, Nothing, Scene, State
from itkstream.registration.steps import InitialSearch, RansacAffine, Step, step_from
from itkstream.registration.steps.initial import choose
from itkstream.workers import Resources

SMALL = {"radii": ((2, 6),), "match_threshold": 0.5, "cc_radius": 6}


class Listener(LogReporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def scene_of(fixed: Image, moving: Image) -> tuple[Scene, Listener]:
    listener = Listener()
    levels = (lambda: fixed, lambda: moving)
    return Scene(fixed, moving, 20e6, Resources(), listener, levels), listener


def turned(pair: PhantomPair, linear: np.ndarray) -> tuple[Image, np.ndarray]:
    """The moving image turned about its middle, and the true affine to it."""
    grid = pair.moving.grid
    middle = grid.to_physical((np.array(grid.shape) - 1) / 2)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, middle - linear @ middle
    settings = WarpSettings(background=300.0, dtype=np.float32)
    moved = warp_block(pair.moving, AffineTransform(matrix), grid, settings)
    return Image(moved, grid), np.linalg.inv(matrix) @ np.array(pair.truth.matrix)


@pytest.fixture(scope="module")
def far(pair: PhantomPair) -> tuple[Image, np.ndarray]:
    return turned(pair, Rotation.from_rotvec([0.8, 1.5, -1.1]).as_matrix())


def noise(seed: int) -> Image:
    """Smooth noise in a plane, of which blobs are found as of anything."""
    voxels = gaussian_filter(np.random.default_rng(seed).normal(size=(150, 160)), 2.5)
    return Image((300 + 2000 * voxels).astype(np.float32), Grid(voxels.shape, (1.0, 1.0)))


def find(scene: Scene, step: Step, start: np.ndarray | None = None) -> Finding | Nothing:
    known = None if start is None else AffineTransform(start)
    return step.find(scene, State(known, 0.0), lambda: pytest.fail("nothing is stored"))


def error_um(pair: PhantomPair, found: Finding | Nothing, truth: np.ndarray) -> float:
    assert isinstance(found, Finding)
    points = pair.fixed.grid.positions()[::6, ::6, ::6].reshape(-1, 3)
    apart = found.change.apply(points) - AffineTransform(truth).apply(points)
    return float(np.median(np.linalg.norm(apart, axis=1)))


@pytest.mark.parametrize("step", [InitialSearch(), RansacAffine(**SMALL)], ids=lambda s: s.name)
def test_a_far_turn_is_found(pair: PhantomPair, far: tuple[Image, np.ndarray], step: Step) -> None:
    scene, _ = scene_of(pair.fixed, far[0])
    found = find(scene, step)
    # The warp bends by up to 2 µm.
    assert error_um(pair, found, far[1]) < 1.5
    facts: dict[str, Any] = found.facts.get("evidence", found.facts)
    assert facts["outcome"] == "convincing"
    assert facts["supported_matches"] > 3 * max(facts["supported_by_chance"])


def test_an_affine_of_few_matches_is_matched_again(pair: PhantomPair) -> None:
    """Turned so far that few contexts are alike as they lie."""
    moving, truth = turned(pair, Rotation.from_rotvec([0.3, 0.3, 0.3]).as_matrix())
    scene, _ = scene_of(pair.fixed, moving)
    found = find(scene, RansacAffine(**SMALL, search="never"))
    assert found.facts["inliers"] > 0.5 * found.facts["matches"]
    assert error_um(pair, found, truth) < 1.5


def test_a_search_keeps_to_the_model(pair: PhantomPair, far: tuple[Image, np.ndarray]) -> None:
    scene, _ = scene_of(pair.fixed, far[0])
    found = find(scene, RansacAffine(**SMALL, model="rigid", align_threshold=3.0))
    assert isinstance(found, Finding)
    linear = found.change.matrix[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-6)
    # The truth stretches by 2 %, over some 30 µm to either side.
    assert error_um(pair, found, far[1]) < 2.5


def test_nothing_is_searched_where_that_is_not_wanted(
    pair: PhantomPair, far: tuple[Image, np.ndarray]
) -> None:
    scene, _ = scene_of(pair.fixed, far[0])
    with pytest.raises(RegistrationError, match="no affine found"):
        find(scene, RansacAffine(**SMALL, search="never"))


def test_images_that_lie_right_are_not_searched(pair: PhantomPair) -> None:
    scene, _ = scene_of(pair.fixed, pair.moving)
    found = find(scene, RansacAffine(**SMALL))
    assert "search" not in found.facts
    assert found.facts["evidence"]["outcome"] == "convincing"
    start = np.array(pair.truth.matrix)
    kept = find(scene, InitialSearch(), start)
    assert kept.facts["origin"] == "as they lie"
    assert kept.facts["looked_at"] == 1


@pytest.mark.slow
def test_a_mirror_image_is_refused_and_named() -> None:
    fixed = noise(3)
    moving = Image(np.ascontiguousarray(fixed.read()[:, ::-1]), fixed.grid)
    scene, _ = scene_of(fixed, moving)
    for step in (InitialSearch(), RansacAffine()):
        with pytest.raises(
            RegistrationError, match=r"mirrored copy .* fits better.*mirror='allow'"
        ):
            find(scene, step)
    found = find(scene, InitialSearch(mirror="allow"))
    assert isinstance(found, Finding)
    np.testing.assert_allclose(found.change.apply((70.0, 20.0)), (70.0, 139.0), atol=0.5)


def judged(supported: int, *, mirrored: bool) -> Found:
    """A start for which so many of 1000 key points speak; 60 convince."""
    matrix = np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0, 1.0])
    return Found("here", matrix, Evidence(supported, (3,), 1000))


@pytest.mark.parametrize(
    ("plain", "flipped", "refused", "allowed"),
    [
        (100, 70, "plain", "plain"),  # both convince
        (70, 100, "better", "flipped"),
        (55, 58, "plain", "flipped"),  # both are doubtful
        (9, 55, "better", "flipped"),
        (9, 20, "none of", "none of"),
    ],
)
def test_a_mirrored_copy_is_taken_or_named(
    plain: int, flipped: int, refused: str, allowed: str
) -> None:
    starts = {"plain": judged(plain, mirrored=False), "flipped": judged(flipped, mirrored=True)}
    found = sorted(starts.values(), key=lambda f: -f.evidence.margin)
    result = SearchResult(tuple(found), 9)
    for mirror, expected in (("refuse", refused), ("allow", allowed)):
        settings = InitialSearch(mirror=mirror)
        if expected in starts:
            assert choose(result, settings) is starts[expected]
        else:
            with pytest.raises(RegistrationError, match=expected):
                choose(result, settings)


@pytest.mark.slow
def test_unrelated_images_are_refused_with_numbers() -> None:
    scene, _ = scene_of(noise(3), noise(4))
    with pytest.raises(RegistrationError, match=r"none of \d+ starts .* would convince.*landmarks"):
        find(scene, InitialSearch())
    with pytest.raises(RegistrationError, match="no affine found"):
        find(scene, RansacAffine())


def test_a_wrong_start_is_told(pair: PhantomPair) -> None:
    scene, listener = scene_of(pair.fixed, pair.moving)
    wrong = np.eye(4)
    wrong[:3, 3] = (25.0, -20.0, 18.0)
    found = find(scene, RansacAffine(**SMALL, max_distance=3.0), wrong)
    assert found.facts["start"]["outcome"] == "chance"
    assert any("no better than chance" in said for said in listener.said)
    scene, listener = scene_of(pair.fixed, pair.moving)
    found = find(scene, RansacAffine(**SMALL), np.array(pair.truth.matrix))
    assert found.facts["start"]["outcome"] == "convincing"
    assert not any("chance" in said for said in listener.said)


def test_the_same_seed_finds_the_same(pair: PhantomPair, far: tuple[Image, np.ndarray]) -> None:
    scene, _ = scene_of(pair.fixed, far[0])
    one, other = (find(scene, InitialSearch()) for _ in range(2))
    assert isinstance(one, Finding)
    assert isinstance(other, Finding)
    assert np.array_equal(one.change.matrix, other.change.matrix)
    assert one.facts == other.facts


def test_the_step_is_known_by_its_name_and_has_a_price(pair: PhantomPair) -> None:
    step = step_from("initial-search", {"scales": [1.0, 0.9], "mirror": "allow"})
    assert step == InitialSearch(mirror="allow", scales=(1.0, 0.9))
    price = plan(pair.fixed, pair.moving, [step]).prices[1]
    assert price.name == "initial-search"
    assert price.once > pair.fixed.grid.size
    told = plan(pair.fixed, pair.moving, [step], probe=1)
    # Half a minute on one core, which is 8 to 150 s on slow and busy ones.
    assert 8 < (told.seconds_of(price) or 0) < 150
    with pytest.raises(InputError, match="did you mean 'scales'"):
        step_from("initial-search", {"scale": 1.0})
