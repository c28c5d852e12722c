"""Measure how long a served chunk takes, beside reading the images.

    python tests/benchmarks/serve.py [COUNT]

An image of 256 voxels an axis in memory, uint16, is served through a field whose nodes are 4 voxels
apart and an affine, on one thread; COUNT chunks of 64 voxels an axis, default 40, are asked for
over HTTP, each for the first time, then again, and those of the fixed image, which are only sent.
Times are of asking as well, in the same process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from itertools import islice, product
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console

from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.numerics.threads import using_threads
from itkstream.serving.serve import serve

__all__ = ["measure"]

_SIDE, _CHUNK, _NODES = 256, 64, 4


def measure(count: int = 40, side: int = _SIDE) -> dict[str, list[tuple[float, float]]]:
    """Ask for so many chunks: milliseconds of each on the clock, and of the processor."""
    moving, transform = _scene(side)
    found: dict[str, list[tuple[float, float]]] = {}
    with using_threads(1), serve(transform, moving, moving) as server:
        connection = HTTPConnection(urlsplit(server.address).netloc)
        _ask(connection, "aligned", "0/0/0")  # compiles what is not compiled
        for name, image in (("computed", "aligned"), ("kept", "aligned"), ("as it is", "fixed")):
            paths = islice(_paths(side), count)
            found[name] = [_ask(connection, image, path) for path in paths]
        connection.close()
    return found


def _scene(side: int) -> tuple[Image, CompositeTransform]:
    rng = np.random.default_rng(0)
    grid = Grid((side,) * 3, (1.0,) * 3, axes=("z", "y", "x"))
    nodes = grid.shrink((_NODES,) * 3)
    vectors = rng.normal(0, 1, (*nodes.shape, 3)).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3] += rng.normal(0, 0.02, (3, 3))
    image = Image(rng.integers(0, 4000, grid.shape, np.uint16), grid)
    return image, CompositeTransform((DisplacementField(vectors, nodes), AffineTransform(matrix)))


def _paths(side: int) -> Iterator[str]:
    """Every chunk but the first."""
    places = product(range(side // _CHUNK), repeat=3)
    return ("/".join(map(str, place)) for place in islice(places, 1, None))


def _ask(connection: HTTPConnection, image: str, path: str) -> tuple[float, float]:
    began = time.perf_counter(), time.process_time()
    connection.request("GET", f"/{image}.ome.zarr/0/c/{path}")
    found = connection.getresponse()
    body = found.read()
    done = time.perf_counter(), time.process_time()
    assert (found.status, len(body)) == (200, _CHUNK**3 * 2)
    return 1e3 * (done[0] - began[0]), 1e3 * (done[1] - began[1])


def main() -> None:
    """Print a line for each kind of chunk."""
    console = Console()
    for name, times in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 40).items():
        clock, cpu = np.median(times, axis=0)
        slow = np.percentile([t for t, _ in times], 90)
        told = f"{clock:.1f} ms, {cpu:.1f} ms of a processor; slowest tenth above {slow:.1f} ms"
        console.print(f"{name}: {told}", highlight=False)


if __name__ == "__main__":
    main()
