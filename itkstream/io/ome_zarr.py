"""OME-Zarr 0.1 to 0.6: open images lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import ArrayView, Grid, Image
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.io.locations import Location
from itkstream.io.paths import Dataset, no_dataset
from itkstream.io.selection import Selection
from itkstream.io.zarr_arrays import ZarrArray, is_zarr_array, open_plain_zarr, zarr_attributes

__all__ = [
    "OWN_ATTRIBUTES",
    "StoredLevel",
    "coarser_levels",
    "level_axes",
    "level_paths",
    "multiscale_of",
    "open_zarr",
    "scale_and_shift",
    "space_axes",
]

OWN_ATTRIBUTES = "itkstream"  # group attribute for what NGFF has no word for: the direction

_OLD_AXES = ("t", "c", "z", "y", "x")
_LETTERS = {"channel": "c", "time": "t"}


def open_zarr(dataset: Dataset, selection: Selection) -> Image:
    """Open an OME-Zarr image, one of its levels, or a plain Zarr array.

    The scales and translations of the dataset and of the multiscale are composed. Axes without a
    unit count as micrometers. For plain arrays see `open_plain_zarr`.

    Parameters
    ----------
    dataset : Dataset
        Array or multiscale group.
    selection : Selection
        Level, channel, time, and what to believe instead of the metadata.

    Returns
    -------
    Image
        Lazy, with the spatial axes in stored order.

    Raises
    ------
    MissingDataError
        Where there is no image; the message lists the arrays that are there.
    InputError
        Where the metadata cannot be understood or the selection does not fit.
    """
    folder = dataset.location
    for group in dataset.lineage:
        attributes = zarr_attributes(group)
        multiscale = multiscale_of(attributes)
        if multiscale is None:
            continue
        direction = attributes.get(OWN_ATTRIBUTES, {}).get("direction", ())
        try:
            levels = level_paths(multiscale)
            inside = folder.relative_to(group)
            if folder == group or inside in levels:
                wanted = levels if folder == group else [inside]
                return _open_level(group, wanted, _Multiscale(multiscale, direction), selection)
        except KeyError as error:
            raise InputError(f"the OME-Zarr metadata of {group} lack {error}") from error
    if is_zarr_array(folder):
        return open_plain_zarr(folder, selection)
    raise no_dataset(folder, dataset.root, "an OME-Zarr image or a Zarr array")


def multiscale_of(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first multiscale image that the attributes of a group describe.

    Parameters
    ----------
    attributes : mapping
        Attributes of a Zarr group.

    Returns
    -------
    dict or None
        Its metadata, None where there are none.
    """
    found = attributes.get("ome", attributes).get("multiscales")
    return dict(found[0]) if found else None


def level_paths(metadata: Mapping[str, Any]) -> list[str]:
    """Where the levels of a multiscale image are, the finest first.

    Parameters
    ----------
    metadata : mapping
        Of the image.

    Returns
    -------
    list of str
        Relative to its group.
    """
    return [str(dataset["path"]).strip("/") for dataset in metadata["datasets"]]


def space_axes(grid: Grid) -> list[dict[str, str]]:
    """The axes of a grid as NGFF metadata have them.

    Parameters
    ----------
    grid : Grid
        Its axes and unit count.

    Returns
    -------
    list of dict
        Name, type and unit of each.
    """
    return [{"name": name, "type": "space", "unit": grid.unit} for name in grid.axes]


@dataclass(frozen=True)
class StoredLevel:
    """A coarser level of an image, as the metadata of the file have it.

    Parameters
    ----------
    view : ArrayView
        Its voxels, with the axes of the image.
    factors : tuple of int
        Voxels of the image per voxel of the level and axis.
    fine_shape : tuple of int
        Of the image.
    steps : int
        How many levels it is below the image.
    """

    view: ArrayView
    factors: tuple[int, ...]
    fine_shape: tuple[int, ...]
    steps: int


def coarser_levels(view: ArrayView) -> list[StoredLevel]:
    """The levels below a whole image of an OME-Zarr file, for what their metadata are worth.

    Parameters
    ----------
    view : ArrayView
        The voxels of an image that `open_zarr` opened.

    Returns
    -------
    list of StoredLevel
        Those whose factors are whole numbers by scale and by shape; empty for any other array.
    """
    if not isinstance(view.source, ZarrArray):
        return []
    folder = Location(view.source.path)
    for group in folder.parents:
        multiscale = multiscale_of(zarr_attributes(group))
        if multiscale is None:
            continue
        levels = level_paths(multiscale)
        inside = folder.relative_to(group)
        if inside not in levels:
            return []
        below = levels[levels.index(inside) + 1 :]
        found = (
            _below(view, multiscale, group, (inside, path), steps)
            for steps, path in enumerate(below, 1)
        )
        return [level for level in found if level is not None]
    return []


def _below(
    view: ArrayView,
    multiscale: Mapping[str, Any],
    group: Location,
    paths: tuple[str, str],
    steps: int,
) -> StoredLevel | None:
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
    return StoredLevel(ArrayView(source, picks, view.order), by, view.shape, steps)


@dataclass(frozen=True)
class _Multiscale:
    """Metadata of a multiscale image, and its direction matrix where one is recorded."""

    metadata: Mapping[str, Any]
    direction: Sequence[Sequence[float]]


@dataclass(frozen=True)
class _Axes:
    """Axes of the stored arrays; `spatial` are the positions of x, y and z among them."""

    names: tuple[str, ...]
    spatial: tuple[int, ...]
    factors: tuple[float, ...]  # from the unit of each spatial axis to `unit`
    unit: str

    def lengths(self, values: NDArray[np.float64]) -> tuple[float, ...]:
        """The spatial ones of `values`, in `unit`."""
        return tuple(float(values[k]) * f for k, f in zip(self.spatial, self.factors, strict=True))


def _open_level(
    group: Location, levels: Sequence[str], image: _Multiscale, selection: Selection
) -> Image:
    axes = _parse_axes(image.metadata, selection)
    found = [scale_and_shift(image.metadata, path, len(axes.names)) for path in levels]
    spacings = [None if t is None else axes.lengths(t[0]) for t in found]
    chosen = selection.choose_level(spacings, axes.unit, str(group))
    folder = group / levels[chosen]
    if not is_zarr_array(folder):
        raise no_dataset(folder, group, "there, though the metadata of the image list it")
    source = ZarrArray.open(folder)
    if source.ndim != len(axes.names):
        raise InputError(f"{folder} has {source.ndim} axes, its metadata name {axes.names}")
    transform, grid = found[chosen], None
    if transform is not None:
        grid = Grid(
            shape=tuple(source.shape[k] for k in axes.spatial),
            spacing=axes.lengths(transform[0]),
            origin=axes.lengths(transform[1]),
            direction=tuple(map(tuple, image.direction)),
            axes=tuple(axes.names[k] for k in axes.spatial),
            unit=axes.unit,
        )
    return selection.image(source, axes.names, grid, str(folder))


def _parse_axes(metadata: Mapping[str, Any], selection: Selection) -> _Axes:
    axes = level_axes(metadata)
    names = tuple(_LETTERS.get(a.get("type", ""), str(a["name"]).lower()) for a in axes)
    spatial = tuple(k for k, name in enumerate(names) if name in ("x", "y", "z"))
    units = [selection.unit_of(axes[k].get("unit")) for k in spatial]
    if not units:
        raise InputError(f"an image needs axes x, y and perhaps z; the metadata name {names}")
    factors = [MICROMETERS_PER_UNIT[u] / MICROMETERS_PER_UNIT[units[0]] for u in units]
    return _Axes(names, spatial, tuple(factors), units[0])


def level_axes(metadata: Mapping[str, Any], path: str | None = None) -> list[Mapping[str, Any]]:
    """The axes of a level of a multiscale image, one for each axis of its array.

    Parameters
    ----------
    metadata : mapping
        Of the image.
    path : str, optional
        The level, one of `level_paths`; default the first.

    Returns
    -------
    list of mapping
        Each with a name; type and unit where they are known.
    """
    listed = metadata.get("axes")
    if "coordinateSystems" in metadata:  # 0.6: the datasets say which system they map to
        paths = level_paths(metadata)
        level = metadata["datasets"][paths.index(path) if path in paths else 0]
        output = level["coordinateTransformations"][0].get("output")
        wanted = output.get("name") if isinstance(output, Mapping) else output
        systems = {s["name"]: s["axes"] for s in metadata["coordinateSystems"]}
        listed = systems.get(wanted, metadata["coordinateSystems"][0]["axes"])
    return [{"name": a} if isinstance(a, str) else a for a in listed or _OLD_AXES]


def scale_and_shift(
    metadata: Mapping[str, Any], path: str, ndim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """What leads from element index to physical position.

    Parameters
    ----------
    metadata : mapping
        Of a multiscale image.
    path : str
        One of `level_paths`.
    ndim : int
        Axes of its array.

    Returns
    -------
    scale, shift : ndarray, (ndim,)
        None before OME-Zarr 0.4, which does not say.

    Raises
    ------
    InputError
        Where the metadata give anything but scales and translations.
    """
    dataset = metadata["datasets"][level_paths(metadata).index(path)]
    steps = list(dataset.get("coordinateTransformations") or ())
    if not steps:
        return None
    if "coordinateSystems" not in metadata:
        # In 0.6 those of the whole image lead to other coordinate systems than the image's own.
        steps += metadata.get("coordinateTransformations") or ()
    scale, shift = np.ones(ndim), np.zeros(ndim)
    for step in _flatten(steps):
        values = np.asarray(step.get(step["type"], ()), np.float64)
        if step["type"] not in ("scale", "translation") or values.shape != (ndim,):
            raise InputError(
                f"level {path}: a coordinate transformation must be a scale or a translation of "
                f"{ndim} numbers; got {dict(step)}"
            )
        if step["type"] == "scale":
            scale, shift = scale * values, shift * values
        else:
            shift = shift + values
    return scale, shift


def _flatten(steps: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for step in steps:
        if step["type"] == "sequence":
            yield from _flatten(step["transformations"])
        elif step["type"] != "identity":
            yield step
