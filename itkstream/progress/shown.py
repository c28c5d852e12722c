"""Progress as it is shown where no reporter was given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from itkstream.progress.drawing import Drawing
from itkstream.progress.lines import LineReporter
from itkstream.progress.notebook import NotebookReporter, in_notebook
from itkstream.progress.reporters import LogReporter, Reporter, Reporters
from itkstream.progress.terminal import TerminalReporter

__all__ = ["Told", "telling"]

Told: TypeAlias = Reporter | Literal["auto"] | None
"""Reporter of a run: 'auto' for a bar or lines, whatever fits the place; None for the log alone."""


@contextmanager
def telling(told: Told) -> Iterator[Reporter]:
    """Give the reporter of a run; what is drawn ends with the ``with``."""
    if told is None:
        yield LogReporter()
    elif told == "auto":
        with _drawing() as drawing:
            yield Reporters(drawing, LogReporter())
    else:
        yield told


def _drawing() -> Drawing:
    """A bar in a notebook or on a terminal, else lines on the error output."""
    if in_notebook():
        return NotebookReporter()
    if sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console

        return TerminalReporter(Console(stderr=True, soft_wrap=True))
    return LineReporter(_write)


def _write(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
