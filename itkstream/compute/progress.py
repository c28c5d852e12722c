"""The blocks of a run: numbered, counted as they are done, and listed where they fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np

from itkstream.compute.schedule import Failure
from itkstream.errors import BlockErrors, BlockFailure, OutputError, RefusedInputError
from itkstream.io.storage.chunk_files import Region

__all__ = ["Blocks", "Progress", "Tally"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called as ``progress(blocks_done, blocks_in_all)``, at the start and after every block."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a lazy array, numbered in index order, and the names of its axes if known."""

    array: da.Array
    axes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(np.prod(self.array.numblocks))

    def index(self, number: int) -> tuple[int, ...]:
        """Position of a block in the block grid."""
        return tuple(int(k) for k in np.unravel_index(number, self.array.numblocks))

    def key(self, number: int) -> tuple[Any, ...]:
        """The name of a block in dask's graph."""
        return (self.array.name, *self.index(number))

    def region(self, number: int) -> Region:
        """The elements of a block."""
        spans = zip(self.index(number), self._borders, strict=True)
        return tuple(slice(borders[k], borders[k + 1]) for k, borders in spans)

    def failure(self, number: int, reason: str) -> BlockFailure:
        """A note that a block failed, with its place."""
        region = tuple((span.start, span.stop) for span in self.region(number))
        return BlockFailure(self.index(number), region, reason, self.axes)

    def by_columns(self, numbers: Sequence[int]) -> list[int]:
        """Blocks along columns of two by two, so that what neighbours share is read once.

        For a block 2.3 chunks of its size are decoded if a process keeps 18; in index order 4.1,
        in any order 8.
        """
        longest = int(np.argmax(self.array.numblocks))

        def place(number: int) -> tuple[list[int], int, list[int]]:
            index = list(self.index(number))
            along = index.pop(longest)
            return [k // 2 for k in index], along, index

        return sorted(numbers, key=place)

    @cached_property
    def _borders(self) -> list[list[int]]:
        return [np.cumsum([0, *lengths]).tolist() for lengths in self.array.chunks]


class Tally:
    """Counts the blocks that are done, reports them, and collects those that fail."""

    def __init__(self, blocks: Blocks, progress: Progress, kept: int = 0) -> None:
        self._blocks = blocks
        self._progress = progress
        self.done = kept
        self._failures: list[BlockFailure] = []
        self._lasting = 0
        self._error: BaseException | None = None
        progress(kept, self.total)

    @property
    def total(self) -> int:
        """Blocks in all."""
        return len(self._blocks)

    @property
    def failures(self) -> list[BlockFailure]:
        """The blocks that failed, in index order."""
        return sorted(self._failures, key=lambda failure: failure.index)

    def count(self) -> None:
        """Count a block that is done."""
        self.done += 1
        self._progress(self.done, self.total)

    def note_failure(self, number: int, failure: Failure) -> None:
        """Note a block that failed; raise where the reason is that of all blocks.

        Nothing can be written then (OutputError), or an input is refused (RefusedInputError).
        """
        if isinstance(failure.error, (OutputError, RefusedInputError)):
            raise failure.error
        noted = self._blocks.failure(number, failure.reason)
        logger.info("%s; the others go on", noted)
        self._failures.append(noted)
        self._lasting += failure.lasting
        self._error = self._error or failure.error

    def conclude(self, advice: str) -> None:
        """Raise BlockErrors if any block failed, with advice unless that would fail alike."""
        if self.failures:
            if self._lasting == len(self._failures):
                advice = "a second run would fail alike: change the input or the parameters"
            raise BlockErrors(self.failures, self.total, advice) from self._error
