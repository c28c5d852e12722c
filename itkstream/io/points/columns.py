"""Coordinates in tables of spots: columns and units known by the headers that programs write.

- RS-FISH (`Block.writeCSV` of PreibischLab/RS-FISH): ``x,y,z,t,c,intensity``, in voxels.
- Big-FISH (`stack.save_data_to_csv` of fish-quant/big-fish): arrays z;y;x in voxels, with
  semicolons in between, further columns after them, and no header at all.
- napari, a layer of points saved: ``index,axis-0,axis-1,axis-2``, the axes of the array, before the
  scale of the layer: voxels, since a new layer of points gets the scale of the image.
- TrackMate, spots exported as CSV: ``POSITION_X`` and so on, and three more lines of headers, of
  which the last has the units: ``(micron)``, ``(pixel)``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from itkstream.errors import InputError
from itkstream.geometry import array_axes, default_axes
from itkstream.io.units import SPELLINGS

__all__ = ["UNITS", "VOXEL", "CoordinateColumns", "find_columns", "is_number", "read_unit"]

VOXEL = "voxel"
"""The unit of index coordinates, counted from the centre of the first voxel."""

UNITS = {
    **{unit: SPELLINGS[unit] for unit in ("nanometer", "micrometer", "millimeter")},
    VOXEL: ("vox", "voxel", "voxels", "px", "pix", "pixel", "pixels", "index"),
}
"""Units of coordinates, and how headers write them."""

_SPELLED = {word: unit for unit, words in UNITS.items() for word in words}
_WORDS = "|".join(sorted(_SPELLED, key=len, reverse=True))
# Words before or after the letter of an axis: POSITION_X, pos_z, centroid-y, x_coord, Center X.
_ABOUT = "position|pos|centroid|center|centre|coordinate|coord|location|loc|spot"
_AXIS = re.compile(
    rf"(?:(?P<before>{_ABOUT})[ _.-]?)?(?P<axis>[xyz])(?:[ _.-]?(?P<after>{_ABOUT}))?"
    rf"(?:[ _.-]?[(\[]?(?P<unit>{_WORDS})[)\]]?)?"
)
_NAPARI = re.compile(r"axis-(\d)")
_RS_FISH = {"x", "y", "z", "t", "c", "intensity"}
_EXTRA_HEADERS = 3


@dataclass(frozen=True)
class CoordinateColumns:
    """Columns of coordinates in a table, and the unit of their numbers.

    Parameters
    ----------
    places : tuple of int
        Columns of x, y (and z), counted from 0.
    unit : str
        A key of `UNITS`, as the header says, or as `program` always writes; "" where nothing says.
    program : str
        What writes such tables; "" for any.
    skipped : int
        Rows after the header that are none of spots.
    """

    places: tuple[int, ...]
    unit: str = ""
    program: str = ""
    skipped: int = 0


def read_unit(text: str) -> str:
    """Find a unit by any of its spellings."""
    unit = _SPELLED.get(text.strip().lower())
    if unit is None:
        known = ", ".join(words[0] for words in UNITS.values())
        raise InputError(f"unknown unit of coordinates {text!r}; known: {known}")
    return unit


def is_number(cell: str) -> bool:
    """Whether a cell of text is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def find_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], ndim: int, where: str
) -> CoordinateColumns:
    """Find the columns of coordinates by a header; `rows` are the first few below it."""
    names = [name.strip().lower() for name in header]
    napari = _napari_places(names, ndim, where)
    if napari:
        return CoordinateColumns(napari, VOXEL, "napari")
    places, unit = _choose(names, ndim, header, where)
    if not unit and set(names) >= _RS_FISH:
        return CoordinateColumns(places, VOXEL, "RS-FISH")
    extra = rows[:_EXTRA_HEADERS]
    if len(extra) == _EXTRA_HEADERS and _cells(extra[0], places) == list(default_axes(ndim)):
        return CoordinateColumns(places, _unit_below(extra[-1], places), "TrackMate", len(extra))
    return CoordinateColumns(places, unit)


def _napari_places(names: Sequence[str], ndim: int, where: str) -> tuple[int, ...]:
    """Columns of napari's axes, which are those of the array; empty where there are none."""
    axes = {int(found[1]): k for k, name in enumerate(names) if (found := _NAPARI.fullmatch(name))}
    if not axes:
        return ()
    if sorted(axes) != list(range(ndim)):
        raise InputError(
            f"{where} has napari's columns axis-{', axis-'.join(map(str, sorted(axes)))}; points "
            f"of these images have {ndim} coordinates: leave out axes of channels and of time"
        )
    order = array_axes(ndim)
    return tuple(axes[order.index(name)] for name in default_axes(ndim))


def _choose(
    names: Sequence[str], ndim: int, header: Sequence[str], where: str
) -> tuple[tuple[int, ...], str]:
    """Choose the columns that belong together; those that say their unit before others."""
    wanted = default_axes(ndim)
    families: dict[tuple[str, str, str], dict[str, list[int]]] = defaultdict(dict)
    for place, name in enumerate(names):
        if found := _AXIS.fullmatch(name):
            unit = _SPELLED.get(found["unit"] or "", "")
            family = (found["before"] or "", found["after"] or "", unit)
            families[family].setdefault(found["axis"], []).append(place)
    whole = {
        family: tuple(axes[name][0] for name in wanted)
        for family, axes in families.items()
        if all(len(axes.get(name, ())) == 1 for name in wanted)
    }
    # Lengths are sure; index coordinates need the image, and what says no unit needs a guess.
    for kind in (lambda unit: unit not in ("", VOXEL), lambda unit: unit == VOXEL, lambda _: True):
        some = [(places, family[-1]) for family, places in whole.items() if kind(family[-1])]
        if len(some) == 1:
            return some[0]
        if some:
            listed = "; ".join(", ".join(header[k] for k in places) for places, _ in some)
            raise InputError(
                f"{where} has several columns that may be the coordinates: {listed}. Leave only "
                "those that are meant"
            )
    raise InputError(
        f"{where} needs one column each for {', '.join(wanted)}, such as x_um, 'x (µm)', x_nm, "
        f"POSITION_X, axis-0 or x; its columns are {', '.join(header)}"
    )


def _cells(row: Sequence[str], places: Sequence[int]) -> list[str]:
    """Some cells of a row, in small letters and without brackets."""
    return [row[k].strip().strip("()").lower() for k in places if k < len(row)]


def _unit_below(row: Sequence[str], places: Sequence[int]) -> str:
    """The unit in TrackMate's last line of headers; "" where it is none that is known."""
    units = {_SPELLED.get(word, "") for word in _cells(row, places)}
    return units.pop() if len(units) == 1 else ""
