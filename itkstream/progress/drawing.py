"""State that every drawing of a run keeps: the step that runs, its blocks and the time left."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from itkstream.progress.forecast import Forecast
from itkstream.progress.reporters import Part

__all__ = ["Drawing", "RunningStep", "duration", "said_rate"]


@dataclass
class RunningStep:
    """The step that runs: its number of how many, since when, its blocks, what it found."""

    title: str
    number: int | None
    count: int
    began: float
    done: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def numbered(self) -> str:
        """Its number of all, and its title."""
        return f"{self.number} of {self.count}  {self.title}" if self.number else self.title

    def ended(self, now: float) -> str:
        """Title, time and results on one line."""
        said = f"{self.numbered:28} {now - self.began:6.1f} s  {'; '.join(self.notes)}"
        return said.rstrip()


class Drawing(ABC):
    """A reporter that shows a run, and ends with its ``with``; subclasses say how it looks."""

    def __init__(self) -> None:
        self.forecast = Forecast(())
        self.running: RunningStep | None = None
        self.words: Callable[[str], str] = str
        """Puts a result into the words of whoever reads it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(error is None)
        self.forecast.finish(time.monotonic())
        self.close()

    def expect(self, parts: Sequence[Part]) -> None:
        """Take what will run, in order, with the seconds that are planned."""
        self.forecast = Forecast(parts)

    def step(self, title: str) -> None:
        """Begin a step, and end the one before."""
        self._end(True)
        now = time.monotonic()
        number = self.forecast.begin(title, now)
        self.running = RunningStep(title, number, len(self.forecast.parts), now)
        self.show_begun(self.running)

    def blocks(self, done: int, total: int) -> None:
        """Take how many blocks of the step are done."""
        self.forecast.blocks(done, total, time.monotonic())
        if self.running is not None:
            self.running.done, self.running.total = done, total
            self.show_blocks(self.running)

    def note(self, text: str) -> None:
        """Take a result; it belongs to the step that runs."""
        text = self.words(text)
        if self.running is not None:
            self.running.notes.append(text)
        self.show_note(text)

    @property
    def time_left(self) -> str:
        """The time left of the whole in words; empty where nothing was planned."""
        if not self.forecast.parts:
            return ""
        return f"about {duration(self.forecast.left(time.monotonic()))} left"

    @abstractmethod
    def show_begun(self, step: RunningStep) -> None:
        """Show that a step begins."""

    @abstractmethod
    def show_blocks(self, step: RunningStep) -> None:
        """Show its blocks."""

    @abstractmethod
    def show_note(self, text: str) -> None:
        """Show a result."""

    @abstractmethod
    def show_ended(self, step: RunningStep, well: bool) -> None:
        """Show that a step ended; not well where an error ended the run."""

    def close(self) -> None:  # noqa: B027  not all have an end to draw
        """End the drawing."""

    def _end(self, well: bool) -> None:
        step, self.running = self.running, None
        if step is not None:
            self.show_ended(step, well)


def said_rate(done: int, seconds: float) -> str:
    """Say how fast blocks are done: so many a second, or the time of one where that is longer."""
    if seconds <= done:
        return f"{done / seconds:.3g} a second" if seconds > 0 else "at once"
    return f"{duration(seconds / done)} a block"


def duration(seconds: float) -> str:
    """Say a time in one or two units, without false digits."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
