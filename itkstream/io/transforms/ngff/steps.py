"""OME-Zarr's coordinate transformations, as matrices and stored vector fields.

The words are those of OME-NGFF 0.6 (RFC-5), with ``inverseOf`` of its drafts. Numbers are as
stored, in the order of the axes of a coordinate system: what the axes are called, and in which
units, is known to `itkstream.io.transforms.ngff.scene` alone.

References
----------
https://ngff.openmicroscopy.org/0.6/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid, Slices
from itkstream.io.images.stores.ngff_metadata import (
    level_axes,
    level_paths,
    multiscales_of,
    scale_and_shift,
)
from itkstream.io.storage.attributes import Attributes, is_zarr_array, zarr_metadata
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.io.transforms.vectors import OrderedVectors

__all__ = ["Node", "StepReader", "StoredField", "StoredVectors", "inside"]

Node = Mapping[str, Any]
Matrix = NDArray[np.float64]

# Ratio of greatest stretch to least beyond which an inverse is rounding alone.
_SINGULAR = 1e12

_FIELDS = {"displacements": "displacement", "coordinates": "coordinate"}


@dataclass(frozen=True)
class StoredVectors(OrderedVectors):
    """The vectors of a stored field as displacements, times a factor.

    `component` is the axis of the components, and `lattice` the place of the elements where these
    are positions rather than displacements.
    """

    stored: ZarrArray
    component: int
    order: tuple[int, ...]
    factor: float = 1.0
    lattice: Grid | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        exact = self.lattice is None and self.factor == 1
        return self.stored.dtype if exact else np.dtype(np.float64)

    def stored_shape(self) -> tuple[int, ...]:
        """Vectors per stored axis, without that of the components."""
        shape = self.stored.shape
        return (*shape[: self.component], *shape[self.component + 1 :])

    def read_box(self, box: Slices) -> NDArray[Any]:
        """Read displacements, components as stored."""
        whole = (*box[: self.component], slice(None), *box[self.component :])
        vectors = np.moveaxis(self.stored[whole], self.component, -1)
        if self.lattice is not None:
            vectors = vectors - self.lattice.crop(box).positions()
        return vectors if self.factor == 1 else vectors * self.factor


@dataclass(frozen=True)
class StoredField:
    """A vector field as it is stored, one axis of which, `component`, holds the components.

    `grid` is the lattice of the others, in their order; its axes and unit are not those of the
    store, which `names` and `units` have, empty where the store does not say. Vectors that are
    `absolute` are positions rather than displacements.
    """

    vectors: ZarrArray
    component: int
    grid: Grid
    names: tuple[str, ...]
    units: tuple[str, ...]
    absolute: bool

    @property
    def ndim(self) -> int:
        """Dimensions of the space."""
        return self.grid.ndim


@dataclass(frozen=True)
class StepReader:
    """Reads the coordinate transformations of one group, to which paths of arrays are relative.

    `lattice` is that of its fields, where their own metadata cannot say it all.
    """

    folder: Location
    lattice: Grid | None = None

    def steps(self, node: Node, ndim: int, inverse: bool = False) -> list[Matrix | StoredField]:
        """Read a transformation of points with `ndim` coordinates, step by step, or the way back.

        Homogeneous matrices, (m + 1, n + 1), and fields; the first acts first.
        """
        kind = node["type"]
        if kind == "sequence":
            parts = list(node["transformations"])
            found: list[Matrix | StoredField] = []
            for part in reversed(parts) if inverse else parts:
                found += self.steps(part, _reached(found, ndim), inverse)
            return found
        if kind == "bijection":
            return self.steps(node["inverse" if inverse else "forward"], ndim)
        if kind == "inverseOf":
            return self.steps(node["transformation"], ndim, not inverse)
        if kind in _FIELDS:
            if inverse:
                raise InputError(
                    f"the inverse of a field ({kind}) is wanted, which nobody has stored: read the "
                    "other direction and invert it (itkstream invert)"
                )
            return [self._field(node)]
        if kind == "byDimension":
            matrix = self._by_dimension(node, ndim)
        elif kind in _MATRICES:
            matrix = _MATRICES[kind](self._values(node, kind), ndim)
        else:
            known = (*_MATRICES, *_FIELDS, "byDimension", "sequence", "bijection", "inverseOf")
            raise InputError(f"{kind!r} is not read; known are {', '.join(known)}")
        if matrix.shape[1] != ndim + 1:
            raise InputError(
                f"a {kind} of {matrix.shape[1] - 1} coordinates follows on {ndim} coordinates"
            )
        return [_inverted(matrix, kind) if inverse else matrix]

    def _values(self, node: Node, kind: str) -> Any:
        """The numbers of a transformation, or the array that holds them."""
        if kind in node or "path" not in node:
            return node if kind in ("identity", "projectAxis") else node[kind]
        return _array(inside(self.folder, node["path"]))[...]

    def _by_dimension(self, node: Node, ndim: int) -> Matrix:
        items = node["transformations"]
        produced = sorted(axis for item in items for axis in item["outputAxes"])
        if produced != list(range(len(produced))):
            raise InputError(f"byDimension must give each axis once; it gives axes {produced}")
        matrix = np.zeros((len(produced) + 1, ndim + 1))
        matrix[-1, -1] = 1
        for item in items:
            come, go = list(item["inputAxes"]), list(item["outputAxes"])
            part = np.eye(len(come) + 1)
            for step in self.steps(item["transformation"], len(come)):
                if isinstance(step, StoredField):
                    raise InputError("a byDimension with a vector field in it is not read")
                part = step @ part
            if len(part) != len(go) + 1:
                raise InputError(f"byDimension: {len(part) - 1} coordinates go to axes {go}")
            matrix[np.ix_(go, [*come, ndim])] = part[:-1]
        return matrix

    def _field(self, node: Node) -> StoredField:
        if node.get("interpolation", "linear") != "linear":
            raise InputError(
                f"a field interpolated as {node['interpolation']!r} is not read, only 'linear'"
            )
        place = inside(self.folder, node["path"])
        group, multiscale, path = _multiscale_around(place, self.folder)
        axes = level_axes(multiscale, path)
        types = [axis.type for axis in axes]
        wanted = _FIELDS[node["type"]]
        if types.count(wanted) != 1:
            raise InputError(f"{place} has no axis of type {wanted!r}; its axes are {types}")
        component = types.index(wanted)
        array = _array(inside(group, path))
        spatial = [k for k in range(len(axes)) if k != component]
        n = len(spatial)
        if n not in (2, 3) or array.ndim != n + 1 or array.shape[component] != n:
            raise InputError(
                f"a field of {n} axes has {n} components for each of its points, and is 2-D or "
                f"3-D; {place} has shape {array.shape}"
            )
        stated = scale_and_shift(multiscale, path, len(axes))
        if stated is None:
            raise InputError(f"{place} does not say where its elements are: it has no scale")
        scale, shift = (tuple(values[spatial]) for values in stated)
        return StoredField(
            array,
            component,
            self.lattice or Grid(tuple(array.shape[k] for k in spatial), scale, shift),
            tuple(axes[k].name for k in spatial),
            tuple(axes[k].unit for k in spatial),
            absolute=node["type"] == "coordinates",
        )


def inside(folder: Location, path: str) -> Location:
    """A place that the metadata of a group name, within it."""
    parts = str(path).split("/")
    if str(path).startswith("/") or ".." in parts or "://" in str(path):
        raise InputError(f"{folder} names the path {path!r}, which leads out of it")
    return folder.child(*(part for part in parts if part not in ("", ".")))


def _multiscale_around(place: Location, top: Location) -> tuple[Location, Attributes, str]:
    """The multiscale image that a group is, or an array is a level of: group, metadata, level."""
    if not is_zarr_array(place):
        for multiscale in multiscales_of(zarr_metadata(place)):
            return place, multiscale, level_paths(multiscale)[0]
        raise InputError(f"there is no vector field {place}: no array, and no OME-Zarr image")
    around = [folder for folder in place.parents if folder.is_below(top)]
    for group in around:
        for multiscale in multiscales_of(zarr_metadata(group)):
            for path in level_paths(multiscale):
                if inside(group, path) == place:
                    return group, multiscale, path
    raise InputError(f"no OME-Zarr metadata say where the elements of {place} are")


def _array(place: Location) -> ZarrArray:
    if not is_zarr_array(place):
        raise InputError(f"the metadata name the array {place}, which is not there")
    return ZarrArray.open(place)


def _reached(steps: Sequence[Matrix | StoredField], ndim: int) -> int:
    """Coordinates after some steps."""
    if not steps:
        return ndim
    last = steps[-1]
    return last.ndim if isinstance(last, StoredField) else len(last) - 1


def _inverted(matrix: Matrix, kind: str) -> Matrix:
    # The determinant would be as small for lengths that are small in their unit.
    linear = matrix[:-1, :-1]
    if linear.shape[0] != linear.shape[1] or not np.linalg.cond(linear) < _SINGULAR:
        raise InputError(f"the inverse of a {kind} is wanted, and it has none")
    return np.asarray(np.linalg.inv(matrix))


def _homogeneous(linear: Any, shift: Any = 0.0) -> Matrix:
    linear = np.asarray(linear, np.float64)
    matrix = np.zeros(np.add(linear.shape, 1))
    matrix[:-1, :-1], matrix[:-1, -1], matrix[-1, -1] = linear, shift, 1
    return matrix


def _vector(values: Any) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    if found.ndim != 1:
        raise InputError(f"a scale or translation is a list of numbers; got shape {found.shape}")
    return found


def _translation(values: Any, ndim: int) -> Matrix:
    shift = _vector(values)
    return _homogeneous(np.eye(len(shift)), shift)


def _affine(values: Any, ndim: int) -> Matrix:
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2:
        raise InputError(f"an affine is a list of rows; got shape {rows.shape}")
    return _homogeneous(rows[:, :-1], rows[:, -1])


def _rotation(values: Any, ndim: int) -> Matrix:
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2 or rows.shape[0] != rows.shape[1]:
        raise InputError(f"a rotation is as many rows as columns; got shape {rows.shape}")
    return _homogeneous(rows)


def _map_axis(values: Any, ndim: int) -> Matrix:
    if not isinstance(values, Sequence) or not all(isinstance(k, int) for k in values):
        raise InputError(f"mapAxis is a list of axes, counted from 0; got {values!r}")
    return _homogeneous(np.eye(ndim)[list(values)])


def _project_axis(node: Node, ndim: int) -> Matrix:
    kept = [k for k in range(ndim) if k not in (node.get("droppedInputs") or ())]
    created = set(node.get("createdOutputs") or ())
    total = len(kept) + len(created)
    places = [k for k in range(total) if k not in created]
    linear = np.zeros((total, ndim))
    linear[places, kept] = 1
    return _homogeneous(linear)


_MATRICES: dict[str, Callable[[Any, int], Matrix]] = {
    "identity": lambda node, ndim: np.eye(ndim + 1),
    "scale": lambda values, ndim: _homogeneous(np.diag(_vector(values))),
    "translation": _translation,
    "rotation": _rotation,
    "affine": _affine,
    "mapAxis": _map_axis,
    "projectAxis": _project_axis,
}
