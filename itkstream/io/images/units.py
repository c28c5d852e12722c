"""Transforms in the unit of length of other programs' files.

Inside, and in OME-Zarr, lengths are µm. Files of ITK's world carry numbers alone: those
of the coordinates that ITK gives the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Transform,
)
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.geometry.lazy_array import DerivedArray

__all__ = ["itk_unit", "micrometers", "rescaled"]


def itk_unit(grid: Grid) -> str:
    """Return the unit of ITK files for an image: millimeter if it has that, else micrometer."""
    return grid.unit if grid.unit == "millimeter" else "micrometer"


def rescaled(transform: Transform, factor: float) -> Transform:
    """Rescale the points of a transform by a factor: ``p -> f * transform(p / f)``; read no field.

    From µm to millimeters the factor is 0.001. Grids keep the name of their unit.
    """
    if factor == 1.0:
        return transform
    if isinstance(transform, CompositeTransform):
        return CompositeTransform(tuple(rescaled(t, factor) for t in transform.transforms))
    if isinstance(transform, AffineTransform):
        matrix = transform.matrix.copy()
        matrix[:-1, -1] *= factor
        return AffineTransform(matrix)
    if isinstance(transform, DisplacementField):
        return DisplacementField(_Scaled(transform.data, factor), _scaled(transform.grid, factor))
    if isinstance(transform, BSplineTransform):
        coefficients = transform.coefficients * factor
        return BSplineTransform(coefficients, _scaled(transform.grid, factor), transform.order)
    raise InputError(
        f"a {type(transform).__name__} has no other unit; sample it to a DisplacementField first"
    )


def _scaled(grid: Grid, factor: float) -> Grid:
    spacing, origin = (tuple(v * factor for v in values) for values in (grid.spacing, grid.origin))
    return Grid(grid.shape, spacing, origin, grid.direction, grid.axes, grid.unit)


@dataclass(frozen=True)
class _Scaled(DerivedArray):
    """Vectors, multiplied as they are read."""

    factor: float

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        return super().read(start, stop) * self.dtype.type(self.factor)


def micrometers(unit: str) -> float:
    """Convert a unit, as `Grid` spells it, to µm."""
    if unit not in MICROMETERS_PER_UNIT:
        raise InputError(f"unknown length unit {unit!r}; known: {', '.join(MICROMETERS_PER_UNIT)}")
    return MICROMETERS_PER_UNIT[unit]
