"""Blocks stream through a GPU: while one computes, the next is read and the last is written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated import EmulatedBackend, needs_compiler

from itkstream.compute.execute import store
from itkstream.errors import BlockErrors
from itkstream.estimate.deformation import prepare_displacement
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.numerics.gpu import dispatch, engine
from itkstream.workers import Resources

BLOCKS = 6
WIDTH = 20
PATIENCE = 20


class Timeline:
    """What happens to blocks.

    The first block computes until another has been read, the last does not before one was written,
    and the first to be written is not until another computes. Others do not wait: all threads may
    have something for the device.
    """

    def __init__(self) -> None:
        self.read = self.begun = self.written = 0
        self.begun_when_written = 0
        self.most = 0
        self._kernels = 0
        self._computing: set[int] = set()
        self._fresh: set[int] = set()
        self._changed = threading.Condition()

    def note_read(self) -> None:
        with self._changed:
            thread = threading.get_ident()
            self.read += thread not in self._fresh
            self._fresh.add(thread)
            self._changed.notify_all()

    def note_kernel(self) -> None:
        with self._changed:
            thread = threading.get_ident()
            self._computing.add(thread)
            self.most = max(self.most, len(self._computing))
            if thread in self._fresh and self.begun == BLOCKS - 1:
                self._await(lambda: self.written > 0, "none was written before the last")
            self._kernels += 1
            self.begun += thread in self._fresh
            self._fresh.discard(thread)
            self._changed.notify_all()
            self._await(lambda: self.read > 1, "no other was read")

    def note_computed(self) -> None:
        with self._changed:
            self._computing.discard(threading.get_ident())

    def note_written(self) -> None:
        with self._changed:
            self.written += 1
            self._changed.notify_all()
            if self.written == 1:
                self.begun_when_written, before = self.begun, self._kernels
                self._await(lambda: self._kernels > before, "no other computed")

    def _await(self, what: Callable[[], bool], else_: str) -> None:
        if not self._changed.wait_for(what, PATIENCE):
            raise AssertionError(else_)


class Watched(EmulatedBackend):
    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self.timeline = timeline

    def launch(self, kernel: str, size: tuple[int, ...], *arguments: Any) -> None:
        self.timeline.note_kernel()
        super().launch(kernel, size, *arguments)

    def release(self) -> None:
        self.timeline.note_computed()


class Source:
    """Voxels in a store that notes when they are read."""

    def __init__(self, values: np.ndarray, timeline: Timeline) -> None:
        self.values, self.timeline = values, timeline
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __getitem__(self, key: Any) -> np.ndarray:
        found = self.values[key]
        self.timeline.note_read()
        return found


class Target(np.ndarray):
    """A result that notes when a block is written."""

    timeline: Timeline

    def __setitem__(self, key: Any, value: Any) -> None:
        self.timeline.note_written()
        super().__setitem__(key, value)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Timeline]:
    """Deform a row of blocks with so many under way."""

    def run(threads: int) -> Timeline:
        timeline = Timeline()
        backend = Watched(timeline)
        for module in (dispatch, engine):
            monkeypatch.setattr(module, "find_backend", lambda: backend)
        grid = Grid((BLOCKS * WIDTH, 16, 16), (1.0, 1.0, 1.0))
        voxels = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
        lazy = prepare_displacement(
            *(Image(Source(voxels, timeline), grid) for _ in range(2)),
            AffineTransform(np.eye(4)),
            (WIDTH, 16, 16),
            PIPELINE_DEFAULTS.for_voxels(grid.spacing),
            overlap=4,
            coarse_voxels=0,
        )
        target = np.empty(lazy.shape, np.float32).view(Target)
        target.timeline = timeline
        store(lazy, target, Resources(engine="gpu", threads_per_worker=threads))
        return timeline

    return run


@needs_compiler
def test_one_block_computes_while_the_next_is_read_and_the_last_written(
    stream: Callable[[int], Timeline],
) -> None:
    found = stream(3)
    assert (found.begun, found.written, found.most) == (BLOCKS, BLOCKS, 1)
    assert found.begun_when_written < BLOCKS


@needs_compiler
def test_one_thread_would_not_do(
    stream: Callable[[int], Timeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.PATIENCE", 0.2)
    with pytest.raises(BlockErrors, match="no other was read"):
        stream(1)
