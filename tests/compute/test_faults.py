"""Whatever breaks: nothing lost, nothing silently wrong, and the same bits in the end."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import pytest
import tensorstore
import zarr
from fault_runs import EXPECTED, slow_blocks
from numcodecs import Blosc
from scipy.ndimage import uniform_filter
from zarr.codecs import BloscCodec

from itkstream.apply.resampling import prepare_apply_transform
from itkstream.compute.execute import compute, execute
from itkstream.compute.ledger import Ledger
from itkstream.errors import BlockErrors, OutputError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io.images.stores.n5 import N5Array
from itkstream.io.storage.locations import Location
from itkstream.io.storage.stored import StoredArray
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.workers import Resources, session

HERE = Path(__file__).parent
# Far more than any of them takes on an idle machine.
PATIENCE = 120


def start(out: Path, workers: int, seconds: float, **options: Any) -> subprocess.Popen[str]:
    """Run slow blocks until five of them are done."""
    words = [sys.executable, str(HERE / "fault_runs.py"), str(out), str(workers), str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = subprocess.Popen(words, text=True, **pipes, **options)
    assert program.stdout is not None
    assert program.stdout.readline() == "working\n"
    return program


def finish(program: subprocess.Popen[str]) -> str:
    _, errors = program.communicate(timeout=PATIENCE)
    return errors


def continue_and_check(out: Path) -> None:
    """What was begun is finished, by another process, and some of it was there."""
    kept = len(Ledger(Location.parse(out)).done())
    assert 0 < kept < 64
    seen: list[tuple[int, int]] = []
    execute(slow_blocks(0), out, progress=lambda *counts: seen.append(counts))
    assert seen[0] == (kept, 64)
    np.testing.assert_array_equal(zarr.open_array(str(out), mode="r")[:], EXPECTED)


def below(program: subprocess.Popen[str], what: str) -> list[psutil.Process]:
    children = psutil.Process(program.pid).children(recursive=True)
    return [child for child in children if what in " ".join(child.cmdline())]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stops_cleanly_when_asked(tmp_path: Path, stop: signal.Signals) -> None:
    # Blocks under way would take another 15 s; the run must not wait for them.
    program = start(tmp_path / "a", 0, 0.05)
    program.send_signal(stop)
    errors = finish(program)
    assert "Traceback" not in errors
    assert "of 64 blocks are done; run the same again to continue" in errors
    assert program.returncode == 1
    assert not (tmp_path / "a" / ".itkstream" / "lock.json").exists()
    continue_and_check(tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_stops_the_workers_in_order(tmp_path: Path, stop: signal.Signals) -> None:
    # Ctrl-C in a terminal, and what ends a session, reach every process of the group.
    program = start(tmp_path / "a", 2, 0.3, start_new_session=True)
    workers = below(program, "Nanny") + below(program, "distributed.Scheduler")
    began = time.monotonic()
    os.killpg(program.pid, stop)
    errors = finish(program)
    # At once; a scheduler that is gone first would be waited for, 10 s.
    assert time.monotonic() - began < 8
    assert "distributed" not in errors
    assert "of 64 blocks are done; run the same again to continue" in errors
    assert len(workers) == 3
    assert not any(worker.is_running() for worker in workers)
    continue_and_check(tmp_path / "a")


def test_does_not_wait_for_blocks_under_way(tmp_path: Path) -> None:
    code = (
        "import os, sys, time, threading, dask.array as da\n"
        "from itkstream.cluster import execute\n"
        "def slow(block):\n"
        "    if block[0] == 0:\n"
        "        threading.Timer(0.2, os.kill, (os.getpid(), 2)).start()\n"
        "    time.sleep(60)\n"
        "blocks = da.arange(4, chunks=1).map_blocks(slow, dtype=float, meta=da.ones(0)._meta)\n"
        "execute(blocks, sys.argv[1])"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True
    )
    assert "InterruptedRunError: stopped: 0 of 4 blocks" in done.stderr
    assert time.monotonic() - began < 40  # of which most is starting Python


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    program = start(tmp_path / "a", 2, 0.05)
    worker = below(program, "spawn_main")[0]
    worker.kill()
    finish(program)
    assert program.returncode == 0
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a"), mode="r")[:], EXPECTED)


@pytest.mark.slow
def test_the_loss_of_the_scheduler_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    program = start(tmp_path / "a", 2, 0.1)
    workers = below(program, "dask spec")
    below(program, "distributed.Scheduler")[0].kill()
    errors = finish(program)
    assert program.returncode == 1
    assert "WorkersError: the scheduler of the workers is gone" in errors
    assert "run the same again" in errors
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive
    continue_and_check(tmp_path / "a")


@pytest.mark.slow
def test_workers_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    program = start(tmp_path / "a", 2, 0.1)
    workers = below(program, "")
    time.sleep(0.5)  # long enough for the first notes
    program.kill()
    finish(program)
    continue_and_check(tmp_path / "a")
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive


@pytest.mark.nightly
def test_killed_twenty_times_at_random_moments(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (48, 48, 48)).astype(np.uint16)
    zarr.create_array(str(tmp_path / "in"), data=values, chunks=(8, 8, 8))
    for name, kills in (("once", 0), ("killed", 20)):
        words = [str(tmp_path / "in"), str(tmp_path / name), str(kills), "1"]
        done = subprocess.run(
            [sys.executable, str(HERE / "killed_runs.py"), *words],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(" 0")
    # A fast machine may be done before the last kill, but not before the tenth.
    assert kills >= int(done.stdout.split()[0]) >= 10
    once, killed = (
        {
            str(p.relative_to(tmp_path / n)): p.read_bytes()
            for p in (tmp_path / n / "c").rglob("*")
            if p.is_file()
        }
        for n in ("once", "killed")
    )
    assert len(once) == 432
    assert once == killed  # every file, to the last bit; and none left over


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_give_the_same_bits(tmp_path: Path, threads: int) -> None:
    array = warped(source(tmp_path, "zarr3 zstd"))
    expected = compute(array, Resources(threads_per_worker=1))
    found = execute(array, tmp_path / "a", threads_per_worker=threads)
    np.testing.assert_array_equal(found[:], expected)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Resources]:
    """Processes, started once."""
    with session(Resources(n_workers=2)) as workers:
        yield workers


def test_processes_give_the_same_bits(tmp_path: Path, two_workers: Resources) -> None:
    # One process and two, with the kernels of a registration: tests/compute/test_execute.py.
    stored = da.from_array(source(tmp_path, "zarr3 zstd"), chunks=16, name="stored")
    smooth = stored.astype(np.float32).map_overlap(uniform_filter, depth=3, size=5)
    found = execute(smooth, tmp_path / "a", cluster=two_workers.cluster)
    np.testing.assert_array_equal(found[:], compute(smooth))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk whose size can be set."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(size: str) -> Path:
        words = "remount," if os.path.ismount(disk) else ""
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{words}size={size}", "tmpfs", str(disk)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
        return disk

    yield resize
    if os.path.ismount(disk):
        subprocess.run(["umount", "-l", str(disk)], check=True)


NOISE = np.random.default_rng(0).integers(0, 2**16, (64, 64, 64)).astype(np.uint16)


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_a_full_disk(
    small_disk: Callable[[str], Path], where: str, request: pytest.FixtureRequest
) -> None:
    cluster = "local"
    if where == "processes":
        cluster = request.getfixturevalue("two_workers").cluster
    # Noise does not compress: half a megabyte of it does not fit, and some blocks do.
    array = da.from_array(NOISE, chunks=16)
    out = small_disk("400k") / "a"
    with pytest.raises(OutputError, match=r"disk of .*/a.* is full \(0\.\d MB free, No space"):
        execute(array, out, cluster=cluster)
    assert not list(out.rglob("*.partial"))
    assert not list(out.rglob(".partial-*"))
    kept = len(Ledger(Location.parse(out)).done())
    assert 0 < kept < 64
    small_disk("8m")
    seen: list[tuple[int, int]] = []
    written = execute(array, out, progress=lambda *counts: seen.append(counts))
    assert seen[0] == (kept, 64)
    np.testing.assert_array_equal(written[:], NOISE)


def test_a_disk_that_is_full_from_the_start(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("64k")
    with suppress(OSError), open(disk / "filler", "wb", 0) as filler:
        while True:
            filler.write(bytes(4096))
    with pytest.raises(OutputError, match="is full"):
        execute(da.from_array(NOISE, chunks=16), disk / "a")
    (disk / "filler").unlink()
    small_disk("8m")
    np.testing.assert_array_equal(execute(da.from_array(NOISE, chunks=16), disk / "a")[:], NOISE)


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    # Another way to a full disk, which needs no rights: a quota on the size of a file.
    array = da.from_array(NOISE, chunks=16)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            execute(array, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    np.testing.assert_array_equal(execute(array, tmp_path / "a")[:], NOISE)


def source(folder: Path, kind: str) -> StoredArray:
    """One stored image of 32 x 32 x 32 voxels in chunks of 16."""
    values = np.random.default_rng(0).integers(1, 1000, (32, 32, 32)).astype(np.uint16)
    container, compression = kind.split()
    place = folder / kind.replace(" ", "-")
    if container == "n5":
        metadata = {"dimensions": [32] * 3, "blockSize": [16] * 3, "dataType": "uint16"}
        codec: Any = {"type": compression}
        if compression == "blosc":
            codec |= {"cname": "lz4", "clevel": 5, "shuffle": 1}
        spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(place)}}
        spec |= {"metadata": metadata | {"compression": codec}, "create": True}
        tensorstore.open(spec).result().write(values).result()
        return N5Array.open(Location.parse(place))
    codecs: Any = {"raw": None, "zstd": "auto", "shards": "auto"}
    codecs["blosc"] = BloscCodec(cname="lz4") if container == "zarr3" else Blosc()
    layout: dict[str, Any] = {"chunks": (16,) * 3}
    if compression == "shards":
        layout = {"chunks": (8,) * 3, "shards": (16,) * 3}
    zarr.create_array(
        str(place), data=values, zarr_format=int(container[-1]), compressors=codecs[compression],
        **layout,
    )  # fmt: skip
    return ZarrArray.open(Location.parse(place))


def warped(moving: StoredArray) -> da.Array:
    """Eight blocks."""
    grid = Grid(moving.shape, (1.0,) * 3)
    settings = WarpSettings(interpolator="nearest")
    identity = AffineTransform(np.eye(4))
    return prepare_apply_transform(
        Image(moving, grid), Image(moving, grid), identity, (16,) * 3, settings=settings
    )


KINDS = [f"zarr{v} {c}" for v in (2, 3) for c in ("raw", "zstd", "blosc")]
KINDS += ["zarr3 shards", "n5 raw", "n5 gzip", "n5 zstd", "n5 blosc"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", ["half", "last byte", "all"])
def test_a_chunk_of_the_input_that_is_cut_short(tmp_path: Path, kind: str, cut: str) -> None:
    moving = source(tmp_path, kind)
    place = Path(moving.path)
    expected = moving[:]
    names = {"n5": "1/0/1", "zarr2": "1.0.1", "zarr3": "c/1/0/1"}
    file = place / names[kind.split()[0]]
    good = file.read_bytes()
    file.write_bytes({"half": good[: len(good) // 2], "last byte": good[:-1], "all": b""}[cut])
    array = da.from_array(type(moving).open(Location.parse(place)), chunks=16, name="values")
    with pytest.raises(BlockErrors) as caught:
        execute(array, tmp_path / "out")
    (failure,) = caught.value.failures
    assert failure.index == (1, 0, 1)
    assert str(place) in failure.reason
    assert "cut short" in failure.reason
    # The others are there, and this one once the input is whole again.
    written = zarr.open_array(str(tmp_path / "out"), mode="r")
    np.testing.assert_array_equal(written[:16], expected[:16])
    file.write_bytes(good)
    np.testing.assert_array_equal(execute(array, tmp_path / "out")[:], expected)


@pytest.mark.parametrize("kind", ["zarr2 zstd", "zarr3 blosc", "zarr3 shards", "n5 gzip"])
def test_an_input_that_is_gone_is_not_taken_for_zeros(tmp_path: Path, kind: str) -> None:
    """A disk that is lost, or a folder that is moved, when the array was opened before."""
    moving = source(tmp_path, kind)
    array = warped(moving)
    expected = compute(array)
    place = Path(moving.path)
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(BlockErrors, match="8 of 8 blocks failed") as caught:
        execute(array, tmp_path / "out")
    assert str(place) in caught.value.failures[0].reason
    (tmp_path / "elsewhere").rename(place)
    np.testing.assert_array_equal(execute(array, tmp_path / "out")[:], expected)
