"""Progress as plain lines, for a log file."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from itkstream.progress.drawing import Drawing, RunningStep, said_rate

__all__ = ["LineReporter"]

_TELL_SECONDS = 10.0


class LineReporter(Drawing):
    """A run as lines that begin with the time; blocks are told every ten seconds.

    Parameters
    ----------
    write : callable
        Takes a line.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__()
        self._write = write
        self._told = 0.0

    def show_begun(self, step: RunningStep) -> None:
        """Write its number, its title and the time left."""
        self._told = step.began
        self._line(", ".join(filter(None, [step.numbered, self.time_left])))

    def show_blocks(self, step: RunningStep) -> None:
        """Write blocks, rate and time left, now and then."""
        now = time.monotonic()
        if not step.done or now - self._told < _TELL_SECONDS:
            return
        self._told = now
        rate = said_rate(step.done, now - step.began)
        blocks = f"  {step.done} of {step.total} blocks, {rate}"
        self._line(", ".join(filter(None, [blocks, self.time_left])))

    def show_note(self, text: str) -> None:
        """Write a result."""
        self._line(f"  {text}")

    def show_ended(self, step: RunningStep, well: bool) -> None:
        """Write nothing: the next line has the time."""

    def _line(self, text: str) -> None:
        self._write(f"{datetime.now():%H:%M:%S}  {text}")
