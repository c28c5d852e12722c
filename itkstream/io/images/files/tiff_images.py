"""TIFF files: OME-TIFF, ImageJ, BigTIFF and what else tifffile understands."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from tifffile import TIFF, TiffFile, TiffFrame, TiffPage, TiffPageSeries

from itkstream.errors import (
    InputError,
    ItkstreamError,
    MissingDataError,
    UnknownSpacingError,
    UnreadableDataError,
)
from itkstream.geometry import Grid
from itkstream.io.images.files.tiff_metadata import (
    Statement,
    channel_names,
    ome_pixels,
    statement,
)
from itkstream.io.images.files.tiff_pages import TiffArray, segment_grid
from itkstream.io.images.locate import Dataset
from itkstream.io.images.selection import Opened, Selection

__all__ = ["array_of", "believed", "explained", "lattice", "open_tiff", "unknown_spacing"]

logger = logging.getLogger(__name__)

_SPACE = ("x", "y", "z")
_AXES = {"X": "x", "Y": "y", "Z": "z", "C": "c", "T": "t"}
_STACKED = ("I", "Q")  # tifffile's letters for pages of which nothing is said
_UNPACKED_PER_BYTE = 100_000  # no codec packs constant voxels more tightly


def open_tiff(dataset: Dataset, selection: Selection) -> Opened:
    """Open a TIFF file that tifffile understands, with the spatial axes in stored order.

    Voxels are as stored, samples (RGB) are channels, pages of which nothing is said lie along z.
    Spacing and unit are those of OME-XML, ImageJ, LSM, MetaMorph and Micro-Manager, see
    `itkstream.io.images.files.tiff_metadata.statement`. Levels of a pyramid cover the same space.
    """
    path = str(dataset.root)
    with explained(path), TiffFile(path) as tif:
        ome_pixels(tif)
        _check_chain(tif)
        chosen = _series(tif, dataset)
        levels = [s for s in chosen.levels if s.axes == chosen.axes and s.dtype == chosen.dtype]
        _check_kind(chosen, path)
        for level in levels:
            _check_pages(level, path)
        names = selection.axes_of(_names(chosen, selection, path), path)
        count = dict(zip(names, chosen.shape, strict=True)).get("c", 1)
        selection = selection.settled(count, channel_names(tif, chosen), path)
        said = statement(tif, chosen)
        stated = believed(said, selection)
        shapes = [dict(zip(names, level.shape, strict=True)) for level in levels]
        grids = [lattice(stated, shapes[0], shape) for shape in shapes]
        unit = stated.unit or selection.unit_of(None)
        number = selection.choose_level([g.spacing if g else None for g in grids], unit, path)
        if grids[number] is None and selection.voxel_spacing is None:
            raise unknown_spacing(said, shapes[0], path)
        array = array_of(path, chosen, levels[number])
        _check_planes(levels[number], names, selection, path)
        return selection.image(array, names, grids[number], path, said.unit, len(levels))


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Name the file in whatever tifffile raises over a broken one."""
    try:
        yield
    except (ItkstreamError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as TIFF ({type(error).__name__}: {error}): it is no TIFF file, "
            "cut short, or its tags are damaged"
        ) from error


def _check_chain(tif: TiffFile) -> None:
    """Refuse a chain of pages that ends beyond the end of the file: pages are gone."""
    count, following = len(tif.pages), 0
    if count and not tif.pages[count - 1].is_virtual:
        following = tif.pages[count - 1].aspage()._nextifd()
    if not count or following >= tif.filehandle.size:
        raise UnreadableDataError(
            f"{tif.filehandle.path} is cut short: it holds {count} whole pages, and points to "
            f"another at {following} of {tif.filehandle.size} bytes. Restore it from its source"
        )


def _series(tif: TiffFile, dataset: Dataset) -> TiffPageSeries:
    """Choose the series that is meant: the named one, or the only one that is no thumbnail."""
    path = str(dataset.root)
    everything = list(tif.series)
    wanted = dataset.location.relative_to(dataset.root) if dataset.location != dataset.root else ""
    if wanted:
        for number, series in enumerate(everything):
            if wanted in (str(number), series.name):
                return series
    images = [s for s in everything if not s.keyframe.is_reduced] or everything
    if not wanted and images and (len(images) == 1 or images[0].name == "Baseline"):
        return images[0]
    listed = "; ".join(
        f"{k} {s.name!r}: {s.axes} {'x'.join(map(str, s.shape))} {s.dtype}"
        for k, s in enumerate(everything)
    )
    if wanted:
        raise MissingDataError(f"{path} has no series {wanted!r}; its series: {listed}")
    raise InputError(
        f"{path} holds {len(everything)} series of images that differ in size or kind: {listed}. "
        f"Choose one by number or name: dataset='0', or {path}/0 as path"
    )


def _check_kind(series: TiffPageSeries, path: str) -> None:
    dtype = series.dtype
    if dtype is None or dtype.kind not in "biuf":
        raise InputError(f"images of real numbers are read; {path} holds {dtype}")
    if min(series.shape, default=0) < 1:
        raise InputError(f"{path} holds an empty image of shape {series.shape}")
    text = series.keyframe.parent.pages[0].aspage().description or ""
    if series.kind not in ("ome", "mmstack") and "BinaryOnly" in text[:2000]:
        raise InputError(
            f"{path} is one of several files of an image; the one that its OME-XML names as "
            "MetadataFile describes them all: open that, or a copy of it as OME-TIFF"
        )
    turned = series.keyframe.tags.valueof(274) or 1
    if turned != 1:
        logger.warning(
            "%s has the orientation %s: viewers may show it turned or mirrored; its voxels are "
            "taken in the order in which they are stored, as tifffile and ImageJ do",
            path,
            turned,
        )


def _check_pages(series: TiffPageSeries, path: str) -> None:
    """Refuse a header that goes beyond what the files can hold."""
    key = series.keyframe
    if key.compression != 1 and key.compression not in TIFF.DECOMPRESSORS:
        raise InputError(
            f"{path} has the compression {key.compression!s}, which cannot be read: save it with "
            "another one"
        )
    key.decode(None, 0)  # raises where the layout cannot be decoded, whatever the data
    first, size = key.parent.filehandle.path, key.parent.filehandle.size
    if series.dataoffset is not None:
        _check_length(first, series.dataoffset + series.size * key.dtype.itemsize, size)
        return
    if math.prod(series.shape) != len(series) * key.size:
        raise InputError(
            f"{path} means an image of shape {series.shape} and holds {len(series)} pages of "
            f"{key.shape}: its metadata do not fit its pages"
        )
    tile, count = segment_grid(key)
    packed = max(key.databytecounts, default=0)
    if math.prod(tile) * key.dtype.itemsize > max(packed, 1) * _UNPACKED_PER_BYTE:
        raise InputError(f"{path} means strips or tiles of {tile}, in {packed} bytes at most")
    for page in (p for p in series._pages if p is not None):
        _check_segments(page, math.prod(count), path)


def _check_segments(page: TiffPage | TiffFrame, count: int, path: str) -> None:
    offsets = np.asarray(page.dataoffsets, np.uint64)
    lengths = np.asarray(page.databytecounts, np.uint64)
    if len(offsets) != len(lengths) or (len(offsets) < count and not page.parent.is_philips):
        raise InputError(
            f"{path}: page {page.index} needs {count} strips or tiles; StripOffsets or TileOffsets "
            f"name {len(offsets)}, and their ByteCounts {len(lengths)}"
        )
    ends = (offsets + lengths)[offsets > 0]
    _check_length(
        page.parent.filehandle.path, int(ends.max(initial=0)), page.parent.filehandle.size
    )


def _check_length(path: str, needed: int, size: int) -> None:
    if needed > size:
        raise UnreadableDataError(
            f"{path} is cut short: its tags place voxels up to byte {needed} and it has {size}. "
            "Restore it from its source"
        )


def _names(series: TiffPageSeries, selection: Selection, path: str) -> tuple[str, ...]:
    """Name the axes of a series; those without a name of their own where it is plain."""
    letters = series.axes
    if selection.axes is not None:
        return tuple(letters.lower())
    # Of several axes without a name, those of one element mean nothing.
    if sum(a in _STACKED for a in letters) > 1:
        pairs = zip(letters, series.shape, strict=True)
        letters = "".join("_" if a in _STACKED and n == 1 else a for a, n in pairs)
    known = dict(_AXES)
    if "C" not in letters:
        known["S"] = "c"
    stacked = [a for a in letters if a in _STACKED]
    if len(stacked) == 1 and "Z" not in letters and "T" not in letters:
        known[stacked[0]] = "z"
    unknown = [a for a, n in zip(letters, series.shape, strict=True) if a not in known and n > 1]
    if unknown == ["S"]:
        raise InputError(
            f"{path} has axes {tuple(letters)} of shape {series.shape}: colours (S) in each of "
            "several channels (C). Split its colours into channels, in ImageJ for instance"
        )
    named = letters.replace("_", "")
    if unknown or len(set(named)) < len(named):
        raise InputError(
            f"{path} has axes {tuple(letters)} of shape {series.shape}, and it is not clear what "
            f"{', '.join(map(repr, unknown or letters))} stand for: pass axes=, such as "
            f"axes={'tczyx'[-len(letters) :]!r}"
        )
    return tuple(known.get(a, a.lower()) for a in letters)


def believed(stated: Statement, selection: Selection) -> Statement:
    """Put a statement into the unit that counts; nothing where numbers have no unit."""
    if not stated.spacing or (stated.unit is None and selection.unit is None):
        return Statement()
    return replace(stated, unit=selection.unit_of(stated.unit))


def lattice(stated: Statement, finest: dict[str, int], shape: dict[str, int]) -> Grid | None:
    """Make the grid of a level that covers the space of the finest one."""
    axes = tuple(a for a in shape if a in _SPACE)
    if any(a not in stated.spacing for a in axes) or stated.unit is None:
        return None
    factors = [_factor(finest[a], shape[a]) for a in axes]
    base = [stated.spacing[a] for a in axes]
    first = [stated.origin.get(a, 0.0) for a in axes]
    return Grid(
        shape=tuple(shape[a] for a in axes),
        spacing=tuple(s * f for s, f in zip(base, factors, strict=True)),
        origin=tuple(o + s * (f - 1) / 2 for o, s, f in zip(first, base, factors, strict=True)),
        axes=axes,
        unit=stated.unit,
    )


def _factor(fine: int, coarse: int) -> float:
    """Count the fine voxels that a coarse one stands for: a whole number where that fits."""
    whole = round(fine / coarse)
    return float(whole) if whole and abs(fine / whole - coarse) < 1 else fine / coarse


def unknown_spacing(said: Statement, shape: dict[str, int], path: str) -> UnknownSpacingError:
    """Make the error for a spacing that a file does not state in full."""
    axes = tuple(a for a in shape if a in _SPACE)
    lacking = ", ".join(a for a in axes if a not in said.spacing)
    known = ", ".join(f"{a} {said.spacing[a]:g}" for a in axes if a in said.spacing)
    give = f"pass voxel_spacing=, one number per axis in the order {', '.join(axes)}"
    if not lacking:
        return UnknownSpacingError(
            f"{path} says that its voxels lie {known} apart, and not in which unit of length: pass "
            f"unit=, or {give}"
        )
    found = f"it does say {known} {said.unit or 'of no unit'}; " if known else ""
    return UnknownSpacingError(
        f"{path} does not say how far its voxels lie apart along {lacking}; {found}{give}"
    )


def array_of(path: str, base: TiffPageSeries, series: TiffPageSeries) -> TiffArray:
    """Make the lazy array of a level of a series."""
    parts = {p.parent.filehandle.path for p in series._pages if p is not None}
    # By its name: of numpy's two types of 64 bits, Zarr knows one.
    dtype: np.dtype[Any] = np.dtype(np.dtype(series.dtype).name)
    tile = None if series.dataoffset is not None else _tile(series)
    level = next(k for k, one in enumerate(base.levels) if one is series)
    return TiffArray(path, series.shape, dtype, base._index, level, tile, tuple(sorted(parts)))


def _tile(series: TiffPageSeries) -> tuple[int, ...] | None:
    """Find the elements per axis of the series that a strip or tile holds."""
    key = series.keyframe
    size, _ = segment_grid(key)
    long = [(n, min(k, n)) for n, k in zip(key.shaped, size, strict=True) if n > 1]
    tile: list[int] = []
    for length in reversed(series.shape):
        fits = long and long[-1][0] == length
        tile.insert(0, long.pop()[1] if fits else 1)
    return tuple(tile) if not long else None


def _check_planes(
    series: TiffPageSeries, names: Sequence[str], selection: Selection, path: str
) -> None:
    """Refuse a channel and time with missing planes."""
    if all(page is not None for page in series._pages):
        return
    shape, size = series.shape, series.keyframe.size
    first = next(k for k in range(len(shape) + 1) if math.prod(shape[k:]) == size)
    there = np.array([p is not None for p in series._pages]).reshape(shape[:first])
    picks = {"c": int(selection.channel or 0), "t": selection.time}
    for axis in reversed(range(first)):
        if names[axis] in picks:
            there = np.take(there, [min(max(picks[names[axis]], 0), shape[axis] - 1)], axis)
    if not there.all():
        raise MissingDataError(
            f"{path}: {int((~there).sum())} of {there.size} planes of this channel and time are "
            "missing: its OME-XML places them in pages or files that are not there. Put the "
            "other files of the set beside it"
        )
