"""Landmarks for registrations of SimpleITK, which know none: what they find is bent to these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attrs import evolve
from numpy.typing import NDArray

from itkstream.geometry import Landmarks
from itkstream.numerics.deformation.descent import Descent, Frame, descend
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS

__all__ = ["bend_to"]

_NO_SMOOTHING = (0.0, 0.0, 1.0, 0.0)


def bend_to(
    landmarks: Landmarks, found: Descent, fixed: NDArray[Any], moving: NDArray[Any], frame: Frame
) -> Descent:
    """Bend a displacement smoothly to landmarks, less where the images show that it is right.

    Coarse to fine as `descend`, whose matrices say how sure the images are of each place.
    """
    settings = PIPELINE_DEFAULTS.for_voxels(frame.fixed_grid.spacing)
    bent = descend(
        fixed,
        moving,
        frame,
        evolve(settings, field_smoothing=(_NO_SMOOTHING,) * len(settings.shrink_factors)),
        initial=found.displacement,
        landmarks=landmarks,
        keep=True,
    )
    return replace(found, displacement=bent.displacement, folds=found.folds + bent.folds)
