"""Runs that are continued: what is there is kept, what is not as it was is computed again."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tensorstore
import zarr

from itkstream.compute.execute import compute, continues, execute, store
from itkstream.compute.ledger import Ledger
from itkstream.compute.lock import Lock
from itkstream.errors import BlockErrors, BusyOutputError, ExistingOutputError
from itkstream.geometry import Grid
from itkstream.io import create_ome_zarr, open_image
from itkstream.io.storage.locations import Location

VALUES = np.arange(20 * 18).reshape(20, 18)
EXPECTED = VALUES * 2 + 1
NINE = [(i, j) for i in range(3) for j in range(3)]


class Doubling:
    """A block function that remembers what it was asked and may fail."""

    def __init__(self, broken: Iterable[tuple[int, ...]] = ()) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.broken = set(broken)

    def __call__(self, block: np.ndarray, block_id: Any = None) -> np.ndarray:
        self.seen.append(block_id)
        if block_id in self.broken:
            raise ValueError(f"no tissue in {block_id}")
        return block * 2 + 1


def lazy(function: Doubling, name: str = "doubled") -> da.Array:
    """The name is what a run is known by: prepare_ functions make it from all inputs."""
    blocks = da.from_array(VALUES, chunks=(8, 6))
    return blocks.map_blocks(function, dtype=VALUES.dtype, meta=VALUES[:0, :0], name=name)


def run(path: Path, broken: Iterable[tuple[int, ...]] = (), **how: Any) -> Doubling:
    function = Doubling(broken)
    written = execute(lazy(function), path, chunks=(4, 6), **how)
    np.testing.assert_array_equal(written[:], EXPECTED)
    return function


def fail(path: Path, *broken: tuple[int, ...]) -> BlockErrors:
    with pytest.raises(BlockErrors) as caught:
        run(path, broken)
    return caught.value


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_a_complete_run_is_not_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "a")
    before, seen = files_of(tmp_path), []
    caplog.set_level(logging.INFO, "itkstream")
    again = run(tmp_path / "a", progress=lambda *counts: seen.append(counts))
    assert again.seen == []
    assert seen == [(9, 9)]
    assert "complete: 9 of 9 blocks are there" in caplog.text
    # Its time stamps are what later steps of a script know it by.
    assert {k: v for k, v in files_of(tmp_path).items() if ".itkstream" not in k} == {
        k: v for k, v in before.items() if ".itkstream" not in k
    }


def test_blocks_that_failed_are_listed_and_computed_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "itkstream")
    error = fail(tmp_path / "a", (1, 1), (2, 0))
    assert [f.index for f in error.failures] == [(1, 1), (2, 0)]
    assert error.failures[0].region == ((8, 16), (6, 12))
    assert str(error).splitlines()[0] == "2 of 9 blocks failed, all others are done"
    assert "the block at voxels 8-15 x 6-11: ValueError: no tissue in (1, 1)" in str(error)
    assert "run the same again to compute only these" in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert Ledger(Location.parse(tmp_path / "a")).failures() == list(error.failures)
    assert "the block at voxels 16-19 x 0-5: ValueError" in caplog.text
    # What is done can be read.
    there = zarr.open_array(str(tmp_path / "a"), mode="r")
    np.testing.assert_array_equal(there[:8], EXPECTED[:8])
    seen: list[tuple[int, int]] = []
    caplog.set_level(logging.INFO, "itkstream")
    again = run(tmp_path / "a", progress=lambda *counts: seen.append(counts))
    assert sorted(again.seen) == [(1, 1), (2, 0)]
    assert seen == [(7, 9), (8, 9), (9, 9)]
    assert "continues: 7 of 9 blocks are there" in caplog.text
    assert Ledger(Location.parse(tmp_path / "a")).failures() == []


def test_of_many_failures_ten_are_shown() -> None:
    array = da.ones(30, chunks=1).map_blocks(lambda b: 1 // 0, dtype=int, meta=np.ones(0, int))
    with pytest.raises(BlockErrors, match=r"30 of 30 blocks failed\n") as caught:
        compute(array)
    assert len(caught.value.failures) == 30
    assert str(caught.value).count("ZeroDivisionError") == 10
    assert "and 20 more" in str(caught.value)
    assert "test_resume.py, line" in str(caught.value)  # no traceback, but where


def test_a_failure_in_memory_does_not_stop_the_others() -> None:
    function = Doubling({(0, 0)})
    with pytest.raises(BlockErrors, match="1 of 9 blocks failed") as caught:
        compute(lazy(function))
    assert len(function.seen) == 9
    assert caught.value.failures[0].index == (0, 0)


def test_blocks_fail_with_the_reason_of_what_they_need(tmp_path: Path) -> None:
    # Of nine blocks, each needs its neighbours: those that touch the broken corner fail.
    around = da.overlap.overlap(lazy(Doubling({(0, 0)})), 1, "none")
    total = around.map_blocks(lambda b: b[:1, :1] * 0 + b.sum(), dtype=int, chunks=((1,) * 3,) * 2)
    with pytest.raises(BlockErrors) as caught:
        execute(total, tmp_path / "a")
    assert [f.index for f in caught.value.failures] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all("no tissue in (0, 0)" in f.reason for f in caught.value.failures)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty"])
def test_damaged_results_are_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "a")
    file = tmp_path / "a" / "c" / "3" / "1"  # the second chunk of block (1, 1)
    good = file.read_bytes()
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": good[:-1], "flip": flipped, "empty": b""}[damage])
    again = run(tmp_path / "a")
    assert again.seen == [(1, 1)]
    assert "the block at voxels 8-15 x 6-11" in caplog.text
    assert "not as it was written" in caplog.text
    assert file.read_bytes() == good


def test_a_damaged_block_that_fails_leaves_nothing_damaged(tmp_path: Path) -> None:
    run(tmp_path / "a")
    file = tmp_path / "a" / "c" / "3" / "1"
    file.write_bytes(b"junk")
    fail(tmp_path / "a", (1, 1))
    assert not file.exists()
    assert run(tmp_path / "a").seen == [(1, 1)]


def test_a_damaged_shard_is_written_anew(tmp_path: Path) -> None:
    # The last one sticks out of the array: Zarr reads what is there to change a part of it.
    layout: dict[str, Any] = {"shape": VALUES.shape, "chunks": (4, 3), "shards": (8, 6)}
    target = zarr.create_array(str(tmp_path / "a"), dtype=VALUES.dtype, **layout)
    store(lazy(Doubling()), target)
    (tmp_path / "a" / "c" / "2" / "2").write_bytes(b"junk")
    function = Doubling()
    store(lazy(function), target)
    assert function.seen == [(2, 2)]
    np.testing.assert_array_equal(target[:], EXPECTED)


def test_every_reader_notices_a_flipped_bit(tmp_path: Path) -> None:
    run(tmp_path / "a")
    file = tmp_path / "a" / "c" / "0" / "0"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(str(tmp_path / "a"), mode="r")[:]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
    with pytest.raises(ValueError, match=r"(?i)crc|checksum|digest"):
        tensorstore.open(spec).result().read().result()


def test_values_somebody_changed_are_computed_again(tmp_path: Path) -> None:
    run(tmp_path / "a")
    zarr.open_array(str(tmp_path / "a"), mode="r+")[17, 17] = 4
    assert run(tmp_path / "a").seen == [(2, 2)]


def test_blocks_of_fill_values_are_known_without_files(tmp_path: Path) -> None:
    array = (da.from_array(VALUES, chunks=(8, 6)) // 200).rechunk((8, 6))
    for _ in range(2):
        np.testing.assert_array_equal(execute(array, tmp_path / "a")[:], VALUES // 200)
    assert not (tmp_path / "a" / "c" / "0").exists()
    # A file that should not be there is noticed too.
    shutil.copytree(tmp_path / "a" / "c" / "2", tmp_path / "a" / "c" / "0")
    np.testing.assert_array_equal(execute(array, tmp_path / "a")[:], VALUES // 200)


def test_another_computation_does_not_take_the_place(tmp_path: Path) -> None:
    run(tmp_path / "a")
    fail(tmp_path / "b", (0, 0))
    before, other = files_of(tmp_path), Doubling()
    complete = "there already, of other inputs, parameters or code"
    with pytest.raises(ExistingOutputError, match=complete):
        execute(lazy(other, "other"), tmp_path / "a", chunks=(4, 6))
    unfinished = r"unfinished run of other inputs, parameters or code \(8 of 9 blocks\)"
    with pytest.raises(ExistingOutputError, match=unfinished):
        execute(lazy(other, "other"), tmp_path / "b", chunks=(4, 6))
    with pytest.raises(ExistingOutputError, match=complete):
        execute(lazy(other), tmp_path / "a", chunks=(8, 6))  # another layout
    assert other.seen == []
    assert files_of(tmp_path) == before
    for name in "ab":
        execute(lazy(other, "other"), tmp_path / name, overwrite=True)
        assert sorted(other.seen) == NINE
        other.seen.clear()


def test_overwriting_replaces_what_is_complete_and_continues_what_is_not(tmp_path: Path) -> None:
    run(tmp_path / "a")
    assert len(run(tmp_path / "a", overwrite=True).seen) == 9
    fail(tmp_path / "b", (0, 0))
    assert run(tmp_path / "b", overwrite=True).seen == [(0, 0)]


def test_an_array_without_notes_is_not_taken_for_a_result(tmp_path: Path) -> None:
    run(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / ".itkstream")
    with pytest.raises(ExistingOutputError, match="overwrite=True"):
        run(tmp_path / "a")
    assert len(run(tmp_path / "a", overwrite=True).seen) == 9


@pytest.mark.parametrize("left", ["lock.json", "header.json", "zarr.json", "half removed"])
def test_a_run_killed_while_it_made_its_array_starts_anew(tmp_path: Path, left: str) -> None:
    fail(tmp_path / "a", (0, 0))
    notes, array = tmp_path / "a" / ".itkstream", tmp_path / "a" / "zarr.json"
    header = notes / "header.json"
    header.write_text(header.read_text().replace('"ready": true', '"ready": false'))
    if left == "half removed":
        array.unlink()
    elif left != "zarr.json":
        shutil.rmtree(tmp_path / "a" / "c")
        array.unlink()
    if left == "lock.json":
        header.rename(notes / left)  # a lock nobody can read
    assert len(run(tmp_path / "a").seen) == 9


def test_metadata_that_are_lost_are_made_anew(tmp_path: Path) -> None:
    run(tmp_path / "a")
    (tmp_path / "a" / "zarr.json").write_text("{")
    assert len(run(tmp_path / "a").seen) == 9


def test_two_runs_do_not_write_to_one_place(tmp_path: Path) -> None:
    run(tmp_path / "a")
    before = files_of(tmp_path)
    ledger = Ledger(Location.parse(tmp_path / "a"))
    lock = Lock(ledger.lock_place, ledger.array)
    with pytest.raises(BusyOutputError, match=f"process {os.getpid()} on"):
        run(tmp_path / "a", overwrite=True)
    lock.release()
    assert files_of(tmp_path) == before


def test_a_block_of_a_run_that_ended_is_not_written(tmp_path: Path) -> None:
    # As a worker that outlives its run would write it, over the result of the next.
    from itkstream.compute.resume import BlockSink
    from itkstream.errors import OutputError
    from itkstream.io.storage.chunk_files import ChunkFiles

    run(tmp_path / "a")
    ledger = Ledger(Location.parse(tmp_path / "a"))
    lock = Lock(ledger.lock_place, ledger.array)
    sink = BlockSink(ChunkFiles(ledger.array), ledger.lock_place, lock.token)
    region = (slice(0, 8), slice(0, 6))
    sink(region, EXPECTED[:8, :6])
    lock.release()
    with pytest.raises(OutputError, match="may not write"):
        sink(region, EXPECTED[:8, :6] + 1)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a"))[:], EXPECTED)


def test_filling_an_image_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    layout: dict[str, Any] = {"chunks": (4, 3), "shards": (8, 6)}
    target = create_ome_zarr(path, Grid(VALUES.shape, (1.0, 1.0)), VALUES.dtype, **layout)
    assert not continues(lazy(Doubling()), path / "0")
    with pytest.raises(BlockErrors):
        store(lazy(Doubling({(1, 0)})), target)
    assert continues(lazy(Doubling()), path / "0")
    assert not continues(lazy(Doubling(), "other"), path / "0")
    assert not continues(lazy(Doubling()), tmp_path / "nowhere")
    function = Doubling()
    store(lazy(function), zarr.open_array(str(path / "0"), mode="r+"))
    assert function.seen == [(1, 0)]
    # The notes are nothing that readers of images see.
    np.testing.assert_array_equal(open_image(path).read(), EXPECTED)
    assert list(zarr.open_group(str(path), mode="r")) == ["0"]
    store(lazy(function, "other"), target)
    assert len(function.seen) == 1 + 9


def test_values_in_memory_can_be_kept_for_the_next_run(tmp_path: Path) -> None:
    with pytest.raises(BlockErrors):
        compute(lazy(Doubling({(2, 2)})), keep=tmp_path / "steps" / "a")
    function = Doubling()
    for _ in range(2):
        found = compute(lazy(function), keep=tmp_path / "steps" / "a")
        np.testing.assert_array_equal(found, EXPECTED)
    assert isinstance(found, np.ndarray)
    assert function.seen == [(2, 2)]


def test_blocks_are_told_by_the_axes_that_the_store_names(tmp_path: Path) -> None:
    array = lazy(Doubling({(1, 1)}))
    target = zarr.create_array(
        str(tmp_path / "a"),
        shape=array.shape,
        dtype=array.dtype,
        chunks=array.chunksize,
        dimension_names=("y", "x"),
    )
    with pytest.raises(BlockErrors, match="the block at y 8-15, x 6-11: ValueError") as caught:
        store(array, target)
    assert Ledger(Location.parse(tmp_path / "a")).failures() == list(caught.value.failures)
    # Of an array with one element a block, the places are those of the blocks in the image.
    placed = caught.value.placed(lambda index: [slice(0, 32), slice(32, 64)], ("z", "x"))
    assert "the block at z 0-31, x 32-63: ValueError" in str(placed)
