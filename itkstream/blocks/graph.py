"""Block functions mapped over images: the one place that builds dask graphs.

A fixed image that is a dask array goes through ``dask.array.map_overlap``. Any other is read, halo
included, by the task of its block: one task a block and no array in the graph. Both ways hand the
same voxels to the same function, so both give the same bits. Whatever all blocks need (the moving
image, transforms, settings) stands in the graph once.

Names are fingerprints: of this package's code, the function, the blocks, and all it is given, with
a stamp of the files of stored arrays. The same computation has the same name in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

# Tasks in dask's own form: tuples would be turned into them, twice, which takes four fifths of the
# time that dask needs to prepare a run.
from dask.task_spec import Alias, List, Task, TaskRef
from dask.tokenize import TokenizationError, normalize_object, normalize_token, tokenize
from numpy.typing import DTypeLike, NDArray

from itkstream.blocks.fingerprint import code_version
from itkstream.geometry import ArraySource, Block, BlockGrid, Image, LazyArray, Slices
from itkstream.workers.dask_internals import sample_of

__all__ = [
    "EARLY",
    "BlockFunction",
    "Halo",
    "NearFunction",
    "Result",
    "judged",
    "map_blocks",
    "map_neighbours",
    "once",
    "readable",
    "readable_source",
]

EARLY = "early-"
"""How the names of small tasks begin that are computed before any block."""

_KEEP = "which blocks are kept"

BlockFunction = Callable[..., NDArray[Any]]
"""Called as ``function(part, block, **shared)``: voxels of the padded block -> an array."""

NearFunction = Callable[..., NDArray[Any]]
"""Called as ``function(near, block, **shared)``, near a list of (Block, its array) -> an array."""


@dataclass(frozen=True)
class Result:
    """What a block function returns.

    Parameters
    ----------
    dtype : dtype
        Element type.
    components : tuple of int
        Axes after the block's own: ``(3,)`` for vectors, ``(4, 4)`` for matrices.
    extent : {'core', 'padded', 'block'}
        Its leading axes span the block's core, its padded region, or are one element a block.
    factors : tuple of int, optional
        Voxels per element and axis where the core comes on a coarser lattice.
    """

    dtype: DTypeLike
    components: tuple[int, ...] = ()
    extent: str = "core"
    factors: tuple[int, ...] = ()

    def chunks(self, blocks: BlockGrid) -> tuple[tuple[int, ...], ...]:
        """Chunks of the dask array over all blocks.

        Parameters
        ----------
        blocks : BlockGrid
            The blocks.

        Returns
        -------
        tuple of tuple of int
            One tuple per axis of the result.
        """
        if self.extent == "block":
            leading = tuple((1,) * count for count in blocks.numblocks)
        elif self.extent == "core":
            factors = self.factors or (1,) * len(blocks.shape)
            leading = tuple(
                tuple(-(-n // f) for n in lengths)
                for lengths, f in zip(blocks.chunks, factors, strict=True)
            )
        else:
            leading = tuple(_padded_lengths(blocks, axis) for axis in range(len(blocks.shape)))
        return leading + tuple((n,) for n in self.components)


@dataclass(frozen=True)
class Halo:
    """How a source that is coarser than the blocks' grid is cut for them.

    Parameters
    ----------
    factors : tuple of int
        Voxels of the blocks' grid per voxel of the source, per axis.
    depth : int
        Source voxels added on every side.
    """

    factors: tuple[int, ...]
    depth: int

    def chunks(self, blocks: BlockGrid, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Source voxels each block owns, per axis.

        Parameters
        ----------
        blocks : BlockGrid
            The blocks.
        shape : tuple of int
            Source voxels per axis.

        Returns
        -------
        tuple of tuple of int
            As many chunks as blocks.
        """
        per_axis = []
        for fine, factor, length in zip(blocks.chunks, self.factors, shape, strict=True):
            borders = np.cumsum(fine)[:-1] // factor
            per_axis.append(tuple(int(n) for n in np.diff([0, *borders, length])))
        return tuple(per_axis)

    def region(self, blocks: BlockGrid, block: Block, shape: tuple[int, ...]) -> Slices:
        """The source voxels that reach a block with this halo.

        Parameters
        ----------
        blocks : BlockGrid
            The blocks.
        block : Block
            One of them.
        shape : tuple of int
            Source voxels per axis.

        Returns
        -------
        tuple of slice
            The chunk of the block and `depth` voxels around it.
        """
        spans = []
        for i, lengths, n in zip(block.index, self.chunks(blocks, shape), shape, strict=True):
            start = sum(lengths[:i])
            stop = start + lengths[i]
            spans.append(slice(max(0, start - self.depth), min(n, stop + self.depth)))
        return tuple(spans)


@dataclass(frozen=True, eq=False)
class DaskSource(LazyArray):
    """A dask array that computes, inside the task that asks, only the part asked for.

    Parameters
    ----------
    array : dask.array.Array
        Its graph travels; its voxels do not.
    """

    array: da.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(self.array.dtype)

    @property
    def chunk_shape(self) -> tuple[tuple[int, ...], ...]:
        """Elements of every chunk, per axis."""
        return tuple(self.array.chunks)

    def transpose(self, *order: Any) -> DaskSource:
        """The array with its axes in another order; reads nothing.

        Parameters
        ----------
        *order : int, or one sequence of int
            Axis ``order[k]`` becomes axis k; default the reverse.

        Returns
        -------
        DaskSource
            The reordered array.
        """
        return DaskSource(self.array.transpose(*order))

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, str(self.array.name))

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Compute a box.

        Parameters
        ----------
        start, stop : tuple of int
            First element, and one past the last, per axis.

        Returns
        -------
        ndarray, stop - start
            The elements.
        """
        # The caller may be a task of any scheduler: this part runs in its own thread.
        part = self.array[tuple(map(slice, start, stop))]
        return np.asarray(part.compute(scheduler="synchronous"))


def readable(image: Image) -> Image:
    """An image whose slices become numpy arrays inside a task, whatever its data are.

    Parameters
    ----------
    image : Image
        numpy, stored or dask.

    Returns
    -------
    Image
        The same voxels on the same grid.
    """
    data = readable_source(image.data)
    return image if data is image.data else replace(image, data=data)


def readable_source(source: Any) -> Any:
    """An array whose slices become numpy arrays inside a task, as `readable` gives of images.

    Parameters
    ----------
    source : array
        numpy, stored or dask.

    Returns
    -------
    array
        The same elements.
    """
    return DaskSource(source) if isinstance(source, da.Array) else source


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
    if keep is not None:
        shared = {**shared, _KEEP: keep}
    if isinstance(source, da.Array):
        cut = None if keep is not None else _cut(blocks, source, halo)
        if cut is not None:
            return _map_overlap(function, blocks, cut, shared, result)
        source = DaskSource(source)
    name = _fingerprint(function, blocks, source, shared, result, halo)
    tail = (0,) * len(result.components)
    together = _together(name, _Common(function, blocks, halo), shared)
    graph: dict[Any, Any] = {f"source-{name}": source}
    given = TaskRef(together.key), TaskRef(f"source-{name}")
    for index in np.ndindex(blocks.numblocks):
        key = (name, *index, *tail)
        graph[key] = Task(key, _run_block, index, *given)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[together])
    meta = np.empty((0,) * (len(blocks.shape) + len(tail)), result.dtype)
    return da.Array(layers, name, result.chunks(blocks), meta=meta)


def once(function: Callable[..., Any], *arguments: Any, early: bool = False) -> Delayed:
    """A value to be computed once, before the blocks that share it.

    Parameters
    ----------
    function : callable
        Of a module.
    *arguments
        What it is called with; dask arrays and delayed values are computed first.
    early : bool
        A runner that walks through the blocks computes it before it begins, in its own process.
        For what is small: blocks that wait for a task are begun in any order.

    Returns
    -------
    dask.delayed.Delayed
        Named by function and arguments.
    """
    name = f"{EARLY if early else ''}{_fingerprint(function, *arguments)}"
    given = [_awaited(value, f"{name}-{k}") for k, value in enumerate(arguments)]
    return dask.delayed(function)(*given, dask_key_name=name)


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
    name = _fingerprint(function, blocks, values, shared, result, axes)
    common = _Common(function, blocks, axes=axes)
    together = _together(name, common, shared)
    ndim, rest = len(blocks.shape), (0,) * (values.ndim - len(blocks.shape))
    tail = (0,) * len(result.components)
    brought = {i: TaskRef((values.name, *i, *rest)) for i in np.ndindex(blocks.numblocks)}
    given = TaskRef(together.key)
    graph: dict[Any, Any] = {}
    for index in brought:
        key = (name, *index, *tail)
        near = (brought[i] for i in blocks.touching(index, axes))
        graph[key] = Task(key, _run_near, index, given, *near)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[together, values])
    meta = np.empty((0,) * (ndim + len(tail)), result.dtype)
    return da.Array(layers, name, result.chunks(blocks), meta=meta)


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
        What is made of it.
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
            graph[key] = Task(key, _after, TaskRef(block), TaskRef(verdict))
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[result, found])
    return da.Array(layers, name, result.chunks, meta=sample_of(result))


def _judge(
    judge: Callable[[NDArray[np.intp]], None], numblocks: tuple[int, ...], answers: list[int]
) -> None:
    judge(np.array(answers, np.intp).reshape(numblocks))


def _after(block: NDArray[Any], _verdict: None) -> NDArray[Any]:
    return block


@dataclass(frozen=True, eq=False)
class _Common:
    """What the tasks of all blocks know; it stands in the graph once."""

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


def _cut(blocks: BlockGrid, source: da.Array, halo: Halo | None) -> _Cut | None:
    """None where a chunk is thinner than its halo, which `map_overlap` cannot serve."""
    ndim = len(blocks.shape)
    chunks, halos = blocks.chunks, blocks.overlap
    if halo is not None:
        chunks, halos = halo.chunks(blocks, source.shape[:ndim]), (halo.depth,) * ndim
    # A single block has all of its axis; its image may be thinner than the halo.
    depth = tuple(d if len(c) > 1 else 0 for d, c in zip(halos, chunks, strict=True))
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
    name = _fingerprint(function, blocks, cut, shared, result)
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
        shared=_together(name, _Common(function, blocks), shared),
    )


def _fingerprint(function: Callable[..., Any], *given: Any) -> str:
    """A name for what a function makes of its arguments; a random one where these do not tell."""
    token = uuid4().hex
    if _tells(given):
        with suppress(TokenizationError):
            token = tokenize(code_version(), function, given, ensure_deterministic=True)
    return f"{function.__name__.lstrip('_')}-{token}"


def _tells(value: Any) -> bool:
    """Whether the token of a value changes with its voxels: a foreign reader's may not."""
    if isinstance(value, (tuple, list)):
        return all(map(_tells, value))
    if isinstance(value, Mapping):
        return all(map(_tells, value.values()))
    known = normalize_token.dispatch(type(value)) is not normalize_object
    if known or hasattr(value, "__dask_tokenize__") or isinstance(value, (type, np.generic)):
        return True
    if is_dataclass(value):
        return all(_tells(getattr(value, field.name)) for field in fields(value))
    return not isinstance(value, ArraySource)


@normalize_token.register_lazy("zarr")
def _know_zarr() -> None:
    import zarr

    from itkstream.io.storage.zarr_arrays import zarr_token

    normalize_token.register(zarr.Array, zarr_token)


@normalize_token.register_lazy("SimpleITK")
def _know_itk() -> None:
    import SimpleITK as sitk

    from itkstream.geometry.itk_bridge import transform_token

    normalize_token.register(sitk.Transform, transform_token)


def _awaited(value: Any, name: str) -> Delayed:
    if isinstance(value, da.Array):
        return value.rechunk(value.shape).to_delayed(optimize_graph=False).item()
    return value if isinstance(value, Delayed) else dask.delayed(value, name, traverse=False)


def _together(name: str, common: _Common, shared: Mapping[str, Any]) -> Delayed:
    """One node of the graph with all that the blocks share."""
    awaited = {key: value for key, value in shared.items() if isinstance(value, Delayed)}
    known = {key: value for key, value in shared.items() if key not in awaited}
    if not awaited:
        return dask.delayed((common, known), f"shared-{name}", traverse=False)
    given = dask.delayed((common, known), f"known-{name}", traverse=False)
    merge = dask.delayed(_merge)
    return merge(given, list(awaited), list(awaited.values()), dask_key_name=f"shared-{name}")


def _merge(
    known: tuple[_Common, dict[str, Any]], names: list[str], values: list[Any]
) -> tuple[_Common, dict[str, Any]]:
    common, shared = known
    together = {**shared, **dict(zip(names, values, strict=True))}
    return replace(common, keep=together.pop(_KEEP, None)), together


def _run_block(
    index: tuple[int, ...],
    shared: tuple[_Common, Mapping[str, Any]],
    source: ArraySource | None,
) -> NDArray[Any]:
    common, given = shared
    block = common.blocks[index]
    if source is None or (common.keep is not None and not common.keep[index]):
        return common.function(None, block, **given)
    region, rest = block.padded, source.shape[len(index) :]
    if common.halo is not None:
        region = common.halo.region(common.blocks, block, source.shape[: len(index)])
    part = np.asarray(source[region + (slice(None),) * len(rest)])
    return common.function(part, block, **given)


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


def _padded_lengths(blocks: BlockGrid, axis: int) -> tuple[int, ...]:
    first = [0] * len(blocks.shape)
    lengths = []
    for i in range(blocks.numblocks[axis]):
        first[axis] = i
        lengths.append(blocks[first].padded_shape[axis])
    return tuple(lengths)
