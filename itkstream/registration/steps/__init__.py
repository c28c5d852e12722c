"""The steps of a registration as values, checked when they are made.

A step says what is done, not to which image: `itkstream.register` takes a list of them for whole
images and `itkstream.align.prepare_piecewise_align` for every block. Each step finds a change that
acts before the transform found so far, so any step may follow any other.

Lengths are in µm. A length that is left out (None) suits the image: it is scaled to the
smallest fixed voxel spacing. Radii of blobs and windows are in voxels.

Each kind of step is one module: its parameters, how it finds, what it costs. `registry.KINDS` lists
them; `step.Step` says what a kind has.
"""

from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps.deformable import Deformable, Method
from itkstream.registration.steps.initial import InitialSearch
from itkstream.registration.steps.intensity import IntensityAffine
from itkstream.registration.steps.local import LocalAffines
from itkstream.registration.steps.ransac import RansacAffine
from itkstream.registration.steps.registry import (
    DEFAULT_STEPS,
    checked_steps,
    step_from,
    step_name,
    step_parameters,
)
from itkstream.registration.steps.step import Step

__all__ = [
    "DEFAULT_STEPS",
    "Deformable",
    "InitialSearch",
    "IntensityAffine",
    "LocalAffines",
    "Method",
    "RansacAffine",
    "RegisterSettings",
    "Step",
    "checked_steps",
    "step_from",
    "step_name",
    "step_parameters",
]
