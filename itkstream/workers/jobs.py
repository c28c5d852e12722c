"""Workers as jobs of a batch system: what a job asks for, and how jobs are handed in."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dask.config
from dask.utils import parse_bytes
from distributed import Client

from itkstream.errors import InputError, WorkersError
from itkstream.workers.batch_systems import SYSTEMS, BatchSystem, clock, seconds_of
from itkstream.workers.environment import (
    MEMORY_VARIABLES,
    configuration_variables,
    worker_variables,
)
from itkstream.workers.options import jobqueue_class
from itkstream.workers.replacement import ReplacingJobs, hand_in
from itkstream.workers.resources import Resources

__all__ = ["job_client", "job_options"]

# As the tutorial has it.
_MOST_JOBS = 4
# A worker that has had nothing to do for so many seconds gives its job back.
_IDLE_SECONDS = 60
# Jobs that may end before their worker has come, until that is an error.
_STILLBORN = 3
_EVERY_SECONDS = 60
_SHARED_GPU = (
    "the processes of a job compute on its first GPU, all of them: one process and one GPU a job "
    "are best"
)
_SGE_HINT = (
    "sge: each site has its own words for cores and memory; without them a job gets one core. Say "
    "them in config, such as {'job_extra_directives': ['-pe smp 4'], 'resource_spec': 'h_vmem=4G'}"
)


def job_options(resources: Resources, system: BatchSystem) -> dict[str, Any]:
    """Keyword arguments for the class of a batch system in dask_jobqueue.

    Options of `Resources.config` add to the lines of the job script and to the arguments of
    workers, and replace all others; so do those in dask's own configuration.
    """
    jobqueue_class(system)  # its defaults are in dask's configuration from here on
    own = resources.for_jobs
    processes = resources.processes or 1
    cores = resources.cores or _default(system, "cores")
    options: dict[str, Any] = {
        "cores": cores,
        "processes": processes,
        "memory": _memory(resources),
        "job_name": "itkstream",
        "log_directory": _default(system, "log-directory") or str(_log_folder()),
        **own,
        **_directives(resources, system),
    }
    options["scheduler_options"] = {
        "dashboard_address": ":0",
        **_default(system, "scheduler-options"),
        **own.get("scheduler_options", {}),
    }
    options["job_script_prologue"] = [
        *_exports(resources, resources.share_cores(cores, processes)),
        *own.get("job_script_prologue", _default(system, "job-script-prologue")),
    ]
    options["worker_extra_args"] = [
        *_worker_arguments(resources, system, cores // processes),
        *own.get("worker_extra_args", _default(system, "worker-extra-args")),
    ]
    return options


@contextmanager
def job_client(
    resources: Resources, system: BatchSystem, tell: Callable[[str], None]
) -> Iterator[Client]:
    """A client of workers that are jobs; none is left in the queue at the end.

    Its scheduler is in this process, and at least one worker is there. Raises `InputError` where
    the batch system refuses the job, and `WorkersError` where jobs end before their worker has
    come.
    """
    least, most = _range(resources)
    options = job_options(resources, system)
    with (
        _made(options, system) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        try:
            cluster.sync(hand_in, cluster, least)
        except RuntimeError as error:
            answer = str(error).rpartition("stderr:")[2]
            raise InputError(
                f"{system.submit} refused the job; check queue, project, cores, memory and "
                f"walltime. It says: {_last_lines(answer)}"
            ) from error
        tell(f"{system.name}: {least} to {most} workers; dashboard: {client.dashboard_link}")
        if resources.choose_engine() != "cpu" and (resources.processes or 1) > 1:
            tell(_SHARED_GPU)
        if system.name == "sge" and not options.get("resource_spec"):
            tell(_SGE_HINT)
        adaptive = cluster.adapt(
            partial(ReplacingJobs, system),
            minimum=least,
            maximum=most,
            interval="1s",
            wait_count=_IDLE_SECONDS,
        )
        _await_first(client, adaptive, Path(options["log_directory"]), tell)
        yield client


def _made(options: Mapping[str, Any], system: BatchSystem) -> Any:
    try:
        return jobqueue_class(system)(**options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"cluster={system.name!r}: {error}") from error


def _await_first(
    client: Client, adaptive: ReplacingJobs, logs: Path, tell: Callable[[str], None]
) -> None:
    """A queue may be long, so this waits without end, unless jobs end without a worker."""
    reported = time.monotonic()
    while not client.scheduler_info()["workers"]:
        if len(adaptive.stillborn) >= _STILLBORN:
            ends = _log_of(adaptive.stillborn[-1], logs)
            raise WorkersError(
                f"{_STILLBORN} jobs ended before their worker had come: the node must see this "
                f"Python and reach {client.scheduler.address}. {ends}"
            )
        if time.monotonic() - reported > _EVERY_SECONDS:
            reported = time.monotonic()
            tell("waiting for the first worker: its job is in the queue")
        time.sleep(0.2)


def _log_of(job: str, folder: Path) -> str:
    files = [p for p in sorted(folder.glob(f"*{job}*")) if p.stat().st_size]
    if not files:
        return f"Their logs are in {folder}"
    return f"{files[0]} ends with: {_last_lines(files[0].read_text(errors='replace'))}"


def _last_lines(text: str) -> str:
    """The end of a log, on one line."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-4:])


def _range(resources: Resources) -> tuple[int, int]:
    """Least and most workers."""
    processes = resources.processes or 1
    least = resources.n_workers or resources.min_workers
    most = resources.n_workers or resources.max_workers
    if most is None:
        most = max(_MOST_JOBS * processes, least or 0)
    return least or processes, most


def _directives(resources: Resources, system: BatchSystem) -> dict[str, Any]:
    """Queue, walltime and project in the words of each batch system."""
    found: dict[str, Any] = {}
    if system.queues:
        walltime = resources.walltime and clock(resources.walltime, system)
        found |= {"queue": resources.queue, "walltime": walltime}
    if system.project:
        found[system.project] = resources.project
    if system.name == "moab":
        found["resource_spec"] = _torque_resources(resources)
    if system.name == "htcondor":
        own = resources.for_jobs
        found["disk"] = own.get("disk") or _default(system, "disk") or "1GB"
        group = {"accounting_group": resources.project} if resources.project else {}
        extra = own.get("job_extra_directives", _default(system, "job-extra-directives"))
        found["job_extra_directives"] = group | dict(extra)
    return found


def _torque_resources(resources: Resources) -> str:
    """Resources of a job in the words of TORQUE, below Moab; dask would use PBS Pro's."""
    system = SYSTEMS["moab"]
    said = resources.for_jobs.get("resource_spec") or _default(system, "resource-spec")
    if said:
        return str(said)
    size = parse_bytes(_memory(resources) or _default(system, "memory"))
    return f"nodes=1:ppn={resources.cores or _default(system, 'cores')},mem={-(-size // 2**20)}mb"


def _worker_arguments(resources: Resources, system: BatchSystem, cores: int) -> list[str]:
    """Blocks at a time, and a good end before the batch system makes a bad one."""
    blocks = resources.blocks_at_once
    found = [] if blocks == cores else ["--nthreads", str(blocks)]
    if system.queues and resources.walltime:
        seconds = seconds_of(resources.walltime)
        margin = min(300, seconds // 5)
        found += ["--lifetime", f"{seconds - margin}s", "--lifetime-stagger", f"{margin // 2}s"]
    return found


def _exports(resources: Resources, threads: int) -> list[str]:
    variables = worker_variables(threads) | MEMORY_VARIABLES
    # A job's log has a line a block, with its seconds.
    variables["DASK_LOGGING__ITKSTREAM"] = "info"
    variables |= configuration_variables(resources.for_dask)
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def _memory(resources: Resources) -> str | int | float | None:
    """Memory of a job; None where nothing states it."""
    if resources.memory or resources.memory_limit is None:
        return resources.memory
    return int(parse_bytes(resources.memory_limit)) * (resources.processes or 1)


def _default(system: BatchSystem, name: str) -> Any:
    return dask.config.get(f"jobqueue.{system.name}.{name}")


def _log_folder() -> Path:
    """The home is where all nodes look; the working folder stays clean."""
    folder = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(folder).expanduser() / "itkstream" / "jobs"
