"""Runs as YAML files: round trips, and errors that say what is meant."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from itkstream.cli.config import Config, read_config, to_yaml
from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io import ImageOptions
from itkstream.io.images.orientation import orientation_transform
from itkstream.io.landmarks.options import LandmarkOptions
from itkstream.registration.request import Given
from itkstream.registration.steps import (
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    RegisterSettings,
    step_parameters,
)

EVERYTHING = Config(
    (
        RansacAffine(radii=((2, 6),), model="rigid"),
        IntensityAffine("rigid", "mutual-information", "powell", step=1.5),
        LocalAffines(blocksize=64, radii=(3, 9), overlap=8),
        Deformable("diffeomorphic-demons", burst=4, local_normalisation=None),
        Deformable(cc_radius=3, gradient_smoothing=(9.0, 0.0, 1.0, 2.0), blocksize=64),
    ),
    RegisterSettings(coarse_voxels=1e6, blocksize=64),
    initial_transform="landmarks.tfm",
    fixed_mask=(0, 65535),
    moving_mask="tissue.ome.zarr",
    fixed=ImageOptions((2, 0.5, 0.5), "um", "czyx", channel=1, time=2, level=3),
    moving=ImageOptions(spacing=0.5),
    landmarks=LandmarkOptions(("fixed.fcsv", "moving.fcsv"), "millimeter", 2.5, 0.25),
    engine="auto",
)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("config", [Config(), EVERYTHING], ids=["defaults", "everything"])
def test_what_is_written_is_read(tmp_path: Path, config: Config) -> None:
    text = to_yaml(config)
    read = read_config(write(tmp_path, text))
    assert read.steps == config.steps
    assert read.settings == config.settings
    assert (read.fixed, read.moving) == (config.fixed, config.moving)
    assert read.engine == config.engine
    # Any YAML reader sees the same.
    assert yaml.safe_load(text)["coarse_voxels"] == config.settings.coarse_voxels


def test_the_report_of_a_run_is_a_file_of_steps(tmp_path: Path) -> None:
    steps = [{step.name: step_parameters(step)} for step in EVERYTHING.steps]
    told = {
        "fixed": {"name": "a", "opened": {"path": "a", "voxel_spacing": [2, 0.5, 0.5]}},
        "moving": {"name": "b", "opened": {"path": "b", "channel": 1}},
        "settings": {**asdict(EVERYTHING.settings), "steps": steps},
        "fixed_mask": [0, 65535],
        "initial_transform": "near/start.tfm",
    }
    file = tmp_path / "registration.json"
    file.write_text(json.dumps(told))
    read = read_config(file)
    assert (read.steps, read.settings) == (EVERYTHING.steps, EVERYTHING.settings)
    assert (read.fixed, read.moving) == (ImageOptions((2, 0.5, 0.5)), ImageOptions(channel=1))
    assert (read.fixed_mask, read.initial_transform) == ((0, 65535), "near/start.tfm")
    file.write_text(json.dumps(told | {"landmark_files": ["pairs.csv"], "hold_out": 0.0}))
    with pytest.raises(InputError, match="had landmarks"):
        read_config(file)


def test_files_are_named_relative_to_the_file(tmp_path: Path) -> None:
    read = read_config(write(tmp_path, to_yaml(EVERYTHING)))
    assert read.initial_transform == str(tmp_path / "landmarks.tfm")
    assert read.moving_mask == str(tmp_path / "tissue.ome.zarr")
    assert read.fixed_mask == (0, 65535)
    files = tuple(str(tmp_path / f"{side}.fcsv") for side in ("fixed", "moving"))
    assert read.landmarks == LandmarkOptions(files, "millimeter", 2.5, 0.25)
    url = read_config(write(tmp_path, "fixed_mask: s3://bucket/tissue.zarr"))
    assert url.fixed_mask == "s3://bucket/tissue.zarr"


def test_little_is_enough(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, "")) == Config()
    text = "coarse_voxels: 5e6\nsteps:\n- ransac-affine\n- deformable:\n    method: demons\n"
    read = read_config(write(tmp_path, text))
    assert read.settings.coarse_voxels == 5e6
    assert read.steps == (RansacAffine(), Deformable("demons"))
    assert read_config(write(tmp_path, "steps: []")).steps == ()
    assert read_config(write(tmp_path, "fixed_mask: 0")).fixed_mask == (0,)
    assert read_config(write(tmp_path, "fixed:\nmoving: {time: 1}")).moving == ImageOptions(time=1)
    assert read_config(write(tmp_path, "fixed: {axes: [z, y, x]}")).fixed.axes == "zyx"
    named = read_config(write(tmp_path, "fixed: {channel: DAPI}\nmoving: {channel: '405'}"))
    assert (named.fixed.channel, named.moving.channel) == ("DAPI", "405")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coarse_voxel: 1", "unknown key 'coarse_voxel'; did you mean 'coarse_voxels'"),
        ("blocksize: 7", "blocksize must be an even number"),
        ("steps: ransac-affine", "steps must be a list"),
        ("steps:\n- ransac", "step 1: unknown step 'ransac'; did you mean 'ransac-affine'"),
        ("steps:\n- deformable: {methd: lcc}", "step 1: .*did you mean 'method'"),
        ("steps:\n- deformable\n- local-affines: {blocksize: 5}", "step 2: blocksize"),
        ("steps:\n- deformable: 5", "deformable must hold names and values"),
        ("steps:\n- 5", "step 1 must hold names"),
        ("steps:\n- deformable:\n  method: demons", "step 1 must have one name"),
        ("- a", "the file must hold names"),
        ("a: [", "no YAML file"),
        ("initial_transform: 5", "initial_transform must be the name of a file"),
        ("initial_transform: [[1, 0], [0]]", "initial_transform must be the name of a file, or"),
        ("orient: LPS", "orient must be two codes.* such as LIP RAS; got 'LPS'"),
        ("orient: [LPS, RAR]", "the orientation of the moving image is three capitals"),
        ("orient: [LPS, RAS]\ninitial_transform: a.tfm", "orient and an initial transform"),
        ("fixed_mask: {a: 1}", "fixed_mask must be the name of an image"),
        ("fixed: {chanel: 1}", "unknown key of fixed 'chanel'; did you mean 'channel'"),
        ("fixd: {channel: 1}", "unknown key 'fixd'; did you mean 'fixed'"),
        ("moving: {time: one}", "moving: time must be a whole number"),
        ("moving: {channel: -1}", "moving: channel must be a name, or a whole number"),
        ("moving: {level: -1}", "moving: level must be a whole number"),
        ("moving: {spacing: [1, 0, 1]}", "moving: spacing must be a positive number, or one per"),
        ("moving: {spacing: 1 um}", "moving: spacing must be a positive number"),
        ("moving: {unit: parsec}", "moving: unknown unit of length 'parsec'"),
        ("moving: {axes: zy}", "moving: axes must name every stored axis"),
        ("moving: {axes: 3}", "moving: axes must be a word"),
        ("moving: 5", "moving must hold names and values"),
        ("engine: gpus", "unknown engine 'gpus'; did you mean 'gpu'"),
        ("moving_mask: [tissue]", "moving_mask must be the name of an image"),
    ],
)
def test_what_is_not_known_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"run.yaml: {message}|{message}"):
        read_config(write(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="config --defaults"):
        read_config(tmp_path / "nowhere.yaml")


def test_how_images_lie_is_a_start(tmp_path: Path) -> None:
    config = Config(orient=("LIP", "file"))
    assert read_config(write(tmp_path, to_yaml(config))).orient == config.orient
    turned = np.diag([-1.0, -1.0, 1.0])
    grids = Grid((4, 6, 8), (1.0,) * 3), Grid((4, 8, 6), (1.0,) * 3, direction=turned.tolist())
    fixed, moving = (Image(np.zeros(grid.shape), grid) for grid in grids)
    expected = orientation_transform(fixed, moving, "LIP", "RAS")
    start = config.start(fixed, moving)
    assert isinstance(start, AffineTransform)
    np.testing.assert_array_equal(start.matrix, expected.matrix)
    with pytest.raises(InputError, match="direction of the moving image is the identity"):
        config.start(fixed, fixed)
    assert Config(initial_transform="a.tfm").start(fixed, moving) == "a.tfm"


def test_a_start_of_a_run_is_that_of_its_repetition(tmp_path: Path) -> None:
    grid = Grid((4, 6, 8), (1.0,) * 3)
    pair = Image(np.zeros(grid.shape), grid), Image(np.zeros(grid.shape), grid)
    start = Config(orient=("LPS", "RAS")).start(*pair)
    assert isinstance(start, AffineTransform)
    told = {
        "fixed": {"opened": {"path": "a"}},
        "moving": {"opened": {"path": "b"}},
        "settings": {**asdict(RegisterSettings()), "steps": []},
        **Given(*pair, start).described(),
    }
    file = tmp_path / "registration.json"
    file.write_text(json.dumps(told))
    again = read_config(file)
    for config in (again, read_config(write(tmp_path, to_yaml(again)))):
        read = config.start(*pair)
        assert isinstance(read, AffineTransform)
        np.testing.assert_array_equal(read.matrix, start.matrix)


@pytest.mark.parametrize("steps", [Deformable(), ["deformable"]])
def test_configs_hold_steps(steps: Any) -> None:
    with pytest.raises(InputError, match="step"):
        Config(steps)
