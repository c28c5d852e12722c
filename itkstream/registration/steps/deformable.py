"""A smooth deformation, which results in a field on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import dask.array as da
import numpy as np
from attrs import frozen

from itkstream.errors import InputError, unknown_name
from itkstream.estimate.coarse import plan_levels
from itkstream.estimate.deformation import (
    Task,
    deform_blocks,
    displacement_of,
    field_factors,
    positions_of,
    prepare_deformation,
)
from itkstream.geometry import AffineTransform, CompositeTransform, Grid, Image, Transform
from itkstream.geometry.chains import FieldChain
from itkstream.io.storage.locations import Location
from itkstream.numerics.deformation.contrast import find_similarity
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS, PIPELINE_MIND, Similarity
from itkstream.numerics.engines import deform_block
from itkstream.numerics.itk.settings import (
    BsplineSettings,
    DeformSettings,
    DemonsMethod,
    DemonsSettings,
)
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.registration.fields import store_field
from itkstream.registration.scene import BlockScene, Finding, Nothing, Scene, Start, State
from itkstream.registration.steps.blocks import check_blocks
from itkstream.registration.steps.prices import (
    TASKS_BLENDED,
    TASKS_WRITTEN,
    Pair,
    StepPrice,
    count_blocks,
    field_bytes,
    kept_bytes,
    largest_block,
    work_of,
)
from itkstream.registration.steps.step import TunedStep, tuned

__all__ = ["Deformable", "Method"]

Method: TypeAlias = Literal["lcc", "bspline"] | DemonsMethod

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


@frozen(init=False, repr=False)
class Deformable(TunedStep):
    """A smooth deformation, coarse to fine, block by block.

    Parameters
    ----------
    method : {'lcc', 'demons', 'symmetric-demons', 'diffeomorphic-demons', 'bspline'}
        'lcc' follows local correlation; the demons and the B-spline are SimpleITK's.
    blocksize : int
        Voxels per block at full resolution, an even number. An image that fits in memory is one
        block.
    overlap : int, optional
        Voxels each block looks beyond its border; default an eighth of the block.
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
    """

    name: ClassVar[str] = "deformable"
    title: ClassVar[str] = "deformation"
    finds_field: ClassVar[bool] = True

    settings: DeformSettings
    given_lengths: frozenset[str]
    method: Method
    blocksize: int
    overlap: int | None
    similarity: Chosen

    def __init__(
        self,
        method: Method = "lcc",
        blocksize: int = 256,
        overlap: int | None = None,
        similarity: Chosen = "auto",
        **parameters: Any,
    ) -> None:
        check_blocks(blocksize, overlap, least=16, even=True)
        _check_similarity(method, similarity)
        settings, lengths = tuned(
            PIPELINE_MIND if similarity == "mind" else _DEFAULTS[method],
            parameters,
            f"Deformable(method={method!r})",
            own=("method", "blocksize", "overlap", "similarity"),
        )
        self.__attrs_init__(
            settings=settings,
            given_lengths=lengths,
            method=method,
            blocksize=blocksize,
            overlap=overlap,
            similarity=similarity,
        )

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "similarity": self.similarity}

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
        """
        return self._scaled(self.settings.for_voxels(spacing))

    def find(self, scene: Scene, state: State, place: Callable[[], Location]) -> Finding | Nothing:
        path = place()
        decided, facts = self._decided(scene, state)
        transform = decided._store(scene, state, path)
        grid = FieldChain.of(transform).field.grid
        facts |= {"field_shape": grid.shape, "field_spacing": grid.spacing}
        return Finding(transform, facts, required=True, whole=True, place=path)

    def restore(self, scene: Scene, state: State, place: Callable[[], Location]) -> None:
        self._decided(scene, state)[0]._store(scene, state, place())

    def _decided(self, scene: Scene, state: State) -> tuple[Self, dict[str, Any]]:
        """The step with a similarity that suits the images, and facts for the report."""
        if self.method != "lcc" or self.similarity != "auto":
            return self, {}
        start = state.transform or AffineTransform(np.eye(scene.fixed.ndim + 1))
        evidence = find_similarity(scene.coarse[0], scene.aligned(start).read(), scene.tissue)
        scene.reporter.note(f"similarity '{evidence.similarity}': {evidence.reason}")
        return self.evolve(similarity=evidence.similarity), evidence.facts

    def _store(self, scene: Scene, state: State, path: Location) -> CompositeTransform:
        """Find the displacement in front of the affine, coarse to fine; stored as it is computed.

        Blocks that an earlier run stored are kept where their files are sound.
        """
        fixed, settings = scene.fixed, self.settings_for(scene.fixed.spacing)
        start = state.transform or AffineTransform(np.eye(fixed.ndim + 1))
        blocks = deform_blocks(fixed.grid, self.blocksize, self.overlap, scene.coarse_voxels)
        factors = field_factors(settings, fixed.grid, blocks)
        task = Task(
            fixed,
            scene.moving,
            start,
            settings,
            blocks,
            scene.coarse_voxels,
            skip_empty=True,
            levels=scene.levels if len(blocks) > 1 else None,
        )
        lazy = prepare_deformation(task, displacement_of(blocks, fixed.grid, factors))
        return store_field(scene, lazy, fixed.grid.shrink(factors), path, affine_part(start))

    def prepare_positions(self, scene: BlockScene, start: Start) -> da.Array:
        grid = scene.fixed.grid
        known = AffineTransform(np.eye(grid.ndim + 1)) if start is None else start
        settings = self.settings_for(grid.spacing)
        task = Task(scene.fixed, scene.moving, known, settings, scene.blocks, scene.coarse_voxels)
        return prepare_deformation(task, positions_of(grid))

    def price(self, pair: Pair) -> StepPrice:
        grid, voxels = pair.fixed, pair.settings.coarse_voxels
        blocks = deform_blocks(grid, self.blocksize, self.overlap, voxels)
        # What is chosen is not known before: the dearer one.
        follows = "mind" if self.method == "lcc" and self.similarity != "lcc" else self.method
        coarse, bytes_per_voxel = 0.0, _BYTES[follows]
        if grid.ndim == 2:
            least = _MIND_IN_PLANES if follows == "mind" else _BYTES_IN_PLANES
            bytes_per_voxel = max(bytes_per_voxel, least)
        if len(blocks) > 1:
            plan = plan_levels(grid, self.settings_for(grid.spacing), voxels)
            coarse = grid.shrink(plan.factors).size * bytes_per_voxel
        return StepPrice(
            self.name,
            *count_blocks(blocks, TASKS_BLENDED + TASKS_WRITTEN),
            once=pair.held + coarse,
            per_block=largest_block(blocks) * bytes_per_voxel,
            kept=kept_bytes(*pair.image_bytes) if len(blocks) > 1 else 0.0,
            disk=field_bytes(self.field_grid(pair)),
            work=work_of(blocks),
            kind="deform",
        )

    def field_grid(self, pair: Pair) -> Grid:
        grid = pair.fixed
        blocks = deform_blocks(grid, self.blocksize, self.overlap, pair.settings.coarse_voxels)
        return grid.shrink(field_factors(self.settings_for(grid.spacing), grid, blocks))

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
