"""Run a prepared computation, with workers or here, into memory or a store."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from itkstream.compute.progress import Blocks, Progress, Tally
from itkstream.compute.resume import Output
from itkstream.compute.schedule import Failure, block_graph, run_here, run_on
from itkstream.compute.sinks import Memory, Sink, Work
from itkstream.errors import InputError, InterruptedRunError
from itkstream.io.storage.attributes import is_zarr_array
from itkstream.io.storage.chunk_files import location_of
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import written_codecs
from itkstream.numerics.gpu.engine import Engine, engine_here, using_engine
from itkstream.numerics.threads import get_threads, using_threads
from itkstream.workers import Resources, connected

__all__ = ["compute", "continues", "execute", "open_or_create", "run", "store", "terminable"]

logger = logging.getLogger(__name__)


def execute(
    array: da.Array,
    write_path: str | os.PathLike[str] | None = None,
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    memory_limit: str | int | float | None = None,
    cores: int | None = None,
    processes: int | None = None,
    min_workers: int | None = None,
    max_workers: int | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    cluster: Any = "local",
    memory: str | int | float | None = None,
    walltime: str | None = None,
    queue: str | None = None,
    project: str | None = None,
    engine: Engine | None = None,
    overwrite: bool = False,
    chunks: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> NDArray[Any] | zarr.Array:
    """Compute what a ``prepare_`` function prepared.

    A run with a `write_path` that was killed or stopped continues when the same is run again:
    blocks that are there, and as they were written, are kept. When it is complete, the same call
    checks it and returns it.

    Parameters
    ----------
    array : dask.array.Array
        The prepared computation.
    write_path : path, optional
        A new Zarr array to write, block by block, at a path or a URL such as
        ``s3://bucket/name``; then nothing is held in memory. Default the result comes back as a
        numpy array.
    n_workers, threads_per_worker, memory_limit : optional
        Workers of this machine, see `itkstream.workers.Resources`; default threads of this
        process.
    cores, processes, min_workers, max_workers : int, optional
        Jobs of a cluster and how many workers, see `itkstream.workers.Resources`. On this machine
        `max_workers`, or else `min_workers`, processes are started, which share `cores`.
    config : mapping, optional
        dask configuration values and options of the jobs, for this computation only; nothing is
        written to the user's own configuration.
    cluster : str, distributed.Client or cluster object
        Where the workers are: 'local', 'slurm', 'lsf' and others, a scheduler's address.
    memory, walltime, queue, project : optional
        What each job asks for. Without jobs nobody is charged: `project` has no effect then.
    engine : {'cpu', 'gpu', 'auto'}, optional
        What computes blocks, see `itkstream.workers.Resources`.
    overwrite : bool
        Replace a Zarr array that is at `write_path`; nothing else is ever replaced. A complete one
        stays until the new one is, which is written beside it. An unfinished run of the same
        computation is continued all the same.
    chunks : sequence of int, optional
        Chunk shape of the written array, at most a block; default one chunk a block.
    progress : callable, optional
        Called with the blocks done and the blocks in all.

    Returns
    -------
    numpy.ndarray or zarr.Array
        The values, or the written array, opened for reading.

    Raises
    ------
    InputError
        Where `array` is no dask array, a count is below 1, two blocks would share a chunk, or
        `write_path` is, holds or lies in an array that is read, ends in another format's ending, or
        was begun with another engine, where `engine` is not 'cpu' or 'gpu'.
    ExistingOutputError
        Where `write_path` holds anything but this computation's result and `overwrite` is not
        set, or another process is writing there; nothing is computed or changed.
    OutputError
        Where nothing can be written, as on a full disk.
    BlockErrors
        Where blocks failed; all others are done, and the same call computes only those again.

    Examples
    --------
    >>> import dask.array as da
    >>> itkstream.execute(da.ones((4, 4), chunks=2) + 1).sum()
    np.float64(32.0)
    """
    if not isinstance(array, da.Array):
        raise InputError(
            f"execute runs what a prepare_ function returned, a dask array; "
            f"got {type(array).__name__}"
        )
    if project is not None and cluster == "local":
        logger.info("project %r is not charged: this runs without jobs", project)
        project = None
    resources = Resources(
        n_workers=n_workers,
        threads_per_worker=threads_per_worker,
        memory_limit=memory_limit,
        config=config or {},
        cluster=cluster,
        cores=cores,
        processes=processes,
        memory=memory,
        walltime=walltime,
        queue=queue,
        project=project,
        min_workers=min_workers,
        max_workers=max_workers,
        engine=engine,
    )
    if write_path is None:
        return compute(array, resources, progress)
    return _write(array, Location.parse(write_path), chunks, overwrite, resources, progress)


def compute(
    array: da.Array,
    resources: Resources | None = None,
    progress: Progress | None = None,
    keep: str | os.PathLike[str] | None = None,
) -> NDArray[Any]:
    """Compute an array into memory.

    Parameters
    ----------
    array : dask.array.Array
        What to compute.
    resources : Resources, optional
        Workers and threads; default this process.
    progress : callable, optional
        Called with the blocks done and the blocks in all.
    keep : path, optional
        A Zarr array to write first, which may be continued if the run is killed.

    Returns
    -------
    ndarray
        Its values.

    Raises
    ------
    BlockErrors
        Where blocks failed; all others were computed.
    ExistingOutputError
        Where something else is at `keep`.

    Examples
    --------
    >>> import dask.array as da
    >>> itkstream.cluster.compute(da.arange(4, chunks=2))
    array([0, 1, 2, 3])
    """
    if keep is not None:
        written = _write(array, Location.parse(keep), None, False, resources, progress)
        return np.asarray(written[...])
    result = np.empty(array.shape, array.dtype)
    run(array, Memory(result), resources, progress)
    return result


def store(
    array: da.Array,
    target: Any,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute an array block by block into something that takes slices.

    A Zarr array whose last run of the same computation was killed or stopped is continued. Values
    of any other computation are replaced.

    Parameters
    ----------
    array : dask.array.Array
        What to compute.
    target : numpy.ndarray or zarr.Array
        Of the same shape; no two blocks may share a chunk (or shard) of it.
    resources : Resources, optional
        Workers and threads; default this process.
    progress : callable, optional
        Called with the blocks done and the blocks in all.

    Raises
    ------
    InputError
        Where two blocks would write to one chunk, or `target` is read.
    BlockErrors
        Where blocks failed; all others are done.

    Examples
    --------
    >>> import dask.array as da
    >>> target = np.zeros(4)
    >>> itkstream.cluster.store(da.ones(4, chunks=2), target)
    >>> target
    array([1., 1., 1., 1.])
    """
    run(array, _sink_of(array, target), resources, progress)


def continues(array: da.Array, path: str | os.PathLike[str]) -> bool:
    """Whether the Zarr array at a path was made or begun by the same computation.

    Parameters
    ----------
    array : dask.array.Array
        The computation.
    path : path
        An array that `store` filled, wholly or in part, or a place where nothing is.

    Returns
    -------
    bool
        Then `store` keeps the blocks that are there.

    Examples
    --------
    >>> import dask.array as da
    >>> itkstream.cluster.continues(da.ones(4, chunks=2), "not_there.zarr")
    False
    """
    place = Location.parse(path)
    if not is_zarr_array(place):
        return False
    found = zarr.open_array(place.store(), mode="r")
    return Output(place, found.chunks, found.shards).is_of(array)


def open_or_create(
    array: da.Array, place: Location, name: str, create: Callable[[], zarr.Array[Any]]
) -> zarr.Array[Any]:
    """Open the Zarr array that a run of the same computation left in a store, to be filled on.

    What any other computation left in the place is removed, and the store created.
    """
    if continues(array, place / name):
        return zarr.open_array((place / name).store(), mode="r+")
    place.remove()
    return create()


def run(
    array: da.Array,
    sink: Sink,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute the blocks that a sink lacks: the one way in which graphs are run.

    A block that fails stops no other; `BlockErrors` lists them at the end. Ctrl-C and SIGTERM raise
    `InterruptedRunError`.
    """
    resources = resources or Resources()
    opened = sink.opened(Blocks(array), resources)
    with terminable(), opened as work, using_engine(engine_here(work.engine, resources.is_here)):
        blocks = Blocks(array, work.axes)
        tally = Tally(blocks, progress or _report_nothing, len(blocks) - len(work.missing))
        if work.missing:
            with work.recording() as record, _interruptible(tally, sink.continued):
                _compute(blocks, work, resources, partial(_take, tally, record))
        work.finish(tally.failures)
        tally.conclude("run the same again to compute only these" if sink.continued else "")


def _take(tally: Tally, record: Callable[[int, Any], None], number: int, value: Any) -> None:
    """Take what came of a block."""
    if isinstance(value, Failure):
        tally.note_failure(number, value)
    else:
        record(number, value)
        tally.count()


def _compute(
    blocks: Blocks, work: Work, resources: Resources, done: Callable[[int, Any], None]
) -> None:
    """Compute the missing blocks, with workers or here."""
    numbers = blocks.by_columns(work.missing)
    keys = [blocks.key(number) for number in numbers]
    with connected(resources) as client:
        deliver = work.deliver if client is None or work.by_workers else None
        places = map(blocks.region, numbers)
        graph, wanted = block_graph(blocks.array, keys, deliver, places, work.engine)
        number_of = dict(zip(wanted, numbers, strict=True))

        def tell(key: Any, value: Any) -> None:
            done(number_of[key], value)

        if client is not None:
            run_on(client, graph, wanted, tell)
            return
        at_once, threads = resources.threads_here(len(keys))
        with using_threads(min(threads, get_threads())):
            run_here(graph, wanted, at_once, tell)


def _sink_of(array: da.Array, target: Any) -> Sink:
    """The sink of an array that is there."""
    if isinstance(target, np.ndarray):
        return Memory(target)
    _check_chunks(array, target.shards or target.chunks)
    return Output(location_of(target), target.chunks, target.shards)


def _write(
    array: da.Array,
    place: Location,
    chunks: Sequence[int] | None,
    overwrite: bool,
    resources: Resources | None,
    progress: Progress | None,
) -> zarr.Array[Any]:
    """Compute an array into a new Zarr array, or finish one that was begun."""
    size = tuple(chunks or (c[0] for c in array.chunks))
    _check_chunks(array, size)
    create = partial(_create, shape=array.shape, dtype=array.dtype, chunks=size)
    run(array, Output(place, size, None, create, overwrite), resources, progress)
    return zarr.open_array(place.store(), mode="r")


def _create(place: Location, **layout: Any) -> None:
    zarr.create_array(place.store(), compressors=written_codecs(), **layout)


def _check_chunks(array: da.Array, chunks: Sequence[int]) -> None:
    """Two blocks that write to one chunk at the same time would lose voxels."""
    if len(chunks) != array.ndim or min(chunks, default=1) < 1:
        raise InputError(
            f"chunks needs {array.ndim} numbers >= 1, one per axis of an array of shape "
            f"{array.shape}; got {tuple(chunks)}"
        )
    for axis, (size, lengths) in enumerate(zip(chunks, array.chunks, strict=True)):
        if any(border % size for border in np.cumsum(lengths)[:-1]):
            raise InputError(
                f"chunks of {size} on axis {axis} do not divide the blocks of {lengths[0]}, so "
                f"two blocks would write to one chunk; use a divisor of {lengths[0]}"
            )


@contextmanager
def _interruptible(tally: Tally, continued: bool) -> Iterator[None]:
    """Say after Ctrl-C how far the run was."""
    try:
        yield
    except KeyboardInterrupt:
        state = "are done; run the same again to continue" if continued else "were done"
        raise InterruptedRunError(
            f"stopped: {tally.done} of {tally.total} blocks {state}"
        ) from None


@contextmanager
def terminable() -> Iterator[None]:
    """Stop on SIGTERM as on Ctrl-C, unless the program has its own way."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _report_nothing(_done: int, _total: int) -> None:
    """Report nothing."""
