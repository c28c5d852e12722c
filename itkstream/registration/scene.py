"""What the steps of a registration see (`Scene`), know (`State`) and find (`Finding`).

A finding is a transform made of small values (matrices) and of fields stored on disk. Nothing else
passes from step to step, so a run can go on from what it kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from itkstream.apply.resampling import prepare_apply_transform
from itkstream.blocks.levels import factors_to_fit
from itkstream.compute.execute import compute
from itkstream.errors import RegistrationError
from itkstream.geometry import DisplacementField, Grid, Image, Transform, compose, steps_of
from itkstream.io.storage.locations import Location
from itkstream.numerics.deformation.quality import local_correlation_in_tissue, tissue_mask
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.registration.levels import make_level
from itkstream.workers import Resources

__all__ = ["Finding", "LogReporter", "Radii", "Reporter", "Scene", "State", "next_state"]

logger = logging.getLogger(__name__)


Radii = tuple[float, float]
"""Least and greatest radius of blobs, in voxels of the coarse level."""


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


class LogReporter:
    """A `Reporter` that writes to the log."""

    def step(self, title: str) -> None:
        """Log that a step begins.

        Parameters
        ----------
        title : str
            Of the step.
        """
        logger.info("%s", title)

    def blocks(self, done: int, total: int) -> None:
        """Log a block that is done.

        Parameters
        ----------
        done, total : int
            Blocks of the step that are done, and in all.
        """
        logger.debug("block %d of %d", done, total)

    def note(self, text: str) -> None:
        """Log a result.

        Parameters
        ----------
        text : str
            Worth a line.
        """
        logger.info("%s", text)


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
        """The levels, in memory; a `RegistrationError` where no voxel of one counts."""
        fixed, moving = (Image(level.read(), level.grid, level.name) for level in self.levels)
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
        if self.whole or state.transform is None:
            return self.change
        return compose(self.change, state.transform)


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


def _largest_field(transform: Transform) -> int:
    """Vectors of the largest displacement field in a transform."""
    fields = (step for step in steps_of(transform) if isinstance(step, DisplacementField))
    return max((field.grid.size for field in fields), default=0)
