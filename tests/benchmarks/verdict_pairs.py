"""Seeded pairs on which verdicts are tried: well made, damaged, and such that no answer is right.

Kinds of `error_pairs` whose registration is left to be found; beside these a moving image that is
turned, mirrored, of another seed, of another texture, of photons alone, or whose spacing is said
wrong; and real images moved by a known map, shrunk, whole or in part. Synthetic textures, and real
ones where these lie beside the repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from error_pairs import KINDS as RECIPES
from error_pairs import REAL_FOLDER, REAL_TEXTURES, Drawn, Recipe, draw_recipe
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from itkstream.geometry import AffineTransform, Grid, Image, Transform
from itkstream.io import open_image
from itkstream.numerics.sampling.pyramid import shrink
from itkstream.numerics.sampling.warping import WarpSettings, warp_block

__all__ = ["KINDS", "TEXTURES", "Case", "Pair", "list_cases", "make_pair"]

Points = NDArray[np.float64]

SYNTHETIC = ("nuclei", "spheres", "membranes", "mottled", "filaments")
TEXTURES = (*SYNTHETIC, *REAL_TEXTURES)
"""Synthetic ones, and parts of real images."""

# Voxels per axis that are averaged in real pairs.
_REAL_PAIRS = {
    "membranes": (1, 2, 2),
    "neuron": (2, 2, 2),
    "mri_to_template": (2, 2, 2),
    "zf_two_stains": (2, 2, 2),
    "vessels_2d": (2, 2),
    "cell_membranes_2d": (4, 4),
}

_SHAPE = (72, 64, 64)
# Every so many tissue voxels the error is measured.
_THINNED = 11


@dataclass(frozen=True)
class Case:
    """A pair to be made.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    texture : str
        One of `TEXTURES`; for real pairs the name of one.
    seed : int
        The same seed, the same bits.
    """

    kind: str
    texture: str
    seed: int

    @property
    def name(self) -> str:
        """A name of its own."""
        return f"{self.kind}-{self.texture}-{self.seed}".replace(" ", "_")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images, where points of the tissue belong, and the start that is given.

    Parameters
    ----------
    fixed, moving : Image
        In memory.
    points : ndarray, (m, n)
        Places in the tissue of the fixed image, in micrometers.
    places : ndarray, (m, n) or None
        Where they lie in the moving image; None where no answer is right.
    initial : AffineTransform or None
        A wrong start, or none.
    is_whole : bool
        Whether the moving image shows the tissue. Of what was replaced by other tissue there is
        no right place: `places` tell where it would have been.
    """

    fixed: Image
    moving: Image
    points: Points
    places: Points | None
    initial: AffineTransform | None = None
    is_whole: bool = True

    def error_vox(self, transform: Transform) -> Points:
        """Distances from the truth, in voxels; infinite where no answer is right.

        NaN where the moving image does not show the place.
        """
        if self.places is None:
            return np.full(len(self.points), np.inf)
        index = self.moving.grid.to_index(self.places)
        seen = ((index >= 0) & (index <= np.subtract(self.moving.shape, 1))).all(axis=-1)
        off = np.linalg.norm(transform.apply(self.points) - self.places, axis=-1)
        return np.where(seen, off / self.fixed.grid.least_spacing, np.nan)


def turned(drawn: Drawn, recipe: Recipe) -> Drawn:
    """The moving image turned by 20 to 170 degrees about its middle."""
    axis = drawn.rng.normal(size=3)
    turn = axis / np.linalg.norm(axis) * drawn.rng.uniform(20, 170)
    grid = drawn.moving.grid
    middle = grid.to_physical((np.asarray(grid.shape) - 1) / 2)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle
    spin, voxels = AffineTransform(matrix), np.asarray(drawn.moving.read(), np.float32)
    outside = WarpSettings(background=float(np.percentile(voxels, 1)), dtype=np.float32)
    moved = warp_block(Image(voxels, grid), spin, grid, outside)
    truth = spin.inverse().apply(drawn.places) - drawn.fixed.grid.positions()
    return replace(drawn, moving=Image(moved, grid), truth=truth.astype(np.float32))


def mirrored(drawn: Drawn, recipe: Recipe) -> Drawn:
    """The moving image mirrored along its first axis."""
    return _showing(drawn, drawn.moving.read()[::-1])


def unrelated(drawn: Drawn, recipe: Recipe) -> Drawn:
    """The moving image of another seed."""
    return _showing(drawn, draw_recipe(replace(recipe, seed=recipe.seed + 1000)).moving.read())


def wrong_channel(drawn: Drawn, recipe: Recipe) -> Drawn:
    """A moving image of another texture."""
    other = SYNTHETIC[(TEXTURES.index(recipe.texture) + 1) % len(SYNTHETIC)]
    return unrelated(drawn, replace(recipe, texture=other))


def noise(drawn: Drawn, recipe: Recipe) -> Drawn:
    """A moving image of photons alone."""
    return _showing(drawn, drawn.rng.poisson(20, drawn.moving.shape).astype(np.float32))


def wrong_spacing(drawn: Drawn, recipe: Recipe) -> Drawn:
    """The moving image said to be twice as deep as it is."""
    grid = drawn.moving.grid
    stated = Grid(grid.shape, (*grid.spacing[:-1], 2 * grid.spacing[-1]))
    return replace(drawn, moving=Image(drawn.moving.read(), stated))


def _showing(drawn: Drawn, moving: NDArray[np.float32]) -> Drawn:
    return replace(drawn, moving=Image(np.ascontiguousarray(moving), drawn.moving.grid, "moving"))


# No answer is right for these, but turned ones.
_FURTHER: dict[str, Callable[[Drawn, Recipe], Drawn]] = {
    "turned": turned,
    "mirrored": mirrored,
    "unrelated": unrelated,
    "wrong channel": wrong_channel,
    "noise": noise,
    "wrong spacing": wrong_spacing,
}
# Transforms of these are made, not found.
_NOT_REGISTERED = ("perturbed", "undeformed")
_DRAWN_KINDS = (*(k for k in RECIPES if k not in _NOT_REGISTERED), *_FURTHER)
_REAL_KINDS = ("real pair", "real half")
KINDS = (*_DRAWN_KINDS, *_REAL_KINDS)
"""Things done to a pair."""


def list_cases(seeds: Iterable[int], kinds: Iterable[str] = KINDS) -> list[Case]:
    """Name the cases of some kinds: of each kind half of the textures, the others with the next.

    Parameters
    ----------
    seeds : iterable of int
        Each makes some seventy cases.
    kinds : iterable of str, optional
        All of them by default.

    Returns
    -------
    list of Case
        Without those of real images where these are not there.
    """
    wanted = [k for k in KINDS if k in set(kinds)]
    textures = TEXTURES if REAL_FOLDER.exists() else SYNTHETIC
    cases = []
    for seed in seeds:
        for kind in (k for k in wanted if k in _DRAWN_KINDS):
            first = (KINDS.index(kind) + seed) % 2
            cases += [Case(kind, texture, seed) for texture in textures[first::2]]
    if REAL_FOLDER.exists():
        # There is one of each.
        cases += [Case(k, name, 0) for k in wanted if k in _REAL_KINDS for name in _REAL_PAIRS]
    return cases


def make_pair(case: Case) -> Pair:
    """Make a pair.

    Parameters
    ----------
    case : Case
        Which.

    Returns
    -------
    Pair
        In memory.
    """
    if case.kind in _REAL_KINDS:
        return _read_real(case.texture, case.kind == "real half")
    known = case.kind in RECIPES
    recipe = Recipe(case.kind if known else "good", case.texture, case.seed, _SHAPE)
    drawn = draw_recipe(recipe)
    if not known:
        drawn = _FURTHER[case.kind](drawn, recipe)
    chosen = tuple(np.argwhere(drawn.tissue)[::_THINNED].T)
    points = drawn.fixed.grid.positions()[chosen]
    places = drawn.places[chosen] if known or case.kind == "turned" else None
    initial = _wrong_start(drawn.rng) if case.kind == "wrong start" else None
    images = _with_axes(drawn.fixed), _with_axes(drawn.moving)
    return Pair(*images, points, places, initial, is_whole=case.kind != "torn")


def _wrong_start(rng: np.random.Generator) -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, 3] = rng.choice([-1, 1], 3) * rng.uniform(12, 24, 3)
    return AffineTransform(matrix)


def _read_real(name: str, is_cut: bool) -> Pair:
    """A real pair, shrunk, of whose moving image a half is cut off if so wanted."""
    folder = REAL_FOLDER / "real"
    images = [_shrunk(folder / f"{name}_{w}.nrrd", _REAL_PAIRS[name]) for w in ("fixed", "moving")]
    if is_cut:
        moving = images[1]
        axis = int(np.argmax(moving.shape))
        half = slice(0, round(0.55 * moving.shape[axis]))
        part = moving[tuple(half if a == axis else slice(None) for a in range(moving.ndim))]
        images[1] = Image(np.ascontiguousarray(part.read()), part.grid, "moving")
    truth = np.load(folder / f"{name}_truth.npz")
    return Pair(*images, truth["fixed"][:, ::-1], truth["moving"][:, ::-1])


def _shrunk(path: Path, factors: tuple[int, ...]) -> Image:
    image = open_image(path)
    voxels, grid = shrink(np.asarray(image.read()), image.grid, factors)
    return Image(voxels, grid, path.stem)


def _with_axes(image: Image) -> Image:
    return Image(image.read(), replace(image.grid, axes_stated=True), image.name)
