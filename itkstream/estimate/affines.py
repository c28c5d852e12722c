"""Affines of all blocks, found together from the matches of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, judged, map_blocks
from itkstream.blocks.inputs import as_pair, block_grid
from itkstream.errors import InputError, ItkstreamError, RegistrationError, describe_region
from itkstream.estimate.content import prepare_content
from itkstream.geometry import (
    AffineTransform,
    Block,
    BlockGrid,
    ChannelPair,
    Grid,
    Image,
    Transform,
)
from itkstream.geometry.grid import UNIT_SIGNS
from itkstream.numerics.itk.intensity import intensity_block
from itkstream.numerics.itk.settings import IntensitySettings
from itkstream.numerics.matching.affine import (
    ALIGN_THRESHOLD_VOX,
    AffineSettings,
    best_affine_block,
)
from itkstream.numerics.matching.consistency import (
    CONFIDENCE_COLUMNS,
    ConsistencySettings,
    Evidence,
    evidence_of,
    evidence_size,
    own_confidence,
    solve_consistent,
)
from itkstream.numerics.matching.matches import Correspondences
from itkstream.numerics.matching.ransac import AffineEstimate, Model, RansacSettings, fit_ransac
from itkstream.numerics.sampling.mapping import map_on
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block

__all__ = [
    "AffineTask",
    "IntensitySearch",
    "KeyPointSearch",
    "OwnAffine",
    "Search",
    "prepare_affines",
    "prepare_local_affines",
    "split_local_affines",
]


logger = logging.getLogger(__name__)

# What a block tries when it has too few matches for an affine, with the least inliers of each.
_FALLBACKS: tuple[tuple[Model, int], ...] = (("rigid", 6), ("translation", 4))

# A block contradicts its neighbours where it is further from what they predict than a match may be
# from its affine, this many times: 5 µm at the default threshold, see `ConsistencySettings`.
_CONTRADICTION = 2.5

# Voxels of the level on which blocks are searched for content.
_CONTENT_VOXELS = 20e6


# An affine by intensities counts for as many matches as these make in a block.
_POINTS_PER_AXIS = 4


def prepare_local_affines(
    fixed: Image,
    moving: Image,
    initial: Transform | Delayed | None,
    blocksize: Sequence[int],
    settings: AffineSettings | Sequence[AffineSettings] | IntensitySettings,
    *,
    overlap: Sequence[int] | int | None = None,
    fill: bool = True,
    skip_empty: bool = False,
    smaller: Sequence[AffineSettings] = (),
) -> da.Array:
    """Prepare to find an affine in every block, before a transform that aligns them roughly.

    Parameters
    ----------
    fixed, moving : Image
        The images.
    initial : Transform, Delayed or None
        From fixed to moving points; each block resamples its part of the moving image through it.
        It may still have to be computed. None where the moving image is aligned already.
    blocksize : sequence of int
        Voxels of a block per axis, without its overlap.
    settings : AffineSettings, a sequence of them, or IntensitySettings
        Parameters of every block: for key points, of which a block tries several until matches
        abound, or for intensities.
    overlap : int or sequence of int, optional
        Voxels per side; default an eighth of the block.
    fill : bool
        Find the affines of all blocks together, so that neighbours agree and blocks without
        matches continue theirs; else each has its own, or NaN.
    skip_empty : bool
        Leave out blocks in which a coarse level of neither image shows more than background and
        its noise: they are not read, and count as blocks without matches.
    smaller : sequence of AffineSettings
        Those that a block tries which cannot show the blobs of any of the `settings`.

    Returns
    -------
    dask.array.Array, block grid + (k,), float64
        Lazy; `split_local_affines` takes it apart.

    Examples
    --------
    >>> settings = itkstream.affine.IntensitySettings("translation")
    >>> lazy = itkstream.affine.prepare_local_affines(fixed, moving, None, (32, 32, 32), settings)
    >>> affines, told = itkstream.affine.split_local_affines(lazy, 3)
    >>> affines.shape[-2:]
    (4, 4)
    """
    fixed, moving = as_pair(fixed, moving, None, None)
    blocks = block_grid(fixed.shape, blocksize, overlap)
    search: Search
    if isinstance(settings, IntensitySettings):
        search = IntensitySearch(settings)
    else:
        choices = (settings,) if isinstance(settings, AffineSettings) else tuple(settings)
        search = KeyPointSearch(choices, tuple(smaller))
    task = AffineTask(fixed, moving, initial, blocks, search)
    return prepare_affines(task, fill=fill, skip_empty=skip_empty)


@dataclass(frozen=True, eq=False)
class AffineTask:
    """Affines to be found in blocks of the fixed image, before a transform that aligns roughly.

    Key points of `others`, further channels, are matched as well.
    """

    fixed: Image
    moving: Image
    initial: Transform | Delayed | None
    blocks: BlockGrid
    search: Search
    others: tuple[ChannelPair, ...] = ()


def prepare_affines(task: AffineTask, *, fill: bool = True, skip_empty: bool = False) -> da.Array:
    """Prepare a task as `prepare_local_affines` does."""
    fixed, blocks, grid = task.fixed, task.blocks, task.fixed.grid
    task.search.check(blocks, grid)
    size = (grid.ndim + 1) ** 2
    found = map_blocks(
        _local_affine,
        blocks,
        fixed.data,
        {
            "grid": grid,
            "seen": _Seen(task.moving, task.others),
            "initial": task.initial,
            "search": task.search,
            "alone": len(blocks) == 1,
        },
        Result(np.float64, (size + evidence_size(grid.ndim),), "block"),
        keep=_prepare_keep(task) if skip_empty and len(blocks) > 1 else None,
    )
    common = fill and len(blocks) > 1
    if common:
        found = found.rechunk(found.shape)
    result = found.map_blocks(
        _common if common else _each,
        blocks=blocks,
        grid=grid,
        settings=ConsistencySettings(scale_um=_CONTRADICTION * task.search.slack(grid)),
        chunks=(*found.chunks[:-1], (size + len(CONFIDENCE_COLUMNS),)),
        meta=np.empty((0,) * found.ndim),
    )
    if common or len(blocks) == 1:
        return result
    return judged(result, found, _brought, _judge_blocks)


def _prepare_keep(task: AffineTask) -> Delayed:
    """Prepare to find the blocks that show anything on a coarse level."""
    still = AffineTransform(np.eye(task.fixed.ndim + 1))
    start = still if task.initial is None else task.initial
    return prepare_content((task.fixed, task.moving), start, task.blocks, _CONTENT_VOXELS)


def split_local_affines(packed: Any, ndim: int) -> tuple[Any, Any]:
    """Take apart what `prepare_local_affines` prepares.

    Parameters
    ----------
    packed : numpy.ndarray or dask.array.Array, block grid + (k,)
        Computed or lazy.
    ndim : int
        Dimensions of the images.

    Returns
    -------
    matrices : block grid + (n + 1, n + 1)
        From fixed points to points of the roughly aligned image.
    confidence : block grid + (4,)
        Matches, root mean square residual, disagreement with the neighbours (both in
        µm), and confidence between 0 and 1.

    Examples
    --------
    >>> settings = itkstream.affine.IntensitySettings("translation")
    >>> lazy = itkstream.affine.prepare_local_affines(fixed, moving, None, (32, 32, 32), settings)
    >>> affines, told = itkstream.affine.split_local_affines(lazy, 3)
    >>> affines.shape[-2:]
    (4, 4)
    """
    size = ndim + 1
    matrices = packed[..., : size * size]
    return matrices.reshape((*packed.shape[:-1], size, size)), packed[..., size * size :]


@dataclass(frozen=True, eq=False)
class OwnAffine:
    """A block's own finding: an affine, matches that agree with it, or why there is none."""

    matrix: NDArray[np.float64]
    points: NDArray[np.float64]
    targets: NDArray[np.float64]
    reason: str = ""

    @classmethod
    def nothing(cls, ndim: int, reason: str = "") -> OwnAffine:
        """Make one of NaN, without matches."""
        none = np.empty((0, ndim))
        return cls(np.full((ndim + 1, ndim + 1), np.nan), none, none, reason)


@dataclass(frozen=True)
class KeyPointSearch:
    """Affines from key points: settings are tried one after the other until matches abound.

    A block tries the `smaller` ones where it cannot show the blobs of any of the others.
    """

    choices: tuple[AffineSettings, ...]
    smaller: tuple[AffineSettings, ...] = ()

    def find(
        self, here: ChannelPair, core: Grid, alone: bool, others: Sequence[ChannelPair]
    ) -> OwnAffine:
        """Match the key points of a block; one that is not alone may fit a simpler model."""
        grid = here.fixed.grid
        fitting = _holding(grid, self.choices) or _holding(grid, self.smaller)
        choices = fitting or self.choices
        found = best_affine_block((here, *others), choices).best
        estimate, pairs = found.settled(grid), found.pairs
        if not alone:
            estimate = _simpler(estimate, pairs, found.settings.ransac)
        if estimate.matrix is not None:
            agree = estimate.inliers
            points, targets = pairs.fixed_points[agree], pairs.moving_points[agree]
            return OwnAffine(estimate.matrix, points, targets, estimate.reason)
        if alone:
            raise RegistrationError(f"no affine found: {estimate.reason}")
        return OwnAffine.nothing(core.ndim, estimate.reason)

    def check(self, blocks: BlockGrid, grid: Grid) -> None:
        """Refuse blocks none of which can show the blobs that are sought."""
        every = (*self.choices, *self.smaller)
        per_axis = zip(blocks.chunks, blocks.overlap, strict=True)
        lengths = [{n + 2 * halo for n in chunk} for chunk, halo in per_axis]
        for sizes in product(*lengths):
            shape = tuple(map(min, sizes, grid.shape))
            if _holding(replace(grid, shape=shape), every):
                return
        greatest = min(settings.key_points.radii(grid.ndim)[1].max() for settings in every)
        extent = " x ".join(f"{n * h:.4g}" for n, h in zip(shape, grid.spacing, strict=True))
        raise InputError(
            f"blocks of {extent} {UNIT_SIGNS[grid.unit]} with their overlap cannot show blobs "
            f"of radius {greatest:.4g}: take smaller radii or larger blocks"
        )

    def slack(self, grid: Grid) -> float:
        """Say how far a match may be from its affine, in µm."""
        return self.choices[0].ransac.threshold_um

    def fallback(self) -> str:
        """Say what a block does without one, for the log."""
        return "has no affine of its own:"


@dataclass(frozen=True)
class IntensitySearch:
    """Affines from intensities, which count for as many matches as a lattice has points."""

    settings: IntensitySettings

    def find(
        self, here: ChannelPair, core: Grid, alone: bool, others: Sequence[ChannelPair]
    ) -> OwnAffine:
        """Compare the intensities of a block's leading channel, which starts from where it is."""
        n = core.ndim
        estimate = intensity_block(here.fixed, here.moving, np.eye(n + 1), self.settings)
        # Where the images could be compared and nothing better was found, the start is the best.
        if not estimate and not np.isfinite(estimate.before):
            return OwnAffine.nothing(n, estimate.reason)
        matrix, points = estimate.matrix, _lattice(core)
        targets = points @ matrix[:n, :n].T + matrix[:n, n]
        return OwnAffine(matrix, points, targets, estimate.reason)

    def check(self, blocks: BlockGrid, grid: Grid) -> None:
        """Accept blocks of any size."""

    def slack(self, grid: Grid) -> float:
        """Say how far a match may be from its affine, in µm."""
        return ALIGN_THRESHOLD_VOX * float(np.median(grid.spacing))

    def fallback(self) -> str:
        """Say what a block does without one, for the log."""
        return "keeps where it starts, as"


Search: TypeAlias = KeyPointSearch | IntensitySearch


@dataclass(frozen=True, eq=False)
class _Seen:
    """Images that blocks see beside their part of the fixed one."""

    moving: Image
    others: tuple[ChannelPair, ...]


def _local_affine(
    part: NDArray[Any] | None,
    block: Block,
    *,
    grid: Grid,
    seen: _Seen,
    initial: Transform | None,
    search: Search,
    alone: bool,
) -> NDArray[np.float64]:
    """A block's own affine and the evidence for it; a block that is alone must find one."""
    if part is None:
        return _row(OwnAffine.nothing(grid.ndim), block, grid)
    here = Image(part, grid.crop(block.padded))
    pairs = (ChannelPair(here, seen.moving), *(pair[block.padded] for pair in seen.others))
    try:
        if not alone or initial is not None:
            pairs = tuple(
                replace(pair, moving=_aligned_part(here.grid, pair.moving, initial))
                for pair in pairs
            )
        own = search.find(pairs[0], grid.crop(block.core), alone, pairs[1:])
    except ItkstreamError as error:
        if alone:
            raise
        own = OwnAffine.nothing(grid.ndim, str(error))
    if own.reason:
        logger.info(
            "the block at %s %s %s",
            describe_region(block.core, grid.axes),
            search.fallback(),
            own.reason,
        )
    return _row(own, block, grid)


def _holding(grid: Grid, choices: Sequence[AffineSettings]) -> list[AffineSettings]:
    """The settings whose blobs a block can show."""
    return [settings for settings in choices if settings.key_points.fit(grid)]


def _lattice(grid: Grid) -> NDArray[np.float64]:
    """Points that stand for all of a block, as matches would."""
    ends = [np.linspace(0, length - 1, _POINTS_PER_AXIS) for length in grid.shape]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1)
    return grid.to_physical(index.reshape(-1, grid.ndim))


def _row(own: OwnAffine, block: Block, grid: Grid) -> NDArray[np.float64]:
    """A block's own affine and the evidence for it, as one element of the blocks' array."""
    middle = [(s.start + s.stop - 1) / 2 for s in block.core]
    evidence = evidence_of(own.points, own.targets, grid.to_physical(middle))
    row = np.concatenate([own.matrix.ravel(), evidence.packed()])
    return row.reshape((1,) * grid.ndim + row.shape)


def _simpler(
    estimate: AffineEstimate, pairs: Correspondences, ransac: RansacSettings
) -> AffineEstimate:
    """The estimate, or one by a model that needs fewer matches: rigid, then translation."""
    for model, least in _FALLBACKS:
        if estimate or ransac.model != "affine":
            break
        simpler = replace(ransac, model=model, min_inliers=min(least, ransac.min_inliers))
        estimate = fit_ransac(pairs.fixed_points, pairs.moving_points, simpler)
    return estimate


def _aligned_part(grid: Grid, moving: Image, initial: Transform | None) -> Image:
    """The moving image around a block, aligned; NaN where there is none."""
    if initial is not None:
        return Image(warp_block(moving, initial, grid, NAN_OUTSIDE), grid)
    crop = map_on(AffineTransform(np.eye(grid.ndim + 1)), grid).crop_of(moving.grid)
    if crop is None:
        raise RegistrationError("it lies outside the moving image")
    return moving[crop]


def _each(
    rows: NDArray[np.float64], blocks: BlockGrid, grid: Grid, settings: ConsistencySettings
) -> NDArray[np.float64]:
    """Every block's own affine and confidence."""
    size = (grid.ndim + 1) ** 2
    evidence = Evidence.unpacked(rows[..., size:], grid.ndim)
    return np.concatenate([rows[..., :size], own_confidence(evidence, settings)], axis=-1)


def _brought(row: NDArray[np.float64]) -> int:
    """1 where a block found an affine of its own, else 0."""
    return int(np.isfinite(row[..., 0]).all())


def _judge_blocks(brought: NDArray[np.intp]) -> None:
    """Say how many blocks failed; raise where all did."""
    failed = brought.size - np.count_nonzero(brought)
    if failed == brought.size:
        raise RegistrationError(
            f"all {failed} blocks failed to find an affine: use larger blocks, a lower "
            "match_threshold, or radii that fit the nuclei"
        )
    if failed:
        logger.warning(
            "%d of %d blocks have no affine of their own (the log at level info says why)",
            failed,
            brought.size,
        )


def _common(
    rows: NDArray[np.float64], blocks: BlockGrid, grid: Grid, settings: ConsistencySettings
) -> NDArray[np.float64]:
    """The affines of all blocks, found together, and their confidence."""
    size = (grid.ndim + 1) ** 2
    evidence = Evidence.unpacked(rows[..., size:], grid.ndim)
    _judge_blocks(np.isfinite(rows[..., 0]).astype(np.intp))
    matrices, confidence = solve_consistent(evidence, blocks, grid, settings)
    flat = matrices.reshape((*rows.shape[:-1], size))
    return np.concatenate([flat, confidence], axis=-1)
