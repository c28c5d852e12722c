"""Progress and results on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from itkstream.cli.options import name_options
from itkstream.cli.verb import wants_json, wants_quiet

# rich and dask are imported by what uses them: a fifth of a second that --help need not wait for.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table

    from itkstream.registration.plan import Plan

__all__ = ["ConsoleReporter", "make_console", "tabulate_plan"]

_TELL_SECONDS = 10.0


def make_console() -> Console:
    """Make what progress is drawn on: the error output beside JSON, nothing if all is quiet."""
    from rich.console import Console

    return Console(stderr=wants_json(), quiet=wants_quiet(), soft_wrap=True)


class ConsoleReporter:
    """A drawing of a run: the step that runs, its blocks and time left; it ends with its ``with``.

    On a terminal a step that is done is a line: how long it took, what it found. Elsewhere, as in
    a log file, each line begins with the time, and blocks are told every ten seconds.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._running: _Running | None = None

    def __enter__(self) -> ConsoleReporter:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._finish("[green]✓[/]" if error is None else "[red]✗[/]")
        if self._console.is_terminal:
            self._progress.stop()

    def step(self, title: str) -> None:
        """Begin a step, and end the one before."""
        self._finish("[green]✓[/]")
        now = time.monotonic()
        self._running = _Running(title, now, now, self._progress.add_task(title, total=None))
        if not self._console.is_terminal:
            self._log(title)

    def blocks(self, done: int, total: int) -> None:
        """Show how many blocks of the step are done, how fast, and how long the others take."""
        step = self._running
        if step is None:
            return
        self._progress.update(step.task, completed=done, total=total)
        now = time.monotonic()
        if self._console.is_terminal or not done or now - step.told < _TELL_SECONDS:
            return
        step.told, rate = now, done / (now - step.began)
        left = (total - done) / rate
        self._log(f"  {done} of {total} blocks, {rate:.3g} a second, {left:.0f} s left")

    def note(self, text: str) -> None:
        """Print a result, or keep it for the line of its step."""
        text = name_options(text)
        if not self._console.is_terminal:
            self._log(f"  {text}")
        elif self._running is None:
            self._console.print(f"  {text}", highlight=False, markup=False)
        else:
            self._running.notes.append(text)
            self._progress.update(self._running.task, description=self._running.described)

    def _finish(self, sign: str) -> None:
        """End the step that runs; on a terminal its line takes the place of its bar."""
        step, self._running = self._running, None
        if step is None:
            return
        self._progress.remove_task(step.task)
        if self._console.is_terminal:
            seconds = time.monotonic() - step.began
            line = f"{sign} {step.title:20} {seconds:6.1f} s  {_escape('; '.join(step.notes))}"
            self._console.print(line.rstrip(), highlight=False)

    def _log(self, text: str) -> None:
        self._console.print(f"{datetime.now():%H:%M:%S}  {text}", highlight=False, markup=False)


@dataclass
class _Running:
    """The step that runs: since when, when it was last told of, its bar, what it found."""

    title: str
    began: float
    told: float
    task: TaskID
    notes: list[str] = field(default_factory=list)

    @property
    def described(self) -> str:
        """Title and newest result, short enough to stand beside a bar."""
        newest = self.notes[-1] if self.notes else ""
        return f"{self.title}  {newest[:40]}"


def _escape(text: str) -> str:
    """Keep brackets of a result from being taken for colours."""
    from rich.markup import escape as escaped

    return escaped(text)


def tabulate_plan(plan: Plan) -> Table:
    """Lay a plan out as a table: a step a row, and the sums below."""
    from rich.table import Table

    columns = ("blocks", "voxels a block", "tasks", "memory", "disk", "time")
    table = Table("step", *columns, show_footer=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for price in plan.prices:
        size = " x ".join(map(str, price.blocksize))
        memory, seconds = plan.memory_of(price), plan.seconds_of(price)
        sums = _format_sums(price.tasks, memory, price.disk, seconds)
        table.add_row(price.name, str(price.blocks), size, *sums)
    table.add_section()
    sums = _format_sums(plan.tasks, plan.peak_memory, plan.disk, plan.seconds)
    table.add_row("in all", "", "", *sums)
    return table


def _format_sums(tasks: int, memory: float, disk: float, seconds: float | None) -> Sequence[str]:
    from dask.utils import format_bytes, format_time

    return (
        str(tasks),
        format_bytes(int(memory)),
        format_bytes(int(disk)) if disk else "",
        "" if seconds is None else format_time(seconds),
    )
