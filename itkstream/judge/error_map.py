"""A map of how far off a registration may be, block by block, from an overview of the whole.

The overview is a coarse level of both images, in memory: patches are compared there, deformations
of two halves of the voxels, and parts that do not belong together, which tells what chance reaches.
Blocks then compare patches at up to twice the finest voxel. Each node gets a radius from what both
saw (`itkstream.numerics.evidence.radius`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.levels import read_coarse
from itkstream.blocks.sources import readable
from itkstream.estimate.coarse import moving_factors
from itkstream.geometry import Block, BlockGrid, Grid, Image, Slices, Transform
from itkstream.geometry.grid import voxels_spanning
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS, PIPELINE_MIND
from itkstream.numerics.evidence.chance import ChanceLevel, find_chance
from itkstream.numerics.evidence.contrast import COHERENT, coherence
from itkstream.numerics.evidence.halves import compare_halves
from itkstream.numerics.evidence.quality import tissue_mask
from itkstream.numerics.evidence.radius import (
    REACH_NODES,
    WideEvidence,
    describe_nodes,
    load_table,
    measure_disarray,
)
from itkstream.numerics.evidence.residuals import (
    LEAST_SEEN,
    MEASURES,
    PatchSearch,
    gradient_magnitude,
    measure_patches,
)
from itkstream.numerics.sampling.pyramid import shrink
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.numerics.threads import threads_for, using_threads

__all__ = [
    "OVERVIEW_BYTES",
    "ErrorLattice",
    "Overview",
    "evidence_of",
    "look_over",
    "prepare_error_map",
    "prepare_evidence",
]

Look = Literal["same", "inverted", "edges"]

OVERVIEW_BYTES = 120e6
"""The most that the overview takes while it is made."""

# Voxels of the overview; shifts that are tried, in the smallest voxels.
_OVERVIEW_VOXELS = 2.5e5
_REACH = 4
# An image of more voxels is looked at on a level of half its resolution.
_FINE_VOXELS = 1.5e6
# Lengths found on an overview are in its voxels. Taken for voxels of twice those of the level, as
# where the radii were fitted, 2.5 voxels of error went unseen where they were 3 times as large or
# more: 12, 7 and 0 % of places lay within their radius at 3, 4 and 6 times, and 99 % and more once
# they were scaled. On finer ones, halves that do not find each other look less far: scaled, 48 % of
# places 12 voxels off lay within their radius.
_LEAST_SCALE = 1.0
# Level voxels of a block, about, in each axis.
_BLOCK = 96
# Planes of the level that are resampled at a time.
_PLANES = 16


@dataclass(frozen=True, eq=False)
class Overview:
    """Evidence of a registration on the coarse level of its pair.

    Parameters
    ----------
    grid : Grid
        Lattice of the nodes.
    voxel : float
        The smallest spacing of the level, in which lengths count.
    halves : ndarray, grid.shape + (2,)
        As `compare_halves` finds them.
    astray : float
        From `measure_disarray`.
    look : {'same', 'inverted', 'edges'}
        How intensities are compared: as they are, one of them inverted, or the lengths of their
        gradients, where contrasts differ.
    chance : ChanceLevel
        What unrelated tissue reaches.
    """

    grid: Grid
    voxel: float
    halves: NDArray[np.float32]
    astray: float
    look: Look
    chance: ChanceLevel

    def at(self, nodes: Grid, voxel: float) -> WideEvidence:
        """Halves at other nodes, in voxels twice as large as `voxel`.

        So coarse was the level of the pairs on which the radii were fitted.
        """
        index = np.moveaxis(self.grid.to_index(nodes.positions()), -1, 0)
        scale = self.scale(voxel)
        return WideEvidence(_sampled(self.halves, index) * np.float32(scale), self.astray, scale)

    def scale(self, voxel: float) -> float:
        """Voxels of the level per two of `voxel`, at least 1: a finer one is taken for that."""
        return max(self.voxel / (2 * voxel), _LEAST_SCALE)


@dataclass(frozen=True)
class ErrorLattice:
    """Lattices of an error map: the level that is looked at, its nodes, and blocks of both.

    Parameters
    ----------
    fixed : Grid
        Of the fixed image.
    factors : tuple of int
        Fixed voxels per voxel of the level.
    search : PatchSearch
        On the level.
    block : int
        Voxels of the level per block and axis, about.
    """

    fixed: Grid
    factors: tuple[int, ...]
    search: PatchSearch
    block: int = _BLOCK

    @classmethod
    def of(cls, fixed: Grid, blocksize: int | None = None) -> ErrorLattice:
        """The lattices that suit a fixed image, and blocks of some fixed voxels."""
        factor = 1 if fixed.size <= _FINE_VOXELS else 2
        factors = _clipped(fixed, factor)
        level = fixed.shrink(factors)
        search = PatchSearch.of(level, _REACH)
        block = _BLOCK if blocksize is None else max(1, 3 * blocksize // (2 * factor))
        return cls(fixed, factors, search, block)

    @property
    def level(self) -> Grid:
        """The level that is looked at."""
        return self.fixed.shrink(self.factors)

    @property
    def steps(self) -> tuple[int, ...]:
        """Fixed voxels per node and axis."""
        return tuple(f * s for f, s in zip(self.factors, self.search.stride, strict=True))

    @property
    def nodes(self) -> Grid:
        """The lattice of the radii."""
        return self.fixed.shrink(self.steps)

    @property
    def voxel(self) -> float:
        """The smallest spacing of the level, in which lengths of its evidence count."""
        return self.level.least_spacing

    @property
    def extent(self) -> float:
        """The diagonal of the image in these voxels: nothing is further off."""
        spans = zip(self.fixed.shape, self.fixed.spacing, strict=True)
        return math.hypot(*(n * h for n, h in spans)) / self.voxel

    @property
    def blocks(self) -> BlockGrid:
        """Blocks of the fixed image, of whole nodes."""
        size = [-(-self.block * f // s) * s for f, s in zip(self.factors, self.steps, strict=True)]
        return BlockGrid(self.fixed.shape, tuple(size))

    @property
    def room(self) -> tuple[int, ...]:
        """Fixed voxels around a block that its nodes depend on, whole nodes of them."""
        sizes = zip(self.search.halo, self.factors, self.steps, strict=True)
        return tuple(-(-halo * factor // step) * step for halo, factor, step in sizes)

    def around(self, block: Block) -> Block:
        """A block with the room around it."""
        spans = zip(block.core, self.room, self.fixed.shape, strict=True)
        padded = tuple(slice(max(0, c.start - r), min(n, c.stop + r)) for c, r, n in spans)
        return Block(block.index, block.core, padded)

    @property
    def most_voxels(self) -> float:
        """Fixed voxels of the largest block with the room around it."""
        spans = zip(self.blocks.chunks, self.room, self.fixed.shape, strict=True)
        return float(math.prod(min(n, max(c) + 2 * r) for c, r, n in spans))

    @property
    def node_blocks(self) -> BlockGrid:
        """The same blocks, of nodes."""
        size = [b // s for b, s in zip(self.blocks.blocksize, self.steps, strict=True)]
        halo = [min(REACH_NODES, n // 4) for n in size]
        return BlockGrid(self.nodes.shape, tuple(size), tuple(halo))


def look_over(
    fixed: Image, moving: Image, transform: Transform, most_voxels: float = _OVERVIEW_VOXELS
) -> Overview:
    """Look over a registration of two images, on a level of both that is made in memory.

    The fixed one has so many voxels there, at most.
    """
    factors = _overview_factors(fixed.grid, most_voxels)
    with using_threads(threads_for(fixed.grid.shrink(factors).size)):
        small = read_coarse(fixed, factors)
        other = read_coarse(moving, moving_factors(fixed.grid, moving.grid, factors))
        voxels = np.asarray(small.read(), np.float32)
        aligned = warp_block(other, transform, small.grid, NAN_OUTSIDE)
        tissue = tissue_mask(voxels)
        look = _choose_look(voxels, aligned, tissue)
        search = PatchSearch.of(small.grid, _REACH)
        nodes = small.grid.shrink(search.stride)
        shown = _shown(voxels, aligned, look, small.spacing)
        wanted = [range(n) for n in nodes.shape]
        measures = measure_patches(*shown, search, small.spacing, wanted)
        defaults = PIPELINE_MIND if look == "edges" else PIPELINE_DEFAULTS
        settings = defaults.for_voxels(small.spacing)
        apart = compare_halves(small, other, transform, settings)
        halves = [shrink(part, small.grid, search.stride)[0] for part in np.moveaxis(apart, -1, 0)]
        found = np.stack(halves, axis=-1) / np.float32(small.grid.least_spacing)
        inside, _ = shrink(tissue.astype(np.float32), small.grid, search.stride)
        astray = measure_disarray(measures, found, inside >= 0.5, _REACH)
        chance = find_chance(small, aligned, tissue, settings)
    return Overview(nodes, small.grid.least_spacing, found, astray, look, chance)


def prepare_evidence(
    pair: tuple[Image, Image], transform: Transform, look: Look, lattice: ErrorLattice
) -> da.Array:
    """Prepare what patches tell at each node, block by block: numbers of `MEASURES`."""
    fixed, moving = pair
    shared = {
        "fixed": readable(fixed),
        "moving": readable(moving),
        "transform": transform,
        "lattice": lattice,
        "look": look,
    }
    result = Result(np.float32, (len(MEASURES),), factors=lattice.steps)
    return map_blocks(_measure_block, lattice.blocks, None, shared, result)


def prepare_error_map(
    pair: tuple[Image, Image],
    transform: Transform,
    overview: Overview,
    blocksize: int | None = None,
) -> tuple[da.Array, Grid]:
    """Prepare the radius around each node in which its true place lies with 95 % probability.

    Physical units, float32; NaN where the moving image is not, or no voxel counts. A block spans
    some one and a half `blocksize` voxels of the fixed image.
    """
    lattice = ErrorLattice.of(pair[0].grid, blocksize)
    evidence = prepare_evidence(pair, transform, overview.look, lattice)
    shared = {"lattice": lattice, "overview": overview}
    radii = map_blocks(_foretell_block, lattice.node_blocks, evidence, shared, Result(np.float32))
    return radii, lattice.nodes


def evidence_of(
    fixed: Image, moving: Image, transform: Transform, overview: Overview
) -> NDArray[np.float32]:
    """Evidence at all nodes of images in memory, as `EVIDENCE` lists it; NaN where none is seen."""
    lattice = ErrorLattice.of(fixed.grid)
    lazy = prepare_evidence((fixed, moving), transform, overview.look, lattice)
    measures = np.asarray(lazy.compute(scheduler="synchronous"))
    return _describe(measures, overview, lattice, _whole(lattice.nodes.shape))


def _measure_block(
    _part: None,
    block: Block,
    *,
    fixed: Image,
    moving: Image,
    transform: Transform,
    lattice: ErrorLattice,
    look: Look,
) -> NDArray[np.float32]:
    """Numbers of `MEASURES` at the nodes of a block."""
    block = lattice.around(block)
    here = fixed[block.padded]
    small, grid = shrink(here.read(), here.grid, lattice.factors)
    aligned = _aligned(moving, transform, here.grid, lattice.factors)
    shown = _shown(small, aligned, look, grid.spacing)
    spans = zip(block.core_in_padded, lattice.steps, strict=True)
    nodes = [range(s.start // step, -(-s.stop // step)) for s, step in spans]
    return measure_patches(*shown, lattice.search, grid.spacing, nodes)


def _aligned(
    moving: Image, transform: Transform, here: Grid, factors: Sequence[int]
) -> NDArray[np.float32]:
    """The moving image on a level of a fixed lattice, a few planes of it at a time."""
    step = _PLANES * factors[0]
    parts = []
    for start in range(0, here.shape[0], step):
        slab = here.crop((slice(start, min(start + step, here.shape[0])), *_whole(here.shape[1:])))
        parts.append(shrink(warp_block(moving, transform, slab, NAN_OUTSIDE), slab, factors)[0])
    return np.concatenate(parts)


def _whole(shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in shape)


def _foretell_block(
    part: NDArray[np.float32], block: Block, *, lattice: ErrorLattice, overview: Overview
) -> NDArray[np.float32]:
    """Radii of the nodes of a block, in physical units."""
    evidence = _describe(part, overview, lattice, block.padded)
    radii = load_table().radius(evidence, lattice.extent, overview.scale(lattice.voxel))
    return np.asarray(radii[block.core_in_padded]) * np.float32(lattice.voxel)


def _describe(
    measures: NDArray[np.float32], overview: Overview, lattice: ErrorLattice, where: Slices
) -> NDArray[np.float32]:
    """Evidence at some nodes of a lattice; NaN where the images are not seen."""
    wide = overview.at(lattice.nodes.crop(where), lattice.voxel)
    evidence = describe_nodes(measures, wide, _REACH)
    evidence[measures[..., MEASURES.index("seen")] < LEAST_SEEN] = np.nan
    return evidence


def _overview_factors(grid: Grid, most_voxels: float) -> tuple[int, ...]:
    """Voxels per axis of a level of cubes, at least two, with about so many voxels as it may."""
    factor = 2
    while grid.shrink(_clipped(grid, factor)).size > most_voxels:
        factor += 1
    return _clipped(grid, factor)


def _clipped(grid: Grid, factor: int) -> tuple[int, ...]:
    """Voxels per axis that span as much as so many of the smallest, where there are as many."""
    wanted = voxels_spanning(factor * grid.least_spacing, grid.spacing)
    return tuple(min(f, n) for f, n in zip(wanted, grid.shape, strict=True))


def _choose_look(
    fixed: NDArray[np.float32], aligned: NDArray[np.float32], tissue: NDArray[np.bool_]
) -> Look:
    """Choose the way in which intensities of two images are compared."""
    agree = coherence(fixed, aligned, tissue)
    if not math.isnan(agree) and agree < COHERENT:
        return "edges"
    known = np.isfinite(fixed) & np.isfinite(aligned) & tissue
    if known.sum() < 2:
        return "same"
    return "inverted" if np.corrcoef(fixed[known], aligned[known])[0, 1] < 0 else "same"


def _shown(
    fixed: NDArray[np.float32], aligned: NDArray[np.float32], look: Look, spacing: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two images so that they can be compared."""
    if look == "edges":
        return gradient_magnitude(fixed, spacing), gradient_magnitude(aligned, spacing)
    return fixed, -aligned if look == "inverted" else aligned


def _sampled(values: NDArray[np.float32], index: NDArray[np.float64]) -> NDArray[np.float32]:
    """Values between nodes; NaN where one beside is."""
    parts = [
        map_coordinates(part, index, order=1, mode="nearest") for part in np.moveaxis(values, -1, 0)
    ]
    return np.stack(parts, axis=-1)
