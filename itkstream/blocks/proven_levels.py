"""The levels that an image file has already, where they are what they should be.

Reading all of an image to average it is a waste where its file holds the averages. But many
programs that write such levels keep every second voxel, filter, or state wrong positions. So a
level is compared with the image at full resolution, in a few blocks, voxel by voxel: by their
indices, whatever its metadata say of its position. What a writer that was killed left out shows in
no few blocks: so every file of the level must be there, unless the image has none either.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import ArrayView, Image, Slices
from itkstream.io.images.stores.ome_zarr import ShrunkView, coarser_levels
from itkstream.io.storage.chunk_files import ChunkFiles
from itkstream.io.storage.locations import Location
from itkstream.io.storage.stored import tiles
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.numerics.sampling.pyramid import shrink

__all__ = ["finest_needed"]

logger = logging.getLogger(__name__)

# At full resolution a block that is compared has so many voxels an axis, or two groups.
_COMPARED = 128
# Places of which one is chosen in each half of every axis, by what the level shows there.
_CANDIDATES = 3
# A level of integers is rounded, and so may be each one between: by one at most, cut off or not.
_ROUNDED = 1.0
# What is allowed must be so many times less than what voxels of a group differ by.
_TELLING = 4
# Of the range of a level of floating-point numbers.
_PRECISION = 1e-5
# Looks for files at a time: an object store takes long to answer.
_LOOKS = 16


def finest_needed(image: Image, factors: Sequence[int]) -> tuple[Image, tuple[int, ...]]:
    """The image to read in order to average one: itself, or a level of its file.

    The level is the coarsest one that was compared with the image and is its mean in groups that
    fit into those of `factors`; with it come the factors that are left.
    """
    whole = tuple(factors)
    view = image.data
    if not isinstance(view, ArrayView):
        return image, whole
    fitting = [
        level
        for level in coarser_levels(view)
        if all(f % k == 0 for f, k in zip(whole, level.factors, strict=True))
    ]
    if not fitting:
        return image, whole
    level = max(fitting, key=lambda level: math.prod(level.factors))
    name = level.view.source
    if not _is_finished(view, level):
        logger.info("%s was not written to its end: all of the image is read", name)
        return image, whole
    if not _is_mean(image, level):
        logger.info("%s is not the mean of groups of voxels: all of the image is read", name)
        return image, whole
    logger.info("%s is the mean of groups of %s voxels: it is read instead", name, level.factors)
    rest = tuple(f // k for f, k in zip(whole, level.factors, strict=True))
    return Image(level.view, image.grid.shrink(level.factors), image.name), rest


def _is_finished(fine: ArrayView, level: ShrunkView) -> bool:
    """Whether a level has a file wherever the image has one."""
    below, above = _chunk_files(level.view), _chunk_files(fine)

    def is_there(box: Slices) -> bool:
        (name,) = below.names(box)
        if below.location.child(name).exists():
            return True
        # Fill values are not written. Few levels are so dark that they round to them.
        finer = above.names(_finer(box, level, fine))
        return not any(above.location.child(name).exists() for name in finer)

    with ThreadPoolExecutor(_LOOKS) as pool:
        return all(pool.map(is_there, _files(below, level.view)))


def _chunk_files(view: ArrayView) -> ChunkFiles:
    assert isinstance(view.source, ZarrArray)
    return ChunkFiles(Location(view.source.path))


def _files(files: ChunkFiles, view: ArrayView) -> Iterator[Slices]:
    """The part of a view that each file holds, in the axes of the stored array."""
    sizes = files.array.shards or files.array.chunks
    per_axis = [
        [box for (box,) in tiles((pick.stop,), (size,))]
        if isinstance(pick, slice)
        else [slice(pick, pick + 1)]
        for pick, size in zip(view.picks, sizes, strict=True)
    ]
    return product(*per_axis)


def _finer(box: Slices, level: ShrunkView, fine: ArrayView) -> Slices:
    """The voxels of the image that a box of a level is the mean of, in the stored axes."""
    factors = iter(level.factors[level.view.order.index(k)] for k in range(level.view.ndim))
    spans = []
    for span, pick in zip(box, fine.picks, strict=True):
        f = next(factors) if isinstance(pick, slice) else 1
        end = pick.stop if isinstance(pick, slice) else span.stop
        spans.append(slice(span.start * f, min(span.stop * f, end)))
    return tuple(spans)


def _is_mean(image: Image, level: ShrunkView) -> bool:
    """Whether a level has the means of an image wherever both are compared."""
    telling = False
    for places in _places(level, image.grid.shape):
        parts = [(np.asarray(level.view[place]), place) for place in places]
        part, place = max(parts, key=lambda known: float(np.ptp(known[0])))
        spans = zip(place, level.factors, strict=True)
        fine = image[tuple(slice(s.start * f, s.stop * f) for s, f in spans)]
        voxels = fine.read().astype(np.float32)
        mean, _ = shrink(voxels, fine.grid, level.factors)
        allowed = _tolerance(part, level)
        if not np.allclose(part, mean, rtol=0, atol=allowed, equal_nan=True):
            return False
        telling |= _variation(voxels, mean) > _TELLING * allowed
    # Where the voxels of a group are alike, any of them is their mean, and nothing was learnt.
    return telling


def _variation(voxels: NDArray[np.float32], mean: NDArray[np.float32]) -> float:
    """Standard deviation of the voxels of a group from their mean."""
    for axis, (n, groups) in enumerate(zip(voxels.shape, mean.shape, strict=True)):
        mean = np.repeat(mean, n // groups, axis)
    return float(np.sqrt(np.nan_to_num(np.nanmean((voxels - mean) ** 2))))


def _places(level: ShrunkView, shape: Sequence[int]) -> Iterator[list[Slices]]:
    """For each half of every axis some windows of whole groups, spread over it."""
    per_axis = []
    for n, fine, f in zip(level.view.shape, shape, level.factors, strict=True):
        # A group at the end that is not whole may be averaged in several ways.
        room = max(1, min(n, fine // f))
        size = min(room, max(2, _COMPARED // f))
        starts = np.linspace(0, room - size, 2 * _CANDIDATES).round().astype(int)
        windows = [slice(int(a), int(a) + size) for a in starts]
        per_axis.append((windows[:_CANDIDATES], windows[_CANDIDATES:]))
    for halves in product(*per_axis):
        yield list(product(*halves))


def _tolerance(part: NDArray[np.generic], level: ShrunkView) -> float:
    if part.dtype.kind in "iub":
        return _ROUNDED * level.steps
    largest = float(np.nanmax(np.abs(part), initial=0.0))
    return _PRECISION * largest if np.isfinite(largest) else 0.0
