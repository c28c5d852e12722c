"""Block functions mapped over images: the one place that builds dask graphs.

A fixed image that is a dask array goes through ``dask.array.map_overlap``. Any other is read, halo
included, by the task of its block: one task a block and no array in the graph. Both ways hand the
same voxels to the same function, so both give the same bits. Whatever all blocks need (the moving
image, transforms, settings) stands in the graph once.

Names are fingerprints: of this package's code, the function, the blocks, and all it is given, with
a stamp of the files of stored arrays. The same computation has the same name in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.tokenize import TokenizationError, normalize_object, normalize_token, tokenize
from numpy.typing import DTypeLike, NDArray

from itkstream.fingerprint import code_version
from itkstream.geometry import ArraySource, Block, BlockGrid, Image, Slices
from itkstream.numerics.blend import blend_blocks, core_mean, stand_in

__all__ = ["BlockFunction", "Halo", "Result", "blend", "map_blocks", "once", "readable"]

BlockFunction = Callable[..., NDArray[Any]]
"""Called as ``function(part, block, **shared)``: voxels of the padded block -> an array."""


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
    """

    dtype: DTypeLike
    components: tuple[int, ...] = ()
    extent: str = "core"

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
            leading = blocks.chunks
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
class DaskSource:
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

    def transpose(self, order: tuple[int, ...]) -> DaskSource:
        """The array with its axes in another order."""
        return DaskSource(self.array.transpose(order))

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, str(self.array.name))

    def __getitem__(self, key: Any) -> NDArray[Any]:
        # The caller may be a task of any scheduler: this part runs in its own thread.
        return np.asarray(self.array[key].compute(scheduler="synchronous"))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)


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
    if isinstance(image.data, da.Array):
        return Image(DaskSource(image.data), image.grid, image.name)
    return image


def map_blocks(
    function: BlockFunction,
    blocks: BlockGrid,
    source: ArraySource | None,
    shared: Mapping[str, Any],
    result: Result,
    halo: Halo | None = None,
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

    Returns
    -------
    dask.array.Array
        Chunked by block.
    """
    if isinstance(source, da.Array):
        cut = _cut(blocks, source, halo)
        if cut is not None:
            return _map_overlap(function, blocks, cut, shared, result)
        source = DaskSource(source)
    name = _fingerprint(function, blocks, source, shared, result, halo)
    ndim = len(blocks.shape)
    tail = (0,) * len(result.components)
    together = _together(name, shared)
    graph: dict[Any, Any] = {f"source-{name}": source}
    for block in blocks:
        region = block.padded
        if halo is not None and source is not None:
            region = halo.region(blocks, block, source.shape[:ndim])
        task = (_run_block, function, block, region, f"source-{name}", together.key)
        graph[(name, *block.index, *tail)] = task
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[together])
    meta = np.empty((0,) * (ndim + len(tail)), result.dtype)
    return da.Array(layers, name, result.chunks(blocks), meta=meta)


def once(function: Callable[..., Any], *arguments: Any) -> Delayed:
    """A value to be computed once, before the blocks that share it.

    Parameters
    ----------
    function : callable
        Of a module.
    *arguments
        What it is called with; dask arrays and delayed values are computed first.

    Returns
    -------
    dask.delayed.Delayed
        Named by function and arguments.
    """
    name = _fingerprint(function, *arguments)
    given = [_awaited(value, f"{name}-{k}") for k, value in enumerate(arguments)]
    return dask.delayed(function)(*given, dask_key_name=name)


def blend(padded: da.Array, blocks: BlockGrid) -> da.Array:
    """Join padded results of overlapping blocks into one array without seams.

    Parameters
    ----------
    padded : dask.array.Array
        From `map_blocks` with extent 'padded' and one component axis, float32: vectors, and last
        the confidence of the block, the same for all its voxels.
    blocks : BlockGrid
        The blocks it was made with.

    Returns
    -------
    dask.array.Array, blocks.shape + (n,), float32
        Chunked by the blocks' cores.
    """
    if len(blocks) == 1:
        return padded[..., :-1]
    name = _fingerprint(blend, padded, blocks)
    graph: dict[Any, Any] = {}
    for block in blocks:
        # Only blocks that touch are asked, so that no block waits for all the others.
        near = list(blocks.neighbours(block.index))
        keys = {
            kind: [(f"{kind}-{name}", *other.index) for other in near] for kind in ("mean", "spare")
        }
        parts = [(padded.name, *other.index, 0) for other in near]
        here = (padded.name, *block.index, 0)
        graph[(f"mean-{name}", *block.index)] = (_core_mean, block, here)
        graph[(f"spare-{name}", *block.index)] = (stand_in, block, near, keys["mean"])
        task = (_blend_block, blocks, block, near, parts, keys["spare"])
        graph[(name, *block.index, 0)] = task
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[padded])
    chunks = (*blocks.chunks, (padded.shape[-1] - 1,))
    return da.Array(layers, name, chunks, meta=np.empty((0,) * padded.ndim, np.float32))


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
        function=function,
        blocks=blocks,
        shared=_together(name, shared),
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

    from itkstream.io.zarr_arrays import zarr_token

    normalize_token.register(zarr.Array, zarr_token)


@normalize_token.register_lazy("SimpleITK")
def _know_itk() -> None:
    import SimpleITK as sitk

    from itkstream.itk_bridge import transform_token

    normalize_token.register(sitk.Transform, transform_token)


def _awaited(value: Any, name: str) -> Delayed:
    if isinstance(value, da.Array):
        return value.rechunk(value.shape).to_delayed(optimize_graph=False).item()
    return value if isinstance(value, Delayed) else dask.delayed(value, name, traverse=False)


def _together(name: str, shared: Mapping[str, Any]) -> Delayed:
    """One node of the graph with all that the blocks share."""
    awaited = {name: value for name, value in shared.items() if isinstance(value, Delayed)}
    known = {name: value for name, value in shared.items() if name not in awaited}
    given = dask.delayed(known, f"known-{name}", traverse=False)
    merge = dask.delayed(_merge)
    return merge(given, list(awaited), list(awaited.values()), dask_key_name=f"shared-{name}")


def _merge(known: dict[str, Any], names: list[str], values: list[Any]) -> dict[str, Any]:
    return {**known, **dict(zip(names, values, strict=True))}


def _run_block(
    function: BlockFunction,
    block: Block,
    region: Slices,
    source: ArraySource | None,
    shared: Mapping[str, Any],
) -> NDArray[Any]:
    if source is None:
        return function(None, block, **shared)
    rest = (slice(None),) * (len(source.shape) - len(region))
    return function(np.asarray(source[region + rest]), block, **shared)


def _run_chunk(
    part: NDArray[Any],
    *,
    function: BlockFunction,
    blocks: BlockGrid,
    shared: Mapping[str, Any],
    block_info: Any = None,
) -> NDArray[Any]:
    index = block_info[0]["chunk-location"][: len(blocks.shape)]
    return function(part, blocks[index], **shared)


def _blend_block(
    blocks: BlockGrid,
    block: Block,
    near: list[Block],
    parts: list[NDArray[Any]],
    spares: list[NDArray[np.float32]],
) -> NDArray[np.float32]:
    values, confidence = [], []
    for part, spare in zip(parts, spares, strict=True):
        failed = np.isnan(part).any()
        values.append(spare if failed else part[..., :-1])
        confidence.append(1.0 if failed else float(part.flat[part.shape[-1] - 1]))
    return blend_blocks(blocks, block, list(zip(near, values, strict=True)), confidence)


def _core_mean(block: Block, part: NDArray[Any]) -> NDArray[np.float32]:
    return core_mean(block, part[..., :-1])


def _padded_lengths(blocks: BlockGrid, axis: int) -> tuple[int, ...]:
    first = [0] * len(blocks.shape)
    lengths = []
    for i in range(blocks.numblocks[axis]):
        first[axis] = i
        lengths.append(blocks[first].padded_shape[axis])
    return tuple(lengths)
