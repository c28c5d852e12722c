"""How often the right start is found, and how often a wrong one is called convincing.

    python tests/benchmarks/starts.py --trials 100 [--kinds nuclei easifish membranes ...]

Each trial turns the moving image of a pair by 0 to 180 degrees about a random axis, shifts it by up
to 30 % of its extent in a random direction so that 60 to 100 % of the fixed image still lies in it,
adds noise, and does the first step of the default chain, `RansacAffine()`. Right is an affine whose
median error over the part that both show is below so many voxels; it is wrong and "convincing" that
must not be. The trials of a kind are seeded by their number.

Kinds: `nuclei` (phantoms, drawn anew in each trial; warped, restained, 4 % missing), and where they
are there, `easifish` (a crop) and the real pairs of ../shared/data (or of the folder that the
variable ITKSTREAM_DATA names). Where a pair shows two
individuals, the reference is what the same step finds on the pair as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from itkstream.errors import RegistrationError
from itkstream.geometry import AffineTransform, Image
from itkstream.io import open_image
from itkstream.numerics.matching.ransac import fit_affine
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.phantoms import Motion, PhantomSettings, make_pair
from itkstream.progress.reporters import LogReporter
from itkstream.registration.scene import Finding, Scene, State
from itkstream.registration.steps import RansacAffine
from itkstream.workers import Resources

DATA = Path(os.environ.get("ITKSTREAM_DATA", Path(__file__).parents[3] / "shared" / "data"))

_LEAST_OVERLAP, _SHIFT = 0.6, 0.3
_NOISE = 0.03
# Individuals differ by more than an affine, and their reference is one of many that are as good: so
# many voxels, or this share of the longest side.
_RIGHT, _RIGHT_BETWEEN, _SHARE_BETWEEN = 3.0, 12.0, 0.05
_POINTS = 4000

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images, the affine between them, and the greatest error that is right, in voxels."""

    fixed: Image
    moving: Image
    matrix: Floats
    right: float = _RIGHT


def nuclei(trial: int) -> Pair:
    """A phantom of its own for each trial."""
    motion = Motion(rotation_deg=2, stretch=0.03, shear=0.02, shift=0.03, warp_um=3)
    made = make_pair(
        PhantomSettings((104, 96, 72), (1.0, 1.0, 1.3), trial, radii_um=(3.0, 7.0), motion=motion)
    )
    return Pair(made.fixed, made.moving, np.array(made.truth.matrix))


def easifish(_: int) -> Pair:
    """A crop of two rounds of expansion microscopy, with the affine of a published run."""
    fixed, moving = (open_image(DATA / "easifish" / f"{n}.n5/lowres") for n in ("fix", "mov"))
    linear = [[0.9911, 0.0340, -0.0056], [-0.0387, 1.0202, -0.0063], [0.0119, -0.0221, 0.9674]]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, (-81.26, -13.35, -0.24)
    if fixed.grid.axes[0] == "z":
        matrix[:3, :3], matrix[:3, 3] = matrix[2::-1, 2::-1], matrix[2::-1, 3]
    order = fixed.grid.axis_order(("x", "y", "z"))
    start = np.array([160, 60, 20])[list(order)]
    crop = tuple(slice(s, s + 112) for s in start)
    other = moving.grid.to_index(AffineTransform(matrix).apply(fixed.grid.to_physical(start)))
    there = tuple(slice(max(int(s), 0), max(int(s), 0) + 112) for s in other)
    return Pair(_in_memory(fixed[crop]), _in_memory(moving[there]), matrix)


def real(name: str) -> Callable[[int], Pair]:
    """A real pair by its name."""

    def load(_: int) -> Pair:
        fixed, moving = (
            _in_memory(open_image(DATA / "real" / f"{name}_{which}.nrrd"))
            for which in ("fixed", "moving")
        )
        right = max(_RIGHT_BETWEEN, _SHARE_BETWEEN * max(fixed.shape))
        truth = DATA / "real" / f"{name}_truth.npz"
        if truth.exists():
            points = np.load(truth)
            unit = float(fixed.spacing[0]) / float(_own_spacing(name))
            pair = (points[which][:, ::-1] * unit for which in ("fixed", "moving"))
            return Pair(fixed, moving, fit_affine(*pair), right)
        found = first_affine(fixed, moving)
        assert isinstance(found, Finding)
        return Pair(fixed, moving, _matrix(found), right)

    return load


def _own_spacing(name: str) -> float:
    """The last spacing that a file states, in its own unit."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(DATA / "real" / f"{name}_fixed.nrrd"))
    reader.ReadImageInformation()
    return float(reader.GetSpacing()[-1])


REAL = (
    *("cell_membranes_2d", "vessels_2d", "histology_neighbours", "membranes", "neuron"),
    *("mouse_turned", "mri_lungs", "mri_to_template", "zf_fish_to_fish", "zf_two_stains"),
)
KINDS: dict[str, Callable[[int], Pair]] = {
    "nuclei": nuclei,
    "easifish": easifish,
    **{name: real(name) for name in REAL},
}


def _in_memory(image: Image) -> Image:
    return Image(np.asarray(image.read(), np.float32), image.grid, image.name)


def turned(pair: Pair, trial: int) -> Pair:
    """The pair with its moving image turned and shifted."""
    rng = np.random.default_rng(trial)
    move = _motion(pair, rng)
    voxels = np.asarray(pair.moving.read(), np.float32)
    settings = WarpSettings(background=float(np.percentile(voxels, 1)), dtype=np.float32)
    moved = warp_block(Image(voxels, pair.moving.grid), move, pair.moving.grid, settings)
    moved = moved + rng.normal(0, _NOISE * voxels.std(), moved.shape).astype(np.float32)
    matrix = np.linalg.inv(move.matrix) @ pair.matrix
    return Pair(pair.fixed, Image(moved, pair.moving.grid), matrix, pair.right)


def _motion(pair: Pair, rng: np.random.Generator) -> AffineTransform:
    """From points of the turned image to the original one, far apart and with enough overlap."""
    grid, n = pair.moving.grid, pair.moving.ndim
    middle = grid.to_physical((np.array(grid.shape) - 1) / 2)
    extent = np.multiply(grid.shape, grid.spacing)
    while True:
        angle = np.deg2rad(rng.uniform(0, 180))
        if n == 2:
            c, s = np.cos(angle), np.sin(angle)
            turn = np.array([[c, -s], [s, c]])
        else:
            axis = rng.normal(size=3)
            turn = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
        way = rng.normal(size=n)
        matrix = np.eye(n + 1)
        matrix[:n, :n] = turn
        shift = rng.uniform(0, _SHIFT) * extent * way / np.linalg.norm(way)
        matrix[:n, n] = middle - turn @ middle + shift
        if _shared(pair, np.linalg.inv(matrix) @ pair.matrix)[1] >= _LEAST_OVERLAP:
            return AffineTransform(matrix)


def _shared(pair: Pair, matrix: Floats) -> tuple[Floats, float]:
    """Fixed points that lie in the moving image, and their share of all that did."""
    n = pair.fixed.ndim
    points = np.random.default_rng(0).uniform(-0.5, np.array(pair.fixed.shape) - 0.5, (_POINTS, n))
    points = pair.fixed.grid.to_physical(points)

    def inside(which: Floats) -> NDArray[np.bool_]:
        index = pair.moving.grid.to_index(AffineTransform(which).apply(points))
        return ((index >= -0.5) & (index < np.array(pair.moving.shape) - 0.5)).all(axis=1)

    both = inside(matrix) & inside(pair.matrix)
    return points[both], float(both.sum() / max(inside(pair.matrix).sum(), 1))


def first_affine(fixed: Image, moving: Image) -> Any:
    """What the first step of the default chain finds."""
    levels = (lambda: fixed, lambda: moving)
    scene = Scene(fixed, moving, 20e6, Resources(), LogReporter(), levels)
    return RansacAffine().find(scene, State(None, 0.0), lambda: None)  # type: ignore[arg-type]


def _matrix(found: Finding) -> Floats:
    assert isinstance(found.change, AffineTransform)
    return np.asarray(found.change.matrix)


def attempt(kind: str, trial: int) -> dict[str, Any]:
    """One trial: error in voxels, what was said of it, seconds."""
    pair = turned(KINDS[kind](trial), trial)
    began = time.perf_counter()
    row: dict[str, Any] = {"kind": kind, "trial": trial}
    try:
        found = first_affine(pair.fixed, pair.moving)
    except RegistrationError as error:
        seconds = round(time.perf_counter() - began, 1)
        return row | {"error": None, "outcome": "refused", "seconds": seconds, "said": str(error)}
    seconds = round(time.perf_counter() - began, 1)
    points, _ = _shared(pair, pair.matrix)
    one, other = (AffineTransform(m).apply(points) for m in (_matrix(found), pair.matrix))
    error = np.median(np.linalg.norm(one - other, axis=1)) / np.median(pair.fixed.spacing)
    outcome = found.facts["evidence"]["outcome"]
    return row | {
        "error": float(error),
        "right": bool(error < pair.right),
        "outcome": outcome,
        "seconds": seconds,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts over the trials of a kind."""
    right = [row for row in rows if row.get("right")]
    wrong = [row for row in rows if not row.get("right")]
    return {
        "kind": rows[0]["kind"],
        "trials": len(rows),
        "right": len(right),
        "wrong, convincing": sum(row["outcome"] == "convincing" for row in wrong),
        "wrong, doubtful": sum(row["outcome"] == "doubtful" for row in wrong),
        "refused": sum(row["outcome"] == "refused" for row in wrong),
        "right, doubtful": sum(row["outcome"] == "doubtful" for row in right),
        "median error": float(np.median([row["error"] for row in right])) if right else None,
        "median seconds": float(np.median([row["seconds"] for row in rows])),
    }


def _tell(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the trials of some kinds; one JSON line each, and one for each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args(arguments)
    for kind in options.kinds:
        rows = []
        for trial in range(options.first, options.first + options.trials):
            rows.append(attempt(kind, trial))
            _tell(rows[-1])
        _tell(summary(rows))


if __name__ == "__main__":
    main()
