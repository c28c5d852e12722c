"""Measure registrations by one channel and by two: a second that tells nothing, or the rest.

    python tests/benchmarks/channels.py [--seeds 3] [--shape 96 80 64] [--cases whole noise ...]

One synthetic tissue in two rounds, all default steps, no start. "whole" shows all nuclei in one
channel; its second channel is "noise", "flat" (one value), or "unrelated" (other nuclei in either
round). Of "half" and "other half" each shows one of two halves of the nuclei, drawn by chance, and
"both halves" are registered together. Given is the distance to the true map over the tissue, in
voxels: median / mean / 95th percentile, and the share by which each channel counts in the
deformation.

Means of three seeds of 96 x 80 x 64 voxels, median / 95th percentile:

===========  =============  =============================================
case         voxels         each seed
===========  =============  =============================================
whole        0.121 / 0.393
unrelated    0.121 / 0.393  as "whole"; the second channel counts for 0
noise        0.121 / 0.393  as "whole"; the second channel counts for 0
half         0.119 / 0.440  0.127 / 0.438, 0.126 / 0.501, 0.105 / 0.381
other half   0.119 / 0.348  0.105 / 0.274, 0.114 / 0.352, 0.139 / 0.419
both halves  0.077 / 0.199  0.069 / 0.171, 0.077 / 0.192, 0.086 / 0.234
===========  =============  =============================================
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import itkstream
from itkstream.geometry import Image
from itkstream.phantoms import PhantomPair, PhantomSettings, make_pair
from itkstream.phantoms.camera import camera_of, photograph, render
from itkstream.phantoms.lattice import in_three
from itkstream.phantoms.tissue import draw_scenes
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import DEFAULT_STEPS, Step

__all__ = ["CASES", "draw_channels", "main", "measure"]

Pairs = list[tuple[Image, Image]]

_HALVES = ("half", "other half")
CASES = ("whole", "noise", "flat", "unrelated", *_HALVES, "both halves")
"""Channels that are registered together."""


def draw_channels(case: str, settings: PhantomSettings, pair: PhantomPair) -> Pairs:
    """Fixed and moving image of each channel of a case; `pair` is made with the settings."""
    if case in _HALVES:
        return [_half(settings, pair, _HALVES.index(case))]
    if case == "both halves":
        return [_half(settings, pair, number) for number in (0, 1)]
    whole = (pair.fixed, pair.moving)
    return [whole] if case == "whole" else [whole, _SECONDS[case](settings, pair)]


def _half(settings: PhantomSettings, pair: PhantomPair, number: int) -> tuple[Image, Image]:
    """Both rounds with one half of the nuclei and of what lies between them."""
    scene, second, _ = draw_scenes(settings)
    draw = np.random.default_rng([settings.seed, 31])
    shown = (draw.random(len(scene.bodies.centres)) < 0.5) == bool(number)
    # Each channel has noise of its own.
    camera = replace(settings, seed=settings.seed + 1000 * number)
    images = []
    for round_, grid, back in (
        (scene, settings.fixed_grid, in_three),
        (second, settings.moving_grid, lambda p: in_three(pair.truth.inverse(p))),
    ):
        bodies = round_.bodies._replace(brightness=round_.bodies.brightness * shown)
        light = render(round_._replace(bodies=bodies), grid, back)
        seen = camera_of(round_ is second, settings.restaining)
        images.append(Image(photograph(light, grid, camera, seen), grid))
    return images[0], images[1]


def _noise(settings: PhantomSettings, pair: PhantomPair) -> tuple[Image, Image]:
    rng = np.random.default_rng([settings.seed, 32])
    first, second = (
        Image(rng.poisson(200, image.shape).astype(np.uint16), image.grid)
        for image in (pair.fixed, pair.moving)
    )
    return first, second


def _flat(settings: PhantomSettings, pair: PhantomPair) -> tuple[Image, Image]:
    first, second = (
        Image(np.full(image.shape, 100, np.uint16), image.grid)
        for image in (pair.fixed, pair.moving)
    )
    return first, second


def _unrelated(settings: PhantomSettings, pair: PhantomPair) -> tuple[Image, Image]:
    one, two = (make_pair(replace(settings, seed=settings.seed + n)) for n in (500, 900))
    return Image(one.fixed.data, pair.fixed.grid), Image(two.moving.data, pair.moving.grid)


_SECONDS: dict[str, Callable[[PhantomSettings, PhantomPair], tuple[Image, Image]]] = {
    "noise": _noise,
    "flat": _flat,
    "unrelated": _unrelated,
}


def measure(
    case: str, settings: PhantomSettings, steps: Sequence[Step] = DEFAULT_STEPS
) -> dict[str, Any]:
    """Register the channels of a case; errors in voxels, and the shares of the channels."""
    pair = make_pair(settings)
    channels = draw_channels(case, settings, pair)
    fixed, moving = ([channel[side] for channel in channels] for side in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        result = itkstream.register(
            fixed,
            moving,
            Path(folder, "out"),
            steps,
            RegisterSettings(report=False, error_map=False),
        )
        error = pair.error(result.transform.apply)
        deformed = next(s for s in result.facts["steps"] if s["name"] == "deformation")
    return {
        "median": float(np.median(error.vox)),
        "mean": float(error.vox.mean()),
        "p95": float(np.percentile(error.vox, 95)),
        "shares": [one["share"] for one in deformed.get("channels", [])],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each case and seed, and the means of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 80, 64))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    given = parser.parse_args(arguments)
    for case in given.cases:
        rows = []
        for seed in range(given.seeds):
            found = measure(case, PhantomSettings(shape=tuple(given.shape), seed=seed))
            rows.append((found["median"], found["mean"], found["p95"]))
            shares = ", ".join(f"{share:.2f}" for share in found["shares"])
            sys.stdout.write(f"{case:12} {seed} {_in_words(rows[-1])}  {shares}\n")
        sys.stdout.write(f"{case:12} - {_in_words(np.mean(rows, axis=0))}\n")


def _in_words(row: Sequence[float]) -> str:
    return " / ".join(f"{value:6.3f}" for value in row)


if __name__ == "__main__":
    main(sys.argv[1:])
