"""What is said of an image is what its opening takes, and gives the same image again."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tensorstore
import tifffile
import zarr

from itkstream import ImageOptions, open_image
from itkstream.errors import InputError, UnknownSpacingError

VOXELS = np.random.default_rng(0).integers(0, 99, (3, 2, 7, 6, 5)).astype(np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    zarr.create_array(str(tmp_path / "a.zarr"), data=VOXELS, dimension_names=tuple("tczyx"))
    return tmp_path / "a.zarr"


def test_opens_what_is_said(path: Path) -> None:
    said = ImageOptions((2, 0.5, 0.5), "nm", "tczyx", channel=1, time=2)
    image = said.open(path)
    np.testing.assert_array_equal(image.read(), VOXELS[2, 1])
    assert (image.spacing, image.grid.unit) == ((2, 0.5, 0.5), "nanometer")
    by_keywords = open_image(
        path, voxel_spacing=(2, 0.5, 0.5), unit="nm", axes="tczyx", channel=1, time=2
    )
    assert by_keywords.grid == image.grid
    assert by_keywords.recipe == image.recipe


def test_an_image_knows_how_it_was_opened(path: Path) -> None:
    image = open_image(path, axes="tczyx", voxel_spacing=np.array([2, 1, 1]), channel=0, time=1)
    recipe = json.loads(json.dumps(image.recipe))
    assert recipe == {
        "path": str(path), "channel": 0, "time": 1, "voxel_spacing": [2, 1, 1],
        "axes": ["t", "c", "z", "y", "x"],
    }  # fmt: skip
    again = open_image(**recipe)
    assert again.grid == image.grid
    np.testing.assert_array_equal(again.read(), image.read())
    sent = pickle.loads(pickle.dumps(image))
    assert sent.reorder("xyz").in_unit("nanometer").recipe == image.recipe
    # A part of an image is none that a file holds.
    assert image[1:].recipe == {}


def test_numbers_of_numpy_are_numbers() -> None:
    said = ImageOptions(spacing=np.array([2, 1, 1]), channel=np.int64(1))  # type: ignore[arg-type]
    assert said == ImageOptions(spacing=(2.0, 1.0, 1.0), channel=1)
    assert type(said.channel) is int


def test_a_file_without_spacing_says_what_to_say(path: Path) -> None:
    with pytest.raises(UnknownSpacingError, match=r"voxel_spacing= \(--spacing\), one number"):
        open_image(path, axes="tczyx", channel=0)


@pytest.mark.parametrize("spacing", [0, -1, np.nan, np.inf, (), "1", (1, "1"), True])
def test_spacings_are_positive_numbers(spacing: object) -> None:
    with pytest.raises(InputError, match="spacing must be a positive number"):
        ImageOptions(spacing=spacing)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["channel", "time", "level"])
@pytest.mark.parametrize("value", [-1, 1.5, " ", True])
def test_places_are_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name} must be (a name, or )?a whole number"):
        ImageOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["time", "level"])
def test_channels_alone_have_names(name: str) -> None:
    assert ImageOptions(channel="DAPI").channel == "DAPI"
    with pytest.raises(InputError, match=f"{name} must be a whole number"):
        ImageOptions(**{name: "DAPI"})  # type: ignore[arg-type]


NM = {"PhysicalSizeX": 300, "PhysicalSizeY": 300} | {f"PhysicalSize{a}Unit": "nm" for a in "XY"}


def ome_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.ome.tif", VOXELS[0, 0], metadata={"axes": "ZYX", **NM})
    return folder / "a.ome.tif"


def imagej(folder: Path) -> Path:
    about = {"axes": "ZYX", "unit": "nm"}
    ratio = (1 / 300, 1 / 300)
    tifffile.imwrite(folder / "a.tif", VOXELS[0, 0], imagej=True, resolution=ratio, metadata=about)
    return folder / "a.tif"


def ome_zarr(folder: Path) -> Path:
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    about = {"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}
    group = zarr.open_group(str(folder / "a.zarr"), mode="w", zarr_format=2)
    group.create_array("0", data=VOXELS[0, 0])
    group.attrs["multiscales"] = [about]
    return folder / "a.zarr"


def plain_zarr(folder: Path) -> Path:
    about = {"units": ["nm"] * 3}
    zarr.create_array(str(folder / "a.zarr"), data=VOXELS[0, 0], attributes=about)
    return folder / "a.zarr"


def n5(folder: Path) -> Path:
    array = tensorstore.open(
        {
            "driver": "n5",
            "kvstore": {"driver": "file", "path": str(folder / "a.n5/s0")},
            "metadata": {
                "dimensions": VOXELS.shape[:-4:-1],
                "blockSize": [5, 6, 7],
                "dataType": "uint8",
                "compression": {"type": "gzip"},
            },
            "create": True,
        }
    ).result()
    array[...].write(VOXELS[0, 0].T).result()
    file = folder / "a.n5/s0/attributes.json"
    axes = {"axes": ["x", "y", "z"], "units": ["nm"] * 3}
    file.write_text(json.dumps({**json.loads(file.read_text()), **axes}))
    return folder / "a.n5/s0"


def metaimage(folder: Path) -> Path:
    keys = "NDims = 3", "DimSize = 5 6 7", "DistanceUnits = nm", "ElementType = MET_UCHAR"
    head = "\n".join((*keys, "ElementDataFile = LOCAL\n")).encode()
    (folder / "a.mha").write_bytes(head + VOXELS[0, 0].tobytes())
    return folder / "a.mha"


@pytest.mark.parametrize("write", [ome_tiff, imagej, ome_zarr, plain_zarr, n5, metaimage])
def test_the_unit_of_a_file_is_that_of_a_spacing_stated_by_hand(tmp_path: Path, write) -> None:
    """What lacks a spacing may state a unit all the same."""
    path = write(tmp_path)
    with pytest.raises(UnknownSpacingError):
        open_image(path)
    image = open_image(path, voxel_spacing=300)
    assert (image.spacing, image.grid.unit) == ((300, 300, 300), "nanometer")
    np.testing.assert_array_equal(image.reorder("zyx").read(), VOXELS[0, 0])
    assert open_image(path, voxel_spacing=3, unit="um").grid.unit == "micrometer"


@pytest.mark.parametrize(("code", "unit"), [(1, "meter"), (2, "millimeter"), (3, "micrometer")])
def test_a_spacing_stated_for_nifti_is_in_its_own_unit(tmp_path: Path, code, unit) -> None:
    """ITK converts the numbers of the file, and not those that are stated by hand."""
    path = tmp_path / "a.nii"
    written = sitk.GetImageFromArray(VOXELS[0, 0])
    written.SetOrigin((8.0, 0.0, 4.0))
    sitk.WriteImage(written, str(path))
    raw = bytearray(path.read_bytes())
    raw[123] = raw[123] & ~7 | code
    path.write_bytes(raw)
    image = open_image(path, voxel_spacing=(2, 0.5, 0.5))
    assert (image.spacing, image.grid.unit) == ((2, 0.5, 0.5), unit)
    np.testing.assert_allclose(image.grid.origin, (4, 0, 8))


def test_a_scale_that_cannot_be_is_shown(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path)
    about = json.loads((path / ".zattrs").read_text())
    steps = [{"type": "scale", "scale": [2, -0.5, 0.5]}]
    about["multiscales"][0]["datasets"][0]["coordinateTransformations"] = steps
    (path / ".zattrs").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"scale must be positive numbers; got \[2.0, -0.5, 0.5\]"):
        open_image(path)


def test_an_axis_that_is_not_understood_can_be_named(path: Path) -> None:
    zarr.create_array(
        str(path.with_name("b.zarr")),
        data=VOXELS[0],
        dimension_names=(None, "z", "y", "x"),
        attributes={"spacing": [2, 1, 1]},
    )
    with pytest.raises(InputError, match=r"only x, y, z, c and t are understood: pass axes="):
        open_image(path.with_name("b.zarr"))
    image = open_image(path.with_name("b.zarr"), axes="czyx", channel=1)
    np.testing.assert_array_equal(image.read(), VOXELS[0, 1])
