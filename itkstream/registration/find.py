"""The steps of a registration on whole images, one function for each.

A step's function takes the `Scene` (images and resources), the `State` (what the steps before it
found) and the step itself, and returns a `Finding`. `itkstream.registration.scene.next_state`
decides whether it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from itkstream.apply.resampling import piecewise_transform
from itkstream.compute.execute import compute
from itkstream.errors import BlockErrors, InputError, RegistrationError
from itkstream.estimate.affines import prepare_local_affines, split_local_affines
from itkstream.geometry import AffineTransform, Image
from itkstream.geometry.chains import FieldChain
from itkstream.io.storage.locations import Location
from itkstream.numerics.itk.affine import intensity_block
from itkstream.numerics.matching.affine import best_affine_block
from itkstream.numerics.matching.ransac import AffineEstimate
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.registration.fields import store_deformation
from itkstream.registration.scene import Finding, Radii, Scene, State
from itkstream.registration.steps import (
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    Step,
)

__all__ = ["run_step"]


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
    facts: dict[str, Any] = {
        "matches": len(estimate.inliers),
        "inliers": int(estimate.inliers.sum()),
        "median_residual": float(np.median(estimate.residuals[estimate.inliers])),
    }
    change, required = AffineTransform(estimate.matrix), state.transform is None
    found = Finding(change, facts, radii=radii, required=required)
    facts["matrix"] = affine_part(found.transform(state)).matrix.tolist()
    scene.reporter.note(
        f"{facts['inliers']} of {facts['matches']} matches agree, median residual "
        f"{facts['median_residual']:.2f} {fixed.grid.unit}"
    )
    return found


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
    whole = known is None or isinstance(known, AffineTransform)
    found = Finding(AffineTransform(estimate.matrix), facts, whole=whole)
    facts["matrix"] = affine_part(found.transform(state)).matrix.tolist()
    return found


def _find_local_affines(scene: Scene, state: State, step: LocalAffines) -> Finding:
    fixed, moving = scene.coarse
    blocksize = (step.blocksize,) * fixed.ndim
    try:
        settings = step.settings_for(fixed.spacing, _radii(scene, state, step))
        # Small blocks may not hold the nuclei that the whole image is matched by.
        others = () if step.radii else RansacAffine().radii
        lazy = prepare_local_affines(
            fixed,
            moving,
            state.transform,
            blocksize,
            settings,
            overlap=step.overlap,
            smaller=[step.settings_for(fixed.spacing, radii) for radii in others],
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
    grid = FieldChain.of(transform).field.grid
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
