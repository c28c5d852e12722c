"""Measure what patterns of the camera cost, found and taken out or kept.

    python tests/benchmarks/camera_patterns.py [PATTERN ...]

A phantom pair is photographed by one camera, whose pattern both images get, each in its own axes
y and x: registered with the default steps, errors against the truth in voxels.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from itkstream.errors import RegistrationError
from itkstream.geometry import Image
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair
from itkstream.pipelines import register
from itkstream.registration.steps import DEFAULT_STEPS, RegisterSettings, Step

__all__ = ["PATTERNS", "measure", "photographed"]

MOTION = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.05, warp_um=3)
PAIR = PhantomSettings((112, 104, 80), (1.0, 1.0, 1.0), 4, radii_um=(3.0, 5.0), motion=MOTION)

PATTERNS = (
    "none",
    "0.1 % hot pixels",
    "0.5 % hot pixels",
    "1 % hot pixels",
    "0.5 % warm pixels",
    "3 hot columns",
    "stripes",
    "fixed noise",
)


def photographed(image: Image, pattern: str) -> Image:
    """An image as a camera with a pattern takes it, whose planes have the axes y and x."""
    stack = image.reorder(("z", "y", "x"))
    voxels = np.array(stack.read()).astype(np.float64)
    voxels[:, :, :] = _spoilt(voxels, pattern)
    spoilt = Image(np.clip(np.rint(voxels), 0, 65535).astype(np.uint16), stack.grid, image.name)
    return spoilt.reorder(image.grid.axes)


def _spoilt(voxels: NDArray[np.float64], pattern: str) -> NDArray[np.float64]:
    """Planes (n, y, x) with what a camera adds to each."""
    rng, plane = np.random.default_rng(5), voxels.shape[1:]
    deviation = float(voxels.std())
    if pattern.endswith("pixels"):
        share = float(pattern.split()[0]) / 100
        bad = rng.random(plane) < share
        return np.where(bad, voxels + (65535 if "hot" in pattern else deviation), voxels)
    if pattern == "3 hot columns":
        voxels[:, :, rng.choice(plane[1], 3, replace=False)] += 5 * deviation
    if pattern == "stripes":
        voxels = voxels + rng.normal(0, deviation / 8, plane[1])
    if pattern == "fixed noise":
        voxels = voxels + rng.normal(0, deviation / 8, plane)
    return voxels


def measure(
    settings: PhantomSettings = PAIR,
    patterns: tuple[str, ...] = PATTERNS,
    steps: tuple[Step, ...] = DEFAULT_STEPS,
) -> Iterator[dict[str, Any]]:
    """Register the pair with each pattern, taken out and kept."""
    pair = make_pair(settings)
    for pattern in patterns:
        images = [photographed(image, pattern) for image in (pair.fixed, pair.moving)]
        for switch in ("auto", "keep"):
            chosen = replace(RegisterSettings(), camera_pattern=switch)
            yield {"pattern": pattern, "camera_pattern": switch} | _errors(
                pair, images, steps, chosen
            )


def _errors(
    pair: PhantomPair, images: list[Image], steps: tuple[Step, ...], settings: RegisterSettings
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = register(*images, Path(folder) / "out", steps, settings)
        except RegistrationError as error:
            return {"refused": str(error)}
        error = pair.error(result.transform.apply).summary()
        found = result.facts.get("camera_pattern", {})
    return {"median": error["median_vox"], "p95": error["p95_vox"], "found": found}


def main(patterns: Sequence[str] = PATTERNS) -> None:
    """Print a table, a row for each pattern and switch."""
    table = Table("pattern", "camera_pattern", "median", "95 %", "found in the fixed image")
    for row in measure(patterns=tuple(patterns)):
        errors = [f"{row[name]:.3f}" if name in row else "refused" for name in ("median", "p95")]
        found = {k: v for k, v in row.get("found", {}).get("fixed", {}).items() if v}
        table.add_row(row["pattern"], row["camera_pattern"], *errors, str(found or ""))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:] or PATTERNS)
