"""One registration: its steps in turn, then field, aligned image, certificate and ITK files.

What an earlier run noted is not done again.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from dask.tokenize import tokenize

from itkstream.apply.certificate import certify
from itkstream.apply.coarsening import CoarseField
from itkstream.apply.resampling import prepare_apply_transform
from itkstream.blocks.fingerprint import code_version
from itkstream.compute.execute import open_begun, store
from itkstream.compute.pyramid import compute_pyramid
from itkstream.errors import RegistrationError
from itkstream.geometry import AffineTransform, CompositeTransform, Image, Transform
from itkstream.io import create_ome_zarr, open_image
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.files import write_transform
from itkstream.io.transforms.ngff.store import stored_axes
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.registration.fields import (
    measure_coarser,
    store_coarser,
    store_deformation,
    store_transform,
)
from itkstream.registration.find import run_step
from itkstream.registration.folder import ALIGNED, TRANSFORM, RunFolder
from itkstream.registration.notes import next_from, note_of
from itkstream.registration.scene import Scene, State, next_state
from itkstream.registration.steps import (
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    RegisterSettings,
    Step,
    step_name,
    step_parameters,
)

__all__ = ["Run", "run_keys"]

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

_LIBRARIES = ("numpy", "scipy", "numba", "SimpleITK", "zarr", "dask", "distributed")


class Run:
    """One registration and what is known about it; what an earlier run noted is not done again.

    Parameters
    ----------
    pair : (Image, Image)
        Fixed and moving as they were given: masks are for what the steps see, in `scene`.
    steps : tuple of Step
        What is done.
    settings : RegisterSettings
        What holds for the whole run.
    scene : Scene
        What the steps see.
    folder : RunFolder
        Where results and notes go.
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
        self.facts: list[dict[str, Any]] = []
        self._unnoted: tuple[str, str, dict[str, Any]] | None = None

    def all_steps(
        self, initial: Transform | None, keys: Sequence[str]
    ) -> tuple[CompositeTransform, Image, dict[str, Any]]:
        """Do all steps, and make field, aligned image and certificate.

        Parameters
        ----------
        initial : Transform or None
            Where to start, from fixed to moving points.
        keys : sequence of str
            From `run_keys`.

        Returns
        -------
        transform : CompositeTransform
            From fixed to moving points: a displacement field, then an affine, on disk.
        aligned : Image
            The moving image on the fixed grid, on disk.
        certificate : dict
            From `itkstream.apply.certificate.certify`.
        """
        state = self.begin(initial, keys[0])
        for number, (step, key) in enumerate(zip(self.steps, keys[1:-1], strict=True), 1):
            state = self.refine(state, step, number, key)
        transform = self._stored(state, keys[-1])
        return transform, self._align(transform, keys[-1]), self._certify(transform, keys[-1])

    def begin(self, initial: Transform | None, key: str) -> State:
        """Measure how good that is which is known before the first step.

        Parameters
        ----------
        initial : Transform or None
            Where to start, from fixed to moving points.
        key : str
            Of all that this depends on.

        Returns
        -------
        State
            Before the first step.
        """
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
        """Do one step.

        Parameters
        ----------
        state : State
            What is known before it.
        step : Step
            What to do.
        number : int
            Of the step, from 1.
        key : str
            Of all that it depends on.

        Returns
        -------
        State
            What is known after it.
        """
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

    def _stored(self, state: State, key: str) -> CompositeTransform:
        """What was found, as a displacement field and an affine on disk: what is handed out."""
        computed = self._computed(state)
        tolerance = self.settings.field_tolerance_vox
        if not tolerance:
            return computed
        path = self.folder.location / TRANSFORM
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
        path = self.folder.location / TRANSFORM
        if self.settings.field_tolerance_vox:
            path = self.folder.place(_FIELD)
        return store_transform(self.scene, found, path, self.settings.blocksize)

    def _align(self, transform: Transform, key: str) -> Image:
        """The moving image on the fixed grid, multiscale."""
        path = self.folder.location / ALIGNED
        title = "aligned image"
        note = self._earlier(title, _ALIGNED, key)
        if note is not None:
            facts = note["facts"]
            self._store_aligned(transform, path)
        else:
            with self._step(title) as facts:
                facts["background"] = self._warp_settings.background
                self._store_aligned(transform, path)
                compute_pyramid(path, resources=self.scene.resources)
        # Blocks are noted of the finest level only; the others are as they were if all files are.
        if note is not None and note["files"] != path.fingerprint():
            compute_pyramid(path, resources=self.scene.resources)
        self._note(_ALIGNED, key, {"facts": facts, "files": path.fingerprint()})
        grid = self.fixed.grid
        return open_image(path, axes=stored_axes(grid)).reorder(grid.axes)

    def _certify(self, transform: CompositeTransform, key: str) -> dict[str, Any]:
        """Whether the transform is sound, and where it folds if it does."""
        note = self._earlier("certificate", _CERTIFICATE, key)
        if note is not None:
            found: dict[str, Any] = note["certificate"]
            return found
        with self._step("certificate") as facts:
            name = str(self.folder.location.settled)
            found = certify(transform, name=name, resources=self.scene.resources)
            facts["passed"] = found["passed"]
            self.scene.reporter.note(
                "; ".join(found["failures"]) or "no folds, and the inverse leads back"
            )
        self._note(_CERTIFICATE, key, {"facts": facts, "certificate": found})
        return found

    def export(self, transform: CompositeTransform, key: str, unit: str) -> None:
        """Write the transform as ITK files, each read back and compared.

        Parameters
        ----------
        transform : CompositeTransform
            From `all_steps`.
        key : str
            The last of `run_keys`.
        unit : str
            Unit of the numbers in the files.

        Raises
        ------
        RegistrationError
            Where a file maps points elsewhere.
        """
        folder, key = self.folder.location / "itk", f"{key} {unit}"
        files: dict[str, Transform] = {
            "affine.tfm": affine_part(transform),
            "composite.h5": transform,
        }
        if self._stamps(folder, files) == (self.folder.recall(_FILES, key) or {}).get("files"):
            self._earlier("ITK files", _FILES, key)
            return
        with self._step("ITK files") as facts:
            facts["unit"] = unit
            folder.make_folder()
            folder.remove_partial_files(*files)
            for name, meant in files.items():
                facts[name] = {"largest_error_vox": self._write(folder / name, meant, unit)}
        self._note(_FILES, key, {"facts": facts, "files": self._stamps(folder, files)})

    def _stamps(self, folder: Location, names: Iterable[str]) -> dict[str, str | None]:
        """What tells whether files are as they were written; None for one that is not there."""
        places = {name: folder / name for name in names}
        return {n: p.fingerprint() if p.is_file() else None for n, p in places.items()}

    def _write(self, path: Location, meant: Transform, unit: str) -> float:
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
        """How the aligned image is made, with the value outside the moving image."""
        return WarpSettings(background=self.settings.background).for_image(self.moving)

    def _store_aligned(self, transform: Transform, path: Location) -> None:
        size = self.settings.blocksize
        blocksize = (size,) * self.fixed.ndim
        settings = self._warp_settings
        lazy = prepare_apply_transform(self.fixed, self.moving, transform, blocksize, settings)
        grid = self.fixed.grid.reorder(stored_axes(self.fixed.grid))
        stored = lazy.transpose(self.fixed.grid.axis_order(grid.axes))
        target = open_begun(stored, path / "0")
        if target is None:
            path.remove()
            chunks = tuple(min(c[0], size) for c in stored.chunks)
            target = create_ome_zarr(path, grid, stored.dtype, chunks=chunks)
        store(stored, target, self.scene.resources, self.scene.reporter.blocks)

    def report(self) -> dict[str, Any]:
        """Say what was done, with which parameters and versions.

        Returns
        -------
        dict
            What registration.json holds, but for the arguments and the certificate.
        """
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
            return self.folder.location / TRANSFORM
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


def run_keys(
    seen: tuple[Image, Image],
    initial: Transform | None,
    steps: tuple[Step, ...],
    settings: RegisterSettings,
) -> list[str]:
    """What the beginning, every step and the results depend on, all before it included.

    Parameters
    ----------
    seen : (Image, Image)
        Fixed and moving, masked.
    initial : Transform or None
        Where to start.
    steps : tuple of Step
        What is done.
    settings : RegisterSettings
        What holds for the whole run.

    Returns
    -------
    list of str
        The key of the beginning, one of each step, and that of all results.
    """
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


def _describe(image: Image) -> dict[str, Any]:
    return {
        "name": image.name,
        "opened": image.recipe,
        "dtype": str(image.dtype),
        "grid": _plain(image.grid),
    }


def _plain(value: Any) -> dict[str, Any]:
    """A frozen value as its fields."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _identity(image: Image) -> AffineTransform:
    return AffineTransform(np.eye(image.ndim + 1))
