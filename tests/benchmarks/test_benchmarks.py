"""The benchmarks run, untimed, as ordinary tests: a tiny case of each suite."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
import starts
from accuracy import Plan, medians, run_accuracy, shortfalls
from camera_patterns import measure as measure_patterns
from cases import CASES, CLEAN, make_pair, shrunk
from each_step import ROWS, measure, phantom, run_each_step
from engines import ENGINES, Engine
from run import main
from scipy import ndimage
from serve import measure as measure_serving
from small_images import measure as measure_small_images
from speed import run_speed
from spots import BAR, measure_cells

from itkstream.phantoms import ExperimentSettings, Motion, PhantomSettings
from itkstream.registration.steps import RansacAffine

# Half of the scales and amplitudes of the reference block: up to 3.2 voxels, in 56^3.
TINY = shrunk(CASES["block"], 2.0)
TINY_VOXELS = 56


@pytest.mark.parametrize("name", ["block", "anisotropic"])
def test_truth_maps_fixed_to_moving(name: str) -> None:
    pair = make_pair(replace(CASES[name], moving=CLEAN, group=(1, 1, 1)), 1, 48)
    vectors = np.moveaxis(pair.truth / pair.spacing, -1, 0)
    back = ndimage.map_coordinates(pair.moving, np.indices(pair.fixed.shape) + vectors, order=3)
    # Two cubic interpolations of a noisy image lose some of its noise, never its structure; a
    # wrong sign or a neglected inverse leaves a correlation below 0.9.
    assert np.corrcoef(back[pair.tissue], pair.fixed[pair.tissue])[0, 1] > 0.99


def test_error_counts_in_fine_voxels() -> None:
    pair = make_pair(CASES["anisotropic"], 1, 48)
    assert pair.fixed.shape[2] == 16
    exact = pair.score(pair.truth)
    assert exact.greatest == 0
    assert exact.folds == 0
    # One coarse voxel along z is three fine ones.
    off = pair.score(pair.truth + np.array([0, 0, pair.spacing[2]], np.float32))
    assert off.median == pytest.approx(3, abs=1e-4)


def test_same_seed_same_images() -> None:
    first, again, other = (make_pair(TINY, seed, 40) for seed in (1, 1, 2))
    assert np.array_equal(first.moving, again.moving)
    assert not np.array_equal(first.moving, other.moving)


def test_folds_are_counted() -> None:
    pair = make_pair(TINY, 1, 40)
    reflected = np.zeros_like(pair.truth)
    reflected[..., 0] = -2 * np.arange(40)[:, None, None] * pair.spacing[0]
    score = pair.score(reflected)
    assert score.folds == pair.fixed.size
    assert score.least_jacobian == pytest.approx(-1, abs=1e-4)


@pytest.mark.slow
def test_accuracy_suite() -> None:
    plan = Plan((TINY,), (("itkstream", "pipeline"),), limit=TINY_VOXELS)
    ((before, row),) = run_accuracy(plan)
    assert "error" not in row, row
    assert before["median"] > 0.3
    # Measured over seeds: 0.09 to 0.13 on real texture, 0.04 to 0.06 on the tutorial's; p95 twice.
    assert row["median"] < 0.2
    assert row["p95"] < 0.45
    assert row["folds"] == 0
    assert row["seconds"] > 0


def test_earlier_results_are_added_for_the_same_images_only() -> None:
    plan = Plan((TINY,), (), limit=40)
    ((before,),) = run_accuracy(plan)
    peer = {**before, "engine": "picsl-greedy", "setting": "NCC 4x4x4 100x50x10", "seconds": 1.0}
    foreign = {**peer, "engine": "antspyx", "fingerprint": "0"}
    failed = {**peer, "engine": "greedypy", "error": "not installed"}
    ((_, added),) = run_accuracy(replace(plan, earlier=(foreign, failed, peer, peer)))
    assert added["engine"] == "picsl-greedy"
    assert added["median_ratio"] == 1
    # A time of another run compares with nothing.
    assert "seconds" not in added
    assert "seconds_ratio" not in added


@pytest.mark.slow
def test_steps_suite(tmp_path: Path) -> None:
    pair = phantom("tiny")
    row = measure(ROWS["intensity-affine correlation gradient-descent"], pair, tmp_path)
    assert row["median"] < 0.7 * row["before"]
    assert row["folds"] == 0
    assert run_each_step(["no such step"]) == []


def test_speed_suite() -> None:
    for row in run_speed(("warp",), "tiny"):
        assert "error" not in row, row
        assert row["seconds"] > 0


@pytest.mark.slow
def test_inverse_beside_an_application() -> None:
    rows = {row["variant"]: row for row in run_speed(("inverse",), "tiny")}
    assert "error" not in rows[next(iter(rows))], rows
    # The demand on accuracy. Times are not compared here: other processes run beside the tests.
    assert rows["inverse"]["median_error_vox"] <= 0.01
    assert rows["inverse"]["greatest_error_vox"] <= 0.1
    assert rows["SimpleITK.Resample uint16"]["inverse_takes_times"] > 0


def test_command_writes_results(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    main(["speed", "--quick", "--tasks", "graph", "--out", str(out)])
    results = json.loads(out.read_text())
    assert results["machine"]["cores"] == processes.cores()
    assert {row["task"] for row in results["speed"]} == {"graph"}


def test_failing_engine_is_reported(tmp_path: Path) -> None:
    np.save(tmp_path / "fixed.npy", np.zeros(3))
    result = processes.call(Path(__file__).with_name("engines.py"), ["itkstream", "?", "/no"], 60)
    assert "FileNotFoundError" in result["error"]


def test_missing_engine_is_known() -> None:
    assert not Engine("no-such-distribution", {}).installed
    assert ENGINES["itkstream"].installed


def test_peak_memory_is_that_of_the_call() -> None:
    size = 64 * 2**20
    _, measured = processes.timed(lambda: np.ones(size, np.uint8).sum())
    # Other threads of the test runner may free memory meanwhile.
    assert measured["extra_mb"] > 0.8 * size / 1e6


def test_shortfalls_name_the_better_peer() -> None:
    def row(engine: str, setting: str, median: float, seed: int = 1) -> dict[str, object]:
        named = {"case": "c", "engine": engine, "setting": setting, "seed": seed, "voxels": 1}
        scores = {"median": median, "p95": 2 * median, "least_jacobian": 1.0, "folds": 0}
        return named | scores

    rows = [
        row("itkstream", "pipeline", 0.3),
        row("itkstream", "pipeline", 0.1, seed=2),
        row("picsl-greedy", "a", 0.15),
        row("antspyx", "b", 0.12),
        {**row("greedypy", "c", 0.0), "error": "not installed"},
    ]
    merged = medians(rows)
    assert merged[0]["median"] == pytest.approx(0.2)
    assert [line.split(":")[0] for line in shortfalls(merged)] == ["c", "c"]
    assert "antspyx b has 0.120" in shortfalls(merged)[0]
    assert shortfalls(merged[:1]) == []


@pytest.mark.slow
def test_what_a_cameras_pattern_costs() -> None:
    settings = PhantomSettings((64, 56, 48), (1.0, 1.0, 1.0), 3, radii_um=(2.5, 5.0))
    steps = (RansacAffine(radii=((2.0, 6.0),), match_threshold=0.6, cc_radius=8),)
    taken, kept = measure_patterns(settings, ("0.5 % hot pixels",), steps)
    assert (taken["camera_pattern"], kept["camera_pattern"]) == ("auto", "keep")
    assert taken["found"]["fixed"]["pixels"] > 0
    assert taken["median"] < 1


@pytest.mark.slow
def test_small_images_are_measured_in_fresh_processes() -> None:
    (run,) = measure_small_images(128, 1)
    assert all(value > 0 for value in run.values())


@pytest.mark.slow
def test_starts_are_tried_from_all_directions(capsys: pytest.CaptureFixture[str]) -> None:
    starts.main(["--trials", "1", "--first", "3", "--kinds", "nuclei"])
    trial, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert trial["right"]
    assert trial["outcome"] == "convincing"
    assert (whole["right"], whole["wrong, convincing"]) == (1, 0)


@pytest.mark.slow
def test_spots_of_an_experiment_are_in_the_right_cells(tmp_path: Path) -> None:
    tissue = replace(
        ExperimentSettings().tissue, shape=(72, 64, 40), motion=Motion(3.0, 0.02, 0.01, 0.04, 0.0)
    )
    settings = ExperimentSettings(rounds=2, tissue=tissue, overlap=1.0)
    scores, agreement = measure_cells(tmp_path, settings, steps=[RansacAffine()])
    # Key points alone, of a map that is affine.
    assert scores[0].median_um == 0
    assert scores[1].median_um < 0.3
    assert min(score.right for score in scores) >= BAR
    assert agreement >= BAR


def test_serving_is_measured() -> None:
    found = measure_serving(2, side=128)
    assert set(found) == {"computed", "kept", "as it is"}
    assert all(len(times) == 2 and np.min(times) >= 0 for times in found.values())
