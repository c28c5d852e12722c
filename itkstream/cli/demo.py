"""The demo: a synthetic pair with a known transform, registered and judged against the truth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from itkstream.compute.drafts import drafted
from itkstream.errors import ItkstreamError, RegistrationError
from itkstream.geometry import Image
from itkstream.io import create_ome_zarr, open_image, write_pyramid
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_folder
from itkstream.overlay import save_overlay
from itkstream.phantoms import PhantomPair, TargetError, make_pair, tutorial_settings
from itkstream.pipelines import Registration, Reporter, register
from itkstream.registration.folder import DEMO_REGISTRATION
from itkstream.registration.steps import DEFAULT_STEPS, Step
from itkstream.transform import apply_global_affine
from itkstream.workers import Resources

__all__ = ["DemoResult", "run_demo"]

# Every fourth voxel of the tissue along each axis: some ten thousand points.
_STRIDE = 4
_PICTURE = "overlay.png"
_CHUNK = 128


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
        found: int = self.registration.facts["certificate"]["folded_voxels"]
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
    """Make two rounds and register them; measure the error and draw an overlay, all in `out`.

    The folder holds ``fixed.ome.zarr``, ``moving.ome.zarr``, ``overlay.png`` and
    ``registration``, what `register` wrote.
    """
    place = check_folder(out, _PICTURE, overwrite)
    check_apart(place, pair)
    with drafted(place) as draft:
        made = _run_in(draft, pair, steps, resources, reporter)
    registration = made.registration.moved(place / DEMO_REGISTRATION)
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
    fixed, moving = (
        _write(image, folder / f"{side}.ome.zarr")
        for side, image in (("fixed", pair.fixed), ("moving", pair.moving))
    )
    result = register(
        fixed,
        moving,
        folder / DEMO_REGISTRATION,
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


def _write(image: Image, place: Location) -> Image:
    """Write an image beside its registration, which then names it; one that is there is kept."""
    if not _holds(place, image):
        place.remove()
        chunks = tuple(min(_CHUNK, n) for n in image.shape)
        create_ome_zarr(place, image.grid, image.dtype, chunks=chunks)[...] = image.read()
    write_pyramid(place)
    stored = open_image(place, axes=image.grid.axes)
    # By the place that it will have when the demo is complete.
    settled = str(place.settled)
    return replace(stored, name=settled, recipe={**stored.recipe, "path": settled})


def _holds(place: Location, image: Image) -> bool:
    """Whether an image is there, as a demo that was stopped may have written it."""
    try:
        return np.array_equal(open_image(place, axes=image.grid.axes).read(), image.read())
    except ItkstreamError:
        return False


def _draw(pair: PhantomPair, aligned: Image, path: Path) -> None:
    fixed, moving = pair.fixed, pair.moving
    unmoved = apply_global_affine(fixed, moving, None, None, np.eye(fixed.ndim + 1))
    save_overlay(path, fixed.read(), unmoved, aligned.read(), fixed.grid)
