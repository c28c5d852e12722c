"""Workers of this machine and those that run already: used, fitted, replaced, left as they were."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.deploy.subprocess import SubprocessCluster

from itkstream.compute.execute import compute, execute
from itkstream.errors import InputError
from itkstream.numerics.threads import get_threads, processors
from itkstream.workers import Resources, connected, session
from itkstream.workers.connect import _hinted, _kernel_threads

ARRAY = np.arange(20 * 18).reshape(20, 18)


def lazy(work: Callable[[np.ndarray], np.ndarray] = np.negative) -> da.Array:
    return da.from_array(ARRAY, chunks=(8, 6)).map_blocks(
        work, dtype=int, meta=np.empty((0, 0), int)
    )


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    """Two workers that somebody else runs, who said nothing of threads."""
    given = {name: os.environ.pop(name, None) for name in ("ITKSTREAM_THREADS",)}
    with SubprocessCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, worker_kwargs={"memory_limit": 0}
    ) as cluster:
        yield cluster
    os.environ.update({name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize("kind", ["client", "address", "cluster"])
def test_workers_that_run_are_used_and_left(running: Any, kind: str) -> None:
    # A client of our own watches: nothing may stay behind, and nothing go.
    with Client(running, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        before = client.run(get_threads)
        cluster = {"client": client, "address": running.scheduler_address, "cluster": running}[kind]
        lines: list[str] = []
        with connected(Resources(cluster=cluster), lines.append) as used:
            assert used is not None
            assert (used is client) == (kind == "client")
            # The cores of this host, shared by two workers that compute one block each.
            assert set(used.run(get_threads).values()) == {max(1, processors() // 2)}
        assert bool(lines) == (kind != "client")
        np.testing.assert_array_equal(execute(lazy(), cluster=cluster), -ARRAY)
        assert client.status == "running"
        assert client.run(get_threads) == before
        assert len(client.nthreads()) == 2
        assert used.status == ("running" if kind == "client" else "closed")


def test_a_cluster_object_of_threads_is_left_as_it_was() -> None:
    before = get_threads()
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        with connected(Resources(cluster=cluster)) as client:
            assert client is not None
            given = "ITKSTREAM_THREADS" in os.environ
            assert get_threads() == (before if given else max(1, processors() // 2))
        assert get_threads() == before
        assert len(cluster.workers) == 2
        np.testing.assert_array_equal(compute(lazy(), Resources(cluster=cluster)), -ARRAY)
        assert all(worker.status.name == "running" for worker in cluster.workers.values())


def test_a_client_must_be_of_use(running: Any) -> None:
    client = Client(running, set_as_default=False)
    client.close()
    with pytest.raises(InputError, match="a synchronous Client that is connected; got one that is"):
        Resources(cluster=client)


def test_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itkstream.workers.connect._CONNECT_SECONDS", 1)
    address = "tcp://127.0.0.1:9"
    with (
        pytest.raises(InputError, match=f"no scheduler answers at {address}: check"),
        connected(Resources(cluster=address)),
    ):
        pass


def test_workers_must_have_this_package(tmp_path: Path) -> None:
    # Such a worker can be had by hiding the package from it.
    (tmp_path / "itkstream.py").write_text("raise ImportError('not installed here')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    address = tmp_path / "scheduler.json"
    place = ("--scheduler-file", str(address), "--host", "127.0.0.1", "--no-dashboard")
    programs = [
        ("scheduler", *place, "--port", "0"),
        ("worker", *place, "--no-nanny"),
    ]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{name}", *options],
            env=env,
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        for name, *options in programs
    ]
    try:
        with Client(scheduler_file=str(address), set_as_default=False, timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            with (
                pytest.raises(
                    InputError, match=r"cannot import itkstream .not installed here.: install"
                ),
                connected(Resources(cluster=client)),
            ):
                pass
    finally:
        for program in started:
            program.kill()
            program.wait()


@pytest.mark.slow
def test_session_starts_workers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # As after a cluster of dask's in the same process.
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")

    # Workers cannot import a test module: what is inside a function goes to them by value.
    def told() -> tuple[int, str | None, str | None]:
        return get_threads(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("NUMBA_NUM_THREADS")

    def kept_memory() -> str | None:
        return os.environ.get("MALLOC_TRIM_THRESHOLD_")

    lines: list[str] = []
    config = {"distributed.worker.memory.spill": 0.6125}
    given = Resources(n_workers=1, memory="2GB", processes=2, config=config)
    with session(given, lines.append) as workers:
        client = workers.cluster
        addresses = set(client.nthreads())
        for _ in range(2):
            with connected(workers) as used:
                assert used is client
            np.testing.assert_array_equal(compute(lazy(), workers), -ARRAY)
        assert set(client.nthreads()) == addresses
        # One worker has the whole machine for the kernels of the block it computes.
        cores = processors()
        assert set(client.run(told).values()) == {(cores, str(cores), str(cores))}
        # dask's own 64 kB make a worker give back every array and get its pages anew.
        assert set(client.run(kept_memory).values()) == {str(64 * 2**20)}
        key = "distributed.worker.memory.spill"
        assert set(client.run(dask.config.get, key).values()) == {0.6125}
        assert client.scheduler_info()["workers"].popitem()[1]["memory_limit"] == 10**9
        address = lines[-1].partition("dashboard: ")[2]
        with urlopen(address.replace("/status", "/health")) as answer:
            assert answer.status == 200
    assert dask.config.get(key) != 0.6125
    assert client.status == "closed"
    assert ["dashboard" in line for line in lines].count(True) == 1


@pytest.mark.parametrize(
    ("given", "workers", "threads"),
    [
        ({}, 2, 4),
        ({"threads_per_worker": 2}, 2, 2),
        ({"cores": 4, "processes": 2}, 2, 2),
        ({"cores": 32}, 2, 4),
        ({}, 16, 1),
    ],
)
def test_threads_of_workers_fit_the_machine(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], workers: int, threads: int
) -> None:
    monkeypatch.setattr("itkstream.workers.connect.processors", lambda: 8)
    assert _kernel_threads(Resources(**given), workers) == threads


def test_session_without_processes_is_what_was_given() -> None:
    given = Resources(threads_per_worker=2)
    with session(given) as workers, connected(workers) as client:
        assert workers is given
        assert client is None


@pytest.mark.slow
@pytest.mark.parametrize("who", ["worker", "nanny"])
def test_a_killed_worker_is_replaced(tmp_path: Path, who: str) -> None:
    marker = tmp_path / who

    def die_once(block: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return -block
        if marker.name == "nanny":  # the process above the worker, which would start it again
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        return block

    # dask waits for a lost worker's return before it starts another; here not for 15 seconds.
    config = {"distributed.deploy.lost-worker-timeout": "1s"}
    found = execute(lazy(die_once), n_workers=1, config=config)
    np.testing.assert_array_equal(found, -ARRAY)
    assert marker.exists()


def test_a_batch_system_is_hinted_at_once(commands: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("bsub", "qsub", "condor_submit", "oarsub", "msub"):
        (commands / name).unlink()
    _hinted.clear()
    with caplog.at_level(logging.INFO, "itkstream"):
        execute(lazy())
        execute(lazy())
    hints = [r.message for r in caplog.records if "on the PATH" in r.message]
    assert hints == [
        "sbatch is on the PATH: cluster='slurm' would compute on the cluster's nodes; this runs on "
        "this machine alone"
    ]
