"""Where the voxels of N5 datasets and plain Zarr arrays lie, as the attributes of many tools say.

N5 and Zarr leave the meaning of attributes to whoever writes them. These are understood; numbers
are in the stored order of the axes unless said otherwise, and a folder is the array itself or, in
N5, a group around it, the nearest first.

==========================  =======================================================================
Names of the axes           ``axes`` or ``axis_names`` (neuroglancer, funlib, n5-ij: stored order);
                            ``_ARRAY_DIMENSIONS`` or ``dimension_names`` (xarray, Zarr: numpy's
                            order, so the other way round in N5). Without: x, y, z in N5; z, y, x in
                            Zarr. Names that contradict each other are refused.
1. The place of one level   ``transform`` of the array (COSEM: axes, scale, translate, units by
                            name), else its entry in ``multiscales`` of a group (COSEM, OME-NGFF).
                            It is complete: nothing is multiplied or added.
2. A resolution             ``pixelResolution`` (n5-viewer; x, y, z in Zarr too), ``resolution``
                            (Paintera, BDV, neuroglancer), ``voxel_size`` (funlib), ``spacing``: of
                            the nearest folder that has one.
   times factors            ``downsamplingFactors`` of the array, else entry k of ``scales`` or
                            ``downsamplingFactors`` of the nearest group for a level named ``sk``.
                            A resolution of the array itself beside factors of the group may be the
                            level's own already (COSEM) or that of ``s0``: ``s0`` tells which.
   plus offset              ``offset`` (Paintera), and ``(f - 1) / 2`` fine voxels, by which
                            averaging f voxels moves the centre of the first.
Units                       of the object that holds the numbers, else ``units`` (one per axis) or
                            ``unit``; micrometers where nothing is said.
==========================  =======================================================================

Where two of these that are stated for the same array differ, the array is refused: nobody can tell
which of them is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.io.images.selection import Selection
from itkstream.io.images.stores.ngff_metadata import (
    NgffAxis,
    axes_listed,
    level_axes,
    scale_and_shift,
)
from itkstream.io.storage.attributes import Attributes

__all__ = [
    "SPACE",
    "Around",
    "Layout",
    "Stated",
    "common_unit",
    "named_place",
    "stated_axes",
    "stated_place",
]

SPACE = ("x", "y", "z")
_RESOLUTIONS = ("pixelResolution", "resolution", "voxel_size", "spacing")
_OF_N5 = ("pixelResolution", "downsamplingFactors", "scales")
_SAME = 1e-3  # relative; tools round what they write
_LETTERS = {"time": "t", "channel": "c", "channels": "c", "c^": "c"}

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
class Around:
    """An array or a group around it, and the way to the array ("." for the array itself)."""

    attributes: Attributes
    inside: str = "."


@dataclass(frozen=True)
class Stated:
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

    def differs(self, other: Stated) -> bool:
        """Whether two statements of the same spacing contradict each other, units considered."""
        # One that has no unit may be in that of the other.
        units = [s.units if any(s.units.values()) else {} for s in (self, other)]
        units = [units[0] or units[1], units[1] or units[0]]
        first, second = (
            {a: v * _micrometers(unit.get(a, "")) for a, v in s.spacing.items()}
            for s, unit in zip((self, other), units, strict=True)
        )
        return not _close(first, second)


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


def stated_axes(chain: Sequence[Around], ndim: int, reverse: bool) -> tuple[str, ...] | None:
    """Read the names of the axes of an array, in stored order; None where nothing is said.

    `reverse` is for N5, where names in numpy's order go against the stored one.
    """
    for around in chain:
        found: dict[str, tuple[str, ...]] = {}
        for key in ("axes", "axis_names", "_ARRAY_DIMENSIONS", "dimension_names"):
            names = _names(around.attributes, key)
            numpy_order = key in ("_ARRAY_DIMENSIONS", "dimension_names")
            if names and len(names) == ndim and _are_axes(names):
                found[key] = names[::-1] if numpy_order and reverse else names
            elif names and not numpy_order:
                raise around.attributes.error(
                    key, f"the names of {ndim} axes, x and y among them (or pass axes=, --axes)"
                )
        if len(set(found.values())) > 1:
            raise InputError(
                f"{around.attributes.file}: its axes are, in stored order, "
                + " and ".join(f"{names} by {key}" for key, names in found.items())
                + "; correct the file or pass axes= (--axes)"
            )
        if found:
            return next(iter(found.values()))
    return None


def stated_place(
    chain: Sequence[Around], layout: Layout, level: int | None = None, first: Around | None = None
) -> Stated | None:
    """Read the place of the voxels of an array; None where nothing is said.

    `level` is its number by its name, `first` is level 0 beside a coarser one.
    """
    own = chain[0].attributes
    complete = _complete(chain, layout)
    if complete is not None:
        for raw in _resolutions(own, layout):
            factors = _own_factors(own, layout)
            if complete.differs(raw) and complete.differs(_times(raw, factors)):
                raise _contradiction(complete, raw)
            if not any(complete.units.values()):
                complete = replace(complete, units=raw.units)
        return _with_units(complete, chain, layout)
    scale = _Scale(chain, layout, level, first)
    for index, around in enumerate(chain):
        found = _resolutions(around.attributes, layout)
        if not found:
            continue
        made = [_with_units(scale.apply(raw, index == 0), chain, layout) for raw in found]
        for other in made[1:]:
            if made[0].differs(other):
                raise _contradiction(made[0], other)
        return _moved(made[0], chain[: index + 1], layout)
    # No spacing; but what is said of units and factors holds for one that is stated by hand.
    bare = _with_units(Stated({}, {}, own), chain, layout)
    factors = scale.factors()
    if factors:
        return _averaged(bare, factors)
    return bare if any(bare.units.values()) else None


@dataclass(frozen=True)
class _Scale:
    """Ratio of the voxels of a level to those that a resolution is of."""

    chain: Sequence[Around]
    layout: Layout
    level: int | None
    first: Around | None

    def apply(self, raw: Stated, own_level: bool) -> Stated:
        """Scale a resolution to the level, and add the half voxels by which averaging moves it."""
        own = _own_factors(self.chain[0].attributes, self.layout)
        factors, base = self.factors(), self._base(raw)
        if factors is None:
            self._check_plain(raw, own_level, base)
            return raw
        if all(f == 1 for f in factors.values()):
            return raw
        multiplied = _averaged(_times(raw, factors), factors)
        if not own_level:
            return multiplied
        already = base is not None and _close(raw.spacing, _product(base, factors))
        same = base is not None and _close(raw.spacing, base)
        if self.layout.zarr and raw.key != "pixelResolution":
            # Of a plain array these words mean its own voxels; "resolution" may mean either.
            return self._decided(raw, factors, raw.key != "resolution", False)
        if own is not None:
            return self._decided(raw, factors, False, not already)
        return self._decided(raw, factors, already or base is None, same)

    def factors(self) -> ByAxis | None:
        """Read the factors of the array itself, else what a group states for its level."""
        own = _own_factors(self.chain[0].attributes, self.layout)
        return own if own is not None else self._of_group()

    def _decided(self, raw: Stated, factors: ByAxis, is_own: bool, is_fine: bool) -> Stated:
        """Decide on a resolution beside factors: the level's own, or that of the finest level."""
        if is_own:
            return _averaged(raw, factors)
        if is_fine:
            return _averaged(_times(raw, factors), factors)
        raise InputError(
            f"{raw.source.file}: nobody can tell whether its {raw.key} {dict(raw.spacing)} is of "
            f"this level or of the finest, which the factors {dict(factors)} come on top of; "
            "correct the attributes or pass voxel_spacing= (--spacing)"
        )

    def _base(self, raw: Stated) -> ByAxis | None:
        """Read the resolution of level 0 by the same key; None where it is not known."""
        for around in ([self.first] if self.first else []) + list(self.chain[1:]):
            for found in _resolutions(around.attributes, self.layout):
                if found.key == raw.key:
                    return found.spacing
        return None

    def _of_group(self) -> ByAxis | None:
        if self.level is None:
            return None
        for around in self.chain[1:]:
            for key in ("scales", "downsamplingFactors"):
                if key in around.attributes:
                    return _entry(around.attributes, key, self.level, self.layout)
        return None

    def _check_plain(self, raw: Stated, own_level: bool, base: ByAxis | None) -> None:
        """Refuse a coarser level that nothing but the finest one's resolution is known of."""
        if not self.level or self.first is None:
            return
        alike = own_level and base is not None and _close(raw.spacing, base)
        sizes = [a.attributes.values.get("dimensions") for a in (self.chain[0], self.first)]
        if not own_level or (alike and sizes[0] != sizes[1]):
            raise InputError(
                f"{self.chain[0].attributes.file}: nothing says by how much level {self.level} is "
                "coarser than level 0: it needs downsamplingFactors, or pass voxel_spacing= "
                "(--spacing)"
            )


def _complete(chain: Sequence[Around], layout: Layout) -> Stated | None:
    """Read scale and translation that are stated for this very array."""
    found = []
    transform = chain[0].attributes.below("transform")
    if transform is not None and "scale" in transform:
        found.append(_of_transform(transform, layout))
    for around in chain[1:]:
        for multiscale in around.attributes.listed("multiscales"):
            found += _of_entry(multiscale, around.inside, layout)
    for other in found[1:]:
        if found[0].differs(other):
            raise _contradiction(found[0], other)
    return found[0] if found else None


def _of_entry(multiscale: Attributes, inside: str, layout: Layout) -> list[Stated]:
    for dataset in multiscale.listed("datasets"):
        if (dataset.text("path") or "").strip("/") != inside:
            continue
        transform = dataset.below("transform")
        if transform is not None:
            return [_of_transform(transform, layout)]
        axes = level_axes(multiscale, inside)
        found = scale_and_shift(multiscale, inside, len(axes))
        if found is not None:
            return [named_place(axes, (tuple(found[0]), tuple(found[1])), layout, dataset)]
    return []


def _of_transform(transform: Attributes, layout: Layout) -> Stated:
    """Read COSEM's ``transform``: lists by the names of its axes."""
    names = transform.texts("axes")
    scale = transform.numbers("scale")
    if names is None or scale is None or len(names) != len(scale):
        raise transform.error("axes", "one name per number of scale")
    shift = transform.numbers("translate") or (0.0,) * len(names)
    units = transform.texts("units") or ("",) * len(names)
    for key, values in (("translate", shift), ("units", units)):
        if len(values) != len(names):
            raise transform.error(key, "one value per axis")
    axes = [NgffAxis(_LETTERS.get(n, n), "", u) for n, u in zip(_low(names), units, strict=True)]
    return named_place(axes, (scale, shift), layout, transform)


def named_place(
    axes: Sequence[NgffAxis],
    place: tuple[Sequence[float], Sequence[float]],
    layout: Layout,
    source: Attributes,
) -> Stated:
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
    return Stated(
        {n: scale[n] for n in space},
        {n: units[n] for n in space},
        source,
        origin={n: shift[n] for n in space},
    )


def _resolutions(attributes: Attributes, layout: Layout) -> list[Stated]:
    """Read every resolution that one folder states, without factors."""
    found = []
    for key in _RESOLUTIONS:
        if key not in attributes:
            continue
        holder, inner = attributes, key
        given = attributes.values[key]
        if isinstance(given, Mapping):
            nested = attributes.below(key)
            assert nested is not None
            holder, inner, given = nested, "dimensions", given.get("dimensions")
        values = holder.numbers(inner)
        if values is None:
            raise attributes.error(key, "numbers, or {dimensions, unit}")
        spacing = layout.spread(attributes, key, values, isinstance(given, list))
        if min(spacing.values()) <= 0:
            raise attributes.error(key, "positive numbers")
        units = dict.fromkeys(layout.space, holder.text("unit") or "") if inner != key else {}
        if not any(units.values()):
            units = _units(attributes, layout)
        elif any(u and _differ(u, units[a]) for a, u in _units(attributes, layout).items()):
            raise attributes.error(key, f"in the units of the file, {_units(attributes, layout)}")
        found.append(Stated(spacing, units, attributes, key))
    return found


def _units(attributes: Attributes, layout: Layout) -> dict[str, str]:
    for key in ("units", "unit"):
        texts = attributes.texts(key)
        if texts:
            listed = isinstance(attributes.values[key], list)
            return layout.spread(attributes, key, texts, listed)
    return dict.fromkeys(layout.space, "")


def _with_units(stated: Stated, chain: Sequence[Around], layout: Layout) -> Stated:
    """Take the units of the folders around where the nearest one has none."""
    for around in chain:
        if any(stated.units.values()):
            break
        found = _units(around.attributes, layout)
        stated = replace(stated, units=found)
    return stated


def _own_factors(attributes: Attributes, layout: Layout) -> ByAxis | None:
    values = attributes.numbers("downsamplingFactors")
    if values is None:
        return None
    listed = isinstance(attributes.values["downsamplingFactors"], list)
    return _positive(
        layout.spread(attributes, "downsamplingFactors", values, listed),
        attributes,
        "downsamplingFactors",
    )


def _entry(attributes: Attributes, key: str, level: int, layout: Layout) -> ByAxis:
    given = attributes.values[key]
    if not isinstance(given, list) or level >= len(given):
        raise attributes.error(key, f"a list of factors for each level, level {level} among them")
    entry = Attributes({key: given[level]}, attributes.file, attributes.way)
    values = entry.numbers(key)
    if values is None:
        raise attributes.error(key, f"a list of factors for each level, level {level} among them")
    listed = isinstance(given[level], list)
    return _positive(layout.spread(entry, key, values, listed), attributes, key)


def _positive(factors: ByAxis, attributes: Attributes, key: str) -> ByAxis:
    if min(factors.values()) <= 0:
        raise attributes.error(key, "positive numbers")
    return factors


def _moved(stated: Stated, chain: Sequence[Around], layout: Layout) -> Stated:
    """Add the nearest offset, up to the folder whose resolution it is."""
    for around in chain:
        values = around.attributes.numbers("offset")
        if values is not None:
            listed = isinstance(around.attributes.values["offset"], list)
            offset = layout.spread(around.attributes, "offset", values, listed)
            return replace(stated, origin=offset)
    return stated


def _times(stated: Stated, factors: ByAxis | None) -> Stated:
    if factors is None:
        return stated
    return replace(stated, spacing=_product(stated.spacing, factors))


def _averaged(stated: Stated, factors: ByAxis) -> Stated:
    """Shift by averaging: the first group's centre lies so far from its first voxel's."""
    return replace(stated, shift={a: (f - 1) / 2 / f for a, f in factors.items()})


def _product(first: ByAxis, second: ByAxis) -> dict[str, float]:
    return {axis: value * second[axis] for axis, value in first.items()}


def _close(first: ByAxis, second: ByAxis) -> bool:
    return all(abs(v - second[a]) <= _SAME * abs(v) for a, v in first.items())


def _contradiction(first: Stated, second: Stated) -> InputError:
    return InputError(
        f"{first.source.file}: one part of its attributes gives the spacing {dict(first.spacing)}, "
        f"another {dict(second.spacing)}: correct it, or pass voxel_spacing= (--spacing)"
    )


def _differ(first: str, second: str) -> bool:
    return _micrometers(first) != _micrometers(second)


def _micrometers(unit: str) -> float:
    """Convert a unit for comparisons; what is no length is refused when it is used."""
    try:
        return MICROMETERS_PER_UNIT[Selection().unit_of(unit or None)]
    except InputError:
        return 1.0


def _names(attributes: Attributes, key: str) -> tuple[str, ...]:
    given = attributes.values.get(key)
    if isinstance(given, list) and given and all(isinstance(item, Mapping) for item in given):
        names = tuple(axis.name for axis in axes_listed(attributes, key))
    elif isinstance(given, str):
        names = tuple(given)
    else:
        names = attributes.texts(key) or ()
    return tuple(_LETTERS.get(name, name) for name in _low(names))


def _are_axes(names: Sequence[str]) -> bool:
    space = sorted(name for name in names if name in SPACE)
    return space in (["x", "y"], ["x", "y", "z"]) and len(set(names)) == len(names)


def _low(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in names)
