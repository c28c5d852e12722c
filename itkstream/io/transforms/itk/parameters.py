"""Entries of ITK's transform files, numbers of a named kind each, and what transforms they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import (
    ArraySource,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    LandmarkSpline,
    Transform,
    axis_order,
    default_axes,
)
from itkstream.geometry.itk_bridge import from_itk_geometry
from itkstream.io.transforms.itk.linear_kinds import LINEAR_KINDS, linear_transform

__all__ = ["Entry", "EntryList", "bspline_of", "is_composite"]

_KIND = re.compile(r"([A-Za-z]\w*?)_(?:double|float)_(\d+)_(\d+)(?:_(\d+))?")
_COMPOSITE = "CompositeTransform"
# They differ in how an optimiser changes them; points they map alike.
_FIELDS = (
    "DisplacementFieldTransform",
    "GaussianSmoothingOnUpdateDisplacementFieldTransform",
    "BSplineSmoothingOnUpdateDisplacementFieldTransform",
)
# ITK's kernel, and whether the file holds the inverse of what is meant, as 3D Slicer has it.
_LANDMARKS = {
    "ThinPlateSplineKernelTransform": ("r", False),
    "ThinPlateR2LogRSplineKernelTransform": ("r2logr", False),
    "VolumeSplineKernelTransform": ("r3", False),
    "InverseThinPlateSplineKernelTransform": ("r", True),
}
# The order of B-splines that ITK does not write down.
_CUBIC = 3


@dataclass(frozen=True, eq=False)
class Entry:
    """One transform as a file has it: ``AffineTransform_double_3_3`` and ITK's numbers."""

    kind: str
    parameters: NDArray[np.float64]
    fixed: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of parameters."""
        return len(self.parameters)

    def vectors(self, grid: Grid, order: tuple[int, ...]) -> ArraySource:
        """The vectors of a displacement field on a grid, axes x first, turned by `order`.

        In memory; the entry of a file that is read in parts gives vectors that stay there.
        """
        n = grid.ndim
        stored = self.parameters.reshape(*reversed(grid.shape), n)
        turned = stored.transpose(*(n - 1 - k for k in order), n)[..., list(order)]
        return np.ascontiguousarray(turned)


@dataclass(frozen=True)
class _Kind:
    """The parts of the name of a kind, such as ``BSplineTransform_double_3_3_2``."""

    name: str
    ndim: int
    order: int

    @classmethod
    def of(cls, text: str) -> _Kind:
        found = _KIND.fullmatch(text.strip())
        if found is None:
            raise InputError(
                f"{text.strip()[:80]!r} names no kind of transform; expected the likes of "
                "AffineTransform_double_3_3"
            )
        if found[2] != found[3] or found[2] not in ("2", "3"):
            raise InputError(f"transforms of 2-D or 3-D points are read; got a {text.strip()}")
        return cls(found[1], int(found[2]), int(found[4] or _CUBIC))


def is_composite(kind: str) -> bool:
    """Whether an entry says that those after it act one after the other."""
    return kind.strip().startswith(_COMPOSITE)


@dataclass(frozen=True, eq=False)
class EntryList:
    """The transforms that a file lists, of one dimension; ITK applies the last of them first."""

    entries: tuple[Entry, ...]
    kinds: tuple[_Kind, ...]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> EntryList:
        """Understand the entries of a file: one, or a composite and then its parts."""
        kinds = [_Kind.of(entry.kind) for entry in entries]
        names = [kind.name for kind in kinds]
        if names[:1] == [_COMPOSITE]:
            entries, kinds, names = entries[1:], kinds[1:], names[1:]
            if not names:
                raise InputError("its CompositeTransform has no parts: is the file whole?")
        elif len(names) > 1:
            raise InputError(
                f"it lists {len(names)} transforms ({', '.join(names)}) and not in which order "
                "they act, or whether they belong together: put each into a file of its own, or "
                "make one CompositeTransform of them in ITK"
            )
        if _COMPOSITE in names:
            raise InputError(
                "it has a composite within a composite, whose parts ITK's files do not tell "
                "apart: flatten it (itk.CompositeTransform.FlattenTransformQueue) and write it anew"
            )
        if len({kind.ndim for kind in kinds}) > 1:
            raise InputError(f"it mixes dimensions: {', '.join(entry.kind for entry in entries)}")
        return cls(tuple(entries), tuple(kinds))

    @property
    def ndim(self) -> int:
        """Dimensions of the space."""
        return self.kinds[0].ndim

    def transform(self, axes: tuple[str, ...]) -> Transform:
        """The transform that the entries make together, of points with these axes."""
        steps = [_step(e, kind, axes) for e, kind in zip(self.entries, self.kinds, strict=True)]
        return steps[0] if len(steps) == 1 else CompositeTransform(tuple(reversed(steps)))


def _step(entry: Entry, kind: _Kind, axes: tuple[str, ...]) -> Transform:
    if kind.name in _FIELDS:
        grid = _lattice(entry, kind)
        return DisplacementField(entry.vectors(grid, grid.axis_order(axes)), grid.reorder(axes))
    make = _MAKERS.get(kind.name)
    if make is None:
        raise InputError(
            f"it holds ITK's {kind.name}, which is not read: convert it to a displacement field "
            "(in 3D Slicer's module Transforms, Convert) and store that as .h5 or .nrrd"
        )
    for what, values in (("parameters", entry.parameters), ("fixed parameters", entry.fixed)):
        if not np.isfinite(values).all():
            raise InputError(f"the {what} of its {kind.name} hold NaN or infinity")
    return make(entry, kind, axes)


def _lattice(entry: Entry, kind: _Kind) -> Grid:
    """The lattice of a field or of B-splines: size, origin, spacing and direction, x first."""
    n = kind.ndim
    if len(entry.fixed) != n * (n + 3):
        raise InputError(
            f"the lattice of a {kind.name} is {n * (n + 3)} fixed parameters; got "
            f"{len(entry.fixed)}: is the file whole?"
        )
    size, origin, spacing, direction = np.split(entry.fixed, [n, 2 * n, 3 * n])
    if not (np.isfinite(size).all() and (size >= 1).all() and (size == np.rint(size)).all()):
        raise InputError(f"the size of a {kind.name} is whole numbers; got {size.tolist()}")
    grid = from_itk_geometry([int(m) for m in size], spacing, origin, direction)
    if entry.count != grid.size * n:
        raise InputError(
            f"a {kind.name} of size {grid.shape} has {grid.size * n} parameters; got "
            f"{entry.count}: is the file whole?"
        )
    return grid


def bspline_of(
    parameters: NDArray[np.float64], grid: Grid, order: int, axes: Sequence[str]
) -> BSplineTransform:
    """B-splines of coefficients component by component, x fastest, on a lattice, axes x first."""
    n = grid.ndim
    stored = parameters.reshape(n, *reversed(grid.shape)).transpose(*reversed(range(n + 1)))
    turn = list(grid.axis_order(axes))
    return BSplineTransform(stored.transpose(*turn, n)[..., turn], grid.reorder(axes), order)


def _splines(entry: Entry, kind: _Kind, axes: tuple[str, ...]) -> Transform:
    grid = _lattice(entry, kind)
    return bspline_of(entry.parameters, grid, kind.order, axes)


def _matrix(entry: Entry, kind: _Kind, axes: tuple[str, ...]) -> Transform:
    return linear_transform(kind.name, entry.parameters, entry.fixed, axes)


def _landmarks(entry: Entry, kind: _Kind, axes: tuple[str, ...]) -> Transform:
    kernel, inverse = _LANDMARKS[kind.name]
    flat, n = (entry.parameters, entry.fixed), kind.ndim
    if len(flat[0]) != len(flat[1]) or len(flat[0]) % n:
        raise InputError(
            f"a {kind.name} has as many source as target landmarks; got {len(flat[0])} and "
            f"{len(flat[1])} coordinates: is the file whole?"
        )
    order = list(axis_order(default_axes(n), axes))
    start, end = (numbers.reshape(-1, n)[:, order] for numbers in flat)
    return LandmarkSpline(*((end, start) if inverse else (start, end)), kernel, inverse, axes)


_MAKERS: dict[str, Callable[[Entry, _Kind, tuple[str, ...]], Transform]] = {
    "BSplineTransform": _splines,
    **dict.fromkeys(_LANDMARKS, _landmarks),
    **dict.fromkeys(LINEAR_KINDS, _matrix),
}
