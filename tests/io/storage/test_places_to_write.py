"""Places that results cannot have: what is in the way is named before any work is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import AccessError, InputError, OutputError
from itkstream.geometry import AffineTransform, DisplacementField, Grid, Image
from itkstream.io import open_image
from itkstream.io.images.files.itk_images import write_itk
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_file, claim_folder, claim_store, claim_whole_store
from itkstream.io.transforms.files import check_transform_output, read_transform, write_transform

AXES = ("z", "y", "x")
GRID = Grid((6, 5, 4), (1.0, 1.0, 1.0), axes=AXES)
FIELD = DisplacementField(np.ones((6, 5, 4, 3), np.float32), GRID)
AFFINE = AffineTransform(np.eye(4), AXES)
CLAIMS: dict[str, Callable[[Path], Any]] = {
    "file.csv": lambda place: claim_file(place, True),
    "folder": lambda place: claim_folder(place, "proof", True),
    "store.zarr": lambda place: claim_store(place, True),
    "whole.zarr": lambda place: claim_whole_store(place, True),
    "transform.h5": lambda place: check_transform_output(place, True),
}
TRANSFORMS = ("a.tfm", "a.mat", "a.h5", "f.h5", "f.nrrd", "f.mha", "f.nii.gz", "f.ome.zarr")


def written(place: Path) -> None:
    write_transform(place, FIELD if place.name[0] == "f" else AFFINE, overwrite=True)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_file_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes").write_text("kept")
    for place in (tmp_path / "notes" / name, tmp_path / "notes/a/b" / name):
        with pytest.raises(InputError, match="notes is a file, so there is no room for"):
            CLAIMS[name](place)
    assert (tmp_path / "notes").read_text() == "kept"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_folder_that_may_not_be_written(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is root may write everywhere, so that the system's answer is replaced."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(AccessError, match="nothing may be made in"):
        CLAIMS[name](tmp_path / "new" / name)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_folders_on_the_way_are_made(tmp_path: Path, name: str) -> None:
    written(tmp_path / "a/b" / name)
    assert read_transform(tmp_path / "a/b" / name).ndim == 3
    assert os.listdir(tmp_path / "a/b") == [name]


@pytest.mark.parametrize("ending", ["nrrd", "nii.gz"])
def test_folders_of_images_too(tmp_path: Path, ending: str) -> None:
    image = Image(np.arange(120, dtype=np.uint8).reshape(6, 5, 4), GRID)
    write_itk(tmp_path / f"a/b.{ending}", image)
    np.testing.assert_array_equal(open_image(tmp_path / f"a/b.{ending}").read(), image.read())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_the_system_refuses_is_one_error(tmp_path: Path, name: str) -> None:
    """A name may have 255 bytes; that of what is being written is longer."""
    place = tmp_path / f"{name[0]}{'o' * 230}{name[1:]}"
    with pytest.raises(OutputError, match=r"oo[\w.]+ cannot be written: (ITK says: )?\S"):
        written(place)
    assert not list(tmp_path.iterdir())


def test_what_itk_cannot_write_is_told_without_its_own_text(tmp_path: Path) -> None:
    expected = pytest.raises(OutputError, match=r"a\.odd cannot be written: ITK says")
    with expected as found, claim_file(tmp_path / "a.odd", False) as partial:
        sitk.WriteImage(sitk.Image(4, 4, sitk.sitkUInt8), str(partial))
    assert "Exception thrown" not in str(found.value)
    assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["file:{}", "file://localhost{}", "FILE://{}", "file:////{}"])
def test_ways_to_write_the_url_of_a_file(tmp_path: Path, text: str) -> None:
    assert Location.parse(text.format(tmp_path / "a.nrrd")) == Location(str(tmp_path / "a.nrrd"))
    assert Location.parse("file:notes.txt") == Location(str(Path("file:notes.txt").resolve()))


def test_a_link_on_the_way_of_a_url_is_an_input_too(tmp_path: Path) -> None:
    """What is reached by a link in a folder would be lost with that folder."""
    (tmp_path / "data.nrrd").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/image.nrrd").symlink_to(tmp_path / "data.nrrd")
    for text in ("{}", "file://{}", "file:{}", "file://localhost{}"):
        with pytest.raises(InputError, match="choose another output"):
            check_apart(tmp_path / "run", text.format(tmp_path / "run/image.nrrd"))


def test_paths_that_the_system_cannot_follow(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("loop/a.nrrd", "o" * 300 + ".nrrd", "a\0.nrrd"):
        with pytest.raises(InputError, match=r"nrrd' is no path that can be followed"):
            Location.parse(tmp_path / name)
