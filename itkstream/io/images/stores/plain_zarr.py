"""Plain Zarr arrays, without OME metadata, as images."""

from __future__ import annotations

from itkstream.errors import InputError
from itkstream.io.images.selection import Opened, Selection
from itkstream.io.images.stores.leveled import Level, attempt, open_level
from itkstream.io.images.stores.stated import Around, Layout, stated_axes, stated_place
from itkstream.io.storage.attributes import (
    Attributes,
    zarr_metadata,
)
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import ZarrArray

__all__ = ["open_plain_zarr"]


def open_plain_zarr(folder: Location, selection: Selection) -> Opened:
    """Open a Zarr array that no OME metadata describe.

    Its axes, spacing, origin and units come from its attributes, see
    `itkstream.io.images.stores.stated`, and from its dimension names; without names its axes are z,
    y, x.
    """
    source = ZarrArray.open(folder)
    attributes = zarr_metadata(folder)
    names = selection.planar(_names(source, attributes, selection), source.shape)
    chain = [Around(attributes)]
    place = attempt(lambda: stated_place(chain, Layout(names, zarr=True)))
    return open_level([Level(folder, names, place)], selection, ZarrArray.open, str(folder))


def _names(source: ZarrArray, attributes: Attributes, selection: Selection) -> tuple[str, ...]:
    # Zarr 3 has dimension names of its own; they count as the attribute of that name does.
    own = getattr(source.store.metadata, "dimension_names", None)
    values = {**attributes.values, "dimension_names": list(own)} if own else attributes.values
    around = Around(Attributes(values, attributes.file, attributes.way))
    usual = ("z", "y", "x")[-source.ndim :] if source.ndim in (2, 3) else ("",) * source.ndim
    if selection.axes is not None:
        return selection.axes_of(usual, source.path)
    found = stated_axes([around], source.ndim, reverse=False)
    if found is None and source.ndim not in (2, 3):
        raise InputError(
            f"{source.path} has {source.ndim} axes without names; give it dimension names or an "
            "attribute axes, for instance ['c', 'z', 'y', 'x'], or pass axes= (--axes)"
        )
    return found or usual
