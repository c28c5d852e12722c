"""Synthetic rounds of images of nuclei whose true transforms are known in closed form.

A tissue of textured ellipsoids is a continuous function of position in fixed space. The fixed
image samples that function at its voxel centres; the moving image samples the same function at
the exact inverse of the true map, so neither is an interpolation of the other. Both then pass
through a microscope of their own: blur, uneven light, background and noise.

An experiment has several such rounds, and spots in further channels, each in a cell that is known.
An atlas has a template and regions that are known in a brain, too.
"""

from itkstream.phantoms.atlas import AtlasPhantom, make_atlas
from itkstream.phantoms.experiment import (
    ExperimentSettings,
    PhantomExperiment,
    PhantomRound,
    make_experiment,
)
from itkstream.phantoms.pair import PhantomPair, TargetError, make_pair, target_registration_error
from itkstream.phantoms.settings import Motion, PhantomSettings, tutorial_settings
from itkstream.phantoms.truth import SyntheticTransform

__all__ = [
    "AtlasPhantom",
    "ExperimentSettings",
    "Motion",
    "PhantomExperiment",
    "PhantomPair",
    "PhantomRound",
    "PhantomSettings",
    "SyntheticTransform",
    "TargetError",
    "make_atlas",
    "make_experiment",
    "make_pair",
    "target_registration_error",
    "tutorial_settings",
]


def __dir__() -> list[str]:
    return __all__
