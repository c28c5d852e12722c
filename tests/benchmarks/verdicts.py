"""Verdicts on seeded pairs of known truth: whether a bad result is ever called good.

    python tests/benchmarks/verdicts.py [--seeds 2] [--kinds good torn ...]

Each pair is registered with the default steps. It is bad where more than a fifth of the tissue that
both images show lies more than five voxels off, or where the images do not belong together at all;
good where 95 % lie within two voxels; the others are between. No bad one may be called good, no
good one failed, and at most one in ten good ones "look". An error that says that no affine was
found counts as failed. A JSON line is printed for each pair, then a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from error_pairs import KINDS as RECIPES
from error_pairs import Drawn, Recipe, draw_recipe
from rich.console import Console
from rich.table import Table
from scipy.spatial.transform import Rotation

import itkstream
from itkstream.errors import RegistrationError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.sampling.warping import WarpSettings, warp_block

_SHAPE = (96, 88, 80)
_TEXTURES = ("nuclei", "spheres", "membranes", "mottled")
_FAR_VOX, _FAR_SHARE, _NEAR_VOX = 5.0, 0.2, 2.0


def turned(drawn: Drawn) -> Drawn:
    """The moving image turned by 20 to 170 degrees about its middle."""
    rng = drawn.rng
    axis = rng.normal(size=3)
    angle = rng.uniform(20, 170)
    spin = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle, degrees=True).as_matrix()
    grid = drawn.moving.grid
    middle = grid.to_physical((np.asarray(grid.shape) - 1) / 2)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = spin, middle - spin @ middle
    voxels = np.asarray(drawn.moving.read(), np.float32)
    outside = WarpSettings(background=float(np.percentile(voxels, 1)), dtype=np.float32)
    moved = warp_block(Image(voxels, grid), AffineTransform(matrix), grid, outside)
    places = AffineTransform(matrix).inverse().apply(drawn.places)
    truth = (places - drawn.fixed.grid.positions()).astype(np.float32)
    return replace(drawn, moving=Image(moved, grid), truth=truth)


def _unrelated(drawn: Drawn, moving: np.ndarray) -> Drawn:
    """A moving image that shows other tissue: no place is right."""
    nowhere = np.full_like(drawn.truth, np.inf)
    return replace(drawn, moving=Image(moving, drawn.moving.grid, "moving"), truth=nowhere)


def mirrored(drawn: Drawn) -> Drawn:
    """The moving image mirrored along its first axis."""
    return _unrelated(drawn, np.ascontiguousarray(drawn.moving.read()[::-1]))


def unrelated(drawn: Drawn, recipe: Recipe) -> Drawn:
    """The moving image of another seed."""
    other = draw_recipe(replace(recipe, seed=recipe.seed + 1000))
    return _unrelated(drawn, other.moving.read())


def wrong_channel(drawn: Drawn, recipe: Recipe) -> Drawn:
    """A moving image of another texture."""
    texture = _TEXTURES[(_TEXTURES.index(recipe.texture) + 1) % len(_TEXTURES)]
    other = draw_recipe(replace(recipe, seed=recipe.seed + 1000, texture=texture))
    return _unrelated(drawn, other.moving.read())


def noise(drawn: Drawn) -> Drawn:
    """A moving image of photons alone."""
    return _unrelated(drawn, drawn.rng.poisson(20, drawn.moving.shape).astype(np.float32))


def wrong_spacing(drawn: Drawn) -> Drawn:
    """The moving image said to be twice as deep as it is."""
    grid = drawn.moving.grid
    stated = Grid(grid.shape, (*grid.spacing[:-1], 2 * grid.spacing[-1]))
    return _unrelated(
        replace(drawn, moving=Image(drawn.moving.read(), stated)), drawn.moving.read()
    )


# Kinds whose transform is made, not found.
_NOT_REGISTERED = ("perturbed", "undeformed")
_FURTHER: dict[str, Callable[..., Drawn]] = {
    "turned": turned,
    "mirrored": mirrored,
    "unrelated": unrelated,
    "wrong channel": wrong_channel,
    "noise": noise,
    "wrong spacing": wrong_spacing,
}
KINDS = (*(k for k in RECIPES if k not in _NOT_REGISTERED), *_FURTHER)


def make(kind: str, texture: str, seed: int) -> tuple[Drawn, AffineTransform | None]:
    """A pair of a kind, and a start where one is given: a wrong one."""
    recipe = Recipe(kind if kind in RECIPES else "good", texture, seed, _SHAPE)
    drawn = draw_recipe(recipe)
    if kind in _FURTHER:
        make_it = _FURTHER[kind]
        asks = kind in ("unrelated", "wrong channel")
        return (make_it(drawn, recipe) if asks else make_it(drawn)), None
    if kind != "wrong start":
        return drawn, None
    matrix = np.eye(4)
    matrix[:3, 3] = drawn.rng.choice([-1, 1], 3) * drawn.rng.uniform(12, 24, 3)
    return drawn, AffineTransform(matrix)


def judge(kind: str, texture: str, seed: int) -> dict[str, Any]:
    """Register a pair with the defaults; its truth, the verdict, and what it rests on."""
    drawn, initial = make(kind, texture, seed)
    row: dict[str, Any] = {"kind": kind, "texture": texture, "seed": seed}
    began = time.perf_counter()
    images = [_with_axes(image) for image in (drawn.fixed, drawn.moving)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        settings = itkstream.RegisterSettings(report=False)
        try:
            found = itkstream.register(*images, out, settings=settings, initial_transform=initial)
        except RegistrationError as error:
            truth = "bad" if np.isinf(drawn.truth).all() else "refused"
            return row | {"truth": truth, "outcome": "failed", "said": str(error)[:200]}
        error = drawn.error(found.transform)[drawn.tissue]
    error = error[np.isfinite(error)]
    verdict = found.verdict
    told = found.report["error"]
    return row | {
        "truth": _truth(error),
        "outcome": verdict.outcome,
        "p95": float(np.percentile(error, 95)) if error.size else None,
        "far": float((error > _FAR_VOX).mean()) if error.size else None,
        "shares": verdict.share_of_tissue,
        "overlap": verdict.overlap,
        "correlation": [s.get("local_correlation") for s in found.report["steps"]],
        "chance": told["chance"],
        "predicted": [told["median_um"], told["p95_um"]],
        "reasons": verdict.reasons,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _with_axes(image: Image) -> Image:
    return Image(image.read(), replace(image.grid, axes_stated=True))


def _truth(error: np.ndarray) -> str:
    if not error.size or (error > _FAR_VOX).mean() > _FAR_SHARE:
        return "bad"
    return "good" if np.percentile(error, 95) < _NEAR_VOX else "between"


def tabulate(rows: Sequence[dict[str, Any]]) -> Table:
    """Verdicts by truth and kind."""
    table = Table("truth", "kind", "good", "look", "failed")
    for truth in ("good", "between", "refused", "bad"):
        for kind in KINDS:
            these = [r["outcome"] for r in rows if (r["truth"], r["kind"]) == (truth, kind)]
            if these:
                table.add_row(
                    truth, kind, *(str(these.count(o)) for o in ("good", "look", "failed"))
                )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge pairs of some kinds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--textures", nargs="*", default=list(_TEXTURES), choices=_TEXTURES)
    options = parser.parse_args(arguments)
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        for kind in options.kinds:
            for texture in options.textures:
                rows.append(judge(kind, texture, seed))
                sys.stdout.write(json.dumps(rows[-1]) + "\n")
                sys.stdout.flush()
    Console(width=80).print(tabulate(rows))


if __name__ == "__main__":
    main()
