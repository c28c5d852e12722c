"""Running a prepared computation: progress, and where the result goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import zarr
from dask.callbacks import Callback
from dask.delayed import delayed
from distributed import Client, as_completed
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.io.outputs import claim_store
from itkstream.numerics.threads import using_threads
from itkstream.workers import Resources, connected

__all__ = ["Progress", "compute", "execute", "store"]

Progress = Callable[[int, int], None]
"""Called as ``progress(blocks_done, blocks_in_all)``, at the start and after every block."""


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
    overwrite: bool = False,
    chunks: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> NDArray[Any] | zarr.Array:
    """Compute what a ``prepare_`` function prepared.

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
        Jobs of a cluster and how many workers, see `itkstream.workers.Resources`.
    config : mapping, optional
        dask configuration values and options of the jobs, for this computation only; nothing is
        written to the user's own configuration.
    cluster : str, distributed.Client or cluster object
        Where the workers are: 'local', 'slurm', 'lsf' and others, a scheduler's address.
    memory, walltime, queue, project : optional
        What each job asks for.
    overwrite : bool
        Replace a Zarr array that is at `write_path`; nothing else is ever replaced.
    chunks : sequence of int, optional
        Chunk shape of the written array, at most a block; default one chunk a block.
    progress : callable, optional
        Told the blocks done and the blocks in all.

    Returns
    -------
    numpy.ndarray or zarr.Array
        The values, or the written array, opened for reading.

    Raises
    ------
    InputError
        Where `array` is no dask array, a count is below 1, or two blocks would share a chunk.
    ExistingOutputError
        Where `write_path` exists and `overwrite` is not set; nothing is computed or changed.
    """
    if not isinstance(array, da.Array):
        raise InputError(
            f"execute runs what a prepare_ function returned, a dask array; "
            f"got {type(array).__name__}"
        )
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
    )
    if write_path is None:
        return compute(array, resources, progress)
    size = tuple(chunks or (c[0] for c in array.chunks))
    _check_chunks(array, size)
    place = claim_store(write_path, overwrite)
    target = zarr.create_array(place.store(), shape=array.shape, dtype=array.dtype, chunks=size)
    store(array, target, resources, progress)
    return zarr.open_array(place.store(), mode="r")


def compute(
    array: da.Array, resources: Resources | None = None, progress: Progress | None = None
) -> NDArray[Any]:
    """Compute an array into memory.

    Parameters
    ----------
    array : dask.array.Array
        What to compute.
    resources : Resources, optional
        Workers and threads; default this process.
    progress : callable, optional
        Told the blocks done and the blocks in all.

    Returns
    -------
    ndarray
        Its values.
    """
    result = np.empty(array.shape, array.dtype)
    store(array, result, resources, progress)
    return result


def store(
    array: da.Array,
    target: Any,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute an array block by block into something that takes slices.

    Parameters
    ----------
    array : dask.array.Array
        What to compute.
    target : numpy.ndarray or zarr.Array
        Of the same shape; no two blocks may share a chunk of it.
    resources : Resources, optional
        Workers and threads; default this process.
    progress : callable, optional
        Told the blocks done and the blocks in all.

    Raises
    ------
    InputError
        Where two blocks would write to one chunk.
    """
    resources = resources or Resources()
    if not isinstance(target, np.ndarray):
        _check_chunks(array, target.chunks)
    with connected(resources) as client:
        if client is None:
            _run_here(_writes(array, target), resources, progress or _silent)
        elif isinstance(target, np.ndarray):
            _fetch(client, array, target, progress or _silent)
        else:
            written = _writes(array, target)
            _fetch(client, written, np.empty(written.shape, np.uint8), progress or _silent)


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


def _writes(array: da.Array, target: Any) -> da.Array:
    """One byte a block, whose computation writes the block."""
    return array.map_blocks(
        _write_block,
        target=delayed(target, traverse=False),
        dtype=np.uint8,
        meta=np.empty((0,) * array.ndim, np.uint8),
        chunks=tuple((1,) * len(c) for c in array.chunks),
        name=f"write-{uuid4().hex}",
    )


def _write_block(
    block: NDArray[Any], target: Any = None, block_info: Any = None
) -> NDArray[np.uint8]:
    region = block_info[0]["array-location"]
    target[tuple(slice(*span) for span in region)] = block
    return np.zeros((1,) * block.ndim, np.uint8)


def _run_here(written: da.Array, resources: Resources, progress: Progress) -> None:
    blocks, threads = resources.threads_here(written.npartitions)
    with using_threads(threads), _Counter(written, progress):
        written.compute(scheduler="threads", num_workers=blocks)


def _fetch(client: Client, array: da.Array, out: NDArray[Any], progress: Progress) -> None:
    """Compute the blocks on workers and put each into its place as it arrives."""
    blocks = array.to_delayed()
    futures = client.compute(blocks.ravel().tolist())
    places = dict(zip(futures, np.ndindex(blocks.shape), strict=True))
    starts = [np.cumsum([0, *lengths]) for lengths in array.chunks]
    progress(0, len(futures))
    for done, (future, values) in enumerate(as_completed(futures, with_results=True), 1):
        corner = places[future]
        out[tuple(slice(s[i], s[i + 1]) for s, i in zip(starts, corner, strict=True))] = values
        future.release()
        progress(done, len(futures))


class _Counter(Callback):
    """Counts finished blocks of one array under dask's local schedulers."""

    def __init__(self, written: da.Array, progress: Progress) -> None:
        super().__init__(posttask=self._finished)
        self._name = written.name
        self._total = written.npartitions
        self._done = 0
        self._progress = progress
        self._progress(0, self._total)

    def _finished(self, key: Any, *_: Any) -> None:
        if isinstance(key, tuple) and key[0] == self._name:
            self._done += 1
            self._progress(self._done, self._total)


def _silent(_done: int, _total: int) -> None:
    """Report nothing."""
