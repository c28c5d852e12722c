"""Small seeded pairs of known truth, registered, on which the error map is fitted and tried.

A texture is drawn on a lattice that reaches beyond both images. With a smooth random displacement d
and its inverse e, the moving image is M(q) = F(q + e(q)), so that M(p + d(p)) = F(p); both are then
degraded, each with noise of its own. What is done to the pair beside that is its kind: tissue that
is missing in the moving image, replaced by other tissue, moved as a piece or out of view, a wrong
start. One deformation of the whole image, from an affine that is a little wrong, is what is judged.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from cases import inverse_places
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Transform,
)
from itkstream.io import open_image
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS, PIPELINE_MIND
from itkstream.numerics.engines import deform_block
from itkstream.numerics.evidence.stiffness import stiffened
from itkstream.numerics.sampling.pyramid import shrink

__all__ = [
    "FIT_TEXTURES",
    "KINDS",
    "REAL_FOLDER",
    "REAL_TEXTURES",
    "UNSEEN_TEXTURES",
    "Drawn",
    "Recipe",
    "Registered",
    "draw_recipe",
    "list_recipes",
    "register_recipe",
]

Floats = NDArray[np.float32]

REAL_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"

KINDS = (
    *("good", "strong", "noisy", "missing", "remapped"),
    *("torn", "slipped", "half", "shuffled", "wrong start"),
    *("undeformed", "perturbed"),
)
"""Things done to a pair. The true place of what was replaced is where it would have been."""

_PAD = 12

# Photons of the brightest voxels where images are noisy.
_FAINT = 12.0

# Waves longer than so many voxels are drawn on a coarser lattice.
_LONG = 4.0


@dataclass(frozen=True)
class Recipe:
    """A pair to be made.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    texture : str
        One of `FIT_TEXTURES` or `UNSEEN_TEXTURES`.
    seed : int
        The same seed, the same bits.
    shape : tuple of int
        Voxels of the fixed image, two or three axes.
    spacing : tuple of float
        Micrometers per voxel and axis.
    """

    kind: str
    texture: str
    seed: int
    shape: tuple[int, ...] = (72, 64, 60)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def name(self) -> str:
        """A name of its own."""
        size = "x".join(map(str, self.shape))
        return f"{self.kind}-{self.texture}-{self.seed}-{size}".replace(" ", "_")


@dataclass(frozen=True, eq=False)
class Registered:
    """A pair, its registration, and how far that is off.

    Parameters
    ----------
    fixed, moving : Image
        The images.
    transform : Transform
        What was found, from fixed to moving points.
    error : ndarray, fixed shape
        Distance from the true place, in micrometers; NaN where the moving image does not show it.
    tissue : ndarray of bool, fixed shape
        Where errors count.
    """

    fixed: Image
    moving: Image
    transform: Transform
    error: Floats
    tissue: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A pair, its true displacement, and what else is still to be drawn.

    Parameters
    ----------
    fixed, moving : Image
        The images.
    truth : ndarray, fixed shape + (n,)
        Vectors from every fixed voxel to its place in the moving image, in micrometers.
    tissue : ndarray of bool, fixed shape
        Where errors count.
    rng : Generator
        As it was left.
    """

    fixed: Image
    moving: Image
    truth: Floats
    tissue: NDArray[np.bool_]
    rng: np.random.Generator

    @property
    def places(self) -> NDArray[np.float64]:
        """True moving places of the fixed voxels, in micrometers."""
        return self.fixed.grid.positions() + self.truth

    def error(self, transform: Transform) -> Floats:
        """Distance from the true place, in micrometers; NaN where the moving image has none.

        Parameters
        ----------
        transform : Transform
            From fixed to moving points.

        Returns
        -------
        ndarray, fixed shape
            The errors.
        """
        found = transform.apply(self.fixed.grid.positions())
        error = np.linalg.norm(found - self.places, axis=-1).astype(np.float32)
        index = self.moving.grid.to_index(self.places)
        seen = ((index >= 0) & (index <= np.subtract(self.moving.shape, 1))).all(axis=-1)
        return np.where(seen, error, np.float32(np.nan))


def draw_recipe(recipe: Recipe) -> Drawn:
    """Make a pair.

    Parameters
    ----------
    recipe : Recipe
        What to make.

    Returns
    -------
    Drawn
        Not registered.
    """
    rng = np.random.default_rng([recipe.seed, zlib.crc32(recipe.name.encode())])
    large = tuple(n + 2 * _PAD if n > 1 else 1 for n in recipe.shape)
    inner = tuple(slice(_PAD, _PAD + n) if n > 1 else slice(0, 1) for n in recipe.shape)
    texture, tissue = _draw_tissue(recipe.texture, large, rng)
    vectors = _vectors(recipe, large, rng)
    moved = ndimage.map_coordinates(texture, inverse_places(vectors), order=3, mode="nearest")
    axis = int(rng.integers(moved.ndim))
    if recipe.kind in _DAMAGES:
        moved, vectors = _DAMAGES[recipe.kind](moved, vectors, axis, recipe, rng)
    grid = Grid(recipe.shape, recipe.spacing)
    counts = _FAINT if recipe.kind == "noisy" else float(rng.choice([60.0, 150.0, 600.0]))
    fixed = Image(_photograph(texture[inner], 1.0, 2 * counts, rng), grid, "fixed")
    if recipe.kind == "remapped":
        moved = np.abs(np.clip(moved, 0, 1.2) - rng.uniform(0.3, 0.6)) * 1.5
    moving = Image(_photograph(moved[inner], rng.uniform(0.6, 1.3), counts, rng), grid, "moving")
    if recipe.kind == "half":
        moving = _half(moving, rng)
    truth = vectors[inner] * np.asarray(recipe.spacing, np.float32)
    return Drawn(fixed, moving, truth, tissue[inner] > 0.5, rng)


def register_recipe(recipe: Recipe) -> Registered:
    """Make a pair and register it.

    Parameters
    ----------
    recipe : Recipe
        What to make.

    Returns
    -------
    Registered
        With its true errors.
    """
    drawn = draw_recipe(recipe)
    transform = _register(recipe, (drawn.fixed, drawn.moving), drawn.truth, drawn.rng)
    error = drawn.error(transform)
    return Registered(drawn.fixed, drawn.moving, transform, error, drawn.tissue)


def _register(
    recipe: Recipe, pair: tuple[Image, Image], truth: Floats, rng: np.random.Generator
) -> CompositeTransform:
    """One deformation of the whole image, of a stiffness that is drawn; or none, or the truth bent.

    No descent has a part in the latter two.
    """
    fixed, moving = pair
    start = _start(recipe, fixed.grid, rng)
    if recipe.kind == "perturbed":
        waves = [_waves(fixed.shape, float(rng.uniform(7, 20)), rng) for _ in fixed.shape]
        off = np.stack(waves, axis=-1) * np.exp(rng.uniform(np.log(0.2), np.log(8.0)))
        field = DisplacementField(truth + off * np.float32(min(recipe.spacing)), fixed.grid)
        return CompositeTransform((field, AffineTransform(np.eye(fixed.ndim + 1))))
    if recipe.kind == "undeformed":
        none = np.zeros((*fixed.shape, fixed.ndim), np.float32)
        return CompositeTransform((DisplacementField(none, fixed.grid), start))
    defaults = PIPELINE_MIND if recipe.kind == "remapped" else PIPELINE_DEFAULTS
    stiffness = float(rng.choice([1.0, 1.0, 0.25, 0.0625]))
    settings = stiffened(defaults.for_voxels(recipe.spacing), stiffness)
    moves = deform_block(fixed, moving, start, settings).displacement
    if moves is None:
        moves = np.zeros((*fixed.shape, fixed.ndim), np.float32)
    return CompositeTransform((DisplacementField(moves, fixed.grid), start))


def _start(recipe: Recipe, grid: Grid, rng: np.random.Generator) -> AffineTransform:
    """An affine that is a voxel off; far off, or turned, where the start is wrong."""
    n = grid.ndim
    middle = grid.to_physical((np.asarray(grid.shape) - 1) / 2)
    wrong = recipe.kind in ("wrong start", "undeformed")
    turn = rng.uniform(20, 90) if wrong and rng.random() < 0.5 else 0.5
    axis = rng.normal(size=3)
    if n == 2:
        axis = np.array([0.0, 0.0, 1.0])
    spin = Rotation.from_rotvec(axis / np.linalg.norm(axis) * turn, degrees=True).as_matrix()
    off = rng.normal(size=n)
    far = rng.uniform(14, 40) if wrong and turn < 1 else 1.0
    if recipe.kind == "undeformed":
        turn, far = turn / 3, np.exp(rng.uniform(np.log(1.0), np.log(40.0)))
        spin = Rotation.from_rotvec(axis / np.linalg.norm(axis) * turn, degrees=True).as_matrix()
    matrix = np.eye(n + 1)
    matrix[:n, :n] = spin[:n, :n]
    off *= far / np.linalg.norm(off) * min(grid.spacing)
    matrix[:n, n] = middle - matrix[:n, :n] @ middle + off
    return AffineTransform(matrix)


def _draw_tissue(
    texture: str, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """A texture that fades outside a soft mask, and the mask."""
    drawn = _TEXTURES[texture](shape, rng)
    mask = _tissue(shape, rng)
    return drawn * (0.05 + 0.95 * mask), mask


def _vectors(recipe: Recipe, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """A sum of a long and a short smooth random field, in voxels."""
    least = min(n for n in shape if n > 1)
    longest = 9.0 if recipe.kind == "strong" else float(rng.choice([1.0, 3.0, 5.0]))
    vectors = np.zeros((*shape, len(shape)), np.float32)
    short = float(rng.choice([0.5, 1.0, 1.5]))
    for scale, most in ((min(24.0, least / 3), longest), (11.0, short)):
        part = np.stack([_waves(shape, scale, rng) for _ in shape], axis=-1)
        vectors += part * (most / np.linalg.norm(part, axis=-1).max())
    return vectors


def _lose_tissue(
    moved: Floats, vectors: Floats, axis: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Blobs of tissue that the moving image does not show."""
    holes = ndimage.gaussian_filter(rng.standard_normal(moved.shape), 4)
    gone = holes > np.quantile(holes, 1 - rng.uniform(0.1, 0.3))
    return np.where(gone, 0.05 * moved, moved).astype(np.float32), vectors


def _replace_half(
    moved: Floats, vectors: Floats, axis: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Other tissue in a quarter to half of the moving image."""
    along = np.indices(moved.shape, np.float32)[axis]
    other, _ = _draw_tissue(recipe.texture, moved.shape, rng)
    cut = rng.uniform(0.25, 0.55) * moved.shape[axis] + 4 * np.sin(along / 9)
    return np.where(along < cut, other, moved), vectors


def _slip_half(
    moved: Floats, vectors: Floats, axis: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Half of the moving image moved as a piece."""
    middle = moved.shape[axis] / 2
    along = np.indices(moved.shape, np.float32)[axis]
    by = int(rng.integers(8, 18)) * int(rng.choice([-1, 1]))
    other = (axis + 1) % moved.ndim
    shift = np.zeros(moved.ndim, np.float32)
    shift[other] = by
    gone = (along + vectors[..., axis] < middle)[..., None] * shift
    return np.where(along < middle, np.roll(moved, by, other), moved), vectors + gone


def _shuffle_slabs(
    moved: Floats, vectors: Floats, axis: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Four slabs of the moving image in another order."""
    order = rng.permutation(4)
    slabs = np.array_split(moved, 4, axis)
    sizes = np.array([slab.shape[axis] for slab in slabs])
    starts = np.cumsum([0, *sizes[:-1]])
    by = np.zeros(4)
    by[order] = np.cumsum([0, *sizes[order][:-1]]) - starts[order]
    places = np.indices(moved.shape, np.float32)[axis] + vectors[..., axis]
    which = np.clip(np.searchsorted(starts, places, side="right") - 1, 0, 3)
    vectors = vectors.copy()
    vectors[..., axis] += by[which].astype(np.float32)
    return np.concatenate([slabs[k] for k in order], axis), vectors


def _half(moving: Image, rng: np.random.Generator) -> Image:
    """About half of an image along its longest axis."""
    axis = int(np.argmax(moving.shape))
    n = moving.shape[axis]
    share = rng.uniform(0.4, 0.6)
    cut = slice(0, int(share * n)) if rng.random() < 0.5 else slice(int((1 - share) * n), n)
    part = moving[tuple(cut if a == axis else slice(None) for a in range(moving.ndim))]
    return Image(np.ascontiguousarray(part.read()), part.grid, "moving")


def _photograph(bright: Floats, gamma: float, counts: float, rng: np.random.Generator) -> Floats:
    """An image under uneven light, with the noise of photons."""
    bright = np.clip(bright, 0, None) ** gamma
    uneven = _waves(bright.shape, 30.0, rng)
    bright = bright * (1 + 0.25 * uneven / np.abs(uneven).max())
    return rng.poisson(counts * bright).astype(np.float32)


def _tissue(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """A soft mask of some three quarters of the lattice."""
    waves = _waves(shape, 18.0, rng)
    steep = (waves - np.quantile(waves, 0.25)) / (0.05 * np.ptp(waves))
    return 1 / (1 + np.exp(-np.clip(steep, -30, 30)))


def _waves(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Floats:
    """Gaussian noise, blurred, of mean square 1."""
    factor = max(1, int(sigma / _LONG))
    coarse = [-(-n // factor) + 4 if n > 1 else 1 for n in shape]
    waves = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), sigma / factor)
    for axis in [a for a, n in enumerate(shape) if n > 1 and factor > 1]:
        waves = np.repeat(waves, factor, axis)
        for _ in range(2):
            waves = ndimage.uniform_filter1d(waves, factor, axis)
    waves = waves[tuple(slice(2 * factor, 2 * factor + n) if n > 1 else slice(None) for n in shape)]
    return np.asarray(waves / np.sqrt(np.mean(waves**2)), np.float32)


def _nuclei(low: float, high: float, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Textured ellipsoids of radii between two numbers, brightness of their own."""
    out = np.zeros(shape, np.float32)
    middle = (low + high) / 2
    volume = (2 * middle) ** sum(n > 1 for n in shape)
    for _ in range(int(0.45 * out.size / volume)):
        centre = rng.uniform(0, 1, len(shape)) * shape
        radii = rng.uniform(low, high, len(shape))
        bright = rng.uniform(0.4, 1.0)
        box = tuple(
            slice(max(0, int(c - r - 2)), min(n, int(c + r + 3)))
            for c, r, n in zip(centre, radii, shape, strict=True)
        )
        places = np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij", sparse=True)
        away = sum(((p - c) / r) ** 2 for p, c, r in zip(places, centre, radii, strict=True))
        body = bright / (1 + np.exp(np.clip(8 * (np.sqrt(away) - 1), -30, 30)))
        out[box] = np.maximum(out[box], body)
    return out * (1 + 0.25 * _waves(shape, 1.2, rng)).clip(0.2)


def _membranes(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    return np.exp(-((_waves(shape, 6.0, rng) / 0.25) ** 2)).astype(np.float32)


def _mottled(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    mixed = sum(s * _waves(shape, s, rng) for s in (1.5, 3.0, 6.0))
    return (0.5 + 0.15 * mixed / 5).clip(0).astype(np.float32)


def _filaments(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    first, second = (_waves(shape, 5.0, rng) for _ in range(2))
    if sum(n > 1 for n in shape) == 2:
        second = 0 * second
    return np.exp(-(first**2 + second**2) / 0.25**2).astype(np.float32)


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    return (0.5 + 0.2 * _waves(shape, 4.5, rng)).clip(0).astype(np.float32)


def _spheres(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Small bright nuclei, dense, in a glow."""
    return _nuclei(2.0, 4.0, shape, rng) + 0.1 * (1 + _waves(shape, 8.0, rng)).clip(0)


_DAMAGES: dict[str, Callable[..., tuple[Floats, Floats]]] = {
    "missing": _lose_tissue,
    "torn": _replace_half,
    "slipped": _slip_half,
    "shuffled": _shuffle_slabs,
}

_TEXTURES: dict[str, Callable[..., Floats]] = {
    "nuclei": partial(_nuclei, 3.5, 7.0),
    "membranes": _membranes,
    "mottled": _mottled,
    "filaments": _filaments,
    "smooth": _smooth,
    "spheres": _spheres,
}


def _real(file: str, factor: int, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """A part of a real image, drawn at random, mirrored where it is too small."""
    image = open_image(REAL_FOLDER / file)
    voxels, _ = shrink(np.asarray(image.read(), np.float32), image.grid, factor)
    spans = zip(voxels.shape, shape, strict=True)
    corner = [int(rng.integers(max(1, n - m + 1))) for n, m in spans]
    part = voxels[tuple(slice(c, c + m) for c, m in zip(corner, shape, strict=True))]
    room = [(0, m - n) for n, m in zip(part.shape, shape, strict=True)]
    part = np.pad(part, room, mode="symmetric")
    low, high = np.percentile(part, (1, 99.5))
    return np.asarray(((part - low) / max(high - low, 1e-6)).clip(0, 1.5), np.float32)


FIT_TEXTURES = ("nuclei", "membranes", "mottled")
UNSEEN_TEXTURES = ("spheres", "filaments", "smooth")
REAL_TEXTURES = {
    "easifish": ("easifish/fix.n5/lowres", 1),
    "mouse": ("real/mouse_turned_fixed.nrrd", 1),
    "brain": ("real/nirep/na01.nii.gz", 2),
}
"""Real images, beside the repository, and how they are shrunk."""

_TEXTURES |= {name: partial(_real, *place) for name, place in REAL_TEXTURES.items()}

_SHAPES = ((72, 64, 60), (64, 60, 80), (160, 144), (72, 64, 24))
_DEEP = (1.0, 1.0, 2.5)


def list_recipes(textures: Iterable[str], seeds: Iterable[int]) -> list[Recipe]:
    """Name all kinds of pairs: volumes, planes, then deep voxels, in turn of the seeds.

    Parameters
    ----------
    textures : iterable of str
        Of the pairs.
    seeds : iterable of int
        Each makes a pair of every kind and texture.

    Returns
    -------
    list of Recipe
        In order of seeds.
    """
    recipes = []
    for seed in seeds:
        shape = _SHAPES[seed % len(_SHAPES)]
        spacing = _DEEP if shape[-1] == 24 else (1.0,) * len(shape)
        recipes += [Recipe(k, t, seed, shape, spacing) for k in KINDS for t in textures]
    return recipes
