"""A brain and an atlas whose regions are formulas of the place, and a known map between them.

Inside an ellipsoid lie two sheets below the surface, each in two halves, an unlike ventricle-like
body and eight nuclei; every region has its own brightness, and a fine texture covers all. The brain
is the same body through a smooth, known map, with another contrast, noise, and lying otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.geometry import Grid, Image, Transform
from itkstream.phantoms import Motion, PhantomSettings, SyntheticTransform
from itkstream.phantoms.truth import draw_truth

__all__ = ["IDS", "PhantomBrain", "best_labels", "dice", "make_brain", "target_error"]

Floats = NDArray[np.float64]

# Allen's largest ids are beyond 2^24, where float32 holds whole numbers no more.
IDS = (997, 315, 16_777_217, 16_777_219, 312_782_574, 312_782_575, 607_344_830, 614_454_277)
IDS = (*IDS, 8, 73, 549, 4_294_967_295, 4_294_967_294)
"""Ids of the regions: sheets, core halves, nuclei."""

_NUCLEI = np.array(
    [
        (-0.3, 0.25, 0.2),
        (0.32, 0.2, 0.22),
        (-0.25, -0.3, 0.15),
        (0.28, -0.28, -0.2),
        (0.0, 0.35, -0.25),
        (-0.3, 0.0, -0.3),
        (0.05, -0.02, 0.35),
    ]
)
_NUCLEUS = 0.17  # radius, in half axes of the ellipsoid


@dataclass(frozen=True, eq=False)
class PhantomBrain:
    """Images of one phantom, the true labels of the brain, and how the brain lies.

    `truth` maps points of `straight`, the grid before the brain was turned, to template points.
    """

    brain: Image
    template: Image
    annotation: Image
    labels: NDArray[np.uint32]
    truth: SyntheticTransform
    straight: Grid
    orientation: str = "psl"


def make_brain(
    size: int = 72, seed: int = 0, warp_vox: float = 2.5, finer: int = 1
) -> PhantomBrain:
    """A template that lies asr, its annotation, and a brain that lies psl.

    The annotation's voxels are so many times finer than the template's.
    """
    shape = (size, int(size * 0.8), int(size * 0.9))
    spacing = (25.0, 25.0, 25.0)
    motion = Motion(rotation_deg=4, stretch=0.05, shear=0.02, shift=0.03, warp_um=25 * warp_vox)
    settings = PhantomSettings(shape, spacing, seed, radii_um=(60, 150), motion=motion)
    grid, truth = settings.fixed_grid, draw_truth(settings)
    body = _Body(grid, np.random.default_rng(seed))
    here, there = grid.positions(), truth(grid.positions().reshape(-1, 3)).reshape(*shape, 3)
    template = 400 * body.light(here)
    moved = body.light(there)
    rng = np.random.default_rng(seed + 1)
    brain = 900 * moved**0.8 + rng.normal(0, 12, shape) + 60
    stored = grid.reorder(("z", "y", "x"))

    def store(values: NDArray[np.generic], dtype: type, name: str) -> Image:
        voxels = np.clip(np.rint(np.transpose(values, (2, 1, 0))), 0, None).astype(dtype)
        return Image(voxels, stored, name)

    whole = store(brain, np.uint16, "brain")
    # asr to psl: the first and the third axis of z, y, x begin at their other end.
    turned = replace(whole, data=np.ascontiguousarray(whole.data[::-1, :, ::-1]))
    labels = np.transpose(body.labels(there), (2, 1, 0))[::-1, :, ::-1]
    first = tuple(-(h - h / finer) / 2 for h in spacing)
    fine = Grid(
        tuple(n * finer for n in shape), tuple(h / finer for h in spacing), first, axes="xyz"
    )
    ids = np.transpose(body.labels(fine.positions()), (2, 1, 0))
    return PhantomBrain(
        turned,
        store(template, np.uint16, "template"),
        Image(np.ascontiguousarray(ids), fine.reorder(("z", "y", "x")), "annotation"),
        np.ascontiguousarray(labels),
        truth,
        grid,
    )


def true_points(phantom: PhantomBrain) -> Floats:
    """The template point of each voxel of the brain as it is stored."""
    straight = phantom.straight
    there = phantom.truth(straight.positions().reshape(-1, 3)).reshape(*straight.shape, 3)
    # Stored as z, y, x, points too; the first and the third axis turned.
    return there.transpose(2, 1, 0, 3)[::-1, :, ::-1, ::-1]


def best_labels(phantom: PhantomBrain) -> NDArray[np.uint32]:
    """The annotation carried over by the true map."""
    index = np.rint(phantom.annotation.grid.to_index(true_points(phantom))).astype(int)
    inside = ((index >= 0) & (index < phantom.annotation.shape)).all(axis=-1)
    held = np.where(inside[..., None], index, 0)
    return np.where(inside, phantom.annotation.data[tuple(np.moveaxis(held, -1, 0))], 0)


def target_error(phantom: PhantomBrain, transform: Transform) -> Floats:
    """Distances in voxels from the true places, of every 27th voxel of the brain."""
    every = (slice(None, None, 3),) * 3
    tissue = phantom.labels[every] > 0
    here = phantom.brain.grid.positions()[every][tissue]
    apart = transform.apply(here) - true_points(phantom)[every][tissue]
    return np.linalg.norm(apart, axis=-1) / phantom.brain.spacing[0]


def dice(found: NDArray[np.integer], true: NDArray[np.integer], least: int) -> dict[int, float]:
    """Overlap of each region of at least so many true voxels."""
    ids, counts = np.unique(true[true > 0], return_counts=True)
    return {
        int(label): 2
        * float(((found == label) & (true == label)).sum())
        / float((found == label).sum() + (true == label).sum())
        for label, count in zip(ids, counts, strict=True)
        if count >= least
    }


class _Body:
    """The ellipsoid of a grid: labels and light of any of its points."""

    def __init__(self, grid: Grid, rng: np.random.Generator) -> None:
        self._grid = grid
        extent = np.array(grid.shape) * np.array(grid.spacing)
        self._middle, self._half = grid.to_physical((np.array(grid.shape) - 1) / 2), 0.41 * extent
        self._levels = rng.uniform(0.45, 1.0, len(IDS) + 1)
        self._levels[0] = 0
        noise = rng.normal(size=(2, *grid.shape))
        fine, coarse = (
            ndimage.gaussian_filter(n, s) for n, s in zip(noise, (1.3, 3.0), strict=True)
        )
        self._texture = 0.1 * (fine / fine.std() + coarse / coarse.std())

    def regions(self, points: Floats) -> NDArray[np.intp]:
        """Number of the region of each point: 0 outside, then as in IDS."""
        p = (points - self._middle) / self._half
        depth = np.linalg.norm(p, axis=-1)
        right = (p[..., 0] > 0.04 * np.sin(5 * p[..., 1])).astype(np.intp)
        found = np.where(depth < 1, 1 + right, 0)
        found = np.where(depth < 0.84, 3 + right, found)
        found = np.where(depth < 0.66, 5 + right, found)
        for number, centre in enumerate(_NUCLEI):
            found = np.where(np.linalg.norm(p - centre, axis=-1) < _NUCLEUS, 7 + number, found)
        return found

    def labels(self, points: Floats) -> NDArray[np.uint32]:
        """Id of the region of each point."""
        return np.array((0, *IDS), np.uint32)[self.regions(points)]

    def light(self, points: Floats) -> Floats:
        """Brightness of each point, 0 outside."""
        regions = self.regions(points)
        index = np.moveaxis(self._grid.to_index(points), -1, 0)
        texture = ndimage.map_coordinates(self._texture, index, order=3, mode="reflect")
        return np.where(regions > 0, np.clip(self._levels[regions] + texture, 0.05, None), 0.0)
