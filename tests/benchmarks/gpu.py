"""Check and measure what a GPU computes: one line of JSON for each part, as soon as it is done.

    python tests/benchmarks/gpu.py [--side 512] [--stored 1024] [--operated 256]

Where there is no GPU that can be used, one line says why. Both engines compute the same block of
128^3 voxels, whose truth is a formula; the GPU repeats it; then it computes a cube of `--side`
voxels, which is that block many times, and one of `--stored` by blocks, from Zarr to Zarr, unless
that is 0. Then all else that it computes, see `gpu_operations`, on a cube of `--operated` voxels.
Seconds include the way of images to the card and of the field back, but for "seconds_on_card".
Freed memory is kept, as by all commands.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from gpu_operations import compare_operations
from gpu_profile import ClockedBackend
from numpy.typing import NDArray
from scipy import ndimage

from itkstream import open_image
from itkstream.cli.process import keep_freed_memory
from itkstream.compute.execute import execute
from itkstream.errors import DeviceError
from itkstream.estimate.deformation import prepare_displacement
from itkstream.geometry import AffineTransform, Grid
from itkstream.numerics.deformation.descent import Frame, descend
from itkstream.numerics.deformation.gpu.operations import DeviceOperations
from itkstream.numerics.deformation.operations import HOST, Operations
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.numerics.gpu import backend as backends
from itkstream.numerics.gpu.backend import Backend

TILE = 128
BLOCK = 256

Floats = NDArray[np.float32]


def bend(points: NDArray[Any]) -> NDArray[Any]:
    """A smooth displacement of up to three voxels that repeats with the tile."""
    turn = 2 * np.pi / TILE * points
    return np.stack([3 * np.sin(turn[(a + 1) % 3] + np.cos(turn[a]) + a) for a in range(3)])


@cache
def make_tile() -> tuple[Floats, Floats, NDArray[Any]]:
    """A fixed image, a moving one with other contrast and noise, and the truth between them.

    Returns
    -------
    fixed, moving : ndarray, (TILE, TILE, TILE), float32
        Both go on periodically.
    truth : ndarray, (TILE, TILE, TILE, 3)
        The displacement from fixed to moving points, voxels.
    """
    rng = np.random.default_rng(0)
    seeds = np.zeros((TILE,) * 3, np.float32)
    places = rng.integers(0, TILE, (3, TILE**3 // 1500))
    seeds[tuple(places)] = rng.uniform(0.3, 1.3, places.shape[1])
    clean = ndimage.gaussian_filter(seeds, 2.5, mode="wrap") * 3e4
    at = np.indices(clean.shape, float)
    warped = ndimage.map_coordinates(clean, at + bend(at), order=3, mode="grid-wrap")
    moved = np.zeros_like(at)
    for _ in range(12):
        moved = -bend(at + moved)
    fixed = rng.poisson(clean + 20)
    moving = rng.poisson(np.clip(warped, 0, None) ** 0.8 + 10)
    return fixed.astype(np.float32), moving.astype(np.float32), np.moveaxis(moved, 0, -1)


def tiled(tile: NDArray[Any], side: int) -> NDArray[Any]:
    """A cube of so many voxels made of copies of a tile."""
    times = -(-side // TILE)
    return np.tile(tile, (times,) * 3)[:side, :side, :side]


def find(images: Sequence[Floats], operations: Operations) -> tuple[Floats, float]:
    """Register two cubes with the pipeline's settings; the displacement and its seconds."""
    grid = Grid(images[0].shape, (1.0, 1.0, 1.0))
    settings = PIPELINE_DEFAULTS.for_voxels(grid.spacing)
    began = time.perf_counter()
    found = descend(*images, Frame(grid, grid, np.eye(4)), settings, operations=operations)
    return found.displacement, time.perf_counter() - began


def spread(vectors: NDArray[Any]) -> list[float]:
    """Median and 95th percentile of lengths, away from the border."""
    inner = vectors[12:-12, 12:-12, 12:-12]
    return [round(float(p), 4) for p in np.percentile(np.linalg.norm(inner, axis=-1), [50, 95])]


def compare(backend: Backend, side: int) -> dict[str, Any]:
    """Both engines on one block: errors, what is between them, repetition."""
    fixed, moving, truth = make_tile()
    images = tiled(fixed, side), tiled(moving, side)
    wanted = tiled(truth[..., 0], side), tiled(truth[..., 1], side), tiled(truth[..., 2], side)
    operations = DeviceOperations(backend)
    find(images, operations)  # compiles
    here, there, again = (find(images, o) for o in (HOST, operations, operations))
    return {
        "side": side,
        "error_cpu": spread(here[0] - np.stack(wanted, -1)),
        "error_gpu": spread(there[0] - np.stack(wanted, -1)),
        "between": spread(here[0] - there[0]),
        "repeats": there[0].tobytes() == again[0].tobytes(),
        "seconds_cpu": round(here[1], 3),
        "seconds_gpu": round(again[1], 3),
    }


def measure(backend: Backend, side: int) -> dict[str, Any]:
    """A large cube on the GPU: seconds, where they go, and bytes per voxel.

    In "seconds_on_card" images are there already, and the field stays.
    """
    fixed, moving, _ = make_tile()
    images = tiled(fixed, side), tiled(moving, side)
    backend.release()
    find(images, DeviceOperations(backend))
    pool = getattr(backend.xp, "get_default_memory_pool", None)
    held = pool().total_bytes() if pool is not None else 0
    _, seconds = find(images, DeviceOperations(backend))
    clocked = ClockedBackend(backend)
    _, clocked_seconds = find(images, DeviceOperations(clocked))
    on_card = seconds - clocked.seconds["put"] - clocked.seconds["get"]
    return {
        "side": side,
        "seconds": round(seconds, 3),
        "seconds_on_card": round(on_card, 3),
        "megavoxels_per_second": round(side**3 / 1e6 / on_card, 1),
        "bytes_per_voxel": round(held / side**3, 1),
        "calls_and_seconds": clocked.facts(clocked_seconds),
    }


def from_store_to_store(side: int) -> dict[str, Any]:
    """A large cube by blocks, from Zarr to Zarr, beside the time to read and write as much."""
    fixed, moving, _ = make_tile()
    with tempfile.TemporaryDirectory() as folder:
        images = []
        for name, tile in (("fixed", fixed), ("moving", moving)):
            path = Path(folder) / f"{name}.zarr"
            array = zarr.create_array(
                path, shape=(side,) * 3, chunks=(min(TILE, side),) * 3, dtype="uint16"
            )
            array[...] = tiled(tile.astype(np.uint16), side)
            images.append(open_image(path, voxel_spacing=1.0, axes="zyx"))
        began = time.perf_counter()
        read = [np.asarray(image.read()) for image in images]
        disk = time.perf_counter() - began
        del read
        lazy = prepare_displacement(
            *images,
            AffineTransform(np.eye(4)),
            (min(BLOCK, side),) * 3,
            PIPELINE_DEFAULTS.for_voxels((1.0, 1.0, 1.0)),
            factors=(4, 4, 4),
        )
        began = time.perf_counter()
        execute(lazy, Path(folder) / "field.zarr", engine="gpu")
        seconds = time.perf_counter() - began
    return {"side": side, "seconds": round(seconds, 2), "seconds_reading": round(disk, 2)}


def main(arguments: Sequence[str] | None = None, tell: Callable[[str], None] = print) -> None:
    """Run all parts, or say why none can be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--stored", type=int, default=1024)
    parser.add_argument("--compared", type=int, default=TILE)
    parser.add_argument("--operated", type=int, default=256)
    sides = parser.parse_args(arguments)
    try:
        backend = backends.find_backend()
        reason = "CuPy is not installed, or sees no GPU"
    except DeviceError as error:
        backend, reason = None, str(error)
    if backend is None:
        tell(f"no GPU was measured: {reason}")
        return
    tell(json.dumps({"device": backend.name}))
    tell(json.dumps({"compared": compare(backend, sides.compared)}))
    tell(json.dumps({"cube": measure(backend, sides.side)}))
    cube = [tiled(tile, sides.operated) for tile in make_tile()[:2]]
    for compared in compare_operations(*cube, points=min(5000, sides.operated**3 // 20)):
        tell(json.dumps(compared))
    if sides.stored:
        tell(json.dumps({"stored": from_store_to_store(sides.stored)}))


if __name__ == "__main__":
    keep_freed_memory()
    main()
