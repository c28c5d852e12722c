"""Named end-to-end runs: images in, a registration folder out.

`register` goes from coarse to fine. What spans blocks is solved on a level of both images that fits
in memory: the affine by key points, piecewise affines from there, and the deformation with all
large displacements. Blocks at full resolution start from that and add what only full resolution
shows. A step that refines is kept only if it raises the local correlation of the images.
`itkstream.registration.run` does the steps in turn; each kind is a module of
`itkstream.registration.steps`.

Why in this order: on the tutorial's phantom (8 million voxels, 4 % of the nuclei missing in the
second round), warped by up to 5 and up to 10 µm, the error in voxels after all steps was,
median / 95th percentile / maximum,

====================================================  ====================  ====================
order                                                 5 µm                  10 µm
====================================================  ====================  ====================
affine, deformation of the whole image                0.08 / 0.30 / 10.8    0.09 / 0.32 / 7.5
affine, piecewise affine (128), deformation           0.08 / 0.30 / 10.8    0.09 / 0.32 / 6.8
affine, piecewise affine (64), deformation            0.08 / 0.30 / 10.8    0.09 / 0.32 / 7.1
affine, piecewise affine, coarse, then fine blocks    0.09 / 0.23 / 4.0     0.09 / 0.25 / 1.6
affine, coarse, then fine blocks                      0.09 / 0.23 / 4.0
====================================================  ====================  ====================

The deformation makes up for what the piecewise affine leaves out, so that step costs a fifth of
the time and gains little; it stays because it needs no small displacement to start from, and is
left out where it does not help (as in the fourth row). Coarse levels on the whole image lose
nothing against a single block.

A deformation is stored on the nodes on which it is computed
(`itkstream.estimate.deformation.field_factors`). On this phantom, single block, these are 172,032
vectors for 8.3 million voxels, and exact. The mean of every 8 voxels, 6 times as many vectors, was
up to 0.48 voxel off where the field bends, at the 99th percentile 0.06; so a coarser field is
measured against the nodes (`field_tolerance_vox`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from itkstream.blocks.inputs import as_pair
from itkstream.blocks.masks import Mask
from itkstream.errors import InputError, UnstatedChannelError
from itkstream.geometry import Image, Landmarks, Transform
from itkstream.io.images.plain.in_memory import as_image
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_file
from itkstream.numerics.gpu.engine import Engine
from itkstream.progress.reporters import Reporter
from itkstream.progress.shown import Told, telling
from itkstream.registration.advice.channels import choose_pair
from itkstream.registration.folder import RunFolder
from itkstream.registration.plan import Plan, measure_rates
from itkstream.registration.register import run_request
from itkstream.registration.request import (
    Given,
    Request,
    open_given,
    plan_request,
    read_request,
)
from itkstream.registration.steps import DEFAULT_STEPS, RegisterSettings, Step, checked_steps
from itkstream.rehearsal import rehearsing
from itkstream.result import Registration
from itkstream.workers import Resources

if TYPE_CHECKING:
    from itkstream.preview import Preview

__all__ = ["DEFAULT_STEPS", "Plan", "Registration", "Reporter", "plan", "preview", "register"]


def __dir__() -> list[str]:
    return __all__


logger = logging.getLogger(__name__)


def register(
    fixed: Any,
    moving: Any,
    out: str | os.PathLike[str],
    steps: Sequence[Step] = DEFAULT_STEPS,
    settings: RegisterSettings | None = None,
    *,
    initial_transform: Transform | ArrayLike | str | os.PathLike[str] | None = None,
    fixed_mask: Mask | str | os.PathLike[str] | None = None,
    moving_mask: Mask | str | os.PathLike[str] | None = None,
    landmarks: Landmarks | str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    hold_out: float = 0.0,
    crop: str | Sequence[slice] | None = None,
    spacing: float | Sequence[float] | None = None,
    axes: str | Sequence[str] | None = None,
    resources: Resources | None = None,
    engine: Engine | None = None,
    overwrite: bool = False,
    reporter: Told = "auto",
) -> Registration:
    """Register two images: affine, piecewise affine, deformation, aligned image.

    Writes into `out`:

    - ``registration.json``: parameters, versions, timings, quality before and after each step, and
      the transform's certificate (`itkstream.certify`);
    - ``transform.ome.zarr``: displacement field and affine (OME-Zarr 0.6 scene), the field as
      coarse as `RegisterSettings.field_tolerance_vox` lets it; all else is made with this one;
    - ``aligned.ome.zarr``: the moving image on the fixed grid, multiscale;
    - ``error.ome.zarr``: the radius, in the unit of the fixed image, within which the true place
      lies with 95 % probability, on a coarse lattice; NaN where nothing can be said. The report
      sums it up and says what local correlation chance reaches;
    - ``itk/affine.tfm`` and ``itk/composite.h5``: the same transform for ITK, Slicer and ANTs, in
      µm, or in millimeters where the fixed image is, as NIfTI;
    - ``report.html``: a page of pictures and numbers, and ``report.json``, the numbers
      (`itkstream.write_report`), unless `RegisterSettings.report` is False;
    - ``steps``: notes, and fields as they were computed, for a run that goes on; not needed when
      it is complete.

    Parameters
    ----------
    fixed, moving : path, Image, array, or image of another library
        What `itkstream.open_image` opens, or what `itkstream.as_image` takes: numpy, dask and Zarr
        arrays, xarray.DataArray, and images of SimpleITK and itk. What a file does not state, and
        which channel,
        time point or level of it is meant, is said by opening it:
        ``register(open_image("round1.tif", voxel_spacing=(2, 0.5, 0.5), channel=1), ...)``, or by
        `itkstream.ImageOptions`. The report holds it. Several channels of each, as pairs in the
        same order, drive one transform: ``open_image(path, channel=["DAPI", "GFP"])``, with
        weights ``channel=[("DAPI", 2), ("GFP", 1)]``, or a list of images of the same voxels. Key
        points of all are pooled, and the deformation follows all; one that tells next to nothing is
        left out. Of several channels of a path of which none is chosen, the one that matches the
        other image best is taken, if an affine bears it out. An intensity affine and the choice of
        a stiffness go by the channel that tells most, steps are kept by the mean over all, and the
        error map and the verdict are those of
        the first, which is also the aligned image.
    out : path
        The folder to write, new or empty: a path, or a URL such as ``s3://bucket/name``.
    steps : sequence of Step
        What is done: `InitialSearch`, `RansacAffine`, `IntensityAffine`, `LocalAffines`,
        `Deformable`; default `itkstream.pipelines.DEFAULT_STEPS`. Each refines what the ones before
        have found, and is left out where that lowers the local correlation, or leads away from
        twelve landmarks or more (nine in 2-D). The first affine that is better than chance is kept,
        and so is a deformation that foretells what was hidden from it, of the images or, where
        these show nothing, of the landmarks.
    settings : RegisterSettings, optional
        What holds for the whole run.
    initial_transform : Transform, array_like (n + 1, n + 1), or path, optional
        Where to start, from fixed to moving points in µm: a matrix in the order of the
        fixed image's axes, or a transform file, such as landmarks of Slicer or an affine of ANTs,
        whose numbers are millimeters where the fixed image is in millimeters, as NIfTI.
        Every step refines it, key points too: they are sought in the images it aligns.
    fixed_mask, moving_mask : Mask or path, optional
        Which voxels count, see `itkstream.Mask`, or the path of an image. A function
        is called once, with the coarse level. A file that does not state its spacing covers the
        image. The aligned image shows all voxels.
    landmarks : Landmarks, path, or two paths, optional
        Pairs of points, or what `itkstream.read_landmarks` reads: one file of pairs, or one per
        image, fixed first. Without `initial_transform` the affine they give is the start; in a
        deformation they are soft constraints, weighed by how exactly they were placed
        (`itkstream.Landmarks`). One that contradicts those around it is named and counts for
        little. From eight on, held out in turn, they are judged by each other: where the pull of
        the others brings them no nearer, or the images speak against it, none pulls. The report
        says their target registration error after each step.
    hold_out : float
        Share of the landmarks, at least 0 and below 1, drawn by a fixed seed, that no step sees:
        their error is the one to believe.
    crop : str or sequence of slice, optional
        Register this part of the fixed image alone, per axis, as `itkstream.open_image` takes it:
        "100:400,0:200um,:". Of the moving image the part is taken in which it may lie: where the
        initial transform puts it (without one, the images' own positions), and half its length
        more on either side. The transform is in the coordinates of the whole images.
    spacing : float or sequence of float, optional
        Distance of voxels of `fixed` and `moving` that are arrays, in µm: a number, or one per
        axis. Where they differ, give each as ``itkstream.as_image(array, spacing, axes)``.
    axes : str or sequence of str, optional
        Names of the axes of arrays, such as "zyx".
    resources : Resources, optional
        Workers and threads. Where `memory` is given, blocks and threads are chosen to fit it, see
        `plan`.
    engine : {'cpu', 'gpu', 'auto'}, optional
        What computes, the processors or a GPU, as in `Resources`, where that says nothing of it. A
        run that was begun goes on with the same, unless 'cpu' or 'gpu' is said.
    overwrite : bool
        Replace an earlier registration in `out`, which stays until this one is complete; until
        then both take their space on the disk.
    reporter : Reporter, 'auto' or None
        Gets steps, blocks and results. By default a progress bar in a notebook or on a terminal,
        and plain lines elsewhere; None for silence. The log is written in all three cases.

    Returns
    -------
    Registration
        Transform and aligned image, both on disk.

    Raises
    ------
    InputError
        For images, steps, landmarks or an initial transform that cannot be used, for landmarks
        far outside their image, as in another unit, for images of whose axes
        nothing says which is x, for an `out` that is, holds or lies in one of them, that has the
        ending of a file, or that was begun with another engine.
    PlanError
        Where it needs more memory than there is, or a block more of the GPU than that has.
    ExistingOutputError
        Where `out` holds something already.
    BusyOutputError
        Where another run is writing to `out`.
    RegistrationError
        Where no affine was found, or none better than chance.

    Examples
    --------
    >>> result = itkstream.register(fixed, moving, "registered", overwrite=True)
    >>> result.verdict.outcome
    'good'
    >>> result.apply([[20.0, 40.0, 40.0]]).shape
    (1, 3)
    >>> result.aligned.shape == fixed.shape
    True
    """
    first, second = (_taken(image, spacing, axes) for image in (fixed, moving))
    given = Given(
        first, second, initial_transform, fixed_mask, moving_mask, landmarks, hold_out, crop
    )
    resources = _with_engine(resources, engine)
    how = checked_steps(steps), settings or RegisterSettings(), resources, out
    with telling(reporter) as told:
        try:
            request = read_request(given, *how)
        except UnstatedChannelError:
            chosen = choose_pair(first, second, told).images
            request = read_request(replace(given, fixed=chosen[0], moving=chosen[1]), *how)
        return run_with_report(request, RunFolder(out, request.names, overwrite), told)


def run_with_report(request: Request, folder: RunFolder, reporter: Reporter) -> Registration:
    """Run a registration that was checked, and write its page where one is wanted."""
    with rehearsing(request.pair[1].dtype, reporter):
        registered = Registration.of(run_request(request, folder, reporter))
    if request.plan.settings.report:
        report_or_warn(registered.out, request.pair, reporter)
    return registered


def preview(
    fixed: Any,
    moving: Any,
    page: str | os.PathLike[str],
    steps: Sequence[Step] = DEFAULT_STEPS,
    settings: RegisterSettings | None = None,
    *,
    initial_transform: Transform | ArrayLike | str | os.PathLike[str] | None = None,
    fixed_mask: Mask | str | os.PathLike[str] | None = None,
    moving_mask: Mask | str | os.PathLike[str] | None = None,
    blocks: int = 3,
    resources: Resources | None = None,
    engine: Engine | None = None,
    overwrite: bool = False,
    reporter: Told = "auto",
) -> Preview:
    """Register a few blocks at full settings, and tell what all of the images would take.

    The start of the blocks is found on the coarse levels of the whole images, as `register` finds
    it. Blocks of 128 voxels an axis are chosen full of tissue and far from each other, and go
    through all further steps. Only the page is written.

    Parameters
    ----------
    fixed, moving
        As in `register`.
    page : path
        The file to write; its name ends in ``.html``.
    steps, settings, initial_transform, fixed_mask, moving_mask
        As in `register`.
    blocks : int
        Number of blocks that are registered, and timed.
    resources, engine
        As in `register`.
    overwrite : bool
        Replace a page that is there.
    reporter
        As in `register`.

    Returns
    -------
    Preview
        The page, the plan with its times, and the blocks.

    Raises
    ------
    InputError
        As `register`; also for a `page` of another ending.
    ExistingOutputError
        Where `page` is there already.
    PlanError, RegistrationError
        As `register`.

    Examples
    --------
    >>> result = itkstream.pipelines.preview(
    ...     fixed, moving, "preview.html", [itkstream.RansacAffine()], blocks=1
    ... )
    >>> len(result.blocks)
    1
    """
    from itkstream.preview import preview_request

    if blocks < 1 or PurePath(os.fspath(page)).suffix.lower() != ".html":
        raise InputError(
            f"a preview needs at least one block and a page that ends in .html; got {blocks} and "
            f"{page}"
        )
    check_file(page, overwrite)
    given = Given(fixed, moving, initial_transform, fixed_mask, moving_mask)
    request = read_request(
        given,
        checked_steps(steps),
        settings or RegisterSettings(),
        _with_engine(resources, engine),
        page,
    )
    with telling(reporter) as told:
        return preview_request(given, request, page, blocks, told)


def _with_engine(resources: Resources | None, engine: Engine | None) -> Resources:
    """Resources with an engine that is said beside them."""
    given = resources or Resources()
    if engine is None:
        return given
    if given.engine not in (None, engine):
        raise InputError(
            f"engine={engine!r} and resources with engine={given.engine!r} contradict each other: "
            "give one"
        )
    return replace(given, engine=engine)


def _taken(image: Any, spacing: Any, axes: Any) -> Any:
    """An image as it was given, but for a spacing or axes said of it."""
    if spacing is None and axes is None:
        return image
    if isinstance(image, (list, tuple)):
        return [as_image(channel, spacing, axes) for channel in image]
    return as_image(image, spacing, axes)


def report_or_warn(out: Location, pair: tuple[Image, Image], reporter: Reporter) -> None:
    """Write the page of a registration; that it fails is a warning."""
    from itkstream.report.write import write_report

    reporter.step("report")
    try:
        reporter.note(str(write_report(out, pair).settled))
    except Exception as error:
        # Hours of computing are not lost for a picture, whatever went wrong with it.
        logger.warning(
            "no report was written (itkstream report %s tries again)", out, exc_info=True
        )
        reporter.note(f"no report was written: {error}")


def plan(
    fixed: Any,
    moving: Any,
    steps: Sequence[Step] = DEFAULT_STEPS,
    settings: RegisterSettings | None = None,
    *,
    spacing: float | Sequence[float] | None = None,
    axes: str | Sequence[str] | None = None,
    resources: Resources | None = None,
    engine: Engine | None = None,
    probe: int = 0,
) -> Plan:
    """Estimate what `register` needs: blocks, tasks, memory, disk, time; nothing is written.

    Parameters
    ----------
    fixed, moving, steps, settings
        As in `register`.
    spacing, axes
        As in `register`.
    resources : Resources, optional
        As in `register`: where `memory` is given, blocks and threads are chosen to fit it.
    engine : {'cpu', 'gpu', 'auto'}, optional
        As in `register`: with 'gpu' blocks must fit the GPU of this machine.
    probe : int
        Blocks that are read and computed to estimate the time; default none.

    Returns
    -------
    Plan
        Where `Plan.fits` is False, `register` would refuse to run.

    Raises
    ------
    InputError
        For images or steps that cannot be used.
    PlanError
        Where nothing fits `memory`.

    Examples
    --------
    >>> plan = itkstream.plan(fixed, moving)
    >>> plan.fits, len(plan.prices) > 4
    (True, True)
    """
    first, second = (open_given(_taken(image, spacing, axes)) for image in (fixed, moving))
    pair = as_pair(first, second, None, None)
    made = plan_request(
        pair,
        checked_steps(steps),
        settings or RegisterSettings(),
        _with_engine(resources, engine),
    )
    if not probe:
        return made
    return replace(made, rates=measure_rates(*pair, made.steps, probe))
