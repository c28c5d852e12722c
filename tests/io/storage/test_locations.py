"""Paths and URLs: the same behaviour on disk, in memory and in S3."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import zarr

from itkstream.errors import AccessError, InputError, MissingDataError
from itkstream.io.storage.disk import LEDGER_FOLDER
from itkstream.io.storage.locations import Location


@pytest.fixture(params=["disk", "memory", "s3"])
def place(request, tmp_path):
    """Where nothing is yet, on every kind of store."""
    if request.param == "disk":
        return Location.parse(tmp_path / "place")
    if request.param == "memory":
        return Location.parse(f"memory://{uuid4().hex}/place")
    return Location.parse(request.getfixturevalue("bucket")) / "place"


def test_files_and_folders(place):
    assert not place.exists()
    assert place.is_vacant()
    assert place.names() == []
    place.child("x", "y.bin").write_bytes(b"one")
    place.child("xy.bin").write_bytes(b"two")
    assert place.names() == ["x", "xy.bin"]
    assert (place / "x").names() == ["y.bin"]
    assert (place / "x/y.bin").read_bytes() == b"one"
    assert not place.is_vacant()
    folder, file = place / "x", place / "xy.bin"
    assert (folder.exists(), folder.is_dir(), folder.is_file()) == (True, True, False)
    assert (file.exists(), file.is_dir(), file.is_file()) == (True, False, True)
    assert file.names() == []  # a file holds nothing, though stores list it as its own content
    with pytest.raises(MissingDataError, match="z"):
        place.child("z").read_bytes()


def test_what_another_process_writes_is_seen_at_once(bucket):
    place = Location.parse(bucket) / "run"
    (place / "a").write_bytes(b"x")
    assert place.names() == ["a"]
    other = fsspec.filesystem("s3", skip_instance_cache=True)
    other.pipe_file(f"{place.address}/b", b"x")
    assert place.names() == ["a", "b"]


def test_removing_leaves_neighbours_of_similar_names(place):
    for name in ("run/a", "run/deep/b", "run2/c", "running"):
        place.child(name).write_bytes(b"x")
    (place / "run").remove()
    assert place.names() == ["run2", "running"]
    (place / "running").remove()
    (place / "running").remove()  # nothing there, nothing happens
    assert place.names() == ["run2"]


def test_a_bucket_or_disk_is_never_removed(place):
    (place / "a").write_bytes(b"x")
    with pytest.raises(InputError, match="never removed"):
        (place, *place.parents)[-1].remove()
    assert (place / "a").exists()


def test_the_fingerprint_changes_with_every_file_below(place):
    for name in ("a/0", "a/1"):
        place.child(name).write_bytes(b"1")
    prints = [place.fingerprint()]
    assert place.fingerprint() == prints[0]
    place.child(LEDGER_FOLDER, "notes").write_bytes(b"of a run")
    assert place.fingerprint() == prints[0]
    place.child("a/2").write_bytes(b"1")
    prints.append(place.fingerprint())
    place.child("a/2").write_bytes(b"2")  # of the same size
    prints.append(place.fingerprint())
    place.child("a/0").remove()
    prints.append(place.fingerprint())
    assert len(set(prints)) == 4
    one = place.child("a/1")
    before = one.fingerprint()
    one.write_bytes(b"3")
    assert one.fingerprint() != before
    with pytest.raises(MissingDataError):
        (place / "nothing").fingerprint()


def test_a_file_is_complete_or_not_there(place):
    place.make_folder()
    target = place / "a.txt"
    with target.replacing() as partial:
        partial.write_text("first")
        assert not target.exists()
    with pytest.raises(TypeError), target.replacing() as partial, partial.open("w") as file:
        file.writelines(["half", None])
    assert target.read_bytes() == b"first"
    assert place.names() == ["a.txt"]  # no partial file is left behind


def test_readers_never_see_half_a_file(tmp_path):
    target = Location.parse(tmp_path) / "a.bin"
    contents = [bytes([k]) * 1_000_000 for k in (1, 2)]
    target.write_bytes(contents[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for content in contents:
                target.write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(target.read_bytes() in contents for _ in range(100))
    finally:
        stop.set()
        writer.join()


def test_it_is_a_store_of_zarr_and_pickles(place):
    array = zarr.create_array((place / "z").store(), data=np.arange(6.0), chunks=(4,))
    again = pickle.loads(pickle.dumps(place / "z"))
    assert again == place / "z"
    np.testing.assert_array_equal(zarr.open_array(again.store(), mode="r")[:], np.arange(6.0))
    assert (place / "z").names() == ["c", "zarr.json"]
    assert Location.of_store(array.store) == place / "z"
    assert Location.of_store(zarr.storage.MemoryStore()) is None


def test_addresses():
    assert Location.parse("gcs://b/a//c/").address == "gs://b/a/c"
    assert Location.parse("S3://Bucket/Key") == Location("s3://Bucket/Key")
    assert Location.parse("file:///tmp/../tmp/a").path == Path("/tmp/a").resolve()
    place = Location.parse("s3://b/a/c.zarr")
    assert Location.parse(place) is place
    assert (place.name, place.suffix, str(place)) == ("c.zarr", ".zarr", "s3://b/a/c.zarr")
    assert [str(above) for above in place.parents] == ["s3://b/a", "s3://b"]
    assert place.relative_to(Location("s3://b")) == "a/c.zarr"
    assert place.relative_to(place) == "."
    assert place.is_below(Location("s3://b/a"))
    assert place.is_below(place)
    assert not place.is_below(Location("s3://b/a/c"))
    assert not place.is_below(Location("gs://b/a"))


def test_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert Location.parse("a/b") == Location.parse("~/a/b") == Location.parse(tmp_path / "a/b")
    assert os.fspath(Location.parse("a")) == os.fspath(tmp_path / "a")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("http://host/a.zarr", "not read; known are s3"),
        ("s3://", "expected s3://bucket/name"),
        ("s3://b/../a", "without . and .."),
        (Path("s3://b/a"), "pass it as text"),
    ],
)
def test_other_addresses_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        Location.parse(given)


def test_what_needs_a_file_says_to_copy_it():
    with pytest.raises(InputError, match="copy it to a local disk"):
        os.fspath(Location.parse("s3://b/a.nii"))


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"needs gcsfs.*pip install 'itkstream\[cloud\]'"):
        Location.parse("gs://b/a").exists()


def test_missing_credentials_are_named(bucket, monkeypatch):
    place = Location.parse(bucket) / "a"
    type(place.filesystem).clear_instance_cache()  # it remembers the credentials it once had
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for ask in (place.exists, place.names, place.read_bytes, lambda: place.write_bytes(b"x")):
        with pytest.raises(AccessError, match=r"Unable to locate credentials.*AWS_PROFILE"):
            ask()
    type(place.filesystem).clear_instance_cache()


def test_an_endpoint_that_does_not_answer_is_named(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port of discard: closed
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    place = Location.parse("s3://b/a")
    type(place.filesystem).clear_instance_cache()
    with pytest.raises(AccessError, match="AWS_ENDPOINT_URL"):
        place.read_bytes()
    type(place.filesystem).clear_instance_cache()


def test_a_bucket_that_is_not_there_is_named(s3_server):
    place = Location.parse("s3://nobody-made-this/a")
    assert not place.exists()
    assert place.names() == []
    for ask in (place.is_vacant, place.read_bytes, lambda: place.write_bytes(b"x")):
        with pytest.raises(MissingDataError, match="no bucket"):
            ask()


def test_two_threads_write_one_file(tmp_path):
    """As when a run signs its lock from time to time, and before every note."""
    place = Location.parse(tmp_path / "a.json")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(place.write_bytes, [b"1", b"2"] * 200))
    assert place.read_bytes() in (b"1", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("names", "left"), [((), set()), (("a.json",), {"b.h5"})])
def test_what_killed_writers_left_is_removed(tmp_path, names, left):
    place = Location.parse(tmp_path)
    before = set()
    for name in ("a.json", "b.h5"):
        writing = place.child(name).replacing()
        writing.__enter__().write_bytes(b"half")  # and is killed
        (partial,) = {path.name for path in tmp_path.iterdir()} - before
        before.add(partial)
    (tmp_path / "c.json").write_bytes(b"whole")
    place.remove_partial_files(*names)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"c.json"} | {name for name in before if name.endswith(tuple(left) or " ")}
