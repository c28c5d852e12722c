"""Measure how large a displacement a deformation follows by itself, with the default settings.

    python tests/benchmarks/large_moves.py [MOST ...] [--levels 8 4 2 1] [--seeds 1]

Tissue of 112 x 112 x 112 voxels, nuclei or texture without any, is moved by MOST voxels in its
middle (default 10, 20 and 30) and by less around it, as a Gaussian 1.4 times as wide; 5 % of noise
are added. No affine is sought, so all of it is left to the deformation. Printed are the errors in
voxels, median and 95th percentile, where the displacement is more than half of the most, and the
stiffness that was chosen; or that the deformation was left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

import itkstream
from itkstream import Deformable, Grid, Image

__all__ = ["main", "measure"]

_SIDE, _WIDTH, _NOISE = 112, 1.4, 0.05
_NUCLEI, _NUCLEUS, _TEXTURE = 1200, 2.2, (1.5, 4.0, 9.0)

Floats = NDArray[np.float64]


def measure(kind: str, most: float, seed: int, **parameters: Any) -> dict[str, Any]:
    """Register a pair by one deformation, and compare with what is known of it.

    Parameters
    ----------
    kind : {'nuclei', 'texture'}
        What the images show.
    most : float
        Largest displacement, in voxels.
    seed : int
        Of the images.
    **parameters
        Of the `Deformable`.

    Returns
    -------
    dict of str to object
        ``median_vox`` and ``p95_vox`` of the error, ``stiffness``, and why it was ``left_out``.
    """
    rng = np.random.default_rng(seed)
    grid = Grid((_SIDE,) * 3, (1.0, 1.0, 1.0), axes=("z", "y", "x"))
    tissue, moves = _tissue(kind, rng), _moves(most, rng)
    moved = map_coordinates(tissue, np.indices(grid.shape) + moves, order=1, mode="wrap")
    noise = _NOISE * tissue.std()
    fixed, moving = (
        Image((voxels + noise * rng.normal(size=grid.shape)).astype(np.float32), grid, name)
        for voxels, name in ((moved, "fixed"), (tissue, "moving"))
    )
    settings = itkstream.RegisterSettings(error_map=False, report=False)
    points = grid.positions()
    with tempfile.TemporaryDirectory() as out:
        run = Path(out) / "run"
        found = itkstream.register(
            fixed, moving, run, [Deformable(**parameters)], settings, initial_transform=np.eye(4)
        )
        placed = found.transform.apply(points)
        facts = next(step for step in found.facts["steps"] if step["name"] == "deformation")
    errors = np.linalg.norm(placed - points - np.moveaxis(moves, 0, -1), axis=-1)
    middle = np.linalg.norm(moves, axis=0) > most / 2
    median, p95 = np.percentile(errors[middle], [50, 95])
    told = {"stiffness": facts.get("stiffness"), "left_out": facts.get("dropped")}
    return {"median_vox": round(float(median), 2), "p95_vox": round(float(p95), 2), **told}


def _tissue(kind: str, rng: np.random.Generator) -> Floats:
    shape = (_SIDE,) * 3
    if kind == "nuclei":
        found = np.zeros(shape)
        found[tuple(rng.integers(0, _SIDE, (3, _NUCLEI)))] = rng.uniform(0.5, 1.5, _NUCLEI)
        return gaussian_filter(found, _NUCLEUS, mode="wrap")
    waves = [gaussian_filter(rng.normal(size=shape), s, mode="wrap") for s in _TEXTURE]
    return np.sum([wave / wave.std() for wave in waves], axis=0)


def _moves(most: float, rng: np.random.Generator) -> Floats:
    away = np.indices((_SIDE,) * 3) - _SIDE / 2
    direction = rng.normal(size=3)
    direction *= most / np.linalg.norm(direction)
    near = np.exp(-(away**2).sum(axis=0) / (2 * (_WIDTH * most) ** 2))
    return direction[:, None, None, None] * near


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("most", nargs="*", type=float, default=[10.0, 20.0, 30.0])
    parser.add_argument("--levels", nargs="+", type=int, help="shrink factors, coarse to fine")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args(arguments)
    parameters = {"shrink_factors": tuple(given.levels)} if given.levels else {}
    for most in given.most:
        for kind in ("nuclei", "texture"):
            for seed in range(given.seeds):
                found = measure(kind, most, seed, **parameters)
                sys.stdout.write(f"{most:g} voxels, {kind}, seed {seed}: {found}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
