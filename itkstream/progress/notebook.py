"""Progress in a notebook: one output that is changed, and so never many."""

from __future__ import annotations

import time
from html import escape
from typing import Any

from itkstream.progress.drawing import Drawing, RunningStep

__all__ = ["NotebookReporter", "in_notebook"]

# A notebook keeps every change that is sent while its page is closed.
_LEAST_SECONDS = 0.5


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    try:
        shell = get_ipython()  # type: ignore[name-defined]
    except NameError:
        return False
    return hasattr(shell, "kernel")


class NotebookReporter(Drawing):
    """A run as one output of a cell: the steps that are done, and a bar for the one that runs."""

    def __init__(self) -> None:
        super().__init__()
        self._done: list[str] = []
        self._shown = 0.0
        self._output: Any = None

    def show_begun(self, step: RunningStep) -> None:
        """Show its bar."""
        self._show(True)

    def show_blocks(self, step: RunningStep) -> None:
        """Show the blocks, at most twice a second."""
        self._show(step.done == step.total)

    def show_note(self, text: str) -> None:
        """Show a result that no step gave; others are shown as their step ends."""
        if self.running is None:
            self._done.append(f"  {text}")
        self._show(False)

    def show_ended(self, step: RunningStep, well: bool) -> None:
        """Show its line."""
        self._done.append(f"{'✓' if well else '✗'} {step.ended(time.monotonic())}")

    def close(self) -> None:
        """Show all lines, and no bar."""
        self._show(True)

    def _show(self, must: bool) -> None:
        from IPython.display import HTML, display

        now = time.monotonic()
        if not must and now - self._shown < _LEAST_SECONDS:
            return
        self._shown = now
        drawn = HTML(self._html())
        if self._output is None:
            self._output = display(drawn, display_id=True)
        else:
            self._output.update(drawn)

    def _html(self) -> str:
        lines = f"<pre>{escape(chr(10).join(self._done))}</pre>" if self._done else ""
        step = self.running
        if step is None:
            return lines
        length = f" value='{step.done}' max='{step.total}'" if step.total else ""
        blocks = f"{step.done} of {step.total} blocks, " if step.total else ""
        said = escape(f"{step.numbered}  {blocks}{self.time_left}")
        return f"{lines}<progress{length}></progress> {said}"
