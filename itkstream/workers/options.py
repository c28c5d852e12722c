"""The parts of `config`: dask's configuration, and options of the batch system's jobs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import dask.config

from itkstream.errors import InputError, unknown_name
from itkstream.workers.batch_systems import BatchSystem
from itkstream.workers.dask_internals import import_jobqueue

__all__ = ["job_option_names", "jobqueue_class", "split_config"]

# Arguments of their own, or none of the user's business.
_RESERVED = {"cores", "processes", "memory", "walltime", "queue", "project", "account"}
_RESERVED |= {"self", "scheduler", "name", "n_workers", "loop", "asynchronous", "config_name"}
_RESERVED |= {"job_cls", "dashboard_address", "host", "scheduler_cls", "base_class_kwargs"}
_RESERVED |= {"job_kwargs", "extra", "env_extra", "job_extra", "header_skip"}


def split_config(
    config: Mapping[str, Any], system: BatchSystem | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part a configuration into dask's and the jobs'.

    Names with dots, and the sections of dask's configuration, are dask's; all others are options of
    the batch system's class in dask_jobqueue. Raises `InputError` for a name that is neither.
    """
    options = job_option_names(system) if system else []
    for_dask, for_jobs = {}, {}
    for name, value in config.items():
        if name in options:
            for_jobs[name] = value
        elif "." in str(name) or dask.config.canonical_name(name, dask.config.config) in (
            dask.config.config
        ):
            for_dask[name] = value
        elif system:
            raise unknown_name(f"option in config for {system.name}", name, options)
        else:
            raise InputError(
                "config takes names of dask's configuration, such as "
                "'distributed.worker.memory.target', and only with a batch system options of its "
                f"jobs; got {name!r}"
            )
    return for_dask, for_jobs


def job_option_names(system: BatchSystem) -> list[str]:
    """The options that jobs of a batch system have, sorted."""
    cluster = jobqueue_class(system)
    names: set[str] = set()
    for kind in (*cluster.__mro__, *cluster.job_cls.__mro__):
        if kind.__module__.startswith("dask_jobqueue"):
            names.update(inspect.signature(kind.__init__).parameters)
    return sorted(names - _RESERVED)


def jobqueue_class(system: BatchSystem) -> Any:
    """The class of a batch system in dask_jobqueue, with its defaults in dask's configuration."""
    return getattr(import_jobqueue(), system.cluster)
