"""Jobs and processes are started, and those that are lost are replaced."""

from __future__ import annotations

import asyncio
import getpass
import logging
import subprocess
import time
from typing import Any
from weakref import WeakKeyDictionary

import dask.config
from dask.utils import parse_timedelta
from distributed import Adaptive

from itkstream.workers.batch_systems import BatchSystem
from itkstream.workers.dask_internals import (
    close_for_cluster,
    is_closing,
    is_short_of_workers,
    plan_workers,
    present_workers,
    workers_ended,
    workers_of_job,
    workers_per_job,
)

__all__ = ["Replacing", "hand_in", "queued_jobs"]

logger = logging.getLogger(__name__)

# The queue is asked for jobs that have not come yet, no more often than this.
_ASK_SECONDS = 10
# A refused job is not handed in again before.
_RETRY_SECONDS = 60


async def hand_in(cluster: Any, workers: int) -> None:
    """Start as many jobs or processes as it takes to have so many workers.

    Unlike `cluster.scale`, it waits for the answer of the batch system, and raises RuntimeError
    with its words where that refuses. A cluster that is being closed starts none: it would find a
    job that is handed in after it has cancelled all still running, and fail.
    """
    if is_closing(cluster):
        return
    plan_workers(cluster, workers)
    try:
        await cluster
    except RuntimeError:
        for job in cluster.workers.values():
            if getattr(job, "job_id", "") is None:
                # It has no job to cancel; the cluster closes only where all its jobs are closed.
                await close_for_cluster(job)
        raise


class Replacing(Adaptive):
    """Adaptive scaling that also replaces processes which ended without a word.

    A nanny starts its worker again; this replaces nannies, which dask does not miss.
    """

    def __init__(self, cluster: Any, **options: Any) -> None:
        super().__init__(cluster, **options)

    async def recommendations(self, target: int) -> dict[str, Any]:
        """Forget lost workers first, which lets dask start others in their place."""
        lost = await self.lost()
        # To ask the queue takes a while, in which the cluster may have been closed, and then
        # nothing is lost.
        if is_closing(self.cluster):
            return {"status": "same"}
        for name in lost:
            worker = self.cluster.workers.pop(name, None)
            if worker is not None:
                logger.warning("worker %s is lost; another takes its place", name)
                # A job that is cancelled does not count itself as closed, but the cluster does not
                # close before all that it has ever started are.
                await close_for_cluster(worker)
                await worker.close()
        if is_short_of_workers(self.cluster):
            await self.scale_up(len(self.plan))
        found: dict[str, Any] = await super().recommendations(target)
        return found

    async def scale_up(self, n: int) -> None:
        """Start workers until there are n, and wait for it."""
        await hand_in(self.cluster, n)

    async def lost(self) -> list[Any]:
        """Names of workers that must be replaced."""
        return workers_ended(self.cluster)


class ReplacingJobs(Replacing):
    """Replaces jobs that ended without a word.

    dask asks for a new job once a worker that was there has been gone for a while, but neither
    where a job holds several workers, nor where it was cancelled before its worker came.
    """

    def __init__(self, system: BatchSystem, cluster: Any, **options: Any) -> None:
        self.stillborn: list[str] = []
        self._system = system
        self._seen: dict[str, float] = {}
        self._refused: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._asked = time.monotonic()
        super().__init__(cluster, **options)

    async def safe_target(self) -> int:
        """Workers of whole jobs: half a job would be closed and handed in again without end."""
        target = int(await super().safe_target())
        size = workers_per_job(self.cluster)
        return -(-target // size) * size

    async def scale_up(self, n: int) -> None:
        """Hand in jobs; that one is refused now does not end what runs already."""
        try:
            await hand_in(self.cluster, n)
        except RuntimeError as error:
            logger.warning("%s refused a job: %s", self._system.submit, error)

    async def lost(self) -> list[Any]:
        """Names of jobs whose workers are gone or will never come; refused ones after a while."""
        now = time.monotonic()
        patience = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
        present = present_workers(self.cluster)
        lost, awaited = [], {}
        for name, job in self.cluster.workers.items():
            if job.job_id is None:
                if now - self._refused.setdefault(job, now) > _RETRY_SECONDS:
                    lost.append(name)
            elif present & workers_of_job(self.cluster, name):
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
    """Numbers of this user's jobs that wait or run; None where the batch system cannot be asked."""
    if not system.queue_command:
        return None
    command = [*system.queue_command, getpass.getuser()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("%s did not answer: %s", command[0], error)
        return None
    return set(done.stdout.split())
