"""The error map of a run: written, summed up, kept by a run that goes on, left out if unwanted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from itkstream.cli.app import commands
from itkstream.errors import InputError
from itkstream.io import open_image
from itkstream.phantoms import Motion, PhantomSettings, make_pair
from itkstream.pipelines import plan, register
from itkstream.registration.steps import Deformable, RegisterSettings

STEPS = (Deformable(stiffness=1.0),)


@pytest.fixture(scope="module")
def rounds():
    motion = Motion(0, 0, 0, 0, 3)
    return make_pair(PhantomSettings((64, 56, 40), (1.0, 1.0, 1.3), 11, motion=motion))


@pytest.fixture(scope="module")
def registered(rounds, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return register(rounds.fixed, rounds.moving, out, STEPS, initial_transform=np.eye(4))


def test_the_map_covers_the_true_errors(rounds, registered):
    radii = np.asarray(registered.error.read())
    grid = registered.error.grid
    assert grid.axes == rounds.fixed.grid.axes
    points = grid.positions()
    error = np.linalg.norm(registered.transform.apply(points) - rounds.truth(points), axis=-1)
    index = np.rint(rounds.fixed.grid.to_index(points)).astype(int)
    index = np.minimum(index, np.subtract(rounds.fixed.shape, 1))
    inside = rounds.tissue[tuple(np.moveaxis(index, -1, 0))]
    known = inside & np.isfinite(radii)
    assert known.sum() > 0.9 * inside.sum()
    assert (error[known] <= radii[known]).mean() > 0.85
    assert np.median(radii[known]) < 2


def test_the_report_sums_it_up(registered):
    report = json.loads((registered.out / "registration.json").read_bytes())
    found = report["error"]
    assert 0 < found["median_um"] <= found["p95_um"]
    shares = [found[f"share_{name}"] for name in ("over_5_vox", "over_2_vox", "unknown")]
    assert all(0 <= share <= 1 for share in shares)
    assert shares[0] <= shares[1]
    assert found["tissue_voxels"] > 0
    chance = found["chance"]
    assert chance["offsets"] > 0
    assert chance["local_correlation_median"] <= chance["local_correlation_p95"]
    steps = {step["name"]: step for step in report["steps"]}
    assert chance["local_correlation_mean"] < steps["deformation"]["local_correlation"]
    assert "error map" in steps
    stored = open_image(registered.out / "error.ome.zarr")
    assert stored.dtype == np.float32


def test_a_run_that_goes_on_keeps_it(rounds, registered):
    before = (registered.out / "error.ome.zarr").fingerprint()
    again = register(
        rounds.fixed, rounds.moving, str(registered.out), STEPS, initial_transform=np.eye(4)
    )
    assert (again.out / "error.ome.zarr").fingerprint() == before
    assert again.facts["error"] == registered.facts["error"]


def test_it_is_left_out_if_unwanted(rounds, tmp_path):
    settings = RegisterSettings(error_map=False)
    found = register(
        rounds.fixed, rounds.moving, tmp_path / "out", (), settings, initial_transform=np.eye(4)
    )
    assert found.error is None
    assert "error" not in found.facts
    assert not (tmp_path / "out" / "error.ome.zarr").exists()
    names = {price.name for price in plan(rounds.fixed, rounds.moving, settings=settings).prices}
    assert "error map" not in names
    assert "error map" in {price.name for price in plan(rounds.fixed, rounds.moving).prices}


def test_the_command_line_leaves_it_out(rounds, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("itkstream.pipelines.register", lambda *a, **k: asked.append(a[4]) or 1 / 0)
    pair = SimpleNamespace(images=(rounds.fixed, rounds.moving))
    monkeypatch.setattr("itkstream.cli.verbs.register.choose_given_pair", lambda *a: pair)
    out = str(tmp_path / "out")
    CliRunner().invoke(commands, ["register", "a.tif", "b.tif", "--out", out, "--no-error-map"])
    CliRunner().invoke(commands, ["register", "a.tif", "b.tif", "--out", out])
    assert [settings.error_map for settings in asked] == [False, True]


def test_it_is_wanted_or_not():
    with pytest.raises(InputError, match="error_map must be True or False"):
        RegisterSettings(error_map=1)
