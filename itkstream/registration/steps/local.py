"""An affine of every block, from key points, all solved together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import attrs
import numpy as np
from attrs import frozen
from dask.delayed import Delayed

from itkstream.apply.resampling import piecewise_transform
from itkstream.blocks.inputs import block_grid
from itkstream.compute.execute import compute
from itkstream.errors import BlockErrors, InputError, RegistrationError
from itkstream.estimate.affines import (
    AffineTask,
    KeyPointSearch,
    prepare_affines,
    split_local_affines,
)
from itkstream.io.storage.locations import Location
from itkstream.registration.scene import (
    BlockScene,
    Finding,
    Nothing,
    Radii,
    Scene,
    Start,
    State,
    judged_by_descriptors,
)
from itkstream.registration.steps.matching import (
    COMMON_RADII,
    KEY_POINT_BYTES,
    MatchingStep,
    checked_radii,
    choose_radii,
)
from itkstream.registration.steps.prices import (
    TASKS_BLENDED,
    Pair,
    StepPrice,
    count_blocks,
    largest_block,
    work_of,
)
from itkstream.registration.steps.ransac import RansacAffine
from itkstream.registration.steps.step import check_blocks, prepare_refined

__all__ = ["LocalAffines"]

# Beside those of its voxels; see `RATES`.
_SECONDS = 0.65


def _one_pair(given: Any) -> Radii | None:
    return None if given is None else checked_radii((given,))[0]


@frozen(kw_only=True, repr=False)
class LocalAffines(MatchingStep):
    """An affine a block, from key points, all blocks solved together.

    One of whose matches less than a fifth agree follows all that support one another.

    Parameters
    ----------
    match_threshold : float, optional
        Least correlation of two contexts that match, up to 1; default 0.7.
    cc_radius : int, optional
        Half width of the contexts, in voxels; default 12.
    nspots, num_sigma_max, align_threshold
        As in `RansacAffine`, for every block.
    max_distance, max_ambiguity, model, seed, contrast
        As in `RansacAffine`, for every block.
    blocksize : int
        Voxels per block and axis.
    overlap : int, optional
        Voxels each block looks beyond its border; default an eighth of the block.
    radii : (float, float), optional
        Least and greatest radius of the blobs, in voxels; default those that the last
        `RansacAffine` had most matches with.

    Raises
    ------
    InputError
        For a value out of range; the message names it.

    Examples
    --------
    >>> itkstream.LocalAffines(blocksize=64)
    LocalAffines(blocksize=64)
    """

    name: ClassVar[str] = "local-affines"
    title: ClassVar[str] = "piecewise affine"

    blocksize: int = 128
    overlap: int | None = None
    radii: Radii | None = attrs.field(default=None, converter=_one_pair)

    def __attrs_post_init__(self) -> None:
        check_blocks(self.blocksize, self.overlap, least=32)

    def find(self, scene: Scene, state: State, place: Callable[[], Location]) -> Finding | Nothing:
        fixed, moving = scene.coarse
        blocksize = (self.blocksize,) * fixed.ndim
        try:
            radii = self._radii(scene, state)
            search = self._search(fixed.spacing, radii)
            blocks = block_grid(fixed.shape, blocksize, self.overlap)
            _, *others = self.compared_channels(scene.coarse_channels(None))
            seen = fixed, self.compared(moving)
            task = AffineTask(*seen, state.transform, blocks, search, tuple(others))
            lazy = prepare_affines(task)
            packed = compute(lazy, progress=scene.reporter.blocks)
            local, confidence = split_local_affines(packed, fixed.ndim)
            pieces = piecewise_transform(fixed.grid, local, blocksize, overlap=self.overlap)
        except BlockErrors as error:
            ndim, axes = fixed.ndim, fixed.grid.axes
            return Nothing(str(error.placed(lambda index: blocks[index[:ndim]].core, axes)))
        except (InputError, RegistrationError) as error:
            return Nothing(str(error))
        facts = {
            "chosen": {
                **self.matching_facts(radii),
                "blocksize": self.blocksize,
                "overlap": list(blocks.overlap),
                "why": "they were given" if self.radii else "most matches agreed by them before",
            },
            "blocks": list(local.shape[: fixed.ndim]),
            "blocks_with_matches": int((confidence[..., 0] > 0).sum()),
            "median_confidence": float(np.median(confidence[..., -1])),
        }
        return self._judged(scene, state, Finding(pieces, facts))

    def _judged(self, scene: Scene, state: State, found: Finding) -> Finding | Nothing:
        """Judge what was found by what the contrasts allow: correlation, or descriptors.

        Of two stains of a zebrafish, affines of two blocks raised the correlation from 0.18 to
        0.22, and the error from 2.1 to 4.5 voxels; likeness of descriptors fell from 0.22 to 0.13.
        """
        evidence = scene.find_similarity(scene.aligned(scene.known(state.transform)).read())
        found.facts.update(evidence.facts)
        if evidence.similarity == "lcc":
            return found
        return judged_by_descriptors(scene, state, found)

    def prepare_transform(self, scene: BlockScene, start: Start) -> Delayed:
        grid = scene.fixed.grid
        blocks = block_grid(grid.shape, (self.blocksize,) * grid.ndim, self.overlap)
        choices = COMMON_RADII if self.radii is None else (self.radii,)
        search = KeyPointSearch(tuple(self.settings_for(grid.spacing, r) for r in choices))
        scene = replace(scene, moving=self.compared(scene.moving))
        return prepare_refined(scene, start, search, blocks)

    def price(self, pair: Pair) -> StepPrice:
        coarse = pair.coarse[0]
        blocks = block_grid(coarse.shape, (self.blocksize,) * coarse.ndim, self.overlap)
        size = largest_block(blocks)
        return StepPrice(
            self.name,
            *count_blocks(blocks, TASKS_BLENDED),
            once=pair.held,
            per_block=2 * size * KEY_POINT_BYTES + self.context_bytes(2 * size, coarse.ndim),
            work=2 * work_of(blocks),
            kind="points",
            seconds=_SECONDS,
        )

    def _search(self, spacing: tuple[float, ...], radii: Radii) -> KeyPointSearch:
        """Seek blobs of these radii; small blocks may not hold those of the whole image."""
        others = () if self.radii else COMMON_RADII
        smaller = tuple(self.settings_for(spacing, other) for other in others)
        return KeyPointSearch((self.settings_for(spacing, radii),), smaller)

    def _radii(self, scene: Scene, state: State) -> Radii:
        """Its own, those an affine was found with, or the best on the whole image."""
        known = self.radii or state.radii
        if known is not None:
            return known
        pairs = self.compared_channels(scene.coarse_channels(state.transform))
        usual = RansacAffine()
        return choose_radii(pairs, usual, usual.radii).radii
