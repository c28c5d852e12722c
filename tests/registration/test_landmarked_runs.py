"""Landmarks through the main job: start, soft constraints, report, what is held out, blocks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itkstream.apply.points import apply_to_points
from itkstream.errors import InputError
from itkstream.estimate import deformation
from itkstream.geometry import AffineTransform, Image, Landmarks
from itkstream.io import create_ome_zarr
from itkstream.io.landmarks.files import write_landmarks
from itkstream.numerics.engines import deform_block
from itkstream.phantoms import PhantomPair
from itkstream.pipelines import register
from itkstream.progress.reporters import LogReporter
from itkstream.registration.scene import Finding, Marks, Scene, State, next_state
from itkstream.registration.steps import Deformable, RegisterSettings
from itkstream.workers import Resources

SETTINGS = RegisterSettings(blocksize=32, error_map=False, report=False)


@pytest.fixture(scope="module")
def marks(pair: PhantomPair) -> Landmarks:
    rng = np.random.default_rng(5)
    inside = np.argwhere(pair.tissue)
    places = pair.fixed.grid.to_physical(inside[rng.choice(len(inside), 40, replace=False)])
    names = [f"mark {k}" for k in range(40)]
    placed = pair.truth(places) + rng.normal(0, 0.3, places.shape)
    return Landmarks(places, placed, names, sigma_um=0.5, axes=pair.fixed.grid.axes)


class Heard:
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def step(self, title: str) -> None:
        """Nothing is kept of it."""

    def expect(self, parts: object) -> None:
        pass

    def blocks(self, done: int, total: int) -> None:
        """Nothing is kept of it."""

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_landmarks_start_a_run_and_judge_it(
    pair: PhantomPair, marks: Landmarks, tmp_path: Path
) -> None:
    heard = Heard()
    out = tmp_path / "run"
    # The images alone are too far apart for a deformation.
    done = register(
        pair.fixed,
        pair.moving,
        out,
        (Deformable(),),
        SETTINGS,
        landmarks=marks,
        hold_out=0.25,
        reporter=heard,
    )
    report = json.loads((out / "registration.json").read_text())
    before, deformed = (next(s for s in report["steps"] if s["name"] == name)
                        for name in ("read", "deformation"))  # fmt: skip
    assert before["landmarks"]["count"] == 30
    assert before["held_out_landmarks"]["count"] == 10
    assert before["landmarks"]["median_um"] < 2.0
    assert deformed["held_out_landmarks"]["median_um"] < before["held_out_landmarks"]["median_um"]
    assert report["hold_out"] == 0.25
    assert any(note.startswith("starting from 30 landmarks: affine") for note in heard.notes)
    assert sum("held out: median" in note for note in heard.notes) == 2
    # The table names each, and says what the transform that is handed out does.
    table = {row["name"]: row for row in report["landmarks"]}
    assert set(table) == set(marks.names)
    found = np.linalg.norm(
        apply_to_points(done.transform, marks.fixed).points - marks.moving, axis=1
    )
    assert [table[n]["error_um"] for n in marks.names] == pytest.approx(found.tolist())
    held = [row["error_um"] for row in report["landmarks"] if row["held_out"]]
    assert np.median(held) == pytest.approx(deformed["held_out_landmarks"]["median_um"], abs=0.1)
    assert deformed["landmarks"]["worst"] in marks.names


def test_files_of_images_in_another_order_of_axes(
    pair: PhantomPair, marks: Landmarks, tmp_path: Path
) -> None:
    paths = []
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        turned = image.reorder(("z", "y", "x"))
        path = tmp_path / f"{name}.ome.zarr"
        array = create_ome_zarr(path, turned.grid, turned.dtype, chunks=(48, 56, 64))
        array[...] = turned.read()
        paths.append(path)
    files = [tmp_path / "fixed.mrk.json", tmp_path / "moving.mrk.json"]
    write_landmarks(files[0], marks, files[1])
    done = register(*paths, tmp_path / "run", (), SETTINGS, landmarks=files, hold_out=0.5)
    assert done.facts["landmark_files"] == [str(file) for file in files]
    # The start alone, an affine: the warp of 2 µm is left.
    assert np.median([row["error_um"] for row in done.facts["landmarks"]]) < 1.5


def test_a_wrong_landmark_is_named(pair: PhantomPair, marks: Landmarks, tmp_path: Path) -> None:
    moving = np.array(marks.moving)
    moving[11] += (20.0, 0.0, 0.0)
    wrong = Landmarks(marks.fixed, moving, marks.names, sigma_um=0.5, axes=marks.axes)
    heard = Heard()
    register(
        pair.fixed, pair.moving, tmp_path / "run", (), SETTINGS, landmarks=wrong, reporter=heard
    )
    assert any("count for little: mark 11" in note for note in heard.notes)


def test_landmarks_that_the_images_contradict_pull_nothing(
    pair: PhantomPair, marks: Landmarks, tmp_path: Path
) -> None:
    astray = replace(marks, moving=marks.moving + np.array([3.0, 0.0, 0.0]))
    alone, pulled = (
        register(
            pair.fixed,
            pair.moving,
            tmp_path / name,
            (Deformable(),),
            SETTINGS,
            landmarks=given,
            initial_transform=pair.truth.matrix,
        )
        for name, given in (("alone", None), ("pulled", astray))
    )
    told = next(s for s in pulled.facts["steps"] if s["name"] == "deformation")
    # All of them are off alike, so each foretells the others.
    assert told["landmark_evidence"]["outcome"] == "borne out"
    assert "foretold by the images alone" in told["landmark_evidence"]["left_out"]
    assert pulled.verdict.outcome == "look"
    points = pair.fixed.grid.positions()[::7, ::7, ::7]
    expected = alone.transform.apply(points)
    assert (expected == pulled.transform.apply(points)).all()
    # A run that goes on without what it stored leaves them out again.
    out = Path(str(pulled.out))
    (out / "registration.json").unlink()
    for name in ("field", "aligned"):
        (out / "steps" / f"{name}.json").unlink()
    shutil.rmtree(out / "transform.ome.zarr")
    again = register(
        pair.fixed,
        pair.moving,
        out,
        (Deformable(),),
        SETTINGS,
        landmarks=astray,
        initial_transform=pair.truth.matrix,
    )
    assert (expected == again.transform.apply(points)).all()


@pytest.mark.nightly
def test_blocks_join_without_seams(pair: PhantomPair, marks: Landmarks, tmp_path: Path) -> None:
    fields = []
    for name, block, coarse in (("whole", 64, 20e6), ("blocks", 32, 3e4)):
        settings = RegisterSettings(
            blocksize=32, coarse_voxels=coarse, field_tolerance_vox=0, error_map=False, report=False
        )
        step = Deformable(blocksize=block, overlap=8)
        out = tmp_path / name
        done = register(pair.fixed, pair.moving, out, (step,), settings, landmarks=marks)
        points = pair.fixed.grid.positions()[4:-4, 4:-4, 4:-4]
        fields.append(done.transform.apply(points) - points)
        away = done.transform.apply(marks.fixed) - marks.moving
        assert np.median(np.linalg.norm(away, axis=1)) < 0.7
    bends = np.linalg.norm(np.diff(fields[1], 2, axis=0), axis=-1).max(axis=(1, 2))
    # Voxels 4 to 59: blocks join about number 28. Linear between nodes, the field bends at these by
    # 0.02 to 0.04 µm everywhere; a seam of a tenth of a voxel would be a bend of 0.1.
    assert bends[20:36].max() < 2 * max(bends[:20].max(), bends[36:].max())
    assert np.median(np.linalg.norm(fields[1] - fields[0], axis=-1)) < 0.15


def refusals() -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "none": ({"landmarks": Landmarks(np.empty((0, 3)), np.empty((0, 3)))}, "no landmarks"),
        "all held out": ({"hold_out": 0.99}, "none is left to go by"),
        "more than all": ({"hold_out": 1.0}, "below 1"),
        "three files": ({"landmarks": ("a", "b", "c")}, "one per image; got 3 of str"),
        "arrays": ({"landmarks": (np.eye(3), np.eye(3))}, "got 2 of ndarray"),
        "flat": ({"landmarks": Landmarks([[1.0, 2.0]], [[1.0, 2.0]])}, "2-D and the images 3-D"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_cannot_be_is_refused(
    pair: PhantomPair, marks: Landmarks, tmp_path: Path, name: str
) -> None:
    change, said = refusals()[name]
    given: dict[str, Any] = {"landmarks": marks, **change}
    with pytest.raises(InputError, match=said):
        register(pair.fixed, pair.moving, tmp_path / "run", (), SETTINGS, **given)
    assert not (tmp_path / "run").exists()


def test_landmarks_in_another_unit_are_told(
    pair: PhantomPair, marks: Landmarks, tmp_path: Path
) -> None:
    far = Image(pair.fixed.read(), pair.fixed.grid)
    scaled = Landmarks(marks.fixed * 1000, marks.moving * 1000)
    with pytest.raises(InputError, match="unit='nanometer'"):
        register(far, pair.moving, tmp_path / "run", (), SETTINGS, landmarks=scaled)


@pytest.mark.slow
def test_landmarks_are_added_to_a_finished_run_in_the_blocks_they_touch(
    pair: PhantomPair, marks: Landmarks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RegisterSettings(blocksize=32, field_tolerance_vox=0, error_map=False, report=False)
    first = register(
        pair.fixed,
        pair.moving,
        tmp_path / "first",
        (Deformable(),),
        settings,
        initial_transform=pair.truth.matrix,
    )
    # Near a corner of the image, 4 µm from where the run puts it, in the padding of one block.
    place = np.array([[8.0, 9.0, 9.6]])
    wanted = first.transform.apply(place) + np.array([0.0, 0.0, 4.0])
    known = marks.select(np.arange(5))
    more = Landmarks(
        np.vstack([known.fixed, place]),
        np.vstack([first.transform.apply(known.fixed), wanted]),
        sigma_um=1.0,
    )
    computed = []
    monkeypatch.setattr(
        deformation,
        "deform_block",
        lambda fixed, *others: computed.append(fixed.shape) or deform_block(fixed, *others),
    )
    step = Deformable(blocksize=32, overlap=8, where="landmarks")
    again = register(
        pair.fixed,
        pair.moving,
        tmp_path / "again",
        (step,),
        settings,
        initial_transform=first.out / "transform.ome.zarr",
        landmarks=more,
    )
    # Of 2 x 2 x 2 blocks one holds it.
    assert len(computed) == 1
    assert np.linalg.norm(again.transform.apply(place) - wanted) < 2.0
    points = pair.fixed.grid.positions()
    change = np.linalg.norm(again.transform.apply(points) - first.transform.apply(points), axis=-1)
    assert change[8, 9, 8] > 2.0
    # Beyond the block and its overlap nothing moves but by rounding of the lattice of nodes.
    assert change[42:].max() < 0.05
    assert change[:, 42:].max() < 0.05


def test_landmarks_are_needed_where_only_they_are_followed(
    pair: PhantomPair, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="needs landmarks; there are none"):
        register(
            pair.fixed,
            pair.moving,
            tmp_path / "run",
            (Deformable(where="landmarks"),),
            SETTINGS,
            initial_transform=np.eye(4),
        )
    with pytest.raises(InputError, match="unknown where"):
        Deformable(where="here")  # type: ignore[arg-type]


def test_an_affine_that_leads_away_from_landmarks_is_left_out(
    pair: PhantomPair, marks: Landmarks
) -> None:
    levels = (lambda: pair.fixed, lambda: pair.moving)
    known = Marks(marks, marks.select([]))
    scene = Scene(pair.fixed, pair.moving, 20e6, Resources(), LogReporter(), levels, known)
    state = State(AffineTransform(pair.truth.matrix), 0.0)
    shifted = np.eye(4)
    for shift, kept in ((0.1, True), (3.0, False)):
        shifted[0, 3] = shift
        after, facts = next_state(scene, state, Finding(AffineTransform(shifted)))
        assert (after is not state) == kept
        assert ("led away from the landmarks" in facts.get("dropped", "")) != kept
    # Three landmarks are met by an affine of their own whatever is right: they do not object.
    few = replace(scene, marks=Marks(marks.select([0, 1, 2]), marks.select([])))
    assert next_state(few, state, Finding(AffineTransform(shifted)))[0] is not state
