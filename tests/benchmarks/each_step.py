"""The steps suite: every step and method of a registration on one phantom with a known truth.

Each row is a process of its own. Key points start from nothing; intensities and local affines from
the true affine, shifted and turned by some voxels; deformations from the true affine, so that what
they start with is the phantom's warp.

As a script, ``each_step.py NAME SIZE RESULT`` measures one row.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import processes
from numpy.typing import NDArray

from itkstream.geometry import Image
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair
from itkstream.pipelines import register
from itkstream.registration.steps import (
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    Step,
)

__all__ = ["ROWS", "SIZES", "run_each_step"]

Row = dict[str, Any]

SIZES = {"tiny": (64, 56, 48), "quick": (96, 80, 64), "full": (256, 224, 144)}
"""Voxels of the phantom; `full` is that of the demo."""


@dataclass(frozen=True)
class Trial:
    """A step and where it starts.

    Parameters
    ----------
    step : Step
        What is measured.
    start : {'nothing', 'rough', 'affine'}
        No transform, the true affine some voxels off, or the true affine.
    inverted : bool
        Whether the moving image is dark where it was bright.
    """

    step: Step
    start: str
    inverted: bool = False


_RADII = (3.0, 10.0)

ROWS: dict[str, Trial] = {
    "ransac-affine": Trial(RansacAffine(radii=(_RADII,)), "nothing"),
    "local-affines 48": Trial(LocalAffines(radii=_RADII, blocksize=48), "rough"),
    **{
        f"intensity-affine {metric} {optimizer}": Trial(
            IntensityAffine("affine", metric, optimizer), "rough"
        )
        for metric, optimizer in (
            ("correlation", "gradient-descent"),
            ("correlation", "lbfgsb"),
            ("correlation", "powell"),
            ("mutual-information", "gradient-descent"),
            ("mean-squares", "gradient-descent"),
            ("neighbourhood-correlation", "gradient-descent"),
        )
    },
    "intensity-affine translation exhaustive": Trial(
        IntensityAffine("translation", optimizer="exhaustive"), "rough"
    ),
    "intensity-affine mutual-information, inverted": Trial(
        IntensityAffine("affine", "mutual-information"), "rough", inverted=True
    ),
    **{
        f"deformable {method}": Trial(Deformable(method), "affine")
        for method in ("lcc", "demons", "symmetric-demons", "diffeomorphic-demons", "bspline")
    },
    "deformable bspline mutual-information, inverted": Trial(
        Deformable("bspline", metric="mutual-information", local_normalisation=None),
        "affine",
        inverted=True,
    ),
}


def run_each_step(
    names: Sequence[str] = (),
    size: str = "full",
    report: Callable[[Row], None] = lambda row: None,
    timeout: float = 3600.0,
) -> list[Row]:
    """Measure steps.

    Parameters
    ----------
    names : sequence of str
        Parts of names in `ROWS`; default all.
    size : str
        A key of `SIZES`.
    report : callable
        Told each row as it is there.
    timeout : float
        Seconds before a row is stopped.

    Returns
    -------
    list of dict
        Per step: median and 95th percentile of the error in voxels before and after, folds,
        seconds of the step, peak memory of the process; or ``error``.
    """
    rows = []
    for name in ROWS:
        if not names or any(part in name for part in names):
            result = processes.call(Path(__file__), [name, size], timeout)
            rows.append({"step": name, **result})
            report(rows[-1])
    return rows


def measure(trial: Trial, pair: PhantomPair, folder: Path) -> Row:
    """Do one step and compare it with the truth.

    Parameters
    ----------
    trial : Trial
        The step.
    pair : PhantomPair
        Images and truth.
    folder : Path
        Where to write.

    Returns
    -------
    dict
        Errors in voxels, folds, seconds, memory.
    """
    start = _start(trial.start, pair)
    moving = pair.moving
    if trial.inverted:
        voxels = moving.read()
        moving = Image(voxels.max() - voxels, moving.grid)
    result, measured = processes.timed(
        lambda: register(pair.fixed, moving, folder / "out", [trial.step], initial_transform=start)
    )
    facts = result.facts["steps"][1]
    known = np.eye(pair.fixed.ndim + 1) if start is None else start
    before = pair.error(lambda p: p @ known[:-1, :-1].T + known[:-1, -1], 3).summary()
    after = pair.error(result.transform.apply, 3).summary()
    field = result.transform.transforms[0]
    determinant = jacobian_determinant(np.asarray(field.data[(slice(None),) * 4]), field.grid)
    return {
        "before": before["median_vox"],
        "median": after["median_vox"],
        "p95": after["p95_vox"],
        "folds": int(np.count_nonzero(~(determinant > 0))),
        "seconds": facts["seconds"],
        "cpu_seconds": measured["cpu_seconds"],
        "peak_mb": measured["peak_mb"],
        "dropped": facts.get("dropped", ""),
    }


def _start(kind: str, pair: PhantomPair) -> NDArray[np.float64] | None:
    if kind == "nothing":
        return None
    known = np.array(pair.truth.matrix)
    if kind == "rough":
        turn = np.eye(4)
        c, s = np.cos(np.radians(1.0)), np.sin(np.radians(1.0))
        turn[:2, :2] = [[c, -s], [s, c]]
        turn[:3, 3] = (2.0, -1.5, 1.0)
        known = known @ turn
    return known


def phantom(size: str) -> PhantomPair:
    """The pair all rows are measured on.

    Parameters
    ----------
    size : str
        A key of `SIZES`.

    Returns
    -------
    PhantomPair
        Nuclei in two rounds: turned, stretched, shifted and warped by up to 4 micrometers.
    """
    motion = Motion(rotation_deg=3, stretch=0.02, shear=0.02, shift=0.05, warp_um=4)
    radii = (3.0, 6.0) if size != "tiny" else (2.5, 5.0)
    settings = PhantomSettings(
        SIZES[size], (1.0, 1.0, 1.2), 7, radii_um=radii, motion=motion, restaining=0.2
    )
    return make_pair(settings)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = measure(ROWS[sys.argv[1]], phantom(sys.argv[2]), Path(place))
    Path(sys.argv[3]).write_text(json.dumps(found))
