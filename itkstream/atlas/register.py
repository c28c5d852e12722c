"""A brain registered to an atlas, and everything that follows from it written.

The brain is the fixed image and the template the moving one: labels then come into the brain
straight through the transform, without the error of an inverse, and the error map tells of places
of the brain. The inverse, which brings the brain into the template, is written beside it.

The folder is that of an ordinary registration, with more in it. ``atlas.json`` is written when the
registration is done, under a key of everything the rest depends on; each product appears under its
name when it is complete, so that a run that was killed goes on with the next. A run that replaces
a complete one writes to a draft beside it, which takes its place as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from attrs import frozen
from dask.tokenize import tokenize

from itkstream.apply.fields import axes_of
from itkstream.apply.products import Series, write_inverse, write_resampled
from itkstream.atlas.inputs import Atlas, open_atlas
from itkstream.atlas.regions import Region, list_regions, tally, write_regions
from itkstream.errors import ExistingOutputError
from itkstream.geometry import Image
from itkstream.io import open_image
from itkstream.io.storage.attributes import read_object
from itkstream.io.storage.chunk_files import writing_to
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import write_text
from itkstream.io.transforms.ngff.store import read_transform, stored_axes
from itkstream.judge.verdict import Verdict
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.pipelines import DEFAULT_STEPS, register, report_or_warn
from itkstream.progress.reporters import Reporter
from itkstream.progress.shown import Told, telling
from itkstream.registration.folder import ANNOTATION, REPORT
from itkstream.registration.steps import RegisterSettings, Step
from itkstream.result import Registration
from itkstream.workers import Resources, session

__all__ = ["AtlasRegistration", "register_atlas"]

NOTE = "atlas.json"
"""The note of what was registered, and whether all of it is written."""

BRAIN = "brain.ome.zarr"
"""All channels of the brain on the voxels of the template."""

INVERSE = "inverse.ome.zarr"
"""The transform from template to brain points."""

REGIONS = "regions.csv"
"""The table of regions."""


@frozen(eq=False)
class AtlasRegistration:
    """Result of `register_atlas`.

    Parameters
    ----------
    registration : Registration
        Of the template to the brain: `Registration.transform` maps brain to template points.
    annotation : Image
        The ids of the regions on the voxels of the brain, stored.
    regions : tuple of Region
        All regions of the annotation by their ids, those that the brain does not show too.
    channels : tuple of str
        Names of the brain's channels, as `Region.means` has them.

    Examples
    --------
    >>> found = itkstream.Registration.open("atlas")
    >>> annotation = itkstream.open_image("atlas/annotation.ome.zarr")
    >>> annotation.shape == found.aligned.shape
    True
    """

    registration: Registration
    annotation: Image
    regions: tuple[Region, ...]
    channels: tuple[str, ...]

    @property
    def out(self) -> Location:
        """The folder."""
        return self.registration.out

    @property
    def verdict(self) -> Verdict:
        """Whether the registration is good, why not, and where to look."""
        return self.registration.verdict


def register_atlas(
    brain: str | os.PathLike[str] | Image,
    template: str | os.PathLike[str] | Image,
    annotation: str | os.PathLike[str] | Image,
    out: str | os.PathLike[str],
    *,
    orientation: str | None = None,
    template_orientation: str | None = None,
    names: str | os.PathLike[str] | None = None,
    steps: Sequence[Step] = DEFAULT_STEPS,
    settings: RegisterSettings | None = None,
    resources: Resources | None = None,
    overwrite: bool = False,
    reporter: Told = "auto",
) -> AtlasRegistration:
    """Register a brain to an atlas, carry its annotation over and measure its regions.

    All input is checked before anything is computed. The template is registered to the brain, as
    `itkstream.register` does it; all else is done block by block. The same call goes on where a
    run was killed.

    Writes into `out`, beside what `itkstream.register` writes (``aligned.ome.zarr`` is the template
    on the brain's voxels; the report shows the borders of the regions over the brain):

    - ``annotation.ome.zarr``: the annotation on the brain's voxels, each the label with the
      greatest linear weight, ids and voxel type as they were;
    - ``inverse.ome.zarr``: the transform from template to brain points, with its error;
    - ``brain.ome.zarr``: all channels of the brain on the template's voxels;
    - ``regions.csv``: id, name, acronym, voxels, volume in mm³ in the brain and in the template,
      and the mean of each channel, of every region; 0 is no region;
    - ``atlas.json``: what was given.

    Parameters
    ----------
    brain : path or Image
        In 3-D. The channel that is registered is chosen as `itkstream.open_image` says; of all
        others, means are taken too. Of a file of several levels, the coarsest that is as fine as
        the template is taken, unless a coarser one than the finest was chosen, or the path is that
        of one (``brain.ome.zarr/0``).
    template : path or Image
        The atlas' image, in 3-D.
    annotation : path or Image
        Ids of regions, whole numbers, over the template: with voxels of its own, or with those of
        the template where it does not state their spacing.
    out : path
        The folder to write, new or empty.
    orientation : str, optional
        How the brain lies, to start from. Three small letters say where its first voxel lies along
        each axis, slowest first, as brainglobe has it: "asr" is z from anterior, y from
        superior, x from right [1]_. Three capitals say where x, y and z lead, as ITK has it: the
        same is "LIP". "file": what its direction says. By default the turn is searched for, which
        cannot tell a symmetric brain from its mirror image.
    template_orientation : str, optional
        The same of the template; default "asr", as all atlases of brainglobe lie, or "file" where
        `orientation` is.
    names : path, optional
        CSV file of names, with columns id and name, and perhaps acronym: brainglobe's
        ``structures.csv``.
    steps, settings, resources
        As in `itkstream.register`.
    overwrite : bool
        Replace an earlier result in `out`, which stays until this one is complete.
    reporter : Reporter, 'auto' or None
        Gets steps, blocks and results. By default a progress bar in a notebook or on a terminal,
        and plain lines elsewhere; None for silence. The log is written in all three cases.

    Returns
    -------
    AtlasRegistration
        The registration, the annotation in the brain, and the regions.

    Raises
    ------
    InputError
        For images, steps or names that cannot be used, an orientation that does not name three
        axes of the body, an annotation of floats or one that does not lie over the template, an
        `out` that touches an input.
    MissingDataError
        Where an image or the file of names is not there.
    ExistingOutputError
        Where `out` holds something else.
    PlanError, RegistrationError, BusyOutputError
        As `itkstream.register`.

    References
    ----------
    .. [1] F. Claudi et al., "BrainGlobe Atlas API: a common interface for neuroanatomical
       atlases", J. Open Source Software 5 (2020) 2668, doi:10.21105/joss.02668.

    Examples
    --------
    >>> brain = itkstream.open_image("examples/atlas/brain.ome.zarr", channel=0)
    >>> found = itkstream.register_atlas(
    ...     brain,
    ...     "examples/atlas/template.nrrd",
    ...     "examples/atlas/annotation.nrrd",
    ...     "atlas",
    ...     names="examples/atlas/names.csv",
    ...     orientation="sal",
    ... )
    >>> found.annotation.shape == found.registration.aligned.shape
    True
    >>> found.regions[0].volume_mm3 > 0
    True
    """
    check_apart(out, brain, template, annotation, names)
    atlas = open_atlas((brain, template, annotation), (orientation, template_orientation), names)
    check_apart(out, atlas.images)
    settings = settings or RegisterSettings()
    key = tokenize(atlas.images, atlas.names, atlas.start, tuple(steps), settings)
    place = Location.parse(out)
    work = _find_work(place, key, overwrite)
    with telling(reporter) as told:
        for note in atlas.notes:
            told.note(note)
        with session(resources or Resources(), told.note) as shared:
            registered = register(
                atlas.brain,
                atlas.template,
                work,
                steps,
                # The page is written when all is there.
                replace(settings, report=False),
                initial_transform=atlas.start,
                resources=shared,
                # What is there of this run is gone on with.
                overwrite=overwrite and read_object(work / NOTE) is None,
                reporter=told,
            )
            _note(work, key, atlas, complete=False)
            regions = _write_products(atlas, registered, shared, told)
        _note(work, key, atlas, complete=True)
        if work != place:
            with writing_to(place):
                place.take(work)
            registered = Registration.open(place)
        if settings.report:
            report_or_warn(place, atlas.pair, told)
    carried = _stored_annotation(place, atlas)
    return AtlasRegistration(registered, carried, regions, atlas.channel_names)


def _find_work(place: Location, key: str, overwrite: bool) -> Location:
    """The folder in which this run writes: its own, or a draft that replaces what is there."""
    found = read_object(place / NOTE)
    if found is not None and found["key"] == key and not (overwrite and found["complete"]):
        return place
    if found is not None and not overwrite:
        raise ExistingOutputError(
            f"{place} holds another brain, atlas or other settings: choose another folder or ask "
            "to overwrite it"
        )
    if not overwrite or not (place / REPORT).is_file():
        return place
    known = read_object(place.draft / NOTE)
    if known is not None and known["key"] != key:
        place.draft.remove()
    return place.draft


def _note(place: Location, key: str, atlas: Atlas, *, complete: bool) -> None:
    """Write what was registered, and whether all of it is there."""
    known = {"version": 1, "key": key, "complete": complete, **atlas.described()}
    write_text(place / NOTE, json.dumps(known, indent=2) + "\n")


def _write_products(
    atlas: Atlas, registered: Registration, resources: Resources, told: Reporter
) -> tuple[Region, ...]:
    """Write what is missing of both directions, and the table."""
    out, transform = registered.out, registered.transform
    axes = axes_of(transform)
    template = atlas.template.grid.in_unit("micrometer")

    def carry() -> None:
        smooth = WarpSettings("label-linear", background=0)
        grid = atlas.brain.grid
        given = (out / ANNOTATION, atlas.annotation, transform, grid, smooth)
        write_resampled(*given, labels=True, resources=resources)

    def invert() -> None:
        grid = template.reorder(axes)
        worst = write_inverse(out / INVERSE, transform, grid, resources=resources)
        told.note(f"{worst:.2g} voxels off at most")

    def carry_back() -> None:
        inverse = read_transform(out / INVERSE, axes)
        seen = _series(atlas.channels)
        linear = WarpSettings(background=None)
        write_resampled(out / BRAIN, seen, inverse, template, linear, resources=resources)

    _unless_there(out / ANNOTATION, "annotation", told, carry)
    _unless_there(out / INVERSE, "inverse", told, invert)
    _unless_there(out / BRAIN, "brain in the template", told, carry_back)
    told.step("regions")
    regions = _measure_regions(atlas, out, resources)
    write_regions(out / REGIONS, regions, atlas.channel_names)
    told.note(f"{sum(r.voxels > 0 for r in regions)} of {len(regions)} are in the brain")
    return regions


def _unless_there(place: Location, title: str, told: Reporter, write: Callable[[], None]) -> None:
    """Write a product that an earlier run has not completed."""
    told.step(title)
    if place.exists():
        told.note("there from an earlier run")
    else:
        write()


def _series(channels: tuple[Image, ...]) -> Image | Series:
    return channels[0] if len(channels) == 1 else Series(channels, (("c", len(channels)),))


def _measure_regions(atlas: Atlas, out: Location, resources: Resources) -> tuple[Region, ...]:
    """Tally the regions in the brain, with its channels, and in the template."""
    carried = _stored_annotation(out, atlas)
    here = tally(carried, [c.in_unit("micrometer") for c in atlas.channels], resources)
    there = tally(atlas.annotation, (), resources)
    return list_regions((carried, here), (atlas.annotation, there), atlas.names)


def _stored_annotation(out: Location, atlas: Atlas) -> Image:
    grid = atlas.brain.grid
    return open_image(str(out / ANNOTATION), axes=stored_axes(grid)).reorder(grid.axes)
