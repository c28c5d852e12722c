"""Block functions mapped over images: the one place that builds dask graphs.

A fixed image that is a dask array goes through ``dask.array.map_overlap``. Any other is read, halo
included, by the task of its block: one task a block and no array in the graph. Both ways hand the
same voxels to the same function, so both give the same bits. Whatever all blocks need (the moving
image, transforms, settings) stands in the graph once.

Names are those of `itkstream.blocks.fingerprint`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

# Tasks in dask's own form: tuples would be turned into them, twice, which takes four fifths of the
# time that dask needs to prepare a run.
from dask.task_spec import Alias, List, Task, TaskRef
from numpy.typing import DTypeLike, NDArray

from itkstream.blocks.fingerprint import name_computation
from itkstream.blocks.sources import readable_source
from itkstream.geometry import ArraySource, Block, BlockGrid, Slices
from itkstream.workers.dask_internals import sample_of

__all__ = [
    "EARLY",
    "SHARED",
    "BlockFunction",
    "Halo",
    "NearFunction",
    "Result",
    "judged",
    "map_blocks",
    "map_neighbours",
    "once",
]

EARLY = "early-"
"""Prefix of the names of small tasks that are computed before any block."""

SHARED = "shared-"
"""Prefix of the names of tasks that hold what all blocks share."""

_KEEP = "which blocks are kept"

BlockFunction = Callable[..., NDArray[Any]]
"""Called as ``function(part, block, **shared)``: voxels of the padded block -> an array."""

NearFunction = Callable[..., NDArray[Any]]
"""Called as ``function(near, block, **shared)``, near a list of (Block, its array) -> an array."""


@dataclass(frozen=True)
class Result:
    """The array that a block function returns.

    Parameters
    ----------
    dtype : dtype
        Element type.
    components : tuple of int
        Axes after the block's own: ``(3,)`` for vectors, ``(4, 4)`` for matrices.
    extent : {'core', 'block'}
        Its leading axes span the block's core, or are one element a block.
    factors : tuple of int, optional
        Voxels per element and axis where the core comes on a coarser lattice.
    """

    dtype: DTypeLike
    components: tuple[int, ...] = ()
    extent: Literal["core", "block"] = "core"
    factors: tuple[int, ...] = ()

    def chunks(self, blocks: BlockGrid) -> tuple[tuple[int, ...], ...]:
        """Chunks of the dask array over all blocks, per axis."""
        if self.extent == "block":
            leading = tuple((1,) * count for count in blocks.numblocks)
        else:
            factors = self.factors or (1,) * len(blocks.shape)
            leading = tuple(
                tuple(-(-n // f) for n in lengths)
                for lengths, f in zip(blocks.chunks, factors, strict=True)
            )
        return leading + tuple((n,) for n in self.components)

    def array(self, layers: HighLevelGraph, name: str, blocks: BlockGrid) -> da.Array:
        """The dask array of tasks named ``(name, *index of the block, *zeros)``."""
        sample = np.empty((0,) * (len(blocks.shape) + len(self.components)), self.dtype)
        return da.Array(layers, name, self.chunks(blocks), meta=sample)


@dataclass(frozen=True)
class Halo:
    """A way to cut a source for blocks: by their cores, with voxels around.

    Parameters
    ----------
    factors : tuple of int
        Voxels of the blocks' grid per voxel of the source, per axis.
    depth : int or tuple of int
        Source voxels added on every side, per axis.
    """

    factors: tuple[int, ...]
    depth: int | tuple[int, ...]

    @classmethod
    def of(cls, blocks: BlockGrid) -> Halo:
        """The halo that makes padded blocks of a source on the blocks' own grid."""
        return cls((1,) * len(blocks.shape), blocks.overlap)

    @property
    def depths(self) -> tuple[int, ...]:
        """Source voxels added on every side, per axis."""
        return self.depth if isinstance(self.depth, tuple) else (self.depth,) * len(self.factors)

    def chunks(self, blocks: BlockGrid, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The source voxels that each block owns of a source of some shape, per axis."""
        per_axis = []
        for fine, factor, length in zip(blocks.chunks, self.factors, shape, strict=True):
            borders = np.cumsum(fine)[:-1] // factor
            per_axis.append(tuple(int(n) for n in np.diff([0, *borders, length])))
        return tuple(per_axis)

    def region(self, blocks: BlockGrid, block: Block, shape: tuple[int, ...]) -> Slices:
        """The source voxels that a block owns and those around it, where the source has them."""
        spans = []
        owned = self.chunks(blocks, shape)
        for i, lengths, n, depth in zip(block.index, owned, shape, self.depths, strict=True):
            start = sum(lengths[:i])
            spans.append(slice(max(0, start - depth), min(n, start + lengths[i] + depth)))
        return tuple(spans)


def map_blocks(
    function: BlockFunction,
    blocks: BlockGrid,
    source: ArraySource | None,
    shared: Mapping[str, Any],
    result: Result,
    halo: Halo | None = None,
    keep: Delayed | None = None,
) -> da.Array:
    """Apply a block function to every block; nothing is read or computed yet.

    Parameters
    ----------
    function : callable
        A `BlockFunction`; pickled by name, so a function of a module.
    blocks : BlockGrid
        The blocks of `source`.
    source : ArraySource or None
        The array on the blocks' grid; further axes come whole. None where the function needs
        none.
    shared : mapping
        Keyword arguments equal for all blocks; a `dask.delayed.Delayed` is computed before them.
    result : Result
        What the function returns.
    halo : Halo, optional
        How to cut a source that is coarser than the blocks' grid; default their padded regions.
    keep : dask.delayed.Delayed, optional
        Whether each block holds anything, an array of the shape of the block grid. A block that
        does not is not read; the function is called with None instead of voxels.

    Returns
    -------
    dask.array.Array
        Chunked by block.
    """
    halo = halo or Halo.of(blocks)
    if keep is not None:
        shared = {**shared, _KEEP: keep}
    if isinstance(source, da.Array):
        cut = None if keep is not None else _cut(blocks, source, halo)
        if cut is not None:
            return _map_overlap(function, blocks, cut, shared, result)
        source = readable_source(source)
    name = name_computation(
        function, blocks=blocks, source=source, shared=shared, result=result, halo=halo
    )
    tail = (0,) * len(result.components)
    node = _share(name, _Common(function, blocks, halo), shared)
    graph: dict[Any, Any] = {f"source-{name}": source}
    given = TaskRef(node.key), TaskRef(f"source-{name}")
    for index in np.ndindex(blocks.numblocks):
        key = (name, *index, *tail)
        graph[key] = Task(key, _run_block, index, *given)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[node])
    return result.array(layers, name, blocks)


def once(function: Callable[..., Any], *arguments: Any, early: bool = False) -> Delayed:
    """A value computed once, before the blocks that share it, named by function and arguments.

    Arguments that are dask arrays or delayed are computed first. An `early` value is computed by a
    runner that walks through the blocks before it begins, in its own process: for what is small,
    as blocks that wait for a task are begun in any order.
    """
    given = {f"argument {k}": value for k, value in enumerate(arguments)}
    name = f"{EARLY if early else ''}{name_computation(function, **given)}"
    awaited = [_await(value, f"{name}-{k}") for k, value in enumerate(arguments)]
    return dask.delayed(function)(*awaited, dask_key_name=name)


def map_neighbours(
    function: NearFunction,
    blocks: BlockGrid,
    values: da.Array,
    shared: Mapping[str, Any],
    result: Result,
    axes: Sequence[int] | None = None,
) -> da.Array:
    """Apply a function to what every block and those that touch it brought.

    No block waits for any but these, and a value is dropped when the last of them is done.

    Parameters
    ----------
    function : callable
        A `NearFunction`; of a module.
    blocks : BlockGrid
        The blocks.
    values : dask.array.Array
        What `map_blocks` prepared for the same blocks; its chunks may have any shape.
    shared : mapping
        As in `map_blocks`.
    result : Result
        What the function returns.
    axes : sequence of int, optional
        Only blocks that touch along these axes; default all. Two calls for one axis and for the
        other two need 3 + 9 edges a block instead of 27.

    Returns
    -------
    dask.array.Array
        Chunked by block.
    """
    name = name_computation(
        function, blocks=blocks, values=values, shared=shared, result=result, axes=axes
    )
    node = _share(name, _Common(function, blocks, axes=axes), shared)
    rest = (0,) * (values.ndim - len(blocks.shape))
    tail = (0,) * len(result.components)
    brought = {i: TaskRef((values.name, *i, *rest)) for i in np.ndindex(blocks.numblocks)}
    given = TaskRef(node.key)
    graph: dict[Any, Any] = {}
    for index in brought:
        key = (name, *index, *tail)
        near = (brought[i] for i in blocks.touching(index, axes))
        graph[key] = Task(key, _run_near, index, given, *near)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[node, values])
    return result.array(layers, name, blocks)


def judged(
    result: da.Array,
    found: da.Array,
    brought: Callable[[NDArray[Any]], int],
    judge: Callable[[NDArray[np.intp]], None],
) -> da.Array:
    """A result whose last block waits for a judgement on what all blocks found.

    No other block waits: where nothing was found, the computation still fails as a whole.

    Parameters
    ----------
    result : dask.array.Array
        What is made of `found`.
    found : dask.array.Array
        What `map_blocks` prepared.
    brought : callable
        Says of a block of it, in a number, what it holds; of a module.
    judge : callable
        Called with these numbers, an array of the shape of the block grid; raises where nothing
        was found. Of a module.

    Returns
    -------
    dask.array.Array
        As `result`.
    """
    name = f"judged-{result.name}"
    verdict, last = f"verdict-{name}", tuple(n - 1 for n in result.numblocks)
    graph: dict[Any, Any] = {}
    answers = []
    for index in np.ndindex(found.numblocks):
        answer = (f"brought-{name}", *index)
        graph[answer] = Task(answer, brought, TaskRef((found.name, *index)))
        answers.append(TaskRef(answer))
    graph[verdict] = Task(verdict, _judge, judge, found.numblocks, List(*answers))
    for index in np.ndindex(result.numblocks):
        key, block = (name, *index), (result.name, *index)
        graph[key] = Alias(key, block)
        if index == last:
            graph[key] = Task(key, _keep_first, TaskRef(block), TaskRef(verdict))
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[result, found])
    return da.Array(layers, name, result.chunks, meta=sample_of(result))


def _judge(
    judge: Callable[[NDArray[np.intp]], None], numblocks: tuple[int, ...], answers: list[int]
) -> None:
    judge(np.array(answers, np.intp).reshape(numblocks))


def _keep_first(block: NDArray[Any], _verdict: None) -> NDArray[Any]:
    return block


@dataclass(frozen=True, eq=False)
class _Common:
    """Knowledge of the tasks of all blocks; it stands in the graph once."""

    function: Callable[..., NDArray[Any]]
    blocks: BlockGrid
    halo: Halo | None = None
    axes: Sequence[int] | None = None
    keep: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class _Cut:
    """A dask array chunked as the blocks are, and what each chunk takes from the next."""

    source: da.Array
    depth: tuple[int, ...]


def _cut(blocks: BlockGrid, source: da.Array, halo: Halo) -> _Cut | None:
    """None where a chunk is thinner than its halo, which `map_overlap` cannot serve."""
    ndim = len(blocks.shape)
    chunks = halo.chunks(blocks, source.shape[:ndim])
    # A single block has all of its axis; its image may be thinner than the halo.
    depth = tuple(d if len(c) > 1 else 0 for d, c in zip(halo.depths, chunks, strict=True))
    if any(min(c) < d for d, c in zip(depth, chunks, strict=True)):
        return None
    whole = tuple((n,) for n in source.shape[ndim:])
    return _Cut(source.rechunk(chunks + whole), depth)


def _map_overlap(
    function: BlockFunction,
    blocks: BlockGrid,
    cut: _Cut,
    shared: Mapping[str, Any],
    result: Result,
) -> da.Array:
    name = name_computation(function, blocks=blocks, source=cut, shared=shared, result=result)
    ndim = len(blocks.shape)
    further = range(ndim, cut.source.ndim)
    new_axes = list(range(ndim, ndim + len(result.components)))
    return da.map_overlap(
        _run_chunk,
        cut.source,
        depth={**dict(enumerate(cut.depth)), **dict.fromkeys(further, 0)},
        boundary="none",
        trim=False,
        allow_rechunk=False,
        chunks=result.chunks(blocks),
        drop_axis=list(further),
        new_axis=new_axes or None,
        meta=np.empty((0,) * (ndim + len(new_axes)), result.dtype),
        name=name,
        shared=_share(name, _Common(function, blocks), shared),
    )


def _await(value: Any, name: str) -> Delayed:
    """A value that dask computes before the task it is given to."""
    if isinstance(value, da.Array):
        return value.rechunk(value.shape).to_delayed(optimize_graph=False).item()
    return value if isinstance(value, Delayed) else dask.delayed(value, name, traverse=False)


def _share(name: str, common: _Common, shared: Mapping[str, Any]) -> Delayed:
    """One node of the graph with all that the blocks share."""
    awaited = {key: value for key, value in shared.items() if isinstance(value, Delayed)}
    known = {key: value for key, value in shared.items() if key not in awaited}
    if not awaited:
        return dask.delayed((common, known), f"{SHARED}{name}", traverse=False)
    given = dask.delayed((common, known), f"known-{name}", traverse=False)
    merge = dask.delayed(_merge)
    return merge(given, list(awaited), list(awaited.values()), dask_key_name=f"{SHARED}{name}")


def _merge(
    known: tuple[_Common, dict[str, Any]], names: list[str], values: list[Any]
) -> tuple[_Common, dict[str, Any]]:
    common, shared = known
    merged = {**shared, **dict(zip(names, values, strict=True))}
    return replace(common, keep=merged.pop(_KEEP, None)), merged


def _run_block(
    index: tuple[int, ...],
    shared: tuple[_Common, Mapping[str, Any]],
    source: ArraySource | None,
) -> NDArray[Any]:
    common, given = shared
    block = common.blocks[index]
    if source is None or (common.keep is not None and not common.keep[index]):
        return common.function(None, block, **given)
    assert common.halo is not None
    region = common.halo.region(common.blocks, block, source.shape[: len(index)])
    rest = (slice(None),) * (len(source.shape) - len(index))
    return common.function(np.asarray(source[region + rest]), block, **given)


def _run_near(
    index: tuple[int, ...], shared: tuple[_Common, Mapping[str, Any]], *values: NDArray[Any]
) -> NDArray[Any]:
    common, given = shared
    blocks = common.blocks
    touching = blocks.touching(index, common.axes)
    near = [(blocks[i], v) for i, v in zip(touching, values, strict=True)]
    return common.function(near, blocks[index], **given)


def _run_chunk(
    part: NDArray[Any], *, shared: tuple[_Common, Mapping[str, Any]], block_info: Any = None
) -> NDArray[Any]:
    common, given = shared
    index = block_info[0]["chunk-location"][: len(common.blocks.shape)]
    return common.function(part, common.blocks[index], **given)
