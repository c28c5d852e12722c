"""Several channels on the command line: registered together, recorded, and repeated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from itkstream.cli.app import commands
from itkstream.geometry import Image
from itkstream.io import open_image
from itkstream.phantoms import Motion, PhantomSettings, make_pair

STEPS = """\
steps:
- intensity-affine: {model: translation, iterations: [9, 9]}
- deformable: {stiffness: 1, iterations: [4, 2, 1]}
error_map: false
report: false
"""
STILL = Motion(rotation_deg=0, stretch=0, shear=0, shift=0.02, warp_um=1)


def write(path: Path, channels: dict[str, Image]) -> None:
    """OME-Zarr of named channels."""
    images = list(channels.values())
    group = zarr.create_group(path, zarr_format=2)
    group.create_array("0", data=np.stack([np.asarray(i.read()) for i in images]))
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    scale = {"type": "scale", "scale": [1.0, *images[0].spacing]}
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs["omero"] = {"channels": [{"label": name} for name in channels]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of two channels, in another order; and the file of steps."""
    folder = tmp_path_factory.mktemp("rounds")
    pair = make_pair(PhantomSettings((48, 44, 40), (1.0, 1.0, 1.0), 1, motion=STILL))
    other = [replace(image, data=image.read() // 2) for image in (pair.fixed, pair.moving)]
    write(folder / "fix.zarr", {"DAPI": pair.fixed, "GFP": other[0]})
    write(folder / "mov.zarr", {"RFP": other[1], "DAPI": pair.moving})
    (folder / "run.yaml").write_text(STEPS)
    return folder


def command(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(commands, [str(word) for word in words])
    return done.exit_code, done.output + repr(done.exception)


@pytest.mark.slow
def test_pairs_are_registered_recorded_and_repeated(folder: Path) -> None:
    pair = (folder / "fix.zarr", folder / "mov.zarr")
    words = ("--fixed-channel", "DAPI:2,GFP", "--moving-channel", "DAPI,RFP")
    code, said = command(
        "register", *pair, *words, "--config", folder / "run.yaml", "--out", folder / "out"
    )
    assert code in (0, 4), said
    report = json.loads((folder / "out" / "registration.json").read_text())
    assert report["fixed"]["opened"]["channel"] == [[0, 2.0], 1]
    assert report["moving"]["opened"]["channel"] == [1, 0]
    assert [one["weight"] for one in report["channels"]] == [2.0, 1.0]
    code, said = command(
        "register", *pair, "--config", folder / "out" / "registration.json", "--out",
        folder / "again",
    )  # fmt: skip
    assert code in (0, 4), said
    first, again = (
        open_image(folder / name / "aligned.ome.zarr").read() for name in ("out", "again")
    )
    np.testing.assert_array_equal(first, again)
    # What is moved through it is the first channel, which is said.
    code, said = command("apply", folder / "out", pair[1], folder / "moved.ome.zarr")
    assert code == 0, said
    assert "channel 1 (DAPI)" in said
    np.testing.assert_array_equal(open_image(folder / "moved.ome.zarr").read(), first)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--channel", "DAPI,XYZ"), "no channel 'XYZ'"),
        (("--fixed-channel", "DAPI,GFP", "--moving-channel", "DAPI"), "registered in pairs: 2"),
        (("--fixed-channel", "0:2,1:1", "--moving-channel", "1:3,0"), "two weights, 2 and 3"),
        (("--channel", "0:0,1"), "weight above 0"),
    ],
)
def test_bad_words_are_one_clear_line(folder: Path, words: tuple[str, ...], said: str) -> None:
    code, output = command(
        "register", folder / "fix.zarr", folder / "mov.zarr", *words, "--out", folder / "none"
    )
    assert code != 0
    assert said in output
    assert not (folder / "none").exists()
