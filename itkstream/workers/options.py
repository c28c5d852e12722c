"""Options of users and sites: dask's configuration, those of the jobs, and named clusters."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dask.config
import yaml

from itkstream.errors import InputError, unknown_name
from itkstream.workers.batch_systems import BatchSystem
from itkstream.workers.dask_internals import import_jobqueue

__all__ = ["job_option_names", "jobqueue_class", "presets_path", "read_presets", "split_config"]

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


def presets_path() -> Path:
    """The file of the presets.

    The environment variable ``ITKSTREAM_CLUSTERS``, else ``itkstream/clusters.yaml`` in the user's
    configuration folder, usually ``~/.config``.
    """
    given = os.environ.get("ITKSTREAM_CLUSTERS")
    if given:
        return Path(given).expanduser()
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "itkstream" / "clusters.yaml"


def read_presets(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The values of each preset of the site, by its name; empty where there is no file.

    A preset may have the given keys; any other, or a file that is no YAML, is an `InputError`.
    """
    path = presets_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the clusters of {path}: {error}") from error
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise InputError(f"{path} must hold names of clusters, with the values of each below it")
    known = list(keys)
    for name, values in found.items():
        for key in values:
            if key not in known:
                raise unknown_name(f"key of the cluster {name!r} in {path}", key, known)
    return {str(name): values for name, values in found.items()}
