"""Finding containers and the datasets inside them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.io import open_image, write_n5
from itkstream.io.images.locate import list_datasets, locate
from itkstream.io.storage.locations import Location
from itkstream.io.units import parse_unit


def dataset(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "attributes.json").write_text(json.dumps({"dimensions": [1, 1, 1]}))


def test_lists_arrays_and_nothing_below_them(tmp_path):
    root = tmp_path / "a.n5"
    dataset(root / "g" / "one")
    dataset(root / "g" / "one" / "0")  # below an array all is chunks
    zarr.create_array(str(tmp_path / "b" / "two"), shape=(1,), dtype="u1")
    zarr.create_array(str(tmp_path / "b" / "three"), shape=(1,), dtype="u1", zarr_format=2)
    assert list_datasets(Location.parse(root)) == ["g/one"]
    assert list_datasets(Location.parse(tmp_path / "b")) == ["three", "two"]
    for k in range(50):
        dataset(root / f"many{k}")
    assert len(list_datasets(Location.parse(root))) == 20


@pytest.mark.parametrize("name", ["a.n5", "plain"])
def test_the_container_is_found_from_within(tmp_path, name):
    write_n5(tmp_path / name, "g/low", np.zeros((2, 2, 2), "u1"), Grid((2, 2, 2), (1, 1, 1)))
    found = locate(tmp_path / name / "g" / "low")
    root = Location.parse(tmp_path / name)
    assert found.format == "n5"
    assert found.location == root / "g/low"
    assert found.root == root  # though the group g has no attributes
    assert found.lineage == (root / "g/low", root / "g", root)


def test_paths_may_be_relative_strings_or_start_at_home(tmp_path, monkeypatch):
    write_n5(tmp_path / "a.n5", "low", np.ones((2, 2, 2), "u1"), Grid((2, 2, 2), (1, 1, 1)))
    monkeypatch.chdir(tmp_path)
    image = open_image("a.n5/low")
    monkeypatch.chdir("/")
    assert image.read().sum() == 8  # an opened image does not depend on the working directory
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert open_image("~/a.n5", dataset="low/").shape == (2, 2, 2)


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.n5").mkdir()
    (tmp_path / "a.n5" / "attributes.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        open_image(tmp_path / "a.n5")


def test_spellings_of_units():
    micro_sign, greek_mu = "\u00b5m", "\u03bcm"
    for text in ("um", micro_sign, greek_mu, "Micron", " micrometer ", "micrometres"):
        assert parse_unit(text) == "micrometer"
    assert parse_unit("NM") == "nanometer"
    for text in ("pixel", "", "second"):
        with pytest.raises(InputError, match="unit="):
            parse_unit(text)
