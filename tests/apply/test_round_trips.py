"""Every format that is written, read back by this package and by a library that it is not built on.

Voxels, spacing, origin, direction and channels are what they were, as far as a format has words
for them; what it has none for is refused or told (see `test_written_formats`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tensorstore
import tifffile
import zarr
from numpy.typing import NDArray

from itkstream.apply.products import Series, write_resampled
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io import open_image, open_series
from itkstream.numerics.sampling.warping import WarpSettings

SPACING, ORIGIN = (2.0, 0.5, 0.25), (30.0, -4.0, 7.0)  # z, y, x
SHAPE = (6, 40, 36)
_COS, _SIN = np.cos(0.3), np.sin(0.3)
TURNED = ((_COS, -_SIN, 0.0), (_SIN, _COS, 0.0), (0.0, 0.0, 1.0))
CHANNELS = ("DAPI", "Cy5")


class Found(NamedTuple):
    """Voxels as z, y, x, behind the channels where there are some; the map from index to µm."""

    voxels: NDArray[np.generic]
    matrix: NDArray[np.float64]
    channels: tuple[str, ...] = ()


def _by_zarr(path: Path) -> Found:
    group = zarr.open_group(path, mode="r")
    ome = group.attrs["ome"]
    scale, shift = np.ones(4), np.zeros(4)
    steps = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    for step in steps:
        scale *= step.get("scale", 1.0)
        shift += step.get("translation", 0.0)
    names = tuple(channel["label"] for channel in ome["omero"]["channels"])
    return Found(group["0"][...], _matrix(scale[1:], shift[1:]), names)


def _by_tifffile(path: Path) -> Found:
    with tifffile.TiffFile(path) as file:
        about = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        voxels = file.series[0].asarray()
    scale = [about[f"PhysicalSize{axis}"] for axis in "ZYX"]
    return Found(voxels, _matrix(scale), tuple(c["Name"] for c in about["Channel"]))


def _by_tensorstore(path: Path) -> Found:
    stored = {"driver": "n5", "kvstore": {"driver": "file", "path": str(path / "s0")}}
    voxels = tensorstore.open(stored).result()[...].read().result()
    about = json.loads((path / "s0/attributes.json").read_text())
    scale = about["pixelResolution"]["dimensions"]
    shift = about["transform"]["translate"]
    return Found(voxels.T, _matrix(scale[::-1], shift))


def _by_nibabel(path: Path) -> Found:
    image = nibabel.load(path)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    order = [2, 1, 0, 3]
    return Found(np.asarray(image.dataobj).T, lps[order][:, order])


def _by_simpleitk(path: Path) -> Found:
    image = sitk.ReadImage(str(path))
    turn = np.array(image.GetDirection()).reshape(3, 3)[::-1, ::-1]
    matrix = _matrix(image.GetSpacing()[::-1], image.GetOrigin()[::-1])
    matrix[:3, :3] = turn @ matrix[:3, :3]
    return Found(sitk.GetArrayFromImage(image), matrix)


def _matrix(scale: object, shift: object = (0.0, 0.0, 0.0)) -> NDArray[np.float64]:
    matrix = np.diag([*scale, 1.0])  # type: ignore[misc]
    matrix[:3, 3] = shift
    return matrix


class Format(NamedTuple):
    """An ending, who else reads it, and what it has words for."""

    ending: str
    peer: Callable[[Path], Found]
    origin: bool = True
    direction: bool = False
    channels: bool = False


FORMATS = (
    Format(".ome.zarr", _by_zarr, channels=True),
    Format(".ome.tif", _by_tifffile, origin=False, channels=True),
    Format(".n5", _by_tensorstore),
    Format(".nii.gz", _by_nibabel, direction=True),
    Format(".nrrd", _by_simpleitk, direction=True),
    Format(".mha", _by_simpleitk, direction=True),
)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.ending)
def test_an_image_comes_back(tmp_path: Path, form: Format) -> None:
    origin = ORIGIN if form.origin else (0.0, 0.0, 0.0)
    direction = TURNED if form.direction else ()
    grid = Grid(SHAPE, SPACING, origin, direction, axes=("z", "y", "x"))
    count = len(CHANNELS) if form.channels else 1
    voxels = np.random.default_rng(0).integers(0, 9999, (count, *SHAPE)).astype(np.uint16)
    images = tuple(Image(v, grid, channel=name) for v, name in zip(voxels, CHANNELS, strict=False))
    given = Series(images, (("c", count),)) if form.channels else images[0]
    out = tmp_path / f"out{form.ending}"
    write_resampled(out, given, AffineTransform(np.eye(4)), grid, WarpSettings("nearest"))

    peer = form.peer(out)
    np.testing.assert_array_equal(peer.voxels, voxels if form.channels else voxels[0])
    np.testing.assert_allclose(peer.matrix, grid.matrix, atol=1e-5)
    assert peer.channels == (CHANNELS if form.channels else ())

    again = open_series(out, "channel") if form.channels else [open_image(out)]
    for number, image in enumerate(again):
        own = image.in_unit("micrometer").reorder(grid.axes)
        np.testing.assert_array_equal(own.read(), voxels[number])
        np.testing.assert_allclose(own.grid.matrix, grid.matrix, atol=1e-5)
        assert image.channel == (CHANNELS[number] if form.channels else "")
