"""What a registration will need before anything runs: memory, disk, tasks and time.

A plan is data, made from the sizes of two images. Where a memory is given, `Plan.fitted` chooses
blocks, the coarse level and threads for it; a plan that does not fit is refused with its numbers
and with what would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from dask.utils import format_bytes, parse_bytes

from itkstream.errors import PlanError
from itkstream.geometry import Image
from itkstream.io.storage.stored import kept_times
from itkstream.registration.prices import PROCESS_BYTES, Pair, StepPrice, price_steps
from itkstream.registration.steps import (
    Deformable,
    LocalAffines,
    RegisterSettings,
    Step,
    step_from,
    step_name,
    step_parameters,
)
from itkstream.workers import Resources, free_memory

__all__ = ["Plan", "plan_steps"]

# Smaller blocks are mostly overlap, and a smaller coarse level shows too little.
_SMALLEST_BLOCK = 64
_SMALLEST_COARSE = 1e6


@dataclass(frozen=True)
class Plan:
    """What `itkstream.register` needs.

    Parameters
    ----------
    pair : Pair
        The images and the settings of the run.
    steps : tuple of Step
        As they will run.
    workers, threads : int
        Worker processes, 0 for this process alone; blocks each computes at a time.
    memory : float
        Bytes each process may have.
    rates : mapping
        Seconds per voxel of each kind of work, where they were measured.
    """

    pair: Pair
    steps: tuple[Step, ...]
    workers: int
    threads: int
    memory: float
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> RegisterSettings:
        """Of the run."""
        return self.pair.settings

    @property
    def prices(self) -> tuple[StepPrice, ...]:
        """What every step costs, in order."""
        return price_steps(self.pair, self.steps)

    @property
    def tasks(self) -> int:
        """Tasks of all steps."""
        return sum(price.tasks for price in self.prices)

    @property
    def disk(self) -> float:
        """Bytes of all results, before compression."""
        return sum(price.disk for price in self.prices)

    @property
    def peak_memory(self) -> float:
        """Bytes of the process that needs most."""
        return max(map(self.memory_of, self.prices))

    @property
    def seconds(self) -> float | None:
        """How long all steps will take whose work was measured; None where nothing was."""
        known = [seconds for price in self.prices if (seconds := self.seconds_of(price))]
        return sum(known) if known else None

    @property
    def fits(self) -> bool:
        """Whether no process needs more than it may have."""
        return self.peak_memory <= self.memory

    def memory_of(self, price: StepPrice) -> float:
        """Peak memory of a process in one step.

        Parameters
        ----------
        price : StepPrice
            One of `prices`.

        Returns
        -------
        float
            Bytes, libraries included.
        """
        at_once = min(self.threads, price.blocks)
        kept = price.kept * kept_times(at_once)
        return PROCESS_BYTES + price.once + kept + at_once * price.per_block

    def seconds_of(self, price: StepPrice) -> float | None:
        """Time of one step.

        Parameters
        ----------
        price : StepPrice
            One of `prices`.

        Returns
        -------
        float or None
            Seconds; None where its kind of work was not measured.
        """
        rate = self.rates.get(price.kind)
        if rate is None:
            return None
        return price.work * rate / min(price.blocks, max(1, self.workers) * self.threads)

    def fewer_threads(self) -> Plan:
        """The same with fewer blocks at a time, which changes no result.

        Returns
        -------
        Plan
            With as many as fit the memory; itself where not even one does.
        """
        choices = (replace(self, threads=threads) for threads in range(self.threads, 0, -1))
        return next((choice for choice in choices if choice.fits), self)

    def fitted(self) -> Plan:
        """The same with blocks, coarse level and threads that fit the memory.

        All threads are kept busy as long as blocks do not become small; then threads are given up.

        Returns
        -------
        Plan
            Itself where it fits.

        Raises
        ------
        PlanError
            Where nothing fits.
        """
        for choice in _choices(self):
            if choice.fits:
                return choice
        raise PlanError(
            f"{format_bytes(int(self.memory))} are too little for a process: with blocks of "
            f"{_SMALLEST_BLOCK} voxels, one at a time, it would need "
            f"{format_bytes(int(choice.peak_memory))}"
        )

    def require_fit(self) -> Plan:
        """Refuse a plan that is too large.

        Returns
        -------
        Plan
            Itself.

        Raises
        ------
        PlanError
            With what it needs, what there is, and what would fit.
        """
        if self.fits:
            return self
        worst = max(self.prices, key=self.memory_of)
        raise PlanError(
            f"the step {worst.name} ({worst.blocks} blocks of {worst.blocksize} voxels, "
            f"{self.threads} at a time) would need {format_bytes(int(self.memory_of(worst)))} in "
            f"one process, which may have {format_bytes(int(self.memory))}; it would fit with "
            f"{self.fitted().choices()}"
        )

    def choices(self) -> str:
        """What `fitted` may have changed, in words.

        Returns
        -------
        str
            Block sizes, the coarse level and threads.
        """
        named = [
            f"{type(step).__name__}(blocksize={step.blocksize})"
            for step in self.steps
            if isinstance(step, (Deformable, LocalAffines))
        ]
        return ", ".join(
            [
                *named,
                f"RegisterSettings(coarse_voxels={self.settings.coarse_voxels:g}, "
                f"blocksize={self.settings.blocksize})",
                f"threads_per_worker={self.threads}",
            ]
        )


def plan_steps(
    fixed: Image,
    moving: Image,
    steps: Sequence[Step],
    settings: RegisterSettings,
    resources: Resources,
) -> Plan:
    """What registering two images needs as it is asked for.

    Parameters
    ----------
    fixed, moving : Image
        With the same axes; no voxel is read.
    steps : sequence of Step
        Of the registration.
    settings : RegisterSettings
        Of the run.
    resources : Resources
        Workers and threads, and the memory they may have; default what this machine has free.

    Returns
    -------
    Plan
        It may not fit.
    """
    workers = resources.local_workers or 0
    chunks = fixed.together, moving.together
    pair = Pair(fixed.grid, moving.grid, moving.dtype, settings, chunks)
    if resources.cluster == "local":
        threads = resources.threads_per_worker or 1 if workers else resources.threads_here(2**30)[0]
    else:
        workers = resources.max_workers or resources.n_workers or resources.min_workers or 1
        threads = resources.threads_per_worker or 1
    return Plan(pair, tuple(steps), workers, threads, _memory(resources, workers))


def _memory(resources: Resources, workers: int) -> float:
    """Bytes a process may have."""
    if resources.memory_limit is not None:
        return float(parse_bytes(resources.memory_limit))
    if resources.cluster == "local":
        whole = parse_bytes(resources.memory) if resources.memory is not None else free_memory()
        return float(whole) / max(1, workers)
    if resources.memory is not None:
        return float(parse_bytes(resources.memory)) / (resources.processes or 1)
    return float("inf")


def _choices(plan: Plan) -> Iterator[Plan]:
    """Ever smaller plans: blocks before threads, down to the smallest of both."""
    blocks = [step.blocksize for step in plan.steps if isinstance(step, Deformable)]
    largest = max([*blocks, plan.settings.blocksize])
    small = [n for n in _halvings(largest, _SMALLEST_BLOCK) if n >= 2 * _SMALLEST_BLOCK]
    coarse = list(_halvings(plan.settings.coarse_voxels, _SMALLEST_COARSE))
    threads = range(plan.threads, 0, -1)
    yield from (_limited(plan, *c) for c in product(threads, small or [largest], coarse))
    yield _limited(plan, 1, _SMALLEST_BLOCK, coarse[-1])


def _limited(plan: Plan, threads: int, block: int, coarse: float) -> Plan:
    """The plan with no more than that of each."""
    steps = [_with_blocks(step, block) for step in plan.steps]
    settings = replace(
        plan.settings,
        blocksize=min(block, plan.settings.blocksize),
        coarse_voxels=min(coarse, plan.settings.coarse_voxels),
    )
    pair = replace(plan.pair, settings=settings)
    return replace(plan, pair=pair, steps=tuple(steps), threads=threads)


def _with_blocks(step: Step, block: int) -> Step:
    if not isinstance(step, Deformable) or step.blocksize <= block:
        return step
    overlap = None if step.overlap is None else min(step.overlap, block // 4)
    given = step_parameters(step) | {"blocksize": block, "overlap": overlap}
    return step_from(step_name(step), given)


def _halvings(start: float, end: float) -> Iterator[int]:
    """The start, then even halves, not below the end."""
    value = int(start)
    while value >= end:
        yield value
        value = value // 4 * 2
