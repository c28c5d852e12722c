"""Needs of a registration before anything runs: memory, disk, tasks and time.

A plan is data, made from the sizes of two images. Where a memory is given, `Plan.fitted` chooses
blocks, the coarse level and threads for it; a plan that does not fit is refused with its numbers
and with what would. Time is known where a few blocks were computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from dask.utils import format_bytes, format_time, parse_bytes

from itkstream.blocks.inputs import block_grid
from itkstream.blocks.sources import readable
from itkstream.errors import InputError, ItkstreamError, PlanError
from itkstream.geometry import AffineTransform, Block, Image, Transform
from itkstream.geometry.shown.html import card
from itkstream.io.storage.stored import kept_times
from itkstream.numerics.compiled import is_compiled
from itkstream.numerics.gpu.backend import find_backend, visible_devices
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.numerics.threads import using_threads
from itkstream.progress.reporters import Part
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps.prices import (
    COMPILING,
    PROCESS_BYTES,
    RATES,
    Pair,
    StepPrice,
    price_aligned,
    price_certificate,
    price_compiling,
    price_error,
    price_field,
    price_files,
    price_reading,
    price_report,
    price_sampled,
    price_verdict,
)
from itkstream.registration.steps.step import Step
from itkstream.workers import Resources, free_memory

__all__ = ["Plan", "measure_rates", "plan_steps", "price_steps"]

# Smaller blocks are mostly overlap, and a smaller coarse level shows too little.
_SMALLEST_BLOCK = 64
_SMALLEST_COARSE = 1e6

# The blocks that are timed.
_TIMED_BLOCK = 128
_WARM_UP_BLOCK = 32


@dataclass(frozen=True, repr=False)
class Plan:
    """Needs of `itkstream.register`.

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
        Seconds per voxel of each kind of work; those of `RATES` where none were measured here.
    device_memory : float
        Bytes a GPU may have for a block, where one was asked for; infinite where none is needed.

    Examples
    --------
    >>> plan = itkstream.plan(fixed, moving)
    >>> plan.disk < 1e9
    True
    >>> [price.name for price in plan.prices][:2]
    ['read', 'ransac-affine']
    """

    pair: Pair
    steps: tuple[Step, ...]
    workers: int
    threads: int
    memory: float
    rates: Mapping[str, float] = field(default_factory=lambda: RATES)
    device_memory: float = float("inf")

    def __repr__(self) -> str:
        fits = "fits" if self.fits else "does not fit"
        most, there = format_bytes(int(self.peak_memory)), format_bytes(int(self.memory))
        return f"Plan({len(self.prices)} steps, {self.tasks} tasks, {most} of {there}: {fits})"

    def _repr_html_(self) -> str:
        """A line of the table for each step, as Jupyter shows them."""
        rows = [
            (
                price.name,
                price.blocks,
                format_bytes(int(self.memory_of(price))),
                format_bytes(int(price.disk)),
                "" if (seconds := self.seconds_of(price)) is None else format_time(seconds),
            )
            for price in self.prices
        ]
        crew = f"{self.workers} worker processes" if self.workers else "this process"
        lines = repr(self), f"{crew}, {self.threads} blocks at a time"
        return card("Plan", lines, [("step", "blocks", "memory", "disk", "time"), *rows])

    @property
    def settings(self) -> RegisterSettings:
        """The settings of the run."""
        return self.pair.settings

    @property
    def prices(self) -> tuple[StepPrice, ...]:
        """The price of every step, in order."""
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
    def seconds(self) -> float:
        """Seconds for everything."""
        return sum(map(self.seconds_of, self.prices))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything that is told while it runs, by its title, with its seconds.

        Functions are compiled where they are first called, which is soon after the beginning.
        """
        prices = self.prices
        compiling = sum(price.seconds for price in prices if price.name == COMPILING)
        parts = [
            Part(price.title or price.name, self.seconds_of(price))
            for price in prices
            if price.name != COMPILING
        ]
        return (parts[0]._replace(seconds=parts[0].seconds + compiling), *parts[1:])

    @property
    def fits(self) -> bool:
        """Whether no process, and no GPU, needs more than it may have."""
        return self.peak_memory <= self.memory and self.fits_device

    @property
    def fits_device(self) -> bool:
        """Whether no block needs more of a GPU than that has."""
        return self._device <= self.device_memory

    @property
    def _device(self) -> int:
        """Bytes that the largest block takes of a GPU."""
        return int(max(price.device for price in self.prices))

    @property
    def facts(self) -> dict[str, Any]:
        """The plan as JSON takes it: bytes, seconds where they are known, each step."""
        steps = [
            {
                "name": price.name,
                "blocks": price.blocks,
                "blocksize": [*price.blocksize],
                "tasks": price.tasks,
                "memory": int(self.memory_of(price)),
                "disk": int(price.disk),
                "seconds": self.seconds_of(price),
            }
            for price in self.prices
        ]
        device = {} if self.device_memory == float("inf") else {"device_memory": self._device}
        sums = {"memory": int(self.peak_memory), "disk": int(self.disk), "seconds": self.seconds}
        crew = {"workers": self.workers, "threads": self.threads, "fits": self.fits}
        return {"steps": steps, **sums, **device, **crew}

    def memory_of(self, price: StepPrice) -> float:
        """Find the peak memory of a process in one step.

        Parameters
        ----------
        price : StepPrice
            One of `prices`.

        Returns
        -------
        float
            Bytes, libraries included.

        Examples
        --------
        >>> plan = itkstream.plan(fixed, moving)
        >>> max(plan.memory_of(price) for price in plan.prices) == plan.peak_memory
        True
        """
        at_once = min(self.threads, price.blocks)
        kept = price.kept * kept_times(at_once)
        return PROCESS_BYTES + price.once + kept + at_once * price.per_block

    def seconds_of(self, price: StepPrice) -> float:
        """Estimate the time of one step.

        Parameters
        ----------
        price : StepPrice
            One of `prices`.

        Returns
        -------
        float
            Seconds.

        Examples
        --------
        >>> plan = itkstream.plan(fixed, moving)
        >>> plan.seconds_of(plan.prices[0]) > 0
        True
        """
        rate = self.rates.get(price.kind, RATES.get(price.kind, 0.0))
        at_once = min(price.blocks, max(1, self.workers) * self.threads)
        return price.seconds + price.work * rate / at_once

    def fewer_threads(self) -> Plan:
        """Compute fewer blocks at a time, which changes no result.

        Returns
        -------
        Plan
            With as many as fit the memory; itself where not even one does.

        Examples
        --------
        >>> plan = itkstream.plan(fixed, moving)
        >>> plan.fewer_threads().threads <= plan.threads
        True
        """
        choices = (replace(self, threads=threads) for threads in range(self.threads, 0, -1))
        return next((choice for choice in choices if choice.fits), self)

    def fitted(self) -> Plan:
        """Choose blocks, coarse level and threads that fit the memory.

        All threads are kept busy as long as blocks do not become small; then threads are given up.

        Returns
        -------
        Plan
            Itself where it fits.

        Raises
        ------
        PlanError
            Where nothing fits.

        Examples
        --------
        >>> plan = itkstream.plan(fixed, moving)
        >>> plan.fitted().fits
        True
        """
        for choice in _choices(self):
            if choice.fits:
                return choice
        if not choice.fits_device:
            raise PlanError(
                f"{format_bytes(int(self.device_memory))} of a GPU are too little: a block of "
                f"{_SMALLEST_BLOCK} voxels would need {format_bytes(choice._device)}; choose "
                "engine='cpu'"
            )
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

        Examples
        --------
        >>> plan = itkstream.plan(fixed, moving)
        >>> plan.require_fit() is plan
        True
        """
        if self.fits:
            return self
        if not self.fits_device:
            raise PlanError(self._device_refusal())
        worst = max(self.prices, key=self.memory_of)
        raise PlanError(
            f"the step {worst.name} ({worst.blocks} blocks of {worst.blocksize} voxels, "
            f"{self.threads} at a time) would need {format_bytes(int(self.memory_of(worst)))} in "
            f"one process, which may have {format_bytes(int(self.memory))}; it would fit with "
            f"{self.fitted().choices()}"
        )

    def _device_refusal(self) -> str:
        """Say what a block would take of the GPU, and which would fit."""
        worst = max(self.prices, key=lambda price: price.device)
        return (
            f"a block of the step {worst.name} ({worst.blocksize} voxels and its overlap) would "
            f"need {format_bytes(int(worst.device))} of a GPU, where it may have "
            f"{format_bytes(int(self.device_memory))}; it would fit with "
            f"{self.fitted().choices()}, or with engine='cpu'"
        )

    def choices(self) -> str:
        """Say in words what `fitted` may have changed.

        Returns
        -------
        str
            Block sizes, the coarse level and threads.

        Examples
        --------
        >>> plan = itkstream.plan(fixed, moving)
        >>> plan.choices()
        '...blocksize=...'
        """
        named = [
            f"{type(step).__name__}(blocksize={step.planned_block})"
            for step in self.steps
            if step.planned_block is not None
        ]
        return ", ".join(
            [
                *named,
                f"threads_per_worker={self.threads}",
                f"RegisterSettings(coarse_voxels={self.settings.coarse_voxels:.0f}, "
                f"blocksize={self.settings.blocksize})",
            ]
        )


def plan_steps(
    fixed: Image,
    moving: Image,
    steps: Sequence[Step],
    settings: RegisterSettings,
    resources: Resources,
) -> Plan:
    """Plan a registration as it is asked for, which may not fit; no voxel is read.

    Memory that is not given is what this machine has free.
    """
    workers = resources.local_workers or 0
    chunks = fixed.chunk_shape, moving.chunk_shape
    channels = len(moving.channels)
    pair = Pair(fixed.grid, moving.grid, moving.dtype, settings, chunks, channels)
    if resources.cluster == "local":
        threads = resources.blocks_at_once if workers else resources.threads_here(2**30)[0]
    else:
        workers = resources.max_workers or resources.n_workers or resources.min_workers or 1
        threads = resources.blocks_at_once
    memory, device = _memory(resources, workers), _device_memory(resources, workers)
    return Plan(pair, tuple(steps), workers, threads, memory, device_memory=device)


def price_steps(pair: Pair, steps: Sequence[Step]) -> tuple[StepPrice, ...]:
    """Price everything `itkstream.register` does, in the order in which it runs, and compiling."""
    prices = [price_reading(pair)]
    prices += [replace(step.price(pair), title=step.title) for step in steps]
    if not steps or not steps[-1].finds_field:
        prices.append(price_sampled(pair))
    field = steps[-1].field_grid(pair) if steps else pair.half
    if pair.settings.field_tolerance_vox:
        prices.append(price_field(pair, field))
    prices += [price_aligned(pair, field), price_certificate(pair)]
    if pair.settings.error_map:
        prices.append(price_error(pair, field))
    prices += [price_verdict(pair), price_files(pair, field)]
    if pair.settings.report:
        prices.append(price_report(pair))
    if not is_compiled():
        prices.append(price_compiling())
    return tuple(prices)


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


def _device_memory(resources: Resources, workers: int) -> float:
    """Bytes that a block may have of the first GPU of this machine, where it must take it.

    The others are taken to be alike; workers that share one are given equal parts.
    """
    backend = find_backend() if resources.engine == "gpu" and resources.cluster == "local" else None
    if backend is None:
        return float("inf")
    sharing = -(-workers // len(visible_devices())) if workers else 1
    return float(backend.free_bytes()) / sharing


def _choices(plan: Plan) -> Iterator[Plan]:
    """Ever smaller plans: blocks before threads, down to the smallest of both."""
    blocks = [step.planned_block or 0 for step in plan.steps]
    largest = max([*blocks, plan.settings.blocksize])
    small = [n for n in _halvings(largest, _SMALLEST_BLOCK) if n >= 2 * _SMALLEST_BLOCK]
    coarse = list(_halvings(plan.settings.coarse_voxels, _SMALLEST_COARSE))
    threads = range(plan.threads, 0, -1)
    yield from (_limited(plan, *c) for c in product(threads, small or [largest], coarse))
    yield _limited(plan, 1, _SMALLEST_BLOCK, coarse[-1])


def _limited(plan: Plan, threads: int, block: int, coarse: float) -> Plan:
    """The plan with no more than that of each."""
    steps = [step.limited(block) for step in plan.steps]
    settings = replace(
        plan.settings,
        blocksize=min(block, plan.settings.blocksize),
        coarse_voxels=min(coarse, plan.settings.coarse_voxels),
    )
    pair = replace(plan.pair, settings=settings)
    return replace(plan, pair=pair, steps=tuple(steps), threads=threads)


def _halvings(start: float, end: float) -> Iterator[int]:
    """The start, then even halves, not below the end."""
    value = int(start)
    while value >= end:
        yield value
        value = value // 4 * 2


def measure_rates(
    fixed: Image, moving: Image, steps: tuple[Step, ...], blocks: int
) -> dict[str, float]:
    """Time a few blocks: seconds per voxel of each kind of work that the steps need, on one thread.

    Blocks are spread evenly over the image, tissue and empty space alike, so that their mean time
    per voxel is that of all of them. Of two steps with the same kind of work the last is timed.
    """
    if blocks < 1:
        raise InputError(f"probe must be at least 1 block, or 0 for none; got {blocks}")
    fixed, moving = readable(fixed), readable(moving)
    size = tuple(min(_TIMED_BLOCK, n) for n in fixed.shape)
    chosen = _spread(fixed, size, blocks)
    timed = _works(fixed, moving, steps)
    with using_threads(1):
        small = tuple(slice(0, min(_WARM_UP_BLOCK, n)) for n in fixed.shape)
        # The first call of a compiled function loads or compiles it.
        _time_block(fixed[small], timed)
        spent = [_time_block(fixed[block.core], timed) for block in chosen]
    voxels = sum(int(np.prod(block.core_shape)) for block in chosen)
    return {kind: sum(times[kind] for times in spent) / voxels for kind in spent[0]}


def _works(
    fixed: Image, moving: Image, steps: tuple[Step, ...]
) -> dict[str, Callable[[Image], Any]]:
    """The work on a block in memory, by the kind of `StepPrice`."""
    start = _centred(fixed, moving)
    works: dict[str, Callable[[Image], Any]] = {
        "warp": lambda block: warp_block(moving, start, block.grid, WarpSettings())
    }
    for step in steps:
        works |= step.works(moving, start)
    return works


def _time_block(part: Image, works: dict[str, Callable[[Image], Any]]) -> dict[str, float]:
    began = time.perf_counter()
    block = Image(np.asarray(part.read()), part.grid)
    spent = {"read": time.perf_counter() - began}
    for kind, work in works.items():
        began = time.perf_counter()
        # A block without texture is refused at once: that is what it costs.
        with suppress(ItkstreamError):
            work(block)
        spent[kind] = time.perf_counter() - began
    return spent


def _spread(fixed: Image, size: tuple[int, ...], count: int) -> list[Block]:
    """Blocks at equal distances in the order of their numbers."""
    grid = block_grid(fixed.shape, size, 0)
    picked = np.unique(np.linspace(0, len(grid) - 1, min(count, len(grid)) + 2)[1:-1].round())
    places = np.transpose(np.unravel_index(picked.astype(int), grid.numblocks))
    return [grid[tuple(int(i) for i in place)] for place in places]


def _centred(fixed: Image, moving: Image) -> Transform:
    """The shift that brings the middles of the images together: no affine is known yet."""
    matrix = np.eye(fixed.ndim + 1)
    middles = [
        image.grid.to_physical((np.asarray(image.shape) - 1) / 2) for image in (fixed, moving)
    ]
    matrix[:-1, -1] = middles[1] - middles[0]
    return AffineTransform(matrix)
