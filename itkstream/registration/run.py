"""One registration: its steps in turn, then field, aligned image, certificate and ITK files."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from dask.tokenize import tokenize
from numpy.typing import NDArray

from itkstream.apply.certificate import certify
from itkstream.apply.coarsening import CoarseField
from itkstream.apply.products import compute_pyramid
from itkstream.apply.resampling import prepare_apply_transform
from itkstream.blocks.fingerprint import code_version
from itkstream.compute.execute import open_or_create, store
from itkstream.errors import RegistrationError
from itkstream.geometry import CompositeTransform, Image, Transform
from itkstream.geometry.grid import UNIT_SIGNS
from itkstream.io import create_ome_zarr, open_image
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.files import write_transform
from itkstream.io.transforms.ngff.store import read_transform as read_field_and_affine
from itkstream.io.transforms.ngff.store import stored_axes
from itkstream.judge.error_map import Overview, look_over, prepare_error_map
from itkstream.judge.error_summary import summarise_error
from itkstream.judge.verdict import Evidence, judge
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.registration.fields import measure_coarser, store_coarser, store_transform
from itkstream.registration.folder import ALIGNED, ERROR, TRANSFORM, RunFolder
from itkstream.registration.journal import Journal, Note, next_from, note_of
from itkstream.registration.scene import Marks, Nothing, Scene, State, next_state
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import Step, step_parameters

__all__ = ["Results", "Run", "run_keys"]

# Notes of what is done beside the steps, which are called by their numbers.
_BEGIN, _FIELD, _ALIGNED, _CERTIFICATE, _ERROR, _VERDICT, _FILES = (
    "begin",
    "field",
    "aligned",
    "certificate",
    "error",
    "verdict",
    "files",
)

_ONE_SIDED = (
    "one image shows nothing where the other shows much: {:.2g} % of the fixed voxels are left out "
    "of what is compared"
)

_NO_TISSUE = (
    "what only one image shows on the empty ground of the other, without texture, is no tissue: "
    "the error map leaves it out"
)

_LIBRARIES = ("numpy", "scipy", "numba", "SimpleITK", "zarr", "dask", "distributed")


class Results(NamedTuple):
    """Products of a run.

    The transform is a displacement field, then an affine; it and the images are on disk. `error`
    are radii around places in which the true ones lie with 95 % probability, None where they were
    not wanted. `judged` are certificate, summary of the error and verdict, as registration.json
    holds them.
    """

    transform: CompositeTransform
    aligned: Image
    error: Image | None
    judged: dict[str, Any]


class Run:
    """One registration of a pair, by steps that see a scene; results and notes go to a folder.

    The pair is as it was given; the scene leaves out what masks leave out.
    """

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
        self.journal = Journal(folder, scene.reporter)
        self._aligned: Transform | None = None
        self._judged_scene: tuple[Scene, NDArray[np.bool_]] | None = None

    @property
    def facts(self) -> list[Note]:
        """Facts of every part that is done, for the report."""
        return self.journal.facts

    def all_steps(self, initial: Transform | None, keys: Sequence[str]) -> Results:
        """Do all steps, from an initial transform, make field and images, and judge them.

        The keys are from `run_keys`.
        """
        state = self.begin(initial, keys[0])
        for number, (step, key) in enumerate(zip(self.steps, keys[1:-1], strict=True), 1):
            state = self.refine(state, step, number, key)
        key = keys[-1]
        transform = self._stored(state, key)
        aligned, certificate = self._align(transform, key), self._certify(transform, key)
        error, summary = self._map_error(transform, key)
        judged = {"certificate": certificate} | ({"error": summary} if summary else {})
        judged["verdict"] = self._judge(transform, certificate, summary, key)
        return Results(transform, aligned, error, judged)

    def begin(self, initial: Transform | None, key: str) -> State:
        """Measure how good that is which is known before the first step."""

        def measure(facts: Note) -> Note:
            facts["coarse_shapes"] = [image.shape for image in self.scene.coarse]
            facts["local_correlation"] = self.scene.correlation(self.scene.known(initial))
            if initial is not None:
                facts["initial_affine"] = affine_part(initial).matrix.tolist()
            facts |= self._judge_marks(self.scene.known(initial))
            return {}

        note = self.journal.once("read", _BEGIN, key, measure, hold=True)
        return State(initial, note["facts"]["local_correlation"])

    def refine(self, state: State, step: Step, number: int, key: str) -> State:
        """Do one step, the number counted from 1, and find the state after it."""

        def place() -> Location:
            return self._place(number)

        # Key points bring images together wherever they lie, and see all of them.
        refines = state.transform is not None and not step.starts_anywhere
        if refines and self._aligned is None:
            self._aligned = state.transform

        def find(facts: Note) -> Note:
            scene, before = self._common(state) if refines else (self.scene, state)
            found = step.find(scene, before, place)
            after, told = next_state(scene, before, found)
            facts |= told
            facts |= self._judge_marks(self.scene.known(after.transform))
            if scene is not self.scene:
                facts["left_out"] = self._common_scene[1]
            if isinstance(found, Nothing) or after is before:
                return {}
            return note_of(found, after.quality, self.folder.claim())

        def complete(note: Note) -> Note:
            found_in_common = "left_out" in note["facts"]
            scene = self._common_scene[0] if found_in_common else self.scene
            step.restore(scene, state, place, note["facts"])
            return note

        note = self.journal.once(step.title, str(number), key, find, again=complete)
        return next_from(note, state, self.scene, self.folder.claim())

    def _judge_marks(self, transform: Transform) -> Note:
        """Measure the landmarks' target registration error, where there are any, and tell it."""
        marks = self.scene.marks
        if marks is None:
            return {}
        self.scene.reporter.note(marks.describe(transform))
        return marks.facts(transform)

    def _common(self, state: State) -> tuple[Scene, State]:
        """The scene of what both images show, and the state with the quality of that."""
        scene, _ = self._common_scene
        if scene is self.scene or state.transform is None:
            return self.scene, state
        return scene, replace(state, quality=scene.correlation(state.transform))

    @cached_property
    def _common_scene(self) -> tuple[Scene, float]:
        if self.settings.content == "all" or self._aligned is None:
            return self.scene, 0.0
        scene, left_out = self.scene.common(self._aligned)
        if left_out:
            self.scene.reporter.note(_ONE_SIDED.format(100 * left_out))
        return scene, left_out

    def _stored(self, state: State, key: str) -> CompositeTransform:
        """Store what was found as a displacement field and an affine, as it is handed out."""
        computed = self._computed(state)
        tolerance = self.settings.field_tolerance_vox
        if not tolerance:
            return computed
        path = self.folder.claim() / TRANSFORM

        def thin(facts: Note) -> Note:
            coarse = measure_coarser(self.scene, computed, tolerance)
            facts |= _field_facts(coarse, min(self.fixed.spacing), tolerance)
            spacing = " x ".join(f"{s:.3g}" for s in coarse.field.grid.spacing)
            self.scene.reporter.note(
                f"a vector every {spacing} {UNIT_SIGNS[coarse.field.grid.unit]}, at most "
                f"{facts['error_vox']:.2g} voxels from what was computed"
            )
            store_coarser(self.scene, computed, coarse.factors, path)
            return {}

        def complete(note: Note) -> Note:
            store_coarser(self.scene, computed, note["facts"]["factors"], path)
            return note

        self.journal.once("field", _FIELD, key, thin, again=complete)
        return read_field_and_affine(path, self.fixed.grid.axes)

    def _computed(self, state: State) -> CompositeTransform:
        """Store what was found as a displacement field and an affine, as it was computed."""
        found = self.scene.known(state.transform)
        thinned, path = self.settings.field_tolerance_vox, self.folder.claim() / TRANSFORM
        stored = state.place is not None and (thinned or state.place == path)
        if stored and isinstance(found, CompositeTransform):
            return found
        if thinned:
            path = self.folder.place(_FIELD)
        return store_transform(self.scene, found, path, self.settings.blocksize)

    def _align(self, transform: Transform, key: str) -> Image:
        """Resample the moving image on the fixed grid, multiscale."""
        path = self.folder.claim() / ALIGNED

        def resample(facts: Note) -> Note:
            facts["background"] = self._warp_settings.background
            self._store_aligned(transform, path)
            compute_pyramid(path, resources=self.scene.resources)
            return {"files": path.fingerprint()}

        def complete(note: Note) -> Note:
            self._store_aligned(transform, path)
            # Blocks are noted of the finest level only; the others are as they were if all files
            # are.
            if note["files"] != path.fingerprint():
                compute_pyramid(path, resources=self.scene.resources)
            return {**note, "files": path.fingerprint()}

        self.journal.once("aligned image", _ALIGNED, key, resample, again=complete)
        grid = self.fixed.grid
        return open_image(path, axes=stored_axes(grid)).reorder(grid.axes)

    def _certify(self, transform: CompositeTransform, key: str) -> dict[str, Any]:
        """Find out whether the transform is sound, and where it folds if it does."""

        def inspect(facts: Note) -> Note:
            name = str(self.folder.claim().settled)
            found = certify(transform, name=name, resources=self.scene.resources)
            facts["passed"] = found["passed"]
            self.scene.reporter.note(
                "; ".join(found["failures"]) or "no folds, and the inverse leads back"
            )
            return {"certificate": found}

        note = self.journal.once("certificate", _CERTIFICATE, key, inspect)
        found: dict[str, Any] = note["certificate"]
        return found

    def _judge(
        self,
        transform: CompositeTransform,
        certificate: dict[str, Any],
        error: dict[str, Any],
        key: str,
    ) -> dict[str, Any]:
        """Judge what was found by evidence that no step maximised, and say so."""

        def look(facts: Note) -> Note:
            scene, matrix = self._judged(transform)[0], affine_part(transform).matrix
            overlap = scene.overlap(transform)
            evidence = Evidence(self.fixed.grid, matrix, overlap, self.facts, certificate, error)
            return {"verdict": judge(evidence).facts}

        found: dict[str, Any] = self.journal.once("verdict", _VERDICT, key, look)["verdict"]
        return found

    def _map_error(
        self, transform: CompositeTransform, key: str
    ) -> tuple[Image | None, dict[str, Any]]:
        """Map how far off the transform may be, on a lattice of the fixed image, and sum it up.

        Nothing where that is not wanted.
        """
        if not self.settings.error_map:
            return None, {}
        path = self.folder.claim() / ERROR

        def open_map() -> Image:
            stored = open_image(path, axes=stored_axes(self.fixed.grid))
            return stored.reorder(self.fixed.grid.axes)

        def measure(facts: Note) -> Note:
            scene, tissue = self._judged(transform)
            if scene is not self.scene:
                scene.reporter.note(_NO_TISSUE)
            overview = look_over(*scene.coarse, transform)
            scene.reporter.note(overview.chance.describe())
            self._store_error(scene, transform, overview, path)
            mask = Image(tissue, scene.coarse_grid)
            found = summarise_error(open_map(), mask, self.fixed.grid)
            facts |= {"look": overview.look, **found.facts}
            scene.reporter.note(found.describe(self.fixed.grid.unit))
            summary = {**found.facts, "chance": overview.chance.facts}
            return {"summary": summary, "files": path.fingerprint()}

        def holds(note: Note) -> bool:
            return bool(path.exists() and note["files"] == path.fingerprint())

        note = self.journal.once("error map", _ERROR, key, measure, holds=holds)
        return open_map(), note["summary"]

    def _judged(self, transform: Transform) -> tuple[Scene, NDArray[np.bool_]]:
        """The scene that judges results, without layers that are no tissue, and its tissue."""
        if self._judged_scene is None:
            self._judged_scene = self.scene.judged(transform)
        return self._judged_scene

    def _store_error(
        self, scene: Scene, transform: Transform, overview: Overview, path: Location
    ) -> None:
        """Write the error map, or finish one that was begun."""
        pair = scene.fixed, scene.moving
        lazy, grid = prepare_error_map(pair, transform, overview, self.settings.blocksize)
        kept = grid.reorder(stored_axes(grid))
        stored = lazy.transpose(grid.axis_order(kept.axes))
        chunks = tuple(c[0] for c in stored.chunks)
        create = partial(create_ome_zarr, path, kept, stored.dtype, chunks=chunks)
        target = open_or_create(stored, path, "0", create)
        store(stored, target, self.scene.resources, self.scene.reporter.blocks)
        compute_pyramid(path, resources=self.scene.resources)

    def export(self, transform: CompositeTransform, key: str, unit: str) -> None:
        """Write the transform as ITK files in some unit, each read back and compared.

        The key is the last of `run_keys`. Raises a `RegistrationError` where a file maps points
        elsewhere.
        """
        folder = self.folder.claim() / "itk"
        files: dict[str, Transform] = {
            "affine.tfm": affine_part(transform),
            "composite.h5": transform,
        }

        def write(facts: Note) -> Note:
            facts["unit"] = unit
            folder.make_folder()
            folder.remove_partial_files(*files)
            for name, meant in files.items():
                facts[name] = {"largest_error_vox": self._write(folder / name, meant, unit)}
            return {"files": _stamps(folder, files)}

        def holds(note: Note) -> bool:
            return _stamps(folder, files) == note["files"]

        self.journal.once("ITK files", _FILES, f"{key} {unit}", write, holds=holds)

    def _write(self, path: Location, meant: Transform, unit: str) -> float:
        """Write a transform file, and find how many moving voxels off it is."""
        axes = self.fixed.grid.axes
        error = write_transform(path, meant, axes, unit=unit, overwrite=True)
        voxels = error / min(self.moving.spacing)
        if voxels > 1e-3:
            raise RegistrationError(
                f"{path} was written but maps points {voxels:.3g} voxels off: the disk or the ITK "
                "library is faulty"
            )
        return voxels

    @cached_property
    def _warp_settings(self) -> WarpSettings:
        """Settings of the aligned image, with the value outside the moving image."""
        return WarpSettings(background=self.settings.background).for_image(self.moving)

    def _store_aligned(self, transform: Transform, path: Location) -> None:
        """Write the finest level of the aligned image, or finish one that was begun."""
        size = self.settings.blocksize
        blocksize = (size,) * self.fixed.ndim
        settings = self._warp_settings
        lazy = prepare_apply_transform(self.fixed, self.moving, transform, blocksize, settings)
        grid = self.fixed.grid.reorder(stored_axes(self.fixed.grid))
        stored = lazy.transpose(self.fixed.grid.axis_order(grid.axes))
        chunks = tuple(min(c[0], size) for c in stored.chunks)
        create = partial(create_ome_zarr, path, grid, stored.dtype, chunks=chunks)
        target = open_or_create(stored, path, "0", create)
        store(stored, target, self.scene.resources, self.scene.reporter.blocks)

    def report(self) -> dict[str, Any]:
        """Say what was done, with which parameters and versions, as registration.json holds it."""
        steps = [{step.name: step_parameters(step)} for step in self.steps]
        return {
            "itkstream": version("itkstream"),
            "engine": self.folder.engines,
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
        """Name the store of a step's field: the last one may be the result."""
        if _is_result(number, self.steps, self.settings):
            return self.folder.claim() / TRANSFORM
        return self.folder.place(str(number))


def run_keys(
    seen: tuple[Image, ...],
    initial: Transform | None,
    steps: tuple[Step, ...],
    settings: RegisterSettings,
    marks: Marks | None = None,
    weights: tuple[float, ...] = (),
) -> list[str]:
    """Name what the beginning, every step and the results depend on, all before it included.

    The images are masked; of several channels they are both images of each, with its weight. There
    is a key of the beginning, one of each step, and that of all results.
    """
    known = seen, initial, marks, weights
    keys = [tokenize(code_version(), *known, settings.coarse_voxels, settings.content)]
    for number, step in enumerate(steps, 1):
        result = _is_result(number, steps, settings)
        keys.append(tokenize(keys[-1], step.name, step_parameters(step), result))
    # A page about the results changes none of them.
    return [*keys, tokenize(keys[-1], replace(settings, report=True))]


def _is_result(number: int, steps: tuple[Step, ...], settings: RegisterSettings) -> bool:
    """Whether the field of a step is handed out as it is."""
    return number == len(steps) and not settings.field_tolerance_vox


def _stamps(folder: Location, names: Iterable[str]) -> dict[str, str | None]:
    """Fingerprints of files, which change with them; None for one that is not there."""
    places = {name: folder / name for name in names}
    return {n: p.fingerprint() if p.is_file() else None for n, p in places.items()}


def _field_facts(coarse: CoarseField, voxel: float, tolerance: float) -> dict[str, Any]:
    """Facts of the field that is handed out, for the report."""
    return {
        "field_shape": coarse.field.grid.shape,
        "field_spacing": coarse.field.grid.spacing,
        "factors": coarse.factors,
        "error_vox": coarse.error / voxel,
        "tolerance_vox": tolerance,
    }


def _describe(image: Image) -> dict[str, Any]:
    """Say which image was registered; a channel is named where its file has several."""
    # Said also where they are the first: a file may get further times and levels later.
    first = {"time": 0} if "spacing" in image.recipe else {"level": 0, "time": 0}
    return {
        "name": image.name,
        "channel_name": image.channel,
        "opened": {**first, **image.recipe} if image.recipe else {},
        "dtype": str(image.dtype),
        "grid": _plain(image.grid),
    }


def _plain(value: Any) -> dict[str, Any]:
    """A frozen value as its fields."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
