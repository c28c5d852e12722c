"""Worker processes of a computation: started, found or left out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module, metadata
from typing import Any, ClassVar
from weakref import WeakSet

import dask.config
import psutil
from dask.utils import parse_bytes
from distributed import Client, SubprocessCluster, WorkerPlugin

from itkstream.errors import InputError
from itkstream.numerics.gpu.backend import visible_devices
from itkstream.numerics.threads import get_threads, processors, set_threads
from itkstream.workers.batch_systems import find_batch_system
from itkstream.workers.dask_internals import (
    get_address_host,
    nanny_process_ids,
    plan_own_variables,
    scheduler_has_ended,
)
from itkstream.workers.environment import device_variables, worker_variables
from itkstream.workers.jobs import job_client
from itkstream.workers.processes import LocalNanny, end_with_parent
from itkstream.workers.replacement import Replacing, hand_in
from itkstream.workers.resources import Resources

__all__ = ["connected", "session"]

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_hinted: set[str] = set()
# Clients whose workers have their thread settings already.
_fitted: WeakSet[Client] = WeakSet()


def _log(text: str) -> None:
    logger.info("%s", text)


@contextmanager
def connected(resources: Resources, tell: Callable[[str], None] = _log) -> Iterator[Client | None]:
    """The workers of one computation, as a client connected to them.

    Workers started here are gone at the end; those that ran before go on running. The dask
    configuration of `resources` holds inside, and nothing of it stays.

    Parameters
    ----------
    resources : Resources
        Which workers.
    tell : callable, optional
        Called with texts for the user, such as the address of the dashboard; default the log.

    Yields
    ------
    distributed.Client or None
        None for threads of this process. It is nobody's default: dask would have one for all
        threads of this process, and several may compute at a time.

    Raises
    ------
    InputError
        Where a scheduler cannot be reached, or a batch system refuses the jobs.
    WorkersError
        Where workers do not come.

    Examples
    --------
    >>> with itkstream.workers.connected(itkstream.Resources()) as client:
    ...     client is None
    True
    """
    with _opened(resources.resolved(), tell) as client:
        yield client


@contextmanager
def session(resources: Resources, tell: Callable[[str], None] = _log) -> Iterator[Resources]:
    """The same workers for several computations.

    Parameters
    ----------
    resources : Resources
        Which workers.
    tell : callable, optional
        Called with texts for the user; default the log.

    Yields
    ------
    Resources
        To be used inside, as often as needed: nothing is started for them any more.

    Raises
    ------
    InputError, WorkersError
        As `connected`.

    Examples
    --------
    >>> with itkstream.workers.session(itkstream.Resources(threads_per_worker=1)) as shared:
    ...     shared.threads_per_worker
    1
    """
    resolved = resources.resolved()
    with _opened(resolved, tell) as client:
        if client is None:
            yield resources
        else:
            yield Resources(cluster=client, config=resolved.for_dask, engine=resolved.engine)


@contextmanager
def _opened(resources: Resources, tell: Callable[[str], None]) -> Iterator[Client | None]:
    with dask.config.set(resources.for_dask), _workers(resources, tell) as client:
        if client is None or client in _fitted:
            yield client
            return
        _fitted.add(client)
        try:
            yield client
        finally:
            _fitted.discard(client)


def _workers(resources: Resources, tell: Callable[[str], None]) -> Any:
    """The context of the workers: it yields a client, or None."""
    if resources.batch_system:
        resources.require_commands()
        return job_client(resources, resources.batch_system, tell)
    if resources.cluster != "local":
        return _running_workers(resources, tell)
    _hint(tell)
    if resources.local_workers is None:
        _hint_devices(resources, tell)
        return nullcontext()
    return _local_workers(resources, resources.local_workers, tell)


def _hint(tell: Callable[[str], None]) -> None:
    """Once: that a batch system is there."""
    system = find_batch_system()
    if system and system.name not in _hinted:
        _hinted.add(system.name)
        tell(
            f"{system.submit} is on the PATH: cluster={system.name!r} would compute on the "
            "cluster's nodes; this runs on this machine alone"
        )


def _hint_devices(resources: Resources, tell: Callable[[str], None]) -> None:
    """Once: that there are more GPUs than one process uses."""
    if resources.choose_engine() != "gpu" or "gpu" in _hinted:
        return
    count = len(visible_devices())
    if count > 1:
        _hinted.add("gpu")
        tell(f"this process uses one of {count} GPUs: n_workers={count} would use all")


@contextmanager
def _local_workers(
    resources: Resources, workers: int, tell: Callable[[str], None]
) -> Iterator[Client]:
    """Processes of this machine.

    They are started as programs, not forked or spawned from the user's script, so the script
    needs no ``if __name__ == '__main__'``.
    """
    # It tells the command line of every process it starts, which is of no use to anybody here.
    logging.getLogger("distributed.deploy").setLevel(logging.WARNING)
    sections = {name.split(".")[0] for name in resources.for_dask}
    options = {
        "dashboard": False,  # the scheduler's shows all workers
        "memory_limit": _memory_limit(resources),
        "env": worker_variables(_kernel_threads(resources, workers)),
        "config": {name: dask.config.get(name) for name in sections},
    }
    devices = _devices(resources, workers, tell)
    cluster = SubprocessCluster(
        n_workers=0,  # each is planned with variables of its own
        threads_per_worker=resources.blocks_at_once,
        dashboard_address="127.0.0.1:0",
        worker_class=f"{LocalNanny.__module__}.{LocalNanny.__name__}",
        worker_kwargs=options,
    )
    try:
        plan_own_variables(cluster, device_variables(devices, workers))
        with Client(cluster, set_as_default=False) as client:
            cluster.sync(hand_in, cluster, workers)
            cluster.adapt(Replacing, minimum=workers, maximum=workers)
            client.run_on_scheduler(end_with_parent)
            client.wait_for_workers(workers, timeout=120)
            tell(f"{workers} workers; dashboard: {client.dashboard_link}")
            yield client
    finally:
        _end(cluster)


def _devices(resources: Resources, workers: int, tell: Callable[[str], None]) -> tuple[str, ...]:
    """The GPUs that workers of this machine get, one each, where they compute; tells who shares."""
    if resources.choose_engine() != "gpu":
        return ()
    devices = visible_devices()
    if workers > len(devices):
        tell(
            f"{workers} workers share {len(devices)} GPU{'s' * (len(devices) > 1)}, memory too: as "
            "many workers as GPUs are best"
        )
    return devices


def _end(cluster: Any) -> None:
    """Close a cluster of processes, even if its scheduler was killed: then distributed cannot."""
    if not scheduler_has_ended(cluster):
        # Where it is killed just now, its end is not known yet.
        with suppress(OSError):
            cluster.close()
            return
    for process_id in nanny_process_ids(cluster):
        with suppress(psutil.NoSuchProcess):
            nanny = psutil.Process(process_id)
            for process in [*nanny.children(recursive=True), nanny]:
                process.kill()
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), suppress(OSError):
        cluster.close()


def _kernel_threads(resources: Resources, workers: int) -> int:
    """No more than the machine has, nor than the user said."""
    threads = resources.share_cores(processors(), workers)
    if resources.cores is not None:
        threads = min(threads, resources.share_cores(resources.cores, resources.processes or 1))
    return threads


def _memory_limit(resources: Resources) -> str | int | float:
    """Bytes or text; 0 for no limit."""
    if resources.memory is None:
        return resources.memory_limit or 0
    return int(parse_bytes(resources.memory)) // (resources.processes or 1)


@contextmanager
def _running_workers(resources: Resources, tell: Callable[[str], None]) -> Iterator[Client]:
    """Workers of somebody else, who keeps them."""
    cluster = resources.cluster
    if isinstance(cluster, Client):
        with nullcontext() if cluster in _fitted else _fit_workers(cluster):
            yield cluster
        return
    address = cluster if isinstance(cluster, str) else cluster.scheduler_address
    try:
        client = Client(cluster, timeout=_CONNECT_SECONDS, set_as_default=False)
    except OSError as error:
        raise InputError(
            f"no scheduler answers at {address}: check the address, and that it runs"
        ) from error
    with client, _fit_workers(client):
        tell(f"{len(client.nthreads())} workers at {address}; dashboard: {client.dashboard_link}")
        yield client


@contextmanager
def _fit_workers(client: Client) -> Iterator[None]:
    """Share the cores of each host between the blocks its workers compute at a time."""
    _check_package(client)
    busy: Counter[str] = Counter()
    for address, threads in client.nthreads().items():
        busy[get_address_host(address)] += threads
    client.register_plugin(_FitWorker(busy))
    try:
        yield
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(_FitWorker.name)


def _check_package(client: Client) -> None:
    """Workers of others may have another Python."""

    def version() -> str:  # defined in here, so it is sent as it is, not by its name
        return str(import_module("itkstream").__version__)

    for address, found in client.run(version, on_error="return").items():
        if isinstance(found, BaseException):
            raise InputError(
                f"the worker at {address} cannot import itkstream ({found}): install it in the "
                "environment of the workers too"
            )
        if found != metadata.version("itkstream"):
            logger.warning("the worker at %s has itkstream %s", address, found)


class _FitWorker(WorkerPlugin):
    """Sets a worker's threads as long as it is registered, unless its environment says how many.

    Workers may be threads of one process, so only the last one to go restores what was before.
    """

    name = "itkstream-threads"
    _before: ClassVar[list[int]] = []

    def __init__(self, busy: Mapping[str, int]) -> None:
        self._busy = busy

    def setup(self, worker: Any) -> None:
        if "ITKSTREAM_THREADS" in os.environ:
            return
        self._before.append(get_threads())
        blocks = self._busy.get(get_address_host(worker.address)) or worker.state.nthreads
        set_threads(processors() // blocks)

    def teardown(self, worker: Any) -> None:
        if self._before:
            set_threads(self._before.pop())
