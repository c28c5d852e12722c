"""The worst places of a registration: those the verdict names, else the least alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Grid
from itkstream.numerics.deformation.correlation import local_correlation
from itkstream.report.planes import Picture, cut_through, picture_grid
from itkstream.report.sources import Sources, sampled

__all__ = ["Place", "worst_places"]

_SHOWN = 6
_SIDE = 96  # voxels of the level that a thumbnail shows, along each side
_RADIUS = 6  # of the windows of the overview, in voxels
_TILE = 12  # voxels of the overview; a place is a tile
_LEAST_TISSUE = 0.5  # of a tile
_APART = 2  # tiles that lie between two places, so that no two pictures show the same


@dataclass(frozen=True, eq=False)
class Place:
    """A place that should be looked at: why, its box in fixed voxels, and both images there."""

    what: str
    box: tuple[tuple[int, int], ...]
    share_of_tissue: float | None
    plane: str
    fixed: Picture
    after: Picture


def worst_places(sources: Sources) -> tuple[Place, ...]:
    """Find the places that the verdict names; without one, where the images are least alike."""
    regions = (sources.facts.get("verdict") or {}).get("regions")
    if regions is None:
        regions = _least_alike(sources)
    return tuple(_place(sources, region) for region in regions[:_SHOWN])


def _place(sources: Sources, region: dict[str, Any]) -> Place:
    """Cut the images around the middle of a box, by the plane of finest voxels."""
    level, whole = sources.fixed.grid, sources.pair[0].grid
    box = tuple((int(a), int(b)) for a, b in region["box_voxels"])
    middle = whole.to_physical([(a + b - 1) / 2 for a, b in box])
    index = np.clip(np.rint(level.to_index(middle)).astype(int), 0, np.array(level.shape) - 1)
    cut = cut_through(level, [int(i) for i in index])
    part, corner = _around(level, [int(i) for i in index])
    inside = [int(i) - c for i, c in zip(index, corner, strict=True)]
    grid = picture_grid(part, cut_through(part, inside))
    return Place(
        str(region["what"]),
        box,
        region.get("share_of_tissue"),
        f"{level.axes[cut.columns]}{level.axes[cut.rows]}",
        cut.picture(sampled(sources.fixed.level, grid)),
        cut.picture(sampled(sources.aligned.level, grid)),
    )


def _around(grid: Grid, index: Sequence[int]) -> tuple[Grid, list[int]]:
    """The lattice of a window around a voxel, and its first voxel."""
    starts = [
        max(0, min(i - _SIDE // 2, n - _SIDE)) for i, n in zip(index, grid.shape, strict=True)
    ]
    stops = [min(n, s + _SIDE) for s, n in zip(starts, grid.shape, strict=True)]
    return grid.crop(tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))), starts


def _least_alike(sources: Sources) -> list[dict[str, Any]]:
    """Find the tiles of tissue with the least local correlation."""
    fixed, aligned = sources.overviews
    alike = local_correlation(fixed.read(), aligned, _RADIUS)
    counts = sources.tissue.read() & np.isfinite(alike)
    means = _tile_means(np.where(counts, alike, 0.0))
    shares = _tile_means(counts.astype(float))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(shares >= _LEAST_TISSUE, means / shares, np.inf)
    found: list[tuple[int, ...]] = []
    for k in np.argsort(means, axis=None, kind="stable"):
        tile = tuple(int(i) for i in np.unravel_index(k, means.shape))
        apart = all(np.abs(np.subtract(tile, other)).max() > _APART for other in found)
        if np.isfinite(means[tile]) and apart and len(found) < _SHOWN:
            found.append(tile)
    return [
        {
            "box_voxels": _box(sources, fixed.grid, tile),
            "what": f"local correlation {means[tile]:.2f}",
        }
        for tile in found
    ]


def _box(sources: Sources, overview: Grid, tile: Sequence[int]) -> list[tuple[int, int]]:
    """The box of a tile, in voxels of the fixed image."""
    grid = sources.pair[0].grid
    ends = np.array([[k * _TILE - 0.5 for k in tile], [(k + 1) * _TILE - 0.5 for k in tile]])
    index = np.rint(grid.to_index(overview.to_physical(ends)) + 0.5).astype(int)
    index = np.clip(index, 0, grid.shape)
    return [(int(a), int(b)) for a, b in index.T]


def _tile_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of tiles; those that stick out at the end are filled up with 0."""
    values = np.pad(values, [(0, -n % _TILE) for n in values.shape])
    shape = [side for n in values.shape for side in (n // _TILE, _TILE)]
    return np.asarray(values.reshape(shape).mean(axis=tuple(range(1, len(shape), 2))))
