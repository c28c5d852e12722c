"""Measure what landmarks do where the images show nothing.

    python tests/benchmarks/bare_tissue.py [--size 96] [--seeds 3] [--methods lcc bspline ...]

A phantom of nuclei whose inner part shows only noise in both images. Ninety landmarks are placed
there with a random error; sixty are soft constraints, the others judge. The target registration
error is given in voxels: of the landmarks that are held out, of the bare tissue, of the textured
tissue, and at the first landmark, with the folds and the least Jacobian determinant; without
landmarks, with them, and with the first of them wrong by 50 µm.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import map_coordinates

from itkstream.estimate.landmarks import weigh_landmarks
from itkstream.geometry import AffineTransform, Grid, Image, Landmarks
from itkstream.numerics.engines import deform_block
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, SyntheticTransform, make_pair
from itkstream.registration.steps import Deformable

__all__ = ["BareCase", "Score", "make_case", "measure"]

_PLACED = 90
_HELD_OUT = 1 / 3
_WRONG_UM = 50.0
_BUMPS = 10
_BUMP_WIDTH = 0.2


@dataclass(frozen=True, eq=False)
class BareCase:
    """A pair, images whose inner part is bare, that part's voxels, and landmarks in it."""

    pair: PhantomPair
    fixed: Image
    moving: Image
    bare: NDArray[np.bool_]
    fitted: Landmarks
    held_out: Landmarks

    truth: SyntheticTransform

    @property
    def start(self) -> AffineTransform:
        """The affine part of the truth."""
        return AffineTransform(np.array(self.truth.matrix))

    def with_one_wrong(self) -> Landmarks:
        """The landmarks to fit by, the first 50 µm off."""
        moving = np.array(self.fitted.moving)
        moving[0] += _WRONG_UM / np.sqrt(moving.shape[1])
        return replace(self.fitted, moving=moving)


@dataclass(frozen=True)
class Score:
    """Median target registration errors in voxels, folds, and the least Jacobian determinant.

    `first` is the error, against the truth, at the first landmark: the one that may be wrong.
    """

    held_out: float
    bare: float
    textured: float
    first: float
    folds: int
    least_jacobian: float


def make_case(size: int, seed: int, placed_within: float = 0.5) -> BareCase:
    """Make a pair of `size` voxels along the first axis; landmarks err by so many µm."""
    shape = (size, size * 5 // 6, size * 2 // 3)
    still = Motion(rotation_deg=0, stretch=0, shear=0, shift=0, warp_um=0)
    pair = make_pair(PhantomSettings(shape, (1.0, 1.0, 1.5), seed, motion=still))
    rng = np.random.default_rng([seed, 17])
    points = pair.fixed.grid.positions()
    bare, truth = _inner(pair, points), _draw_truth(pair, rng)
    there = truth.inverse(points)
    index = pair.moving.grid.to_index(there)
    moved = map_coordinates(pair.moving.read(), np.moveaxis(index, -1, 0), order=3, mode="nearest")
    fixed = _emptied(pair.fixed, bare, rng)
    moving = _emptied(Image(moved, pair.moving.grid), _inner(pair, there), rng)
    chosen = rng.choice(np.flatnonzero(bare), _PLACED, replace=False)
    places = points.reshape(-1, 3)[chosen] + rng.uniform(-0.5, 0.5, (_PLACED, 3))
    placed = truth(places) + rng.normal(0, placed_within, (_PLACED, 3)) / np.sqrt(3)
    marks = Landmarks(places, placed, sigma_um=placed_within, axes=pair.fixed.grid.axes)
    return BareCase(pair, fixed, moving, bare, *marks.hold_out(_HELD_OUT, seed), truth)


def _draw_truth(pair: PhantomPair, rng: np.random.Generator) -> SyntheticTransform:
    """Draw an affine and bumps, most of them in the bare part, that leave volumes above 0.4."""
    grid = pair.fixed.grid
    ends = grid.corners()
    low, extent = ends.min(axis=0), np.ptp(ends, axis=0)
    matrix = np.eye(4)
    matrix[:3, :3] += rng.normal(0, 0.01, (3, 3))
    matrix[:3, 3] = rng.normal(0, 2.0, 3)
    centres = low + extent * rng.uniform(0.25, 0.75, (_BUMPS, 3))
    widths = np.full(_BUMPS, _BUMP_WIDTH * extent.min())
    vectors = rng.normal(size=(_BUMPS, 3)) * 0.6 * widths[0]
    points = grid.positions()[::4, ::4, ::4]
    while True:
        truth = SyntheticTransform(matrix, centres, vectors, widths)
        if truth.jacobian_determinant(points).min() > 0.4:
            return truth
        vectors = 0.9 * vectors


def _inner(pair: PhantomPair, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The points within an ellipsoid of half of the image's extents."""
    ends = pair.fixed.grid.corners()
    centre, half = ends.mean(axis=0), np.ptp(ends, axis=0) / 2
    return np.asarray((((points - centre) / (0.55 * half)) ** 2).sum(axis=-1) < 1)


def _emptied(image: Image, bare: NDArray[np.bool_], rng: np.random.Generator) -> Image:
    """An image with nothing but noise in a part of it."""
    voxels = np.array(image.read())
    level = float(np.median(voxels[bare]))
    noise = rng.normal(level, max(1.0, np.sqrt(level)), int(bare.sum()))
    voxels[bare] = np.clip(np.rint(noise), 0, np.iinfo(voxels.dtype).max).astype(voxels.dtype)
    return Image(voxels, image.grid, image.name)


def measure(case: BareCase, method: str, landmarks: Landmarks | None) -> Score:
    """Deform from the true affine, and compare with the truth."""
    grid = case.fixed.grid
    settings = Deformable(method).settings_for(grid.spacing)
    marks = None if landmarks is None else weigh_landmarks(landmarks)
    estimate = deform_block(case.fixed, case.moving, case.start, settings, marks)
    assert estimate.displacement is not None, estimate.reason
    u, affine = estimate.displacement, AffineTransform(estimate.initial.affine)
    points = grid.positions()
    miss = np.linalg.norm(affine.apply(points + u) - case.truth(points), axis=-1)
    held, first = case.held_out, case.fitted.select([0]).fixed
    away = affine.apply(held.fixed + _sampled(u, grid, held.fixed)) - held.moving
    astray = affine.apply(first + _sampled(u, grid, first)) - case.truth(first)
    jacobian = jacobian_determinant(u, grid)
    voxel = min(grid.spacing)
    textured = case.pair.tissue & ~case.bare
    return Score(
        float(np.median(np.linalg.norm(away, axis=1))) / voxel,
        float(np.median(miss[case.bare])) / voxel,
        float(np.median(miss[textured])) / voxel,
        float(np.linalg.norm(astray)) / voxel,
        int((jacobian <= 0).sum()),
        float(jacobian.min()),
    )


def _sampled(
    u: NDArray[np.float32], grid: Grid, points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A displacement at some points."""
    index = grid.to_index(points).T
    parts = [map_coordinates(u[..., c], index, order=1, mode="nearest") for c in range(3)]
    return np.stack(parts, axis=-1).astype(np.float64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the methods that were asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="voxels along the first axis")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["lcc"])
    options = parser.parse_args(arguments)
    table = Table("method", "landmarks", *_ERRORS, "folds", "least Jacobian")
    for method in options.methods:
        scores: dict[str, list[Score]] = {}
        for seed in range(options.seeds):
            case = make_case(options.size, seed)
            marks = {"none": None, "60": case.fitted, "60, one wrong": case.with_one_wrong()}
            for name, given in marks.items():
                scores.setdefault(name, []).append(measure(case, method, given))
        for name, found in scores.items():
            table.add_row(method, name, *_cells(found))
    Console(width=110).print(table)


def _cells(scores: Sequence[Score]) -> list[Any]:
    """Medians over the seeds; the most folds and the least determinant of any."""
    errors = [f"{np.median([getattr(s, n) for s in scores]):.2f}" for n in _ERRORS]
    folds = str(max(s.folds for s in scores))
    return [*errors, folds, f"{min(s.least_jacobian for s in scores):.2f}"]


_ERRORS = ("held_out", "bare", "textured", "first")

if __name__ == "__main__":
    main()
