"""Several channels of one image: named at the door, on the same voxels, and given again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import zarr

from itkstream import ImageOptions
from itkstream.cli.options import Channel
from itkstream.errors import InputError, NoSuchPartError
from itkstream.geometry import Grid, Image, joined_channels
from itkstream.io import open_image, open_series

VOXELS = np.random.default_rng(4).integers(0, 99, (3, 4, 5, 6)).astype("u2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """OME-Zarr of three channels, DAPI, GFP and one without a name."""
    place = tmp_path / "a.zarr"
    group = zarr.create_group(place, zarr_format=2)
    for level in (0, 1):
        group.create_array(str(level), data=VOXELS[:, :: level + 1, :: level + 1, :: level + 1])
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    scales = [[1.0, *(s * 2**level for s in (3.0, 2.0, 1.0))] for level in (0, 1)]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": s}]}
        for k, s in enumerate(scales)
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs["omero"] = {"channels": [{"label": "DAPI"}, {"label": "GFP"}, {}]}
    return place


@pytest.mark.parametrize(
    ("wanted", "numbers", "weights"),
    [
        (["DAPI", "GFP"], [0, 1], [None, None]),
        ([2, "gfp"], [2, 1], [None, None]),
        ([("GFP", 2), ["DAPI", 0.5]], [1, 0], [2.0, 0.5]),
        (["GFP"], [1], [None]),
    ],
)
def test_the_first_leads_and_the_others_lie_on_its_voxels(
    path: Path, wanted: Any, numbers: list[int], weights: list[float | None]
) -> None:
    """Truth: the voxels that were stored; `recipe` is JSON and opens the same again."""
    image = open_image(path, channel=wanted)
    for opened in (image, open_image(**json.loads(json.dumps(image.recipe)))):
        assert [channel.weight for channel in opened.channels] == weights
        for channel, number in zip(opened.channels, numbers, strict=True):
            np.testing.assert_array_equal(channel.read(), VOXELS[number])
            assert channel.grid == open_image(path, channel=number).grid
            assert channel.channel == ("DAPI", "GFP", "")[number]
            assert not channel.others


def test_what_is_done_to_an_image_is_done_to_its_channels(path: Path) -> None:
    image = open_image(path, channel=["GFP", "DAPI"])
    part = image[1:3, ::2].reorder(("x", "y", "z")).in_unit("millimeter")
    for channel, number in zip(part.channels, (1, 0), strict=True):
        np.testing.assert_array_equal(channel.read(), VOXELS[number][1:3, ::2].T)
        assert channel.grid == part.grid
    cut = open_image(path, channel=[0, 2], crop="1:3,:,:")
    np.testing.assert_array_equal(cut.others[0].read(), VOXELS[2][1:3])


def test_levels_have_all_channels(path: Path) -> None:
    levels = open_series(path, "level", channel=["DAPI", "GFP"])
    assert [len(level.channels) for level in levels] == [2, 2]
    np.testing.assert_array_equal(levels[1].others[0].read(), VOXELS[1, ::2, ::2, ::2])
    assert [image.channel for image in open_series(path, "channel")] == ["DAPI", "GFP", ""]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ([], "numbers counted from 0, or names"),
        (["DAPI", ""], "numbers counted from 0, or names"),
        ([-1, 0], "numbers counted from 0, or names"),
        ([("DAPI", 0)], "weight above 0"),
        ([("DAPI", 1, 2)], "weight above 0"),
        ([("DAPI", "much")], "weight above 0"),
        (["DAPI", "DAPI"], "named once"),
        (["DAPI", 0], "named twice"),
    ],
)
def test_lists_that_are_none_are_refused(path: Path, wanted: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_image(path, channel=wanted)


def test_a_channel_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(NoSuchPartError, match="no channel 'RFP'"):
        open_image(path, channel=["DAPI", "RFP"])


def test_channels_of_other_voxels_are_refused() -> None:
    one = Image(np.zeros((4, 5)), Grid((4, 5), (1.0, 1.0)), "one")
    other = Image(np.zeros((4, 5)), Grid((4, 5), (1.0, 2.0)), "other")
    with pytest.raises(InputError, match=r"same voxels.*'one'.*'other'.*resample"):
        joined_channels([one, other])
    with pytest.raises(InputError, match="at least one image"):
        joined_channels([])


def test_options_hold_channels(path: Path) -> None:
    options = ImageOptions(channel=["DAPI", ["GFP", 2]])
    assert options.channel == ("DAPI", ("GFP", 2.0))
    assert [c.weight for c in options.open(path).channels] == [None, 2.0]
    with pytest.raises(InputError, match="weight above 0"):
        ImageOptions(channel=[("DAPI", -1)])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("DAPI", "DAPI"),
        ("3", 3),
        ("DAPI,GFP", ("DAPI", "GFP")),
        ("DAPI:2, 1:0.5", (("DAPI", 2.0), (1, 0.5))),
        # Names of joined rounds hold a colon.
        ("round1:DAPI", "round1:DAPI"),
        ("round1:DAPI,round2:DAPI:3", ("round1:DAPI", ("round2:DAPI", 3.0))),
    ],
)
def test_words_of_the_command_line(text: str, meant: Any) -> None:
    assert Channel().convert(text, None, None) == meant


def test_negative_numbers_are_no_channels() -> None:
    with pytest.raises(click.BadParameter):
        Channel().convert("0,-1", None, None)
