"""One GPU for each worker: counted, named, given out and asked for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import yaml

from itkstream.compute.execute import execute
from itkstream.compute.ledger import Ledger
from itkstream.errors import BlockErrors, DeviceError
from itkstream.io.storage.locations import Location
from itkstream.numerics.gpu.backend import visible_devices
from itkstream.numerics.gpu.engine import engine_here
from itkstream.workers import Resources, connected
from itkstream.workers.connect import _devices, _hinted
from itkstream.workers.environment import device_variables
from itkstream.workers.jobs import job_options

WithGpus = Callable[..., None]


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        (None, ("0", "1", "2")),
        ("2,0", ("2", "0")),
        # As CUDA has it, a name that is unknown ends the list.
        ("1,-1,2", ("1",)),
        ("", ()),
    ],
)
def test_gpus_are_those_that_are_shown(
    with_gpus: WithGpus, said: str | None, seen: tuple[str, ...]
) -> None:
    with_gpus(3, **({} if said is None else {"CUDA_VISIBLE_DEVICES": said}))
    assert visible_devices() == seen


def test_names_are_handed_on_as_they_are(with_gpus: WithGpus) -> None:
    names = "GPU-8932f937,MIG-GPU-4b2e/7/0"
    with_gpus(2, STAND_IN_NAMES=names, CUDA_VISIBLE_DEVICES=names)
    assert visible_devices() == tuple(names.split(","))


def test_workers_take_gpus_in_turn() -> None:
    own = device_variables(("5", "7"), 3)
    assert [found["CUDA_VISIBLE_DEVICES"] for found in own] == ["5", "7", "5"]
    assert device_variables((), 2) == [{}, {}]


@pytest.mark.slow
def test_each_worker_has_a_gpu_of_its_own_and_who_takes_its_place_too(with_gpus: WithGpus) -> None:
    def own() -> tuple[Any, int]:
        return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getppid()

    with_gpus(3, CUDA_VISIBLE_DEVICES="2,0")
    told: list[str] = []
    with connected(Resources(n_workers=2, engine="gpu"), told.append) as client:
        assert client is not None
        assert set(client.nthreads().values()) == {3}
        before = dict(client.run(own).values())
        assert sorted(before) == ["0", "2"]
        os.kill(before["2"], signal.SIGKILL)
        ended = time.monotonic() + 60
        after: dict[Any, int] = {}
        while sorted(after) != ["0", "2"] or after["2"] == before["2"]:
            assert time.monotonic() < ended
            time.sleep(0.1)
            after = dict(v for v in client.run(own, on_error="ignore").values())
    assert not any("share" in text for text in told)


@pytest.mark.slow
def test_a_worker_whose_gpu_is_lost_fails_one_block_and_is_replaced(
    with_gpus: WithGpus, tmp_path: Path
) -> None:
    """CUDA does not recover within a process; the others would fail within a moment."""
    first = tmp_path / "first"

    def compute(block: np.ndarray) -> np.ndarray:
        with suppress(FileExistsError):
            os.close(os.open(first, os.O_CREAT | os.O_EXCL))
            first.write_text(str(os.getpid()))
        if first.read_text() == str(os.getpid()):
            raise DeviceError("GPU 0 was lost: unspecified launch failure")
        return block + 1

    with_gpus(1)
    lazy = da.from_array(np.zeros(12), chunks=1).map_blocks(compute, meta=np.zeros(0), name="lost")
    resources = {"n_workers": 1, "threads_per_worker": 1, "engine": "gpu"}
    path = tmp_path / "out.zarr"
    # The first is begun again where the process ends before its failure is told.
    with suppress(BlockErrors):
        execute(lazy, path, **resources)
    assert len(Ledger(Location.parse(path)).done()) >= 11
    assert all("was lost" in f.reason for f in Ledger(Location.parse(path)).failures())


def test_who_shares_gpus_is_told(with_gpus: WithGpus) -> None:
    with_gpus(2)
    told: list[str] = []
    assert _devices(Resources(engine="auto"), 2, told.append) == ("0", "1")
    assert not told
    assert _devices(Resources(engine="auto"), 3, told.append) == ("0", "1")
    assert told[0].startswith("3 workers share 2 GPUs")
    assert _devices(Resources(), 3, told.append) == ()


def test_gpus_that_are_left_idle_are_told_once(with_gpus: WithGpus) -> None:
    told: list[str] = []
    _hinted.discard("gpu")
    for count in (1, 4, 4):
        with_gpus(count)
        with connected(Resources(engine="gpu"), told.append) as client:
            assert client is None
    told = [text for text in told if "GPU" in text]
    assert told == ["this process uses one of 4 GPUs: n_workers=4 would use all"]


@pytest.mark.parametrize(
    ("given", "blocks"),
    [
        ({}, 3),
        ({"threads_per_worker": 1}, 1),
        ({"cores": 4, "processes": 2}, 2),
        ({"engine": "cpu"}, 1),
    ],
)
def test_a_worker_with_a_gpu_has_three_blocks_under_way(
    with_gpus: WithGpus, given: dict[str, Any], blocks: int
) -> None:
    with_gpus(1)
    found = Resources(**{"n_workers": 2, "engine": "auto", **given})
    assert found.blocks_at_once == blocks


@pytest.mark.usefixtures("commands")
def test_a_site_asks_for_a_gpu_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that hands in jobs has none."""
    presets = tmp_path / "clusters.yaml"
    config = {"job_extra_directives": ["--gres=gpu:1"]}
    jobs = {"cluster": "slurm", "cores": 8, "memory": "64GB", "engine": "gpu", "config": config}
    presets.write_text(yaml.safe_dump({"gpus": jobs}))
    monkeypatch.setenv("ITKSTREAM_CLUSTERS", str(presets))
    given = Resources(cluster="gpus")
    assert given.choose_engine() == "gpu"
    resolved = given.resolved()
    assert resolved.batch_system is not None
    options = job_options(resolved, resolved.batch_system)
    assert options["job_extra_directives"] == ["--gres=gpu:1"]
    assert options["worker_extra_args"][:2] == ["--nthreads", "3"]


@pytest.mark.usefixtures("commands")
def test_who_hands_in_jobs_needs_no_gpu(with_gpus: WithGpus) -> None:
    with_gpus(0)
    jobs = Resources(cluster="slurm", cores=4, memory="16GB", engine="gpu")
    assert not jobs.is_here
    assert jobs.choose_engine() == "gpu"
    assert engine_here("gpu", jobs.is_here) == "auto"
    assert engine_here("gpu", Resources().is_here) == "gpu"
