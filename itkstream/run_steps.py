"""The steps of a registration on whole images, one function for each.

A step's function takes the `Scene` (images and resources), the `State` (what the steps before it
found) and the step itself, and returns a `Finding`: a transform made of small values (matrices) and
of fields stored on disk. `next_state` decides whether it is kept. Nothing else passes from step to
step, so a run can go on from what it kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from itkstream.affine import prepare_local_affines, split_local_affines
from itkstream.block_kernels import (
    WarpSettings,
    best_affine_block,
    intensity_block,
    warp_block,
)
from itkstream.cluster import compute, continues, store
from itkstream.coarsening import CoarseField, CoarseLattices, prepare_decimation
from itkstream.deform import deform_blocks, field_factors, prepare_displacement
from itkstream.errors import BlockErrors, InputError, RegistrationError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Transform,
    steps_of,
)
from itkstream.io.itk_transforms import as_field_and_affine
from itkstream.io.locations import Location
from itkstream.io.ngff_transforms import (
    FIELD_ARRAY,
    as_stored,
    create_transform,
    read_transform,
)
from itkstream.kept_levels import make_level
from itkstream.levels import factors_to_fit
from itkstream.numerics.mapping import affine_part
from itkstream.numerics.quality import local_correlation_in_tissue, tissue_mask
from itkstream.ransac import AffineEstimate
from itkstream.steps import (
    MAX_FIELD_FACTOR,
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    Step,
)
from itkstream.transform import piecewise_transform, prepare_apply_transform, prepare_field
from itkstream.workers import Resources

__all__ = [
    "Finding",
    "Reporter",
    "Scene",
    "State",
    "begun",
    "measure_coarser",
    "next_state",
    "run_step",
    "store_coarser",
    "store_deformation",
    "store_transform",
]

Radii = tuple[float, float]

# Voxels per axis of the level in which a task judges a transform.
_JUDGED_BLOCK = 64

_WORSE = "it lowered the local correlation"


class Reporter(Protocol):
    """Told how a run goes on; the command line draws it."""

    def step(self, title: str) -> None:
        """A step begins."""

    def blocks(self, done: int, total: int) -> None:
        """Blocks of the step that are done, and in all."""

    def note(self, text: str) -> None:
        """A result worth a line."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What all steps see.

    Parameters
    ----------
    fixed, moving : Image
        With the same axes, in micrometers; voxels that do not count are NaN.
    coarse_voxels : float
        Most voxels of a level that is held in memory and solved as a whole.
    resources : Resources
        Workers and threads.
    reporter : Reporter
        Told of progress and results.
    makers : (callable, callable), optional
        Give the levels of both images; default they are averaged into memory.
    """

    fixed: Image
    moving: Image
    coarse_voxels: float
    resources: Resources
    reporter: Reporter
    makers: tuple[Callable[[], Image], Callable[[], Image]] | None = None

    @cached_property
    def levels(self) -> tuple[Image, Image]:
        """Both images at a resolution that fits in memory, made when first asked for."""
        if self.makers:
            return self.makers[0](), self.makers[1]()
        how = self.coarse_voxels, self.resources, self.reporter.blocks
        return make_level(self.fixed, *how), make_level(self.moving, *how)

    @cached_property
    def coarse(self) -> tuple[Image, Image]:
        """The levels, in memory."""
        fixed, moving = (Image(level.read(), level.grid, level.name) for level in self.levels)
        return fixed, moving

    @cached_property
    def coarse_grid(self) -> Grid:
        """The lattice of the coarse fixed image; nothing is read."""
        grid = self.fixed.grid
        return grid.shrink(factors_to_fit(grid, self.coarse_voxels))

    @cached_property
    def tissue(self) -> NDArray[np.bool_]:
        """Where the coarse fixed image shows tissue."""
        return tissue_mask(self.coarse[0].read())

    def correlation(self, transform: Transform) -> float:
        """How well a transform aligns the coarse images.

        Parameters
        ----------
        transform : Transform
            From fixed to moving points.

        Returns
        -------
        float
            Mean squared local correlation over the tissue.
        """
        aligned = self.aligned(transform).read()
        return local_correlation_in_tissue(self.coarse[0].read(), aligned, self.tissue)

    def aligned(self, transform: Transform) -> Image:
        """The coarse moving image on the coarse fixed one.

        Parameters
        ----------
        transform : Transform
            From fixed to moving points.

        Returns
        -------
        Image
            In memory; NaN where there is no moving image.
        """
        fixed, moving = self.coarse
        settings = WarpSettings(background=np.nan, dtype=np.float32)
        if _largest_field(transform) > 2 * fixed.grid.size:
            # All of the field is read: for the workers.
            size = (_JUDGED_BLOCK,) * fixed.ndim
            lazy = prepare_apply_transform(fixed.grid, self.levels[1], transform, size, settings)
            return Image(compute(lazy, self.resources, self.reporter.blocks), fixed.grid)
        return Image(warp_block(moving, transform, fixed.grid, settings), fixed.grid)


@dataclass(frozen=True, eq=False)
class State:
    """What is known before a step.

    Parameters
    ----------
    transform : Transform or None
        From fixed to moving points; None where nothing is known yet.
    quality : float
        Local correlation of the coarse images through it.
    radii : (float, float), optional
        Of the blobs by which an affine was found.
    """

    transform: Transform | None
    quality: float
    radii: Radii | None = None


@dataclass(frozen=True, eq=False)
class Finding:
    """What a step found.

    Parameters
    ----------
    change : Transform or None
        What acts before the transform known so far; None where nothing was found.
    facts : dict
        For the report: numbers, strings and lists.
    reason : str
        Why nothing was found.
    radii : (float, float), optional
        Of the blobs that gave most matches.
    required : bool
        Whether it is kept whatever the local correlation says.
    whole : bool
        Whether the change includes the transform known so far and takes its place.
    place : Location, optional
        Where the change is stored, if it is not made of matrices.
    """

    change: Transform | None
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    radii: Radii | None = None
    required: bool = False
    whole: bool = False
    place: Location | None = None

    def after(self, state: State, quality: float) -> State:
        """What is known once the finding is kept.

        Parameters
        ----------
        state : State
            What was known before.
        quality : float
            Local correlation through the new transform.

        Returns
        -------
        State
            What is known now.
        """
        return State(self.transform(state), quality, self.radii or state.radii)

    def transform(self, state: State) -> Transform:
        """The change and what was known before, together.

        Parameters
        ----------
        state : State
            What was known before.

        Returns
        -------
        Transform
            From fixed to moving points.

        Raises
        ------
        RegistrationError
            Where nothing was found.
        """
        if self.change is None:
            raise RegistrationError(f"there is nothing to keep: {self.reason}")
        return self.change if self.whole else _before(self.change, state.transform)


def run_step(scene: Scene, state: State, step: Step, place: Callable[[], Location]) -> Finding:
    """Do one step.

    Parameters
    ----------
    scene : Scene
        Images and resources.
    state : State
        What is known.
    step : Step
        What to do.
    place : callable
        Names the store a deformation may write its field to; called before it does.

    Returns
    -------
    Finding
        Without a change, but with the reason, where a step that refines found nothing better.

    Raises
    ------
    RegistrationError
        Where nothing is known and nothing was found.
    """
    if isinstance(step, RansacAffine):
        return _find_affine(scene, state, step)
    if isinstance(step, IntensityAffine):
        return _refine_affine(scene, state, step)
    if isinstance(step, LocalAffines):
        return _find_local_affines(scene, state, step)
    return _find_deformation(scene, state, step, place)


def next_state(scene: Scene, state: State, finding: Finding) -> tuple[State, dict[str, Any]]:
    """Keep what a step found if it aligns the images better, or must be kept.

    Parameters
    ----------
    scene : Scene
        Images.
    state : State
        What was known before.
    finding : Finding
        Of the step.

    Returns
    -------
    state : State
        What is known now.
    facts : dict
        For the report, with ``local_correlation``, and the reason under ``dropped``.
    """
    if finding.change is None:
        return state, {**finding.facts, "dropped": finding.reason}
    quality = scene.correlation(finding.transform(state))
    facts = {**finding.facts, "local_correlation": quality}
    if quality <= state.quality and not finding.required:
        return state, {**facts, "dropped": _WORSE}
    return finding.after(state, quality), facts


def store_transform(
    scene: Scene, transform: Transform, path: Location, blocksize: int
) -> CompositeTransform:
    """Write any transform as a displacement field, on half the fixed resolution, and an affine.

    Parameters
    ----------
    scene : Scene
        Images and resources.
    transform : Transform
        From fixed to moving points.
    path : Location
        The new store.
    blocksize : int
        Fixed voxels per block and axis, an even number.

    Returns
    -------
    CompositeTransform
        Both, on disk.
    """
    blocks = (blocksize // 2,) * scene.fixed.ndim
    lazy = prepare_field(transform, _half(scene), blocks)
    return _store(scene, lazy, _half(scene), path, affine_part(transform))


def measure_coarser(
    scene: Scene, transform: CompositeTransform, tolerance_vox: float
) -> CoarseField:
    """Find the coarsest lattice that keeps a stored field within a tolerance, block by block.

    Parameters
    ----------
    scene : Scene
        Images and resources.
    transform : CompositeTransform
        A displacement field and an affine, on disk.
    tolerance_vox : float
        Greatest error at any node, in the smallest fixed voxel spacing.

    Returns
    -------
    CoarseField
        Lazy; with factors of 1 where no coarser lattice will do.
    """
    field, _ = as_field_and_affine(transform)
    allowed = tolerance_vox * min(scene.fixed.spacing)
    lattices = CoarseLattices(field, allowed, MAX_FIELD_FACTOR)
    return lattices.best(compute(lattices.prepare_errors(), scene.resources))


def store_coarser(
    scene: Scene, transform: CompositeTransform, factors: Sequence[int], path: Location
) -> CompositeTransform:
    """Write some of the nodes of a stored field, and the affine after it.

    Blocks that an earlier run stored are kept where their files are sound.

    Parameters
    ----------
    scene : Scene
        Images and resources.
    transform : CompositeTransform
        A displacement field and an affine, on disk.
    factors : sequence of int
        Voxels of the field per voxel that is written, per axis.
    path : Location
        The store.

    Returns
    -------
    CompositeTransform
        Both, on disk.
    """
    field, affine = as_field_and_affine(transform)
    kept = prepare_decimation(field, factors)
    return _store(scene, kept.data, kept.grid, path, affine)


def store_deformation(
    scene: Scene, state: State, step: Deformable, path: Location
) -> CompositeTransform:
    """Find the displacement in front of the affine, coarse to fine; stored as it is computed.

    Its lattice is that of `itkstream.deform.field_factors`. Blocks that an earlier run stored are
    kept where their files are sound.

    Parameters
    ----------
    scene : Scene
        Images and resources.
    state : State
        Where to start.
    step : Deformable
        How.
    path : Location
        The store.

    Returns
    -------
    CompositeTransform
        A displacement field and an affine, on disk.
    """
    fixed, settings = scene.fixed, step.settings_for(scene.fixed.spacing)
    start = state.transform or AffineTransform(np.eye(fixed.ndim + 1))
    blocks = deform_blocks(fixed.grid, step, scene.coarse_voxels)
    factors = field_factors(settings, fixed.grid, blocks)
    lazy = prepare_displacement(
        fixed,
        scene.moving,
        start,
        blocks.blocksize,
        settings,
        overlap=step.overlap,
        coarse_voxels=scene.coarse_voxels,
        factors=factors,
        skip_empty=True,
        levels=scene.levels if len(blocks) > 1 else None,
    )
    return _store(scene, lazy, fixed.grid.shrink(factors), path, affine_part(start))


def _store(
    scene: Scene, lazy: da.Array, grid: Grid, path: Location, affine: AffineTransform
) -> CompositeTransform:
    """Write a displacement field and the affine after it, or finish one that was begun."""
    stored = as_stored(lazy, grid)
    target = begun(stored, path, FIELD_ARRAY)
    if target is None:
        chunks = tuple(_chunk(c) for c in lazy.chunks[:-1])
        target = create_transform(path, affine, grid, chunks=chunks)
    store(stored, target, scene.resources, scene.reporter.blocks)
    return read_transform(path, scene.fixed.grid.axes)


def begun(lazy: da.Array, store: Location, name: str) -> zarr.Array[Any] | None:
    """The array that an earlier run of the same computation left, complete or not.

    Parameters
    ----------
    lazy : dask.array.Array
        The computation.
    store : Location
        The OME-Zarr store of its result; one of any other computation is removed.
    name : str
        Of the array in the store.

    Returns
    -------
    zarr.Array or None
        To be continued; None where it must be made.
    """
    array = store / name
    if continues(lazy, array):
        return zarr.open_array(array.store(), mode="r+")
    if not store.is_vacant():
        store.remove()
    return None


def _find_affine(scene: Scene, state: State, step: RansacAffine) -> Finding:
    fixed, moving = scene.coarse
    if state.transform is not None:
        moving = scene.aligned(state.transform)
    try:
        estimate, radii = _best_affine(fixed, moving, step)
    except (InputError, RegistrationError) as error:
        if state.transform is None:
            raise RegistrationError(f"no affine found: {error}") from error
        return Finding(None, reason=str(error))
    if estimate.matrix is None:
        if state.transform is None:
            raise RegistrationError(
                f"no affine found: {estimate.reason}. Check the spacings and that both images "
                "show the same tissue; other radii or a lower match_threshold may help"
            )
        return Finding(None, reason=estimate.reason, radii=radii)
    change = AffineTransform(estimate.matrix)
    transform = _before(change, state.transform)
    facts = {
        "matches": len(estimate.inliers),
        "inliers": int(estimate.inliers.sum()),
        "median_residual": float(np.median(estimate.residuals[estimate.inliers])),
        "matrix": affine_part(transform).matrix.tolist(),
    }
    scene.reporter.note(
        f"{facts['inliers']} of {facts['matches']} matches agree, median residual "
        f"{facts['median_residual']:.2f} {fixed.grid.unit}"
    )
    return Finding(change, facts, radii=radii, required=state.transform is None)


def _refine_affine(scene: Scene, state: State, step: IntensityAffine) -> Finding:
    fixed, moving = scene.coarse
    start, known = np.eye(fixed.ndim + 1), state.transform
    if isinstance(known, AffineTransform):
        start = known.matrix
    elif known is not None:
        moving = scene.aligned(known)
    estimate = intensity_block(fixed, moving, start, step.settings_for(fixed.spacing))
    facts: dict[str, Any] = {"metric_before": estimate.before, "metric_after": estimate.after}
    if not estimate:
        return Finding(None, facts, estimate.reason)
    change = AffineTransform(estimate.matrix)
    whole = known is None or isinstance(known, AffineTransform)
    found = change if whole else _before(change, known)
    facts["matrix"] = affine_part(found).matrix.tolist()
    return Finding(change, facts, whole=whole)


def _find_local_affines(scene: Scene, state: State, step: LocalAffines) -> Finding:
    fixed, moving = scene.coarse
    blocksize = (step.blocksize,) * fixed.ndim
    try:
        settings = step.settings_for(fixed.spacing, _radii(scene, state, step))
        lazy = prepare_local_affines(
            fixed, moving, state.transform, blocksize, settings, overlap=step.overlap
        )
        packed = compute(lazy, progress=scene.reporter.blocks)
        local, confidence = split_local_affines(packed, fixed.ndim)
        pieces = piecewise_transform(fixed.grid, local, blocksize, overlap=step.overlap)
    except (BlockErrors, InputError, RegistrationError) as error:
        return Finding(None, reason=str(error))
    facts = {
        "blocks": list(local.shape[: fixed.ndim]),
        "blocks_with_matches": int((confidence[..., 0] > 0).sum()),
        "median_confidence": float(np.median(confidence[..., -1])),
    }
    return Finding(pieces, facts)


def _find_deformation(
    scene: Scene, state: State, step: Deformable, place: Callable[[], Location]
) -> Finding:
    path = place()
    transform = store_deformation(scene, state, step, path)
    grid = as_field_and_affine(transform)[0].grid
    facts = {"field_shape": grid.shape, "field_spacing": grid.spacing}
    return Finding(transform, facts, required=True, whole=True, place=path)


def _best_affine(fixed: Image, moving: Image, step: RansacAffine) -> tuple[AffineEstimate, Radii]:
    choices = [step.settings_for(fixed.spacing, radii) for radii in step.radii]
    estimate, _, best = best_affine_block(fixed, moving, choices)
    return estimate, step.radii[choices.index(best)]


def _radii(scene: Scene, state: State, step: LocalAffines) -> Radii:
    """The step's own, those an affine was found with, or the best on the whole image."""
    if step.radii is not None or state.radii is not None:
        return step.radii or state.radii  # type: ignore[return-value]
    fixed, moving = scene.coarse
    if state.transform is not None:
        moving = scene.aligned(state.transform)
    return _best_affine(fixed, moving, RansacAffine())[1]


def _before(change: Transform, known: Transform | None) -> Transform:
    """A change that acts first, then what was known; two affines become one."""
    if known is None:
        return change
    if isinstance(change, AffineTransform) and isinstance(known, AffineTransform):
        return AffineTransform(known.matrix @ change.matrix)
    return CompositeTransform((change, *steps_of(known)))


def _largest_field(transform: Transform) -> int:
    """Vectors of the largest displacement field in a transform."""
    fields = (step for step in steps_of(transform) if isinstance(step, DisplacementField))
    return max((field.grid.size for field in fields), default=0)


def _half(scene: Scene) -> Grid:
    return scene.fixed.grid.shrink((2,) * scene.fixed.ndim)


def _chunk(blocks: tuple[int, ...]) -> int:
    """A chunk of some 64 voxels that no two blocks share."""
    if len(blocks) == 1:
        return min(64, blocks[0])
    return next(n for n in range(min(64, blocks[0]), 0, -1) if blocks[0] % n == 0)
