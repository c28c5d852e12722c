"""Images larger than memory, from disk to disk: memory of each worker, and what workers gain.

    python tests/benchmarks/out_of_core.py memory|workers [--side 1792] [--block 256] [--out FILE]

`memory` resamples a stored cube of `side` voxels per axis (1792: 5.8 gigavoxels) and one of an
eighth of its voxels through an affine and through a stored field, with two workers of 2 GB each,
and compares the greatest memory any worker has had. Most chunks of the cube are empty, and so are
cheap to make; every block is read, computed and written all the same. Let `side` be a multiple of
256: of a remainder, one of the cubes would have larger blocks. `workers` resamples a cube of `side`
voxels (take 768) with one worker of one core and with two, three times each in turn. Where the
machine has no third core, the scheduler and this process take their time from the two workers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import zarr
from processes import machine
from rich.console import Console
from scipy import ndimage

from itkstream.apply.resampling import prepare_apply_transform
from itkstream.compute.execute import execute
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.io import open_image

Row = dict[str, Any]

SPACING = (0.5, 0.5, 0.5)
CHUNK = 128
BLOCK = (128, 128, 128)
COARSE = 8
# Blocks by which every worker has done at least one.
_FIRST = 8
AFFINE = np.array(
    [[1.0, 0.02, 0.0, 3.0], [-0.02, 1.0, 0.01, -2.0], [0.0, -0.01, 1.0, 1.0], [0, 0, 0, 1]]
)


@dataclass
class PeakWatch:
    """The greatest resident memory of every process this one has started, while it is entered.

    Parameters
    ----------
    seconds : float
        Between two looks; the kernel keeps the high water mark, so a look misses no peak of a
        process that lives to the next one.
    """

    seconds: float = 0.1
    peaks: dict[int, int] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> PeakWatch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def greatest_mb(self) -> float:
        """Of all processes, in megabytes."""
        return max(self.peaks.values(), default=0) / 1e6

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(self.seconds):
            for child in me.children(recursive=True):
                # A process may end between the two calls.
                with contextlib.suppress(OSError, psutil.Error):
                    mark = _high_water(child.pid)
                    self.peaks[child.pid] = max(mark, self.peaks.get(child.pid, 0))


def _high_water(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    marks = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    # A process that has ended but was not yet asked for its code has none.
    return next(marks, 0)


@contextlib.contextmanager
def stored_pair(side: int) -> Iterator[tuple[Path, Image, DisplacementField]]:
    """A stored cube with texture in one chunk of eight, and a stored smooth field.

    Parameters
    ----------
    side : int
        Voxels per axis.

    Yields
    ------
    Path, Image, DisplacementField
        The folder; the image; the field, on a lattice of an eighth of the resolution.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = (side,) * 3
        path = folder / "moving.zarr"
        target = zarr.create_array(
            str(path), shape=shape, chunks=(min(CHUNK, side),) * 3, dtype=np.uint16, fill_value=0
        )
        rng = np.random.default_rng(0)
        noise = rng.normal(size=target.chunks).astype(np.float32)
        texture = 2000 + 8000 * ndimage.gaussian_filter(noise, 2.0, mode="wrap")
        starts = range(0, side, 2 * CHUNK)
        for corner in product(starts, repeat=3):
            lengths = [min(n, side - c) for n, c in zip(target.chunks, corner, strict=True)]
            cut = tuple(slice(c, c + n) for c, n in zip(corner, lengths, strict=True))
            target[cut] = texture[tuple(map(slice, lengths))].astype(np.uint16)
        image = open_image(path, voxel_spacing=SPACING)
        yield folder, image, _stored_field(folder / "field.zarr", image.grid)


def _stored_field(path: Path, grid: Grid) -> DisplacementField:
    coarse = grid.shrink((COARSE,) * 3)
    target = zarr.create_array(
        str(path), shape=(*coarse.shape, 3), chunks=(32, 32, 32, 3), dtype=np.float32
    )
    waves = [np.sin(np.linspace(0.0, 6.0, n)) for n in coarse.shape]
    plane = (waves[1][:, None] + waves[2])[..., None] * np.array([2.0, -1.5, 1.0])
    for i, wave in enumerate(waves[0]):
        target[i] = (plane * (1.0 + wave)).astype(np.float32)
    return DisplacementField(zarr.open_array(str(path), mode="r"), coarse)


def prepared(
    image: Image, moves: DisplacementField, block: tuple[int, ...] = BLOCK
) -> dict[str, da.Array]:
    """The two computations.

    Parameters
    ----------
    image : Image
        Fixed and moving.
    moves : DisplacementField
        In front of the affine.
    block : tuple of int
        Voxels of a block per axis.

    Returns
    -------
    dict of dask.array.Array
        By name.
    """
    affine = AffineTransform(AFFINE)
    size = tuple(min(b, n) for b, n in zip(block, image.shape, strict=True))
    ways = {"affine": affine, "field": CompositeTransform((moves, affine))}
    return {name: prepare_apply_transform(image, image, way, size) for name, way in ways.items()}


def measure_memory(side: int, report: Callable[[Row], None]) -> list[Row]:
    """Peak memory of a worker, for a cube and for one of eight times its voxels.

    Parameters
    ----------
    side : int
        Of the larger.
    report : callable
        Told every row.

    Returns
    -------
    list of dict
        With the ratio of the larger to the smaller.
    """
    rows: list[Row] = []
    for length in (side // 2, side):
        with stored_pair(length) as (folder, image, moves):
            for name, lazy in prepared(image, moves).items():
                row = {"transform": name, "voxels": image.grid.size}
                with PeakWatch() as watch:
                    row |= _run(lazy, folder / f"by-{name}.zarr", workers=2)
                row["worker_peak_mb"] = watch.greatest_mb
                small = [r for r in rows if r["transform"] == name]
                if small:
                    row["memory_ratio"] = row["worker_peak_mb"] / small[0]["worker_peak_mb"]
                report(row)
                rows.append(row)
    return rows


def measure_workers(
    side: int, report: Callable[[Row], None], block: int = BLOCK[0], repeats: int = 3
) -> list[Row]:
    """Seconds with one worker and with two.

    Parameters
    ----------
    side : int
        Of the cube.
    report : callable
        Told every row.
    block : int
        Voxels of a block per axis; the larger, the less the scheduler has to do.
    repeats : int
        Runs of each, in turn; the medians count.

    Returns
    -------
    list of dict
        With the ratio of one worker's median to two workers'.
    """
    rows: list[Row] = []
    with stored_pair(side) as (folder, image, moves):
        for name, lazy in prepared(image, moves, (block,) * 3).items():
            seconds: dict[int, list[float]] = {1: [], 2: []}
            for repeat, workers in product(range(repeats), seconds):
                row = _run(lazy, folder / f"by-{name}-{repeat}-{workers}.zarr", workers)
                seconds[workers].append(row["seconds"])
            one, two = (statistics.median(s) for s in seconds.values())
            rows.append({"transform": name, "one": one, "two": two, "gain": one / two})
            report(rows[-1])
    return rows


def _run(lazy: da.Array, path: Path, workers: int) -> Row:
    """Seconds after the first blocks: starting workers and loading libraries are not counted.

    Every worker has one core, so that two have twice as many as one.
    """
    ticks: list[float] = []
    execute(
        lazy,
        path,
        n_workers=workers,
        threads_per_worker=1,
        cores=workers,
        processes=workers,
        memory_limit="2GB",
        chunks=tuple(CHUNK if n >= CHUNK else n for n in lazy.chunksize),
        progress=lambda done, total: ticks.append(time.perf_counter()),
    )
    seconds = ticks[-1] - ticks[_FIRST]
    return {
        "workers": workers,
        "seconds": seconds,
        "megavoxels_per_second": lazy.size * (1 - _FIRST / lazy.npartitions) / 1e6 / seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two measurements, print its rows and write them.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("memory", "workers"))
    parser.add_argument("--side", type=int, default=1792)
    parser.add_argument("--block", type=int, default=BLOCK[0], help="for workers")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    report = partial(Console().print_json, indent=None)
    if options.task == "memory":
        rows = measure_memory(options.side, lambda row: report(data=row))
    else:
        rows = measure_workers(options.side, lambda row: report(data=row), options.block)
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
