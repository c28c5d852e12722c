"""An affine of the whole images from their key points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import numpy as np
from attrs import frozen
from dask.delayed import Delayed

from itkstream.errors import InputError, RegistrationError
from itkstream.estimate.affines import KeyPointSearch
from itkstream.geometry import AffineTransform
from itkstream.io.storage.locations import Location
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.registration.scene import BlockScene, Finding, Nothing, Radii, Scene, Start, State
from itkstream.registration.steps.blocks import prepare_refined
from itkstream.registration.steps.matching import (
    COMMON_RADII,
    KEY_POINT_BYTES,
    MatchingStep,
    best_affine,
    checked_radii,
)
from itkstream.registration.steps.prices import Pair, StepPrice

__all__ = ["RansacAffine"]


@frozen(kw_only=True)
class RansacAffine(MatchingStep):
    """An affine from key points: blobs, matched by their contexts, fitted robustly.

    Parameters
    ----------
    match_threshold : float
        Least correlation of two contexts that match, up to 1.
    cc_radius : int
        Half width of the contexts, the windows around key points, in voxels.
    nspots : int
        Most key points per image.
    num_sigma_max : int
        Most blob widths searched.
    align_threshold : float, optional
        Greatest distance of a match from the affine, in µm; default 1.5 voxels.
    max_distance : float, optional
        Greatest distance of two points that match, in µm; default any.
    max_ambiguity : float, optional
        Greatest ratio of the second best correlation to the best; default any.
    model : {'affine', 'similarity', 'rigid', 'translation'}
        Which transforms are considered.
    seed : int
        Of the robust fit.
    radii : sequence of (float, float)
        Least and greatest radius of the blobs, in voxels; one pair after the other is tried until
        matches abound.

    Raises
    ------
    InputError
        For a value out of range; the message names it.
    """

    name: ClassVar[str] = "ransac-affine"
    title: ClassVar[str] = "affine"
    starts_anywhere: ClassVar[bool] = True

    radii: tuple[Radii, ...] = attrs.field(default=COMMON_RADII, converter=checked_radii)

    def find(self, scene: Scene, state: State, place: Callable[[], Location]) -> Finding | Nothing:
        fixed, moving = scene.coarse
        required = state.transform is None
        if state.transform is not None:
            moving = scene.aligned(state.transform)
        try:
            choices = [self.settings_for(fixed.spacing, radii) for radii in self.radii]
            estimate, best = best_affine(fixed, moving, choices)
        except (InputError, RegistrationError) as error:
            if required:
                raise RegistrationError(f"no affine found: {error}") from error
            return Nothing(str(error))
        if estimate.matrix is None:
            if required:
                raise RegistrationError(
                    f"no affine found: {estimate.reason}. Check the spacings and that both images "
                    "show the same tissue; other radii or a lower match_threshold may help"
                )
            return Nothing(estimate.reason)
        facts: dict[str, Any] = {
            "matches": len(estimate.inliers),
            "inliers": int(estimate.inliers.sum()),
            "median_residual": float(np.median(estimate.residuals[estimate.inliers])),
        }
        change = AffineTransform(estimate.matrix)
        found = Finding(change, facts, radii=self.radii[best], required=required)
        facts["matrix"] = affine_part(found.transform(state)).matrix.tolist()
        scene.reporter.note(
            f"{facts['inliers']} of {facts['matches']} matches agree, median residual "
            f"{facts['median_residual']:.2f} {fixed.grid.unit}"
        )
        return found

    def prepare_transform(self, scene: BlockScene, start: Start) -> Delayed:
        settings = [self.settings_for(scene.fixed.spacing, radii) for radii in self.radii]
        return prepare_refined(scene, start, KeyPointSearch(tuple(settings)))

    def price(self, pair: Pair) -> StepPrice:
        size = float(sum(grid.size for grid in pair.coarse))
        once = pair.held + size * KEY_POINT_BYTES + self.context_bytes(size, pair.fixed.ndim)
        return StepPrice(self.name, once=max(once, pair.judged), work=size, kind="points")
