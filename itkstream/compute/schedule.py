"""Blocks of a graph computed on threads or on workers; one that fails does not stop the others.

Two schedulers of dask do the work: its threaded one in this process, or a cluster's. Both are
given plain tasks, and both tell of each block as soon as it is done or has failed.
"""

from __future__ import annotations

import contextvars
import logging
import pickle
import queue
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask.array as da
from dask.callbacks import Callback
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import Alias, DataNode, GraphNode, List, Task, TaskRef
from dask.threaded import get as threaded_get
from distributed import Client, as_completed

from itkstream.blocks.graph import EARLY, SHARED
from itkstream.compute.shared_inputs import Parcel, lent
from itkstream.errors import InputError, ItkstreamError, RegistrationError, WorkersError
from itkstream.io.storage.stored import keeping_chunks
from itkstream.numerics.gpu.engine import Engine, using_engine
from itkstream.workers.dask_internals import plain_tasks
from itkstream.workers.processes import end_if_spent, note_lost_device

__all__ = ["Done", "Failure", "block_graph", "run_here", "run_on"]

logger = logging.getLogger(__name__)

Graph = dict[Any, GraphNode]
Done = Callable[[Any, Any], None]
"""Called with the key of a block and its value, or with a `Failure`; it may raise to stop all."""

# Blocks given to a cluster at a time: its scheduler holds some 20 kB for each task it knows.
_WINDOW = 1000


@dataclass(frozen=True)
class Failure:
    """The rest of a block that raised; it stands for the block's value.

    `reason` is one line; `error` has no traceback, which would hold the voxels of the block.
    """

    reason: str
    error: BaseException

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Take from a caught exception what is worth keeping.

        The place in the code is part of the reason, unless the exception explains itself.
        """
        logger.debug("a block failed", exc_info=error)
        text = " ".join(str(error).split())
        if not (isinstance(error, ItkstreamError) and text):
            text = f"{type(error).__name__}: {text}" if text else type(error).__name__
            for frame in traceback.extract_tb(error.__traceback__)[-1:]:
                text += f" ({Path(frame.filename).name}, line {frame.lineno})"
        error.__cause__ = error.__context__ = None
        return cls(text, error.with_traceback(None))

    @property
    def lasting(self) -> bool:
        """Whether the same images and parameters fail in the same way again, whatever the disk."""
        return isinstance(self.error, (InputError, RegistrationError))

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            pickle.loads(pickle.dumps(self.error))
        except Exception:
            return Failure, (self.reason, RuntimeError(self.reason))
        return Failure, (self.reason, self.error)


def block_graph(
    array: da.Array,
    keys: Sequence[Any],
    sink: Callable[..., Any] | None,
    places: Iterable[Any],
    engine: Engine = "cpu",
) -> tuple[Graph, list[Any]]:
    """The tasks of some blocks of an array, each ending in a call that takes the block away.

    One place per key is given to ``sink(place, block)``, which a task calls; it stands in the graph
    once. Without a sink the blocks themselves are computed. Tasks know the engine, wherever they
    run. Returns all tasks they need and nothing else, and one key per block.
    """
    graph: Graph = plain_tasks(array, keys)
    _settle_early(graph)
    for key, node in graph.items():
        if isinstance(node, DataNode):
            graph[key] = DataNode(key, keeping_chunks(node.value))
    if sink is None:
        return _guarded(graph, list(keys), engine)
    name = f"sink-{array.name}"
    used = Counter(needed for node in graph.values() for needed in node.dependencies)
    wanted = []
    for rank, (key, place) in enumerate(zip(keys, places, strict=True)):
        # dask sorts tasks that are alike by their names, and begins with the last.
        end = (f"done-{key[0]}", f"{len(keys) - rank:09d}", *key[1:])
        block = _taken(graph, key, used)
        graph[end] = Task(end, _deliver, TaskRef(name), DataNode(None, place), block)
        wanted.append(end)
    graph[name] = DataNode(name, sink)
    return _guarded(graph, wanted, engine)


def run_here(graph: Graph, wanted: Sequence[Any], threads: int, done: Done) -> None:
    """Compute blocks on threads of this process, so many tasks at a time.

    After an exception from `done`, or Ctrl-C, no further task is begun; those under way are left
    to themselves, and do not keep the process alive.
    """
    pool = _DaemonThreads(threads)
    try:
        with _Finished(wanted, done):
            threaded_get(graph, list(wanted), pool=pool)
    finally:
        pool.shutdown(wait=False)


def run_on(client: Client, graph: Graph, wanted: Sequence[Any], done: Done) -> None:
    """Compute blocks on the workers of a cluster.

    The graph is handed over in windows of blocks, so that neither the scheduler's memory nor the
    results that wait to be fetched grow with the image. What blocks of several windows need is
    computed once and held until the last of them has it. Large arrays in memory are lent to the
    workers beside the graph. Raises `WorkersError` where the scheduler is gone.
    """
    # What is asked for itself comes back as it is, also by another name.
    kept = set(wanted) | {node.target for node in graph.values() if isinstance(node, Alias)}
    values = {
        key: node.value
        for key, node in graph.items()
        if isinstance(node, DataNode) and key not in kept
    }
    with lent(client, values) as parcels:
        packed = {key: DataNode(key, parcel) for key, parcel in parcels.items()}
        _run_windows(client, {**graph, **packed}, wanted, done)


def _run_windows(client: Client, graph: Graph, wanted: Sequence[Any], done: Done) -> None:
    held: dict[Any, Any] = {}
    awaited: dict[Any, Any] = {}
    results = as_completed([], client.loop, with_results=True, raise_errors=False)
    windows = _windows(graph, wanted)
    try:
        for number, window in enumerate(windows):
            # Of a plain dict, dask would make a token, hashing all arrays in it.
            nodes = {key: graph[key] for key in window.nodes}
            layers = HighLevelGraph({"blocks": nodes}, {"blocks": set()})
            futures = client.get(layers, window.asked, sync=False, fifo_timeout="0s")
            given = dict(zip(window.asked, futures, strict=True))
            awaited |= {given[key]: key for key in window.wanted}
            held |= {key: given[key] for key in window.asked}
            for key in [key for key in held if window.until.get(key, number) <= number]:
                del held[key]
            results.update([given[key] for key in window.wanted])
            enough = _WINDOW // 2 if number + 1 < len(windows) else 0
            while len(awaited) > enough:
                _take(results, awaited, done)
    except BaseException:
        with suppress(Exception):
            client.cancel([*awaited, *held.values()], force=True)
        raise


@dataclass(frozen=True)
class _Window:
    """Blocks given to a cluster at a time: keys of blocks and tasks.

    `nodes` are all tasks that the `wanted` blocks need and no earlier window has. Those `asked` for
    are held: the blocks, and what later windows need, `until` the last of them.
    """

    wanted: list[Any]
    nodes: list[Any]
    asked: list[Any]
    until: Mapping[Any, int]


def _windows(graph: Graph, wanted: Sequence[Any]) -> list[_Window]:
    """Cut a computation into windows; every task is in the first one that needs it."""
    parts = [list(wanted[k : k + _WINDOW]) for k in range(0, len(wanted), _WINDOW)]
    first: dict[Any, int] = {}
    nodes: list[list[Any]] = []
    for number, part in enumerate(parts):
        stack, new = list(part), []
        while stack:
            key = stack.pop()
            if key not in first:
                first[key] = number
                new.append(key)
                stack.extend(graph[key].dependencies)
        nodes.append(new)
    until: dict[Any, int] = {}
    for key, number in first.items():
        for needed in graph[key].dependencies:
            if number > first[needed]:
                until[needed] = max(number, until.get(needed, 0))
    windows = []
    for part, new in zip(parts, nodes, strict=True):
        blocks = set(part)
        asked = [*part, *(key for key in new if key in until and key not in blocks)]
        windows.append(_Window(part, new, asked, until))
    return windows


def _take(results: Any, awaited: dict[Any, Any], done: Done) -> None:
    """Wait for the next block of a cluster and hand it on."""
    try:
        future, value = next(results)
    except StopIteration:
        raise WorkersError(_LOST) from None
    if future.status in ("cancelled", "lost"):
        raise WorkersError(_LOST)
    if future.status == "error":  # the worker was lost once too often
        value = Failure.of(value[1])
    done(awaited.pop(future), value)
    future.release()


_LOST = (
    "the scheduler of the workers is gone, or forgot the blocks: see its log, then run the same "
    "again"
)


def _settle_early(graph: Graph) -> None:
    """Compute what is small and shared now: of blocks that wait for it, dask begins any first."""
    early = [key for key in graph if str(key).startswith(EARLY)]
    shared = [key for key in graph if str(key).startswith(SHARED)] if early else []
    for key in (*early, *shared):
        node = graph[key]
        needed = {name: graph[name] for name in node.dependencies}
        if all(isinstance(found, DataNode) for found in needed.values()):
            given = {name: found.value for name, found in needed.items()}
            graph[key] = DataNode(key, node(given))


def _taken(graph: Graph, key: Any, used: Counter[Any]) -> GraphNode:
    """A task out of its graph, to be part of another; a reference where more need it."""
    if used[key]:
        return TaskRef(key)
    node = graph.pop(key)
    if isinstance(node, Alias):
        used[node.target] -= 1
        return _taken(graph, node.target, used)
    return node


def _deliver(sink: Callable[[Any, Any], Any], place: Any, block: Any) -> Any:
    return sink(place, block)


def _guarded(graph: Graph, wanted: Sequence[Any], engine: Engine) -> tuple[Graph, list[Any]]:
    """The same tasks, handing on failures of others and their own as values; and those wanted.

    All get names of this run: a scheduler takes two tasks of one name for one, and another run may
    compute the same blocks at the same time for another place.
    """
    run = uuid4().hex
    guarded: Graph = {}
    for key, node in graph.items():
        own = _named(key, run)
        if isinstance(node, DataNode):
            guarded[own] = DataNode(own, node.value)
            continue
        if isinstance(node, Alias):
            guarded[own] = Alias(own, _named(node.target, run))
            continue
        names = list(node.dependencies)
        guard = partial(_guard, node, names, _label(key), engine)
        guarded[own] = Task(own, guard, List(*(TaskRef(_named(name, run)) for name in names)))
    return guarded, [_named(key, run) for key in wanted]


def _named(key: Any, run: str) -> Any:
    """The name of a task in a run."""
    return (f"{key[0]}-{run}", *key[1:]) if isinstance(key, tuple) else f"{key}-{run}"


def _label(key: Any) -> str:
    """The name of a block's task in the log; empty for what all blocks share."""
    if not isinstance(key, tuple):
        return ""
    index = tuple(k for k in key[1:] if isinstance(k, int))
    return f"{key[0].removeprefix('done-').rpartition('-')[0]} {index}" if index else ""


def _guard(node: GraphNode, names: list[Any], label: str, engine: Engine, values: list[Any]) -> Any:
    for value in values:
        if isinstance(value, Failure):
            return value
    end_if_spent()
    began = time.perf_counter()
    try:
        given = [value.open() if isinstance(value, Parcel) else value for value in values]
        with using_engine(engine):
            result = node(dict(zip(names, given, strict=True)))
    except Exception as error:
        note_lost_device(error)
        result = Failure.of(error)
    if label:
        failed = f": {result.reason}" if isinstance(result, Failure) else ""
        logger.info("%s took %.2f s%s", label, time.perf_counter() - began, failed)
    return result


class _Finished(Callback):
    """Reports finished blocks under dask's local schedulers."""

    def __init__(self, wanted: Iterable[Any], done: Done) -> None:
        super().__init__(posttask=self._finished)
        self._wanted = set(wanted)
        self._done = done

    def _finished(self, key: Any, value: Any, *_: Any) -> None:
        if key in self._wanted:
            self._done(key, value)


class _DaemonThreads(Executor):
    """Threads that end with the process, whatever they are doing."""

    def __init__(self, threads: int) -> None:
        self._max_workers = threads
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"blocks-{number}", daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        call = partial(contextvars.copy_context().run, fn, *args, **kwargs)
        self._tasks.put(partial(_fulfil, future, call))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for _ in range(self._max_workers):
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


def _fulfil(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
