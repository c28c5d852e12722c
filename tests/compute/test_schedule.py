"""Blocks on threads and on workers: every task once, failures beside results, nothing piles up."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client, Future, LocalCluster

from itkstream.compute.schedule import Failure, block_graph, run_here, run_on
from itkstream.errors import InputError, WorkersError

SIDE = 12


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers that are threads of this process, so that tests see what they do."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itkstream.compute.schedule._WINDOW", 20)


class Counted:
    """Counts how often each block is computed; some fail."""

    def __init__(self, *broken: tuple[int, ...]) -> None:
        self.calls: Counter[tuple[int, ...]] = Counter()
        self.broken = broken
        self.lock = threading.Lock()

    def __call__(self, block: np.ndarray, block_id: Any = None) -> np.ndarray:
        with self.lock:
            self.calls[block_id] += 1
        if block_id in self.broken:
            raise ValueError(f"broken {block_id}")
        return block

    # Workers that are threads of this process take it as it is.
    def __reduce__(self) -> Any:
        _counted[id(self)] = self
        return _look_up, (id(self),)


_counted: dict[int, Counted] = {}


def _look_up(number: int) -> Counted:
    return _counted[number]


def neighbourly(counted: Counted) -> da.Array:
    """144 blocks, each the sum of itself and what touches it."""
    values = da.from_array(np.arange(SIDE**2.0).reshape(SIDE, SIDE), chunks=1)
    seen = values.map_blocks(
        counted, dtype=float, meta=np.empty((0, 0)), name=f"seen-{id(counted)}"
    )
    around = da.overlap.overlap(seen, 1, "none")
    return around.map_blocks(np.sum, keepdims=True, dtype=float, chunks=values.chunks)


def keys_of(array: da.Array) -> list[Any]:
    return [(array.name, *index) for index in np.ndindex(array.numblocks)]


def collect(array: da.Array, client: Client | None) -> dict[tuple[int, ...], Any]:
    graph, wanted = block_graph(array, keys_of(array), None, [])
    found: dict[tuple[int, ...], Any] = {}

    def done(key: Any, value: Any) -> None:
        assert key[1:] not in found
        found[key[1:]] = value
        if client is not None:
            # Two windows of 20 at most, and what their borders need of the next: rows of blocks. A
            # row more, as futures that were let go are counted until the client hears of it.
            assert len(client.futures) <= 2 * 20 + 4 * SIDE

    if client is None:
        run_here(graph, wanted, 2, done)
    else:
        run_on(client, graph, wanted, done)
    return found


@pytest.mark.parametrize("where", ["here", "workers"])
def test_every_task_runs_once(where: str, client: Client) -> None:
    counted = Counted()
    array = neighbourly(counted)
    found = collect(array, client if where == "workers" else None)
    assert len(found) == SIDE**2
    expected = array.compute(scheduler="synchronous")
    for index, value in found.items():
        assert value.item() == expected[index]
    counted.calls.subtract(counted.calls.keys())  # those of the expected values
    assert set(counted.calls.values()) == {1}


@pytest.mark.parametrize("where", ["here", "workers"])
def test_failures_are_values(where: str, client: Client) -> None:
    counted = Counted((0, 0), (5, 7))
    found = collect(neighbourly(counted), client if where == "workers" else None)
    failed = {index for index, value in found.items() if isinstance(value, Failure)}
    near = {(i, j) for i in (4, 5, 6) for j in (6, 7, 8)}
    assert failed == {(0, 0), (0, 1), (1, 0), (1, 1)} | near
    assert "ValueError: broken (5, 7) (test_schedule.py, line" in found[6, 8].reason
    assert set(counted.calls.values()) == {1}


@pytest.mark.parametrize("where", ["here", "workers"])
def test_an_error_of_the_listener_stops_all(where: str, client: Client) -> None:
    counted = Counted()
    array = da.ones(200, chunks=1).map_blocks(
        lambda b, block_id=None: (time.sleep(0.01), counted(b, block_id))[1], dtype=float
    )
    graph, wanted = block_graph(array, keys_of(array), None, [])

    def done(_key: Any, _value: Any) -> None:
        raise RuntimeError("enough")

    def run() -> None:
        if where == "here":
            run_here(graph, wanted, 2, done)
        else:
            run_on(client, graph, wanted, done)

    with pytest.raises(RuntimeError, match="enough"):
        run()
    time.sleep(0.2)  # those under way
    before = sum(counted.calls.values())
    time.sleep(0.3)
    assert sum(counted.calls.values()) == before < 100


def test_blocks_are_delivered_where_they_are_computed(client: Client) -> None:
    array = da.arange(6, chunks=2) * 2
    delivered = []

    def sink(place: slice, block: np.ndarray) -> int:
        return int(block.sum()) + place.start

    graph, wanted = block_graph(
        array, keys_of(array), sink, [slice(0, 2), slice(2, 4), slice(4, 6)]
    )
    # One task a block computes and delivers it; the sink stands in the graph once.
    assert len(graph) == 3 + 1
    for run in (lambda *a: run_here(*a[:2], 2, a[2]), lambda *a: run_on(client, *a)):
        found: dict[Any, int] = {}
        run(graph, wanted, found.__setitem__)
        delivered.append([found[key] for key in wanted])
    assert delivered == [[2, 12, 22]] * 2


def test_cancelled_blocks_are_an_error_and_no_endless_wait(client: Client) -> None:
    array = da.ones(40, chunks=1, name="cancelled").map_blocks(
        lambda b: (time.sleep(0.02), b)[1], dtype=float
    )
    graph, wanted = block_graph(array, keys_of(array), None, [])

    def done(_key: Any, _value: Any) -> None:
        client.cancel([Future(key, client) for key in client.futures], force=True)

    with pytest.raises(WorkersError, match="run the same again"):
        run_on(client, graph, wanted, done)


def test_failures_travel() -> None:
    class Local(Exception):
        """Of no module that others could import."""

    try:
        raise Local("two\nlines")
    except Local as error:
        failure = Failure.of(error)
    assert failure.reason.startswith("Local: two lines (test_schedule.py, line")
    assert failure.error.__traceback__ is None
    travelled = pickle.loads(pickle.dumps(failure))
    assert travelled.reason == failure.reason
    assert isinstance(travelled.error, RuntimeError)
    known = pickle.loads(pickle.dumps(Failure.of(InputError("expected 2, got 3"))))
    assert known.reason == "expected 2, got 3"
    assert isinstance(known.error, InputError)
