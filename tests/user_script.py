"""What a user may write, as `mypy --strict` reads it: every call and every result has a type."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import itkstream
from itkstream import Deformable, Image, Plan, RansacAffine, RegisterSettings, Registration, Verdict


def register_arrays(fixed: NDArray[np.uint16], moving: NDArray[np.uint16]) -> Registration:
    """Two arrays, in memory."""
    steps = [RansacAffine(radii=[(2, 6)]), Deformable(stiffness=4)]
    settings = RegisterSettings(report=False)
    plan: Plan = itkstream.plan(fixed, moving, spacing=(2, 0.5, 0.5), axes="zyx")
    if not plan.fits:
        raise itkstream.errors.PlanError("too large")
    return itkstream.register(
        fixed, moving, "registered", steps, settings, spacing=(2, 0.5, 0.5), axes="zyx"
    )


def align_gene(registration: Registration, gene: Image) -> Image:
    """Another channel, where the registration may be trusted."""
    verdict: Verdict = registration.verdict
    if verdict.outcome == "failed":
        raise itkstream.errors.RegistrationError("; ".join(verdict.reasons))
    aligned: Image = registration.apply(gene)
    mean: float = aligned.read().mean() / registration.aligned.read().mean()
    return aligned if mean > 0 else registration.aligned


def there_and_back(registration: Registration) -> NDArray[np.float64]:
    """Points, and the transform on disk."""
    there: NDArray[np.float64] = registration.apply([[1.0, 2.0, 3.0]])
    inverse: itkstream.InverseTransform = registration.inverse
    transform: itkstream.CompositeTransform = registration.transform
    error: float = itkstream.write_transform("field.nrrd", transform)
    return inverse.apply(there) + error


def main() -> list[str]:
    """From files to files."""
    image: Image = itkstream.open_image("round1.ome.zarr", channel="DAPI")
    spacing: tuple[float, ...] = image[:10].grid.spacing
    registration = Registration.open("registered")
    page: str = registration.report().name
    experiment = itkstream.register_rounds(["round1.ome.zarr", "round2.ome.zarr"], "rounds")
    names: list[str] = [one.name for one in experiment.rounds]
    brain = itkstream.register_atlas("brain.nrrd", "template.nrrd", "labels.nrrd", "atlas")
    volume: float = brain.regions[0].volume_mm3
    return [page, registration.show(), *names, f"{volume} {spacing} {itkstream.__version__}"]
