"""Reporters: what a run tells while it goes on, and to whom."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = ["LogReporter", "Part", "Reporter", "Reporters"]

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """A part of a run: its title on the screen, and the seconds that its plan says."""

    title: str
    seconds: float


class Reporter(Protocol):
    """Told how a run goes on; the command line draws it.

    Examples
    --------
    >>> class Titles:
    ...     def expect(self, parts):
    ...         pass
    ...     def step(self, title):
    ...         print(title)
    ...     def blocks(self, done, total):
    ...         pass
    ...     def note(self, text):
    ...         pass
    >>> quick = itkstream.RegisterSettings(report=False, error_map=False)
    >>> steps = [itkstream.RansacAffine()]
    >>> result = itkstream.register(fixed, moving, "titles", steps, quick, reporter=Titles())
    read
    ...
    """

    def expect(self, parts: Sequence[Part]) -> None:
        """Everything that will run, in order; each part is told by `step` as it begins."""

    def step(self, title: str) -> None:
        """A step begins."""

    def blocks(self, done: int, total: int) -> None:
        """Blocks of the step that are done, and in all; first those that an earlier run did."""

    def note(self, text: str) -> None:
        """A result worth a line."""


class LogReporter:
    """A `Reporter` that writes to the log."""

    def expect(self, parts: Sequence[Part]) -> None:
        """Log how many parts there are."""
        logger.debug("%d steps", len(parts))

    def step(self, title: str) -> None:
        """Log that a step begins."""
        logger.info("%s", title)

    def blocks(self, done: int, total: int) -> None:
        """Log a block that is done."""
        logger.debug("block %d of %d", done, total)

    def note(self, text: str) -> None:
        """Log a result."""
        logger.info("%s", text)


class Reporters:
    """Several reporters that are told the same."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def expect(self, parts: Sequence[Part]) -> None:
        """Tell each what will run."""
        for reporter in self._reporters:
            reporter.expect(parts)

    def step(self, title: str) -> None:
        """Tell each that a step begins."""
        for reporter in self._reporters:
            reporter.step(title)

    def blocks(self, done: int, total: int) -> None:
        """Tell each how many blocks are done."""
        for reporter in self._reporters:
            reporter.blocks(done, total)

    def note(self, text: str) -> None:
        """Tell each a result."""
        for reporter in self._reporters:
            reporter.note(text)
