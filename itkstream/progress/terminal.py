"""Progress on a terminal: a line for each step that is done, and a bar for the one that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from itkstream.progress.drawing import Drawing, RunningStep

# rich is imported by what uses it: a fifth of a second that --help need not wait for.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["TerminalReporter"]

_NOTE_LENGTH = 40


class TerminalReporter(Drawing):
    """A run on a terminal.

    Parameters
    ----------
    console : rich.console.Console
        What it is drawn on.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        super().__init__()
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def show_begun(self, step: RunningStep) -> None:
        """Draw a bar."""
        self._task = self._progress.add_task(step.numbered, total=None, left=self.time_left)

    def show_blocks(self, step: RunningStep) -> None:
        """Draw the bar as long as blocks are done, and the time left."""
        self._update(completed=step.done, total=step.total, left=self.time_left)

    def show_note(self, text: str) -> None:
        """Draw the newest result beside the bar; it is printed as its step ends."""
        if self.running is None:
            self._console.print(f"  {text}", highlight=False, markup=False)
        else:
            said = f"{self.running.numbered}  {text[:_NOTE_LENGTH]}"
            self._update(description=said, left=self.time_left)

    def show_ended(self, step: RunningStep, well: bool) -> None:
        """Print a line in the place of the bar."""
        from rich.markup import escape

        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        sign = "[green]✓[/]" if well else "[red]✗[/]"
        said = step.ended(self._progress.get_time())
        self._console.print(f"{sign} {escape(said)}", highlight=False)

    def _update(self, **changed: object) -> None:
        if self._task is not None:
            self._progress.update(self._task, **changed)  # type: ignore[arg-type]
