"""Graphs of every prepare_ function: tasks per block, and what many blocks cost."""

from __future__ import annotations

import importlib
from pathlib import Path

import dask
import pytest
import scale

COUNT = 4


def known_doors() -> set[str]:
    modules = [importlib.import_module(f"itkstream.{n}") for n in ("affine", "deform", "transform")]
    return {name for module in modules for name in module.__all__ if name.startswith("prepare_")}


def test_every_prepare_function_is_counted(tmp_path: Path) -> None:
    # The piecewise affine of the tutorial is a door to prepare_local_affines.
    assert known_doors() - {"prepare_local_affines"} == set(scale.preparations(tmp_path, COUNT))


@pytest.mark.parametrize("name", sorted(known_doors() - {"prepare_local_affines"}))
def test_at_most_three_tasks_a_block(tmp_path: Path, name: str) -> None:
    lazy = scale.preparations(tmp_path, COUNT)[name]()
    shared = ("source-", "known-", "shared-", "start-", "overall-", "bounds_block-", "rechunk-")
    (optimised,) = dask.optimize(lazy)
    for array in (lazy, optimised):
        kinds: dict[str, int] = {}
        for key in dict(array.__dask_graph__()):
            kind = str(key if isinstance(key, str) else key[0])
            if not kind.startswith(shared):
                kinds[kind] = kinds.get(kind, 0) + 1
        # The blocks; what is one for all, such as the affines found together, is no task a block.
        assert sum(kinds.values()) <= 3 * COUNT**3 + 2, kinds


@pytest.mark.parametrize("name", ["prepare_displacement", "prepare_apply_local_affines"])
def test_time_and_memory_of_a_graph(tmp_path: Path, name: str) -> None:
    count = 12
    measured = scale.schedule(scale.preparations(tmp_path, count)[name])
    # 100,000 blocks in 60 seconds and 2 GB are 0.6 ms and 20 kB each.
    assert measured["cpu_seconds"] < 0.6e-3 * count**3 + 1
    assert measured["peak_mb"] < 2000


@pytest.mark.slow
def test_blocks_that_do_nothing_are_timed() -> None:
    found = scale.overheads(4)
    # Untimed here; the goal is 5 ms on an idle machine.
    assert found["threads_ms"] > 0
    assert found["workers_ms"] > 0
