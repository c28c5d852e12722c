"""Parts of dask, distributed and dask-jobqueue that are used though nothing promises they stay.

`CHECKED` names the versions it was checked with; `tests/workers/test_dask_internals.py` says for
each name what breaks where it moves. No other module imports or reads such a thing.
"""

from __future__ import annotations

import ast
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import dask.array as da
import dask.config
import yaml
from dask._task_spec import convert_legacy_graph
from dask.task_spec import GraphNode
from dask.utils import ensure_dict
from distributed import Client, Nanny, Worker, get_worker
from distributed.comm import get_address_host
from distributed.core import Status
from distributed.deploy import ProcessInterface
from distributed.deploy.subprocess import SubprocessWorker
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray
from tornado.ioloop import PeriodicCallback

__all__ = [
    "CHECKED",
    "MEMORY_LIMIT",
    "call_periodically",
    "close_for_cluster",
    "get_address_host",
    "import_jobqueue",
    "is_closing",
    "is_kept_by_nanny",
    "is_short_of_workers",
    "nanny_process_ids",
    "plain_tasks",
    "plan_own_variables",
    "plan_workers",
    "present_workers",
    "sample_of",
    "scheduler_has_ended",
    "stays_on_this_machine",
    "workers_ended",
    "workers_of_job",
    "workers_per_job",
]

CHECKED = {"dask": "2026.8.0", "distributed": "2026.8.0", "dask-jobqueue": "0.9.0"}
"""Versions with which all of this held."""

_IMPORTING = threading.Lock()


def sample_of(array: da.Array) -> NDArray[Any]:
    """An empty array of the type that the blocks of a dask array have."""
    sample: NDArray[Any] = array._meta
    return sample


def plain_tasks(array: da.Array, keys: Sequence[Any]) -> dict[Any, GraphNode]:
    """The tasks that some blocks of an array need, optimised; older tuples become tasks too."""
    optimized = array.__dask_optimize__(array.__dask_graph__(), list(keys))
    tasks: dict[Any, GraphNode] = convert_legacy_graph(ensure_dict(optimized))
    return tasks


def stays_on_this_machine(client: Client) -> bool:
    """Whether all workers of a client, later ones too, are processes or threads of this machine."""
    started = (getattr(client.cluster, "new_spec", None) or {}).get("cls")
    return started in (Nanny, SubprocessWorker, Worker)


def is_kept_by_nanny() -> bool:
    """Whether this thread computes for a worker process that is started anew where it ends."""
    try:
        return get_worker().nanny is not None
    except ValueError:
        return False


def plan_workers(cluster: Any, count: int) -> None:
    """Plan workers of a cluster until there are so many; awaiting the cluster starts them."""
    while len(cluster.plan) < count:
        cluster.worker_spec.update(cluster.new_worker_spec())


def plan_own_variables(cluster: Any, variables: Sequence[Mapping[str, str]]) -> None:
    """Plan a process of this machine for each set of environment variables.

    Who takes the place of a process that is lost has the same.
    """
    for name, own in enumerate(variables):
        options = cluster.new_spec["options"]
        known = options["worker_kwargs"]
        given = {**known, "env": {**known["env"], **own}}
        spec = {**cluster.new_spec, "options": {**options, "worker_kwargs": given}}
        cluster.worker_spec[name] = spec


def workers_per_job(cluster: Any) -> int:
    """The number of workers that one job of a cluster holds."""
    return len((cluster.new_spec or {}).get("group", " "))


def workers_of_job(cluster: Any, name: Any) -> set[str]:
    """The names of the workers that one job of a cluster holds."""
    return {f"{name}{suffix}" for suffix in cluster.worker_spec.get(name, {}).get("group", [""])}


def present_workers(cluster: Any) -> set[str]:
    """The names of the workers that have come to the scheduler of a cluster and are there still."""
    return {str(name) for name in cluster.observed}


def is_short_of_workers(cluster: Any) -> bool:
    """Whether a cluster plans workers that it has not asked for."""
    return len(cluster.plan) != len(cluster.requested)


def is_closing(cluster: Any) -> bool:
    """Whether a cluster is being closed, or is closed."""
    return cluster.status in (Status.closing, Status.closed)


def workers_ended(cluster: Any) -> list[Any]:
    """The names of workers whose process has ended."""
    started = [(name, w.process) for name, w in cluster.workers.items() if w.process is not None]
    return [name for name, process in started if process.returncode is not None]


async def close_for_cluster(worker: Any) -> None:
    """Count a worker as closed, which a refused or cancelled job does not do itself."""
    await ProcessInterface.close(worker)


def scheduler_has_ended(cluster: Any) -> bool:
    """Whether the process of a local cluster's scheduler has ended."""
    return cluster.scheduler.process.returncode is not None


def nanny_process_ids(cluster: Any) -> list[int]:
    """The processes of a local cluster that keep its workers."""
    return [worker.process.pid for worker in cluster.workers.values()]


def call_periodically(scheduler: Any, name: str, call: Callable[[], None], seconds: float) -> None:
    """Call a function from the loop of a scheduler, again and again until it is closed."""
    watch = scheduler.periodic_callbacks[name] = PeriodicCallback(call, seconds * 1e3)
    watch.start()


def import_jobqueue() -> ModuleType:
    """dask_jobqueue, without what importing it does beside defining things.

    Its modules `config` and `runner` put a file into the user's dask configuration where there is
    none, make Ctrl-C end the program as if all were well, and fail outside the main thread. Both
    are loaded here without the calls that stand alone in them; the defaults of its options then
    come from its file.
    """
    with _IMPORTING:
        if "dask_jobqueue" in sys.modules:
            return import_module("dask_jobqueue")
        found = find_spec("dask_jobqueue")
        if found is None or not found.submodule_search_locations:
            return import_module("dask_jobqueue")  # which says that it is not installed
        folder = Path(found.submodule_search_locations[0])
        parts = {name: _define_only(folder, name) for name in ("config", "runner")}
        defaults: Mapping[str, Any] = yaml.safe_load((folder / "jobqueue.yaml").read_text("utf-8"))
        dask.config.update_defaults(defaults)
        package = import_module("dask_jobqueue")
        for name, part in parts.items():
            setattr(package, name, part)
        return package


def _define_only(folder: Path, name: str) -> ModuleType:
    """Load a module of dask_jobqueue for whoever imports it, without the calls that it makes."""
    full, file = f"dask_jobqueue.{name}", folder / f"{name}.py"
    spec = spec_from_file_location(full, file, loader=_DefiningLoader(full, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[full] = module
    return module


class _DefiningLoader(SourceFileLoader):
    """Leaves out the calls that stand alone at the top of a module."""

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path))
        tree.body = [
            node
            for node in tree.body
            if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        ]
        code: CodeType = compile(tree, self.path, "exec")
        return code
