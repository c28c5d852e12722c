"""The batch systems there are, and the one of this machine."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

from itkstream.errors import InputError

__all__ = ["SYSTEMS", "BatchSystem", "clock", "find_batch_system", "seconds_of"]

_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d)(?::([0-5]\d))?")


@dataclass(frozen=True)
class BatchSystem:
    """The words of one batch system.

    Parameters
    ----------
    name : str
        As `Resources.cluster` names it.
    cluster : str
        Its class in dask_jobqueue.
    submit : str
        The command that hands in a job.
    project : str
        The option of its class that takes the project to be charged; empty where there is none.
    queues : bool
        Whether jobs name a queue and a walltime.
    walltime_seconds : bool
        Whether a walltime has seconds.
    queue_command : tuple of str
        Prints the numbers of the jobs in the queue of the user who is named after it; empty where
        none is known.
    """

    name: str
    cluster: str
    submit: str
    project: str = "account"
    queues: bool = True
    walltime_seconds: bool = True
    queue_command: tuple[str, ...] = ()


SYSTEMS = {
    system.name: system
    for system in (
        BatchSystem(
            "slurm",
            "SLURMCluster",
            "sbatch",
            queue_command=("squeue", "--noheader", "--format=%A", "--user"),
        ),
        BatchSystem("lsf", "LSFCluster", "bsub", "project", walltime_seconds=False),
        BatchSystem("pbs", "PBSCluster", "qsub"),
        BatchSystem("sge", "SGECluster", "qsub", "project"),
        BatchSystem("htcondor", "HTCondorCluster", "condor_submit", "", queues=False),
        BatchSystem("oar", "OARCluster", "oarsub", "project"),
        BatchSystem("moab", "MoabCluster", "msub"),
    )
}
"""All of them, by name."""


def find_batch_system() -> BatchSystem | None:
    """The batch system whose command is on the PATH, the first one found."""
    # PBS and Grid Engine hand in jobs by the same word; only Grid Engine has qconf. Moab stands
    # in front of PBS, which is there too.
    order = ["slurm", "lsf", "htcondor", "oar", "moab", "sge" if shutil.which("qconf") else "pbs"]
    return next((SYSTEMS[name] for name in order if shutil.which(SYSTEMS[name].submit)), None)


def seconds_of(walltime: str) -> int:
    """Seconds of a walltime: ``H:MM``, ``H:MM:SS`` or ``D-HH:MM:SS``.

    Hours come first, whatever the batch system. Raises `InputError` for anything else.
    """
    found = _WALLTIME.fullmatch(walltime) if isinstance(walltime, str) else None
    days, hours, minutes, seconds = (
        (int(part or 0) for part in found.groups()) if found else [0] * 4
    )
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise InputError(
            "walltime must be text such as '3:59' (hours and minutes), '3:59:00' or "
            f"'1-12:00:00'; got {walltime!r} (in a YAML file put it in quotes)"
        )
    return total


def clock(walltime: str, system: BatchSystem) -> str:
    """A walltime as a batch system writes it: ``HH:MM:SS``, or ``HH:MM`` rounded up.

    Slurm and PBS would take ``2:00`` for two minutes, LSF for two hours.
    """
    seconds = seconds_of(walltime)
    if system.walltime_seconds:
        return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    minutes = -(-seconds // 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
