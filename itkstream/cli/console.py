"""Progress and results on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from itkstream.cli.options import name_options
from itkstream.cli.verb import wants_json, wants_quiet
from itkstream.progress.drawing import Drawing, duration
from itkstream.progress.lines import LineReporter
from itkstream.progress.terminal import TerminalReporter

# rich and dask are imported by what uses them: a fifth of a second that --help need not wait for.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from itkstream.registration.plan import Plan

__all__ = ["console_reporter", "make_console", "tabulate_plan"]


def make_console() -> Console:
    """Make what progress is drawn on: the error output beside JSON, nothing if all is quiet."""
    from rich.console import Console

    return Console(stderr=wants_json(), quiet=wants_quiet(), soft_wrap=True)


def console_reporter(console: Console) -> Drawing:
    """Make what draws a run: a bar on a terminal, else lines as in a log file."""
    drawing: Drawing
    if console.is_terminal and not console.quiet:
        drawing = TerminalReporter(console)
    else:
        drawing = LineReporter(partial(console.print, highlight=False, markup=False))
    drawing.words = name_options
    return drawing


def tabulate_plan(plan: Plan) -> Table:
    """Lay a plan out as a table: a step a row, and the sums below."""
    from rich.table import Table

    columns = ("blocks", "voxels a block", "memory", "disk", "time")
    table = Table("step", *columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for price in plan.prices:
        size = " x ".join(map(str, price.blocksize))
        memory, seconds = plan.memory_of(price), plan.seconds_of(price)
        blocks = str(price.blocks) if price.blocksize else ""
        sums = _format_sums(memory, price.disk, seconds)
        table.add_row(price.title or price.name, blocks, size, *sums)
    table.add_section()
    sums = _format_sums(plan.peak_memory, plan.disk, plan.seconds)
    table.add_row("in all", "", "", *sums)
    return table


def _format_sums(memory: float, disk: float, seconds: float) -> Sequence[str]:
    from dask.utils import format_bytes

    stored = format_bytes(int(disk)) if disk else ""
    return format_bytes(int(memory)), stored, duration(seconds)
