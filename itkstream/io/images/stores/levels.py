"""Opening one of the levels of an image in a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.io.images.selection import Opened, Selection
from itkstream.io.images.stores.placement import SPACE, Placement
from itkstream.io.storage.locations import Location
from itkstream.io.storage.stored import StoredArray

__all__ = ["Level", "Opener", "keep_error", "mark_plane", "open_level", "sort_levels"]

Opener = Callable[[Location], StoredArray]


@dataclass(frozen=True)
class Level:
    """A level of an image whose array has not been opened, with the names of its stored axes."""

    folder: Location
    names: tuple[str, ...]
    # An error for whoever asks for this level; None where nothing is stated.
    place: Placement | InputError | None
    # Turns the lattice, where its axes are not those of the space.
    turned: Callable[[Grid], Grid] | None = None


def keep_error(read: Callable[[], Placement | None]) -> Placement | InputError | None:
    """Read the place of a level, or return the error: nobody may ask for this level."""
    try:
        return read()
    except InputError as error:
        return error


def mark_plane(
    names: tuple[str, ...], finest: Location, selection: Selection, opener: Opener
) -> tuple[str, ...]:
    """Name the axes of an image, see `Selection.planar`.

    The finest level decides: coarser ones of a stack may have one plane too.
    """
    if "z" not in names:
        return names
    try:
        return selection.planar(names, opener(finest).shape)
    except InputError:
        # It is not there, or cannot be read; another level may be.
        return names


def open_level(
    levels: Sequence[Level],
    selection: Selection,
    opener: Opener,
    name: str,
    channels: Sequence[str] = (),
) -> Opened:
    """Open the wanted one of the levels of an image, in any order, 0 the finest.

    `channels` are their names, where the metadata have any.
    """
    ordered = sort_levels(levels, selection)
    spacings = [_micrometers(level, selection) for level in ordered]
    chosen = ordered[selection.choose_level(spacings, "micrometer", name)]
    source = opener(chosen.folder)
    if len(chosen.names) != source.ndim:
        raise InputError(
            f"{chosen.folder} has {source.ndim} axes, its metadata name {chosen.names}: correct "
            "them or pass axes= (--axes)"
        )
    count = dict(zip(chosen.names, source.shape, strict=True)).get("c", 1)
    selection = selection.settled(count, channels, str(chosen.folder))
    grid = _grid(chosen, source, selection)
    place = str(chosen.folder)
    return selection.image(source, chosen.names, grid, place, levels=len(levels))


def sort_levels(levels: Sequence[Level], selection: Selection) -> list[Level]:
    """Sort levels by the size of their voxels; as given where the spacing of one is not known."""
    spacings = [_micrometers(level, selection) for level in levels]
    sizes = [prod(spacing) for spacing in spacings if spacing is not None]
    if len(sizes) < len(levels):
        return list(levels)
    return [levels[k] for k in sorted(range(len(levels)), key=sizes.__getitem__)]


def _grid(level: Level, source: StoredArray, selection: Selection) -> Grid | None:
    place = level.place
    if isinstance(place, InputError) and selection.voxel_spacing is None:
        raise place
    if not isinstance(place, Placement):
        return None
    kept = [k for k, axis in enumerate(level.names) if axis in SPACE]
    axes = tuple(level.names[k] for k in kept)
    grid = place.grid([source.shape[k] for k in kept], axes, selection)
    return grid if grid is None or level.turned is None else level.turned(grid)


def _micrometers(level: Level, selection: Selection) -> tuple[float, ...] | None:
    """Spacing of a level to choose by; None where it is not known."""
    plain = replace(selection, voxel_spacing=None)
    axes = tuple(axis for axis in level.names if axis in SPACE)
    if not isinstance(level.place, Placement):
        return None
    try:
        grid = level.place.grid((1,) * len(axes), axes, plain)
    except InputError:
        return None
    return None if grid is None else grid.in_unit("micrometer").spacing
