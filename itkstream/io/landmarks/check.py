"""Landmarks seen beside their images: a wrong unit or order of axes puts them far outside."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid, Landmarks

__all__ = ["check_landmarks"]

Floats = NDArray[np.float64]

# Extents of an image by which a point may lie outside it, as after a rough start.
_MARGIN = 0.5
# Share of the points within that margin below which they are refused.
_LEAST_INSIDE = 0.5
# Another reading is named where such a share lies in the image itself or so near to it, and where
# the points span that share of it: any image near its origin holds numbers made small enough.
_FITTING, _NEAR, _LEAST_SPAN = 0.9, 0.05, 0.1


def check_landmarks(landmarks: Landmarks, fixed: Grid, moving: Grid) -> None:
    """Refuse landmarks that lie far outside their images, and say how they would lie inside.

    Landmarks and grids are in µm, with the same axes.
    """
    sides = (("fixed", landmarks.fixed, fixed), ("moving", landmarks.moving, moving))
    exchanged = _fits(landmarks.moving, fixed) and _fits(landmarks.fixed, moving)
    for which, points, grid in sides:
        inside = _share_inside(points, grid, _MARGIN)
        if inside >= _LEAST_INSIDE:
            continue
        fits = [text for text, p in _readings(points, grid) if _fits(p, grid)]
        fits += ["Fixed and moving landmarks seem to be exchanged"] if exchanged else []
        hint = fits[0] if fits else "Check their unit and the order of their axes"
        raise InputError(
            f"{round((1 - inside) * len(points))} of {len(points)} {which} landmarks lie far "
            f"outside the {which} image: they span {_span(points)} µm, and the image "
            f"{_span(grid.corners())}, {', '.join(grid.axes)}. {hint}"
        )


def _readings(points: Floats, grid: Grid) -> Iterator[tuple[str, Floats]]:
    """Other meanings of the same numbers, and what to do where one is right."""
    index, turned = grid.to_physical(points), points[:, ::-1]
    yield "As voxel indices they lie inside: read them with unit='voxel'", index
    yield "In millimeters they lie inside: read them with unit='millimeter'", points * 1e3
    yield "In nanometers they lie inside: read them with unit='nanometer'", points * 1e-3
    yield "With their axes in reverse order they lie inside: exchange x and z", turned
    yield (
        "As voxel indices with their axes in reverse order they lie inside: exchange x and z, and "
        "read them with unit='voxel'",
        grid.to_physical(turned),
    )
    signs = np.array([-1.0 if axis in ("x", "y") else 1.0 for axis in grid.axes])
    yield (
        "With the other sign of x and y they lie inside: they seem to be RAS, and ITK's "
        "coordinates are LPS",
        points * signs,
    )


def _fits(points: Floats, grid: Grid) -> bool:
    span = np.ptp(grid.to_index(points), axis=0) / grid.shape
    return _share_inside(points, grid, _NEAR) >= _FITTING and span.max() >= _LEAST_SPAN


def _share_inside(points: Floats, grid: Grid, margin: float) -> float:
    """Share of the points in a grid, or no more than so many of its extents outside."""
    size = np.asarray(grid.shape)
    index = grid.to_index(points)
    room = margin * size
    return float(((index >= -room) & (index <= size + room)).all(axis=1).mean())


def _span(points: Floats) -> str:
    ends = zip(points.min(axis=0), points.max(axis=0), strict=True)
    return " x ".join(f"({low:.4g} to {high:.4g})" for low, high in ends)
