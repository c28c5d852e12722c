"""Images over HTTP: the voxels of `apply`, to readers that are not ours, and nothing else."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import fsspec
import ngff_zarr
import numpy as np
import pytest
import zarr
from serving_scene import GRID, Scene

from itkstream import write_resampled
from itkstream.apply.products import Series
from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.io import open_image, open_series
from itkstream.io.transforms.files import read_transform
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.serving.serve import ImageServer, serve


@pytest.fixture(scope="module")
def server(scene: Scene) -> Iterator[ImageServer]:
    with serve(scene.transform, open_image(scene.moving, channel=1), scene.fixed) as started:
        yield started


def ask(server: ImageServer, path: str, method: str = "GET", **headers: str) -> SimpleNamespace:
    connection = HTTPConnection(urlsplit(server.address).netloc, timeout=30)
    connection.request(method, path, headers=headers)
    found: HTTPResponse = connection.getresponse()
    told = {name.lower(): value for name, value in found.getheaders()}
    body = found.read()
    connection.close()
    return SimpleNamespace(status=found.status, body=body, headers=told)


def served(server: ImageServer, name: str, level: int = 0) -> np.ndarray:
    return zarr.open_group(f"{server.address}/{name}.ome.zarr", mode="r")[str(level)][...]


def test_the_aligned_image_is_what_apply_writes(server: ImageServer, scene: Scene) -> None:
    np.testing.assert_array_equal(served(server, "aligned"), open_image(scene.applied).read())


def test_the_fixed_image_is_served_as_it_is(server: ImageServer, scene: Scene) -> None:
    for level, image in enumerate(open_series(scene.fixed, "level")):
        np.testing.assert_array_equal(served(server, "fixed", level), image.read())


def test_coarser_levels_lie_where_those_of_a_file_lie(server: ImageServer, scene: Scene) -> None:
    told = json.loads(ask(server, "/aligned.ome.zarr/zarr.json").body)
    written = json.loads((scene.applied / "zarr.json").read_text())
    (ours,), (theirs,) = (t["attributes"]["ome"]["multiscales"] for t in (told, written))
    assert ours["datasets"] == theirs["datasets"]
    assert ours["axes"] == theirs["axes"]
    coarse = open_image(scene.applied, level=1).read().astype(float)
    found = served(server, "aligned", 1).astype(float)
    assert found.shape == coarse.shape
    inside = (
        np.minimum(coarse, found) > 1700
    )  # no voxel of the border, where background is mixed in
    # Both are smoothed by half a voxel or so, one before and the other after it was moved.
    assert np.corrcoef(found[inside], coarse[inside])[0, 1] > 0.97


@pytest.mark.parametrize("dtype", ["f8", "f4", "i2"])
@pytest.mark.parametrize("kind", ["field", "affine", "chain", "turned"])
def test_bits_are_those_of_apply_whatever_the_transform(
    kind: str, dtype: str, scene: Scene, tmp_path: Path, odd_grid
) -> None:
    """Floats show the last bit, in which blocks that begin elsewhere differ."""
    rng = np.random.default_rng(1)
    grid = Grid((8, 140, 139), (2.0, 1.1, 0.7), (1e3, -77.7, 3.3), axes=("z", "y", "x"))
    if kind == "turned":
        turned = odd_grid(3, axes=("z", "y", "x")).direction
        grid = Grid(grid.shape, grid.spacing, grid.origin, turned, grid.axes)
    nodes = grid.shrink((2, 5, 5))
    field = DisplacementField(rng.normal(0, 1, (*nodes.shape, 3)).astype("f4"), nodes)
    affine = AffineTransform(np.eye(4) + np.pad(rng.normal(0, 1e-3, (3, 3)), (0, 1)))
    chains = {"field": field, "affine": affine, "chain": CompositeTransform((affine, field))}
    transform = chains.get(kind, CompositeTransform((field, affine)))
    moving = Image((rng.random(grid.shape) * 999).astype(dtype), grid)
    fixed = Image(np.zeros(grid.shape, "u1"), grid)
    write_resampled(tmp_path / "a.zarr", moving, transform, grid, WarpSettings(background=None))
    with serve(transform, moving, fixed) as started:
        found = served(started, "aligned")
    want = zarr.open_group(tmp_path / "a.zarr", mode="r")["0"][...]
    assert len(np.unique(want)) > 100
    np.testing.assert_array_equal(found, want)


def test_labels_stay_labels_at_every_level(scene: Scene, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 7, 2**31 + 1], GRID.shape).astype("u4")
    moving, fixed = Image(labels, GRID), open_image(scene.fixed)
    transform = read_transform(scene.transform)
    settings = WarpSettings("nearest", background=None)
    write_resampled(tmp_path / "a.zarr", moving, transform, GRID, settings, labels=True)
    with serve(scene.transform, moving, fixed, labels=True) as started:
        found = [served(started, "aligned", level) for level in range(2)]
        assert '"type":"segmentation"' in unquote(started.link)
    np.testing.assert_array_equal(found[0], zarr.open_group(tmp_path / "a.zarr")["0"][...])
    assert set(np.unique(found[1])) == {0, 7, 2**31 + 1}


def test_channels_are_layers(scene: Scene) -> None:
    channels = tuple(open_series(scene.moving, "channel"))
    with serve(scene.transform, Series(channels, (("c", 2),)), scene.fixed) as started:
        assert [url.rpartition("/")[2] for url in started.urls] == [
            *("fixed.ome.zarr", "aligned-0.ome.zarr", "aligned-1.ome.zarr")
        ]
        second = served(started, "aligned-1")
    np.testing.assert_array_equal(second, open_image(scene.applied).read())


def test_planes_are_served(tmp_path: Path) -> None:
    grid = Grid((300, 40), (1.0, 2.0), axes=("y", "x"))
    image = Image(np.arange(300 * 40, dtype="u2").reshape(300, 40), grid)
    with serve(AffineTransform(np.eye(3)), image, image) as started:
        np.testing.assert_array_equal(served(started, "aligned"), image.data)
        assert served(started, "fixed", 1).shape == (150, 40)


def test_ngff_zarr_opens_it(server: ImageServer, scene: Scene) -> None:
    # Its own reader of addresses is an extra; files of any mapping it takes as they are.
    files = fsspec.get_mapper(f"{server.address}/aligned.ome.zarr")
    found = ngff_zarr.from_ngff_zarr(files, validate=True)
    assert found.images[0].scale == {"z": 2.0, "y": 1.0, "x": 0.75}
    assert found.images[0].translation == {"z": 5.0, "y": 30.0, "x": -10.0}
    np.testing.assert_array_equal(
        np.asarray(found.images[0].data[3]), open_image(scene.applied).data[3]
    )


def test_a_registration_is_served_with_its_error_map(registered: Path) -> None:
    with serve(registered) as started:
        assert [urlsplit(url).path for url in started.urls] == [
            *("/fixed.ome.zarr", "/aligned.ome.zarr", "/error.ome.zarr")
        ]
        for name in ("aligned", "error"):
            stored = zarr.open_group(registered / f"{name}.ome.zarr", mode="r")["0"][...]
            np.testing.assert_array_equal(served(started, name), stored)
        link = unquote(started.link)
    assert link.startswith("https://neuroglancer-demo.appspot.com/#!{")
    state = json.loads(link.partition("#!")[2])
    assert [layer["name"] for layer in state["layers"]] == ["fixed", "aligned", "error (µm)"]
    assert [layer.get("visible", True) for layer in state["layers"]] == [True, True, False]
    assert [re.search(r'"(#\w+)"', layer["shader"])[1] for layer in state["layers"]] == [
        *("#ff00ff", "#00ff00", "#ffffff")
    ]
    numbers = json.loads((registered / "report.json").read_text())["contrast"]["fixed"]
    assert f"range=[{round(numbers[0])}, {round(numbers[1])}]" in state["layers"][0]["shader"]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "", "/fixed.ome.zarr", "/fixed.ome.zarr/", "/zarr.json"),
        *("/../etc/passwd", "/fixed.ome.zarr/../../etc/passwd", "/fixed.ome.zarr/%2e%2e/zarr.json"),
        *("/fixed.ome.zarr/2/zarr.json", "/fixed.ome.zarr/00/zarr.json", "/fixed.ome.zarr/.zattrs"),
        *("/fixed.ome.zarr/0/c/0/0/5", "/fixed.ome.zarr/0/c/0/0", "/fixed.ome.zarr/0/c/0/0/-1"),
        *("/fixed.ome.zarr/0/c/0/0/00", "/fixed.ome.zarr/0/c/0/0/0/0", "/other.ome.zarr/zarr.json"),
        "/fixed.ome.zarr/0/c/0/0/" + "9" * 400,
    ],
)
def test_there_is_nothing_else(server: ImageServer, path: str) -> None:
    assert ask(server, path).status == 404


def test_nothing_can_be_written(server: ImageServer) -> None:
    for method in ("PUT", "POST", "DELETE", "OPTIONS", "PROPFIND"):
        found = ask(server, "/fixed.ome.zarr/zarr.json", method)
        assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")


def test_parts_and_lengths(server: ImageServer) -> None:
    path = "/aligned.ome.zarr/0/c/0/1/2"
    whole = ask(server, path)
    assert len(whole.body) == 64**3 * 2
    head = ask(server, path, "HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(64**3 * 2))
    part = ask(server, path, Range="bytes=1000-1999")
    assert (part.status, part.body) == (206, whole.body[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{64**3 * 2}"
    assert ask(server, path, Range="bytes=-10").body == whole.body[-10:]
    assert ask(server, path, Range=f"bytes={64**3 * 2}-").status == 416
    assert ask(server, path, Range="chunks=1-2").body == whole.body


def test_pages_of_others_may_not_read(server: ImageServer) -> None:
    path, header = "/fixed.ome.zarr/zarr.json", "access-control-allow-origin"
    assert header not in ask(server, path, Origin="https://example.org").headers
    found = ask(server, path, Origin="https://neuroglancer-demo.appspot.com")
    assert found.headers[header] == "https://neuroglancer-demo.appspot.com"
    # A name of somebody else that leads to this machine.
    assert ask(server, path, Host="example.org:80").status == 403
    assert ask(server, path, Host="localhost:1").status == 200
    assert ask(server, path, Host="[:").status == 403


class Counting:
    """A source that counts what is read of it, slowly, and fails where it is told to."""

    def __init__(self) -> None:
        self.shape, self.dtype, self.ndim = (4, 70, 70), np.dtype("u1"), 3
        self.read = 0
        self.go, self.fails = Event(), False

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        self.read += 1
        self.go.wait(5)
        if self.fails:
            raise OSError("the disk is gone")
        return np.ones(self.shape, self.dtype)[key]


@pytest.fixture
def slow() -> Iterator[tuple[Counting, ImageServer]]:
    source, grid = Counting(), Grid((4, 70, 70), (1.0, 1.0, 1.0), axes=("z", "y", "x"))
    source.go.set()
    plain = Image(np.ones(grid.shape, "u1"), grid)
    with serve(AffineTransform(np.eye(4)), Image(source, grid), plain, WarpSettings()) as started:
        source.read = 0
        yield source, started


def test_a_chunk_asked_for_twice_is_computed_once(slow: tuple[Counting, ImageServer]) -> None:
    source, started = slow
    source.go.clear()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, started, "/aligned.ome.zarr/0/c/0/0/0") for _ in range(4)]
        source.go.set()
        assert {done.result().status for done in asked} == {200}
    assert ask(started, "/aligned.ome.zarr/0/c/0/0/0").status == 200
    assert source.read == 1


def test_a_chunk_that_fails_does_not_end_the_server(slow: tuple[Counting, ImageServer]) -> None:
    source, started = slow
    source.fails = True
    found = ask(started, "/aligned.ome.zarr/0/c/0/0/1")
    assert (found.status, found.body) == (500, b"the disk is gone\n")
    source.fails = False
    assert ask(started, "/aligned.ome.zarr/0/c/0/0/1").status == 200


def test_no_more_is_kept_than_there_is_room_for(scene: Scene) -> None:
    image = open_image(scene.fixed)
    with serve(scene.transform, image, image, cache_bytes=100_000) as started:
        served(started, "fixed")
        assert 0 < started.kept_bytes <= 100_000


def test_a_port_that_is_taken_is_said(server: ImageServer, scene: Scene) -> None:
    image = open_image(scene.fixed)
    with pytest.raises(InputError, match="choose another port"):
        serve(scene.transform, image, image, port=urlsplit(server.address).port)


def test_a_transform_alone_is_no_image(scene: Scene) -> None:
    with pytest.raises(InputError, match="give a fixed image"):
        serve(scene.transform)
    with pytest.raises(InputError, match="which image it moves"):
        serve(scene.transform, fixed=scene.fixed)
    with pytest.raises(MissingDataError, match="nothing"):
        serve(scene.fixed.parent / "nothing.tfm", scene.fixed, scene.fixed)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_runs_until_it_is_stopped(stop: int, scene: Scene) -> None:
    words = ["serve", scene.transform, scene.moving, "--channel", "all", "--like", scene.fixed]
    program = subprocess.Popen(
        [sys.executable, "-m", "itkstream", *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    lines = [program.stdout.readline() for _ in range(6)]
    assert lines[0].startswith("open in the browser: https://neuroglancer-demo.appspot.com/#!")
    urls = [line.removeprefix("OME-Zarr: ").strip() for line in lines[1:4]]
    chunk = zarr.open_group(urls[2], mode="r")["0"][:, :64, :64]
    np.testing.assert_array_equal(chunk, open_image(scene.applied).data[:, :64, :64])
    program.send_signal(stop)
    rest, _ = program.communicate(timeout=20)
    assert (program.returncode, rest) == (0, "stopped\n")
