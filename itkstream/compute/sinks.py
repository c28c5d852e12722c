"""Sinks take the blocks of a run: their contract, and an array in memory.

Arrays in stores are `itkstream.compute.resume.Output`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from itkstream.compute.progress import Blocks
from itkstream.errors import BlockFailure
from itkstream.io.storage.chunk_files import Region
from itkstream.numerics.gpu.engine import Engine
from itkstream.workers import Resources

__all__ = ["Memory", "Sink", "Work"]


@dataclass(frozen=True, eq=False)
class Work:
    """The work that an open sink asks of a run.

    Parameters
    ----------
    missing : sequence of int
        Numbers of the blocks to compute.
    deliver : callable
        Called as ``deliver(region, block)`` by the task that computed the block; what it returns
        comes to the run instead of the block.
    by_workers : bool
        Whether other processes can deliver; else their blocks come to the run.
    recording : callable
        Gives the context in which blocks are computed, of ``record(number, value)``, called by
        the run for every block that is done.
    finish : callable
        Called with the blocks that failed, when no other is missing.
    engine : {'cpu', 'gpu', 'auto'}
        What computes them.
    axes : tuple of str, optional
        Names of the axes, where the place has them.
    """

    missing: Sequence[int]
    deliver: Callable[[Region, NDArray[Any]], Any]
    by_workers: bool
    recording: Callable[[], AbstractContextManager[Callable[[int, Any], None]]]
    finish: Callable[[Sequence[BlockFailure]], None]
    engine: Engine
    axes: tuple[str, ...] = ()


class Sink(Protocol):
    """A place for the blocks of a run."""

    @property
    def continued(self) -> bool:
        """Whether the same run, started again, computes only what is missing."""

    def opened(self, blocks: Blocks, resources: Resources) -> AbstractContextManager[Work]:
        """Make the place ready for blocks; complete at the end of the context."""


@dataclass(frozen=True, eq=False)
class Memory:
    """An array of this process."""

    out: NDArray[Any]
    continued = False

    @contextmanager
    def opened(self, blocks: Blocks, resources: Resources) -> Iterator[Work]:
        """Ask for all blocks."""

        def record(number: int, value: NDArray[Any] | None) -> None:
            if value is not None:
                self.out[blocks.region(number)] = value

        recording, engine = lambda: nullcontext(record), resources.choose_engine()
        yield Work(range(len(blocks)), self._put, False, recording, _finish, engine)

    def _put(self, region: Region, block: NDArray[Any]) -> None:
        self.out[region] = block


def _finish(_failures: Sequence[BlockFailure]) -> None:
    """Leave nothing to do."""
