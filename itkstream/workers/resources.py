"""The resources of a computation, as one value checked when it is made."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

import dask.config
import psutil
from dask.utils import parse_bytes
from distributed import Client

from itkstream.errors import InputError, unknown_name
from itkstream.numerics.gpu.engine import Engine, check_engine, choose_engine, engine_said
from itkstream.numerics.threads import processors
from itkstream.workers.batch_systems import SYSTEMS, BatchSystem, seconds_of
from itkstream.workers.dask_internals import MEMORY_LIMIT, stays_on_this_machine
from itkstream.workers.options import presets_path, read_presets, split_config

__all__ = ["Resources", "check_count", "free_memory"]

_ADDRESS = re.compile(r"[a-z]+://.+:\d+/?")
_COUNTS = (
    "n_workers",
    "threads_per_worker",
    "cores",
    "processes",
    "min_workers",
    "max_workers",
)
# What a worker keeps of dask's profiler grows by some 70 kB a second for an hour.
_FOR_DASK: dict[str, Any] = {"distributed.worker.profile.enabled": False}
_FOR_JOBS = ("walltime", "queue", "project")
# Blocks under way in a worker with a GPU: one read, one computed, one written.
_STREAMED = 3
# What may be said of workers that run already.
_FOR_ALL = ("cluster", "config", "engine")


@dataclass(frozen=True)
class Resources:
    """Resources that a computation may use.

    Parameters
    ----------
    n_workers : int, optional
        Worker processes. Default on this machine: none, blocks run on threads of this process.
    threads_per_worker : int, optional
        Blocks that one worker computes at a time; default 1, with a GPU 3. In this process default
        one on each processor.
    memory_limit : str, int or float, optional
        Memory of each worker process, such as '8GB'; a worker that exceeds it is restarted.
    config : mapping
        Names with dots are dask configuration, such as 'distributed.worker.memory.target', for
        this computation and its workers only. With a batch system all other names are options of
        its class in dask_jobqueue: ``{'job_extra_directives': ['--exclusive']}``.
    cluster : str, distributed.Client or cluster object
        'local' (default): this machine. 'slurm', 'lsf', 'pbs', 'sge', 'htcondor', 'oar' or
        'moab': jobs of that batch system. The address of a scheduler ('tcp://host:8786'), a
        Client, or a cluster object of dask: its workers are used and left running. Any other
        name: a cluster of the site, named in ``~/.config/itkstream/clusters.yaml`` or the file that
        ``ITKSTREAM_CLUSTERS`` names.
    cores, processes : int, optional
        Cores per job, and worker processes that share them; default 1 process. What a worker
        has goes to the threads of its kernels. On this machine as if it were one job.
    memory : str, int or float, optional
        Memory per job, shared by its processes.
    walltime : str, optional
        How long a job may run, hours first: '3:59', '3:59:00' or '1-12:00:00'.
    queue, project : str, optional
        Where jobs wait, and to which project they are charged.
    min_workers, max_workers : int, optional
        Worker processes to hold, and to ask for while there is work; default 1 job and 4 jobs.
        On this machine `max_workers`, else `min_workers`, are started.
    engine : {'cpu', 'gpu', 'auto'}, optional
        What computes what is heavy of a block: deformations of method 'lcc', warping, local
        correlation, key points and their contexts. 'cpu' (default): the processors. 'gpu': an
        NVIDIA GPU, through CuPy (``pip install 'itkstream[gpu]'``), one block at a time in each
        worker, while it reads the next and writes the last. 'auto': a GPU where CuPy and a device
        are there and have room for the block, and what was begun goes on as it was. A block that
        finds no room on the GPU is computed by the processors. On this machine each of `n_workers`
        gets one of the GPUs that ``CUDA_VISIBLE_DEVICES`` shows, in turn; on a cluster ask for one
        a job: ``config={'job_extra_directives': ['--gres=gpu:1']}`` with Slurm.

    Raises
    ------
    InputError
        For values out of range, contradictory ones, a cluster that is not known, and a GPU that
        this machine does not have.

    Examples
    --------
    >>> itkstream.Resources(n_workers=4, threads_per_worker=1).n_workers
    4
    >>> jobs = itkstream.Resources(cluster="slurm", cores=4, memory="16GB", max_workers=20)
    """

    n_workers: int | None = None
    threads_per_worker: int | None = None
    memory_limit: str | int | float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    cluster: Any = "local"
    cores: int | None = None
    processes: int | None = None
    memory: str | int | float | None = None
    walltime: str | None = None
    queue: str | None = None
    project: str | None = None
    min_workers: int | None = None
    max_workers: int | None = None
    engine: Engine | None = None

    def __post_init__(self) -> None:
        _check_values(self)
        check_engine(self.engine, here=self.cluster == "local")
        if self.resolved() is not self:
            return
        split_config(self.config, self.batch_system)
        if self.batch_system:
            _check_jobs(self, self.batch_system)
        elif self.cluster == "local":
            _refuse(self, _FOR_JOBS, "is for batch systems: choose one as cluster, such as 'slurm'")
        else:
            _check_existing(self.cluster)
            own = [f.name for f in fields(self) if f.name not in _FOR_ALL]
            _refuse(self, own, "cannot be chosen for workers that run already")

    @property
    def batch_system(self) -> BatchSystem | None:
        """The batch system jobs go to; None where there are no jobs."""
        return SYSTEMS.get(self.cluster) if isinstance(self.cluster, str) else None

    @property
    def for_dask(self) -> dict[str, Any]:
        """The part of `config` that is dask's, and what it is for this package's own workers."""
        return _FOR_DASK | split_config(self.config, self.batch_system)[0]

    @property
    def for_jobs(self) -> dict[str, Any]:
        """The part of `config` that goes to the batch system's jobs."""
        return split_config(self.config, self.batch_system)[1]

    @property
    def local_workers(self) -> int | None:
        """Worker processes on this machine; None for threads of this process."""
        if self.cluster != "local":
            return None
        return self.n_workers or self.max_workers or self.min_workers

    @property
    def has_workers(self) -> bool:
        """Whether blocks go to processes of their own, on this machine or others."""
        return self.resolved().cluster != "local" or self.resolved().local_workers is not None

    def resolved(self) -> Resources:
        """The same with a site's named cluster spelt out.

        Returns
        -------
        Resources
            Itself where `cluster` is no name of a site. What is given here goes before what the
            site says.

        Raises
        ------
        InputError
            For a name nobody knows.

        Examples
        --------
        >>> itkstream.Resources(n_workers=2).resolved().n_workers
        2
        """
        name = self.cluster
        if not isinstance(name, str) or name == "local" or name in SYSTEMS or "://" in name:
            return self
        preset = _preset(name, [f.name for f in fields(self)])
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        own = {key: value for key, value in given.items() if value is not None}
        if own.keys() & {"memory", "memory_limit"}:
            preset = {k: v for k, v in preset.items() if k not in ("memory", "memory_limit")}
        config = {**preset.pop("config", {}), **self.config}
        return Resources(**{**preset, **own, "cluster": preset["cluster"], "config": config})

    def require_commands(self) -> None:
        """Refuse jobs that cannot be handed in from this machine; they can be planned anywhere.

        Raises
        ------
        InputError
            Where the command of the batch system is not on the PATH.

        Examples
        --------
        >>> itkstream.Resources().require_commands()  # this machine needs none
        """
        system = self.batch_system
        if system and not shutil.which(system.submit):
            raise InputError(
                f"cluster={system.name!r} hands in jobs by {system.submit}, which is not on the "
                "PATH: run this on a node from which jobs are submitted, or load the batch "
                "system's module"
            )

    def choose_engine(self, begun: str | None = None, place: Any = None) -> Engine:
        """Choose what computes, 'auto' decided where this machine computes.

        Parameters
        ----------
        begun : str, optional
            The engine with which a computation was begun, which 'auto' goes on with; of several,
            all with a plus between them. Default nothing was begun.
        place : optional
            Where that is, for the error.

        Returns
        -------
        {'cpu', 'gpu', 'auto'}
            'auto' where each worker of other machines decides.

        Raises
        ------
        InputError
            Where another engine would go on, and `engine` is neither 'cpu' nor 'gpu'.

        Examples
        --------
        >>> itkstream.Resources().choose_engine()
        'cpu'
        """
        said = self.resolved().engine or engine_said()
        return choose_engine(said, self.is_here, begun, place)

    @property
    def is_here(self) -> bool:
        """Whether blocks are computed on this machine alone."""
        cluster = self.resolved().cluster
        return cluster == "local" or (
            isinstance(cluster, Client) and stays_on_this_machine(cluster)
        )

    @property
    def blocks_at_once(self) -> int:
        """Blocks that a worker process has under way.

        With a GPU these are three: while it computes one, the next is read and the last is written.
        """
        if self.threads_per_worker or self.choose_engine() != "gpu":
            return self.threads_per_worker or 1
        each = self.cores and self.cores // (self.processes or 1)
        return min(_STREAMED, each or _STREAMED)

    def share_cores(self, cores: int, workers: int = 1) -> int:
        """Threads for the kernels of each block.

        Parameters
        ----------
        cores : int
            Cores of the machine or job.
        workers : int
            Worker processes that share them.

        Returns
        -------
        int
            At least 1.

        Examples
        --------
        >>> itkstream.Resources().share_cores(8, workers=2)
        4
        """
        return max(1, cores // (workers * self.blocks_at_once))

    def threads_here(self, blocks: int) -> tuple[int, int]:
        """Share of the threads of this process.

        Parameters
        ----------
        blocks : int
            Blocks to compute.

        Returns
        -------
        at_once, kernel : int
            Blocks computed at a time, and threads for the kernels of each.

        Examples
        --------
        >>> len(itkstream.Resources(threads_per_worker=2).threads_here(4))
        2
        """
        cores = self.cores or processors()
        at_once = max(1, min(self.threads_per_worker or cores, blocks))
        return at_once, max(1, cores // at_once)


def check_count(name: str, count: int | None) -> None:
    """Refuse what is no whole number above 0.

    Parameters
    ----------
    name : str
        What is counted.
    count : int or None
        How many; None where it is left open.

    Raises
    ------
    InputError
        For less than 1.

    Examples
    --------
    >>> itkstream.workers.check_count("n_workers", 4)
    >>> itkstream.workers.check_count("n_workers", 0)
    Traceback (most recent call last):
        ...
    itkstream.errors.InputError: ...
    """
    if count is None:
        return
    if not isinstance(count, Integral) or isinstance(count, bool):
        raise InputError(f"{name} must be a whole number; got {count!r}")
    if count < 1:
        raise InputError(f"{name} must be at least 1; got {count}")


def _preset(name: str, keys: list[str]) -> dict[str, Any]:
    """The values of one of the site's clusters."""
    path, presets = presets_path(), read_presets(keys)
    if name not in presets:
        unknown = unknown_name("cluster", name, ["local", *SYSTEMS, *presets])
        raise InputError(
            f"{unknown}; or an address such as tcp://host:8786. Names of a site are in {path}"
        )
    preset = {key: value for key, value in presets[name].items() if value is not None}
    kind = preset.get("cluster")
    if not isinstance(kind, str) or (kind not in SYSTEMS and "://" not in kind):
        raise InputError(
            f"the cluster {name!r} in {path} must say `cluster:` and one of "
            f"{', '.join(SYSTEMS)}, or an address; got {kind!r}"
        )
    if not isinstance(preset.get("config", {}), Mapping):
        raise InputError(
            f"config of the cluster {name!r} in {path} must hold names and values; got "
            f"{preset['config']!r}"
        )
    return preset


def _check_values(resources: Resources) -> None:
    for name in _COUNTS:
        check_count(name, getattr(resources, name))
    for name in ("memory", "memory_limit"):
        _check_size(name, getattr(resources, name))
    if not isinstance(resources.config, Mapping):
        raise InputError(f"config must be a mapping; got {type(resources.config).__name__}")
    if resources.walltime is not None:
        seconds_of(resources.walltime)
    if resources.memory is not None and resources.memory_limit is not None:
        raise InputError(
            "memory is for a job and memory_limit for each of its worker processes: give one; "
            f"got {resources.memory} and {resources.memory_limit}"
        )
    least, most = resources.min_workers, resources.max_workers
    if least and most and least > most:
        raise InputError(f"min_workers must be at most max_workers; got {least} and {most}")
    fixed = resources.n_workers
    if fixed and not (least or fixed) <= fixed <= (most or fixed):
        raise InputError(
            f"n_workers must lie between min_workers and max_workers; got {fixed}, {least}, {most}"
        )
    blocks, processes = resources.threads_per_worker or 1, resources.processes or 1
    if resources.cores and blocks * processes > resources.cores:
        raise InputError(
            f"cores={resources.cores} are too few for {processes} processes of {blocks} threads "
            "each: lower processes or threads_per_worker"
        )


def _check_size(name: str, size: str | int | float | None) -> None:
    if size is None:
        return
    try:
        bytes_ = parse_bytes(size)
    except (ValueError, TypeError, AttributeError):
        bytes_ = 0
    if bytes_ <= 0:
        raise InputError(f"{name} must be a size such as '8GB'; got {size!r}")


def _check_jobs(resources: Resources, system: BatchSystem) -> None:
    if not system.queues:
        why = f"is unknown to {system.name}: say it in config={{'job_extra_directives': {{...}}}}"
        _refuse(resources, ("walltime", "queue"), why)
    sizes = {"cores": resources.cores, "memory": resources.memory or resources.memory_limit}
    for name, value in sizes.items():
        if value is None and dask.config.get(f"jobqueue.{system.name}.{name}", None) is None:
            raise InputError(
                f"cluster={system.name!r} needs cores and memory per job, such as cores=4, "
                f"memory='16GB'; {name} is missing"
            )
    processes = resources.processes or 1
    for name in ("n_workers", "min_workers", "max_workers"):
        if (getattr(resources, name) or 0) % processes:
            raise InputError(
                f"{name} must be a multiple of processes={processes}, as every job starts that "
                f"many workers; got {getattr(resources, name)}"
            )


def peak_memory() -> int:
    """Bytes that this process held at most, since it began."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def free_memory() -> int:
    """The memory that this process may have now.

    Returns
    -------
    int
        Bytes: what other programs leave free, at most the limit of a container.

    Examples
    --------
    >>> itkstream.workers.free_memory() > 0
    True
    """
    return min(psutil.virtual_memory().available, MEMORY_LIMIT)


def _check_existing(cluster: Any) -> None:
    if isinstance(cluster, str):
        if not _ADDRESS.fullmatch(cluster):
            raise InputError(
                f"the address of a scheduler looks like 'tcp://host:8786'; got {cluster!r}"
            )
        return
    if isinstance(cluster, Client):
        if cluster.asynchronous or cluster.status != "running":
            raise InputError(
                f"cluster needs a synchronous Client that is connected; got one that is "
                f"{'asynchronous' if cluster.asynchronous else cluster.status}"
            )
    elif not hasattr(cluster, "scheduler_address"):
        raise InputError(
            f"cluster must be 'local', one of {', '.join(SYSTEMS)}, a scheduler's address, a "
            f"distributed.Client or a cluster object of dask; got {type(cluster).__name__}"
        )


def _refuse(resources: Resources, names: Any, why: str) -> None:
    for name in names:
        if getattr(resources, name) is not None:
            raise InputError(f"{name} {why}; got {getattr(resources, name)!r}")
