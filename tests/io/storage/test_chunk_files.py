"""Files of blocks: the checksum of what was written is the checksum of what is there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from itkstream.errors import InputError, OutputError
from itkstream.io.storage.chunk_files import (
    ChunkFiles,
    location_of,
    remove_partial_files,
    writing_to,
)
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import written_codecs

BLOCK = np.arange(8 * 6, dtype=np.uint16).reshape(8, 6) + 1
REGION = (slice(8, 16), slice(6, 12))
LAYOUTS: dict[str, dict[str, Any]] = {
    "zarr 3": {"chunks": (4, 3), "compressors": written_codecs()},
    "zarr 2": {"chunks": (4, 3), "zarr_format": 2},
    "shards": {"chunks": (4, 3), "shards": (8, 6)},
}


@pytest.fixture(params=LAYOUTS)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> ChunkFiles:
    layout = LAYOUTS[request.param]
    array = zarr.create_array(str(tmp_path / "g" / "a"), shape=(20, 14), dtype=np.uint16, **layout)
    return pickle.loads(pickle.dumps(ChunkFiles(location_of(array))))


def test_sums_of_what_was_written_are_those_of_the_files(files: ChunkFiles) -> None:
    sums = files.write(REGION, BLOCK)
    assert len(sums) == len(files.names(REGION)) == (1 if files.array.shards else 4)
    assert None not in sums
    assert files.found(REGION) == sums
    # As another reader sees it.
    np.testing.assert_array_equal(zarr.open_array(files.location.store())[REGION], BLOCK)
    assert files.write(REGION, BLOCK) == sums


def test_every_damage_changes_the_sums(files: ChunkFiles) -> None:
    sums = files.write(REGION, BLOCK)
    file = files.location.child(files.names(REGION)[0])
    good = file.read_bytes()
    for bad in (good[:-1], b"", good + b"\0", bytes([good[0] ^ 1]) + good[1:]):
        file.write_bytes(bad)
        assert files.found(REGION) != sums
    file.write_bytes(good)
    assert files.found(REGION) == sums
    files.remove(REGION)
    assert files.found(REGION) == [None] * len(sums)


def test_fill_values_have_no_file(files: ChunkFiles) -> None:
    half = BLOCK.copy()
    half[:, :3] = 0
    files.write(REGION, BLOCK)
    sums = files.write(REGION, half)
    assert files.found(REGION) == sums
    if not files.array.shards:
        assert [s is None for s in sums] == [True, False, True, False]
    assert files.write(REGION, half * 0) == [None] * len(sums)
    assert files.found(REGION) == [None] * len(sums)


def test_the_last_block_sticks_out(files: ChunkFiles) -> None:
    region = (slice(16, 20), slice(12, 14))
    sums = files.write(region, BLOCK[:4, :2])
    assert files.found(region) == sums
    np.testing.assert_array_equal(files.array[region], BLOCK[:4, :2])


def test_where_an_array_lies(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "g.zarr"))
    inner = group.create_array("0", shape=(4,), dtype=np.uint8)
    assert location_of(inner) == Location.parse(tmp_path / "g.zarr" / "0")
    with pytest.raises(InputError, match="on a disk or in an object store"):
        location_of(zarr.create_array(MemoryStore(), shape=(4,), dtype=np.uint8))


def test_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    for name in ("c/0/0.0123abcd.partial", "c/0/0", "zarr.json"):
        Location.parse(tmp_path / "a").child(name).write_bytes(b"x")
    remove_partial_files(Location.parse(tmp_path / "a"))
    assert [p.name for p in sorted((tmp_path / "a").rglob("*")) if p.is_file()] == [
        "0",
        "zarr.json",
    ]


def test_a_refusal_to_write_says_where(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "not" / "there")
    with pytest.raises(OutputError, match=r"there cannot be written: .*denied"), writing_to(place):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(OutputError, match=r"full \(\d.* MB free, No space"), writing_to(place):
        raise OSError(28, "No space left on device")
