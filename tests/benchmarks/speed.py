"""The speed suite: whole steps, their time, their memory and how they scale.

As a script, ``speed.py TASK SIZE RESULT`` runs one task. Each task is a function of `Sizes` that
returns rows: ``variant``, what `processes.timed` measures, and facts of its own.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cases
import numpy as np
import processes
import SimpleITK as sitk
import zarr
from attrs import evolve
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.affine import ransac_affine
from itkstream.apply.resampling import apply_transform, prepare_apply_transform
from itkstream.blocks.inputs import block_grid
from itkstream.compute.execute import execute
from itkstream.deform import deformable_align, prepare_piecewise_deformable_align
from itkstream.errors import ItkstreamError
from itkstream.geometry import AffineTransform, DisplacementField, Grid, Image
from itkstream.geometry.itk_bridge import to_itk_image, to_itk_transform
from itkstream.io import open_image
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS, DescentSettings
from itkstream.numerics.matching.contexts import ContextWindow, sample_contexts
from itkstream.numerics.matching.keypoints import KeyPointSettings, find_key_points
from itkstream.numerics.matching.matches import MatchSettings, match
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.numerics.sampling.inverse import InverseProblem
from itkstream.numerics.sampling.mapping import GridMap
from itkstream.numerics.sampling.warping import WarpSettings, warp_mapped
from itkstream.numerics.threads import using_threads
from itkstream.transform import prepare_apply_local_affines

__all__ = ["ROUNDS", "SIZES", "TASKS", "Sizes", "run_speed"]

Row = dict[str, Any]
Report = Callable[[Row], None]

SPACING = (1.84, 1.84, 1.68)

ROUNDS = 5
"""Runs of each way that `time_inverse` compares."""


@dataclass(frozen=True)
class Sizes:
    """How large the images are.

    Parameters
    ----------
    limit : int, optional
        Most voxels per axis of the deformable block; the affine pair is then the small one.
    megavoxels : tuple of float
        Sizes of the scaling series.
    warp_side : int
        Voxels per axis of the resampled cube.
    stored : tuple of int
        Voxels of the stored pair that local affines are applied to.
    blocks_per_axis : int
        Of the graph.
    """

    limit: int | None = None
    megavoxels: tuple[float, ...] = (1, 2, 4, 8)
    warp_side: int = 256
    stored: tuple[int, int, int] = (913, 483, 298)
    blocks_per_axis: int = 20


SIZES = {
    "tiny": Sizes(40, (0.05, 0.1), 40, (80, 64, 48), 3),
    "quick": Sizes(96, (0.5, 1, 2), 128, (300, 200, 100), 8),
    "full": Sizes(),
    "large": Sizes(megavoxels=(1, 2, 4, 8, 16, 32, 64)),
}


def time_affine(sizes: Sizes) -> list[Row]:
    """The global affine of the real pair (or of the tutorial's), with the tutorial's parameters.

    Parameters
    ----------
    sizes : Sizes
        Whether the small pair is used.

    Returns
    -------
    list of dict
        Inliers are the matches within 4 µm of the affine.
    """
    real, own = cases.TEXTURES
    path = own if sizes.limit or not real.exists() else real
    # The tutorial's radii fit the real pair; the nuclei of the project's own are smaller.
    radii = (6, 20) if path == real else (2, 8)
    pair = [_in_memory(open_image(p)) for p in (path, path.parents[1] / "mov.n5" / "lowres")]

    def align(fixed: Image, moving: Image) -> NDArray[np.float64]:
        return ransac_affine(fixed, moving, None, None, *radii, 0.75, align_threshold=4.0)

    with contextlib.suppress(ItkstreamError):  # a corner need not align: it compiles the code
        align(*(_in_memory(image[(slice(0, 64),) * 3]) for image in pair))
    matrix, measured = processes.timed(lambda: align(*pair))
    residuals = _residuals(matrix, *pair, radii)
    facts = {
        "matches": len(residuals),
        "inliers_within_4_um": int(np.count_nonzero(residuals <= 4.0)),
        "median_inlier_residual_um": float(np.median(residuals[residuals <= 4.0])),
        "same_twice": bool(np.array_equal(matrix, align(*pair))),
        "voxels": pair[0].grid.size,
    }
    return [{"variant": path.parents[1].name} | measured | facts]


def time_deform(sizes: Sizes) -> list[Row]:
    """One deformable block: the tutorial's setting and the pipeline's.

    Parameters
    ----------
    sizes : Sizes
        Of the block.

    Returns
    -------
    list of dict
        With bytes per voxel beyond the two inputs.
    """
    pair = cases.make_pair(cases.CASES["block"], 101, sizes.limit)
    spacing = tuple(pair.spacing)
    variants = {
        "pipeline": PIPELINE_DEFAULTS.for_voxels(spacing),
        "20x10 r=12": DescentSettings(iterations=(20, 10)),
    }
    rows = []
    for name, settings in variants.items():
        _warm_up(settings)
        _, measured = processes.timed(
            lambda s=settings: deformable_align(
                pair.fixed, pair.moving, spacing, spacing, settings=s
            )
        )
        rows.append({"variant": name} | measured | _per_voxel(measured, pair.fixed.size))
    return rows


def time_scaling(sizes: Sizes) -> list[Row]:
    """The deformable engine from small to large at fixed iterations.

    Parameters
    ----------
    sizes : Sizes
        The series.

    Returns
    -------
    list of dict
        The last row has the exponents of time against voxels, of the clock and of the processors.
    """
    settings = evolve(PIPELINE_DEFAULTS.for_voxels(SPACING), tolerance=0.0)
    _warm_up(settings)
    rows: list[Row] = []
    for megavoxels in sizes.megavoxels:
        side = round((megavoxels * 1e6) ** (1 / 3))
        moving = _enlarged((side,) * 3)
        fixed = np.roll(moving, 1, axis=(0, 1, 2))
        _, measured = processes.timed(
            lambda f=fixed, m=moving: deformable_align(f, m, SPACING, SPACING, settings=settings)
        )
        row = {"variant": f"{side}^3"} | measured | _per_voxel(measured, side**3)
        rows.append(row | {"voxels": side**3})
    voxels = np.log([row["voxels"] for row in rows])
    exponents = {
        f"{clock}_exponent": float(np.polyfit(voxels, np.log([r[clock] for r in rows]), 1)[0])
        for clock in ("seconds", "cpu_seconds")
    }
    return [*rows, {"variant": "exponent"} | exponents]


def time_warp(sizes: Sizes) -> list[Row]:
    """Resampling through a displacement field: numba, ITK behind the same door, ITK alone.

    Parameters
    ----------
    sizes : Sizes
        Of the cube.

    Returns
    -------
    list of dict
        With megavoxels per second.
    """
    shape = (sizes.warp_side,) * 3
    grid = Grid(shape, SPACING)
    moving = Image(_enlarged(shape).astype(np.uint16), grid)
    vectors = _smooth_vectors(shape, 3.0)
    ways: dict[str, Callable[[], Any]] = {
        engine: lambda e=engine: apply_transform(
            moving, moving, DisplacementField(vectors, grid), WarpSettings(engine=e)
        )
        for engine in ("fast", "itk")
    }
    ways["SimpleITK.Resample"] = _plain_itk(moving, vectors, grid)
    ways["fast"]()
    rows, first = [], None
    for name, way in ways.items():
        result, measured = processes.timed(way)
        first = result if first is None else first
        facts = {
            "megavoxels_per_second": grid.size / 1e6 / measured["seconds"],
            "greatest_difference": int(np.abs(result.astype(int) - first.astype(int)).max()),
        }
        rows.append({"variant": name} | measured | facts)
    return rows


def time_inverse(sizes: Sizes) -> list[Row]:
    """The inverse of a displacement field beside one application of it, on one thread.

    An application is `apply_transform`, or only its resampling, where the field is given on the
    voxels wanted already; or SimpleITK's. The field is as strong as the demand on the inverse: up
    to 15 voxels, no Jacobian below 0.2. ``python tests/benchmarks/run.py speed --tasks inverse``.

    Parameters
    ----------
    sizes : Sizes
        Of the cube.

    Returns
    -------
    list of dict
        User time, the median of `ROUNDS` alternating runs, and its multiples: of the inverse in
        those of each application. The inverse has the error of ``T^-1(T(x)) - x`` in voxels, at
        points further from the border than the field reaches.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    grid = Grid((sizes.warp_side,) * 3, SPACING)
    vectors = _strong_vectors(grid)
    problem = InverseProblem(grid, grid, AffineTransform(np.eye(4)))
    ways: dict[str, Callable[[], Any]] = {
        "inverse": lambda: problem.solve_whole(vectors).displacement
    }
    for dtype in (np.uint16, np.float32):
        name, moving = np.dtype(dtype).name, Image(_enlarged(grid.shape).astype(dtype), grid)
        ways[f"apply_transform {name}"] = partial(
            apply_transform, moving, moving, DisplacementField(vectors, grid)
        )
        mapping = GridMap(grid, np.eye(4), vectors)
        ways[f"warp_mapped {name}"] = partial(warp_mapped, moving, mapping, WarpSettings())
        ways[f"SimpleITK.Resample {name}"] = _plain_itk(moving, vectors, grid)
    with using_threads(1):
        results = {name: way() for name, way in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                seconds[name].append(_user_seconds(way))
    median = {name: float(np.median(each)) for name, each in seconds.items()}
    rows = [
        {
            "variant": name,
            "cpu_seconds": each,
            "user_nanoseconds_per_voxel": 1e9 * each / grid.size,
            "inverse_takes_times": median["inverse"] / each,
        }
        for name, each in median.items()
    ]
    rows[0] |= _inverse_errors(vectors, results["inverse"], grid)
    return rows


def time_out_of_core(sizes: Sizes) -> list[Row]:
    """A stored pair through local affines and through a stored field, from disk to disk.

    By workers of one core each, and by threads of this process, as without any argument. Beside it
    ``SimpleITK.Resample`` through the same field, with everything in memory and as many threads.
    ``python tests/benchmarks/run.py speed --tasks out-of-core``.

    Parameters
    ----------
    sizes : Sizes
        Of the pair.

    Returns
    -------
    list of dict
        One row each; the clock includes the start of the workers. Workers' memory is that of the
        greatest process so far.
    """
    spacing = tuple(s / 2 for s in SPACING)
    blocksize = tuple(min(128, n) for n in sizes.stored)
    grid = Grid(sizes.stored, spacing)
    coarse = grid.shrink((2, 2, 2))
    shift = np.eye(4)
    shift[:3, 3] = 5.0
    voxels = _enlarged(sizes.stored).astype(np.uint16)
    vectors = _smooth_vectors(coarse.shape, 3.0)
    locals_ = _random_affines(block_grid(grid.shape, blocksize, 16).numblocks)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{{}}.zarr".format
        stored = zarr.create_array(path("image"), data=voxels, chunks=blocksize)
        field = zarr.create_array(path("field"), data=vectors, chunks=(64, 64, 64, 3))
        image = Image(stored, grid)
        ways = {
            "local affines": prepare_apply_local_affines(
                image, image, None, None, locals_, blocksize, shift, overlap=16
            ),
            "field": prepare_apply_transform(
                image, image, DisplacementField(field, coarse), blocksize
            ),
        }
        places: dict[str, int | None] = {"": processes.cores(), ", threads": None}
        for (name, lazy), (place, workers) in product(ways.items(), places.items()):
            one = None if workers is None else 1
            run = partial(execute, lazy, path(f"out {name}{place}"), workers, one)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            _, measured = processes.timed(run)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            facts = {"worker_mb": after.ru_maxrss / 1e3, "worker_cpu_seconds": busy}
            rows.append({"variant": name + place} | measured | facts)
    _, measured = processes.timed(_plain_itk(Image(voxels, grid), vectors, coarse))
    rows.append({"variant": "SimpleITK.Resample in memory, field"} | measured)
    return [
        row | {"megavoxels_per_second": grid.size / 1e6 / float(row["seconds"])} for row in rows
    ]


def time_graph(sizes: Sizes) -> list[Row]:
    """What dask costs per block before any voxel is read.

    Parameters
    ----------
    sizes : Sizes
        Number of blocks.

    Returns
    -------
    list of dict
        Milliseconds and tasks per block of preparing and optimising.
    """
    import dask

    shape = (64 * sizes.blocks_per_axis,) * 3
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        empty = zarr.create_array(
            str(Path(folder) / "empty.zarr"), shape=shape, chunks=(64,) * 3, dtype=np.uint16
        )
        image = Image(empty, Grid(shape, SPACING))
        identity = AffineTransform(np.eye(4))
        ways: dict[str, Callable[[], Any]] = {
            "apply transform": lambda: prepare_apply_transform(image, image, identity, (64,) * 3),
            "deformable": lambda: prepare_piecewise_deformable_align(
                image, image, None, None, (64,) * 3
            ),
        }
        for name, way in ways.items():
            (optimised,), measured = processes.timed(lambda w=way: dask.optimize(w()))
            facts = {
                "blocks": optimised.npartitions,
                "milliseconds_per_block": measured["seconds"] * 1e3 / optimised.npartitions,
                "tasks_per_block": len(dict(optimised.__dask_graph__())) / optimised.npartitions,
            }
            rows.append({"variant": name} | measured | facts)
    return rows


TASKS: dict[str, Callable[[Sizes], list[Row]]] = {
    "affine": time_affine,
    "deform": time_deform,
    "scaling": time_scaling,
    "warp": time_warp,
    "inverse": time_inverse,
    "out-of-core": time_out_of_core,
    "graph": time_graph,
}


def run_speed(
    tasks: Sequence[str] = (),
    size: str = "full",
    report: Report = lambda row: None,
    timeout: float = 3600.0,
) -> list[Row]:
    """Run tasks, each in a process of its own.

    Parameters
    ----------
    tasks : sequence of str
        Keys of `TASKS`; default all.
    size : str
        A key of `SIZES`.
    report : callable
        Told each row as it is there.
    timeout : float
        Seconds before a task is stopped.

    Returns
    -------
    list of dict
        ``task``, ``variant``, times, memory, facts; or ``error``.
    """
    rows = []
    for task in tasks or TASKS:
        result = processes.call(Path(__file__), [task, size], timeout)
        found = result.get("rows") or [{"variant": "", "error": result["error"]}]
        for row in found:
            rows.append({"task": task} | row)
            report(rows[-1])
    return rows


def _residuals(
    matrix: NDArray[np.float64], fixed: Image, moving: Image, radii: tuple[float, float]
) -> NDArray[np.float64]:
    """Distances, in micrometers, of all matches from an affine."""
    settings = KeyPointSettings.from_voxels(*radii, fixed.spacing)
    window = ContextWindow.from_voxels(12, fixed.spacing)
    contexts = []
    for image in (fixed, moving):
        found = find_key_points(image.read(), image.grid, settings)
        contexts.append(sample_contexts(image.read(), image.grid, found.positions, window))
    pairs = match(*contexts, MatchSettings(0.75))
    predicted = pairs.fixed_points @ matrix[:3, :3].T + matrix[:3, 3]
    return np.asarray(np.linalg.norm(pairs.moving_points - predicted, axis=1))


def _in_memory(image: Image) -> Image:
    return Image(image.read(), image.grid)


def _per_voxel(measured: dict[str, float], voxels: int) -> dict[str, float]:
    return {
        "bytes_per_voxel": measured["extra_mb"] * 1e6 / voxels,
        "megavoxels_per_second": voxels / 1e6 / measured["seconds"],
    }


def _warm_up(settings: DescentSettings) -> None:
    small = _enlarged((32, 32, 32))
    deformable_align(small, np.roll(small, 1, 0), SPACING, SPACING, settings=settings)


def _enlarged(shape: Sequence[int]) -> NDArray[np.float32]:
    """The texture, mirrored on until it is large enough."""
    texture, _, _ = cases.load_texture()
    middle = tuple(
        slice((n - min(n, m)) // 2, None) for n, m in zip(texture.shape, shape, strict=True)
    )
    part = texture[middle][tuple(slice(0, m) for m in shape)]
    width = [(0, m - n) for n, m in zip(part.shape, shape, strict=True)]
    return np.ascontiguousarray(np.pad(part, width, mode="symmetric"))


def _smooth_vectors(shape: tuple[int, ...], longest: float) -> NDArray[np.float32]:
    coarse = np.random.default_rng(0).uniform(-longest, longest, (3, 6, 6, 6))
    zoom = [n / 6 for n in shape]
    parts = [ndimage.zoom(c, zoom, order=1, grid_mode=True, mode="nearest") for c in coarse]
    return np.stack(parts, -1).astype(np.float32)


def _strong_vectors(grid: Grid) -> NDArray[np.float32]:
    """Random and smooth: as strong as 15 voxels and a least Jacobian of 0.2 allow."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, *grid.shape)).astype(np.float32)
    parts = [ndimage.gaussian_filter(c, 12.0, truncate=3.0) for c in noise]
    vectors = np.stack(parts, -1)
    vectors *= 15 / np.abs(vectors).max() * np.asarray(grid.spacing, np.float32)
    while jacobian_determinant(vectors, grid).min() < 0.2:
        vectors *= np.float32(0.95)
    return vectors


def _inverse_errors(
    vectors: NDArray[np.float32], inverse: NDArray[np.float32], grid: Grid
) -> dict[str, float]:
    reach = np.abs(vectors / np.asarray(grid.spacing)).max() + 1
    last = np.array(grid.shape) - 1
    points = np.random.default_rng(1).uniform(0, 1, (20_000, 3)) * (last - 2 * reach) + reach
    start = grid.to_physical(points)
    there = DisplacementField(vectors, grid).apply(start)
    back = grid.to_index(DisplacementField(inverse, grid).apply(there))
    off = np.linalg.norm(back - points, axis=1)
    return {
        "amplitude_vox": float(reach - 1),
        "least_jacobian": float(jacobian_determinant(vectors, grid).min()),
        "median_error_vox": float(np.median(off)),
        "greatest_error_vox": float(off.max()),
    }


def _user_seconds(way: Callable[[], Any]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    way()
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime - before


def _random_affines(blocks: Sequence[int]) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    matrices = np.tile(np.eye(4), (*blocks, 1, 1))
    matrices[..., :3, :3] += rng.normal(0, 0.005, (*blocks, 3, 3))
    matrices[..., :3, 3] += rng.normal(0, 1.0, (*blocks, 3))
    return matrices


def _plain_itk(
    moving: Image, vectors: NDArray[np.float32], where: Grid
) -> Callable[[], NDArray[Any]]:
    image = to_itk_image(moving.read(), moving.grid)
    transform = to_itk_transform(DisplacementField(vectors, where), moving.grid.axes)
    return lambda: sitk.GetArrayFromImage(sitk.Resample(image, transform, sitk.sitkLinear)).T


def _main(task: str, size: str, out: Path) -> None:
    start = time.perf_counter()
    rows = TASKS[task](SIZES[size])
    out.write_text(json.dumps({"rows": rows, "whole_seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
