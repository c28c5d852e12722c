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
    """What the demo made and how far it is from the truth.

    Parameters
    ----------
    registration : Registration
        As `register` returned it.
    before, after : TargetError
        Target registration error of the identity and of the transform found.
    overlay : Location
        The picture.
    """

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
    """Make a pair of rounds, register them, measure the error, draw an overlay.

    Parameters
    ----------
    out : path
        New or empty folder; gets the folder ``registration`` and ``overlay.png``.
    pair : PhantomPair, optional
        Default the pair of the tutorial, as resources/ holds it.
    steps : sequence of Step
        Of the registration.
    resources : Resources, optional
        Workers and threads.
    overwrite : bool
        Replace an earlier demo in `out`.
    reporter : Reporter, optional
        Told steps, blocks and results.

    Returns
    -------
    DemoResult
        Registration, errors and picture.

    Raises
    ------
    ExistingOutputError
        Where `out` holds something already.
    """
    place = check_folder(out, _PICTURE, overwrite)
    check_apart(place, pair)
    with drafted(place) as draft:
        made = _made(draft, pair, steps, resources, reporter)
    registration = made.registration.moved(place / _REGISTRATION)
    return replace(made, registration=registration, overlay=place / _PICTURE)


def _made(
    folder: Location,
    pair: PhantomPair | None,
    steps: Sequence[Step],
    resources: Resources | None,
    reporter: Reporter | None,
) -> DemoResult:
    """The demo in a new folder, or in one that another left unfinished."""
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
