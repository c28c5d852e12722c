"""Rounds by their files and in manifests: named, told apart, and refused together."""

from __future__ import annotations

from pathlib import Path

import pytest

from itkstream.errors import InputError, MissingDataError
from itkstream.experiment.rounds.manifest import (
    Manifest,
    Round,
    name_rounds,
    open_rounds,
    read_manifest,
)
from itkstream.io import ImageOptions

NOTHING = ImageOptions()


def names(*paths: str) -> list[str]:
    return [found.name for found in name_rounds(paths, NOTHING)]


def test_rounds_are_called_like_their_files():
    assert names("a/round1.ome.zarr", "b/round 2.ome.tif", "c.nii.gz") == ["round1", "round 2", "c"]
    assert names("fix.n5/lowres", "mov.n5/lowres") == ["fix-lowres", "mov-lowres"]
    assert names("day1/x/raw.tif", "day2/x/raw.tif") == ["day1-x-raw", "day2-x-raw"]
    assert names("s3://bucket/#1.zarr") == ["1"]


@pytest.mark.parametrize("name", ["", "a/b", "a:b", ".hidden", "ends.", "_x", 3])
def test_a_name_that_no_folder_may_have_is_refused(name):
    with pytest.raises(InputError, match="a round is named by letters"):
        Round(name, "a.zarr")


YAML = """
reference: late
rounds:
  - {name: early, path: a.zarr, channel: DAPI, spacing: [2, 0.5, 0.5]}
  - {round: late, path: /there/b.zarr, channel: 3, mask: m.nrrd}
  - {path: s3://bucket/c.zarr, time: 2, level: 1}
"""
CSV = """round;path;channel;spacing;mask;time;level
early;a.zarr;DAPI;2 0.5 0.5;;;
late;/there/b.zarr;3;;m.nrrd;;
;s3://bucket/c.zarr;;;;2;1
"""


@pytest.mark.parametrize(("name", "text"), [("m.yaml", YAML), ("m.csv", CSV)])
def test_both_kinds_of_manifest_say_the_same(tmp_path, name, text):
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    found = read_manifest(tmp_path / name)
    assert found.rounds == (
        Round(
            "early",
            str(tmp_path / "a.zarr"),
            ImageOptions(spacing=(2, 0.5, 0.5), channel="DAPI"),
        ),
        Round("late", "/there/b.zarr", ImageOptions(channel=3), str(tmp_path / "m.nrrd")),
        Round("c", "s3://bucket/c.zarr", ImageOptions(time=2, level=1)),
    )
    assert found.place == (1 if name == "m.yaml" else 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds: 3", "a list"),
        ("[{name: a}]", "round 1: a round needs a path"),
        ("[{path: a, chanel: 2}]", "did you mean 'channel'"),
        ("[{path: a, name: 'x:y'}]", "round 1: a round is named by letters"),
        ("[{path: a, spacing: 1 fish}]", "spacing is a number"),
        ("[3]", "round 1 has name and path"),
        ("a: [", "cannot be read"),
        ("{rounds: [], references: 2}", "did you mean 'reference'"),
    ],
)
def test_a_manifest_at_fault_is_named_with_its_round(tmp_path, text, said):
    file = tmp_path / "m.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        read_manifest(file)
    assert str(file) in str(error.value)


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(MissingDataError, match="no manifest"):
        read_manifest(tmp_path / "m.csv")


A, B = Round("a", "a.zarr"), Round("b", "b.zarr")


@pytest.mark.parametrize(
    ("rounds", "reference", "said"),
    [
        ((A,), 1, "at least two rounds; got 1"),
        ((A, Round("A", "b.zarr")), 1, "one name: A"),
        ((A, Round("b", "a.zarr")), 1, "one image: a.zarr"),
        ((A, B), 3, "one of 2 rounds, counted from 1, or its name; got 3"),
        ((A, B), 0, "got 0"),
        ((A, B), "c", "unknown reference 'c'"),
    ],
)
def test_rounds_that_do_not_go_together(rounds, reference, said):
    with pytest.raises(InputError, match=said):
        Manifest(rounds, reference).check()


def test_a_round_may_be_a_time_point_of_the_same_image():
    Manifest((A, Round("b", "a.zarr", ImageOptions(time=1)))).check()


def test_the_reference_is_a_number_or_a_name():
    assert Manifest((A, B), 2).place == Manifest((A, B), "b").place == Manifest((A, B), "2").place
    assert Manifest((Round("2", "x"), B), "2").place == 0


def test_what_is_wrong_with_several_rounds_is_said_at_once(three_rounds, tmp_path):
    one, two, _ = three_rounds.paths
    given = Manifest(
        (
            Round("one", str(one), ImageOptions(channel="gene1")),
            Round("two", str(two), ImageOptions(channel="gene1")),
            Round("three", str(tmp_path / "none.zarr")),
            Round("four", str(one), mask=str(tmp_path / "none.nrrd")),
        )
    )
    with pytest.raises(InputError) as error:
        open_rounds(given, "DAPI")
    lines = str(error.value).splitlines()
    assert lines[0] == "3 of 4 rounds cannot be registered; nothing was computed"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["two", "three", "four"]
    with pytest.raises(MissingDataError, match=r"^round three: "):
        open_rounds(Manifest((given.rounds[0], given.rounds[2])))


def test_channels_are_known_by_name_and_the_registered_one_by_number(three_rounds):
    first, second = open_rounds(
        Manifest((Round("a", str(three_rounds.paths[0])), Round("b", str(three_rounds.paths[1])))),
        0,
    )
    assert (first.names, second.names) == (("gene1", "DAPI"), ("gene2", "DAPI"))
    assert first.registered == second.registered == 0
    assert Path(first.path).is_absolute()
