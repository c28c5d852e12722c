"""Channels that are resampled together keep their names, for us and for the readers of others."""

from __future__ import annotations

from pathlib import Path

import ngff_zarr
import numpy as np
import pytest

import itkstream
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io import open_series
from itkstream.numerics.sampling.warping import WarpSettings

GRID = Grid((6, 8, 10), (2.0, 0.5, 0.5), axes=("z", "y", "x"))


def _write(path: Path, *names: str) -> list[Image]:
    rng = np.random.default_rng(0)
    images = [
        Image(rng.integers(0, 999, GRID.shape, np.uint16), GRID, channel=name) for name in names
    ]
    series = itkstream.Series(tuple(images), (("c", len(images)),))
    itkstream.write_resampled(path, series, AffineTransform(np.eye(4)), GRID, WarpSettings())
    return images


@pytest.mark.filterwarnings("ignore")
def test_names_and_colours_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    images = _write(path, "DAPI", "GFP", "")
    found = open_series(path, "channel")
    assert [image.channel for image in found] == ["DAPI", "GFP", "2"]
    np.testing.assert_array_equal(itkstream.open_image(path, channel="GFP").read(), images[1].data)
    read = ngff_zarr.from_ngff_zarr(str(path), validate=True)
    channels = read.metadata.omero.channels
    assert [channel.label for channel in channels] == ["DAPI", "GFP", "2"]
    assert [channel.color for channel in channels] == ["FF0000", "00FF00", "0000FF"]
    assert channels[0].window.end <= 999


def test_channels_without_names_stay_without(tmp_path: Path) -> None:
    _write(tmp_path / "a.ome.zarr", "", "")
    assert [image.channel for image in open_series(tmp_path / "a.ome.zarr", "channel")] == ["", ""]
