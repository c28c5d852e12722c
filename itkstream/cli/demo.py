"""The demo: a synthetic pair with a known transform, registered and judged against the truth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from itkstream.compute.drafts import drafted
from itkstream.errors import RegistrationError
from itkstream.geometry import Image
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_folder
from itkstream.overlay import save_overlay
from itkstream.phantoms import PhantomPair, TargetError, make_pair, tutorial_settings
from itkstream.pipelines import Registration, Reporter, register
from itkstream.registration.steps import DEFAULT_STEPS, Step
from itkstream.transform import apply_global_affine
from itkstream.workers import Resources

__all__ = ["DemoResult", "run_demo"]

# Every fourth voxel of the tissue along each axis: some ten thousand points.
_STRIDE = 4
_REGISTRATION, _PICTURE = "registration", "overlay.png"


@dataclass(frozen=True, eq=False)
class DemoResult:
    """A registration, its target registration error before and after, and the picture."""

    registration: Registration
    before: TargetError
    after: TargetError
    overlay: Location

    @property
    def folds(self) -> int:
        """Voxels of the field whose Jacobian determinant is not positive."""
        found: int = self.registration.report["certificate"]["folded_voxels"]
        return found


def run_demo(
    out: str | os.PathLike[str],
    *,
    pair: PhantomPair | None = None,
    steps: Sequence[Step] = DEFAULT_STEPS,
    resources: Resources | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> DemoResult:
    """Make two rounds and register them; measure the error and draw an overlay, all in `out`."""
    place = check_folder(out, _PICTURE, overwrite)
    check_apart(place, pair)
    with drafted(place) as draft:
        made = _run_in(draft, pair, steps, resources, reporter)
    registration = made.registration.moved(place / _REGISTRATION)
    return replace(made, registration=registration, overlay=place / _PICTURE)


def _run_in(
    folder: Location,
    pair: PhantomPair | None,
    steps: Sequence[Step],
    resources: Resources | None,
    reporter: Reporter | None,
) -> DemoResult:
    """Run the demo in a new folder, or in one that another left unfinished."""
    if reporter is not None:
        reporter.step("two rounds of synthetic tissue")
    pair = pair or make_pair(tutorial_settings())
    result = register(
        pair.fixed,
        pair.moving,
        folder / _REGISTRATION,
        steps,
        resources=resources,
        overwrite=True,
        reporter=reporter,
    )
    before = pair.error(lambda points: points, _STRIDE)
    after = pair.error(result.transform.apply, _STRIDE)
    if not after.vox.size:
        raise RegistrationError("no tissue point of the pair lies in both images")
    overlay = folder / _PICTURE
    with overlay.replacing() as partial:  # a folder may lie in an object store, pictures not
        _draw(pair, result.aligned, partial)
    return DemoResult(result, before, after, overlay)


def _draw(pair: PhantomPair, aligned: Image, path: Path) -> None:
    fixed, moving = pair.fixed, pair.moving
    unmoved = apply_global_affine(fixed, moving, None, None, np.eye(fixed.ndim + 1))
    save_overlay(path, fixed.read(), unmoved, aligned.read(), fixed.grid)
