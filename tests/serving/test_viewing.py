"""A registration in napari, or its report in the browser."""

from __future__ import annotations

import json
import shutil
import sys
import webbrowser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import itkstream
from itkstream.errors import MissingDataError
from itkstream.geometry import DisplacementField, Grid, steps_of
from itkstream.io import open_image
from itkstream.napari_reader import get_reader, read_layers


@pytest.fixture(scope="module")
def layers(registered: Path) -> dict[str, tuple[Any, dict[str, Any], str]]:
    reader = get_reader(str(registered))
    assert reader is not None
    return {said["name"]: (data, said, kind) for data, said, kind in reader(str(registered))}


def test_all_that_a_folder_holds_is_a_layer(layers: Any) -> None:
    assert {name: kind for name, (_, _, kind) in layers.items()} == {
        "fixed": "image",
        "moving": "image",
        "aligned": "image",
        "error (µm)": "image",
        "displacement": "vectors",
        "key points": "points",
    }
    shown = {name for name, (_, said, _) in layers.items() if said.get("visible", True)}
    assert shown == {"fixed", "aligned"}
    assert layers["fixed"][1]["colormap"] == "magenta"
    assert layers["aligned"][1]["colormap"] == "green"


def test_the_error_map_lies_where_it_is(layers: Any, registered: Path) -> None:
    data, said, _ = layers["error (µm)"]
    error = open_image(registered / "error.ome.zarr")
    np.testing.assert_array_equal(np.asarray(data), error.read())
    placed = said["affine"] @ np.diag([*said["scale"], 1])
    np.testing.assert_allclose(placed, error.in_unit("micrometer").grid.matrix)


def test_vectors_lead_where_the_field_does(layers: Any, registered: Path) -> None:
    ends, said, _ = layers["displacement"]
    transform = itkstream.read_transform(registered, ("z", "y", "x"))
    field = next(s for s in steps_of(transform) if isinstance(s, DisplacementField))
    assert 100 < len(ends) <= 24**3
    # Nodes lie a unit apart, so that some are shown at every plane.
    for axis in range(3):
        np.testing.assert_allclose(np.diff(np.unique(ends[:, 0, axis].round(6))), 1)
    ends = ends * said["scale"]
    np.testing.assert_allclose(ends[:, 0] + ends[:, 1], field.apply(ends[:, 0]), atol=1e-4)
    assert np.ptp(ends[:, 1]) > 0
    assert said["axis_labels"] == ("z", "y", "x")


def test_key_points_lie_on_nuclei(layers: Any, registered: Path) -> None:
    """They are those of the report, with axes in napari's order, on bright voxels."""
    points, said, _ = layers["key points"]
    assert len(points) == len(said["face_color"]) > 10
    report = json.loads((registered / "registration.json").read_text())
    grid = Grid(**report["fixed"]["grid"]).reorder(("z", "y", "x"))
    voxels = open_image(**report["fixed"]["opened"]).reorder(("z", "y", "x")).read()
    agree = points[np.asarray(said["face_color"]) == "lime"]
    index = tuple(np.rint(grid.to_index(agree)).astype(int).T)
    # Some are faint; on the whole they are bright, and not so with axes in any other order.
    assert voxels[index].mean() > 2 * voxels.mean()


class Window:
    """What of napari's viewer is used."""

    def __init__(self, title: str) -> None:
        self.title, self.added = title, []
        windows.append(self)

    def add_image(self, data: Any, **said: Any) -> None:
        self.added.append(said["name"])

    add_vectors = add_points = add_image


windows: list[Window] = []


def test_napari_is_opened_where_it_is_installed(
    registered: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    napari = ModuleType("napari")
    napari.Viewer, napari.run = Window, lambda: windows[-1].added.append("run")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "napari", napari)
    monkeypatch.setenv("DISPLAY", ":0")
    assert command("view", registered).stdout == ""
    names = ["fixed", "moving", "aligned", "error (µm)", "displacement", "key points", "run"]
    assert (windows[-1].title, windows[-1].added) == (str(registered), names)


def test_without_napari_the_report_is_opened(
    registered: Path, monkeypatch: pytest.MonkeyPatch, command: Any, tmp_path: Path
) -> None:
    opened: list[str] = []
    monkeypatch.setitem(sys.modules, "napari", None)  # as where it is not installed
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", opened.append)
    done = command("view", registered)
    assert opened == [(registered / "report.html").as_uri()]
    assert 'pip install "itkstream[napari]"' in done.stdout
    bare = Path(shutil.copytree(registered, tmp_path / "demo" / "registration"))
    (bare / "report.html").unlink()
    done = command("view", tmp_path / "demo")
    assert done.returncode == 2
    assert f"itkstream report {bare}" in done.stderr
    with pytest.raises(MissingDataError, match="no folder that `itkstream register` wrote"):
        itkstream.view(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_without_a_screen_the_report_is_opened(
    registered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by ssh: Qt would end the process."""
    napari = ModuleType("napari")
    napari.Viewer = Window  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "napari", napari)
    monkeypatch.setattr(webbrowser, "open", lambda page: True)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert itkstream.view(registered) == "report"


def test_a_hidden_layer_is_not_black_when_it_is_shown(layers: Any) -> None:
    for name in ("moving", "error (µm)"):
        low, high = layers[name][1]["contrast_limits"]
        voxels = np.asarray(layers[name][0])
        shown = voxels[np.isfinite(voxels)]
        assert shown.min() <= low < high <= shown.max()


def test_a_folder_whose_images_are_gone_still_shows(registered: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(registered, tmp_path / "out"))
    report = json.loads((moved / "registration.json").read_text())
    for side in ("fixed", "moving"):
        report[side]["opened"]["path"] = str(tmp_path / "gone.n5")
    (moved / "registration.json").write_text(json.dumps(report))
    names = [said["name"] for _, said, _ in read_layers(str(moved))]
    assert names == ["aligned", "error (µm)", "displacement", "key points"]
