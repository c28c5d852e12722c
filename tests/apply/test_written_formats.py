"""Resampled images as OME-TIFF and N5, read back by tifffile, tensorstore and this package."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tensorstore
import tifffile

from itkstream.apply.products import Series, check_resampled_output, write_resampled
from itkstream.errors import BlockErrors, ExistingOutputError, InputError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io import create_ome_zarr, open_image, open_series
from itkstream.numerics.sampling.warping import WarpSettings

GRID = Grid((5, 300, 520), (2.0, 0.25, 0.5), axes=("z", "y", "x"))
HERE = AffineTransform(np.eye(4))
NEAREST = WarpSettings("nearest")
VOXELS = np.random.default_rng(0).integers(0, 9999, GRID.shape).astype(np.uint16)


def write(out: Path, moving: Image | Series, grid: Grid = GRID, **how: object) -> None:
    # The affine of two axes is that of three without the first.
    here = AffineTransform(np.eye(grid.ndim + 1))
    write_resampled(out, moving, here, grid, NEAREST, blocksize=128, **how)  # type: ignore[arg-type]


def ome(path: Path) -> ElementTree.Element:
    with tifffile.TiffFile(path) as file:
        assert file.ome_metadata
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
    assert pixels is not None
    return pixels


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint32", "float32", "float64"])
def test_ome_tiff_holds_the_image(tmp_path: Path, kind: str) -> None:
    values = (VOXELS / 7).astype(kind)
    write(tmp_path / "a.ome.tif", Image(values, GRID))
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        series = file.series[0]
        assert (series.axes, series.dtype) == ("ZYX", np.dtype(kind))
        assert (series.keyframe.is_tiled, file.is_bigtiff) == (True, False)
        np.testing.assert_array_equal(series.asarray(), values)
    sizes = {a: float(ome(tmp_path / "a.ome.tif").attrib[f"PhysicalSize{a}"]) for a in "XYZ"}
    assert sizes == {"X": 0.5, "Y": 0.25, "Z": 2.0}
    again = open_image(tmp_path / "a.ome.tif")
    assert again.grid == GRID
    np.testing.assert_array_equal(again.read(), values)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.tif"]


@pytest.mark.parametrize("labels", [False, True])
def test_coarser_levels_of_ome_tiff_lie_where_the_finest_does(tmp_path: Path, labels: bool) -> None:
    grid = Grid((2, 600, 1100), (2.0, 1.0, 1.0), axes=("z", "y", "x"))
    # Of a ramp the mean of a group is the value in its middle.
    y, x = np.mgrid[:600, :1100].astype(np.float32)
    ramp = np.stack([y + 2 * x, y - x])
    write(tmp_path / "a.tif", Image(ramp, grid), grid, labels=labels)
    levels = open_series(tmp_path / "a.tif", "level")
    assert [level.shape for level in levels] == [
        (2, 600, 1100), (2, 300, 550), (2, 150, 275), (2, 75, 138),
    ]  # fmt: skip
    for number, level in enumerate(levels):
        step = 2**number
        offset = 0 if labels else (step - 1) / 2
        yk, xk = np.mgrid[: level.shape[1], : level.shape[2]] * step + offset
        wanted = np.stack([yk + 2 * xk, yk - xk])
        # The last column of the coarsest stands for fewer voxels.
        np.testing.assert_allclose(level.read()[..., :-1], wanted[..., :-1], rtol=1e-6)


def test_channels_and_times_of_ome_tiff_keep_their_names(tmp_path: Path) -> None:
    names = ("DAPI", "GFP", "")
    shape = (2, 3, 2, 100, 300)
    values = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    grid = Grid(shape[2:], GRID.spacing, axes=GRID.axes)
    images = tuple(Image(values[t, c], grid, channel=names[c]) for t in range(2) for c in range(3))
    write(tmp_path / "a.tiff", Series(images, (("t", 2), ("c", 3))), grid)
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        assert file.series[0].axes == "TCZYX"
        np.testing.assert_array_equal(file.series[0].asarray(), values)
    assert [c.get("Name") for c in ome(tmp_path / "a.tiff").findall("{*}Channel")][:2] == [
        "DAPI", "GFP",
    ]  # fmt: skip
    np.testing.assert_array_equal(
        open_image(tmp_path / "a.tiff", channel="GFP", time=1).read(), values[1, 1]
    )
    # The other order of the axes, and one of them alone.
    swapped = tuple(images[3 * t + c] for c in range(3) for t in range(2))
    write(tmp_path / "b.tif", Series(swapped, (("c", 3), ("t", 2))), grid)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), values)
    write(tmp_path / "c.tif", Series(images[:3], (("c", 3),)), grid)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "c.tif"), values[0])


def test_a_plane_as_ome_tiff(tmp_path: Path) -> None:
    grid = Grid(GRID.shape[1:], (0.25, 0.5), axes=("y", "x"))
    write(tmp_path / "a.tif", Image(VOXELS[0], grid), grid)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), VOXELS[0])
    assert open_image(tmp_path / "a.tif").grid == grid


def test_a_large_ome_tiff_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itkstream.io.images.files.tiff_writer._CLASSIC_BYTES", VOXELS.nbytes)
    write(tmp_path / "a.tif", Image(VOXELS, GRID))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
        np.testing.assert_array_equal(file.asarray(), VOXELS)


def test_what_tiff_does_not_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"OME-TIFF holds int8, .* got uint64: choose one"):
        write(tmp_path / "a.tif", Image(VOXELS.astype("u8"), GRID))
    turn = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
    turned = Grid(GRID.shape, GRID.spacing, direction=turn, axes=GRID.axes)
    for name, said in (("a.tif", "TIFF cannot say that a grid is turned"), ("a.n5", "rotated")):
        with pytest.raises(InputError, match=said):
            write(tmp_path / name, Image(VOXELS, turned), turned)
    assert not list(tmp_path.iterdir())
    moved = Grid(GRID.shape, GRID.spacing, (3.0, 0.0, 0.0), axes=GRID.axes)
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "a.tif", Image(VOXELS, moved), moved)
    assert "TIFF has no word for the place of the first voxel, (3.0, 0.0, 0.0) µm" in caplog.text


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (3.0, -1.0, 7.0)])
def test_n5_holds_the_image_and_its_levels(tmp_path: Path, origin: tuple[float, ...]) -> None:
    grid = Grid(GRID.shape, GRID.spacing, origin, axes=GRID.axes)
    write(tmp_path / "a.n5", Image(VOXELS, grid), grid)
    stored = {"driver": "n5", "kvstore": {"driver": "file", "path": str(tmp_path / "a.n5/s0")}}
    found = tensorstore.open(stored).result()[...].read().result()
    np.testing.assert_array_equal(found, VOXELS.T)
    again = open_image(tmp_path / "a.n5")
    assert again.grid.axes == ("x", "y", "z")
    np.testing.assert_allclose(again.grid.reorder("zyx").matrix, grid.matrix)
    np.testing.assert_array_equal(again.read(), VOXELS.T)
    # The same levels as of an OME-Zarr.
    write(tmp_path / "a.ome.zarr", Image(VOXELS, grid), grid)
    zarr = open_series(tmp_path / "a.ome.zarr", "level")
    n5 = [level.reorder("zyx") for level in open_series(tmp_path / "a.n5", "level")]
    assert len(zarr) == len(n5) > 1
    # Only y is as fine as that it shrinks.
    about = json.loads((tmp_path / "a.n5/s1/attributes.json").read_text())
    assert about["downsamplingFactors"] == [1, 2, 1]
    assert about["pixelResolution"] == {"dimensions": [0.5, 0.25, 2.0], "unit": "um"}
    for one, other in zip(zarr, n5, strict=True):
        np.testing.assert_array_equal(one.read(), other.read())
        np.testing.assert_allclose(one.grid.matrix, other.grid.matrix)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.n5", "a.ome.zarr"]


def test_what_n5_does_not_hold(tmp_path: Path) -> None:
    image = Image(VOXELS, GRID)
    with pytest.raises(InputError, match="would hold one image, and 2 channels"):
        write(tmp_path / "a.n5", Series((image, image), (("c", 2),)))
    with pytest.raises(InputError, match="N5 holds uint8"):
        write(tmp_path / "a.n5", Image(VOXELS > 0, GRID))
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.n5").mkdir()
    (tmp_path / "b.n5/attributes.json").write_text("{}")
    with pytest.raises(ExistingOutputError, match="never replaced"):
        write(tmp_path / "b.n5", image, overwrite=True)


@pytest.mark.parametrize("name", ["a.png", "a.tif.zip", "a", "a.zarr.n6", "a.jpg", "a.ome"])
def test_other_endings_are_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.ome\.zarr, \.zarr\), N5 \(\.n5\), OME-TIFF"):
        check_resampled_output(tmp_path / name, overwrite=False)


@pytest.mark.parametrize("name", ["o.ome.tif", "o.n5"])
def test_a_broken_run_leaves_nothing_in_place_and_goes_on(tmp_path: Path, name: str) -> None:
    create_ome_zarr(tmp_path / "m.ome.zarr", GRID, np.uint16, chunks=(5, 128, 128))[:] = VOXELS
    chunk = tmp_path / "m.ome.zarr/0/c/0/1/1"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-4])
    with pytest.raises(BlockErrors, match="run the same again to compute only these"):
        write(tmp_path / name, open_image(tmp_path / "m.ome.zarr"))
    assert not (tmp_path / name).exists()
    chunk.write_bytes(good)
    write(tmp_path / name, open_image(tmp_path / "m.ome.zarr"))
    np.testing.assert_array_equal(open_image(tmp_path / name).reorder("zyx").read(), VOXELS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.ome.zarr", name]


def test_an_ome_tiff_is_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name / "a.tif", Image(VOXELS, GRID, channel="DAPI"))
    first, second = ((tmp_path / name / "a.tif").read_bytes() for name in ("first", "second"))
    assert first == second


def test_large_planes_are_cut_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((3, 700, 520), (2.0, 1.0, 1.0), axes=("z", "y", "x"))
    values = np.random.default_rng(5).integers(0, 9999, grid.shape).astype(np.uint16)
    write(tmp_path / "first" / "a.tif", Image(values, grid), grid)
    monkeypatch.setattr("itkstream.io.images.files.tiff_writer._SLAB_BYTES", 1)
    write(tmp_path / "second" / "a.tif", Image(values, grid), grid)
    first, second = ((tmp_path / name / "a.tif").read_bytes() for name in ("first", "second"))
    assert first == second
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "second" / "a.tif"), values)


def test_an_ome_tiff_is_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", Image(VOXELS, GRID))
    with pytest.raises(ExistingOutputError):
        write(tmp_path / "a.tif", Image(VOXELS + 1, GRID))
    write(tmp_path / "a.tif", Image(VOXELS + 1, GRID), overwrite=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), VOXELS + 1)
