"""The channel that is meant: by number, by name, or the only one named after a stain of nuclei."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from itkstream.errors import InputError, NoSuchPartError, UnstatedChannelError
from itkstream.io import open_image, open_series

VOXELS = np.random.default_rng(1).integers(0, 999, (3, 4, 16, 32)).astype(np.uint16)
AXES = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space"} for a in "zyx")]


def ome_zarr(version: str) -> Callable[[Path, list[str | None]], Path]:
    def write(folder: Path, names: list[str | None]) -> Path:
        place = folder / "a.ome.zarr"
        group = zarr.open_group(str(place), mode="w", zarr_format=2 if version == "0.4" else 3)
        group.create_array("0", data=VOXELS[: len(names)])
        scale = {"type": "scale", "scale": [1, 2, 1, 1]}
        level = {"path": "0", "coordinateTransformations": [scale]}
        about = {
            "multiscales": [{"version": version, "axes": AXES, "datasets": [level]}],
            "omero": {"channels": [{} if name is None else {"label": name} for name in names]},
        }
        group.attrs.update(about if version == "0.4" else {"ome": {"version": version, **about}})
        return place

    return write


def ome_tiff(folder: Path, names: list[str | None]) -> Path:
    about = {"axes": "CZYX", **{f"PhysicalSize{a}": 1.0 for a in "XYZ"}}
    if any(names):
        about["Channel"] = {"Name": [name or "" for name in names]}
    tifffile.imwrite(folder / "a.ome.tif", VOXELS[: len(names)], metadata=about)
    return folder / "a.ome.tif"


WRITERS = {"0.4": ome_zarr("0.4"), "0.5": ome_zarr("0.5"), "TIFF": ome_tiff}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    return lambda *names: WRITERS[request.param](tmp_path, list(names))


def test_channels_have_names(write: Callable[..., Path]) -> None:
    path = write("GFP", "Lamin", "gfp")
    for wanted, number in (("GFP", 0), ("gfp", 2), (" lamin", 1), (2, 2)):
        image = open_image(path, channel=wanted)
        np.testing.assert_array_equal(image.read(), VOXELS[number])
        assert image.recipe["channel"] == number
        assert image.channel == ("GFP", "Lamin", "gfp")[number]
        np.testing.assert_array_equal(open_image(**image.recipe).read(), VOXELS[number])
    with pytest.raises(InputError, match=r"2 channels 'Gfp': pass channel=, one of .* 0, 2"):
        open_image(path, channel="Gfp")
    with pytest.raises(NoSuchPartError, match="'RFP'; it has 0 'GFP', 1 'Lamin', 2 'gfp'"):
        open_image(path, channel="RFP")
    with pytest.raises(NoSuchPartError, match="no channel 3; it has 3, counted from 0"):
        open_image(path, channel=3)


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (("GFP", "DAPI"), 1),
        (("Hoechst 33342", "GFP"), 0),
        (("405-dapi_1", "561", "640"), 0),
        (("spots", "DRAQ5"), 1),
        ((None, "Nuclei"), 1),
    ],
)
def test_a_single_stain_of_nuclei_is_plain(
    write: Callable[..., Path], names: tuple[str | None, ...], number: int
) -> None:
    image = open_image(write(*names))
    np.testing.assert_array_equal(image.read(), VOXELS[number])
    assert image.recipe["channel"] == number


@pytest.mark.parametrize(
    "names", [("DAPI", "DAPI mask"), ("GFP", "nuclear GFP"), ("H2B", "dapiX"), (None, None)]
)
def test_nothing_else_is(write: Callable[..., Path], names: tuple[str | None, ...]) -> None:
    path = write(*names)
    listed = ", ".join(f"{k} {name!r}" for k, name in enumerate(names) if name)
    said = listed or r"0, 1 \(without names\)"
    with pytest.raises(UnstatedChannelError, match=f"2 channels, and nothing .*: {said}; pass"):
        open_image(path)
    with pytest.raises(UnstatedChannelError):
        open_series(path, "level")
    assert [image.recipe["channel"] for image in open_series(path, "channel")] == [0, 1]


def test_the_only_channel_needs_no_word(write: Callable[..., Path]) -> None:
    path = write("GFP")
    image = open_image(path)
    np.testing.assert_array_equal(image.read(), VOXELS[0])
    # Said or not, it is the same image.
    assert image.recipe == open_image(path, channel="GFP").recipe == {"path": str(path)}
    assert open_image(path, channel=0).recipe == image.recipe
    with pytest.raises(NoSuchPartError, match="no channel 'DAPI'"):
        open_image(path, channel="DAPI")


def test_names_that_do_not_count_the_channels_are_none(tmp_path: Path) -> None:
    """OME-XML names a coloured channel once; its colours are three."""
    about = {"axes": "ZYXS", **{f"PhysicalSize{a}": 1.0 for a in "XYZ"}}
    about["Channel"] = {"Name": "DAPI"}
    colours = np.moveaxis(VOXELS, 0, -1)
    tifffile.imwrite(tmp_path / "a.ome.tif", colours, photometric="rgb", metadata=about)
    with pytest.raises(UnstatedChannelError, match=r"0, 1, 2 \(without names\)"):
        open_image(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(open_image(tmp_path / "a.ome.tif", channel=1).read(), VOXELS[1])


def test_names_in_damaged_metadata_are_none(tmp_path: Path) -> None:
    path = WRITERS["0.4"](tmp_path, ["DAPI", "GFP"])
    group = zarr.open_group(str(path), mode="r+")
    for damaged in (7, {"channels": 7}, {"channels": [7, {"label": 7}]}):
        group.attrs["omero"] = damaged
        with pytest.raises(UnstatedChannelError, match="without names"):
            open_image(path)
