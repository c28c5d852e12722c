"""Transforms in OME-Zarr metadata, whoever wrote them: of scenes, and of single images.

A scene (OME-NGFF 0.6, RFC-5) lists transformations between coordinate systems of its images or of
its own; an image may list some between its own. One of them, from its input to its output, becomes
a transform; fields stay on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Transform,
    default_axes,
)
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.io.images.stores.ngff_metadata import multiscales_of
from itkstream.io.images.stores.ome_zarr import OWN_ATTRIBUTES
from itkstream.io.storage.attributes import Attributes, has_zarr_metadata, zarr_metadata
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.ngff.steps import Node, StepReader, StoredField, StoredVectors, inside
from itkstream.io.transforms.vectors import wanted_axes
from itkstream.io.units import parse_unit

__all__ = ["read_scene"]

Matrix = NDArray[np.float64]

_GLOBAL_UNIT = "micrometer"


def read_scene(
    folder: Location, axes: Sequence[str] | None = None, name: str | None = None
) -> Transform:
    """Read a transformation that the OME-Zarr group of a scene or of an image lists.

    It leads from its input to its output, in µm (in the grid's own unit where this package
    wrote it), and is an affine, or a composite whose last step is one. Where there are several,
    `name` is that of one or its ends, ``fixed -> moving``; the other way round it is inverted, if
    it can be. Axes are as this package wrote it, else z, y, x, unless others are asked for.
    """
    if not has_zarr_metadata(folder):
        raise MissingDataError(f"there is no transform store {folder}")
    attributes = zarr_metadata(folder)
    with _naming(folder):
        noted = attributes.values.get(OWN_ATTRIBUTES, {})
        own = noted.get("grid")
        lattice = Grid(**own) if own else None
        edge, inverse = _choose(_listed(attributes), name)
        ends = [_system(folder, attributes, end) for end in (edge.start, edge.end)]
        start, end = reversed(ends) if inverse else ends
        steps = StepReader(folder, lattice).steps(edge.node, len(start.names), inverse)
        space = _Space(start, end, lattice.unit if lattice else _GLOBAL_UNIT)
    wanted = wanted_axes(folder, space.ndim, axes or noted.get("axes"))
    with _naming(folder):
        return space.transform(steps, wanted)


@contextmanager
def _naming(folder: Location) -> Iterator[None]:
    """Add the name of the group to errors over its metadata."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: its transformations are not understood ({error!r})") from error


@dataclass(frozen=True)
class _Edge:
    """A transformation and the references to the coordinate systems at its ends."""

    node: Node
    start: Any
    end: Any

    @property
    def label(self) -> str:
        return f"{_label(self.start)} -> {_label(self.end)}"

    @property
    def opposite(self) -> str:
        return f"{_label(self.end)} -> {_label(self.start)}"


@dataclass(frozen=True)
class _System:
    """The axes of a coordinate system; `units` are "" where it has none."""

    names: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def spatial(self) -> tuple[int, ...]:
        return tuple(k for k, name in enumerate(self.names) if name in ("x", "y", "z"))


def _listed(attributes: Attributes) -> list[_Edge]:
    """The transformations of a scene, or of the first image, of a group."""
    found = _holder(attributes).get("coordinateTransformations") or ()
    return [_Edge(node, node.get("input"), node.get("output")) for node in found]


def _holder(attributes: Attributes) -> Mapping[str, Any]:
    """The scene of a group, else its first image."""
    scene = attributes.values.get("ome", {}).get("scene")
    images = multiscales_of(attributes)
    return scene or (images[0].values if images else {})


def _label(end: Any) -> str:
    """Name an end in messages: a system, or an image's system as image/system."""
    if not isinstance(end, Mapping):
        return str(end)
    return "/".join(str(end[key]) for key in ("path", "name") if end.get(key))


def _choose(edges: Sequence[_Edge], name: str | None) -> tuple[_Edge, bool]:
    there = "; ".join(
        edge.label + (f" ({edge.node['name']!r})" if edge.node.get("name") else "")
        for edge in edges
    )
    if not edges:
        raise InputError(
            "it lists no coordinate transformations: expected what itkstream register wrote, or an "
            "OME-Zarr 0.6 scene"
        )
    if name is None:
        if len(edges) > 1:
            raise InputError(f"it lists several transformations; name one of: {there}")
        return edges[0], False
    for edge in edges:
        if name in (edge.node.get("name"), edge.label):
            return edge, False
    for edge in edges:
        if name == edge.opposite:
            return edge, True
    raise InputError(f"it lists no transformation {name!r}; there are: {there}")


def _system(folder: Location, attributes: Attributes, end: Any) -> _System:
    """The axes at one end of a transformation."""
    path, name = (end.get("path"), end.get("name")) if isinstance(end, Mapping) else (None, end)
    holder = _holder(attributes)
    if path:
        images = multiscales_of(zarr_metadata(inside(folder, path)))
        holder = images[0].values if images else {}
    systems = list(holder.get("coordinateSystems") or ())
    if not systems and "axes" in holder:
        # Before 0.6 an image has one system, without a name.
        systems = [{"name": name, "axes": holder["axes"]}]
    found = next((s for s in systems if s["name"] == name or (path and name is None)), None)
    if found is None:
        known = ", ".join(str(s["name"]) for s in systems) or "none"
        raise InputError(
            f"the axes of the coordinate system {_label(end)!r} are not known: systems there: "
            f"{known}"
        )
    axes = [{"name": a} if isinstance(a, str) else a for a in found["axes"]]
    names = tuple(str(axis["name"]).lower() for axis in axes)
    units = tuple(str(axis.get("unit") or "") for axis in axes)
    return _System(names, units)


@dataclass(frozen=True)
class _Space:
    """The coordinate systems a transformation leads between, and the unit that is wanted."""

    start: _System
    end: _System
    unit: str

    def __post_init__(self) -> None:
        names = sorted(self.start.names[k] for k in self.start.spatial)
        others = sorted(self.end.names[k] for k in self.end.spatial)
        if names != others or len(names) not in (2, 3) or names != list(default_axes(len(names))):
            raise InputError(
                f"the transformation leads from the axes {self.start.names} to {self.end.names}; "
                "only x, y, or x, y, z, on both sides are read"
            )

    @property
    def ndim(self) -> int:
        """Spatial axes."""
        return len(self.start.spatial)

    def transform(self, steps: Sequence[Matrix | StoredField], wanted: Sequence[str]) -> Transform:
        """The steps on points whose axes are in the wanted order and unit."""
        self._check(steps)
        head = self._into(wanted)
        out: list[Transform] = []
        for step in [*steps, self._out_of(wanted)]:
            if not isinstance(step, StoredField):
                head = step @ head
                continue
            if not _is_similar(head):
                out.append(AffineTransform(head, tuple(wanted)))
                head = np.eye(self.ndim + 1)
            out.append(_placed(step, head, wanted, self.unit))
        last = AffineTransform(head, tuple(wanted))
        return CompositeTransform((*out, last)) if out else last

    def _check(self, steps: Sequence[Matrix | StoredField]) -> None:
        """Refuse what mixes spatial axes with others, or fields of other axes than the points'."""
        first = steps[0] if steps else None
        others = [k for k in range(len(self.start.names)) if k not in self.start.spatial]
        matrices = [step for step in steps if not isinstance(step, StoredField)]
        mixed = bool(others)
        if len(matrices) == len(steps):
            total = self._product(matrices)
            mixed = bool(total[np.ix_(self.end.spatial, others)].any())
        if mixed:
            raise InputError(
                f"the transformation of {self.start.names} mixes or bends axes other than x, y "
                "and z"
            )
        if isinstance(first, StoredField) and first.names != self.start.names:
            raise InputError(
                f"a field with the axes {first.names} acts on points with the axes "
                f"{self.start.names}: they must be the same"
            )

    def _product(self, matrices: Sequence[Matrix]) -> Matrix:
        """One matrix after the other, from the first system to the last."""
        total = np.eye(len(self.start.names) + 1)
        for matrix in matrices:
            total = matrix @ total
        if len(total) != len(self.end.names) + 1:
            raise InputError(
                f"the transformation gives {len(total) - 1} coordinates, and the system it leads "
                f"to has {len(self.end.names)}"
            )
        return total

    def _into(self, wanted: Sequence[str]) -> Matrix:
        """From points as wanted to points of the first system; its further axes are 0."""
        matrix = np.zeros((len(self.start.names) + 1, len(wanted) + 1))
        matrix[-1, -1] = 1
        for k in self.start.spatial:
            matrix[k, wanted.index(self.start.names[k])] = 1 / self._factor(self.start.units[k])
        return matrix

    def _out_of(self, wanted: Sequence[str]) -> Matrix:
        """From points of the last system to points as wanted."""
        matrix = np.zeros((len(wanted) + 1, len(self.end.names) + 1))
        matrix[-1, -1] = 1
        for k in self.end.spatial:
            matrix[wanted.index(self.end.names[k]), k] = self._factor(self.end.units[k])
        return matrix

    def _factor(self, unit: str) -> float:
        try:
            given = parse_unit(unit or self.unit)
        except InputError as error:
            raise InputError(
                f"the unit {unit!r} of a spatial axis is no length that is known"
            ) from error
        return MICROMETERS_PER_UNIT[given] / MICROMETERS_PER_UNIT[self.unit]


def _is_similar(matrix: Matrix) -> bool:
    """Whether it only exchanges axes, stretches all alike, and shifts: lattices stay lattices."""
    linear = matrix[:-1, :-1]
    single = (np.count_nonzero(linear, axis=0) == 1).all()
    found = linear[linear != 0]
    return bool(
        linear.shape[0] == linear.shape[1]
        and single
        and len(set(np.nonzero(linear)[0])) == len(linear)
        and (found > 0).all()
        and (found == found[0]).all()
    )


def _placed(
    field: StoredField, head: Matrix, wanted: Sequence[str], unit: str
) -> DisplacementField:
    """``head^-1 field head``: the field on points that have not yet been through `head`."""
    linear, stored = head[:-1, :-1], field.grid
    if len(linear) != field.ndim:
        raise InputError(f"a field of {field.ndim} axes acts on points of {len(linear)}")
    factor = float(linear.max())
    # Which wanted axis each stored one is.
    names = tuple(wanted[int(k)] for k in np.argmax(linear, axis=1))
    grid = Grid(
        stored.shape,
        tuple(np.asarray(stored.spacing) / factor),
        tuple((np.asarray(stored.origin) - head[:-1, -1]) / factor),
        stored.direction,
        names,
        unit,
    )
    lattice = stored if field.absolute else None
    order = grid.axis_order(tuple(wanted))
    vectors = StoredVectors(field.vectors, field.component, order, 1 / factor, lattice)
    return DisplacementField(vectors, grid.reorder(tuple(wanted)))
