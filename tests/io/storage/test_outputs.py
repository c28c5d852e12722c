"""Whose results may be replaced, and that a file is complete or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from itkstream.errors import ExistingOutputError
from itkstream.io.storage.outputs import claim_file, claim_folder, claim_store, write_text


def make(folder: Path, kind: str) -> None:
    if kind == "array":
        zarr.create_array(str(folder), data=np.ones((2, 2)), chunks=(2, 2))
    elif kind == "array 2":
        zarr.create_array(str(folder), data=np.ones((2, 2)), chunks=(2, 2), zarr_format=2)
    elif kind == "ome":
        zarr.create_group(str(folder), attributes={"ome": {"version": "0.5"}})
    elif kind == "group of images":
        zarr.create_group(str(folder)).create_group("mine")
    elif kind == "folder":
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    elif kind == "file":
        folder.write_text("mine")
    elif kind == "empty":
        folder.mkdir()


@pytest.mark.parametrize("kind", ["array", "array 2", "ome"])
def test_a_store_is_replaced_only_when_asked(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "s.zarr"
    make(target, kind)
    with pytest.raises(ExistingOutputError, match="overwrite=True"):
        claim_store(target, False)
    assert any(target.iterdir())
    claim_store(target, True)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["group of images", "folder", "file"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_other_things_are_never_replaced(tmp_path: Path, kind: str, overwrite: bool) -> None:
    target = tmp_path / "s.zarr"
    make(target, kind)
    with pytest.raises(ExistingOutputError, match="never replaced"):
        claim_store(target, overwrite)
    assert target.exists()
    with pytest.raises(ExistingOutputError, match="never replaced"):
        claim_folder(target, "registration.json", overwrite)
    assert target.exists()


@pytest.mark.parametrize("kind", ["nothing", "empty"])
def test_an_empty_place_is_free(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "deep" / "s"
    target.parent.mkdir()
    make(target, kind)
    claim_store(target, False)
    with claim_folder(target, "registration.json", False) as folder:
        (folder / "registration.json").write_text("{}")
        assert folder.parent == target.parent
    assert [path.name for path in target.iterdir()] == ["registration.json"]


def test_an_earlier_run_is_replaced_only_when_asked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "registration.json").write_text("{}")
    (run / "old.txt").write_text("old")
    with pytest.raises(ExistingOutputError, match="earlier run; choose another folder"):
        claim_folder(run, "registration.json", False)
    assert (run / "old.txt").exists()
    with pytest.raises(ValueError, match="no"), claim_folder(run, "registration.json", True):
        raise ValueError("no")
    assert (run / "old.txt").exists()
    with claim_folder(run, "registration.json", True) as folder:
        assert not list(folder.iterdir())
        assert (run / "old.txt").exists()
    assert not list(run.iterdir())
    assert list(tmp_path.iterdir()) == [run]


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with claim_file(target, False) as partial:
        partial.write_text("half")
        assert not target.exists()
        assert partial.suffix == ".txt"
    assert target.read_text() == "half"
    with pytest.raises(ExistingOutputError, match="overwrite=True"), claim_file(target, False):
        pass
    with pytest.raises(FileNotFoundError), claim_file(target, True) as partial:
        partial.with_name("gone").rename(partial)
    assert target.read_text() == "half"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    for text in ("µm", "new"):
        write_text(tmp_path / "r.json", text)
        assert (tmp_path / "r.json").read_text(encoding="utf-8") == text
