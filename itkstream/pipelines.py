"""Named end-to-end runs: images in, a registration folder out.

`register` goes from coarse to fine. What spans blocks is solved on a level of both images that
fits in memory: the affine by key points, piecewise affines from there, and the deformation with
all large displacements. Blocks at full resolution start from that and add what only full
resolution shows. A step that refines is kept only if it raises the local correlation of the images.
`run_steps` holds a function for each step.

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
left out where it does not help (as in the fourth row). Coarse levels on the
whole image lose nothing against a single block.

A deformation is stored on the nodes on which it is computed (`itkstream.deform.field_factors`). On
this phantom, single block, these are 172,032 vectors for 8.3 million voxels, and exact. The mean of
every 8 voxels, 6 times as many vectors, was up to 0.48 voxel off where the field bends, at the 99th
percentile 0.06; so a coarser field is measured against the nodes (`field_tolerance_vox`).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np
from dask.tokenize import tokenize
from numpy.typing import ArrayLike

from itkstream.algebra import CoarseField
from itkstream.certificate import certify
from itkstream.cluster import store
from itkstream.doors import as_pair
from itkstream.errors import InputError, RegistrationError
from itkstream.fingerprint import code_version
from itkstream.geometry import AffineTransform, CompositeTransform, Image, Transform
from itkstream.io import create_ome_zarr, open_image, write_pyramid
from itkstream.io.locations import Location
from itkstream.io.ngff_transforms import stored_axes
from itkstream.io.outputs import write_text
from itkstream.io.transform_files import read_transform, write_transform
from itkstream.kept_levels import LevelMaker
from itkstream.lazy import readable
from itkstream.masks import Mask, masked
from itkstream.numerics.mapping import affine_part
from itkstream.planning import Plan, plan_steps
from itkstream.probing import measure_rates
from itkstream.run_folder import REPORT, RunFolder
from itkstream.run_steps import (
    Reporter,
    Scene,
    State,
    begun,
    measure_coarser,
    next_state,
    run_step,
    store_coarser,
    store_deformation,
    store_transform,
)
from itkstream.step_notes import next_from, note_of
from itkstream.steps import (
    DEFAULT_STEPS,
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    RegisterSettings,
    Step,
    checked_steps,
    step_name,
    step_parameters,
)
from itkstream.transform import prepare_apply_transform
from itkstream.workers import Resources, session

__all__ = ["Plan", "Registration", "Reporter", "plan", "register"]

logger = logging.getLogger(__name__)

_TRANSFORM = "transform.ome.zarr"
# Notes of what is done beside the steps, which are called by their numbers.
_BEGIN, _FIELD, _ALIGNED, _CERTIFICATE, _FILES = (
    "begin",
    "field",
    "aligned",
    "certificate",
    "files",
)

_TITLES: dict[type[Any], str] = {
    RansacAffine: "affine",
    IntensityAffine: "intensity affine",
    LocalAffines: "piecewise affine",
    Deformable: "deformation",
}


class _LogReporter:
    """Writes a run's progress to the log."""

    def step(self, title: str) -> None:
        logger.info("%s", title)

    def blocks(self, done: int, total: int) -> None:
        logger.debug("block %d of %d", done, total)

    def note(self, text: str) -> None:
        logger.info("%s", text)


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
      the transform's certificate (`itkstream.certificate.certify`);
    - ``transform.ome.zarr``: displacement field and affine (OME-Zarr 0.6 scene), the field as
      coarse as `RegisterSettings.field_tolerance_vox` lets it; all else is made with this one;
    - ``aligned.ome.zarr``: the moving image on the fixed grid, multiscale;
    - ``itk/affine.tfm`` and ``itk/composite.h5``: the same transform for ITK, Slicer and ANTs;
    - ``steps``: notes, and fields as they were computed, for a run that goes on; not needed when
      it is complete.

    Parameters
    ----------
    fixed, moving : path or Image
        What `itkstream.open_image` opens, or images.
    out : path
        The folder to write, new or empty: a path, or a URL such as ``s3://bucket/name``.
    steps : sequence of Step
        What is done, see `itkstream.steps`; default `itkstream.steps.DEFAULT_STEPS`. Each refines
        what the ones before have found, and is left out where that lowers the local correlation.
        A deformation is always kept, and so is the first affine.
    settings : RegisterSettings, optional
        What holds for the whole run.
    initial_transform : Transform, array_like (n + 1, n + 1), or path, optional
        Where to start, from fixed to moving points in micrometers: a matrix in the order of the
        fixed image's axes, or a transform file, such as landmarks of Slicer or an affine of ANTs.
        Every step refines it, key points too: they are sought in the images it aligns.
    fixed_mask, moving_mask : Mask or path, optional
        Which voxels count, see `itkstream.masks.Mask`, or the path of an image. A function is
        called once, with the coarse level. The aligned image shows all voxels.
    resources : Resources, optional
        Workers and threads. Where `memory` is given, blocks and threads are chosen to fit it, see
        `plan`.
    overwrite : bool
        Replace an earlier registration in `out`.
    reporter : Reporter, optional
        Told steps, blocks and results.

    Returns
    -------
    Registration
        Transform and aligned image, both on disk.

    Raises
    ------
    InputError
        For images, steps or an initial transform that cannot be used.
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
    pair = as_pair(_opened(fixed), _opened(moving), None, None)
    initial = _as_initial(initial_transform, pair[0])
    resources = resources or Resources()
    planned = _planned(pair, steps, settings or RegisterSettings(), resources).require_fit()
    steps, settings = planned.steps, planned.settings
    if resources.cluster == "local":
        resources = replace(resources, threads_per_worker=planned.threads)
    masks = _opened_mask(fixed_mask), _opened_mask(moving_mask)
    folder = RunFolder(out, (pair[0].name, pair[1].name), overwrite)
    reporter = reporter or _LogReporter()
    with folder.locked():
        with ExitStack() as stack:
            start = cache(partial(stack.enter_context, session(resources, reporter.note)))
            make = LevelMaker(settings.coarse_voxels, start, reporter.blocks, folder.keeping)
            seen = _seen(pair[0], masks[0], "fixed", make), _seen(pair[1], masks[1], "moving", make)
            keys = _keys((seen[0].image, seen[1].image), initial, steps, settings)
            folder.settle(tokenize(keys[-1], pair))
            scene = _scene(seen, settings, start(), reporter)
            run = _Run(pair, steps, settings, scene, folder)
            transform, aligned, certificate = run.all_steps(initial, keys)
        run.export(transform, keys[-1])
        given = {
            "initial_transform": initial_transform,
            "fixed_mask": fixed_mask,
            "moving_mask": moving_mask,
        }
        report = run.report() | {k: _told(v) for k, v in given.items() if v is not None}
        report["certificate"] = certificate
        write_text(folder.location / REPORT, json.dumps(report, indent=2) + "\n")
    return Registration(folder.location, transform, aligned, report)


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


class _Run:
    """One registration and what is known about it; what an earlier run noted is not done again."""

    def __init__(
        self,
        pair: tuple[Image, Image],
        steps: tuple[Step, ...],
        settings: RegisterSettings,
        scene: Scene,
        folder: RunFolder,
    ) -> None:
        self.fixed, self.moving = pair
        self.steps = steps
        self.settings = settings
        self.scene = scene
        self.folder = folder
        self.facts: list[dict[str, Any]] = []
        self._unnoted: tuple[str, str, dict[str, Any]] | None = None

    def all_steps(
        self, initial: Transform | None, keys: Sequence[str]
    ) -> tuple[CompositeTransform, Image, dict[str, Any]]:
        """Transform, aligned image and certificate, all steps done and stored."""
        state = self.begin(initial, keys[0])
        for number, (step, key) in enumerate(zip(self.steps, keys[1:-1], strict=True), 1):
            state = self.refine(state, step, number, key)
        transform = self.stored(state, keys[-1])
        return transform, self.align(transform, keys[-1]), self.certify(transform, keys[-1])

    def begin(self, initial: Transform | None, key: str) -> State:
        """How good is what is known?"""
        note = self._earlier("read", _BEGIN, key)
        if note is not None:
            return State(initial, note["facts"]["local_correlation"])
        with self._step("read") as facts:
            facts["coarse_shapes"] = [image.shape for image in self.scene.coarse]
            quality = self.scene.correlation(initial or _identity(self.fixed))
            facts["local_correlation"] = quality
            if initial is not None:
                facts["initial_affine"] = affine_part(initial).matrix.tolist()
        # Noted with the first step: a run that finds nothing leaves nothing behind.
        self._unnoted = (_BEGIN, key, {"facts": facts})
        return State(initial, quality)

    def refine(self, state: State, step: Step, number: int, key: str) -> State:
        """Do one step; what is known after it."""
        title, name = _TITLES[type(step)], str(number)
        note = self._earlier(title, name, key)
        if note is not None:
            if isinstance(step, Deformable):
                store_deformation(self.scene, state, step, self._place(number))
            return next_from(note, state, self.scene, self.folder.location)
        with self._step(title) as facts:
            finding = run_step(self.scene, state, step, lambda: self._place(number))
            after, found = next_state(self.scene, state, finding)
            facts |= found
        self._note(name, key, note_of(finding, after, facts, self.folder.location))
        return after

    def stored(self, state: State, key: str) -> CompositeTransform:
        """What was found, as a displacement field and an affine on disk: what is handed out."""
        computed = self._computed(state)
        tolerance = self.settings.field_tolerance_vox
        if not tolerance:
            return computed
        path = self.folder.location / _TRANSFORM
        note = self._earlier("field", _FIELD, key)
        if note is not None:
            return store_coarser(self.scene, computed, note["facts"]["factors"], path)
        with self._step("field") as facts:
            coarse = measure_coarser(self.scene, computed, tolerance)
            facts |= _field_facts(coarse, min(self.fixed.spacing), tolerance)
            spacing = " x ".join(f"{s:.3g}" for s in coarse.field.grid.spacing)
            self.scene.reporter.note(
                f"a vector every {spacing} {coarse.field.grid.unit}s, at most "
                f"{facts['error_vox']:.2g} voxels from what was computed"
            )
            transform = store_coarser(self.scene, computed, coarse.factors, path)
        self._note(_FIELD, key, {"facts": facts})
        return transform

    def _computed(self, state: State) -> CompositeTransform:
        """What was found, as a displacement field and an affine on disk, as it was computed."""
        found = state.transform or _identity(self.fixed)
        if self.steps and isinstance(self.steps[-1], Deformable):
            assert isinstance(found, CompositeTransform)
            return found
        path = self.folder.location / _TRANSFORM
        if self.settings.field_tolerance_vox:
            path = self.folder.place(_FIELD)
        return store_transform(self.scene, found, path, self.settings.blocksize)

    def align(self, transform: Transform, key: str) -> Image:
        """The moving image on the fixed grid, multiscale."""
        path = self.folder.location / "aligned.ome.zarr"
        title = "aligned image"
        note = self._earlier(title, _ALIGNED, key)
        if note is not None:
            facts = note["facts"]
            self._store_aligned(transform, path)
        else:
            with self._step(title) as facts:
                self._store_aligned(transform, path)
                write_pyramid(path)
        # Blocks are noted of the finest level only; the others are as they were if all files are.
        if note is not None and note["files"] != path.fingerprint():
            write_pyramid(path)
        self._note(_ALIGNED, key, {"facts": facts, "files": path.fingerprint()})
        return open_image(path).reorder(self.fixed.grid.axes)

    def certify(self, transform: CompositeTransform, key: str) -> dict[str, Any]:
        """Whether the transform is sound, and where it folds if it does."""
        note = self._earlier("certificate", _CERTIFICATE, key)
        if note is not None:
            found: dict[str, Any] = note["certificate"]
            return found
        with self._step("certificate") as facts:
            name = str(self.folder.location)
            found = certify(transform, name=name, resources=self.scene.resources)
            facts["passed"] = found["passed"]
            self.scene.reporter.note(
                "; ".join(found["failures"]) or "no folds, and the inverse leads back"
            )
        self._note(_CERTIFICATE, key, {"facts": facts, "certificate": found})
        return found

    def export(self, transform: CompositeTransform, key: str) -> None:
        """The transform as ITK files, each read back and compared."""
        folder = self.folder.location / "itk"
        files: dict[str, Transform] = {
            "affine.tfm": affine_part(transform),
            "composite.h5": transform,
        }
        if self._stamps(folder, files) == (self.folder.recall(_FILES, key) or {}).get("files"):
            self._earlier("ITK files", _FILES, key)
            return
        with self._step("ITK files") as facts:
            folder.make_folder()
            folder.remove_partial_files(*files)
            for name, meant in files.items():
                facts[name] = {"largest_error_vox": self._write(folder / name, meant)}
        self._note(_FILES, key, {"facts": facts, "files": self._stamps(folder, files)})

    def _stamps(self, folder: Location, names: Iterable[str]) -> dict[str, str | None]:
        """What tells whether files are as they were written; None for one that is not there."""
        places = {name: folder / name for name in names}
        return {n: p.fingerprint() if p.is_file() else None for n, p in places.items()}

    def _write(self, path: Location, meant: Transform) -> float:
        error = write_transform(path, meant, self.fixed.grid.axes, overwrite=True)
        voxels = error / min(self.moving.spacing)
        if voxels > 1e-3:
            raise RegistrationError(
                f"{path} was written but maps points {voxels:.3g} voxels off: the disk or the ITK "
                "library is faulty"
            )
        return voxels

    def _store_aligned(self, transform: Transform, path: Location) -> None:
        size = self.settings.blocksize
        blocksize = (size,) * self.fixed.ndim
        lazy = prepare_apply_transform(self.fixed, self.moving, transform, blocksize)
        grid = self.fixed.grid.reorder(stored_axes(self.fixed.grid))
        stored = lazy.transpose(self.fixed.grid.axis_order(grid.axes))
        target = begun(stored, path, "0")
        if target is None:
            chunks = tuple(min(c[0], size) for c in stored.chunks)
            target = create_ome_zarr(path, grid, stored.dtype, chunks=chunks)
        store(stored, target, self.scene.resources, self.scene.reporter.blocks)

    def report(self) -> dict[str, Any]:
        """What registration.json holds."""
        steps = [{step_name(step): step_parameters(step)} for step in self.steps]
        return {
            "itkstream": version("itkstream"),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in _LIBRARIES},
            },
            "fixed": _describe(self.fixed),
            "moving": _describe(self.moving),
            "settings": {**_plain(self.settings), "steps": steps},
            "steps": self.facts,
        }

    def _place(self, number: int) -> Location:
        """Where the field of a deformation goes: the last one may be the result."""
        if _is_result(number, self.steps, self.settings):
            return self.folder.location / _TRANSFORM
        return self.folder.place(str(number))

    def _earlier(self, title: str, name: str, key: str) -> dict[str, Any] | None:
        """What an earlier run noted of a step, told as if it were done now."""
        note = self.folder.recall(name, key)
        if note is not None:
            self.scene.reporter.step(title)
            self.scene.reporter.note("done by an earlier run")
            self.facts.append(note["facts"])
        return note

    def _note(self, name: str, key: str, note: dict[str, Any]) -> None:
        if self._unnoted:
            self.folder.note(*self._unnoted)
            self._unnoted = None
        self.folder.note(name, key, note)

    @contextmanager
    def _step(self, title: str) -> Iterator[dict[str, Any]]:
        reporter = self.scene.reporter
        reporter.step(title)
        facts: dict[str, Any] = {"name": title}
        began = time.perf_counter()
        yield facts
        facts["seconds"] = round(time.perf_counter() - began, 3)
        self.facts.append(facts)
        if "local_correlation" in facts:
            reporter.note(f"local correlation {facts['local_correlation']:.4f}")
        if "dropped" in facts:
            reporter.note(f"left out: {facts['dropped']}")


_LIBRARIES = ("numpy", "scipy", "numba", "SimpleITK", "zarr", "dask", "distributed")


def _keys(
    seen: tuple[Image, Image],
    initial: Transform | None,
    steps: tuple[Step, ...],
    settings: RegisterSettings,
) -> list[str]:
    """What the beginning, every step and the results depend on, all before it included."""
    keys = [tokenize(code_version(), seen, initial, settings.coarse_voxels)]
    for number, step in enumerate(steps, 1):
        result = _is_result(number, steps, settings)
        keys.append(tokenize(keys[-1], step_name(step), step_parameters(step), result))
    return [*keys, tokenize(keys[-1], settings)]


def _is_result(number: int, steps: tuple[Step, ...], settings: RegisterSettings) -> bool:
    """Whether what a deformation stores is handed out as it is."""
    return number == len(steps) and not settings.field_tolerance_vox


def _field_facts(coarse: CoarseField, voxel: float, tolerance: float) -> dict[str, Any]:
    """What the report says of the field that is handed out."""
    return {
        "field_shape": coarse.field.grid.shape,
        "field_spacing": coarse.field.grid.spacing,
        "factors": coarse.factors,
        "error_vox": coarse.error / voxel,
        "tolerance_vox": tolerance,
    }


def _as_initial(given: Any, fixed: Image) -> Transform | None:
    """The transform to start from, checked against the fixed image."""
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        given = read_transform(given, fixed.grid.axes)
    transform = given if hasattr(given, "apply") else AffineTransform(np.asarray(given))
    if transform.ndim != fixed.ndim:
        raise InputError(
            f"the initial transform is {transform.ndim}-D and the images are {fixed.ndim}-D: give "
            f"a matrix of shape {(fixed.ndim + 1,) * 2}, or a transform of the same images"
        )
    return transform


@dataclass(frozen=True, eq=False)
class _Seen:
    """An image, NaN where its voxels do not count, and what gives its level."""

    image: Image
    level: Callable[[], Image]


def _opened_mask(mask: Any) -> Any:
    return open_image(mask) if isinstance(mask, (str, os.PathLike)) else mask


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


def _identity(image: Image) -> AffineTransform:
    return AffineTransform(np.eye(image.ndim + 1))


def _opened(image: str | os.PathLike[str] | Image) -> Image:
    return image if isinstance(image, Image) else open_image(image)


def _describe(image: Image) -> dict[str, Any]:
    return {"name": image.name, "dtype": str(image.dtype), "grid": _plain(image.grid)}


def _plain(value: Any) -> dict[str, Any]:
    """A frozen value as its fields."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
