"""Axes and places of N5 datasets and plain Zarr arrays, as the attributes of many tools state them.

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
                            ``unit``; µm where nothing is said.
==========================  =======================================================================

Where two of these that are stated for the same array differ, the array is refused: nobody can tell
which of them is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from itkstream.errors import InputError
from itkstream.io.images.stores.ngff_metadata import (
    NgffAxis,
    axes_listed,
    level_axes,
    scale_and_shift,
)
from itkstream.io.images.stores.placement import (
    SPACE,
    ByAxis,
    Layout,
    Placement,
    are_close,
    micrometers_of,
    place_by_names,
)
from itkstream.io.storage.attributes import Attributes

__all__ = ["Node", "read_axes", "read_placement"]

_RESOLUTIONS = ("pixelResolution", "resolution", "voxel_size", "spacing")
_LETTERS = {"time": "t", "channel": "c", "channels": "c", "c^": "c"}


@dataclass(frozen=True)
class Node:
    """An array or a group around it, and the way to the array ("." for the array itself)."""

    attributes: Attributes
    inside: str = "."


def read_axes(chain: Sequence[Node], ndim: int, reverse: bool) -> tuple[str, ...] | None:
    """Read the names of the axes of an array, in stored order; None where none are stated.

    `reverse` is for N5, where names in numpy's order go against the stored one.
    """
    for node in chain:
        found: dict[str, tuple[str, ...]] = {}
        for key in ("axes", "axis_names", "_ARRAY_DIMENSIONS", "dimension_names"):
            names = _read_names(node.attributes, key)
            numpy_order = key in ("_ARRAY_DIMENSIONS", "dimension_names")
            if names and len(names) == ndim and _are_axes(names):
                found[key] = names[::-1] if numpy_order and reverse else names
            elif names and not numpy_order:
                raise node.attributes.error(
                    key, f"the names of {ndim} axes, x and y among them (or pass axes=, --axes)"
                )
        if len(set(found.values())) > 1:
            raise InputError(
                f"{node.attributes.file}: its axes are, in stored order, "
                + " and ".join(f"{names} by {key}" for key, names in found.items())
                + "; correct the file or pass axes= (--axes)"
            )
        if found:
            return next(iter(found.values()))
    return None


def read_placement(
    chain: Sequence[Node], layout: Layout, level: int | None = None, first: Node | None = None
) -> Placement | None:
    """Read the place of the voxels of an array; None where nothing is stated.

    `level` is its number by its name, `first` is level 0 beside a coarser one.
    """
    own = chain[0].attributes
    complete = _read_complete(chain, layout)
    if complete is not None:
        for raw in _read_resolutions(own, layout):
            factors = _read_factors(own, layout)
            if complete.differs(raw) and complete.differs(_multiply(raw, factors)):
                raise _contradiction(complete, raw)
            if not any(complete.units.values()):
                complete = replace(complete, units=raw.units)
        return _with_units(complete, chain, layout)
    scale = _Scale(chain, layout, level, first)
    for index, node in enumerate(chain):
        found = _read_resolutions(node.attributes, layout)
        if not found:
            continue
        made = [_with_units(scale.apply(raw, index == 0), chain, layout) for raw in found]
        for other in made[1:]:
            if made[0].differs(other):
                raise _contradiction(made[0], other)
        return _add_offset(made[0], chain[: index + 1], layout)
    # No spacing; but what is said of units and factors holds for one that is stated by hand.
    bare = _with_units(Placement({}, {}, own), chain, layout)
    factors = scale.factors()
    if factors:
        return _add_averaging(bare, factors)
    return bare if any(bare.units.values()) else None


@dataclass(frozen=True)
class _Scale:
    """Ratio of the voxels of a level to those that a resolution is of."""

    chain: Sequence[Node]
    layout: Layout
    level: int | None
    first: Node | None

    def apply(self, raw: Placement, own_level: bool) -> Placement:
        """Scale a resolution to the level, and add the half voxels by which averaging moves it."""
        own = _read_factors(self.chain[0].attributes, self.layout)
        factors, base = self.factors(), self._base(raw)
        if factors is None:
            self._check_plain(raw, own_level, base)
            return raw
        if all(f == 1 for f in factors.values()):
            return raw
        multiplied = _add_averaging(_multiply(raw, factors), factors)
        if not own_level:
            return multiplied
        already = base is not None and are_close(raw.spacing, _product(base, factors))
        same = base is not None and are_close(raw.spacing, base)
        if self.layout.zarr and raw.key != "pixelResolution":
            # Of a plain array these words mean its own voxels; "resolution" may mean either.
            return self._decided(raw, factors, raw.key != "resolution", False)
        if own is not None:
            return self._decided(raw, factors, False, not already)
        return self._decided(raw, factors, already or base is None, same)

    def factors(self) -> ByAxis | None:
        """Read the factors of the array itself, else what a group states for its level."""
        own = _read_factors(self.chain[0].attributes, self.layout)
        return own if own is not None else self._of_group()

    def _decided(self, raw: Placement, factors: ByAxis, is_own: bool, is_fine: bool) -> Placement:
        """Decide on a resolution beside factors: the level's own, or that of the finest level."""
        if is_own:
            return _add_averaging(raw, factors)
        if is_fine:
            return _add_averaging(_multiply(raw, factors), factors)
        raise InputError(
            f"{raw.source.file}: nobody can tell whether its {raw.key} {dict(raw.spacing)} is of "
            f"this level or of the finest, which the factors {dict(factors)} come on top of; "
            "correct the attributes or pass voxel_spacing= (--spacing)"
        )

    def _base(self, raw: Placement) -> ByAxis | None:
        """Read the resolution of level 0 by the same key; None where it is not known."""
        for node in ([self.first] if self.first else []) + list(self.chain[1:]):
            for found in _read_resolutions(node.attributes, self.layout):
                if found.key == raw.key:
                    return found.spacing
        return None

    def _of_group(self) -> ByAxis | None:
        if self.level is None:
            return None
        for node in self.chain[1:]:
            for key in ("scales", "downsamplingFactors"):
                if key in node.attributes:
                    return _factors_of_level(node.attributes, key, self.level, self.layout)
        return None

    def _check_plain(self, raw: Placement, own_level: bool, base: ByAxis | None) -> None:
        """Refuse a coarser level that nothing but the finest one's resolution is known of."""
        if not self.level or self.first is None:
            return
        alike = own_level and base is not None and are_close(raw.spacing, base)
        sizes = [a.attributes.values.get("dimensions") for a in (self.chain[0], self.first)]
        if not own_level or (alike and sizes[0] != sizes[1]):
            raise InputError(
                f"{self.chain[0].attributes.file}: nothing says by how much level {self.level} is "
                "coarser than level 0: it needs downsamplingFactors, or pass voxel_spacing= "
                "(--spacing)"
            )


def _read_complete(chain: Sequence[Node], layout: Layout) -> Placement | None:
    """Read scale and translation that are stated for this very array."""
    found = []
    transform = chain[0].attributes.below("transform")
    if transform is not None and "scale" in transform:
        found.append(_read_transform(transform, layout))
    for node in chain[1:]:
        for multiscale in node.attributes.listed("multiscales"):
            found += _read_entry(multiscale, node.inside, layout)
    for other in found[1:]:
        if found[0].differs(other):
            raise _contradiction(found[0], other)
    return found[0] if found else None


def _read_entry(multiscale: Attributes, inside: str, layout: Layout) -> list[Placement]:
    for dataset in multiscale.listed("datasets"):
        if (dataset.text("path") or "").strip("/") != inside:
            continue
        transform = dataset.below("transform")
        if transform is not None:
            return [_read_transform(transform, layout)]
        axes = level_axes(multiscale, inside)
        found = scale_and_shift(multiscale, inside, len(axes))
        if found is not None:
            return [place_by_names(axes, (tuple(found[0]), tuple(found[1])), layout, dataset)]
    return []


def _read_transform(transform: Attributes, layout: Layout) -> Placement:
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
    axes = [NgffAxis(_LETTERS.get(n, n), "", u) for n, u in zip(_lower(names), units, strict=True)]
    return place_by_names(axes, (scale, shift), layout, transform)


def _read_resolutions(attributes: Attributes, layout: Layout) -> list[Placement]:
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
        beside = _read_units(attributes, layout)
        if not any(units.values()):
            units = beside
        elif any(u and micrometers_of(u) != micrometers_of(units[a]) for a, u in beside.items()):
            raise attributes.error(key, f"in the units of the file, {beside}")
        found.append(Placement(spacing, units, attributes, key))
    return found


def _read_units(attributes: Attributes, layout: Layout) -> dict[str, str]:
    for key in ("units", "unit"):
        texts = attributes.texts(key)
        if texts:
            listed = isinstance(attributes.values[key], list)
            return layout.spread(attributes, key, texts, listed)
    return dict.fromkeys(layout.space, "")


def _with_units(place: Placement, chain: Sequence[Node], layout: Layout) -> Placement:
    """Take the units of the folders around where the nearest one has none."""
    for node in chain:
        if any(place.units.values()):
            break
        found = _read_units(node.attributes, layout)
        place = replace(place, units=found)
    return place


def _read_factors(attributes: Attributes, layout: Layout) -> ByAxis | None:
    values = attributes.numbers("downsamplingFactors")
    if values is None:
        return None
    listed = isinstance(attributes.values["downsamplingFactors"], list)
    return _check_positive(
        layout.spread(attributes, "downsamplingFactors", values, listed),
        attributes,
        "downsamplingFactors",
    )


def _factors_of_level(attributes: Attributes, key: str, level: int, layout: Layout) -> ByAxis:
    given = attributes.values[key]
    if not isinstance(given, list) or level >= len(given):
        raise attributes.error(key, f"a list of factors for each level, level {level} among them")
    entry = Attributes({key: given[level]}, attributes.file, attributes.way)
    values = entry.numbers(key)
    if values is None:
        raise attributes.error(key, f"a list of factors for each level, level {level} among them")
    listed = isinstance(given[level], list)
    return _check_positive(layout.spread(entry, key, values, listed), attributes, key)


def _check_positive(factors: ByAxis, attributes: Attributes, key: str) -> ByAxis:
    if min(factors.values()) <= 0:
        raise attributes.error(key, "positive numbers")
    return factors


def _add_offset(place: Placement, chain: Sequence[Node], layout: Layout) -> Placement:
    """Add the nearest offset, up to the folder whose resolution it is."""
    for node in chain:
        values = node.attributes.numbers("offset")
        if values is not None:
            listed = isinstance(node.attributes.values["offset"], list)
            offset = layout.spread(node.attributes, "offset", values, listed)
            return replace(place, origin=offset)
    return place


def _multiply(place: Placement, factors: ByAxis | None) -> Placement:
    if factors is None:
        return place
    return replace(place, spacing=_product(place.spacing, factors))


def _add_averaging(place: Placement, factors: ByAxis) -> Placement:
    """Shift by averaging: the first group's centre lies so far from its first voxel's."""
    return replace(place, shift={a: (f - 1) / 2 / f for a, f in factors.items()})


def _product(first: ByAxis, second: ByAxis) -> dict[str, float]:
    return {axis: value * second[axis] for axis, value in first.items()}


def _contradiction(first: Placement, second: Placement) -> InputError:
    return InputError(
        f"{first.source.file}: one part of its attributes gives the spacing {dict(first.spacing)}, "
        f"another {dict(second.spacing)}: correct it, or pass voxel_spacing= (--spacing)"
    )


def _read_names(attributes: Attributes, key: str) -> tuple[str, ...]:
    given = attributes.values.get(key)
    if isinstance(given, list) and given and all(isinstance(item, Mapping) for item in given):
        names = tuple(axis.name for axis in axes_listed(attributes, key))
    elif isinstance(given, str):
        names = tuple(given)
    else:
        names = attributes.texts(key) or ()
    return tuple(_LETTERS.get(name, name) for name in _lower(names))


def _are_axes(names: Sequence[str]) -> bool:
    space = sorted(name for name in names if name in SPACE)
    return space in (["x", "y"], ["x", "y", "z"]) and len(set(names)) == len(names)


def _lower(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in names)
