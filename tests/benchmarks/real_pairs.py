"""Measure whole registrations of real pairs, by what is known of each, with the defaults.

Each is a run of the command line, whose seconds are those of the whole command.

    python tests/benchmarks/real_pairs.py [NAME ...] [--folder ../shared/data/real] [--out FILE]

A pair is NAME_fixed.nrrd and NAME_moving.nrrd. With NAME_truth.npz (``fixed`` and ``moving``
points, x first, and the length of a ``voxel``) the target registration error counts, in voxels,
median and 95th percentile; with labels their mean Dice coefficient; else the correlation of the
overlap.
``nirep`` is na01 and na02 there, judged by the union of their labels and by the mean over these.
Images lie beside the repository and are not part of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import itkstream
from itkstream.geometry import Image, Transform
from itkstream.numerics.sampling.warping import WarpSettings, warp_block

__all__ = ["FOLDER", "judge", "main", "measure_pair", "open_pair"]

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"
_NIREP = {"fixed": "nirep/na01.nii.gz", "moving": "nirep/na02.nii.gz"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Register the pairs that were asked for, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, help="also write the lines here")
    given = parser.parse_args(arguments)
    lines = []
    for name in given.names or _names(given.folder):
        lines.append(json.dumps(measure_pair(given.folder, name)))
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


def measure_pair(folder: Path, name: str) -> dict[str, Any]:
    """Register a pair with the defaults and judge it.

    Parameters
    ----------
    folder : Path
        Of the images.
    name : str
        Of the pair.

    Returns
    -------
    dict of str to object
        The measures, seconds, least Jacobian determinant, and what steps chose.
    """
    command = [sys.executable, "-m", "itkstream", "register"]
    command += [str(_path(folder, name, which)) for which in ("fixed", "moving")]
    with tempfile.TemporaryDirectory() as out:
        run = Path(out) / "run"
        began = time.perf_counter()
        done = subprocess.run([*command, "--out", run], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if not run.exists():
            return {"pair": name, "failed": done.stderr}
        found = itkstream.Registration.open(run)
        measured = judge(folder, name, found.transform, *open_pair(folder, name))
        steps = {step["name"]: step for step in found.facts["steps"]}
        jacobian = found.facts["certificate"]["least_jacobian"]
    chosen = {key: steps["deformation"].get(key) for key in ("similarity", "stiffness")}
    dropped = {n: step["dropped"] for n, step in steps.items() if "dropped" in step}
    facts = {"seconds": round(seconds, 1), "least_jacobian": jacobian, **chosen}
    return {"pair": name, **measured, **facts, "left_out": dropped}


def open_pair(folder: Path, name: str) -> tuple[Image, Image]:
    """Open a pair by its name."""
    fixed, moving = (_open(_path(folder, name, which)) for which in ("fixed", "moving"))
    return fixed, moving


def _names(folder: Path) -> list[str]:
    pairs = sorted(path.name.removesuffix("_fixed.nrrd") for path in folder.glob("*_fixed.nrrd"))
    return [*pairs, *(["nirep"] if (folder / _NIREP["fixed"]).exists() else [])]


def _path(folder: Path, name: str, which: str) -> Path:
    return folder / (_NIREP[which] if name == "nirep" else f"{name}_{which}.nrrd")


def _labels(folder: Path, name: str, which: str) -> Path:
    if name == "nirep":
        return folder / _NIREP[which].replace(".nii", "_seg.nii")
    return folder / f"{name}_{which}_labels.nrrd"


def _open(path: Path) -> Image:
    """An image in memory, in micrometers as `register` sees it."""
    image = itkstream.open_image(path)
    return Image(np.asarray(image.read()), image.grid.in_unit("micrometer"), image.name)


def judge(
    folder: Path, name: str, transform: Transform, fixed: Image, moving: Image
) -> dict[str, Any]:
    """Judge a transform of a pair by what is known of it."""
    truth = folder / f"{name}_truth.npz"
    if truth.exists():
        stated = itkstream.open_image(_path(folder, name, "fixed")).grid.spacing[0]
        return _errors(truth, transform, fixed.spacing[0] / stated)
    if _labels(folder, name, "fixed").exists():
        labels = [np.asarray(_open(_labels(folder, name, w)).read()) for w in ("fixed", "moving")]
        nearest = WarpSettings(interpolator="nearest", background=0)
        return _dice(
            labels[0], warp_block(Image(labels[1], moving.grid), transform, fixed.grid, nearest)
        )
    floats = WarpSettings(background=np.nan, dtype=np.float32)
    aligned = warp_block(moving, transform, fixed.grid, floats)
    there = np.isfinite(aligned)
    pair = np.asarray(fixed.read(), np.float64)[there], aligned[there]
    return {"correlation": round(float(np.corrcoef(*pair)[0, 1]), 4)}


def _errors(truth: Path, transform: Transform, unit: float) -> dict[str, Any]:
    """Target registration errors at the known points, whose lengths count so many µm."""
    known = np.load(truth)
    points, targets = (unit * known[which][:, ::-1] for which in ("fixed", "moving"))
    errors = np.linalg.norm(transform.apply(points) - targets, axis=1) / (unit * known["voxel"])
    median, most = np.percentile(errors, [50, 95])
    return {"median_vox": round(float(median), 3), "p95_vox": round(float(most), 3)}


def _dice(fixed: NDArray[Any], moved: NDArray[Any]) -> dict[str, Any]:
    """Dice coefficients of the union of all labels, and of each, averaged."""

    def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
        return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))

    each = [overlap(fixed == label, moved == label) for label in np.unique(fixed[fixed > 0])]
    union = overlap(fixed > 0, moved > 0)
    return {"dice_union": round(union, 3), "dice_mean": round(float(np.mean(each)), 3)}


if __name__ == "__main__":
    main()
