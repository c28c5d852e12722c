"""Places of the voxels of arrays, by the names of their axes, as metadata state them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.io.images.selection import Selection
from itkstream.io.images.stores.ngff_metadata import NgffAxis
from itkstream.io.storage.attributes import Attributes

__all__ = [
    "SPACE",
    "ByAxis",
    "Layout",
    "Placement",
    "are_close",
    "common_unit",
    "micrometers_of",
    "place_by_names",
]

SPACE = ("x", "y", "z")
_OF_N5 = ("pixelResolution", "downsamplingFactors", "scales")
_SAME = 1e-3  # relative; tools round what they write

ByAxis = Mapping[str, float]


@dataclass(frozen=True)
class Layout:
    """The axes of a stored array; in Zarr, N5's keys go the other way round, as N5's axes do."""

    names: tuple[str, ...]
    zarr: bool = False

    @property
    def space(self) -> tuple[str, ...]:
        """The spatial ones, in stored order."""
        return tuple(name for name in self.names if name in SPACE)

    def spread(
        self, attributes: Attributes, key: str, values: Sequence[Any], listed: bool = True
    ) -> dict[str, Any]:
        """Map a list of one value per axis, or per spatial axis, to the names of the spatial axes.

        One value that was no list holds for all axes.
        """
        if not listed:
            return dict.fromkeys(self.space, values[0])
        # A single plane has no axis z any more, but lists still may have its number.
        deep = tuple(name for name in self.names if name in (*SPACE, "plane"))
        orders = (self.names, deep, self.space)
        if self.zarr and key in _OF_N5:
            by_name = tuple(sorted(deep, key=lambda name: "z" if name == "plane" else name))
            orders = (by_name, tuple(sorted(self.space)), self.names[::-1])
        for order in orders:
            if len(values) == len(order):
                found = zip(order, values, strict=True)
                return {name: value for name, value in found if name in self.space}
        raise attributes.error(key, f"one value per axis {orders[-2]}")


@dataclass(frozen=True)
class Placement:
    """Place of voxels by the names of the spatial axes, as attributes state it."""

    spacing: ByAxis  # in `units`; empty where only `units` or `shift` are known
    units: Mapping[str, str]  # as the file spells them; "" where it does not say
    source: Attributes  # which state it, under `key`
    key: str = ""
    origin: ByAxis = field(default_factory=dict)  # in `units`; 0 where an axis is not there
    shift: ByAxis = field(default_factory=dict)  # by averaging, in voxels, on top of the origin

    def grid(self, shape: Sequence[int], axes: Sequence[str], selection: Selection) -> Grid | None:
        """Make the lattice in the unit of the first axis; None where the spacing is not known."""
        units = {axis: self.units.get(axis, "") for axis in axes}
        unit, factors = common_unit(units, selection, self.source.file)
        spacing = selection.stated_spacing(len(axes), self.source.file)
        if spacing is None and not self.spacing:
            return None
        if spacing is None:
            spacing = tuple(self.spacing[a] * factors[a] for a in axes)
        origin = tuple(
            self.origin.get(a, 0.0) * factors[a] + self.shift.get(a, 0.0) * s
            for a, s in zip(axes, spacing, strict=True)
        )
        return Grid(tuple(shape), spacing, origin, axes=tuple(axes), unit=unit)

    def differs(self, other: Placement) -> bool:
        """Whether two statements of the same spacing contradict each other, units considered."""
        # One that has no unit may be in that of the other.
        units = [s.units if any(s.units.values()) else {} for s in (self, other)]
        units = [units[0] or units[1], units[1] or units[0]]
        first, second = (
            {a: v * micrometers_of(unit.get(a, "")) for a, v in s.spacing.items()}
            for s, unit in zip((self, other), units, strict=True)
        )
        return not are_close(first, second)


def common_unit(
    units: Mapping[str, str], selection: Selection, place: str
) -> tuple[str, dict[str, float]]:
    """Find one unit for all axes ("" where a file does not say), and the factors to it."""
    stated = {axis: text for axis, text in units.items() if text}
    if stated and len(stated) < len(units) and selection.unit is None:
        raise InputError(
            f"{place}: the axes {tuple(stated)} have units and {tuple(set(units) - set(stated))} "
            "none; pass unit= (--unit) for all or correct the file"
        )
    try:
        found = {axis: selection.unit_of(text or None) for axis, text in units.items()}
    except InputError as error:
        raise type(error)(f"{place}: {error}") from error
    unit = next(iter(found.values()))
    lengths = MICROMETERS_PER_UNIT
    return unit, {a: 1.0 if u == unit else lengths[u] / lengths[unit] for a, u in found.items()}


def place_by_names(
    axes: Sequence[NgffAxis],
    place: tuple[Sequence[float], Sequence[float]],
    layout: Layout,
    source: Attributes,
) -> Placement:
    """Place an array by scales and translations, one per axis; each spatial axis needs one."""
    scale, shift = (dict(zip([a.name for a in axes], map(float, v), strict=True)) for v in place)
    missing = [name for name in layout.space if name not in scale]
    if missing:
        raise source.error("axes", f"names that include {', '.join(missing)}", list(scale))
    for name in layout.space:
        if scale[name] <= 0:
            raise source.error("scale", "positive numbers", list(scale.values()))
    units = {a.name: a.unit for a in axes}
    space = layout.space
    return Placement(
        {n: scale[n] for n in space},
        {n: units[n] for n in space},
        source,
        origin={n: shift[n] for n in space},
    )


def are_close(first: ByAxis, second: ByAxis) -> bool:
    return all(abs(v - second[a]) <= _SAME * abs(v) for a, v in first.items())


def micrometers_of(unit: str) -> float:
    """Convert a unit for comparisons; what is no length is refused when it is used."""
    try:
        return MICROMETERS_PER_UNIT[Selection().unit_of(unit or None)]
    except InputError:
        return 1.0
