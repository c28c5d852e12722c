"""One registration, from its request to its folder.

`itkstream.registration.run` does the steps in turn; each kind is a module of
`itkstream.registration.steps`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Self, TypeAlias

import numpy as np
from dask.tokenize import tokenize

from itkstream.blocks.camera import without_pattern
from itkstream.blocks.masks import masked
from itkstream.blocks.sources import readable
from itkstream.errors import ItkstreamError
from itkstream.geometry import ChannelPair, CompositeTransform, Image, Transform, array_axes
from itkstream.io import open_image
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import write_text
from itkstream.io.transforms.ngff.store import read_transform
from itkstream.judge.verdict import Verdict
from itkstream.numerics.gpu.engine import describe_engine, engine_here, using_engine
from itkstream.numerics.threads import get_threads, threads_for, using_threads
from itkstream.progress.reporters import Reporter
from itkstream.registration.advice.advice import advise_briefly
from itkstream.registration.channels import CHANNELS, name_pairs
from itkstream.registration.folder import (
    ALIGNED,
    ERROR,
    REPORT,
    TRANSFORM,
    RunFolder,
    read_report,
    registered_grids,
)
from itkstream.registration.request import Request
from itkstream.registration.run import Run, run_keys
from itkstream.registration.scene import LevelMaker, Scene
from itkstream.workers import Resources, session

__all__ = ["Registered", "run_request"]

_Clean: TypeAlias = Callable[[Image], Image]

_UNITS_DIFFER = (
    "the fixed image is in {unit}s as ITK reads it and the moving image in {moving}s: lengths are "
    "converted here, but the files in itk/ fit ITK only after both are saved in {unit}s"
)
_PATTERN = (
    "the camera of the {which} image adds the same to every plane ({what}): that is left out of "
    "what is compared, and stays in the aligned image"
)


@dataclass(frozen=True, repr=False)
class Registered:
    """The record of a registration in its folder, which `itkstream.Registration` builds on.

    Parameters
    ----------
    out : Location
        The folder.
    transform : CompositeTransform
        Fixed to moving points: a stored displacement field, then an affine.
    aligned : Image
        The moving image on the fixed grid, stored.
    facts : dict
        What registration.json holds.
    error : Image, optional
        Radius around each place in which the true one lies with 95 % probability, stored.
    """

    out: Location
    transform: CompositeTransform
    aligned: Image
    facts: dict[str, Any]
    error: Image | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the registration is good, why not, and where to look."""
        return Verdict.from_facts(self.facts["verdict"])

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open the folder of a registration that is complete.

        Parameters
        ----------
        folder : path
            What `register` wrote.

        Returns
        -------
        Registration
            As `register` returned it.

        Raises
        ------
        MissingDataError
            Where there is none.
        """
        out = Location.parse(folder)
        facts = read_report(out)
        axes = registered_grids(out)[0].axes
        return cls._opened(out, axes, facts, (out / ERROR).exists())

    @classmethod
    def _opened(
        cls, out: Location, axes: tuple[str, ...], facts: dict[str, Any], has_error: bool
    ) -> Self:
        transform = read_transform(out / TRANSFORM, axes)
        stored = array_axes(len(axes))
        aligned = open_image(out / ALIGNED, axes=stored).reorder(axes)
        error = open_image(out / ERROR, axes=stored).reorder(axes) if has_error else None
        return cls(out, transform, aligned, facts, error)

    def moved(self, out: Location) -> Self:
        """The same registration after its folder was given another name.

        Parameters
        ----------
        out : Location
            The folder.

        Returns
        -------
        Registration
            Transform and images opened there.
        """
        axes = self.aligned.grid.axes
        return self._opened(out, axes, self.facts, self.error is not None)


def run_request(request: Request, folder: RunFolder, reporter: Reporter) -> Registered:
    """Do all steps and write all results into the folder."""
    unit, moving_unit = request.units
    reporter.expect(request.plan.parts)
    for note in request.notes:
        reporter.note(note)
    if moving_unit != unit:
        reporter.note(_UNITS_DIFFER.format(unit=unit, moving=moving_unit))
    with folder.locked():
        request = _with_engine(request, folder, reporter)
        resources = request.resources
        with using_engine(engine_here(resources.engine, resources.is_here)), ExitStack() as stack:
            # No workers before it is known that the folder may take this run.
            start = cache(partial(stack.enter_context, session(resources, reporter.note)))
            run, keys, patterns = _prepare_run(request, folder, reporter, start)
            with using_threads(min(get_threads(), threads_for(run.scene.coarse_grid.size))):
                found = run.all_steps(request.initial, keys)
        run.export(found.transform, keys[-1], unit)
        report = run.report() | request.given.described() | patterns | found.judged
        if len(request.channels) > 1:
            report[CHANNELS] = name_pairs(request.channels)
        if found.judged["verdict"]["outcome"] == "failed":
            report["advice"] = _advise(run.scene, request.initial)
        if request.marks is not None:
            report["landmarks"] = request.marks.table(found.transform)
        write_text(folder.claim() / REPORT, json.dumps(report, indent=2) + "\n")
        images = found.aligned, report, found.error
        registered = Registered(folder.claim(), found.transform, *images)
        return registered.moved(folder.finish())


def _with_engine(request: Request, folder: RunFolder, reporter: Reporter) -> Request:
    """The request with what computes it, which is told where something was said of it."""
    said, engine = request.resources.engine, folder.choose_engine(request.resources)
    if request.resources.is_here and (note := describe_engine(said, engine)):
        reporter.note(note)
    return replace(request, resources=replace(request.resources, engine=engine))


def _advise(scene: Scene, initial: Transform | None) -> dict[str, Any]:
    """Advice after a registration failed, in lines and facts."""
    scene.reporter.step("advice")
    try:
        found = advise_briefly(scene.coarse, scene.reporter)
    except ItkstreamError as error:
        return {"lines": [str(error)]}
    lines = found.describe()
    if initial is not None and found.matches:
        lines.append("change: leave --initial out, or give another: as they lie the images match")
    return {"lines": lines, **found.facts}


def _prepare_run(
    request: Request, folder: RunFolder, reporter: Reporter, start: Callable[[], Resources]
) -> tuple[Run, list[str], dict[str, Any]]:
    """Make the run, the keys of its notes and what was taken out; `start` brings workers up."""
    steps, settings = request.plan.steps, request.plan.settings
    make = LevelMaker(settings.coarse_voxels, start, reporter.blocks, folder.keeping)
    patterns: dict[str, Any] = {}
    clean: list[tuple[_Clean, _Clean]] = [(_as_it_is, _as_it_is)] * len(request.channels)
    if settings.camera_pattern == "auto":
        clean, patterns = _find_patterns(request.channels, make, reporter)
    seen = [
        _see_channel(pair, number, request, make, clean[number])
        for number, pair in enumerate(request.channels)
    ]
    images = tuple(one.image for both in seen for one in both)
    weights = tuple(pair.weight for pair in request.channels)
    keys = run_keys(images, request.initial, steps, settings, request.marks, weights)
    folder.settle(tokenize(keys[-1], *request.channels))
    resources = start()
    scene, *others = (
        Scene(
            fixed.image,
            moving.image,
            settings.coarse_voxels,
            resources,
            reporter,
            (fixed.level, moving.level),
            request.marks,
            settings.content,
            weight=weight,
        )
        for (fixed, moving), weight in zip(seen, weights, strict=True)
    )
    scene = replace(scene, others=tuple(others))
    return Run(request.pair, steps, settings, scene, folder), keys, patterns


def _find_patterns(
    channels: Sequence[ChannelPair], make: LevelMaker, reporter: Reporter
) -> tuple[list[tuple[_Clean, _Clean]], dict[str, Any]]:
    """Find what both cameras add to every plane: ways to take it out, and facts for the report."""
    told: dict[str, Any] = {}
    clean: list[_Clean] = []
    for number, pair in enumerate(channels):
        for which, image in (("fixed", pair.fixed), ("moving", pair.moving)):
            name = _name_of(which, number)
            pattern, found = make.pattern(image, name)
            if pattern is None or not found:
                clean.append(_as_it_is)
                continue
            clean.append(partial(without_pattern, pattern=pattern))
            told[name] = found
            reporter.note(_PATTERN.format(which=which, what=_in_words(found)))
    pairs = list(zip(clean[::2], clean[1::2], strict=True))
    return pairs, {"camera_pattern": told} if told else {}


def _name_of(which: str, channel: int) -> str:
    """The name by which the level of a channel is kept."""
    return f"{which}-{channel + 1}" if channel else which


def _as_it_is(image: Image) -> Image:
    """No pattern."""
    return image


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


def _see_channel(
    pair: ChannelPair,
    number: int,
    request: Request,
    make: LevelMaker,
    clean: tuple[_Clean, _Clean],
) -> tuple[_Seen, _Seen]:
    """Mask and clean one channel of both images."""
    names = _name_of("fixed", number), _name_of("moving", number)
    fixed = _see(pair.fixed, request.masks[0], names[0], make, clean[0])
    return fixed, _see(pair.moving, request.masks[1], names[1], make, clean[1])


def _see(image: Image, mask: Any, which: str, make: LevelMaker, clean: _Clean) -> _Seen:
    """Mask an image and its level, and clean both."""
    if mask is None or not callable(mask):
        # Intensities that do not count are those of the image as it was given.
        shown = clean(image if mask is None else masked(readable(image), mask, which))
        return _Seen(shown, partial(make, shown, which))
    image = clean(image)
    level = make(image, which)
    chosen = Image(np.asarray(mask(level.read())), level.grid)
    # Groups of voxels count or do not count as a whole, so no other pass over the image is needed.
    masked_level = partial(masked, level, chosen, which)
    return _Seen(masked(readable(image), chosen, which), masked_level)
