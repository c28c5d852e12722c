"""Named end-to-end runs: images in, a registration folder out.

`register` goes from coarse to fine. What spans blocks is solved on a level of both images that
fits in memory: the affine by key points, piecewise affines from there, and the deformation with
all large displacements. Blocks at full resolution start from that and add what only full
resolution shows. Each step is kept only if it raises the local correlation of the images.

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
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import dask.array as da
import numpy as np
import zarr

from itkstream.affine import prepare_local_affines, split_local_affines
from itkstream.block_kernels import (
    AffineSettings,
    WarpSettings,
    affine_block,
    intensity_block,
    warp_block,
)
from itkstream.cluster import Resources, compute, store
from itkstream.deform import prepare_displacement, prepare_fold_count
from itkstream.doors import as_pair
from itkstream.errors import InputError, ItkstreamError, RegistrationError
from itkstream.features import ContextWindow, KeyPointSettings, MatchSettings
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    Grid,
    Image,
    Transform,
)
from itkstream.io import create_ome_zarr, open_image, write_pyramid
from itkstream.io.itk_transforms import as_field_and_affine
from itkstream.io.ngff_transforms import (
    as_stored,
    create_transform,
    read_transform,
    stored_axes,
)
from itkstream.io.outputs import check_folder, claim_folder, write_text
from itkstream.io.transform_files import write_transform
from itkstream.levels import factors_to_fit, read_coarse
from itkstream.numerics.descent_settings import PIPELINE_DEFAULTS
from itkstream.numerics.itk_settings import DeformSettings, IntensitySettings
from itkstream.numerics.quality import local_correlation_in_tissue, tissue_mask
from itkstream.ransac import AffineEstimate, RansacSettings
from itkstream.transform import piecewise_transform, prepare_apply_transform

__all__ = ["RegisterSettings", "Registration", "Reporter", "register"]

logger = logging.getLogger(__name__)

_Kept = TypeVar("_Kept", bound=Transform)

# Enough agreeing matches that no other radii need be tried.
_PLENTY_OF_INLIERS = 200
_REPORT = "registration.json"


class Reporter(Protocol):
    """Told how a run goes on; the command line draws it."""

    def step(self, title: str) -> None:
        """A step begins."""

    def blocks(self, done: int, total: int) -> None:
        """Blocks of the step that are done, and in all."""

    def note(self, text: str) -> None:
        """A result worth a line."""


class _LogReporter:
    """Writes a run's progress to the log."""

    def step(self, title: str) -> None:
        logger.info("%s", title)

    def blocks(self, done: int, total: int) -> None:
        logger.debug("block %d of %d", done, total)

    def note(self, text: str) -> None:
        logger.info("%s", text)


@dataclass(frozen=True)
class RegisterSettings:
    """Parameters of `register`.

    Parameters
    ----------
    radii : sequence of (float, float)
        Least and greatest radius of the blobs, in voxels of the coarse level; one pair after the
        other is tried until matches abound.
    match_threshold : float
        Least correlation of two neighbourhoods that match.
    align_threshold_vox : float
        Greatest distance of a match from the affine, in voxels of the coarse level.
    cc_radius : int
        Half width of the neighbourhoods, in voxels of the coarse level.
    nspots : int
        Most key points per image.
    seed : int
        Seed of the robust fit.
    intensity : IntensitySettings, optional
        How the affine is refined by intensities, for a voxel spacing of 1; default None leaves that
        step out.
    local_blocksize : int
        Voxels of the coarse level per block of the piecewise affine; 0 leaves that step out.
    deform : DescentSettings or DemonsSettings, optional
        Parameters of the deformation for a voxel spacing of 1; default the best found,
        `itkstream.numerics.descent_settings.PIPELINE_DEFAULTS`.
    deform_blocksize : int
        Voxels per block at full resolution, an even number.
    coarse_voxels : float
        Most voxels of the coarse level.
    blocksize : int
        Voxels per block and chunk of the aligned image.

    Raises
    ------
    InputError
        For values out of range.
    """

    radii: tuple[tuple[float, float], ...] = ((6.0, 20.0), (3.0, 10.0), (2.0, 6.0))
    match_threshold: float = 0.7
    align_threshold_vox: float = 1.5
    cc_radius: int = 12
    nspots: int = 5000
    seed: int = 0
    intensity: IntensitySettings | None = None
    local_blocksize: int = 128
    deform: DeformSettings = PIPELINE_DEFAULTS
    deform_blocksize: int = 256
    coarse_voxels: float = 20e6
    blocksize: int = 128

    def __post_init__(self) -> None:
        if not self.radii:
            raise InputError("radii needs at least one pair (min_radius, max_radius); got none")
        for name in ("deform_blocksize", "blocksize"):
            if getattr(self, name) < 16 or getattr(self, name) % 2:
                raise InputError(f"{name} must be an even number >= 16; got {getattr(self, name)}")
        if self.local_blocksize and self.local_blocksize < 32:
            raise InputError(
                f"local_blocksize must be at least 32 voxels, or 0; got {self.local_blocksize}"
            )
        if self.coarse_voxels < 32**2:
            raise InputError(f"coarse_voxels must be at least 1024; got {self.coarse_voxels}")


@dataclass(frozen=True)
class Registration:
    """What `register` made.

    Parameters
    ----------
    out : Path
        The folder.
    transform : CompositeTransform
        Fixed to moving points: a stored displacement field, then an affine.
    aligned : Image
        The moving image on the fixed grid, stored.
    report : dict
        What registration.json holds.
    """

    out: Path
    transform: CompositeTransform
    aligned: Image
    report: dict[str, Any]


def register(
    fixed: str | os.PathLike[str] | Image,
    moving: str | os.PathLike[str] | Image,
    out: str | os.PathLike[str],
    settings: RegisterSettings | None = None,
    *,
    resources: Resources | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Registration:
    """Register two images: affine, piecewise affine, deformation, aligned image.

    Writes into `out`:

    - ``registration.json``: parameters, versions, timings, quality before and after each step;
    - ``transform.ome.zarr``: displacement field and affine (OME-Zarr 0.6 scene);
    - ``aligned.ome.zarr``: the moving image on the fixed grid, multiscale;
    - ``itk/affine.tfm`` and ``itk/composite.h5``: the same transform for ITK, Slicer and ANTs.

    Parameters
    ----------
    fixed, moving : path or Image
        What `itkstream.open_image` opens, or images.
    out : path
        The folder to write, new or empty.
    settings : RegisterSettings, optional
        Parameters of the steps.
    resources : Resources, optional
        Workers and threads.
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
        For images that cannot be registered.
    ExistingOutputError
        Where `out` holds something already.
    RegistrationError
        Where no affine was found.
    """
    pair = as_pair(_opened(fixed), _opened(moving), None, None)
    claim = (Path(out), _REPORT, overwrite)
    check_folder(*claim)
    run = _Run(pair, settings or RegisterSettings(), resources or Resources(), reporter)
    affine = run.refine_affine(run.find_affine())
    start = run.find_local_affines(affine)
    folder = claim_folder(*claim)
    transform = run.find_deformation(start, affine, folder / "transform.ome.zarr")
    aligned = run.align(transform, folder / "aligned.ome.zarr")
    run.export(transform, affine, folder / "itk")
    report = run.report()
    write_text(folder / _REPORT, json.dumps(report, indent=2) + "\n")
    return Registration(folder, transform, aligned, report)


class _Run:
    """The steps of one registration and what is known about them."""

    def __init__(
        self,
        pair: tuple[Image, Image],
        settings: RegisterSettings,
        resources: Resources,
        reporter: Reporter | None,
    ) -> None:
        self.fixed, self.moving = pair
        self.settings = settings
        self.resources = resources
        self.reporter: Reporter = reporter or _LogReporter()
        self.steps: list[dict[str, Any]] = []
        with self._step("read") as facts:
            self.coarse = (self._coarse(pair[0]), self._coarse(pair[1]))
            self.tissue = tissue_mask(self.coarse[0].read())
            facts["coarse_shapes"] = [image.shape for image in self.coarse]
            identity = AffineTransform(np.eye(self.fixed.ndim + 1))
            self.quality = facts["local_correlation"] = self._correlation(identity)

    def find_affine(self) -> AffineTransform:
        """The affine between the coarse images."""
        with self._step("affine") as facts:
            estimate = self._best_affine()
            if estimate.matrix is None:
                raise RegistrationError(
                    f"no affine found: {estimate.reason}. Check the spacings and that both images "
                    "show the same tissue; other radii or a lower match_threshold may help"
                )
            affine = AffineTransform(estimate.matrix)
            facts["matches"] = len(estimate.inliers)
            facts["inliers"] = int(estimate.inliers.sum())
            residuals = estimate.residuals[estimate.inliers]
            facts["median_residual"] = float(np.median(residuals))
            facts["matrix"] = affine.matrix.tolist()
            self.quality = facts["local_correlation"] = self._correlation(affine)
            self.reporter.note(
                f"{facts['inliers']} of {facts['matches']} matches agree, median residual "
                f"{facts['median_residual']:.2f} {self.fixed.grid.unit}"
            )
        return affine

    def refine_affine(self, affine: AffineTransform) -> AffineTransform:
        """The affine that intensities prefer, where it aligns better."""
        settings = self.settings.intensity
        if settings is None:
            return affine
        with self._step("intensity affine") as facts:
            fixed, moving = self.coarse
            scaled = settings.scaled(min(fixed.spacing))
            estimate = intensity_block(fixed, moving, affine.matrix, scaled)
            facts["metric_before"], facts["metric_after"] = estimate.before, estimate.after
            if not estimate:
                return self._dropped(facts, affine, estimate.reason)
            refined = AffineTransform(estimate.matrix)
            quality = self._correlation(refined)
            facts["local_correlation"] = quality
            if quality <= self.quality:
                return self._dropped(facts, affine, "it lowered the local correlation")
            self.quality = quality
            facts["matrix"] = refined.matrix.tolist()
        return refined

    def find_local_affines(self, affine: AffineTransform) -> Transform:
        """Local affines before the global one, where they align better."""
        size = self.settings.local_blocksize
        if not size:
            return affine
        with self._step("piecewise affine") as facts:
            fixed, moving = self.coarse
            blocksize = (size,) * fixed.ndim
            try:
                radii = self.radii
                settings = self._affine_settings(radii)
                lazy = prepare_local_affines(fixed, moving, affine, blocksize, settings)
                packed = compute(lazy, progress=self.reporter.blocks)
                local, confidence = split_local_affines(packed, fixed.ndim)
                found = piecewise_transform(fixed.grid, local, blocksize, affine.matrix)
            except ItkstreamError as error:
                return self._dropped(facts, affine, str(error))
            facts["blocks"] = list(local.shape[: fixed.ndim])
            facts["blocks_with_matches"] = int((confidence[..., 0] > 0).sum())
            facts["median_confidence"] = float(np.median(confidence[..., -1]))
            quality = self._correlation(found)
            facts["local_correlation"] = quality
            if quality <= self.quality:
                return self._dropped(facts, affine, "it lowered the local correlation")
            self.quality = quality
        return found

    def find_deformation(
        self, start: Transform, affine: AffineTransform, path: Path
    ) -> CompositeTransform:
        """The displacement in front of the affine, coarse to fine, stored."""
        with self._step("deformation") as facts:
            lazy, grid = self._prepare_field(start)
            chunks = tuple(_chunk(c) for c in lazy.chunks[:-1])
            target = create_transform(path, affine, grid, chunks=chunks)
            self._store(as_stored(lazy, grid), target)
            transform = read_transform(path, grid.axes)
            field, _ = as_field_and_affine(transform)
            stretch = compute(prepare_fold_count(field, (128,) * grid.ndim))
            facts["field_shape"], facts["field_spacing"] = grid.shape, grid.spacing
            facts["least_jacobian"] = float(stretch[..., 0].min())
            facts["folded_voxels"] = int(stretch[..., 1].sum())
            self.quality = facts["local_correlation"] = self._correlation(transform)
        return transform

    def align(self, transform: Transform, path: Path) -> Image:
        """The moving image on the fixed grid, multiscale."""
        with self._step("aligned image"):
            blocksize = (self.settings.blocksize,) * self.fixed.ndim
            lazy = prepare_apply_transform(self.fixed, self.moving, transform, blocksize)
            grid = self.fixed.grid.reorder(stored_axes(self.fixed.grid))
            stored = lazy.transpose(self.fixed.grid.axis_order(grid.axes))
            chunks = tuple(min(c[0], self.settings.blocksize) for c in stored.chunks)
            target = create_ome_zarr(path, grid, stored.dtype, chunks=chunks)
            self._store(stored, target)
            write_pyramid(path)
        return open_image(path).reorder(self.fixed.grid.axes)

    def export(self, transform: CompositeTransform, affine: AffineTransform, folder: Path) -> None:
        """The transform as ITK files, each read back and compared."""
        with self._step("ITK files") as facts:
            folder.mkdir(exist_ok=True)
            voxel = min(self.moving.spacing)
            files: dict[str, Transform] = {"affine.tfm": affine, "composite.h5": transform}
            for name, meant in files.items():
                error = write_transform(folder / name, meant, self.fixed.grid.axes) / voxel
                facts[name] = {"largest_error_vox": error}
                if error > 1e-3:
                    raise RegistrationError(
                        f"{folder / name} was written but maps points {error:.3g} voxels off: "
                        "the disk or the ITK library is faulty"
                    )

    def report(self) -> dict[str, Any]:
        """What registration.json holds."""
        return {
            "itkstream": version("itkstream"),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in _LIBRARIES},
            },
            "fixed": _describe(self.fixed),
            "moving": _describe(self.moving),
            "settings": json.loads(json.dumps(self.settings, default=_plain)),
            "steps": self.steps,
        }

    def _coarse(self, image: Image) -> Image:
        return read_coarse(image, factors_to_fit(image.grid, self.settings.coarse_voxels))

    def _best_affine(self) -> AffineEstimate:
        fixed, moving = self.coarse
        best: AffineEstimate | None = None
        reason = ""
        for radii in self.settings.radii:
            try:
                estimate, _ = affine_block(fixed, moving, self._affine_settings(radii))
            except (InputError, RegistrationError) as error:
                reason = reason or str(error)
                continue
            if best is None or estimate.inliers.sum() > best.inliers.sum():
                best, self.radii = estimate, radii
            if best.inliers.sum() >= _PLENTY_OF_INLIERS:
                break
        if best is None:
            raise RegistrationError(f"no affine found: {reason}")
        return best

    def _affine_settings(self, radii: tuple[float, float]) -> AffineSettings:
        settings, spacing = self.settings, self.coarse[0].spacing
        return AffineSettings(
            KeyPointSettings.from_voxels(*radii, spacing, nspots=settings.nspots),
            ContextWindow.from_voxels(settings.cc_radius, spacing),
            MatchSettings(settings.match_threshold),
            RansacSettings(
                threshold_um=settings.align_threshold_vox * float(np.median(spacing)),
                seed=settings.seed,
            ),
        )

    def _prepare_field(self, start: Transform) -> tuple[da.Array, Grid]:
        """The lazy displacement field, on a grid of half the image's resolution."""
        settings = self.settings
        blocks = [settings.deform_blocksize] * self.fixed.ndim
        if self.fixed.grid.size <= settings.coarse_voxels:
            blocks = list(self.fixed.shape)
        halved = (2,) * self.fixed.ndim
        lazy = prepare_displacement(
            self.fixed,
            self.moving,
            start,
            blocks,
            settings.deform.scaled(min(self.fixed.spacing)),
            coarse_voxels=settings.coarse_voxels,
            factors=halved,
            skip_empty=True,
        )
        return lazy, self.fixed.grid.shrink(halved)

    def _store(self, lazy: da.Array, target: zarr.Array[Any]) -> None:
        store(lazy, target, self.resources, self.reporter.blocks)

    def _correlation(self, transform: Transform) -> float:
        fixed, moving = self.coarse
        settings = WarpSettings(background=np.nan, dtype=np.float32)
        aligned = warp_block(moving, transform, fixed.grid, settings)
        return local_correlation_in_tissue(fixed.read(), aligned, self.tissue)

    def _dropped(self, facts: dict[str, Any], before: _Kept, reason: str) -> _Kept:
        facts["dropped"] = reason
        self.reporter.note(f"left out: {reason}")
        return before

    @contextmanager
    def _step(self, name: str) -> Iterator[dict[str, Any]]:
        self.reporter.step(name)
        facts: dict[str, Any] = {"name": name}
        began = time.perf_counter()
        yield facts
        facts["seconds"] = round(time.perf_counter() - began, 3)
        self.steps.append(facts)
        if "local_correlation" in facts:
            self.reporter.note(f"local correlation {facts['local_correlation']:.4f}")


_LIBRARIES = ("numpy", "scipy", "numba", "SimpleITK", "zarr", "dask", "distributed")


def _chunk(blocks: tuple[int, ...]) -> int:
    """A chunk of some 64 voxels that no two blocks share."""
    if len(blocks) == 1:
        return min(64, blocks[0])
    return next(n for n in range(min(64, blocks[0]), 0, -1) if blocks[0] % n == 0)


def _opened(image: str | os.PathLike[str] | Image) -> Image:
    return image if isinstance(image, Image) else open_image(image)


def _describe(image: Image) -> dict[str, Any]:
    return {"name": image.name, "dtype": str(image.dtype), "grid": _plain(image.grid)}


def _plain(value: Any) -> Any:
    """What JSON cannot write as it is: frozen values as their fields."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
