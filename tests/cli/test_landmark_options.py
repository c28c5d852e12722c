"""Landmarks on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from itkstream.errors import InputError
from itkstream.geometry import Landmarks
from itkstream.io import write_n5
from itkstream.io.landmarks.files import write_landmarks
from itkstream.io.landmarks.options import LandmarkOptions
from itkstream.phantoms import PhantomPair

Command = Callable[..., SimpleNamespace]


@pytest.fixture
def folder(pair: PhantomPair, tmp_path: Path) -> Path:
    """Both images, landmarks of them, and a file of steps that takes no time."""
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        write_n5(tmp_path / f"{name}.n5", "s0", image.read(), image.grid)
    places = pair.fixed.grid.positions()[8::16, 8::16, 8::16].reshape(-1, 3)
    marks = Landmarks(places, pair.truth(places), axes=("x", "y", "z"))
    write_landmarks(tmp_path / "marks.csv", marks, kind="bigwarp")
    write_landmarks(tmp_path / "f.fcsv", marks, tmp_path / "m.fcsv")
    (tmp_path / "steps.yaml").write_text(
        "landmarks: {files: marks.csv, hold_out: 0.5}\nsteps: []\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("words", "held"),
    [
        ((), 0.5),
        (("--landmarks", "f.fcsv", "--landmarks", "m.fcsv", "--hold-out", "0.25"), 0.25),
    ],
)
def test_files_and_shares_come_from_the_file_of_steps_or_the_options(
    folder: Path, command: Command, words: tuple[str, ...], held: float
) -> None:
    given = ("register", "fixed.n5/s0", "moving.n5/s0", "--out", "run", "--config", "steps.yaml")
    done = command(*given, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "run" / "registration.json").read_text())
    assert report["hold_out"] == held
    assert len(report["landmark_files"]) == (2 if words else 1)
    rows = report["landmarks"]
    assert sum(row["held_out"] for row in rows) == round(held * len(rows))
    assert "landmarks: median" in done.stdout


@pytest.mark.slow
def test_landmarks_are_added_to_a_run(folder: Path, command: Command) -> None:
    images = ("register", "fixed.n5/s0", "moving.n5/s0", "--landmarks", "marks.csv")
    assert command(*images, "--out", "run", "--config", "steps.yaml", cwd=folder).returncode == 0
    more = ("--out", "more", "--initial", "run/transform.ome.zarr", "--near-landmarks")
    done = command(*images, *more, "--block", "32", "--landmark-sigma", "0.5", cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "more" / "registration.json").read_text())
    (step,) = report["settings"]["steps"]
    assert step["deformable"]["where"] == "landmarks"
    before, after = (part["landmarks"]["median_um"] for part in report["steps"][:2])
    assert after < before


def test_a_wrong_unit_and_options_without_files_are_refused(folder: Path, command: Command) -> None:
    given = ("register", "fixed.n5/s0", "moving.n5/s0", "--out", "run")
    wrong = command(*given, "--landmarks", "marks.csv", "--landmark-unit", "millimeter", cwd=folder)
    assert wrong.returncode == 2
    assert "lie far outside the fixed image" in wrong.stderr
    alone = command(*given, "--hold-out", "0.5", cwd=folder)
    assert alone.returncode == 2
    assert "need --landmarks" in alone.stderr
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"files": ("a", "b", "c")},
        {"unit": "parsec"},
        {"sigma_um": 0},
        {"hold_out": 1},
    ],
)
def test_options_are_checked(given: dict[str, object]) -> None:
    with pytest.raises(InputError):
        LandmarkOptions(**given)


def test_deviations_that_are_given_count(folder: Path, pair: PhantomPair) -> None:
    options = LandmarkOptions(str(folder / "marks.csv"), sigma_um=3)
    marks = options.read(pair.fixed, pair.moving)
    assert marks is not None
    assert np.all(marks.sigma_um == 3.0)
    assert LandmarkOptions().read(pair.fixed, pair.moving) is None
