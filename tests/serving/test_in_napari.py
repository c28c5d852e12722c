"""napari itself: the window that `view` opens, the plug-in, and what others read of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import itkstream

napari = pytest.importorskip("napari", reason=".ci/viewers installs it")
pytestmark = pytest.mark.skipif(not os.environ.get("DISPLAY"), reason="there is no screen")

LAYERS = ["fixed", "moving", "aligned", "error (µm)", "displacement", "key points"]


def test_view_draws_every_layer(registered: Path) -> None:
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    seen: dict[str, int] = {}

    def look() -> None:
        viewer = napari.current_viewer()
        viewer.dims.set_point(0, np.mean(viewer.dims.range[0][:2]))
        for layer in viewer.layers:
            for other in viewer.layers:
                other.visible = other is layer
            seen[layer.name] = lit(viewer)
        viewer.close()

    running = QApplication.instance() or QApplication([])
    QTimer.singleShot(3000, look)
    assert itkstream.view(registered) == "napari"
    assert list(seen) == LAYERS
    assert all(count > 100 for count in seen.values()), seen
    assert running is not None


def test_the_plug_in_opens_a_folder(registered: Path) -> None:
    viewer = napari.Viewer(show=False)
    viewer.open(str(registered), plugin="itkstream")
    assert [layer.name for layer in viewer.layers] == LAYERS
    assert {str(layer.units[0]) for layer in viewer.layers} == {"micrometer"}
    viewer.close()


def test_channels_of_rounds_keep_names_colours_and_lengths(
    registered: Path, tmp_path: Path
) -> None:
    """As napari-ome-zarr reads a joined image."""
    pytest.importorskip("napari_ome_zarr")
    registration = itkstream.Registration.open(registered)
    seen = itkstream.Series((registration.aligned, registration.aligned), (("c", 2),))
    identity = itkstream.AffineTransform(np.eye(4), registration.aligned.grid.axes)
    settings = itkstream.WarpSettings()
    out = tmp_path / "joined.ome.zarr"
    itkstream.write_resampled(out, seen, identity, registration.aligned.grid, settings)
    viewer = napari.Viewer(show=False)
    viewer.open(str(out), plugin="napari-ome-zarr")
    stored = itkstream.open_image(out, channel=0)
    assert len(viewer.layers) == 2
    for layer in viewer.layers:
        np.testing.assert_allclose(layer.scale, stored.spacing)
        assert {str(unit) for unit in layer.units} == {"micrometer"}
    viewer.close()


def lit(viewer: Any) -> int:
    """Pixels of the canvas that are not dark."""
    return int((viewer.screenshot(canvas_only=True, flash=False)[..., :3].max(-1) > 40).sum())
