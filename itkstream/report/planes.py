"""Planes of a report: where they lie, and everything that is drawn of each, on square pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.deformation.correlation import local_correlation
from itkstream.numerics.evidence.quality import WINDOW_RADIUS_VOX
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.report.sources import PIXELS, Sources, sampled

__all__ = ["Cut", "Picture", "Plane", "cut_planes", "cut_through", "middle_cuts", "picture_grid"]

Picture = NDArray[np.float32]
"""Values of a plane, rows and columns; NaN where there are none."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A plane through a lattice: axes (rows, columns), and where it lies across the third."""

    rows: int
    columns: int
    across: int | None
    at: int

    def picture(self, values: NDArray[np.generic]) -> Picture:
        """Lay the values of a slab of one voxel out as rows and columns."""
        flat = np.asarray(values, np.float32)
        if self.across is not None:
            flat = np.take(flat, flat.shape[self.across] // 2, self.across)
        return flat if self.rows < self.columns else flat.T


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane through both images and all that is drawn of it; `grid` is one pixel thick.

    `covered` is true where the moving image shows something, `tissue` where the fixed one does.
    `error_um` is None where no error was predicted, `borders` where no regions are known; else it
    is 1 on borders of regions and NaN elsewhere. `moves_um` are the displacement vectors within
    the plane (rows, columns) of the deformation, `size_um` their length in space.
    """

    cut: Cut
    name: str
    grid: Grid
    across: str
    position_um: float
    fixed: Picture
    before: Picture
    after: Picture
    covered: NDArray[np.bool_]
    tissue: NDArray[np.bool_]
    correlation: tuple[Picture, ...]
    error_um: Picture | None
    moves_um: NDArray[np.float32]
    size_um: Picture
    jacobian: Picture
    borders: Picture | None = None

    @property
    def pixel_um(self) -> float:
        """Side of a pixel."""
        return self.grid.spacing[self.cut.rows]

    @property
    def extent_um(self) -> tuple[float, float]:
        """Width and height."""
        rows, columns = self.fixed.shape
        return columns * self.pixel_um, rows * self.pixel_um


def cut_planes(sources: Sources) -> tuple[Plane, ...]:
    """Cut both images by the planes through the middle of the tissue; a 2-D image is one plane."""
    cuts = middle_cuts(sources.fixed.grid, sources.tissue)
    return tuple(_plane(sources, cut) for cut in cuts)


def middle_cuts(grid: Grid, tissue: Image) -> list[Cut]:
    """Name the planes of a lattice through the middle of a mask of tissue, one per pair of axes."""
    middle = _middle(tissue, grid)
    order = sorted(range(grid.ndim), key=lambda axis: grid.axes[axis])
    return [_cut_of(columns, rows, middle) for columns, rows in combinations(order, 2)]


def cut_through(grid: Grid, index: Sequence[int]) -> Cut:
    """Name the plane of finest voxels through a voxel."""
    by_name = sorted(range(grid.ndim), key=lambda axis: grid.axes[axis])
    finest = sorted(by_name, key=lambda axis: grid.spacing[axis])[:2]
    columns, rows = sorted(finest, key=lambda axis: grid.axes[axis])
    return _cut_of(columns, rows, index)


def picture_grid(grid: Grid, cut: Cut, pixels: int = PIXELS) -> Grid:
    """Make a lattice of square pixels, as fine as the voxels if so many suffice, in a plane."""
    axes = (cut.rows, cut.columns)
    lengths = {axis: grid.shape[axis] * grid.spacing[axis] for axis in axes}
    side = max(min(grid.spacing[axis] for axis in axes), max(lengths.values()) / pixels)
    shape, spacing, first = [1] * grid.ndim, list(grid.spacing), [float(cut.at)] * grid.ndim
    for axis in axes:
        shape[axis] = max(1, round(lengths[axis] / side))
        spacing[axis] = side
        first[axis] = side / grid.spacing[axis] / 2 - 0.5
    origin = tuple(grid.to_physical(first))
    return Grid(tuple(shape), tuple(spacing), origin, grid.direction, grid.axes, grid.unit)


def _plane(sources: Sources, cut: Cut) -> Plane:
    """Collect everything that is drawn of a plane."""
    lattice = sources.fixed.grid
    grid = picture_grid(lattice, cut)

    def draw(image: Image, nearest: bool = False) -> Picture:
        return cut.picture(sampled(image, grid, nearest=nearest))

    moves, size, jacobian = _deformation(sources, grid, cut)
    return Plane(
        cut=cut,
        name=f"{lattice.axes[cut.columns]}{lattice.axes[cut.rows]}",
        grid=grid,
        across="" if cut.across is None else lattice.axes[cut.across],
        position_um=_position(lattice, cut),
        fixed=draw(sources.fixed.level),
        before=draw(sources.moving.level),
        after=draw(sources.aligned.level),
        covered=cut.picture(sources.covered(grid)) > 0,
        tissue=draw(sources.tissue, nearest=True) > 0,
        correlation=tuple(draw(found) for found in _correlations(sources, cut)),
        error_um=draw(sources.error, nearest=True) if sources.error else None,
        moves_um=moves,
        size_um=size,
        jacobian=jacobian,
        borders=_borders(sources.annotation, grid, cut) if sources.annotation else None,
    )


def _correlations(sources: Sources, cut: Cut) -> tuple[Image, Image]:
    """Map the local correlation with the moving image, before and after, in a plane."""
    box = _slab(sources.fixed.grid.shape, cut, WINDOW_RADIUS_VOX)
    fixed = sources.fixed.level[box]
    voxels, covered = fixed.read(), sources.covered(fixed.grid)
    before, after = sources.moving.on(fixed.grid), sources.aligned.on(fixed.grid)
    after = np.where(covered, after, np.float32(np.nan))
    at = cut.at - (0 if cut.across is None else box[cut.across].start)
    middle = _slab(fixed.shape, replace(cut, at=at), 0)
    found = (local_correlation(voxels, other, WINDOW_RADIUS_VOX) for other in (before, after))
    first, second = (Image(values.astype(np.float32), fixed.grid)[middle] for values in found)
    return first, second


def _deformation(
    sources: Sources, grid: Grid, cut: Cut
) -> tuple[NDArray[np.float32], Picture, Picture]:
    """Read the nodes of the field around a plane: its vectors, their length, local volume."""
    field = sources.transform.field
    if cut.across is None:
        node = 0
    else:
        node = int(np.rint(field.grid.to_index(grid.to_physical([0] * grid.ndim))[cut.across]))
        node = min(max(node, 0), field.grid.shape[cut.across] - 1)
    box = _slab(field.grid.shape, replace(cut, at=node), 1)
    near = field.grid.crop(box)
    vectors = np.asarray(field.data[(*box, slice(None))], np.float32)
    parts = [sampled(Image(vectors[..., axis], near), grid) for axis in range(grid.ndim)]
    shown = Image(jacobian_determinant(vectors, near), near)
    size = cut.picture(np.sqrt(sum(np.square(part) for part in parts)))
    along = np.tensordot(np.asarray(grid.direction).T, np.stack(parts), 1)
    moves = np.stack([cut.picture(along[axis]) for axis in (cut.rows, cut.columns)], axis=-1)
    return moves, size, cut.picture(sampled(shown, grid))


def _borders(labels: Image, grid: Grid, cut: Cut) -> Picture:
    """Mark the pixels of a plane whose label is not that of the next pixel along a side."""
    here = AffineTransform(np.eye(grid.ndim + 1))
    # As whole numbers: large labels are not told apart as float32.
    found = warp_block(labels, here, grid, WarpSettings("nearest", background=0))
    edges = np.zeros(found.shape, bool)
    for axis in (cut.rows, cut.columns):
        last = np.take(found, [-1], axis)
        edges |= np.diff(found, axis=axis, append=last) != 0
    return cut.picture(np.where(edges, np.float32(1), np.float32(np.nan)))


def _cut_of(columns: int, rows: int, index: Sequence[int]) -> Cut:
    across = [axis for axis in range(len(index)) if axis not in (rows, columns)]
    return Cut(rows, columns, across[0] if across else None, index[across[0]] if across else 0)


def _slab(shape: Sequence[int], cut: Cut, reach: int) -> tuple[slice, ...]:
    """The voxels within so many of a plane; all of a 2-D lattice."""
    box = [slice(0, n) for n in shape]
    if cut.across is not None:
        at, n = cut.at, shape[cut.across]
        box[cut.across] = slice(max(0, at - reach), min(n, at + reach + 1))
    return tuple(box)


def _position(grid: Grid, cut: Cut) -> float:
    """The place of a plane across, from the first voxel of the image."""
    return 0.0 if cut.across is None else cut.at * grid.spacing[cut.across]


def _middle(tissue: Image, grid: Grid) -> list[int]:
    """The voxel that has as much tissue on either side, along each axis."""
    voxels = tissue.read()
    index = np.array([n // 2 for n in voxels.shape], float)
    if voxels.any():
        index = np.array([np.median(found) for found in np.nonzero(voxels)])
    inside = np.rint(grid.to_index(tissue.grid.to_physical(index))).astype(int)
    return [int(np.clip(i, 0, n - 1)) for i, n in zip(inside, grid.shape, strict=True)]
