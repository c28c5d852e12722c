"""Steps' surroundings: what they see (`Scene`), know (`State`) and find (`Finding`).

A finding is a transform made of small values (matrices) and of fields stored on disk. Nothing else
passes from step to step, so a run can go on from what it kept.

A coarse level of each image is averaged once, by the workers. For an image too large for memory
this is a pass over all of it, unless its file holds a level that proves to be right
(`itkstream.blocks.proven_levels`). It is stored in the folder of the run, block by block, so that a
run that is continued reads what is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.apply.points import TargetErrors
from itkstream.apply.resampling import prepare_apply_transform
from itkstream.blocks.camera import (
    can_tell_pattern,
    describe_pattern,
    prepare_pattern,
    read_pattern,
    shows_pattern,
)
from itkstream.blocks.levels import factors_to_fit, prepare_coarse
from itkstream.blocks.masks import masked
from itkstream.blocks.proven_levels import finest_needed
from itkstream.blocks.sources import readable
from itkstream.compute.execute import compute, continues
from itkstream.compute.progress import Progress
from itkstream.errors import RegistrationError
from itkstream.geometry import (
    AffineTransform,
    ArraySource,
    BlockGrid,
    ChannelPair,
    DisplacementField,
    Grid,
    Image,
    Landmarks,
    Transform,
    compose,
    steps_of,
)
from itkstream.geometry.lazy_array import DerivedArray
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.numerics.evidence.contrast import (
    ContrastEvidence,
    descriptor_likeness,
    find_similarity,
)
from itkstream.numerics.evidence.counterpart import Counterpart, find_counterpart
from itkstream.numerics.evidence.one_sided import ImageContent, find_layer, find_one_sided
from itkstream.numerics.evidence.quality import local_correlation_in_tissue
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.numerics.threads import each_of, over_slabs
from itkstream.progress.reporters import Reporter
from itkstream.registration.settings import Content
from itkstream.workers import Resources

__all__ = [
    "BlockScene",
    "Finding",
    "Keeping",
    "LevelMaker",
    "Marks",
    "Nothing",
    "Radii",
    "Scene",
    "Start",
    "State",
    "judged_by_descriptors",
    "make_level",
    "next_state",
]

logger = logging.getLogger(__name__)

Radii: TypeAlias = tuple[float, float]
"""Least and greatest radius of blobs, in voxels of the coarse level."""

Start: TypeAlias = Transform | Delayed | None
"""A transform to start from, which may still have to be computed; None for the identity."""

Keeping: TypeAlias = Callable[[str, Callable[[Location], bool]], Location]
"""Keeper of levels: ``place = keeping(name, known)``.

``known(place)`` tells whether the level, or a part of it, is there already.
"""

# A change leads away from landmarks where their median error is so many times as large as before,
# and so many of their deviations larger, and more than as many deviations as any may miss them.
_WORSE, _NOISE, _AS_PLACED = 1.1, 0.25, 1.5

# Voxels per axis of the level in which a task judges a transform.
_JUDGED_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Marks:
    """Landmarks that steps go by, and those that are held out to judge by."""

    fitted: Landmarks
    held_out: Landmarks

    def facts(self, transform: Transform) -> dict[str, Any]:
        """Facts of their target registration errors through a transform, for the report."""
        return {name: errors.facts() for name, errors in self._errors(transform).items()}

    def describe(self, transform: Transform) -> str:
        """Say their target registration errors through a transform in words."""
        texts = {"landmarks": "landmarks", "held_out_landmarks": "held out"}
        return "; ".join(f"{texts[n]}: {e}" for n, e in self._errors(transform).items())

    def objection(self, state: State, after: Transform) -> str:
        """Say that a change leads away from the landmarks to fit by; empty where it does not.

        A better affine than theirs may miss them a little more, and any as much as they were
        placed. Few of them would object to all but their own.
        """
        marks, sigma = self.fitted, self.fitted.sigma_um
        if state.transform is None or sigma is None or len(marks) < 3 * (marks.ndim + 1):
            return ""
        before, now = (np.median(TargetErrors.of(t, marks).um) for t in (state.transform, after))
        placed = float(np.median(sigma))
        if now <= max(_AS_PLACED * placed, _WORSE * before + _NOISE * placed):
            return ""
        return f"it led away from the landmarks: their median error rose to {now:.3g} µm"

    def table(self, transform: Transform) -> list[dict[str, Any]]:
        """List the error of each for the report."""
        rows = []
        for name, marks in (("landmarks", self.fitted), ("held_out_landmarks", self.held_out)):
            trust = np.ones(len(marks)) if marks.trust is None else marks.trust
            errors = TargetErrors.of(transform, marks)
            rows += [
                {
                    "name": n,
                    "error_um": float(e),
                    "trust": float(t),
                    "held_out": name != "landmarks",
                }
                for n, e, t in zip(errors.names, errors.um, trust, strict=True)
            ]
        return rows

    def _errors(self, transform: Transform) -> dict[str, TargetErrors]:
        kinds = {"landmarks": self.fitted, "held_out_landmarks": self.held_out}
        return {n: TargetErrors.of(transform, m) for n, m in kinds.items() if len(m)}


@dataclass(frozen=True, eq=False)
class Scene:
    """Two images on one set of axes, in µm, NaN where voxels do not count, and who computes.

    `coarse_voxels` is the most a level may have that is held in memory and solved as a whole;
    `level_makers` give these levels; `marks` are landmarks, where there are any. `others` are the
    scenes of further channels, which have no others; each counts by its `weight`.
    """

    fixed: Image
    moving: Image
    coarse_voxels: float
    resources: Resources
    reporter: Reporter
    level_makers: tuple[Callable[[], Image], Callable[[], Image]]
    marks: Marks | None = None
    content: Content = "common"
    is_torn: bool = False
    others: tuple[Scene, ...] = ()
    weight: float = 1.0

    @property
    def channels(self) -> tuple[Scene, ...]:
        """The scenes of all channels, the leading one first."""
        return (self, *self.others)

    @property
    def further(self) -> tuple[ChannelPair, ...]:
        """The images of the further channels."""
        return tuple(ChannelPair(o.fixed, o.moving, o.weight) for o in self.others)

    @cached_property
    def levels(self) -> tuple[Image, Image]:
        """Both images at a resolution that fits in memory, made when first asked for."""
        fixed, moving = self.level_makers
        return fixed(), moving()

    @cached_property
    def coarse(self) -> tuple[Image, Image]:
        """The levels, in memory; a `RegistrationError` where no voxel of one counts."""
        fixed, moving = each_of(
            lambda level: Image(level.read(), level.grid, level.name), self.levels
        )
        for which, image in (("fixed", fixed), ("moving", moving)):
            if image.dtype.kind == "f" and not np.isfinite(image.data).any():
                raise RegistrationError(
                    f"no voxel of the {which} image {image.name} counts: all are left out by the "
                    f"{which} mask, NaN or infinite. A mask must not be 0 where the tissue is"
                )
            infinite = np.isinf(image.data).sum() if image.dtype.kind == "f" else 0
            if infinite:
                logger.warning(
                    "%d voxels of the %s image %s are infinite: they are left out, as NaN is",
                    infinite,
                    which,
                    image.name,
                )
        return fixed, moving

    @cached_property
    def coarse_grid(self) -> Grid:
        """The lattice of the coarse fixed image; nothing is read."""
        grid = self.fixed.grid
        return grid.shrink(factors_to_fit(grid, self.coarse_voxels))

    @cached_property
    def contents(self) -> tuple[ImageContent, ImageContent]:
        """Content of the coarse images, told once."""
        fixed, moving = self.coarse
        return ImageContent(fixed), ImageContent(moving)

    def content_of(self, image: Image) -> ImageContent:
        """Content of an image, which may be one of the coarse ones."""
        known = (content for content in self.contents if content.image is image)
        return next(known, ImageContent(image))

    @property
    def tissue(self) -> NDArray[np.bool_]:
        """A mask of the coarse fixed image, true where it shows tissue."""
        return self.contents[0].tissue

    def known(self, transform: Transform | None) -> Transform:
        """The transform that is known so far, or the identity."""
        return transform or AffineTransform(np.eye(self.fixed.ndim + 1))

    def find_similarity(
        self, aligned: NDArray[Any], given: Literal["mind"] | None = None
    ) -> ContrastEvidence:
        """Find the similarity that suits the images, the moving one aligned, and tell it."""
        evidence = find_similarity(self.coarse[0], aligned, self.tissue, given)
        self.reporter.note(f"similarity '{evidence.similarity}': {evidence.reason}")
        return evidence

    def common(self, transform: Transform) -> tuple[Scene, float]:
        """Leave out the fixed voxels that only one image shows, and say which share they are.

        The transform aligns the images roughly. Itself, and 0, where there are none.
        """
        left_out = find_one_sided(*self.contents, transform)
        others = tuple(other.common(transform)[0] for other in self.others)
        changed = any(new is not old for new, old in zip(others, self.others, strict=True))
        scene = replace(self, others=others) if changed else self
        if not left_out.any():
            return scene, 0.0
        return scene._without(left_out, self.coarse[0].grid), float(left_out.mean())

    def judged(self, transform: Transform) -> tuple[Scene, NDArray[np.bool_]]:
        """Leave out the fixed voxels in which no tissue is expected, as `find_layer` says.

        And the coarse mask of tissue that is left. Itself where all of it is, or all content
        counts.
        """
        if self.content == "all":
            return self, self.tissue
        layer = find_layer(*self.contents, transform)
        if not layer.any():
            return self, self.tissue
        scene = self._without(layer, self.coarse[0].grid)
        return scene, scene.tissue & ~layer

    def with_counterpart(self, aligned: NDArray[Any]) -> tuple[Scene, Counterpart | None]:
        """Leave out the tissue that the moving image does not show, and say where it is.

        That one is aligned as well as is known. Itself where none may be left out, and None where
        all content counts.
        """
        if self.content == "all":
            return self, None
        found = find_counterpart(self.coarse[0], aligned, self.tissue)
        if not found.is_usable:
            return self, found
        return replace(self._without(found.missing, found.grid), is_torn=True), found

    def _without(self, left_out: NDArray[np.bool_], grid: Grid) -> Scene:
        """The scene without fixed voxels that lie in a mask on some grid."""
        counts = Image(~left_out, grid)
        level, other = masked(self.levels[0], counts, "fixed"), self.levels[1]
        fixed = masked(readable(self.fixed), counts, "fixed")
        makers = (lambda: level), (lambda: other)
        return replace(self, fixed=fixed, level_makers=makers)

    def correlation(self, transform: Transform) -> float:
        """Measure the mean squared local correlation of the coarse images over the tissue.

        Of several channels, their mean by weight.
        """
        found = [scene.own_correlation(transform) for scene in self.channels]
        weights = [scene.weight for scene in self.channels]
        return float(np.average(found, weights=weights)) if self.others else found[0]

    def own_correlation(self, transform: Transform) -> float:
        """Measure the same of the leading channel alone."""
        aligned = self.aligned(transform).read()
        return local_correlation_in_tissue(self.coarse[0].read(), aligned, self.tissue)

    def overlap(self, transform: Transform) -> dict[str, float]:
        """Shares of the tissue of the 'fixed' and the 'moving' image that the other one shows.

        That of the moving one is told by the affine part alone.
        """
        aligned = self.aligned(transform).read()
        fixed, moving = self.coarse
        back = affine_part(transform).inverse()
        inside = _share_within(self.contents[1].tissue, moving.grid, back, fixed.grid)
        overlap = {"fixed": np.isfinite(aligned)[self.tissue].mean(), "moving": inside}
        return {name: round(float(share), 4) for name, share in overlap.items()}

    def coarse_channels(self, transform: Transform | None) -> tuple[ChannelPair, ...]:
        """The coarse images of all channels, the moving ones aligned where a transform is known."""
        return tuple(
            ChannelPair(
                scene.coarse[0],
                scene.coarse[1] if transform is None else scene.aligned(transform),
                scene.weight,
            )
            for scene in self.channels
        )

    def aligned(self, transform: Transform) -> Image:
        """Resample the coarse moving image on the coarse fixed one; NaN where there is none."""
        fixed, moving = self.coarse
        if _largest_field(transform) > 2 * fixed.grid.size:
            # All of the field is read: for the workers.
            size = (_JUDGED_BLOCK,) * fixed.ndim
            lazy = prepare_apply_transform(fixed.grid, self.levels[1], transform, size, NAN_OUTSIDE)
            return Image(compute(lazy, self.resources, self.reporter.blocks), fixed.grid)
        return Image(warp_block(moving, transform, fixed.grid, NAN_OUTSIDE), fixed.grid)


@dataclass(frozen=True, eq=False)
class BlockScene:
    """Two images and the blocks of the fixed one, in all of which a step is done.

    `coarse_voxels` is the most a level may have that is solved as a whole, 0 for none.
    """

    fixed: Image
    moving: Image
    blocks: BlockGrid
    coarse_voxels: float


@dataclass(frozen=True, eq=False)
class State:
    """The transform known before a step, from fixed to moving points, if there is one.

    `quality` is the local correlation of the coarse images through it; `radii` are those of the
    blobs by which an affine was found. Of a field, `place` is where it is stored.
    """

    transform: Transform | None
    quality: float
    radii: Radii | None = None
    place: Location | None = None


@dataclass(frozen=True, eq=False)
class Nothing:
    """Why a step found nothing, and facts for the report."""

    reason: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Finding:
    """A change that a step found, and facts for the report: numbers, strings and lists.

    The change acts before the transform known so far or, where it is `whole`, includes it and takes
    its place. It is stored at `place`, unless it is made of matrices. What is `required` is kept
    whatever the local correlation says. `radii` are those of the blobs that gave most matches.
    """

    change: Transform
    facts: dict[str, Any] = field(default_factory=dict)
    radii: Radii | None = None
    required: bool = False
    whole: bool = False
    place: Location | None = None

    def after(self, state: State, quality: float) -> State:
        """Join it to what was known; `quality` is the local correlation through both."""
        return State(self.transform(state), quality, self.radii or state.radii, self.place)

    def transform(self, state: State) -> Transform:
        """Compose it with the transform that was known."""
        if self.whole or state.transform is None:
            return self.change
        return compose(self.change, state.transform)


def next_state(
    scene: Scene, state: State, found: Finding | Nothing
) -> tuple[State, dict[str, Any]]:
    """Keep what a step found if it aligns the images better, or is required.

    Landmarks, which no affine step follows, may object. The facts for the report hold
    ``local_correlation``, and the reason under ``dropped``.
    """
    if isinstance(found, Nothing):
        return state, {**found.facts, "dropped": found.reason}
    through = found.transform(state)
    quality = scene.correlation(through)
    facts = {**found.facts, "local_correlation": quality}
    if quality <= state.quality and not found.required:
        return state, {**facts, "dropped": "it lowered the local correlation"}
    if scene.marks is not None and not found.required:
        against = scene.marks.objection(state, through)
        if against:
            return state, {**facts, "dropped": against}
    return found.after(state, quality), facts


def judged_by_descriptors(
    scene: Scene, state: State, found: Finding | Nothing
) -> Finding | Nothing:
    """Keep a finding that makes descriptors more alike: for contrasts that blind correlation."""
    if isinstance(found, Nothing):
        return found
    before, after = (
        descriptor_likeness(scene.coarse[0], scene.aligned(transform).read(), scene.tissue)
        for transform in (scene.known(state.transform), found.transform(state))
    )
    found.facts.update(descriptors_before=before, descriptors_after=after)
    if not after > before:
        return Nothing("it made self-similarity descriptors less alike", found.facts)
    return replace(found, required=True)


def _share_within(
    mask: NDArray[np.bool_], grid: Grid, affine: AffineTransform, other: Grid
) -> float:
    """The share of a mask that an affine puts inside another lattice.

    A plane at a time: the positions of a whole level take far more memory than the level.
    """
    inside = np.zeros(len(mask), int)

    def count(start: int, stop: int) -> None:
        for k in range(start, stop):
            points = grid.to_physical(np.insert(np.argwhere(mask[k]), 0, k, axis=1))
            inside[k] = other.contains(affine.apply(points)).sum()

    over_slabs(count, len(mask))
    return int(inside.sum()) / max(int(mask.sum()), 1)


def _largest_field(transform: Transform) -> int:
    """Vectors of the largest displacement field in a transform."""
    fields = (step for step in steps_of(transform) if isinstance(step, DisplacementField))
    return max((field.grid.size for field in fields), default=0)


def make_level(
    image: Image,
    voxels: float,
    resources: Resources,
    progress: Progress,
    place: Callable[[Callable[[Location], bool]], Location] | None = None,
) -> Image:
    """Average an image to at most so many voxels; one that has no more is returned itself.

    The level is kept at a place (see `Keeping`), or in memory.
    """
    factors = factors_to_fit(image.grid, voxels)
    if max(factors) == 1:
        return readable(image)
    lazy, grid = prepare_coarse(*finest_needed(image, factors)), image.grid.shrink(factors)
    if place is None:
        return Image(compute(lazy, resources, progress), grid, image.name)
    return Image(_keep(lazy, resources, progress, place), grid, image.name)


def _keep(
    lazy: da.Array,
    resources: Resources,
    progress: Progress,
    place: Callable[[Callable[[Location], bool]], Location],
) -> _Kept:
    """Compute an array into the place where it is kept, or go on with what is there."""
    kept = place(lambda there: continues(lazy, there))
    if not continues(lazy, kept):
        kept.remove()
    compute(lazy, resources, progress, keep=kept)
    return _Kept(ZarrArray.open(kept), str(lazy.name))


@dataclass(frozen=True, eq=False)
class LevelMaker:
    """Makes the levels and patterns of a run, or finds those that an earlier run left.

    `resources` gives the workers that average an image, and is called when one must be.
    """

    voxels: float
    resources: Callable[[], Resources]
    progress: Progress
    keeping: Keeping

    def __call__(self, image: Image, name: str) -> Image:
        """Make the level of an image, which is kept by a name."""
        if max(factors_to_fit(image.grid, self.voxels)) == 1:
            return readable(image)
        return make_level(
            image,
            self.voxels,
            self.resources(),
            self.progress,
            lambda known: self.keeping(name, known),
        )

    def pattern(self, image: Image, name: str) -> tuple[ArraySource | None, dict[str, Any]]:
        """Find what a camera adds to every plane, and say what that is; {} where it is nothing.

        The pattern of an image too large for memory is kept, by a name.
        """
        image = readable(image)
        if not can_tell_pattern(image.grid):
            return None, {}
        pattern: ArraySource
        if max(factors_to_fit(image.grid, self.voxels)) == 1:
            pattern = read_pattern(image)
        elif not shows_pattern(image):
            return None, {}
        else:
            pattern = _keep(
                prepare_pattern(image),
                self.resources(),
                self.progress,
                lambda known: self.keeping(f"{name}-pattern", known),
            )
        return pattern, describe_pattern(pattern, image.grid)


@dataclass(frozen=True, eq=False)
class _Kept(DerivedArray):
    """A stored array, known by what it was made of: made again, it is the same one."""

    computation: str

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.computation)
