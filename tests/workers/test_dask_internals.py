"""What nothing promises to stay in dask, distributed and dask-jobqueue: one test for each name.

A failure names the versions that were checked and says what of this package no longer works.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import dask.array as da
import numpy as np
import psutil
import pytest
from dask.task_spec import GraphNode
from distributed import Adaptive, Client, LocalCluster, Scheduler, SpecCluster, SubprocessCluster

import itkstream
from itkstream.workers import dask_internals as internals

PACKAGE = Path(itkstream.__file__).parent
# Attributes of other packages that are read in that module alone.
PRIVATE = {"_meta", "new_spec", "new_worker_spec", "observed", "periodic_callbacks", "worker_spec"}


@contextmanager
def breaks(what: str) -> Iterator[None]:
    """Say in the message of a failure what depends on the name that moved."""
    installed = {name: version(name) for name in internals.CHECKED}
    try:
        yield
    except Exception as error:
        raise AssertionError(
            f"{what}: checked with {internals.CHECKED}, here is {installed}"
        ) from error


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes, each kept by a process of its own."""
    with SubprocessCluster(n_workers=2, worker_kwargs={"dashboard": False}) as cluster:
        with Client(cluster) as client:
            client.wait_for_workers(2, timeout=60)
        yield cluster


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        if isinstance(node, ast.Attribute) and node.attr in PRIVATE:
            yield f"private.{node.attr}"


def is_private(name: str) -> bool:
    root, _, rest = name.partition(".")
    return root in ("private", "dask_jobqueue") or (
        (root == "dask" and rest.startswith("_")) or (root == "distributed" and bool(rest))
    )


def test_they_stand_in_one_room() -> None:
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if any(map(is_private, imported(file)))
    }
    assert found == {"workers/dask_internals.py"}


def test_versions_that_were_checked_are_those_installed() -> None:
    """A new release breaks nothing by itself: the tests below say whether it does."""
    installed = {name: version(name) for name in internals.CHECKED}
    if installed != internals.CHECKED:
        pytest.skip(f"checked with {internals.CHECKED}, here is {installed}: name these there")


def test_blocks_know_their_type_before_any_is_computed() -> None:
    with breaks("a result whose last block waits (`judged`) has no type"):
        sample = internals.sample_of(da.zeros((4, 4), dtype=np.float32))
        assert (sample.dtype, sample.size) == (np.dtype(np.float32), 0)


def test_graphs_are_plain_tasks() -> None:
    array = da.ones((4, 4), chunks=2).map_blocks(np.add, 1)
    with breaks("no computation runs: schedule.py takes graphs of these tasks apart"):
        tasks = internals.plain_tasks(array, [(array.name, 0, 0)])
        assert all(isinstance(task, GraphNode) for task in tasks.values())
        node = tasks[(array.name, 0, 0)]
        assert set(node.dependencies) <= set(tasks)
        given = {key: tasks[key]({}) for key in node.dependencies}
        np.testing.assert_array_equal(node(given), 2)


def test_workers_of_this_machine_are_told(cluster: Any) -> None:
    with breaks("large arrays travel to processes of this machine as messages, not as files"):
        with Client(cluster, set_as_default=False) as client:
            assert internals.stays_on_this_machine(client)
        with Client(cluster.scheduler_address, set_as_default=False) as client:
            assert not internals.stays_on_this_machine(client)
        with (
            LocalCluster(n_workers=0, processes=False, dashboard_address=None) as threads,
            Client(threads, set_as_default=False) as client,
        ):
            assert internals.stays_on_this_machine(client)


def test_workers_are_planned_and_counted(cluster: Any) -> None:
    with breaks("no job and no process is started or replaced"):
        assert internals.workers_per_job(cluster) == 1
        assert not internals.is_short_of_workers(cluster)
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        assert len(internals.present_workers(cluster)) == 2
        assert internals.workers_of_job(cluster, 0) == {"0"}
        before = len(cluster.plan)
        internals.plan_workers(cluster, before)
        assert len(cluster.plan) == before


def test_processes_have_variables_of_their_own(cluster: Any) -> None:
    class Planned:
        new_spec = cluster.new_spec
        worker_spec: ClassVar[dict[int, Any]] = {}

    with breaks("workers of this machine compute on one GPU, all of them"):
        cluster.new_spec["options"]["worker_kwargs"]["env"] = {"A": "1", "B": "1"}
        internals.plan_own_variables(Planned, [{"B": "2"}, {}])
        told = [spec["options"]["worker_kwargs"] for spec in Planned.worker_spec.values()]
        assert [options["env"] for options in told] == [{"A": "1", "B": "2"}, {"A": "1", "B": "1"}]
        assert all(spec["cls"] is cluster.new_spec["cls"] for spec in Planned.worker_spec.values())


def test_a_process_knows_whether_it_is_kept(cluster: Any) -> None:
    with breaks("a worker whose GPU is lost fails all blocks that are left"):
        assert not internals.is_kept_by_nanny()
        with Client(cluster, set_as_default=False) as client:
            assert client.submit(internals.is_kept_by_nanny).result()


def test_a_job_of_several_workers_names_them() -> None:
    class Jobs:
        def __init__(self) -> None:
            self.new_spec = {"group": ["-0", "-1"]}
            self.worker_spec = {3: self.new_spec}

    assert internals.workers_per_job(Jobs()) == 2
    assert internals.workers_of_job(Jobs(), 3) == {"3-0", "3-1"}
    with breaks("jobs that hold several workers are counted as lost"):
        source = inspect.getsource(SpecCluster)
        assert all(name in source for name in ('"group"', "self.new_spec", "self.worker_spec"))


def test_scaling_can_be_replaced() -> None:
    with breaks("lost jobs and processes are no longer replaced (workers/replacement.py)"):
        for name in ("recommendations", "scale_up", "safe_target"):
            assert inspect.iscoroutinefunction(getattr(Adaptive, name))
        assert isinstance(SpecCluster.plan, property)
        assert isinstance(SpecCluster.requested, property)


def test_lost_processes_are_seen(cluster: Any) -> None:
    with breaks("lost processes of this machine are not replaced, or outlive their run"):
        assert not internals.scheduler_has_ended(cluster)
        assert internals.workers_ended(cluster) == []
        for number in internals.nanny_process_ids(cluster):
            assert psutil.Process(number).children()
        assert inspect.iscoroutinefunction(internals.close_for_cluster)


def test_a_scheduler_calls_again_and_again() -> None:
    called = threading.Event()

    async def watch() -> None:
        async with Scheduler(port=0, dashboard=False) as scheduler:
            internals.call_periodically(scheduler, "test", called.set, 0.01)
            while not called.is_set():
                await asyncio.sleep(0.01)

    with breaks("workers of this machine outlive a program that is killed"):
        asyncio.run(asyncio.wait_for(watch(), 30))


def test_addresses_and_memory_are_known() -> None:
    with breaks("cores are not shared between the workers of a host"):
        assert internals.get_address_host("tcp://10.0.0.1:8786") == "10.0.0.1"
    with breaks("the limit of a container is not seen (`free_memory`)"):
        assert 0 < internals.MEMORY_LIMIT <= psutil.virtual_memory().total


def test_importing_jobqueue_only_defines(
    python_environment: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import signal, threading\n"
        "import dask.config\n"
        "from itkstream.workers.dask_internals import import_jobqueue\n"
        "found = []\n"
        "thread = threading.Thread(target=lambda: found.append(import_jobqueue()))\n"
        "thread.start(); thread.join()\n"
        "import dask_jobqueue, dask_jobqueue.config, dask_jobqueue.runner\n"
        "assert found == [dask_jobqueue]\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert dask.config.get('jobqueue.slurm.name') == 'dask-worker'\n"
        # Nothing of it is missing to whoever uses it directly.
        "from dask_jobqueue.slurm import SLURMRunner\n"
        "assert issubclass(SLURMRunner, dask_jobqueue.runner.BaseRunner)\n"
        "assert callable(dask_jobqueue.config.reconfigure)\n"
    )
    with breaks("dask_jobqueue writes to the user's configuration, or takes Ctrl-C"):
        subprocess.run(
            [sys.executable, "-c", code],
            env={**python_environment, "HOME": str(tmp_path)},
            check=True,
        )
        assert not list(tmp_path.rglob("*.yaml"))


def test_what_is_left_out_of_jobqueue_is_two_calls() -> None:
    folder = Path(internals.import_jobqueue().__path__[0])
    calls = []
    for name in ("config", "runner"):
        for node in ast.parse((folder / f"{name}.py").read_text()).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                calls.append(ast.unparse(node.value))
    with breaks("a call that dask_jobqueue needs is left out"):
        assert calls == ["reconfigure()", "signal.signal(signal.SIGINT, lambda *_: sys.exit())"]
