"""A smooth deformation, which results in a field on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import dask.array as da
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.apply.points import TargetErrors
from itkstream.errors import InputError, unknown_name
from itkstream.estimate.coarse import LevelledPair, plan_levels
from itkstream.estimate.deformation import (
    Task,
    deform_blocks,
    displacement_of,
    field_factors,
    positions_of,
    prepare_deformation,
)
from itkstream.estimate.pull import judge_pull
from itkstream.estimate.stiffness import SAMPLED_VOXELS, Foretold, choose_stiffness, foretell
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    Grid,
    Image,
    Landmarks,
    Transform,
)
from itkstream.geometry.chains import FieldChain
from itkstream.io.storage.locations import Location
from itkstream.numerics.deformation.settings import (
    PIPELINE_DEFAULTS,
    PIPELINE_MIND,
    DescentSettings,
    Similarity,
)
from itkstream.numerics.engines import deform_block
from itkstream.numerics.evidence.stiffness import (
    LEAST_STIFFNESS,
    NARROW_BELOW,
    prolonged,
    stiffened,
)
from itkstream.numerics.gpu.engine import device_bytes
from itkstream.numerics.itk.settings import (
    BsplineSettings,
    DeformSettings,
    DemonsMethod,
    DemonsSettings,
)
from itkstream.numerics.parameters import finite
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.registration.channels import CHANNELS, led_by, weigh_channels
from itkstream.registration.fields import store_field
from itkstream.registration.scene import BlockScene, Finding, Nothing, Scene, Start, State
from itkstream.registration.steps.prices import (
    TASKS_BLENDED,
    TASKS_WRITTEN,
    Pair,
    StepPrice,
    count_blocks,
    field_bytes,
    kept_bytes,
    largest_block,
    share_of,
    work_of,
)
from itkstream.registration.steps.step import TunedStep, check_blocks, tuned

__all__ = ["Deformable", "Method"]

Method: TypeAlias = Literal["lcc", "bspline"] | DemonsMethod
Where: TypeAlias = Literal["everywhere", "landmarks"]

_CHANCE = (
    "no deformation foretells parts of the fixed image that were hidden from it better than none "
    "does: what it would follow is chance"
)
_CHANCE_BY_MIND = (
    "the images tell no more of each other after a deformation than before it: what it would "
    "follow is chance"
)
_NO_PULL = "landmarks pull nothing, as those held out are foretold no better with the others' pull"
_AGAINST_IMAGES = (
    "landmarks pull nothing, as hidden parts of the images are foretold by the images alone, and "
    "no longer where landmarks pull"
)
_NO_COUNTERPART, _LANDMARKS = "without_counterpart", "landmark_evidence"

# Standard deviations of its placing by which a landmark is missed.
_MISSED = 2.0

Chosen: TypeAlias = Literal["auto"] | Similarity

_DEFAULTS: dict[str, DeformSettings] = {
    "lcc": PIPELINE_DEFAULTS,
    **{method: DemonsSettings(method) for method in get_args(DemonsMethod)},
    "bspline": BsplineSettings(),
}

# Bytes per voxel of a block. One of 96^3 voxels that starts from a field took 56, 75, 120, 187,
# 187 and 227; the rest is for blending it.
_BYTES: dict[Method | Literal["mind"], float] = {
    "lcc": 62.0,
    "mind": 88.0,
    "bspline": 130.0,
    "demons": 200.0,
    "symmetric-demons": 200.0,
    "diffeomorphic-demons": 240.0,
}
# At least so much in planes, and for "mind": they took 91 and 107 there, as coarser levels are a
# quarter and no eighth.
_BYTES_IN_PLANES, _MIND_IN_PLANES = 98.0, 115.0
# A soft field has eight times the nodes at full resolution.
_NARROW_BYTES = 18.0
# Per voxel of the samples on which the stiffness is chosen, and of a descent on them. The level on
# which tissue without counterpart is found has no more voxels and takes 103.
_SAMPLE_BYTES = 130.0
_MASKED_BYTES = 4.0
# To choose a stiffness on samples, of images as large as these or larger; see `RATES`.
_CHOOSING_SECONDS = 7.5
# To judge a field whose stiffness is given, per voxel of the samples.
_JUDGING_SECONDS = {
    "lcc": 1e-6,
    "demons": 5e-6,
    "symmetric-demons": 5e-6,
    "diffeomorphic-demons": 9e-6,
    "bspline": 3.5e-6,
}


@frozen(init=False, repr=False)
class Deformable(TunedStep):
    """A smooth deformation, coarse to fine, block by block.

    Landmarks, where there are any, are soft constraints of every method.

    Parameters
    ----------
    method : {'lcc', 'demons', 'symmetric-demons', 'diffeomorphic-demons', 'bspline'}
        'lcc' follows local correlation; the demons and the B-spline are SimpleITK's.
    blocksize : int
        Voxels per block at full resolution, an even number. An image that fits in memory is one
        block.
    overlap : int, optional
        Voxels each block looks beyond its border; default an eighth of the block.
    stiffness : float or 'auto'
        How little the field of 'lcc' bends, as a multiple of what its smoothing says: a quarter
        lets it bend twice as sharply. By 'auto', the stiffness by which voxels that are hidden
        from the descent are foretold best, between 1/64 and 16; 1 where parameters are given, and
        where the deformation of blocks is prepared without running.
    where : {'everywhere', 'landmarks'}
        'landmarks': only in blocks, of any image, with a landmark that the start misses by more
        than twice its standard deviation; others are not read and stay as they start. So landmarks
        are added to a finished registration, whose transform is the start.
    similarity : {'auto', 'lcc', 'mind'}
        What method 'lcc' follows: local correlation of intensities, or of self-similarity
        descriptors, for images whose contrasts differ (`itkstream.deform.DescentSettings`). 'auto',
        in `itkstream.register`: 'lcc' where the signs of local correlation agree on a coarse level;
        else the one after which the images tell more of each other there. Block by block, in
        `itkstream.align`, 'auto' is 'lcc'.
    **parameters
        Those of the method's settings: `itkstream.deform.DescentSettings`, with the defaults that
        ``itkstream config --defaults`` prints, for 'lcc', and `itkstream.deform.DemonsSettings` or
        `itkstream.deform.BsplineSettings` for the others. Lengths in µm, areas in their square;
        None or left out: scaled to the voxels. With other `shrink_factors`, what is left out per
        level counts from the finest level.

    Raises
    ------
    InputError
        For an unknown parameter or a value out of range; the message names it.

    Examples
    --------
    >>> itkstream.Deformable(stiffness=4)
    Deformable(stiffness=4)
    >>> itkstream.Deformable("symmetric-demons", blocksize=128)
    Deformable(method='symmetric-demons', blocksize=128)
    """

    name: ClassVar[str] = "deformable"
    title: ClassVar[str] = "deformation"
    finds_field: ClassVar[bool] = True

    settings: DeformSettings
    given_lengths: frozenset[str]
    method: Method
    blocksize: int
    overlap: int | None
    stiffness: float | Literal["auto"]
    where: Where
    similarity: Chosen

    def __init__(
        self,
        method: Method = "lcc",
        blocksize: int = 256,
        overlap: int | None = None,
        stiffness: float | Literal["auto"] = "auto",
        where: Where = "everywhere",
        similarity: Chosen = "auto",
        **parameters: Any,
    ) -> None:
        if where not in get_args(Where):
            raise unknown_name("where", where, get_args(Where))
        check_blocks(blocksize, overlap, least=16, even=True)
        _check_similarity(method, similarity)
        _check_stiffness(stiffness, method)
        settings, lengths = tuned(
            PIPELINE_MIND if similarity == "mind" else _DEFAULTS[method],
            parameters,
            f"Deformable(method={method!r})",
            own=("method", "blocksize", "overlap", "stiffness", "where", "similarity"),
        )
        self.__attrs_init__(
            settings=settings,
            given_lengths=lengths,
            method=method,
            blocksize=blocksize,
            overlap=overlap,
            stiffness=stiffness,
            where=where,
            similarity=similarity,
        )

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "similarity": self.similarity}

    def _changed(self) -> dict[str, Any]:
        chosen = {} if self.method == "lcc" else {"method": self.method}
        return chosen | self._differing_from(Deformable(self.method))

    def settings_for(self, spacing: Sequence[float]) -> DeformSettings:
        """Scale the settings to an image.

        Parameters
        ----------
        spacing : sequence of float
            Of the fixed image, in µm.

        Returns
        -------
        DeformSettings
            With all lengths in µm.

        Examples
        --------
        >>> itkstream.Deformable().settings_for(fixed.spacing).shrink_factors
        (4, 2, 1)
        """
        settings = self._judged_settings(spacing)
        if self.stiffness == "auto":
            return settings
        assert isinstance(settings, DescentSettings)
        return prolonged(settings, self.stiffness)

    def _judged_settings(self, spacing: Sequence[float]) -> DeformSettings:
        """Scale the settings with which hidden voxels are foretold to an image."""
        settings = self._scaled(self.settings.for_voxels(spacing))
        return settings if self.stiffness == "auto" else stiffened(settings, self.stiffness)

    def find(self, scene: Scene, state: State, place: Callable[[], Location]) -> Finding | Nothing:
        start = scene.known(state.transform)
        scene, channels = weigh_channels(scene, start)
        scene, decided, facts, is_chance = self._look(scene, start)
        facts |= channels
        if decided._is_judged:
            decided, found = decided._foretell(scene, start)
            facts, is_chance = facts | found.facts, found.is_chance
        chance = (_CHANCE if decided._is_judged else _CHANCE_BY_MIND) if is_chance else ""
        if scene.marks is not None:
            against, told = decided._judge_pull(scene, start, scene.marks.fitted, is_chance)
            facts[_LANDMARKS] = told
            if against and (is_chance or decided.where == "landmarks"):
                return Nothing("; ".join(filter(None, (chance, against))), facts)
            scene = replace(scene, marks=None) if against else scene
        elif is_chance:
            return Nothing(chance, facts)
        path = place()
        transform = decided._store(scene, state, path)
        grid = FieldChain.of(transform).field.grid
        facts |= {"field_shape": grid.shape, "field_spacing": grid.spacing}
        return Finding(transform, facts, required=True, whole=True, place=path)

    def restore(
        self,
        scene: Scene,
        state: State,
        place: Callable[[], Location],
        facts: Mapping[str, Any],
    ) -> None:
        if CHANNELS in facts:
            scene = led_by(scene, [channel["share"] for channel in facts[CHANNELS]])
        decided = {n: facts[n] for n in ("similarity", "stiffness") if n in facts}
        if facts.get(_NO_COUNTERPART, {}).get("left_out"):
            start = scene.known(state.transform)
            scene, _ = _without_torn(scene, scene.aligned(start).read(), start)
        if facts.get(_LANDMARKS, {}).get("left_out"):
            scene = replace(scene, marks=None)
        self.evolve(**decided)._store(scene, state, place())

    def _look(self, scene: Scene, start: Transform) -> tuple[Scene, Self, dict[str, Any], bool]:
        """The scene without torn tissue, the step with a similarity that suits it, and facts.

        And whether what the step would follow by descriptors is chance.
        """
        asks = self.method == "lcc" and self.similarity == "auto"
        asks |= self.similarity == "mind" and self.where == "everywhere"
        facts: dict[str, Any] = {}
        if not asks and not self._trusts_intensities:
            return scene, self, facts, False
        aligned = scene.aligned(start).read()
        given: Literal["mind"] | None = "mind" if self.similarity == "mind" else None
        evidence = scene.find_similarity(aligned, given) if asks else None
        step = self if evidence is None else self.evolve(similarity=evidence.similarity)
        # Tissue in another stain looks as if it had no counterpart.
        if step._trusts_intensities:
            whole, (scene, facts) = scene, _without_torn(scene, aligned, start)
            if asks and scene is not whole:
                evidence = scene.find_similarity(aligned)
                step = self.evolve(similarity=evidence.similarity)
        if evidence is None:
            return scene, step, facts, False
        return scene, step, evidence.facts | facts, evidence.is_chance

    def _foretell(self, scene: Scene, start: Transform) -> tuple[Self, Foretold]:
        """The step with a stiffness that suits the images, and what it foretells of them."""
        known = scene.fixed, scene.moving, start
        if not self._is_open:
            settings = self._judged_settings(scene.fixed.spacing)
            return self, foretell(*known, settings, scene.tissue, scene.further)
        settings = PIPELINE_DEFAULTS.for_voxels(scene.fixed.spacing)
        found = choose_stiffness(*known, settings, scene.tissue, scene.further)
        assert found.stiffness is not None
        scene.reporter.note(f"stiffness {found.stiffness:g}")
        return self.evolve(stiffness=found.stiffness), found

    def _judge_pull(
        self, scene: Scene, start: Transform, landmarks: Landmarks, is_chance: bool
    ) -> tuple[str, dict[str, Any]]:
        """Why landmarks must not pull the field, empty where they may, and facts of that.

        Where images show nothing, only landmarks tell of each other. Where these do, the field must
        foretell hidden voxels still.
        """
        leading, *others = scene.coarse_channels(None)
        settings = self._judged_settings(leading.fixed.spacing)
        found = judge_pull(leading, start, settings, landmarks, others)
        against = _NO_PULL if found.outcome == "chance" else ""
        if not (against or is_chance) and self._is_judged:
            known = scene.fixed, scene.moving, start
            settings = self._judged_settings(scene.fixed.spacing)
            pulled = foretell(*known, settings, scene.tissue, scene.further, landmarks)
            against = _AGAINST_IMAGES if pulled.is_chance else ""
        scene.reporter.note(f"{found.describe()}; {against}" if against else found.describe())
        return against, {**found.facts, "left_out": against, "images_tell": not is_chance}

    @property
    def takes_channels(self) -> bool:
        return self.method == "lcc"

    @property
    def _is_judged(self) -> bool:
        """Voxels that are hidden from the field judge it: all is deformed, and intensities tell.

        Descriptors, which see far around a voxel, cannot do without them.
        """
        return self.similarity != "mind" and self.where == "everywhere"

    @property
    def _trusts_intensities(self) -> bool:
        """Tissue without counterpart may be left out."""
        return self.method == "lcc" and self._is_judged

    @property
    def _is_open(self) -> bool:
        """The stiffness is to be chosen: nothing else says how the field may bend."""
        return (
            self.stiffness == "auto"
            and self.where == "everywhere"
            and self.settings == PIPELINE_DEFAULTS
            and not self.given_lengths
        )

    def _store(self, scene: Scene, state: State, path: Location) -> CompositeTransform:
        """Find the displacement in front of the affine, coarse to fine; stored as it is computed.

        Blocks that an earlier run stored are kept where their files are sound.
        """
        fixed, settings = scene.fixed, self.settings_for(scene.fixed.spacing)
        start = scene.known(state.transform)
        voxels = self._coarse_voxels(scene.coarse_voxels)
        blocks = deform_blocks(fixed.grid, self.blocksize, self.overlap, voxels)
        factors = field_factors(settings, fixed.grid, blocks)
        task = Task(
            fixed,
            scene.moving,
            start,
            settings,
            blocks,
            voxels,
            skip_empty=True,
            levels=scene.levels if len(blocks) > 1 else None,
            landmarks=None if scene.marks is None else scene.marks.fitted,
            to_reach=self._missed(scene, start),
            continues=scene.is_torn,
            others=tuple(
                LevelledPair(other.fixed, other.moving, other.levels, other.weight)
                for other in scene.others
            ),
        )
        lazy = prepare_deformation(task, displacement_of(blocks, fixed.grid, factors))
        return store_field(scene, lazy, fixed.grid.shrink(factors), path, affine_part(start))

    def _coarse_voxels(self, voxels: float) -> float:
        """Voxels of a level that is solved as a whole: 0 where most of the image stays."""
        return voxels if self.where == "everywhere" else 0.0

    def _missed(self, scene: Scene, start: Transform) -> Landmarks | None:
        """Landmarks that are still to be reached; None where all blocks are computed."""
        if self.where == "everywhere":
            return None
        if scene.marks is None:
            raise InputError("Deformable(where='landmarks') needs landmarks; there are none")
        marks = scene.marks.fitted
        assert marks.sigma_um is not None
        return marks.select(TargetErrors.of(start, marks).um > _MISSED * marks.sigma_um)

    def prepare_positions(self, scene: BlockScene, start: Start) -> da.Array:
        if self.where != "everywhere":
            raise InputError("Deformable(where='landmarks') needs landmarks: use register")
        grid = scene.fixed.grid
        known = AffineTransform(np.eye(grid.ndim + 1)) if start is None else start
        settings = self.settings_for(grid.spacing)
        task = Task(scene.fixed, scene.moving, known, settings, scene.blocks, scene.coarse_voxels)
        return prepare_deformation(task, positions_of(grid))

    def price(self, pair: Pair) -> StepPrice:
        grid, voxels = pair.fixed, self._coarse_voxels(pair.settings.coarse_voxels)
        blocks = deform_blocks(grid, self.blocksize, self.overlap, voxels)
        # What is chosen is not known before: the dearer one.
        follows = "mind" if self.method == "lcc" and self.similarity != "lcc" else self.method
        level, bytes_per_voxel = 0.0, _BYTES[follows]
        channels = pair.channels
        if grid.ndim == 2:
            least = _MIND_IN_PLANES if follows == "mind" else _BYTES_IN_PLANES
            bytes_per_voxel = max(bytes_per_voxel, least)
        if self._softest < NARROW_BELOW:
            bytes_per_voxel = max(bytes_per_voxel, _BYTES["lcc"] + _NARROW_BYTES)
        if len(blocks) > 1 and voxels:
            plan = plan_levels(grid, self.settings_for(grid.spacing), voxels)
            level = float(grid.shrink(plan.factors).size)
        samples = 0.0
        if self._is_judged:
            samples = channels * _SAMPLE_BYTES * min(grid.size, SAMPLED_VOXELS)
        # The coarse fixed image once more, without what is left out.
        masked = _MASKED_BYTES * pair.coarse[0].size if self._trusts_intensities else 0.0
        held = pair.held + masked
        block = largest_block(blocks)
        per_block = channels * block * bytes_per_voxel
        return StepPrice(
            self.name,
            *count_blocks(blocks, TASKS_BLENDED + TASKS_WRITTEN),
            # Samples are gone when blocks are computed.
            once=held + max(channels * level * bytes_per_voxel, samples - per_block),
            per_block=per_block,
            kept=channels * kept_bytes(*pair.image_bytes) if len(blocks) > 1 else 0.0,
            disk=field_bytes(self.field_grid(pair)),
            work=channels * work_of(blocks),
            kind="deform",
            seconds=self._judging_seconds(grid),
            device=self._device_bytes(max(block, level), channels),
        )

    def _judging_seconds(self, fixed: Grid) -> float:
        """Seconds that hidden voxels take to judge the field, on samples of an image."""
        if self._is_open:
            return _CHOOSING_SECONDS * share_of(fixed, SAMPLED_VOXELS)
        sampled = min(fixed.size, SAMPLED_VOXELS) if self._is_judged else 0.0
        return _JUDGING_SECONDS[self.method] * sampled

    def _device_bytes(self, voxels: float, channels: int) -> float:
        """Memory of a block on a GPU, where one computes it."""
        if self.method != "lcc" or self.similarity == "mind":
            return 0.0
        return device_bytes(voxels, voxels, channels)

    def field_grid(self, pair: Pair) -> Grid:
        grid, voxels = pair.fixed, self._coarse_voxels(pair.settings.coarse_voxels)
        blocks = deform_blocks(grid, self.blocksize, self.overlap, voxels)
        softest = self.evolve(stiffness=LEAST_STIFFNESS) if self._is_open else self
        return grid.shrink(field_factors(softest.settings_for(grid.spacing), grid, blocks))

    @property
    def _softest(self) -> float:
        """The least stiffness that may be used, which takes most memory and disk."""
        if self.stiffness == "auto":
            return LEAST_STIFFNESS if self._is_open else 1.0
        return self.stiffness

    @property
    def planned_block(self) -> int:
        return self.blocksize

    def limited(self, block: int) -> Self:
        if self.blocksize <= block:
            return self
        overlap = None if self.overlap is None else min(self.overlap, block // 4)
        return self.evolve(blocksize=block, overlap=overlap)

    def works(self, moving: Image, start: Transform) -> Mapping[str, Callable[[Image], Any]]:
        return {
            "deform": lambda block: deform_block(
                block, moving, start, self.settings_for(block.spacing)
            )
        }


def _without_torn(
    scene: Scene, aligned: NDArray[Any], start: Transform
) -> tuple[Scene, dict[str, Any]]:
    """The scene without tissue that only the fixed image shows, and facts of that.

    Further channels are left without theirs where the leading one is.
    """
    seen, found = scene.with_counterpart(aligned)
    if found is None or not found.describe():
        return scene, {}
    scene.reporter.note(found.describe())
    if seen is not scene:
        others = (o.with_counterpart(o.aligned(start).read())[0] for o in scene.others)
        seen = replace(seen, others=tuple(others))
    return seen, {_NO_COUNTERPART: found.facts(scene.fixed.grid)}


def _check_stiffness(stiffness: Any, method: str) -> None:
    """Refuse what is no stiffness, and one for a method that has none."""
    if stiffness == "auto":
        return
    if not finite(stiffness) or stiffness <= 0:
        raise InputError(f"stiffness must be a positive number or 'auto'; got {stiffness!r}")
    if method != "lcc":
        raise InputError(
            f"stiffness is for method 'lcc'; {method!r} has smoothing parameters of its own"
        )


def _check_similarity(method: Any, similarity: Any) -> None:
    """Refuse what is unknown, and similarities of methods that have their own."""
    if method not in _DEFAULTS:
        raise unknown_name("method", method, _DEFAULTS)
    known = ("auto", *get_args(Similarity))
    if similarity not in known:
        raise unknown_name("similarity", similarity, known)
    if method != "lcc" and similarity != "auto":
        raise InputError(
            f"similarity is for method 'lcc'; got {similarity!r} with method {method!r}, which has "
            "its own measure: leave similarity out"
        )
