"""One registration, from its request to its folder.

`itkstream.registration.run` does the steps in turn; each kind is a module of
`itkstream.registration.steps`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from dask.tokenize import tokenize

from itkstream.blocks.masks import masked
from itkstream.blocks.sources import readable
from itkstream.geometry import CompositeTransform, Image
from itkstream.io import open_image
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import write_text
from itkstream.io.transforms.ngff.store import read_transform, stored_axes
from itkstream.registration.folder import ALIGNED, REPORT, TRANSFORM, RunFolder
from itkstream.registration.request import Request
from itkstream.registration.run import Run, run_keys
from itkstream.registration.scene import LevelMaker, Reporter, Scene
from itkstream.workers import Resources, session

__all__ = ["Registration", "run_request"]

_UNITS_DIFFER = (
    "the fixed image is in {unit}s as ITK reads it and the moving image in {moving}s: lengths are "
    "converted here, but the files in itk/ fit ITK only after both are saved in {unit}s"
)
_PATTERN = (
    "the camera of the {which} image adds the same to every plane ({what}): that is left out of "
    "what is compared, and stays in the aligned image"
)


@dataclass(frozen=True)
class Registration:
    """Result of `register`.

    Parameters
    ----------
    out : Location
        The folder.
    transform : CompositeTransform
        Fixed to moving points: a stored displacement field, then an affine.
    aligned : Image
        The moving image on the fixed grid, stored.
    report : dict
        What registration.json holds.
    """

    out: Location
    transform: CompositeTransform
    aligned: Image
    report: dict[str, Any]

    def moved(self, out: Location) -> Registration:
        """The same registration after its folder was given another name.

        Parameters
        ----------
        out : Location
            The folder.

        Returns
        -------
        Registration
            Transform and aligned image opened there.
        """
        axes = self.aligned.grid.axes
        transform = read_transform(out / TRANSFORM, axes)
        stored = stored_axes(self.aligned.grid)
        aligned = open_image(out / ALIGNED, axes=stored).reorder(axes)
        return Registration(out, transform, aligned, self.report)


def run_request(request: Request, folder: RunFolder, reporter: Reporter) -> Registration:
    """Do all steps and write all results into the folder."""
    unit, moving_unit = request.units
    if moving_unit != unit:
        reporter.note(_UNITS_DIFFER.format(unit=unit, moving=moving_unit))
    with folder.locked():
        with ExitStack() as stack:
            # No workers before it is known that the folder may take this run.
            start = cache(partial(stack.enter_context, session(request.resources, reporter.note)))
            run, keys, patterns = _prepare_run(request, folder, reporter, start)
            transform, aligned, certificate = run.all_steps(request.initial, keys)
        run.export(transform, keys[-1], unit)
        report = run.report() | request.given.described() | patterns
        report |= {"certificate": certificate}
        write_text(folder.claim() / REPORT, json.dumps(report, indent=2) + "\n")
        registered = Registration(folder.claim(), transform, aligned, report)
        return registered.moved(folder.finish())


def _prepare_run(
    request: Request, folder: RunFolder, reporter: Reporter, start: Callable[[], Resources]
) -> tuple[Run, list[str], dict[str, Any]]:
    """Make the run, the keys of its notes and what was taken out; `start` brings workers up."""
    steps, settings = request.plan.steps, request.plan.settings
    make = LevelMaker(settings.coarse_voxels, start, reporter.blocks, folder.keeping)
    pair, patterns = request.pair, dict[str, Any]()
    if settings.camera_pattern == "auto":
        pair, patterns = _without_patterns(pair, make, reporter)
    fixed = _see(pair[0], request.masks[0], "fixed", make)
    moving = _see(pair[1], request.masks[1], "moving", make)
    images = fixed.image, moving.image
    keys = run_keys(images, request.initial, steps, settings)
    folder.settle(tokenize(keys[-1], request.pair))
    makers = fixed.level, moving.level
    scene = Scene(*images, settings.coarse_voxels, start(), reporter, makers)
    return Run(request.pair, steps, settings, scene, folder), keys, patterns


def _without_patterns(
    pair: tuple[Image, Image], make: LevelMaker, reporter: Reporter
) -> tuple[tuple[Image, Image], dict[str, Any]]:
    """The images without what their cameras add to every plane, and what that is, told too."""
    images, told = [], {}
    for which, image in zip(("fixed", "moving"), pair, strict=True):
        cleaned, found = make.without_pattern(image, which)
        images.append(cleaned)
        if found:
            told[which] = found
            reporter.note(_PATTERN.format(which=which, what=_in_words(found)))
    return (images[0], images[1]), {"camera_pattern": told} if told else {}


def _in_words(found: dict[str, Any]) -> str:
    """A camera's pattern, as a note says it."""
    said = [f"{n} {name.replace('_', ' ')}" for name, n in found.items() if n and name != "noise"]
    if found["noise"]:
        said.append(f"fixed noise of {found['noise']:.3g}")
    return ", ".join(said)


@dataclass(frozen=True, eq=False)
class _Seen:
    """An image, NaN where its voxels do not count, and what gives its level."""

    image: Image
    level: Callable[[], Image]


def _see(image: Image, mask: Any, which: str, make: LevelMaker) -> _Seen:
    """Mask an image and its level."""
    if mask is None:
        return _Seen(image, partial(make, image, which))
    if not callable(mask):
        shown = masked(readable(image), mask, which)
        return _Seen(shown, partial(make, shown, which))
    level = make(image, which)
    chosen = Image(np.asarray(mask(level.read())), level.grid)
    # Groups of voxels count or do not count as a whole, so no other pass over the image is needed.
    masked_level = partial(masked, level, chosen, which)
    return _Seen(masked(readable(image), chosen, which), masked_level)
