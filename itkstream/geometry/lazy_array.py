"""Arrays that are read where they are sliced: one way to slice them all, numpy's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ArraySource",
    "ArrayView",
    "DerivedArray",
    "LazyArray",
    "chunk_shape_of",
    "complete_key",
    "span_slice",
    "transposed",
]

Places: TypeAlias = range | NDArray[np.intp]
"""The wanted elements of one axis, ascending, none twice."""

ReadBox: TypeAlias = Callable[[tuple[int, ...], tuple[int, ...]], NDArray[Any]]

# A box of which only some elements are wanted is read at once up to this size; a larger one is
# halved, so that every hundredth plane of a large image costs little more than these planes.
_LOOSE_ELEMENTS = 2**24


@runtime_checkable
class ArraySource(Protocol):
    """The least that an image's data have: a shape, a type, and slicing.

    numpy arrays, zarr arrays, dask arrays and every `LazyArray` fit.

    Examples
    --------
    >>> isinstance(np.zeros((2, 2)), itkstream.geometry.ArraySource)
    True
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    def __getitem__(self, key: Any, /) -> Any:
        """A part of the array; what comes may be lazy, and becomes numpy by ``np.asarray``."""


class LazyArray(ABC):
    """An array of which slicing reads a part, with numpy's keys and numpy's results.

    A subclass has a shape and a type, and reads boxes. Keys are integers, slices with any step,
    ``...``, ``None``, and one array (or list) of integers or of truth values; more arrays than
    one are refused, since what they choose may be spread over the whole.

    Examples
    --------
    >>> isinstance(fixed.data, itkstream.geometry.LazyArray)
    True
    >>> fixed.data[0, :2, :3].shape
    (2, 3)
    """

    if TYPE_CHECKING:
        # Not there when it runs: a dataclass would take a property for the default of its field.

        @property
        def shape(self) -> tuple[int, ...]:
            """Elements per axis."""

        @property
        def dtype(self) -> np.dtype[Any]:
            """Element type."""

    @abstractmethod
    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box.

        Parameters
        ----------
        start, stop : tuple of int
            First element, and one past the last, per axis; inside the shape, not empty.

        Returns
        -------
        ndarray, stop - start
            The elements.

        Examples
        --------
        >>> fixed.data.read((0, 0, 0), (2, 8, 8)).shape
        (2, 8, 8)
        """

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def chunk_shape(self) -> tuple[Any, ...] | None:
        """Elements per axis of the chunks that are decoded; None where that is not known."""
        return None

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        chosen = _Choice.of(key, self.shape)
        if all(len(p) for p in chosen.places):
            box = _gather(self._read, chosen.places, chunk_shape_of(self))
        else:
            box = np.empty(tuple(map(len, chosen.places)), self.dtype)
        return box if chosen.is_box else box[chosen.inside]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a lazy array becomes numpy by reading, which makes a copy")
        return np.array(self[...], dtype, copy=copy or None)

    def crop(self, slices: Sequence[slice]) -> ArrayView:
        """A lazy part of the array; reads nothing.

        Parameters
        ----------
        slices : sequence of slice
            One per axis, with any step.

        Returns
        -------
        ArrayView
            What numpy gives for these slices.

        Examples
        --------
        >>> fixed.data.crop((slice(0, 2), slice(0, 8), slice(0, 8))).shape
        (2, 8, 8)
        """
        return ArrayView.whole(self).crop(slices)

    def transpose(self, *order: Any) -> LazyArray:
        """The array with its axes in another order; reads nothing.

        Parameters
        ----------
        *order : int, or one sequence of int
            Axis ``order[k]`` becomes axis k; default the reverse.

        Returns
        -------
        LazyArray
            The reordered array.

        Raises
        ------
        ValueError
            Where these are not all axes, each once.

        Examples
        --------
        >>> fixed.data.transpose(2, 1, 0).shape == fixed.shape[::-1]
        True
        """
        return ArrayView.whole(self).transpose(*order)

    def _read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        return np.asarray(self.read(start, stop), self.dtype)


@dataclass(frozen=True)
class ArrayView(LazyArray):
    """A lazy window on a stored array: some axes fixed at an index, the others cut and reordered.

    Nothing is read before it is sliced; only the part asked for is read then. Pickles when its
    source does.

    Parameters
    ----------
    source : ArraySource
        The stored array.
    picks : tuple of (int or slice)
        One per source axis: an index drops the axis (a channel, a time point); a slice keeps it,
        and its start, stop and step count as those of a `range` do.
    order : tuple of int
        Which of the kept axes, counted in source order, becomes each axis of the view.

    Examples
    --------
    >>> view = itkstream.geometry.ArrayView.of(np.arange(12).reshape(3, 4))
    >>> np.asarray(view.crop((slice(0, 2), slice(1, 3))))
    array([[1, 2],
           [5, 6]])
    """

    source: ArraySource
    picks: tuple[int | slice, ...]
    order: tuple[int, ...]

    @classmethod
    def whole(cls, source: ArraySource) -> ArrayView:
        """A view of all of `source`.

        Parameters
        ----------
        source : ArraySource
            The stored array.

        Returns
        -------
        ArrayView
            With the source's shape and axis order.

        Examples
        --------
        >>> array = np.arange(12).reshape(3, 4)
        >>> np.array_equal(itkstream.geometry.ArrayView.whole(array), array)
        True
        """
        shape = source.shape
        return cls(source, tuple(slice(0, n) for n in shape), tuple(range(len(shape))))

    @classmethod
    def of(cls, source: ArraySource) -> ArrayView:
        """An array as a view.

        Parameters
        ----------
        source : ArraySource
            The stored array, or a view already.

        Returns
        -------
        ArrayView
            With the source's shape and axis order.

        Examples
        --------
        >>> array = np.arange(12).reshape(3, 4)
        >>> itkstream.geometry.ArrayView.of(array).shape
        (3, 4)
        """
        return source if isinstance(source, ArrayView) else cls.whole(source)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis of the view."""
        kept = [len(_span(p)) for p in self.picks if isinstance(p, slice)]
        return tuple(kept[k] for k in self.order)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(self.source.dtype)

    @property
    def chunk_shape(self) -> tuple[int, ...] | None:
        """Elements per axis of the source's chunks; None where it does not know."""
        sizes = chunk_shape_of(self.source)
        if sizes is None:
            return None
        pairs = zip(sizes, self.picks, strict=True)
        kept = [max(1, n // abs(_span(p).step)) for n, p in pairs if isinstance(p, slice)]
        return tuple(kept[k] for k in self.order)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box of the view."""
        picks = self.crop(tuple(map(slice, start, stop))).picks
        spans = [_span(p) if isinstance(p, slice) else p for p in picks]
        key = tuple(span_slice(s) if isinstance(s, range) else s for s in spans)
        source = self.source
        if any(isinstance(s, range) and s.step != 1 for s in spans) and not _strides(source):
            source = _Foreign(source)
        return np.asarray(source[key]).transpose(self.order)

    def crop(self, slices: Sequence[slice]) -> ArrayView:
        """Cut a smaller window; reads nothing."""
        kept = [axis for axis, pick in enumerate(self.picks) if isinstance(pick, slice)]
        picks = list(self.picks)
        for view_axis, cut in enumerate(slices):
            axis = kept[self.order[view_axis]]
            base = picks[axis]
            assert isinstance(base, slice)
            left = _span(base)[cut]
            stop = left.stop if len(left) else left.start
            picks[axis] = slice(left.start, stop, None if left.step == 1 else left.step)
        return ArrayView(self.source, tuple(picks), self.order)

    def transpose(self, *order: Any) -> ArrayView:
        """Put the axes of the view in another order; reads nothing."""
        axes = _axis_order(order, self.ndim)
        return ArrayView(self.source, self.picks, tuple(self.order[k] for k in axes))


@dataclass(frozen=True, eq=False)
class DerivedArray(LazyArray):
    """An array with the shape and type of its source; here, with the same elements."""

    source: ArraySource

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per axis."""
        return tuple(self.source.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(self.source.dtype)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box of the source."""
        return np.asarray(self.source[tuple(map(slice, start, stop))])


@dataclass(frozen=True, eq=False)
class _Foreign(DerivedArray):
    """An array that may slice by steps of 1 alone, as Zarr's own do."""

    @property
    def chunk_shape(self) -> tuple[Any, ...] | None:
        return chunk_shape_of(self.source)


@dataclass(frozen=True, eq=False)
class _Choice:
    """The elements per axis that a key takes of an array, and a key for the box of these."""

    places: tuple[Places, ...]
    inside: tuple[Any, ...]

    @classmethod
    def of(cls, key: Any, shape: tuple[int, ...]) -> _Choice:
        places: list[Places] = []
        inside: list[Any] = []
        for cut in complete_key(key, len(shape)):
            if cut is None or cut is Ellipsis:
                inside.append(cut)
                continue
            wanted, within = _on_axis(cut, shape[len(places)])
            places.append(wanted)
            inside.append(within)
        if sum(isinstance(within, np.ndarray) for within in inside) > 1:
            raise IndexError(
                "a lazy array takes one array of indices at a time; slice the part that holds all "
                "of them, and index what comes"
            )
        return cls(tuple(places), tuple(inside))

    @property
    def is_box(self) -> bool:
        """Whether the box is the result."""
        plain = (isinstance(k, slice) and k.step is None for k in self.inside if k is not Ellipsis)
        return all(plain)


def complete_key(key: Any, ndim: int) -> tuple[Any, ...]:
    """A key with an entry for every axis, and a None for each new one, as numpy understands it.

    A ``...`` is left only where it stands for no axis: between an integer and an array it decides
    where numpy puts the array's axis.
    """
    cuts = key if isinstance(key, tuple) else (key,)
    ellipses = [k for k, cut in enumerate(cuts) if cut is Ellipsis]
    if len(ellipses) > 1:
        raise IndexError("a key can have one ellipsis ('...')")
    used = sum(cut is not None for cut in cuts) - len(ellipses)
    if used > ndim:
        raise IndexError(f"too many indices: the array has {ndim} axes, {used} were given")
    rest: tuple[Any, ...] = (slice(None),) * (ndim - used)
    if not ellipses:
        return cuts + rest
    rest = rest or (Ellipsis,)
    return cuts[: ellipses[0]] + rest + cuts[ellipses[0] + 1 :]


def span_slice(span: range) -> slice:
    """A range of elements, which may descend, as a slice that takes them from any array."""
    if not len(span):
        return slice(0, 0)
    stop = span.stop if span.stop >= 0 else None
    return slice(span.start, stop, None if span.step == 1 else span.step)


def transposed(data: Any, order: Sequence[int]) -> Any:
    """An array with its axes in another order; reads nothing.

    Parameters
    ----------
    data : ArraySource
        numpy, dask or stored; Zarr's own arrays cannot transpose, so they are wrapped.
    order : sequence of int
        Axis ``order[k]`` becomes axis k.

    Returns
    -------
    ArraySource
        Lazy where the array is.

    Examples
    --------
    >>> itkstream.geometry.transposed(np.zeros((2, 3, 4)), (2, 1, 0)).shape
    (4, 3, 2)
    """
    view = data if hasattr(data, "transpose") else ArrayView.whole(data)
    return view.transpose(tuple(order))


def chunk_shape_of(data: Any) -> tuple[int, ...] | None:
    """Elements per axis of the chunks of an array: numpy, dask or stored.

    None where they are all in memory, or the source does not know.
    """
    # A view has no `chunks`, which would be kept beside its source's, but knows of these.
    chunks = getattr(data, "chunk_shape", None) or getattr(data, "chunks", None)
    if not chunks:
        return None
    # dask tells the length of every chunk.
    return tuple(n[0] if isinstance(n, tuple) else int(n) for n in chunks)


def _span(pick: slice) -> range:
    return range(pick.start, pick.stop, pick.step or 1)


def _strides(source: ArraySource) -> bool:
    """Whether an array takes slices with any step: numpy's, dask's and ours do."""
    return isinstance(source, LazyArray) or hasattr(source, "__array_function__")


def _axis_order(given: tuple[Any, ...], ndim: int) -> tuple[int, ...]:
    if len(given) == 1 and not hasattr(given[0], "__index__"):
        given = tuple(given[0]) if given[0] is not None else ()
    axes = [int(k) for k in given] or list(reversed(range(ndim)))
    order = tuple(k + ndim if k < 0 else k for k in axes)
    if sorted(order) != list(range(ndim)):
        raise ValueError(f"axes {tuple(axes)} do not name each of {ndim} axes once")
    return order


def _on_axis(cut: Any, length: int) -> tuple[Places, Any]:
    """The elements that one entry of a key takes of an axis, and the entry for these alone."""
    if isinstance(cut, slice):
        span = range(length)[cut]
        return (span, slice(None)) if span.step > 0 else (span[::-1], slice(None, None, -1))
    index = np.asarray(cut)
    if index.dtype.kind == "b" and index.ndim == 1:
        if len(index) != length:
            raise IndexError(
                f"{len(index)} truth values do not fit an axis of {length} elements: give one each"
            )
        index = np.flatnonzero(index)
    elif not index.size and isinstance(cut, list):
        index = index.astype(np.intp)
    if index.dtype.kind not in "iu":
        raise IndexError(
            "a lazy array is indexed by integers, slices, ..., None, and one list or array of "
            f"integers or of truth values for one axis; got {cut!r}"
        )
    outside = index[(index < -length) | (index >= length)]
    if outside.size:
        raise IndexError(f"index {outside.flat[0]} is outside an axis of {length} elements")
    index = index.astype(np.intp) % max(1, length)
    if not index.ndim:
        return range(int(index), int(index) + 1), 0
    places = np.unique(index)
    return places, np.searchsorted(places, index)


def _gather(
    read: ReadBox, places: tuple[Places, ...], chunk_shape: tuple[int, ...] | None
) -> NDArray[Any]:
    """Read the elements at all combinations of some places, in boxes that are not too large."""
    lengths = [int(p[-1]) - int(p[0]) + 1 for p in places]
    loose = [k for k, p in enumerate(places) if len(p) < lengths[k]]
    if not loose or math.prod(lengths) <= _LOOSE_ELEMENTS:
        box = read(tuple(int(p[0]) for p in places), tuple(int(p[-1]) + 1 for p in places))
        for axis in loose:
            box = box[(slice(None),) * axis + (_within(places[axis]),)]
        return box
    axis = max(loose, key=lambda k: lengths[k])
    middle = _middle(places[axis], chunk_shape[axis] if chunk_shape else 1)
    halves = (places[axis][:middle], places[axis][middle:])
    parts = ((*places[:axis], half, *places[axis + 1 :]) for half in halves)
    return np.concatenate([_gather(read, part, chunk_shape) for part in parts], axis)


def _within(places: Places) -> slice | NDArray[np.intp]:
    if isinstance(places, range):
        return slice(None, None, places.step)
    return places - places[0]


def _middle(places: Places, size: int) -> int:
    """The place to halve the places of an axis at: between two chunks, if it can be."""
    half = len(places) // 2
    border = int(places[half]) // size * size
    at = half
    while at > 0 and places[at - 1] >= border:
        at -= 1
    return at or half
