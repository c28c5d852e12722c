"""Named end-to-end runs: images in, a registration folder out.

`register` goes from coarse to fine. What spans blocks is solved on a level of both images that fits
in memory: the affine by key points, piecewise affines from there, and the deformation with all
large displacements. Blocks at full resolution start from that and add what only full resolution
shows. A step that refines is kept only if it raises the local correlation of the images.
`itkstream.registration.run` does the steps in turn; `itkstream.registration.find` holds a function
for each.

Why in this order: on the tutorial's phantom (8 million voxels, 4 % of the nuclei missing in the
second round), warped by up to 5 and up to 10 micrometers, the error in voxels after all steps was,
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

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from dask.tokenize import tokenize
from numpy.typing import ArrayLike

from itkstream.blocks.inputs import as_pair, check_start
from itkstream.blocks.masks import Mask, masked
from itkstream.blocks.sources import readable
from itkstream.errors import InputError, UnknownSpacingError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    Image,
    Transform,
    array_axes,
    default_axes,
    named_axes,
    with_axes,
)
from itkstream.io import open_image
from itkstream.io.images.locate import locate
from itkstream.io.images.units import itk_unit
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import write_text
from itkstream.io.transforms.files import read_transform
from itkstream.io.transforms.ngff.store import read_transform as read_field_and_affine
from itkstream.io.transforms.ngff.store import stored_axes
from itkstream.registration.folder import ALIGNED, REPORT, TRANSFORM, RunFolder
from itkstream.registration.levels import LevelMaker
from itkstream.registration.plan import Plan, plan_steps
from itkstream.registration.probing import measure_rates
from itkstream.registration.run import Run, run_keys
from itkstream.registration.scene import LogReporter, Reporter, Scene
from itkstream.registration.steps import (
    DEFAULT_STEPS,
    RansacAffine,
    RegisterSettings,
    Step,
    checked_steps,
)
from itkstream.workers import Resources, session

__all__ = ["Plan", "Registration", "Reporter", "plan", "register"]

_UNITS_DIFFER = (
    "the fixed image is in {unit}s as ITK reads it and the moving image in {moving}s: lengths are "
    "converted here, but the files in itk/ fit ITK only after both are saved in {unit}s"
)


@dataclass(frozen=True)
class Registration:
    """What `register` made.

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
        transform = read_field_and_affine(out / TRANSFORM, axes)
        stored = stored_axes(self.aligned.grid)
        aligned = open_image(out / ALIGNED, axes=stored).reorder(axes)
        return Registration(out, transform, aligned, self.report)


def register(
    fixed: str | os.PathLike[str] | Image,
    moving: str | os.PathLike[str] | Image,
    out: str | os.PathLike[str],
    steps: Sequence[Step] = DEFAULT_STEPS,
    settings: RegisterSettings | None = None,
    *,
    initial_transform: Transform | ArrayLike | str | os.PathLike[str] | None = None,
    fixed_mask: Mask | str | os.PathLike[str] | None = None,
    moving_mask: Mask | str | os.PathLike[str] | None = None,
    resources: Resources | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Registration:
    """Register two images: affine, piecewise affine, deformation, aligned image.

    Writes into `out`:

    - ``registration.json``: parameters, versions, timings, quality before and after each step, and
      the transform's certificate (`itkstream.apply.certificate.certify`);
    - ``transform.ome.zarr``: displacement field and affine (OME-Zarr 0.6 scene), the field as
      coarse as `RegisterSettings.field_tolerance_vox` lets it; all else is made with this one;
    - ``aligned.ome.zarr``: the moving image on the fixed grid, multiscale;
    - ``itk/affine.tfm`` and ``itk/composite.h5``: the same transform for ITK, Slicer and ANTs, in
      micrometers, or in millimeters where the fixed image is, as NIfTI;
    - ``steps``: notes, and fields as they were computed, for a run that goes on; not needed when
      it is complete.

    Parameters
    ----------
    fixed, moving : path or Image
        What `itkstream.open_image` opens, or images. What a file does not state, and which channel,
        time point or level of it is meant, is said by opening it:
        ``register(open_image("round1.tif", voxel_spacing=(2, 0.5, 0.5), channel=1), ...)``, or by
        `itkstream.ImageOptions`. The report holds it.
    out : path
        The folder to write, new or empty: a path, or a URL such as ``s3://bucket/name``.
    steps : sequence of Step
        What is done, see `itkstream.registration.steps`; default
        `itkstream.registration.steps.DEFAULT_STEPS`. Each refines what the ones before have found,
        and is left out where that lowers the local correlation. A deformation is always kept, and
        so is the first affine.
    settings : RegisterSettings, optional
        What holds for the whole run.
    initial_transform : Transform, array_like (n + 1, n + 1), or path, optional
        Where to start, from fixed to moving points in micrometers: a matrix in the order of the
        fixed image's axes, or a transform file, such as landmarks of Slicer or an affine of ANTs,
        whose numbers are millimeters where the fixed image is in millimeters, as NIfTI.
        Every step refines it, key points too: they are sought in the images it aligns.
    fixed_mask, moving_mask : Mask or path, optional
        Which voxels count, see `itkstream.blocks.masks.Mask`, or the path of an image. A function
        is called once, with the coarse level. A file that does not state its spacing covers the
        image. The aligned image shows all voxels.
    resources : Resources, optional
        Workers and threads. Where `memory` is given, blocks and threads are chosen to fit it, see
        `plan`.
    overwrite : bool
        Replace an earlier registration in `out`, which stays until this one is complete; until
        then both take their space on the disk.
    reporter : Reporter, optional
        Told steps, blocks and results.

    Returns
    -------
    Registration
        Transform and aligned image, both on disk.

    Raises
    ------
    InputError
        For images, steps or an initial transform that cannot be used, for images of whose axes
        nothing says which is x, for an `out` that is, holds or lies in one of them, or that has the
        ending of a file.
    PlanError
        Where it needs more memory than there is.
    ExistingOutputError
        Where `out` holds something already.
    BusyOutputError
        Where another run is writing to `out`.
    RegistrationError
        Where no affine was found.
    """
    steps = checked_steps(steps)
    check_apart(out, fixed, moving, initial_transform, fixed_mask, moving_mask)
    opened = _opened(fixed), _opened(moving)
    _check_axes(opened)
    pair = as_pair(*opened, None, None)
    check_apart(out, pair)
    unit = itk_unit(opened[0].grid)
    initial = _as_initial(initial_transform, pair[0], unit)
    check_start(*pair, initial, anywhere=initial is None and _matches_first(steps))
    resources = resources or Resources()
    planned = _planned(pair, steps, settings or RegisterSettings(), resources).require_fit()
    steps, settings = planned.steps, planned.settings
    if resources.cluster == "local":
        resources = replace(resources, threads_per_worker=planned.threads)
    masks = _opened_mask(fixed_mask, pair[0]), _opened_mask(moving_mask, pair[1])
    folder = RunFolder(out, (_called(pair[0]), _called(pair[1])), overwrite)
    reporter = reporter or LogReporter()
    if itk_unit(opened[1].grid) != unit:
        reporter.note(_UNITS_DIFFER.format(unit=unit, moving=opened[1].grid.unit))
    with folder.locked():
        with ExitStack() as stack:
            # No workers before it is known that the folder may take this run.
            start = cache(partial(stack.enter_context, session(resources, reporter.note)))
            make = LevelMaker(settings.coarse_voxels, start, reporter.blocks, folder.keeping)
            seen = _seen(pair[0], masks[0], "fixed", make), _seen(pair[1], masks[1], "moving", make)
            keys = run_keys((seen[0].image, seen[1].image), initial, steps, settings)
            folder.settle(tokenize(keys[-1], pair))
            scene = _scene(seen, settings, start(), reporter)
            run = Run(pair, steps, settings, scene, folder)
            transform, aligned, certificate = run.all_steps(initial, keys)
        run.export(transform, keys[-1], unit)
        given = {
            "initial_transform": initial_transform,
            "fixed_mask": fixed_mask,
            "moving_mask": moving_mask,
        }
        report = run.report() | {k: _told(v) for k, v in given.items() if v is not None}
        report["certificate"] = certificate
        write_text(folder.location / REPORT, json.dumps(report, indent=2) + "\n")
        written = Registration(folder.location, transform, aligned, report)
        return written.moved(folder.finish())


def plan(
    fixed: str | os.PathLike[str] | Image,
    moving: str | os.PathLike[str] | Image,
    steps: Sequence[Step] = DEFAULT_STEPS,
    settings: RegisterSettings | None = None,
    *,
    resources: Resources | None = None,
    probe: int = 0,
) -> Plan:
    """What `register` will need: blocks, tasks, memory, disk, time. Nothing is written.

    Parameters
    ----------
    fixed, moving, steps, settings
        As in `register`.
    resources : Resources, optional
        As in `register`: where `memory` is given, blocks and threads are chosen to fit it.
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
    """
    pair = as_pair(_opened(fixed), _opened(moving), None, None)
    given = (checked_steps(steps), settings or RegisterSettings(), resources or Resources())
    made = _planned(pair, *given)
    if not probe:
        return made
    return replace(made, rates=measure_rates(*pair, made.steps, probe))


def _planned(
    pair: tuple[Image, Image],
    steps: tuple[Step, ...],
    settings: RegisterSettings,
    resources: Resources,
) -> Plan:
    """The plan that will run: as large as is asked for, unless a memory says otherwise."""
    made = plan_steps(*pair, steps, settings, resources.resolved())
    if resources.memory is not None:
        return made.fitted()
    return made if resources.threads_per_worker else made.fewer_threads()


def _matches_first(steps: tuple[Step, ...]) -> bool:
    """Whether key points bring the images together, wherever they lie."""
    return bool(steps) and isinstance(steps[0], RansacAffine)


def _as_initial(given: Any, fixed: Image, unit: str) -> Transform | None:
    """The transform to start from, checked against the fixed image."""
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        given = read_transform(given, fixed.grid.axes, unit=unit)
    axes = fixed.grid.axes
    transform = given if hasattr(given, "apply") else AffineTransform(np.asarray(given))
    if transform.ndim != fixed.ndim:
        raise InputError(
            f"the initial transform is {transform.ndim}-D and the images are {fixed.ndim}-D: give "
            f"a matrix of shape {(fixed.ndim + 1,) * 2}, or a transform of the same images"
        )
    if named_axes(transform) not in (None, axes):
        raise InputError(
            f"the initial transform has points with the axes {named_axes(transform)}, and the "
            f"fixed image has {axes}: read it with axes={axes}, or give its path"
        )
    return with_axes(transform, axes)


def _check_axes(pair: tuple[Image, Image]) -> None:
    """All that is written names axes: a guess could turn every file over."""
    for which, image in zip(("fixed", "moving"), pair, strict=True):
        if not image.grid.axes_stated:
            raise InputError(
                f"nothing says which axis of the {which} image is x, so that what is written could "
                f"be transposed: give its grid axes={array_axes(image.ndim)} if its array is "
                f"indexed so, or axes={default_axes(image.ndim)}"
            )


@dataclass(frozen=True, eq=False)
class _Seen:
    """An image, NaN where its voxels do not count, and what gives its level."""

    image: Image
    level: Callable[[], Image]


def _opened_mask(mask: Any, image: Image) -> Any:
    if not isinstance(mask, (str, os.PathLike)):
        return mask
    axes = image.recipe.get("axes")
    if axes and locate(mask).format == locate(image.recipe["path"]).format:
        # Who writes images without the names of their axes writes masks so; these have no channels.
        axes = [axis for axis in axes if axis in image.grid.axes]
    else:
        axes = None
    try:
        return open_image(mask, axes=axes)
    except UnknownSpacingError:
        # Where a file says nothing of its voxels, they cover the image, as those of an array do.
        voxels = open_image(mask, axes=axes, voxel_spacing=1.0, unit="micrometer")
        return voxels.reorder(image.grid.axes).data if voxels.ndim == image.ndim else voxels.data


def _called(image: Image) -> str:
    """What a run calls an image: another channel of a file is another image."""
    said = (f"{k} {v}" for k, v in image.recipe.items() if k in ("channel", "time", "level"))
    return " ".join((image.name, *said))


def _seen(image: Image, mask: Any, which: str, make: LevelMaker) -> _Seen:
    """What a run sees of an image."""
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


def _scene(
    seen: tuple[_Seen, _Seen], settings: RegisterSettings, workers: Resources, reporter: Reporter
) -> Scene:
    makers = seen[0].level, seen[1].level
    images = seen[0].image, seen[1].image
    return Scene(*images, settings.coarse_voxels, workers, reporter, makers)


def _told(given: Any) -> Any:
    """What a report says of an argument: paths and numbers as they are, others by their kind."""
    if isinstance(given, (str, os.PathLike)):
        return str(given)
    if isinstance(given, (list, tuple)) and all(isinstance(v, (int, float)) for v in given):
        return list(given)
    return type(given).__name__


def _opened(image: str | os.PathLike[str] | Image) -> Image:
    return image if isinstance(image, Image) else open_image(image)
