"""Rounds side by side: each in a thread of this process, all on the same workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock

from itkstream.compute.execute import terminable
from itkstream.errors import InterruptedRunError
from itkstream.progress.reporters import Part, Reporter

__all__ = ["Beside", "OfRound", "run_abreast"]

_TELL_SECONDS = 30.0


class OfRound:
    """A reporter of one round, which says of each step which round it is of."""

    def __init__(self, reporter: Reporter, which: str) -> None:
        self._reporter = reporter
        self._which = which
        self.blocks = reporter.blocks
        self.note = reporter.note

    def expect(self, parts: Sequence[Part]) -> None:
        """Take the parts of the round."""
        named = [Part(f"{self._which}: {part.title}", part.seconds) for part in parts]
        self._reporter.expect(named)

    def step(self, title: str) -> None:
        """Begin a step."""
        self._reporter.step(f"{self._which}: {title}")


class Beside:
    """The reporter of rounds side by side: a line for each step, and for its blocks at times.

    When one of them stops all, the others end with their next step or block.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._telling = Lock()
        self._stopped = Event()

    def of(self, which: str) -> _OneBeside:
        """The reporter of one of the rounds."""
        return _OneBeside(self, which)

    def stop(self) -> None:
        """End all rounds."""
        self._stopped.set()

    def go_on(self) -> None:
        """Raise where all rounds are to end."""
        if self._stopped.is_set():
            raise InterruptedRunError("stopped: run the same again to continue")

    def note(self, text: str) -> None:
        """Tell a line."""
        self.go_on()
        with self._telling:
            self._reporter.note(text)


class _OneBeside:
    """The reporter of one round beside others."""

    def __init__(self, beside: Beside, which: str) -> None:
        self._beside = beside
        self._which = which
        self._title, self._told = "", 0.0

    def expect(self, parts: Sequence[Part]) -> None:
        """Say nothing: the parts of several rounds end in any order."""

    def step(self, title: str) -> None:
        """Tell that a step begins."""
        self._title, self._told = title, time.monotonic()
        self.note(title)

    def blocks(self, done: int, total: int) -> None:
        """Tell at times how many blocks of the step are done."""
        self._beside.go_on()
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._told = time.monotonic()
            self.note(f"{self._title}, {done} of {total} blocks")

    def note(self, text: str) -> None:
        """Tell a result."""
        self._beside.note(f"{self._which}: {text}")


def run_abreast(jobs: Sequence[Callable[[], None]], at_once: int, beside: Beside) -> None:
    """Run jobs, so many at a time; what one of them raises, or Ctrl-C, stops all."""
    with terminable(), ThreadPoolExecutor(at_once, "round") as threads:
        running = [threads.submit(job) for job in jobs]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for job in done:
                job.result()
        except BaseException:
            beside.stop()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
