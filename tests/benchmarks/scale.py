"""What many blocks cost before any voxel is read: tasks, time and memory of every graph.

Run as a program, ``python tests/benchmarks/scale.py 47``: 47 blocks of 32 voxels per axis, some
100,000, over Zarr arrays of which no chunk was ever written. Every graph is prepared, optimised
and ordered as a scheduler does it, in a process of its own; then blocks that do nothing are run,
on threads and by worker processes. One JSON line each.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from dask.order import order
from distributed import Client, LocalCluster
from numpy.typing import NDArray

from itkstream.affine import prepare_piecewise_ransac_affine
from itkstream.apply.folds import prepare_fold_count
from itkstream.apply.resampling import (
    prepare_apply_to_series,
    prepare_apply_transform,
    prepare_field,
)
from itkstream.blocks.graph import Result, map_blocks
from itkstream.deform import prepare_piecewise_deformable_align
from itkstream.estimate.deformation import prepare_displacement, prepare_positions
from itkstream.geometry import (
    AffineTransform,
    Block,
    BlockGrid,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
)
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.transform import (
    prepare_apply_local_affines,
    prepare_apply_position_field,
    prepare_invert,
    prepare_jacobian,
    prepare_sample,
)

SIDE = 32
SIZE = (SIDE,) * 3


def preparations(folder: Path, count: int) -> dict[str, Callable[[], da.Array]]:
    """Every prepare_ function for `count` blocks per axis, on stores without chunks.

    Parameters
    ----------
    folder : Path
        Where to make the stores.
    count : int
        Blocks per axis.

    Returns
    -------
    dict
        By name, functions that prepare.
    """
    grid = Grid((SIDE * count,) * 3, (1.0, 1.0, 1.0))
    voxels = _empty(folder / "image", grid.shape, np.uint16)
    vectors = _empty(folder / "field", (*grid.shape, 3), np.float32)
    image, field = Image(voxels, grid), DisplacementField(vectors, grid)
    still = AffineTransform(np.eye(4))
    locals_ = np.tile(np.eye(4), (count, count, count, 1, 1))
    chain = CompositeTransform((field, still))
    pair = (image, image, None, None)
    settings = DescentSettings()
    return {
        "prepare_piecewise_ransac_affine": lambda: prepare_piecewise_ransac_affine(
            *pair, 2, 4, 0.7, SIZE
        ),
        "prepare_piecewise_deformable_align": lambda: prepare_piecewise_deformable_align(
            *pair, SIZE, local_affines=locals_
        ),
        "prepare_displacement": lambda: prepare_displacement(
            image, image, still, SIZE, settings, factors=(2, 2, 2)
        ),
        "prepare_fold_count": lambda: prepare_fold_count(field, SIZE),
        "prepare_apply_local_affines": lambda: prepare_apply_local_affines(*pair, locals_, SIZE),
        "prepare_apply_position_field": lambda: prepare_apply_position_field(*pair, vectors, SIZE),
        "prepare_apply_transform": lambda: prepare_apply_transform(image, image, chain, SIZE),
        "prepare_apply_to_series": lambda: prepare_apply_to_series(
            image, [image, image], chain, SIZE
        ),
        "prepare_invert": lambda: prepare_invert(chain, grid, SIZE),
        "prepare_positions": lambda: prepare_positions(image, image, still, SIZE, settings),
        "prepare_field": lambda: prepare_field(chain, grid, SIZE),
        "prepare_jacobian": lambda: prepare_jacobian(chain, SIZE),
        "prepare_sample": lambda: prepare_sample(chain, grid, SIZE),
    }


def schedule(prepare: Callable[[], da.Array]) -> dict[str, float]:
    """Prepare a graph, optimise it and order its tasks.

    Parameters
    ----------
    prepare : callable
        From `preparations`.

    Returns
    -------
    dict
        Blocks, tasks per block, seconds and the processor's seconds, and the greatest memory this
        process had so far, in MB.
    """
    began, busy = time.perf_counter(), time.process_time()
    lazy = prepare()
    (optimised,) = dask.optimize(lazy)
    tasks = dict(optimised.__dask_graph__())
    order(tasks)
    blocks = max(1, lazy.npartitions)
    return {
        "tasks": len(tasks),
        "blocks": blocks,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - busy,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def overheads(count: int, workers: int = 2) -> dict[str, float]:
    """Milliseconds a block that does nothing takes on threads and by worker processes.

    Parameters
    ----------
    count : int
        Blocks per axis.
    workers : int
        Threads, and then worker processes of one thread.

    Returns
    -------
    dict
        Blocks, and milliseconds per block, preparation included.
    """
    blocks = BlockGrid((SIDE * count,) * 3, SIZE, (4, 4, 4))
    found: dict[str, float] = {"blocks": len(blocks)}

    def prepare() -> da.Array:
        return map_blocks(nothing, blocks, None, {}, Result(np.uint8, (), "block"))

    began = time.perf_counter()
    prepare().compute(scheduler="threads", num_workers=workers)
    found["threads_ms"] = (time.perf_counter() - began) * 1e3 / len(blocks)
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        # Workers import the package with their first task.
        map_blocks(nothing, BlockGrid(SIZE, (4,) * 3), None, {}, Result(np.uint8)).compute()
        began = time.perf_counter()
        prepare().compute()
        found["workers_ms"] = (time.perf_counter() - began) * 1e3 / len(blocks)
    return found


def nothing(_part: None, block: Block) -> NDArray[np.uint8]:
    """A block function that does nothing.

    Returns
    -------
    ndarray, one element
        0.
    """
    return np.zeros((1,) * len(block.core), np.uint8)


def _empty(path: Path, shape: tuple[int, ...], dtype: Any) -> zarr.Array[Any]:
    if path.exists():
        return zarr.open_array(str(path), mode="r")
    chunks = (SIDE,) * 3 + shape[3:]
    return zarr.create_array(str(path), shape=shape, chunks=chunks, dtype=dtype)


def _rows(count: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for name in preparations(Path(folder), count):
            command = [sys.executable, __file__, str(count), name, folder]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            yield {"graph": name} | json.loads(run.stdout)
        yield {"graph": "nothing"} | overheads(min(count, 16))


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 47
    if len(sys.argv) > 2:
        chosen = preparations(Path(sys.argv[3]), size)[sys.argv[2]]
        sys.stdout.write(json.dumps(schedule(chosen)))
    else:
        for row in _rows(size):
            sys.stdout.write(json.dumps(row) + "\n")
