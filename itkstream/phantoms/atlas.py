"""A brain and an atlas whose true transform, and whose regions in the brain, are known."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Grid, Image
from itkstream.io import create_ome_zarr, write_pyramid
from itkstream.io.images.files.itk_images import write_itk
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import write_text
from itkstream.phantoms.settings import Motion, PhantomSettings
from itkstream.phantoms.truth import SyntheticTransform, draw_truth

__all__ = ["AtlasPhantom", "make_atlas"]

_IDS = (1, 7, 313, 997, 2**24 + 1, 182305689, 614454277, 2**31 - 3)
"""Ids of the regions; those of the Allen atlas have as many digits."""

_SIGNAL = 100
_BLOBS = 160
_AXES = ("z", "y", "x")
# Blobs reach so many of their widths.
_REACH = 3.5


@dataclass(frozen=True)
class AtlasPhantom:
    """A brain, the template and the annotation of an atlas, and what is true of them.

    Parameters
    ----------
    brain : Image
        uint16; lies as `orientation` says.
    signal : Image
        A second channel of the brain, uint16: 100, 200 and so on in the regions, in the order of
        `names`.
    template : Image
        uint16.
    annotation : Image
        uint32, on the template's voxels; 0 outside.
    regions : Image
        The true annotation of the brain, on its voxels.
    names : dict of int to (str, str)
        Acronym and name of each region.
    orientation : (str, str)
        How brain and template lie, in brainglobe's letters.

    Examples
    --------
    >>> atlas = itkstream.phantoms.make_atlas((32, 28, 24))
    >>> atlas.annotation.shape == atlas.template.shape
    True
    """

    brain: Image
    signal: Image
    template: Image
    annotation: Image
    regions: Image
    names: dict[int, tuple[str, str]]
    orientation: tuple[str, str]

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``brain.ome.zarr`` and ``template``, ``annotation`` and ``truth`` as ``.nrrd``.

        Beside them ``names.csv``. The brain has two channels, which have no names; ``truth`` is the
        true annotation of the brain.

        Parameters
        ----------
        folder : path
            The folder; it is made where it is not there.

        Examples
        --------
        >>> itkstream.phantoms.make_atlas((32, 28, 24)).write("small_atlas")
        >>> itkstream.open_image("small_atlas/template.nrrd").shape
        (32, 28, 24)
        """
        place = Location.parse(folder)
        place.make_folder()
        brain = str(place / "brain.ome.zarr")
        channels = [self.brain.read(), self.signal.read()]
        chunks, grid = tuple(min(64, n) for n in self.brain.shape), self.brain.grid
        target = create_ome_zarr(brain, grid, np.uint16, chunks=chunks, series={"c": 2})
        target[...] = np.stack(channels)
        write_pyramid(brain)
        files = {"template": self.template, "annotation": self.annotation, "truth": self.regions}
        for name, image in files.items():
            write_itk(str(place / f"{name}.nrrd"), image)
        text = io.StringIO()
        rows = [(number, *words) for number, words in self.names.items()]
        csv.writer(text, lineterminator="\n").writerows([("id", "acronym", "name"), *rows])
        write_text(place / "names.csv", text.getvalue())


def make_atlas(
    shape: tuple[int, int, int] = (96, 80, 72), seed: int = 0, spacing: float = 25.0
) -> AtlasPhantom:
    """Make an atlas of eight regions, and a brain that is a bent and turned copy of its template.

    The brain is an ellipsoid of eight regions of different brightness, with texture. Both images
    sample the same functions, the brain at the exact positions of the true map, so neither is an
    interpolation of the other. Some ids are above 2^24, beyond which float32 loses whole numbers.

    Parameters
    ----------
    shape : (int, int, int)
        Voxels of the template, z, y, x.
    seed : int
        Same arguments, same seed: same bits.
    spacing : float
        Voxel spacing, in µm.

    Returns
    -------
    AtlasPhantom
        Images, true regions, names. The template lies "asr", the brain "sal".

    Examples
    --------
    >>> atlas = itkstream.phantoms.make_atlas((32, 28, 24))
    >>> atlas.template.shape
    (32, 28, 24)
    """
    grid = Grid(shape, (spacing,) * 3, axes=_AXES)
    head = _draw_head(grid, seed)
    truth = _draw_truth(grid, seed)
    rng = np.random.default_rng([seed, 12])
    template, labels = _photograph(head, grid, grid.positions().reshape(-1, 3), rng)
    moved = truth(grid.positions().reshape(-1, 3))
    brain, regions = _photograph(head, grid, moved, rng)
    signal = (_SIGNAL * np.searchsorted(_IDS, regions) + _SIGNAL) * (regions > 0)
    names = {i: (f"R{n}", f"Region {n}") for n, i in enumerate(_IDS, 1)}
    laid = [_turn(values, grid) for values in (brain, signal.astype(np.uint16), regions)]
    return AtlasPhantom(
        laid[0],
        laid[1],
        Image(template, grid, "template"),
        Image(labels, grid, "annotation"),
        laid[2],
        names,
        ("sal", "asr"),
    )


@dataclass(frozen=True, eq=False)
class _Head:
    """Centres of regions and of blobs of texture, in µm; brightness of both."""

    middle: NDArray[np.float64]
    half: NDArray[np.float64]
    seeds: NDArray[np.float64]
    levels: NDArray[np.float64]
    blobs: NDArray[np.float64]
    widths: NDArray[np.float64]
    heights: NDArray[np.float64]

    def share(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared radius of points in the ellipsoid, 1 on its surface."""
        return np.asarray((((points - self.middle) / self.half) ** 2).sum(axis=1))

    def light(self, points: NDArray[np.float64], region: NDArray[np.intp]) -> NDArray[np.float64]:
        """Brightness of points: their region's, and the texture."""
        found = self.levels[region]
        for centre, width, height in zip(self.blobs, self.widths, self.heights, strict=True):
            near = np.flatnonzero((np.abs(points - centre) < _REACH * width).all(axis=1))
            squared = ((points[near] - centre) ** 2).sum(axis=1)
            found[near] += height * np.exp(-squared / (2 * width**2))
        return found


def _draw_head(grid: Grid, seed: int) -> _Head:
    """Draw regions, well apart, and texture."""
    rng = np.random.default_rng([seed, 11])
    extent = np.array(grid.shape) * np.array(grid.spacing)
    middle, half = extent / 2, extent * 0.36
    corners = np.stack(np.meshgrid(*([-1, 1],) * 3, indexing="ij"), -1).reshape(-1, 3)
    seeds = middle + half * (0.45 * corners + rng.uniform(-0.15, 0.15, (8, 3)))
    inside = rng.normal(size=(_BLOBS, 3))
    inside *= (rng.uniform(0, 1, _BLOBS) ** (1 / 3) / np.linalg.norm(inside, axis=1))[:, None]
    return _Head(
        middle,
        half,
        seeds,
        rng.permutation(np.linspace(500, 1500, len(_IDS))),
        middle + half * inside,
        rng.uniform(1.2, 3.0, _BLOBS) * grid.spacing[0],
        rng.uniform(-400, 700, _BLOBS),
    )


def _photograph(
    head: _Head, grid: Grid, points: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Sample image and regions at points, one for each voxel, with the noise of a camera."""
    apart = np.stack([((points - centre) ** 2).sum(axis=1) for centre in head.seeds])
    region = apart.argmin(axis=0)
    within = head.share(points) < 1
    light = np.where(within, head.light(points, region), 60.0)
    light += rng.normal(0, 25, len(points))
    labels = np.where(within, np.array(_IDS, np.uint32)[region], np.uint32(0))
    counts = np.clip(np.rint(light), 0, 65535).astype(np.uint16)
    return counts.reshape(grid.shape), labels.reshape(grid.shape)


def _draw_truth(grid: Grid, seed: int) -> SyntheticTransform:
    """Draw the map from the brain's points, before it is turned, to the template's."""
    motion = Motion(6.0, 0.05, 0.02, 0.04, 3.0 * grid.spacing[0])
    settings = PhantomSettings(grid.shape, grid.spacing, seed, motion=motion)
    return draw_truth(settings)


def _turn(values: NDArray[np.generic], grid: Grid) -> Image:
    """Lay an image that lies "asr" as "sal"."""
    turned = np.ascontiguousarray(values.transpose(1, 0, 2)[:, :, ::-1])
    shape = turned.shape
    return Image(turned, Grid(shape, grid.spacing, axes=_AXES), "brain")
