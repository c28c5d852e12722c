"""Progress and results on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from itkstream.cli.verb import wants_json, wants_quiet

# rich and dask are imported by what uses them: a fifth of a second that --help need not wait for.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table

    from itkstream.registration.plan import Plan

__all__ = ["ConsoleReporter", "make_console", "tabulate_plan"]


def make_console() -> Console:
    """Make what progress is drawn on: the error output beside JSON, nothing if all is quiet."""
    from rich.console import Console

    return Console(stderr=wants_json(), quiet=wants_quiet(), soft_wrap=True)


class ConsoleReporter:
    """A drawing of a run's steps: blocks done, time left; it ends with its ``with`` block.

    Where the output is no terminal, only the results are printed, a line each.
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
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> ConsoleReporter:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._finish()
        if self._console.is_terminal:
            self._progress.stop()

    def step(self, title: str) -> None:
        """Begin the line of a step, and end the one before."""
        self._finish()
        if not self._console.is_terminal:
            self._console.print(title)
        self._task = self._progress.add_task(title, total=None)

    def blocks(self, done: int, total: int) -> None:
        """Show how many blocks of the step are done."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        """Print a result."""
        self._console.print(f"  {text}", highlight=False)

    def _finish(self) -> None:
        if self._task is None:
            return
        task = self._progress.tasks[self._task]
        total = task.total or 1
        self._progress.update(self._task, completed=total, total=total)


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
