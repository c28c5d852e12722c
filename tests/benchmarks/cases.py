"""Image pairs with a known deformation, made from real texture.

How the truth is built: the fixed image F is the texture itself. A smooth random displacement d
from fixed to moving points is drawn, its inverse e(q) = -d(q + e(q)) is found by fixed-point
iteration to a thousandth of a voxel, and the moving image is M(q) = F(q + e(q)), sampled with a
cubic spline, so that M(p + d(p)) = F(p) and d is known at every fixed voxel. Then M is degraded:
gamma, another contrast, a smooth multiplicative bias, Poisson noise; some cases degrade F, or both,
independently.
The roles matter to engines that take the gradient of one image: degrading F in place of M halves
the error of picsl-greedy.

A case with `group` averages so many fine voxels per axis after the deformation, as a microscope
with thicker planes does; the truth is then the mean of d in each group. Errors count in fine
voxels: physical error over fine spacing, axis by axis. Tissue is where F, blurred, is bright, at
least 16 fine voxels away from the border.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, ndimage

from itkstream.io import open_image

__all__ = [
    "CASES",
    "CLEAN",
    "Case",
    "Degradation",
    "Pair",
    "Score",
    "inverse_places",
    "load_texture",
    "make_pair",
    "shrunk",
]

Floats = NDArray[np.float32]
Contrast = Literal["same", "inverted", "remapped"]

ROOT = Path(__file__).resolve().parents[2]
TEXTURES = (
    ROOT.parent / "shared" / "data" / "easifish" / "fix.n5" / "lowres",
    ROOT / "resources" / "fix.n5" / "lowres",
)
BORDER = 16
_INVERSE_TOLERANCE_VOX = 1e-3
_MOST_ITERATIONS = 100
# Brightnesses between which the curve of another contrast is smooth, and the least share of its
# range by which it rises and falls.
_KNOTS, _LEAST_TURN = 6, 0.3
BLOCK = ((100, 40, 0), (160, 160, 149))
PART = ((124, 64, 26), (112, 112, 96))
SLAB = ((100, 40, 1), (160, 160, 147))


@dataclass(frozen=True)
class Degradation:
    """What an image suffers.

    Parameters
    ----------
    gamma : float
        Exponent of intensities between 0 and 1.
    bias : float
        Greatest relative change by a smooth multiplicative field.
    counts : float
        Photons of the brightest voxels, for Poisson noise; 0 for none.
    contrast : {'same', 'inverted', 'remapped'}
        Whether dark becomes bright, or every brightness a random other one, by a smooth curve that
        both rises and falls.
    """

    gamma: float = 1.0
    bias: float = 0.0
    counts: float = 0.0
    contrast: Contrast = "same"


CLEAN = Degradation()
HARD = Degradation(0.8, 0.3, 150.0)
# Photons count what the stain shows, and backgrounds that are bright now have noise of their own.
INVERTED = replace(HARD, contrast="inverted")
REMAPPED = replace(HARD, contrast="remapped")


@dataclass(frozen=True)
class Case:
    """How a pair is made.

    Parameters
    ----------
    name : str
        On the command line and in results.
    fields : tuple of (float, float)
        Gaussian scale and longest vector, in fine voxels, of the smooth random fields whose sum
        is the displacement.
    moving, fixed : Degradation
        Of the images.
    group : tuple of int
        Fine voxels averaged per axis.
    spacing : tuple of float, optional
        Fine spacing in micrometers; default the texture's own.
    region : tuple
        First voxel and size of the part of the texture that is used, where it is so large.
    """

    name: str
    fields: tuple[tuple[float, float], ...] = ((24.0, 5.0), (12.0, 1.5))
    moving: Degradation = HARD
    fixed: Degradation = CLEAN
    group: tuple[int, int, int] = (1, 1, 1)
    spacing: tuple[float, float, float] | None = None
    region: tuple[tuple[int, int, int], tuple[int, int, int]] = PART


CASES = {
    case.name: case
    for case in (
        Case("block", region=BLOCK),
        Case("clean", moving=CLEAN),
        Case("gamma", moving=Degradation(gamma=0.6)),
        Case("bias", moving=Degradation(bias=0.3)),
        Case("noise", moving=Degradation(counts=50.0)),
        Case("fixed-degraded", moving=CLEAN, fixed=HARD),
        Case("both-degraded", fixed=Degradation(1.2, 0.3, 150.0)),
        Case("small", fields=((24.0, 1.5), (12.0, 0.5))),
        Case("large", fields=((32.0, 8.5), (12.0, 1.5))),
        Case("large-clean", fields=((32.0, 8.5), (12.0, 1.5)), moving=CLEAN),
        Case("short", fields=((12.0, 4.0), (7.0, 2.0))),
        Case("shortest", fields=((10.0, 3.0), (5.0, 1.5))),
        Case("anisotropic", group=(1, 1, 3), region=SLAB),
        Case("anisotropic-clean", moving=CLEAN, group=(1, 1, 3), region=SLAB),
        Case("submicron", spacing=(0.23, 0.23, 0.21)),
        Case("submicron-anisotropic", group=(1, 1, 3), spacing=(0.23, 0.23, 0.21), region=SLAB),
        Case("coarse", spacing=(4.0, 4.0, 4.0)),
        Case("inverted", moving=INVERTED),
        Case("remapped", moving=REMAPPED),
        Case("remapped-block", moving=REMAPPED, region=BLOCK),
        Case("remapped-short", fields=((12.0, 4.0), (7.0, 2.0)), moving=REMAPPED),
    )
}


@dataclass(frozen=True, eq=False)
class Score:
    """How well a displacement field agrees with the truth.

    Parameters
    ----------
    median, p95, greatest : float
        Target registration error in tissue, in fine voxels.
    folds : int
        Voxels of the whole image whose Jacobian determinant is not positive.
    least_jacobian : float
        Its minimum.
    """

    median: float
    p95: float
    greatest: float
    folds: int
    least_jacobian: float


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images and the map between them.

    Parameters
    ----------
    fixed, moving : ndarray, float32
        The images, of one shape.
    truth : ndarray, shape + (3,), float32
        Displacement from fixed to moving points, in micrometers.
    tissue : ndarray of bool
        Where errors count.
    spacing : ndarray, (3,)
        Micrometers per voxel.
    group : ndarray, (3,)
        Fine voxels per voxel.
    """

    fixed: Floats
    moving: Floats
    truth: Floats
    tissue: NDArray[np.bool_]
    spacing: NDArray[np.float64]
    group: NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        """Checksum of all that an engine gets and is judged by."""
        parts = (self.fixed, self.moving, self.truth, self.tissue, self.spacing)
        return f"{reduce(lambda crc, part: zlib.crc32(part.tobytes(), crc), parts, 0):08x}"

    def score(self, displacement: NDArray[Any]) -> Score:
        """Compare a displacement field with the truth.

        Parameters
        ----------
        displacement : ndarray, shape + (3,)
            From fixed to moving points, in micrometers.

        Returns
        -------
        Score
            NaN errors where the field has NaN in tissue.
        """
        fine = (self.spacing / self.group).astype(np.float32)
        difference = (displacement[self.tissue] - self.truth[self.tissue]) / fine
        error = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        determinant = _jacobian(displacement / self.spacing.astype(np.float32))
        return Score(
            float(np.median(error)),
            float(np.percentile(error, 95)),
            float(error.max()),
            int(np.count_nonzero(~(determinant > 0))),
            float(determinant.min()),
        )


@lru_cache(maxsize=1)
def load_texture() -> tuple[Floats, tuple[float, ...], str]:
    """The texture all cases are made from.

    Returns
    -------
    ndarray, float32
        The image, x first.
    tuple of float
        Its spacing in micrometers.
    str
        Where it comes from.
    """
    path = next(p for p in TEXTURES if p.exists())
    image = open_image(path)
    return image.read().astype(np.float32), image.spacing, path.parent.parent.name


def make_pair(case: Case, seed: int, limit: int | None = None) -> Pair:
    """Make the images of a case.

    Parameters
    ----------
    case : Case
        What to make.
    seed : int
        The same seed, the same bits; every case draws its own numbers.
    limit : int, optional
        At most so many fine voxels per axis.

    Returns
    -------
    Pair
        The images and their truth.
    """
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    texture, own_spacing, _ = load_texture()
    fine = np.asarray(case.spacing or own_spacing)
    fixed = texture[_region(texture.shape, case, limit)]
    vectors = _smooth_field(fixed.shape, case.fields, rng)
    moving = ndimage.map_coordinates(fixed, inverse_places(vectors), order=3, mode="nearest")
    tissue = _average(_tissue(fixed), case.group) > 0.5
    fixed, moving = (_average(image, case.group) for image in (fixed, moving))
    return Pair(
        _degrade(fixed, case.fixed, rng),
        _degrade(moving, case.moving, rng),
        _average(vectors, case.group) * fine.astype(np.float32),
        tissue,
        fine * case.group,
        np.asarray(case.group),
    )


def shrunk(case: Case, factor: float) -> Case:
    """A case with fields of smaller scale and amplitude, for a tiny image.

    Parameters
    ----------
    case : Case
        The case.
    factor : float
        What scales and amplitudes are divided by.

    Returns
    -------
    Case
        Otherwise the same.
    """
    fields = tuple((scale / factor, longest / factor) for scale, longest in case.fields)
    return replace(case, fields=fields)


def _region(shape: tuple[int, ...], case: Case, limit: int | None) -> tuple[slice, ...]:
    slices = []
    for length, first, wanted, group in zip(shape, *case.region, case.group, strict=True):
        size = min(length, wanted, limit or wanted) // group * group
        # A smaller part than wanted is taken from the middle of the wanted one.
        start = min(first + (wanted - size) // 2, length - size)
        slices.append(slice(start, start + size))
    return tuple(slices)


def _smooth_field(
    shape: tuple[int, ...], fields: tuple[tuple[float, float], ...], rng: np.random.Generator
) -> Floats:
    total = np.zeros((*shape, 3), np.float32)
    for scale, longest in fields:
        noise = rng.standard_normal((3, *shape), np.float32)
        part = np.stack([ndimage.gaussian_filter(n, scale, mode="reflect") for n in noise], -1)
        total += part * (longest / np.linalg.norm(part, axis=-1).max())
    return total


def inverse_places(vectors: Floats) -> Floats:
    """Where the inverse of index -> index + vector maps each index; components first."""
    index = np.indices(vectors.shape[:-1], np.float32)
    parts = [np.ascontiguousarray(vectors[..., c]) for c in range(vectors.shape[-1])]
    places = index.copy()
    for _ in range(_MOST_ITERATIONS):
        moved = [ndimage.map_coordinates(part, places, order=1, mode="nearest") for part in parts]
        new = index - np.stack(moved)
        change = float(np.abs(new - places).max())
        places = new
        if change < _INVERSE_TOLERANCE_VOX:
            return places
    raise RuntimeError(f"the displacement has no inverse: it still changes by {change:.3g} voxels")


def _tissue(image: Floats) -> Floats:
    blurred = ndimage.gaussian_filter(image, 6)
    low, high = np.percentile(blurred, (1, 99))
    inside = np.zeros(image.shape, np.float32)
    inside[tuple(slice(BORDER, n - BORDER) for n in image.shape)] = 1
    return inside * (blurred > low + 0.25 * (high - low))


def _average(values: Floats, group: tuple[int, ...]) -> Floats:
    for axis, count in enumerate(group):
        if count > 1:
            split = (*values.shape[:axis], -1, count, *values.shape[axis + 1 :])
            values = values.reshape(split).mean(axis=axis + 1, dtype=np.float32)
    return values


def _degrade(image: Floats, how: Degradation, rng: np.random.Generator) -> Floats:
    if how == CLEAN:
        return np.ascontiguousarray(image, np.float32)
    bright = np.clip(image, 0, None) / np.percentile(image, 99.9)
    bright = bright**how.gamma
    if how.contrast != "same":
        bright = _curve(how.contrast, rng)(np.clip(bright, 0, 1))
    if how.bias:
        smooth = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), 30)
        bright *= 1 + how.bias * smooth / np.abs(smooth).max()
    if how.counts:
        bright = rng.poisson(how.counts * bright)
    return np.ascontiguousarray(bright, np.float32)


def _curve(contrast: Contrast, rng: np.random.Generator) -> Callable[[Floats], Any]:
    """From brightness to that of another stain, both 0 to 1."""
    if contrast == "inverted":
        return lambda bright: 1 - bright
    while True:
        heights = rng.random(_KNOTS)
        heights = (heights - heights.min()) / np.ptp(heights)
        steps = np.diff(heights)
        if min(steps.clip(0).sum(), -steps.clip(None, 0).sum()) >= _LEAST_TURN:
            smooth = interpolate.PchipInterpolator(np.linspace(0, 1, _KNOTS), heights)
            # Rounding leaves its lowest point a little below 0, where no photons are.
            return lambda bright: smooth(bright).clip(0)


def _jacobian(vectors: Floats) -> Floats:
    """Determinant of the map index -> index + vector, by central differences."""
    rows = [list(np.gradient(vectors[..., c])) for c in range(3)]
    for axis in range(3):
        rows[axis][axis] += 1
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
