"""What several tests share: a small phantom pair, odd grids, one image in every container."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import settings
from scipy.spatial.transform import Rotation

from itkstream.cli.app import main
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    default_axes,
)
from itkstream.io import open_image, write_n5
from itkstream.io.storage.locations import Location
from itkstream.numerics.gpu import engine
from itkstream.numerics.gpu.backend import find_backend
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair

# The machine is shared: a slow example says nothing about the code.
settings.register_profile("itkstream", deadline=None, max_examples=40)
settings.load_profile("itkstream")

# A shell that runs the tests in its background has Ctrl-C ignored, and processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CONTAINERS = ("numpy", "dask", "zarr", "n5")


GPU_STAND_IN = str(Path(__file__).parent / "numerics" / "gpu" / "stand_in")


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Give this process, and those it starts, so many GPUs that are none.

    They are seen through a CuPy that is none, which has further variables.
    """

    def change(count: int, **variables: str) -> None:
        monkeypatch.syspath_prepend(GPU_STAND_IN)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in {"STAND_IN_GPUS": str(count), **variables}.items():
            monkeypatch.setenv(name, value)
        find_backend.cache_clear()

    monkeypatch.setattr(engine, "_broken", set())
    yield change
    sys.modules.pop("cupy", None)
    find_backend.cache_clear()


@pytest.fixture(scope="session")
def pair() -> PhantomPair:
    """64 x 56 x 48 voxels of nuclei, moved by a gentle affine and a smooth warp of 2 µm."""
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.03, warp_um=2)
    return make_pair(
        PhantomSettings((64, 56, 48), (1.0, 1.0, 1.2), 3, radii_um=(2.5, 5.0), motion=motion)
    )


@pytest.fixture(scope="session")
def odd_grid() -> Callable[..., Grid]:
    """Anisotropic, rotated, away from the origin; the axes in any order."""

    def make(
        seed: int = 0, ndim: int = 3, axes: tuple[str, ...] = (), shape: tuple[int, ...] = ()
    ) -> Grid:
        rng = np.random.default_rng(seed)
        turn = Rotation.from_euler("xyz", rng.uniform(-20, 20, 3), degrees=True).as_matrix()
        if ndim == 2:
            a = rng.uniform(-0.4, 0.4)
            turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        return Grid(
            shape or tuple(int(n) for n in rng.integers(14, 22, ndim)),
            tuple(rng.uniform(0.4, 2.0, ndim)),
            tuple(rng.uniform(-200, 200, ndim)),
            tuple(map(tuple, turn)),
            axes or default_axes(ndim),
        )

    return make


@pytest.fixture(scope="session")
def smooth_transform() -> Callable[..., CompositeTransform]:
    """A displacement field on a coarser grid, then an affine; most points stay inside."""

    def make(grid: Grid, seed: int = 0, factor: int = 3) -> CompositeTransform:
        rng = np.random.default_rng(seed)
        coarse = grid.shrink((factor,) * grid.ndim)
        vectors = rng.normal(0, 0.8 * min(grid.spacing), (*coarse.shape, grid.ndim))
        matrix = np.eye(grid.ndim + 1)
        matrix[:-1, :-1] += rng.normal(0, 0.03, (grid.ndim, grid.ndim))
        centre = grid.to_physical((np.array(grid.shape) - 1) / 2)
        shift = rng.normal(0, min(grid.spacing), grid.ndim)
        matrix[:-1, -1] = centre + shift - matrix[:-1, :-1] @ centre
        field = DisplacementField(vectors.astype(np.float32), coarse)
        return CompositeTransform((field, AffineTransform(matrix)))

    return make


@pytest.fixture(scope="session")
def command() -> Callable[..., SimpleNamespace]:
    """The command line in this process: a new one takes seconds to import everything."""

    def run(*words: object, cwd: Path | str = ".") -> SimpleNamespace:
        before = signal.getsignal(signal.SIGTERM)
        out, err, code = io.StringIO(), io.StringIO(), 0
        argv = ["itkstream", *map(str, words)]
        with (
            contextlib.chdir(cwd),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "argv", argv)
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                signal.signal(signal.SIGTERM, before)
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    return run


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[str, np.ndarray, Grid], Any]:
    """The same voxels in memory, as a dask array, in a Zarr array, or in an N5 container."""

    def put(container: str, voxels: np.ndarray, grid: Grid) -> Any:
        name = f"{container}-{len(list(tmp_path.iterdir()))}"
        if container == "dask":
            return da.from_array(voxels, chunks=13)
        if container == "zarr":
            return zarr.create_array(str(tmp_path / name), data=voxels, chunks=(16,) * voxels.ndim)
        if container == "n5":
            plain = Grid(voxels.shape, grid.spacing)
            write_n5(tmp_path / f"{name}.n5", "s0", voxels, plain, chunks=(16, 16, 16))
            return open_image(tmp_path / f"{name}.n5" / "s0").data
        return voxels

    return put


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3 server on this machine, which every process finds by its environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # No test may find the credentials of whoever runs it, nor ask the network for some.
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield endpoint
    server.stop()


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The URL of an empty bucket."""
    name = f"bucket-{uuid4().hex}"
    Location.parse(f"s3://{name}").filesystem.mkdir(name)
    return f"s3://{name}"
