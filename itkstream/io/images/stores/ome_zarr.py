"""Zarr: open OME-Zarr images, 0.1 to 0.6, and plain arrays lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import ArrayView, Grid
from itkstream.io.images.locate import Dataset, no_dataset
from itkstream.io.images.selection import Opened, Selection
from itkstream.io.images.stores.dialects import Node, read_axes, read_placement
from itkstream.io.images.stores.levels import Level, keep_error, mark_plane, open_level
from itkstream.io.images.stores.ngff_metadata import (
    channel_names,
    level_axes,
    level_paths,
    multiscales_of,
    placement,
    scale_and_shift,
)
from itkstream.io.images.stores.placement import SPACE, Layout, Placement, place_by_names
from itkstream.io.storage.attributes import Attributes, is_zarr_array, zarr_metadata
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import ZarrArray

__all__ = [
    "OWN_ATTRIBUTES",
    "ShrunkView",
    "coarser_levels",
    "images_inside",
    "open_zarr",
    "space_axes",
]

OWN_ATTRIBUTES = "itkstream"  # group attribute for what NGFF has no word for: the direction

_LETTERS = {"channel": "c", "time": "t"}
_LISTED = 20
_SERIES_MOST = 10_000


def open_zarr(dataset: Dataset, selection: Selection) -> Opened:
    """Open an OME-Zarr image, one of its levels, or a plain Zarr array, in stored axis order.

    The scales and translations of the dataset and of the multiscale are composed. Axes without a
    unit count as µm. A single plane has no axis z. A group of images (bioformats2raw,
    plates, wells, labels) is opened where it holds one image, and else an error lists them.
    """
    folder = dataset.location
    for group in dataset.lineage:
        attributes = zarr_metadata(group)
        inside = folder.relative_to(group)
        for multiscale in multiscales_of(attributes):
            levels = level_paths(multiscale)
            if folder == group or inside in levels:
                wanted = levels if folder == group else [inside]
                return _open_level(_Image(group, multiscale, attributes), wanted, selection)
    if is_zarr_array(folder):
        return _open_plain(folder, selection)
    images = images_inside(folder)
    if len(images) == 1:
        return open_zarr(replace(dataset, location=folder / images[0]), selection)
    if images:
        raise MissingDataError(
            f"{folder} holds {len(images)} images: {', '.join(images[:_LISTED])}"
            f"{', ...' if len(images) > _LISTED else ''}. Name one of them in the path or with "
            "dataset="
        )
    raise no_dataset(folder, dataset.root, "an OME-Zarr image or a Zarr array")


def _open_plain(folder: Location, selection: Selection) -> Opened:
    """Open a Zarr array that no OME metadata describe.

    Its axes, spacing, origin and units come from its attributes, see
    `itkstream.io.images.stores.dialects`, and from its dimension names; without names its axes are
    z, y, x.
    """
    source = ZarrArray.open(folder)
    attributes = zarr_metadata(folder)
    names = selection.planar(_plain_names(source, attributes, selection), source.shape)
    chain = [Node(attributes)]
    place = keep_error(lambda: read_placement(chain, Layout(names, zarr=True)))
    return open_level([Level(folder, names, place)], selection, ZarrArray.open, str(folder))


def _plain_names(
    source: ZarrArray, attributes: Attributes, selection: Selection
) -> tuple[str, ...]:
    # Zarr 3 has dimension names of its own; they count as the attribute of that name does.
    own = getattr(source.store.metadata, "dimension_names", None)
    values = {**attributes.values, "dimension_names": list(own)} if own else attributes.values
    around = Node(Attributes(values, attributes.file, attributes.way))
    usual = ("z", "y", "x")[-source.ndim :] if source.ndim in (2, 3) else ("",) * source.ndim
    if selection.axes is not None:
        return selection.axes_of(usual, source.path)
    found = read_axes([around], source.ndim, reverse=False)
    if found is None and source.ndim not in (2, 3):
        raise InputError(
            f"{source.path} has {source.ndim} axes without names; give it dimension names or an "
            "attribute axes, for instance ['c', 'z', 'y', 'x'], or pass axes= (--axes)"
        )
    return found or usual


def images_inside(folder: Location) -> list[str]:
    """List the images of a group: series of bioformats2raw, a plate, a well, labels."""
    attributes = zarr_metadata(folder)
    found = attributes.below("ome") or attributes
    plate, well = found.below("plate"), found.below("well")
    if plate is not None:
        wells = _ways_below(well.text("path") for well in plate.listed("wells"))
        return [f"{well}/{image}" for well in wells for image in images_inside(folder / well)]
    if well is not None:
        return _ways_below(image.text("path") for image in well.listed("images"))
    if "bioformats2raw.layout" in found:
        ome = zarr_metadata(folder / "OME")
        # Where no list says which there are, series are numbered without a gap.
        return _ways_below((ome.below("ome") or ome).texts("series") or ()) or list(
            takewhile(
                lambda name: bool(multiscales_of(zarr_metadata(folder / name))),
                map(str, range(_SERIES_MOST)),
            )
        )
    return _ways_below(found.texts("labels") or ())


def _ways_below(paths: Iterable[str | None]) -> list[str]:
    """Keep the paths that lead below their group, without slashes around them."""
    ways = [(path or "").strip("/") for path in paths]
    return [way for way in ways if {"", ".", ".."}.isdisjoint(way.split("/"))]


def space_axes(grid: Grid) -> list[dict[str, str]]:
    """Describe the axes of a grid in NGFF: name, type and unit of each."""
    return [{"name": name, "type": "space", "unit": grid.unit} for name in grid.axes]


@dataclass(frozen=True)
class ShrunkView:
    """An image shrunk by whole factors: a coarser level of its file, as the metadata have it."""

    view: ArrayView  # with the axes of the image
    factors: tuple[int, ...]  # voxels of the image per voxel of the level and axis
    steps: int  # levels below the image


def coarser_levels(view: ArrayView) -> list[ShrunkView]:
    """List the levels below a whole OME-Zarr image; empty for any other array.

    Those whose factors are whole numbers by scale and by shape, for what the metadata are worth.
    """
    if not isinstance(view.source, ZarrArray):
        return []
    folder = Location(view.source.path)
    for group in folder.parents:
        for multiscale in multiscales_of(zarr_metadata(group)):
            levels, inside = level_paths(multiscale), folder.relative_to(group)
            if inside in levels:
                below = levels[levels.index(inside) + 1 :]
                found = (
                    _below(view, multiscale, group, (inside, path), steps)
                    for steps, path in enumerate(below, 1)
                )
                return [level for level in found if level is not None]
    return []


def _below(
    view: ArrayView,
    multiscale: Attributes,
    group: Location,
    paths: tuple[str, str],
    steps: int,
) -> ShrunkView | None:
    """A coarser level; None where it is not made of whole groups of voxels."""
    if not is_zarr_array(group / paths[1]):
        return None
    source, fine = ZarrArray.open(group / paths[1]), view.source.shape
    if source.ndim != len(fine) or source.dtype != view.dtype:
        return None
    try:
        first, second = (scale_and_shift(multiscale, path, len(fine)) for path in paths)
    except InputError:
        # Nobody asked for this level.
        return None
    if first is None or second is None:
        return None
    ratios = second[0] / first[0]
    factors = [max(1, round(float(r))) for r in ratios]
    whole = [-(-n // f) for n, f in zip(fine, factors, strict=True)]
    kept = [not isinstance(pick, slice) for pick in view.picks]
    uncut = all(k or p == slice(0, n) for k, p, n in zip(kept, view.picks, fine, strict=True))
    alike = all(not k or f == 1 for k, f in zip(kept, factors, strict=True))
    if not (uncut and alike and tuple(whole) == source.shape):
        return None
    if not np.allclose(ratios, factors, rtol=1e-3) or max(factors) == 1:
        return None
    if any(f > n for f, n in zip(factors, fine, strict=True)):
        return None
    picks = tuple(
        pick if k else slice(0, n)
        for pick, k, n in zip(view.picks, kept, source.shape, strict=True)
    )
    spatial = [f for f, k in zip(factors, kept, strict=True) if not k]
    by = tuple(spatial[axis] for axis in view.order)
    return ShrunkView(ArrayView(source, picks, view.order), by, steps)


@dataclass(frozen=True)
class _Image:
    """A multiscale image of a group."""

    group: Location
    multiscale: Attributes
    attributes: Attributes


def _open_level(image: _Image, wanted: Sequence[str], selection: Selection) -> Opened:
    group, multiscale = image.group, image.multiscale
    finest = group / level_paths(multiscale)[0]
    claimed = [_LETTERS.get(axis.type, axis.name) for axis in level_axes(multiscale)]
    names = selection.axes_of(claimed, str(group))
    names = mark_plane(names, finest, selection, ZarrArray.open)
    _check_axes(names, image)
    levels = [
        Level(
            group / path,
            names,
            keep_error(partial(_place, multiscale, path, names)),
            _turning(image, names),
        )
        for path in wanted
    ]
    names_of_channels = channel_names(image.attributes)
    return open_level(levels, selection, partial(_array, group), str(group), names_of_channels)


def _array(group: Location, folder: Location) -> ZarrArray:
    if not is_zarr_array(folder):
        raise no_dataset(folder, group, "there, though the metadata of the image list it")
    return ZarrArray.open(folder)


def _check_axes(names: Sequence[str], image: _Image) -> None:
    space = sorted(name for name in names if name in SPACE)
    if space not in (["x", "y"], ["x", "y", "z"]) or len(set(names)) < len(names):
        raise InputError(
            f"{image.multiscale.file}: an image needs axes x, y and perhaps z, and no name twice; "
            f"the metadata name {tuple(names)}. Correct them or pass axes= (--axes)"
        )


def _place(multiscale: Attributes, path: str, names: tuple[str, ...]) -> Placement | None:
    claimed = level_axes(multiscale, path)
    found = scale_and_shift(multiscale, path, len(names))
    # Axes may be called otherwise than the metadata do: these are the names that count.
    axes = [replace(axis, name=name) for axis, name in zip(claimed, names, strict=False)]
    if len(axes) < len(names):
        raise multiscale.error("axes", f"{len(names)} axes", [axis.name for axis in claimed])
    if found is None:
        units = {axis.name: axis.unit for axis in axes if axis.name in SPACE}
        return Placement({}, units, multiscale) if any(units.values()) else None
    scale, shift = (tuple(values) for values in found)
    return place_by_names(axes, (scale, shift), Layout(names), multiscale)


def _turning(image: _Image, names: Sequence[str]) -> Callable[[Grid], Grid] | None:
    """Make what turns the lattices of an image that this package wrote with a direction."""
    own = image.attributes.below(OWN_ATTRIBUTES)
    if own is None:
        return None
    kept = [k for k, name in enumerate(names) if name in SPACE]
    system = own.text("system")
    if system is None:
        direction = own.rows("direction", len(kept))
        return None if direction is None else partial(replace, direction=direction)
    affine = placement(image.multiscale, system, len(names))
    if affine is None:
        raise own.error("system", "a coordinate system that an affine of the image leads to")
    return partial(_moved, linear=affine[np.ix_(kept, kept)], shift=affine[kept, -1])


def _moved(grid: Grid, linear: NDArray[np.float64], shift: NDArray[np.float64]) -> Grid:
    origin = linear @ grid.origin + shift
    return replace(grid, origin=tuple(origin), direction=tuple(map(tuple, linear)))
