"""Lazy arrays in TIFF files: the strips and tiles that a box touches, through tifffile."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from threading import RLock
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffFrame, TiffPage, TiffPageSeries

from itkstream.errors import InputError, UnreadableDataError
from itkstream.io.storage.stored import StoredArray

__all__ = ["TiffArray", "segment_grid"]

# tifffile tells what it finds odd; an error says it in our words.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_JPEG = (6, 7, 33007, 34892)
_opening = RLock()  # tifffile loads pages when they are first asked for, and is not thread-safe


@dataclass(frozen=True)
class TiffArray(StoredArray):
    """A lazy series of TIFF pages, axes as tifffile has them.

    Where the voxels lie in one piece and as numpy has them, a box is copied from the mapped file;
    elsewhere the strips and tiles that it touches are decoded, one after the other. `tile` are the
    elements per axis of these, `parts` the files, where the series is spread over several.
    """

    series: int = 0
    level: int = 0
    tile: tuple[int, ...] | None = None
    parts: tuple[str, ...] = ()

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Elements per axis that are decoded together; None where any box costs its own size."""
        return self.tile

    def files(self) -> tuple[str, ...]:
        """Return the file, and those that it shares the series with."""
        return tuple(dict.fromkeys((self.path, *self.parts)))

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box; `UnreadableDataError` where a plane of it is in none of the files."""
        with _opening:
            series = self._opened().series[self.series].levels[self.level]
        cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        if series.dataoffset is not None:
            box = _mapped(series)[cut]
        else:
            try:
                box = _decoded(series, cut, self.path)
            except (ImportError, NotImplementedError) as error:
                raise InputError(
                    f"{self.path} has the compression {series.keyframe.compression!s}, which "
                    f"cannot be read here ({error}): save the file with another one"
                ) from error
        return np.array(box if series.transform is None else series.transform(box))

    def _opened(self) -> TiffFile:
        """The file, opened once a process."""
        stamps = (os.stat(file) for file in self.files())
        return _kept(self.path, tuple((s.st_mtime_ns, s.st_size) for s in stamps))


def segment_grid(page: TiffPage) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the size of a page's strips or tiles, and how many there are.

    Both by planes, depth, rows, columns and samples.
    """
    planes, depth, rows, columns, samples = page.shaped
    size = (1, 1, min(page.rowsperstrip, rows), columns, samples)
    if page.is_tiled:
        size = (1, page.tiledepth, page.tilelength, page.tilewidth, samples)
    whole = (planes, depth, rows, columns, samples)
    return size, tuple(-(-n // max(k, 1)) for n, k in zip(whole, size, strict=True))


@lru_cache(maxsize=8)
def _kept(path: str, _stamps: tuple[tuple[int, int], ...]) -> TiffFile:
    # Times and sizes are part of the key: a file that was written anew is opened anew.
    return TiffFile(path)


def _mapped(series: TiffPageSeries) -> NDArray[Any]:
    key = series.keyframe
    dtype = np.dtype(key.dtype).newbyteorder(key.parent.byteorder)
    return np.memmap(key.parent.filehandle.path, dtype, "r", series.dataoffset, series.shape)


def _decoded(series: TiffPageSeries, cut: tuple[slice, ...], name: str) -> NDArray[Any]:
    """Decode a box of a series, page by page: the first axes count pages, the others lie in one."""
    shape, key = series.shape, series.keyframe
    first = next(k for k in range(len(shape) + 1) if math.prod(shape[k:]) == key.size)
    within = _within(shape[first:], key.shaped, cut[first:])
    out = np.empty([c.stop - c.start for c in cut], key.dtype)
    with ExitStack() as stack:
        fetch = _fetcher(stack)
        for index in product(*(range(c.start, c.stop) for c in cut[:first])):
            number = int(np.ravel_multi_index(index, shape[:first])) if first else 0
            with _opening:
                page = series[number]
            if page is None:
                raise UnreadableDataError(f"{name}: plane {number} is in none of its files")
            box = _page_box(page, within or tuple(slice(0, n) for n in key.shaped), fetch)
            if within is None:
                box = box.reshape(shape[first:])[cut[first:]]
            place = tuple(i - c.start for i, c in zip(index, cut[:first], strict=True))
            out[place] = box.reshape(out.shape[first:])
    return out


def _within(
    shape: Sequence[int], shaped: Sequence[int], cut: Sequence[slice]
) -> tuple[slice, ...] | None:
    """Turn a cut of a page's axes into one of planes, depth, rows, columns, samples, or None."""
    long = [c for n, c in zip(shape, cut, strict=True) if n > 1]
    if [n for n in shape if n > 1] != [n for n in shaped if n > 1]:
        return None
    remaining = iter(long)
    return tuple(next(remaining) if n > 1 else slice(0, 1) for n in shaped)


def _page_box(
    page: TiffPage | TiffFrame,
    cut: tuple[slice, ...],
    fetch: Callable[[str, int, int], bytes],
) -> NDArray[Any]:
    """Decode a box of one page, by planes, depth, rows, columns and samples."""
    key = page.keyframe
    out = np.full([c.stop - c.start for c in cut], key.nodata, key.dtype)
    tables = {}
    if key.compression in _JPEG:
        tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
    for number in _touched(key, cut):
        if number >= len(page.dataoffsets) or not page.dataoffsets[number]:
            continue  # a sparse file leaves out what is empty
        offset, count = page.dataoffsets[number], page.databytecounts[number]
        data = fetch(page.parent.filehandle.path, offset, count) if count else None
        segment, at, _ = key.decode(data, number, **tables)
        if segment is not None:
            _place(segment, at, cut, out)
    return out


def _touched(key: TiffPage, cut: tuple[slice, ...]) -> Iterator[int]:
    size, count = segment_grid(key)
    spans = (range(c.start // n, -(-c.stop // n)) for c, n in zip(cut[:-1], size[:-1], strict=True))
    for index in product(*spans):
        yield int(np.ravel_multi_index(index, count[:-1]))


def _place(
    segment: NDArray[Any], at: Sequence[int], cut: tuple[slice, ...], out: NDArray[Any]
) -> None:
    """Copy the part of a strip or tile that lies in a box."""
    target, source = [], []
    for start, length, span in zip(at, (1, *segment.shape), cut, strict=True):
        low, high = max(start, span.start), min(start + length, span.stop)
        target.append(slice(low - span.start, high - span.start))
        source.append(slice(low - start, high - start))
    out[tuple(target)] = segment[None][tuple(source)]


def _fetcher(stack: ExitStack) -> Callable[[str, int, int], bytes]:
    """Make a reader of bytes of files that stay open as long as the stack."""
    files: dict[str, BinaryIO] = {}

    def fetch(path: str, offset: int, count: int) -> bytes:
        if path not in files:
            files[path] = stack.enter_context(open(path, "rb"))  # noqa: SIM115
        files[path].seek(offset)
        data = files[path].read(count)
        if len(data) < count:
            raise UnreadableDataError(
                f"{path} is cut short: a strip or tile of {count} bytes at {offset} lies beyond "
                "its end. Restore the file from its source"
            )
        return data

    return fetch
