"""Sources of a report: what a registration folder holds, and images at the level that is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.inputs import as_pair
from itkstream.blocks.levels import factors_to_fit, read_coarse
from itkstream.blocks.proven_levels import finest_needed
from itkstream.blocks.sources import readable
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.geometry.chains import FieldChain
from itkstream.io import open_image, open_series
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.io.transforms.ngff.store import read_transform, stored_axes
from itkstream.numerics.evidence.quality import tissue_mask
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, WarpSettings, warp_block
from itkstream.registration.folder import (
    ALIGNED,
    ANNOTATION,
    ERROR,
    TRANSFORM,
    kept_level,
    read_report,
    registered_images,
)

__all__ = ["PIXELS", "Sources", "View", "open_sources", "sampled", "view_of"]

PIXELS = 600
"""The most pixels of a picture along its longer side."""

_NEAREST = WarpSettings("nearest", background=np.nan, dtype=np.float32)

# The whole image is seen in so many voxels, to find its tissue and its worst places.
_OVERVIEW_VOXELS = 1e6
# A level of a file that is at most so many times as large as the one wanted is averaged; of a
# larger one every n-th voxel is drawn, so that a page of a terabyte takes seconds.
_AVERAGED = 8


@dataclass(frozen=True, eq=False)
class View:
    """An image at the level that is drawn: averaged and in memory, or every n-th voxel, lazy."""

    level: Image
    decimated: bool = False

    @property
    def grid(self) -> Grid:
        """The lattice of the level."""
        return self.level.grid

    def overview(self) -> Image:
        """Read the whole image, averaged to about a million voxels."""
        return read_coarse(self.level, factors_to_fit(self.grid, _OVERVIEW_VOXELS))

    def on(self, grid: Grid) -> NDArray[np.float32]:
        """Sample values on a lattice, NaN outside; only what these need is read."""
        return sampled(self.level, grid)


@dataclass(frozen=True, eq=False)
class Sources:
    """A registration folder, opened: images in µm, on the axes of the fixed one."""

    folder: Location
    facts: dict[str, Any]
    pair: tuple[Image, Image]
    fixed: View
    moving: View
    aligned: View
    transform: FieldChain
    error: Image | None
    annotation: Image | None = None

    @cached_property
    def overviews(self) -> tuple[Image, NDArray[np.float32]]:
        """The whole fixed and the whole aligned image, on one lattice of a million voxels.

        The aligned one is NaN where the moving image shows nothing.
        """
        fixed = self.fixed.overview()
        aligned = sampled(self.aligned.overview(), fixed.grid)
        return fixed, np.where(self.covered(fixed.grid), aligned, np.float32(np.nan))

    @cached_property
    def tissue(self) -> Image:
        """Voxels of the overview that show tissue of the fixed image."""
        fixed = self.overviews[0]
        return Image(tissue_mask(fixed.read()), fixed.grid)

    def covered(self, grid: Grid) -> NDArray[np.bool_]:
        """Points of a lattice that the affine, without the field, maps into the moving image."""
        moving = self.pair[1].grid
        matrix = moving.inverse_matrix @ self.transform.affine.matrix @ grid.matrix
        axes = np.meshgrid(*map(np.arange, grid.shape), indexing="ij", sparse=True)
        inside = np.ones(grid.shape, bool)
        for row, n in zip(matrix, moving.shape, strict=False):
            index = row[-1] + sum(step * i for step, i in zip(row, axes, strict=False))
            inside &= (index > -0.5) & (index < n - 0.5)
        return inside


def open_sources(folder: Location, images: tuple[Image, Image] | None = None) -> Sources:
    """Open a registration folder; images may be given that registration.json does not name.

    Raises a `MissingDataError` where the folder is none, or an image is not where it was.
    """
    facts = read_report(str(folder))
    fixed, moving = as_pair(*(images or registered_images(str(folder))), None, None)
    fixed = readable(fixed)
    aligned = _stored(folder / ALIGNED, fixed.grid)
    voxels = facts["settings"]["coarse_voxels"]
    return Sources(
        folder,
        facts,
        (fixed, moving),
        view_of(fixed, voxels, kept_level(folder, "fixed")),
        view_of(moving, voxels, kept_level(folder, "moving")),
        view_of(aligned, voxels),
        FieldChain.of(read_transform(folder / TRANSFORM, fixed.grid.axes)),
        _stored(folder / ERROR, fixed.grid) if (folder / ERROR).exists() else None,
        _labels(folder / ANNOTATION, fixed.grid.shrink(factors_to_fit(fixed.grid, voxels))),
    )


def sampled(image: Image, grid: Grid, *, nearest: bool = False) -> NDArray[np.float32]:
    """Sample an image on a lattice of the same space, NaN outside."""
    here = AffineTransform(np.eye(grid.ndim + 1))
    values = warp_block(image, here, grid, _NEAREST if nearest else NAN_OUTSIDE)
    return np.asarray(values, np.float32)


def _stored(place: Location, grid: Grid) -> Image:
    """Open an image of the folder, on the axes and in the unit of a lattice."""
    found = open_image(str(place), axes=stored_axes(grid))
    return found.reorder(grid.axes).in_unit(grid.unit)


def _labels(place: Location, drawn: Grid) -> Image | None:
    """Open regions of the fixed image, at the coarsest level that is as fine as what is drawn."""
    if not place.exists():
        return None
    levels = open_series(str(place), "level", axes=stored_axes(drawn))
    fitting = [level for level in levels if level.grid.size >= drawn.size]
    return (fitting or levels)[-1 if fitting else 0].reorder(drawn.axes).in_unit(drawn.unit)


def view_of(image: Image, voxels: float, kept: Location | None = None) -> View:
    """Find the level of an image that the registration used, without averaging a large one."""
    factors = factors_to_fit(image.grid, voxels)
    grid = image.grid.shrink(factors)
    if max(factors) > 1 and kept is not None and kept.exists():
        array = ZarrArray.open(kept)
        if tuple(array.shape) == grid.shape:
            return View(_no_finer_than_pixels(Image(array, grid, image.name)))
    level, rest = finest_needed(image, factors)
    if level.grid.size <= _AVERAGED * voxels:
        return View(_no_finer_than_pixels(read_coarse(level, rest)))
    # From the middle of the first group, so that nothing is shifted by more than half a voxel.
    starts = (f // 2 if n > f else 0 for f, n in zip(rest, level.shape, strict=True))
    steps = zip(starts, rest, strict=True)
    return View(level[tuple(slice(start, None, step) for start, step in steps)], decimated=True)


def _no_finer_than_pixels(image: Image) -> Image:
    """Read an image, averaged in as many whole voxels as lie in a pixel of its longest side."""
    longest = max(n * h for n, h in zip(image.shape, image.spacing, strict=True))
    return read_coarse(image, [max(1, int(longest / PIXELS / h)) for h in image.spacing])
