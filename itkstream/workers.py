"""Which workers compute: worker processes and threads, chosen in one place."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster

from itkstream.errors import InputError
from itkstream.numerics.threads import processors

__all__ = ["Resources", "check_count", "connected"]


@dataclass(frozen=True)
class Resources:
    """What a computation may use.

    Parameters
    ----------
    n_workers : int, optional
        Worker processes. None runs in this process, on threads, without any cluster.
    threads_per_worker : int, optional
        Blocks that one worker computes at a time; default 1 for processes. In this process
        default as many as there are processors.
    memory_limit : str, int or float, optional
        Memory of each worker process, such as '8GB'; a worker that exceeds it is restarted.
    config : mapping
        dask configuration for this computation only.

    Raises
    ------
    InputError
        For counts below 1.
    """

    n_workers: int | None = None
    threads_per_worker: int | None = None
    memory_limit: str | int | float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("n_workers", "threads_per_worker"):
            check_count(name, getattr(self, name))


def check_count(name: str, count: int | None) -> None:
    """Refuse a count below 1.

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
    """
    if count is not None and count < 1:
        raise InputError(f"{name} must be at least 1; got {count}")


@contextmanager
def connected(resources: Resources) -> Iterator[Client]:
    """Worker processes of their own, gone at the end.

    They are started as programs, not forked or spawned from the user's script, so the script
    needs no ``if __name__ == '__main__'``.

    Parameters
    ----------
    resources : Resources
        With at least one worker.

    Yields
    ------
    distributed.Client
        Connected to all of them.
    """
    workers = resources.n_workers or 1
    blocks = resources.threads_per_worker or 1
    threads = max(1, processors() // (workers * blocks))
    env = {
        "ITKSTREAM_THREADS": str(threads),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
    }
    # It tells the command line of every process it starts, which is of no use to anybody here.
    logging.getLogger("distributed.deploy").setLevel(logging.WARNING)
    with (
        SubprocessCluster(
            n_workers=workers,
            threads_per_worker=blocks,
            dashboard_address=None,
            worker_kwargs={"memory_limit": resources.memory_limit or 0, "env": env},
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers, timeout=120)
        yield client
