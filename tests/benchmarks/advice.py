"""Measure advice: inliers by the parameters it chooses, against the best of a grid of them.

    python tests/benchmarks/advice.py [NAME[:SHRINK] ...] [--data ../shared/data] [--out FILE]

NAME is demo, easifish, or a pair NAME_fixed.nrrd and NAME_moving.nrrd in real/; SHRINK averages
that many voxels an axis before. The grid holds nine radii with the usual context and three
thresholds, and at the best radii three contexts with each threshold. Images lie beside the
repository and are not part of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import itkstream
from itkstream.advice import Advice, advise
from itkstream.blocks.levels import read_coarse
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import ChannelPair, Image
from itkstream.numerics.matching.affine import MatchedAffine, affine_block
from itkstream.phantoms import make_pair, tutorial_settings
from itkstream.registration.steps import RansacAffine
from itkstream.registration.steps.matching import choose_radii

__all__ = ["grid_of", "main", "measure_advice"]

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DEFAULT = ("demo", "easifish:1", "easifish:2", "easifish:4")
RADII = [(low, high) for low, high in product((2, 3, 6), (6, 10, 20))]
CONTEXTS, USUAL = (8, 18), 12
THRESHOLDS = (0.5, 0.6, 0.7)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the pairs that were asked for, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=DEFAULT)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, help="also write the lines here")
    given = parser.parse_args(arguments)
    lines = []
    for name in given.names:
        fixed, moving = open_pair(given.data, name)
        lines.append(json.dumps({"pair": name, **measure_advice(fixed, moving)}))
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


def open_pair(data: Path, name: str) -> tuple[Image, Image]:
    """Open a pair by its name, shrunk as it says."""
    kind, _, shrink = name.partition(":")
    if kind == "demo":
        made = make_pair(tutorial_settings())
        images = [made.fixed, made.moving]
    elif kind == "easifish":
        places = [data / "easifish" / f"{which}.n5" / "lowres" for which in ("fix", "mov")]
        images = [itkstream.open_image(place) for place in places]
    else:
        places = [data / "real" / f"{kind}_{which}.nrrd" for which in ("fixed", "moving")]
        images = [itkstream.open_image(place) for place in places]
    fixed, moving = (read_coarse(image, (int(shrink or 1),) * image.ndim) for image in images)
    return fixed, moving


def measure_advice(fixed: Image, moving: Image) -> dict[str, Any]:
    """Ask for advice on a pair in memory, and compare what it chooses with the grid.

    Parameters
    ----------
    fixed, moving : Image
        The pair.

    Returns
    -------
    dict of str to object
        Advice, seconds, inliers by the chosen parameters, by the usual ones, and the best of the
        grid with its parameters.
    """
    began = time.perf_counter(), time.process_time()
    advice = advise(fixed, moving)
    told: dict[str, Any] = {
        "outcome": advice.outcome,
        "misfits": [str(misfit) for misfit in advice.misfits],
        "loss": str(advice.loss or ""),
        "seconds": round(time.perf_counter() - began[0], 1),
        "cpu_seconds": round(time.process_time() - began[1], 1),
        "options": advice.options,
    }
    if not advice.settings or any(misfit.kind == "turned" for misfit in advice.misfits):
        # What lies turned is matched from a start, which no grid of parameters finds.
        return told
    best = max(grid_of(fixed, moving), key=lambda row: row[0])
    chosen = _inliers(fixed, moving, advice)
    return told | {
        "chosen": chosen,
        "usual": _usual(fixed, moving),
        "best": best[0],
        "best_by": best[1],
        "share": round(chosen / max(best[0], 1), 3),
    }


def grid_of(fixed: Image, moving: Image) -> Iterator[tuple[int, str]]:
    """Inliers by every choice of the grid, and the choice."""
    most: tuple[int, Any, MatchedAffine | None] = (-1, None, None)
    for radii in RADII:
        found = _matched(fixed, moving, radii, USUAL, None)
        if found is None:
            continue
        yield from _by_threshold(fixed, found, radii, USUAL)
        if found.stages.inliers > most[0]:
            most = found.stages.inliers, radii, found
    _, radii, known = most
    if known is None:
        return
    for context in CONTEXTS:
        found = _matched(fixed, moving, radii, context, known)
        if found is not None:
            yield from _by_threshold(fixed, found, radii, context)


def _matched(
    fixed: Image, moving: Image, radii: Any, context: int, known: MatchedAffine | None
) -> MatchedAffine | None:
    """Matches at the lowest threshold, of key points that may be known; None where none suit."""
    step = RansacAffine(cc_radius=context, match_threshold=min(THRESHOLDS))
    points = (None, None) if known is None else known.points
    try:
        return affine_block(
            [ChannelPair(fixed, moving)], step.settings_for(fixed.spacing, radii), points
        )
    except (InputError, RegistrationError):
        return None


def _by_threshold(
    fixed: Image, found: MatchedAffine, radii: Any, context: int
) -> Iterator[tuple[int, str]]:
    for threshold in THRESHOLDS:
        stages = found.above(threshold, fixed.grid).stages
        yield stages.inliers, f"radii {radii[0]} {radii[1]}, context {context}, {threshold}"


def _inliers(fixed: Image, moving: Image, advice: Advice) -> int:
    """Inliers by the parameters of an advice, in the whole images."""
    chosen = {setting.name: setting.value for setting in advice.settings}
    step = RansacAffine(
        cc_radius=chosen["context radius"], match_threshold=chosen["match threshold"]
    )
    found = affine_block(
        [ChannelPair(fixed, moving)], step.settings_for(fixed.spacing, chosen["radii"])
    )
    return found.stages.inliers


def _usual(fixed: Image, moving: Image) -> int:
    """Inliers by what `register` takes where nothing is given."""
    usual = RansacAffine()
    return choose_radii([ChannelPair(fixed, moving)], usual, usual.radii).found.best.stages.inliers


if __name__ == "__main__":
    main()
