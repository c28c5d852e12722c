"""Points of one image as a file has them, paired with those of the other, in µm.

A file's coordinates are x, y, z, those of ITK; or voxel indices, along x, y, z too or along the
image's axes as viewers show them, slowest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid, Landmarks, default_axes
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.io.images.units import micrometers

__all__ = [
    "UNITS",
    "VOXEL",
    "Pairs",
    "Side",
    "from_micrometers",
    "joined",
    "paired",
    "to_micrometers",
]

VOXEL = "voxel"
"""Name of the unit of indices: 0 is the centre of the first voxel."""

UNITS = (*MICROMETERS_PER_UNIT, VOXEL)
"""Units that a file may be in."""


@dataclass(frozen=True, eq=False)
class Side:
    """Points of one image, (m, n), in the order of `axes` and in a unit, where the file states it.

    Else they are in the unit that is `usual` for the program. `labelled` tells whether the file
    gave the names.
    """

    points: NDArray[np.float64]
    names: tuple[str, ...]
    axes: tuple[str, ...]
    unit: str | None = None
    labelled: bool = True
    usual: str = "micrometer"

    def select(self, numbers: Sequence[int]) -> Side:
        """Take some of the points."""
        names = tuple(self.names[k] for k in numbers)
        return replace(self, points=self.points[list(numbers)], names=names)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Fixed and moving points, one to one, and how exactly they were placed where a file says it.

    The deviations are in a unit of their own, or in that of the fixed points.
    """

    fixed: Side
    moving: Side
    sigma: NDArray[np.float64] | None = None
    sigma_unit: str | None = None


def paired(fixed: Side, moving: Side, where: tuple[str, str]) -> Pairs:
    """Pair the points of two files: by their labels where these tell, else by their order."""
    shared = set(fixed.names) & set(moving.names)
    unique = all(len(set(side.names)) == len(side.names) for side in (fixed, moving))
    if fixed.labelled and moving.labelled and unique and shared:
        wanted = [name for name in fixed.names if name in shared]
        alone = sorted(set(fixed.names) ^ set(moving.names))
        if alone:
            raise InputError(
                f"{len(alone)} landmarks have a partner in one of {where[0]} and {where[1]} only: "
                f"{', '.join(alone[:10])}; give each its label in both files, or remove it"
            )
        return Pairs(fixed, moving.select([moving.names.index(name) for name in wanted]))
    if len(fixed.points) != len(moving.points):
        raise InputError(
            f"{where[0]} holds {len(fixed.points)} points and {where[1]} {len(moving.points)}, and "
            "no labels pair them: landmarks are as many in both, in one order"
        )
    return Pairs(fixed, replace(moving, names=fixed.names))


def to_micrometers(side: Side, grid: Grid | None, unit: str, which: str) -> NDArray[np.float64]:
    """Bring points to µm and to x, y, z."""
    if unit != VOXEL:
        order = [side.axes.index(a) for a in default_axes(len(side.axes))]
        return side.points[:, order] * micrometers(unit)
    if grid is None:
        raise InputError(
            f"voxel indices say nothing without the {which} image: give its grid, as "
            f"{which}=open_image(...)"
        )
    own = _same_axes(grid, side, which)
    points = own.to_physical(side.points)
    return points[:, [own.axes.index(a) for a in default_axes(own.ndim)]]


def from_micrometers(
    points: NDArray[np.float64], grid: Grid | None, unit: str, axes: tuple[str, ...], which: str
) -> NDArray[np.float64]:
    """Bring points from µm and x, y, z to a unit and an order of axes."""
    xyz = default_axes(points.shape[1])
    ordered = points[:, [xyz.index(a) for a in axes]]
    if unit != VOXEL:
        return ordered / micrometers(unit)
    if grid is None:
        raise InputError(f"indices are written with the {which} image's grid: give {which}=")
    return _same_axes(grid, Side(ordered, (), axes), which).to_index(ordered)


def _same_axes(grid: Grid, side: Side, which: str) -> Grid:
    """The grid of an image, in µm, in the order of the axes of points."""
    if grid.ndim != len(side.axes):
        raise InputError(
            f"the {which} landmarks have {len(side.axes)} coordinates and the image {grid.ndim} "
            "axes"
        )
    return grid.in_unit("micrometer").reorder(side.axes)


def joined(
    pairs: Pairs, points: tuple[NDArray[np.float64], NDArray[np.float64]], unit: str
) -> Landmarks:
    """Join points in µm and x, y, z to landmarks; the unit is that of the fixed ones' file."""
    sigma, unit = None, pairs.sigma_unit or unit
    if pairs.sigma is not None:
        if unit == VOXEL:
            raise InputError(
                "how exactly landmarks were placed is stated in voxels: state it in µm, in a "
                "column sigma_um"
            )
        sigma = pairs.sigma * micrometers(unit)
    axes = default_axes(points[0].shape[1])
    return Landmarks(*points, names=pairs.fixed.names, sigma_um=sigma, axes=axes)
