"""Jobs that are lost are replaced."""

from __future__ import annotations

import asyncio
import getpass
import logging
import subprocess
import time
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed import Adaptive

from itkstream.workers.batch_systems import BatchSystem

__all__ = ["Replacing", "queued_jobs"]

logger = logging.getLogger(__name__)

# The queue is asked for jobs that have not come yet, no more often than this.
_ASK_SECONDS = 10


class Replacing(Adaptive):
    """Adaptive scaling that also notices jobs which ended without a word.

    dask asks for a new job once a worker that was there has been gone for a while, but neither
    where a job holds several workers, nor where it was cancelled before its worker came.

    Parameters
    ----------
    system : BatchSystem
        Where the jobs are.
    cluster : dask_jobqueue.JobQueueCluster
        Whose jobs they are.
    **options
        As for `distributed.Adaptive`.
    """

    def __init__(self, system: BatchSystem, cluster: Any, **options: Any) -> None:
        self.stillborn: list[str] = []
        self._system = system
        self._seen: dict[str, float] = {}
        self._asked = time.monotonic()
        super().__init__(cluster, **options)

    async def safe_target(self) -> int:
        """Whole jobs: half a job would be closed and handed in again without end.

        Returns
        -------
        int
            Workers.
        """
        target = int(await super().safe_target())
        size = len((self.cluster.new_spec or {}).get("group", " "))
        return -(-target // size) * size

    async def recommendations(self, target: int) -> dict[str, Any]:
        """Forget lost jobs first, which lets dask hand in others in their place.

        Parameters
        ----------
        target : int
            Workers that there should be.

        Returns
        -------
        dict
            As `distributed.Adaptive` has it.
        """
        for name in await self._lost():
            job = self.cluster.workers.pop(name, None)
            if job is not None:
                logger.warning("job %s is lost; another takes its place", job.job_id)
                await job.close()
        found: dict[str, Any] = await super().recommendations(target)
        return found

    async def _lost(self) -> list[Any]:
        """Names of jobs whose workers have all gone, or will never come."""
        now = time.monotonic()
        patience = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
        present = {str(name) for name in self.cluster.observed}
        lost, awaited = [], {}
        for name, job in self.cluster.workers.items():
            group = self.cluster.worker_spec.get(name, {}).get("group", [""])
            if any(f"{name}{suffix}" in present for suffix in group):
                self._seen[job.job_id] = now
            elif job.job_id not in self._seen:
                awaited[job.job_id] = name
            elif now - self._seen[job.job_id] > patience:
                lost.append(name)
        ended = await self._ended(set(awaited))
        self.stillborn += sorted(ended)
        return lost + [awaited[job_id] for job_id in ended]

    async def _ended(self, jobs: set[str]) -> set[str]:
        """Those that are no longer in the queue, as far as it can be asked."""
        if not jobs or time.monotonic() - self._asked < _ASK_SECONDS:
            return set()
        self._asked = time.monotonic()
        queued = await asyncio.to_thread(queued_jobs, self._system)
        return set() if queued is None else jobs - queued


def queued_jobs(system: BatchSystem) -> set[str] | None:
    """Jobs of this user that wait or run.

    Parameters
    ----------
    system : BatchSystem
        Where to ask.

    Returns
    -------
    set of str or None
        Their numbers; None where the batch system cannot be asked.
    """
    if not system.queue_command:
        return None
    command = [*system.queue_command, getpass.getuser()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("%s did not answer: %s", command[0], error)
        return None
    return set(done.stdout.split())
