"""Measure deformations where tissue is torn out, or other tissue lies in its place.

    python tests/benchmarks/torn.py [--size 96] [--seeds 2] [--kinds half slab ...]
        [--textures nuclei walls cloud] [--chain]

The moving image shows the tissue of the fixed one, moved by a known smooth map; a half, a quarter
or a slab of it shows other tissue instead, or none ("torn"). The deformation starts from the
affine of what is left. Given are median / 95th percentile of the distance to the truth in what is
left, 6 voxels off the border, and to the affine of what is left elsewhere: near the border, 25 and
40 voxels off it; with all content counting (``content="all"``) and by default. Kinds "sound" and
"gaps" (a tenth of the nuclei is missing in the moving image) must lose nothing. With ``--chain``
all default steps are done, without a start. "flagged" are the shares of what is missing and of
what is left of which the error map says more than 5 voxels, or nothing, and the verdict.

Measured with ``--size 84``, stiffness 1, all content and common:

================  ===========================  ===========================  ============
pair              sound                        near                         far (common)
================  ===========================  ===========================  ============
nuclei, half      0.08 / 0.29, 0.08 / 0.40     4.70 / 9.11, 1.58 / 4.24     1.81 / 2.23
nuclei, slab      0.08 / 0.22, 0.08 / 0.28     3.26 / 7.16, 1.54 / 4.18
walls, half       0.14 / 0.30, 0.13 / 0.29     2.71 / 7.53, 0.71 / 2.91     0.63 / 1.02
cloud, quarter    0.16 / 0.31, 0.16 / 0.31     3.22 / 8.33, 1.66 / 3.15     0.46 / 0.64
================  ===========================  ===========================  ============

With all content, far is 9.03 / 15.90, 4.49 / 8.42 and 9.94 / 12.85.

Half replaced, ``--size 112``, all default steps (``--chain``), seeds 0 to 2; the verdict is "look":

=======  ===========  ===========  ===========  ===========  ==========================
texture  sound        near         far          deep         flagged: missing, left
=======  ===========  ===========  ===========  ===========  ==========================
nuclei   0.05 / 0.13  0.68 / 2.41  1.04 / 1.40  1.17 / 1.47  1.00, 0.01
cloud    0.11 / 0.22  0.89 / 2.07  1.22 / 1.43  1.34 / 1.46  0.82, 0.03
walls    0.09 / 0.28  0.49 / 1.88  0.61 / 0.76  0.68 / 0.78  0.99, 0.04
=======  ===========  ===========  ===========  ===========  ==========================
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

import itkstream
from itkstream import Deformable
from itkstream.geometry import AffineTransform, Grid, Image, Transform
from itkstream.phantoms import SyntheticTransform
from itkstream.registration.settings import Content, RegisterSettings
from itkstream.registration.steps import DEFAULT_STEPS

__all__ = ["KINDS", "TEXTURES", "TornCase", "draw_truth", "main", "make_case", "measure"]

Floats = NDArray[np.float32]

KINDS = ("half", "quarter", "slab", "torn", "sound", "gaps")
_PAD = 12
_SLAB = 24
_NEAR, _FAR, _DEEP = 6.0, 25.0, 40.0
_OFF_VOX = 5.0
_BUMPS = 10


@dataclass(frozen=True, eq=False)
class TornCase:
    """Two images, the true map, and how far inside the missing part each fixed voxel lies.

    `depth` is negative where the moving image shows the tissue of the fixed one.
    """

    fixed: Image
    moving: Image
    truth: SyntheticTransform
    depth: Floats

    @property
    def start(self) -> AffineTransform:
        """The affine nearest to the truth where the images show the same."""
        points = self.fixed.grid.positions()[self.depth < 0][::7]
        known = np.c_[points, np.ones(len(points))]
        matrix = np.eye(4)
        matrix[:3] = np.linalg.lstsq(known, self.truth(points), rcond=None)[0].T
        return AffineTransform(matrix, self.fixed.grid.axes)


def make_case(kind: str, texture: str, size: int, seed: int) -> TornCase:
    """Make a pair of `size` voxels along the first axis, of edge 1 µm."""
    shape = (size, size * 5 // 6, size * 2 // 3)
    wide = tuple(n + 2 * _PAD for n in shape)
    grid = Grid(shape, (1.0,) * 3, axes=("z", "y", "x"))
    rng = np.random.default_rng([seed, 23])
    truth = draw_truth(grid, rng)
    here = truth.inverse(grid.positions())
    tissue, other = (TEXTURES[texture](wide, s) for s in (seed, seed + 1000))
    if kind == "gaps":
        moved = _sampled(nuclei(wide, seed, gaps=0.1), here)
    else:
        moved = _sampled(tissue, here)
    depth = _depth(kind, here, rng)
    if kind == "torn":
        other = np.full(wide, 0.02, np.float32)
    share = np.clip(depth / 2 + 0.5, 0, 1)
    moved = moved * (1 - share) + share * _sampled(other, grid.positions())
    fixed = tissue[(slice(_PAD, -_PAD),) * 3]
    images = (Image(_photographed(v, rng), grid) for v in (fixed, moved**0.9))
    index = np.moveaxis(truth(grid.positions()), -1, 0)
    back = ndimage.map_coordinates(depth, index, order=1, mode="nearest")
    return TornCase(*images, truth, back.astype(np.float32))


def nuclei(shape: tuple[int, ...], seed: int, gaps: float = 0.0) -> Floats:
    """Textured ellipsoids on a jittered lattice; so many of them are left out."""
    rng, lost = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    out = np.zeros(shape, np.float32)
    for cell in np.ndindex(*(n // 9 + 1 for n in shape)):
        centre, radii = (np.array(cell) + 0.5) * 9 + rng.uniform(-3, 3, 3), rng.uniform(3, 5, 3)
        bright, absent = rng.uniform(0.4, 1), rng.random() < 0.15
        low = np.maximum(0, centre - 1.6 * radii).astype(int)
        high = np.minimum(shape, centre + 1.6 * radii + 1).astype(int)
        if lost.random() < gaps or absent or (high <= low).any():
            continue
        box = tuple(map(slice, low, high))
        away = (np.moveaxis(np.indices(high - low), 0, -1) + low - centre) / radii
        light = bright / (1 + np.exp((np.linalg.norm(away, axis=-1) - 1) * 8))
        out[box] = np.maximum(out[box], light)
    grain = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    return np.clip(out * (1 + 0.25 * grain / grain.std()) + 0.03, 0, None).astype(np.float32)


def walls(shape: tuple[int, ...], seed: int) -> Floats:
    """Bright walls between the cells of random centres."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-8, np.add(shape, 8), (int(np.prod(shape) / 14**3 * 1.4), 3))
    points = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)
    near, _ = cKDTree(centres).query(points, 2)
    light = np.exp(-(((near[:, 1] - near[:, 0]) / 2) ** 2)) + 0.05
    return light.reshape(shape).astype(np.float32)


def cloud(shape: tuple[int, ...], seed: int) -> Floats:
    """Texture of several scales, as brain tissue has."""
    rng = np.random.default_rng(seed)
    waves = (ndimage.gaussian_filter(rng.normal(0, s**1.5, shape), s) for s in (1.5, 3, 6))
    light = np.sum(list(waves), axis=0)
    return np.clip(1 + 0.3 * light / light.std(), 0.05, None).astype(np.float32)


TEXTURES: dict[str, Callable[[tuple[int, ...], int], Floats]] = {
    "nuclei": nuclei,
    "walls": walls,
    "cloud": cloud,
}


def draw_truth(
    grid: Grid,
    rng: np.random.Generator,
    spread: float = 0.01,
    shift: float = 2.0,
    bump: float = 4.0,
    turn_deg: float = 0.0,
) -> SyntheticTransform:
    """Draw an affine and bumps that leave volumes above a half.

    The affine turns about the last axis, stretches and shears by `spread`, and shifts by up to
    `shift` voxels; bumps are `bump` voxels high where that folds nothing.
    """
    extent = np.asarray(grid.shape, float)
    matrix = np.eye(4)
    turn = Rotation.from_euler("z", turn_deg, degrees=True).as_matrix()
    matrix[:3, :3] = turn @ (np.eye(3) + rng.normal(0, spread, (3, 3)))
    matrix[:3, 3] = rng.uniform(-shift, shift, 3) - (matrix[:3, :3] - np.eye(3)) @ extent / 2
    centres = extent * rng.uniform(0.1, 0.9, (_BUMPS, 3))
    vectors = rng.normal(size=(_BUMPS, 3))
    vectors *= bump / np.linalg.norm(vectors, axis=1, keepdims=True)
    widths = rng.uniform(0.16, 0.24, _BUMPS) * extent[0]
    points = grid.positions()[::4, ::4, ::4]
    while True:
        truth = SyntheticTransform(matrix, centres, vectors, widths)
        if truth.jacobian_determinant(points).min() > 0.5:
            return truth
        vectors = 0.9 * vectors


def _depth(kind: str, here: NDArray[np.float64], rng: np.random.Generator) -> Floats:
    """Distance of moving voxels into the missing part, whose border is wavy; µm, about."""
    shape = here.shape[:3]
    wave = ndimage.gaussian_filter(rng.standard_normal(shape), 10)
    first = here[..., 0] - shape[0] / 2 + 3 * wave / np.abs(wave).max()
    second = here[..., 1] - shape[1] / 2
    if kind in ("sound", "gaps"):
        return np.full(shape, -99, np.float32)
    depths = {
        "half": first,
        "torn": first,
        "quarter": np.minimum(first, second),
        "slab": _SLAB / 2 - np.abs(first),
    }
    return depths[kind].astype(np.float32)


def _sampled(tissue: Floats, points: NDArray[np.float64]) -> Floats:
    index = np.moveaxis(points + _PAD, -1, 0)
    return np.asarray(
        ndimage.map_coordinates(tissue, index, order=1, mode="reflect"), np.float32
    ).clip(0)


def _photographed(light: Floats, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Counts with the noise of 100 electrons in the brightest places."""
    counts = rng.poisson(light / np.percentile(light, 99.5) * 100) * 20 + 100
    return np.clip(counts, 0, 65535).astype(np.uint16)


def measure(
    case: TornCase, content: Content, step: Deformable | None = None, *, chain: bool = False
) -> dict[str, Any]:
    """Deform from the affine of what is left; errors as percentiles 50 and 95, in voxels.

    All default steps, without a start, where a `chain` is wanted.
    """
    with tempfile.TemporaryDirectory() as out:
        found = itkstream.register(
            case.fixed,
            case.moving,
            Path(out) / "run",
            DEFAULT_STEPS if chain else [step or Deformable()],
            RegisterSettings(content=content, report=False),
            initial_transform=None if chain else case.start,
        )
        facts = next(s for s in found.facts["steps"] if s["name"] == "deformation")
        told = {"flagged": _flagged(case, found), "verdict": found.verdict.outcome}
        return {**_errors(case, found.transform), **told, "facts": facts}


def _flagged(case: TornCase, found: itkstream.Registration) -> tuple[float, float]:
    """Shares of what is missing, and of what is left, that the error map warns of."""
    assert found.error is not None
    grid = found.error.grid
    index = np.rint(grid.to_index(case.fixed.grid.positions())).astype(int)
    index = np.clip(index, 0, np.subtract(grid.shape, 1))
    radii = np.asarray(found.error.read())[tuple(np.moveaxis(index, -1, 0))]
    warned = ~(radii <= _OFF_VOX)
    missing, left = case.depth > _NEAR, case.depth < -_NEAR
    return (float(warned[missing].mean()) if missing.any() else 0.0), float(warned[left].mean())


def _errors(case: TornCase, transform: Transform) -> dict[str, Any]:
    points = case.fixed.grid.positions()
    true = case.truth(points)
    index = case.moving.grid.to_index(true)
    seen = ((index >= 3) & (index <= np.subtract(case.moving.shape, 4))).all(axis=-1)
    got, d = transform.apply(points), case.depth
    parts = {
        "sound": (true, d < -_NEAR),
        "near": (case.start.apply(points), (d > 0) & (d < _FAR)),
        "far": (case.start.apply(points), d >= _FAR),
        "deep": (case.start.apply(points), d >= _DEEP),
    }
    return {
        name: tuple(np.percentile(np.linalg.norm((got - to)[seen & part], axis=-1), (50, 95)))
        for name, (to, part) in parts.items()
        if (seen & part).any()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the kinds that were asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="voxels along the first axis")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--textures", nargs="+", default=list(TEXTURES), choices=list(TEXTURES))
    parser.add_argument("--chain", action="store_true", help="all default steps, from no start")
    options = parser.parse_args(arguments)
    cases = [
        (texture, kind, seed)
        for texture in options.textures
        for kind in options.kinds
        for seed in range(options.seeds)
        if kind != "gaps" or texture == "nuclei"
    ]
    sys.stdout.write(_ROW.format(*_HEAD))
    for texture, kind, seed in cases:
        case = make_case(kind, texture, options.size, seed)
        for content in ("all", "common"):
            cells = _cells(measure(case, content, chain=options.chain))
            sys.stdout.write(_ROW.format(texture, kind, seed, content, *cells))
            sys.stdout.flush()


_HEAD = ("texture", "kind", "seed", "content", "left out", "sound", "near", "far", "deep")
_HEAD += ("flagged", "verdict", "s")
_ROW = "{:8} {:8} {:>4} {:8} {:>8} {:>14} {:>14} {:>14} {:>14} {:>14} {:>8} {:>6}\n"


def _cells(found: dict[str, Any]) -> list[str]:
    facts = found["facts"].get("without_counterpart", {})
    share = f"{facts['share_of_tissue']:.2f}" if facts.get("left_out") else "-"
    parts = (found.get(name) for name in ("sound", "near", "far", "deep", "flagged"))
    cells = ["-" if p is None else f"{p[0]:.2f} / {p[1]:.2f}" for p in parts]
    return [share, *cells, found["verdict"], f"{found['facts']['seconds']:.1f}"]


if __name__ == "__main__":
    main()
