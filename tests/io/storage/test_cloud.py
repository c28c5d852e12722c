"""Images, results and whole runs in S3, on a real server: the same bits as on disk."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time

import dask.array as da
import fsspec
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import itkstream
from itkstream.apply.resampling import prepare_apply_transform
from itkstream.cli.app import commands
from itkstream.compute.execute import execute
from itkstream.compute.ledger import Ledger
from itkstream.compute.lock import Lock
from itkstream.compute.resume import BlockSink
from itkstream.errors import (
    BusyOutputError,
    ExistingOutputError,
    InputError,
    MissingDataError,
    OutputError,
)
from itkstream.geometry import AffineTransform, Grid
from itkstream.io import create_ome_zarr, open_image, write_n5, write_pyramid
from itkstream.io.images.stores.n5 import key_value_store
from itkstream.io.storage.chunk_files import ChunkFiles, location_of
from itkstream.io.storage.disk import LEDGER_FOLDER
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_file, claim_folder, claim_store
from itkstream.io.transforms.files import write_transform
from itkstream.pipelines import register
from itkstream.registration.steps import Deformable, RansacAffine, RegisterSettings
from itkstream.workers import Resources

GRID = Grid((20, 15, 12), (1.0, 1.5, 2.0), (3.0, -2.0, 1.0), axes=("z", "y", "x"))
N5_GRID = Grid(GRID.shape, GRID.spacing)
# Several blocks of everything, few seconds.
STEPS = (
    RansacAffine(match_threshold=0.5, cc_radius=8, radii=((2.0, 6.0),)),
    Deformable(blocksize=32),
)
SETTINGS = RegisterSettings(coarse_voxels=30_000, blocksize=32, error_map=False, report=False)


@pytest.fixture(scope="module")
def voxels():
    return np.random.default_rng(0).integers(0, 60000, GRID.shape).astype(np.uint16)


def save_n5(place, voxels):
    write_n5(place, "a/s0", voxels, N5_GRID, chunks=(8, 8, 8))


def save_ome_zarr(place, voxels, version="0.5"):
    create_ome_zarr(place, GRID, voxels.dtype, chunks=(8, 8, 8), version=version)[:] = voxels
    write_pyramid(place)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_is_written_and_read(bucket, voxels, version):
    place = f"{bucket}/deep/a.ome.zarr"
    save_ome_zarr(place, voxels, version)
    for path in (place, f"{place}/0"):
        image = open_image(path)
        assert image.grid == GRID
        np.testing.assert_array_equal(image.read(), voxels)
    np.testing.assert_array_equal(open_image(place).data[3:9, 2:3, :], voxels[3:9, 2:3])


def test_the_pyramid_is_the_one_on_disk(bucket, tmp_path):
    # Longer than the 256 voxels of which a coarser level is made.
    grid = Grid((2, 2, 300), (1.0, 1.0, 1.0), axes=("z", "y", "x"))
    values = np.random.default_rng(1).random(grid.shape).astype(np.float32)
    for place in (f"{bucket}/a.zarr", tmp_path / "a.zarr"):
        create_ome_zarr(place, grid, values.dtype, chunks=(2, 2, 64))[:] = values
        write_pyramid(place)
    far, near = (open_image(p, level=1) for p in (f"{bucket}/a.zarr", tmp_path / "a.zarr"))
    assert far.grid == near.grid
    np.testing.assert_array_equal(far.read(), near.read())


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_zarr_arrays_and_groups_are_read(bucket, voxels, zarr_format):
    root = Location.parse(bucket) / "all.zarr"
    group = zarr.create_group(root.store(), zarr_format=zarr_format)
    array = group.create_array("one", data=voxels, chunks=(8, 8, 8))
    array.attrs["spacing"] = [1.0, 1.5, 2.0]
    image = open_image(f"{root}/one")
    assert image.spacing == (1.0, 1.5, 2.0)
    np.testing.assert_array_equal(image.read(), voxels)
    with pytest.raises(MissingDataError, match=r"datasets in s3.*all.zarr: one\."):
        open_image(str(root))
    with pytest.raises(MissingDataError, match=r"datasets in s3.*all.zarr: one\."):
        open_image(f"{root}/two")


def test_n5_is_written_and_read(bucket, voxels):
    place = f"{bucket}/deep/a.n5"
    save_n5(place, voxels)
    for path, dataset in ((place, "a/s0"), (f"{place}/a/s0", None), (f"{place}/a", None)):
        image = open_image(path, dataset=dataset)
        assert image.grid == N5_GRID
        np.testing.assert_array_equal(image.read(), voxels)
    with pytest.raises(MissingDataError, match=r"datasets in s3.*: a/s0\."):
        open_image(place)


def test_anonymous_access_reads_zarr_and_n5(bucket, voxels, monkeypatch):
    save_n5(f"{bucket}/a.n5", voxels)
    save_ome_zarr(f"{bucket}/a.zarr", voxels)
    store = Location.parse(bucket).filesystem
    for key in store.find(bucket):
        store.chmod(key, "public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # What the environment variable FSSPEC_S3_ANON sets; it is read when fsspec is imported.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": "true"})
    # tensorstore would also look for credentials, find none and then be anonymous.
    assert key_value_store(Location.parse(bucket))["aws_credentials"] == {"type": "anonymous"}
    for path in (f"{bucket}/a.n5/a/s0", f"{bucket}/a.zarr"):
        np.testing.assert_array_equal(open_image(path).read(), voxels)


def test_n5_says_which_credentials_it_takes(bucket, voxels, monkeypatch):
    save_n5(f"{bucket}/a.n5", voxels)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "tester", "secret": "secret"})
    with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID"):
        open_image(f"{bucket}/a.n5/a/s0")


def test_files_that_only_itk_reads_are_to_be_copied(bucket):
    (Location.parse(bucket) / "a.nii.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.nii\.gz must be on this machine; copy it"):
        open_image(f"{bucket}/a.nii.gz")


def test_what_is_not_there_is_named(bucket):
    (Location.parse(bucket) / "here/a.txt").write_bytes(b"x")
    with pytest.raises(MissingDataError, match=r"last folder on the way that does is s3.*here\."):
        open_image(f"{bucket}/here/there/a.zarr")
    with pytest.raises(MissingDataError, match="no bucket of that name"):
        open_image("s3://nobody-made-this/a.zarr")
    with pytest.raises(InputError, match="no image this package reads"):
        open_image(f"{bucket}/here/a.txt")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, 2])
def test_execute_writes_the_same_bits_as_on_disk(bucket, tmp_path, voxels, workers):
    save_ome_zarr(f"{bucket}/a.zarr", voxels)
    save_ome_zarr(tmp_path / "a.zarr", voxels)
    turn = np.eye(4)
    turn[:3, 3] = 0.4, 0.3, -0.7

    def turned(place):
        image = open_image(f"{place}/a.zarr")
        return prepare_apply_transform(image, image, AffineTransform(turn), (10, 8, 12))

    near = execute(turned(tmp_path), tmp_path / "out")
    far = execute(turned(bucket), f"{bucket}/out", n_workers=workers)
    np.testing.assert_array_equal(far[:], near[:])
    again = zarr.open_array(Location.parse(f"{bucket}/out").store(), mode="r")
    np.testing.assert_array_equal(again[:], near[:])


def test_the_name_of_a_graph_follows_what_is_stored(bucket, voxels):
    def name():
        image = open_image(f"{bucket}/a.zarr")
        return prepare_apply_transform(image, image, AffineTransform(np.eye(4)), (8, 8, 8)).name

    save_ome_zarr(f"{bucket}/a.zarr", voxels)
    before = name()
    assert name() == before
    level = Location.parse(f"{bucket}/a.zarr/0")
    zarr.open_array(level.store(), mode="r+")[:8, :8, :8] = 7
    assert name() != before


def test_results_are_replaced_only_when_asked(bucket):
    ones = da.ones((4, 4), chunks=(2, 2))
    execute(ones, f"{bucket}/out")
    with pytest.raises(ExistingOutputError, match="overwrite=True"):
        execute(ones + 1, f"{bucket}/out")
    assert execute(ones + 1, f"{bucket}/out", overwrite=True)[:].sum() == 32


def test_what_is_not_ours_is_never_replaced(bucket):
    root = Location.parse(bucket)
    (root / "mine/notes.txt").write_bytes(b"mine")
    zarr.create_group((root / "many").store()).create_group("inner")
    for name in ("mine", "mine/notes.txt", "many"):
        with pytest.raises(ExistingOutputError, match="never replaced"):
            claim_store(root / name, True)
        with pytest.raises(ExistingOutputError, match="never replaced"):
            claim_folder(root / name, "registration.json", True)
    with pytest.raises(ExistingOutputError, match="overwrite"), claim_file(root / "mine", False):
        pass
    assert (root / "mine").names() == ["notes.txt"]
    assert (root / "many").names() == ["inner", "zarr.json"]


def test_a_bucket_that_is_not_there_is_not_written_to(s3_server):
    with pytest.raises(MissingDataError, match="no bucket nobody-made-this"):
        execute(da.ones((2, 2)), "s3://nobody-made-this/out")


_SLOW_RUN = """
import sys, time
import dask.array as da
from itkstream.cli.app import commands
from itkstream.cluster import execute
from itkstream.io.storage.chunk_files import ChunkFiles, location_of
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import ZarrArray

def slow(block):
    time.sleep(0.05)
    return block * 2.5

source = ZarrArray.open(Location.parse(sys.argv[1]))
array = da.from_array(source, chunks=(8, 8, 8), name="read")
execute(array.map_blocks(slow, name="slow"), sys.argv[2], threads_per_worker=2)
"""


@pytest.mark.slow
def test_a_killed_run_continues_there(bucket):
    """SIGKILL twice, each time when more blocks are there; the third run ends it."""
    values = np.random.default_rng(0).random((48, 24, 24)).astype(np.float32)
    place, out = (Location.parse(bucket) / name for name in ("in", "out"))
    zarr.create_array(place.store(), data=values, chunks=(8, 8, 8))

    def written():
        return {k for k in out.filesystem.find(str(out), detail=False) if "/out/c/" in k}

    for enough in (8, 30):
        run = subprocess.Popen([sys.executable, "-c", _SLOW_RUN, str(place), str(out)])
        while run.poll() is None and len(written()) < enough:
            time.sleep(0.05)
        assert run.poll() is None, "the run ended before it could be killed"
        run.kill()
        run.wait()
    kept = {key: out.filesystem.info(key)["LastModified"] for key in written()}
    done = subprocess.run([sys.executable, "-c", _SLOW_RUN, str(place), str(out)], timeout=120)
    assert done.returncode == 0
    result = zarr.open_array(out.store(), mode="r")[:]
    np.testing.assert_array_equal(result, values * np.float32(2.5))
    again = [k for k, when in kept.items() if out.filesystem.info(k)["LastModified"] != when]
    # What was written within the last second before a kill may not stand in the ledger yet.
    assert len(again) < len(kept)


@pytest.fixture(scope="module")
def on_disk(pair, tmp_path_factory):
    return register(
        pair.fixed, pair.moving, tmp_path_factory.mktemp("run") / "out", STEPS, SETTINGS
    )


@pytest.fixture(scope="module")
def in_s3(pair, s3_server):
    """The same registration with images and results in S3, by two worker processes."""
    root = Location.parse("s3://a-whole-registration")
    root.filesystem.mkdir("a-whole-registration")
    chunks = (32, 32, 32)
    write_n5(f"{root}/fix.n5", "s0", pair.fixed.data, pair.fixed.grid, chunks=chunks)
    moving = create_ome_zarr(f"{root}/mov.zarr", pair.moving.grid, pair.moving.dtype, chunks=chunks)
    moving[:] = pair.moving.read()
    fixed, out = f"{root}/fix.n5/s0", f"{root}/runs/1"
    return register(fixed, f"{root}/mov.zarr", out, STEPS, SETTINGS, resources=Resources(2))


@pytest.mark.slow
def test_a_registration_is_the_same_as_on_disk(on_disk, in_s3):
    assert str(in_s3.out) == "s3://a-whole-registration/runs/1"
    # On disk, the folder of the lock outlives it.
    assert set(in_s3.out.names()) == set(on_disk.out.names()) - {LEDGER_FOLDER}
    fields = [np.asarray(run.transform.transforms[0].data) for run in (on_disk, in_s3)]
    np.testing.assert_array_equal(*fields)
    matrices = [run.transform.transforms[1].matrix for run in (on_disk, in_s3)]
    np.testing.assert_array_equal(*matrices)
    np.testing.assert_array_equal(on_disk.aligned.read(), in_s3.aligned.read())
    assert on_disk.aligned.grid == in_s3.aligned.grid
    for name in ("itk/affine.tfm", "itk/composite.h5", "registration.json"):
        assert (in_s3.out / name).is_file()
    assert (in_s3.out / "itk/affine.tfm").read_bytes() == (
        on_disk.out / "itk/affine.tfm"
    ).read_bytes()
    report = json.loads((in_s3.out / "registration.json").read_bytes())
    assert report["fixed"]["name"] == "s3://a-whole-registration/fix.n5/s0"


@pytest.mark.slow
def test_an_earlier_registration_is_not_lost(pair, in_s3):
    before = (in_s3.out / "registration.json").read_bytes()
    with pytest.raises(ExistingOutputError, match="earlier run"):
        register(pair.fixed, pair.moving, in_s3.out, STEPS, SETTINGS)
    assert (in_s3.out / "registration.json").read_bytes() == before


@pytest.mark.slow
def test_transforms_are_read_from_there_and_written_there(in_s3, bucket, tmp_path):
    transform = itkstream.read_transform(str(in_s3.out))
    points = np.array([[20.0, 20.0, 20.0], [30.0, 10.0, 25.0]])
    write_transform(f"{bucket}/t.h5", transform)
    local = tmp_path / "t.h5"
    local.write_bytes((Location.parse(bucket) / "t.h5").read_bytes())
    again = itkstream.read_transform(local, transform.axes)
    np.testing.assert_allclose(again.apply(points), transform.apply(points), rtol=1e-12)
    with pytest.raises(InputError, match=r"t\.h5 must be on this machine; copy it"):
        itkstream.read_transform(f"{bucket}/t.h5")
    with pytest.raises(ExistingOutputError):
        write_transform(f"{bucket}/t.h5", transform)
    with pytest.raises(MissingDataError, match="no transform s3"):
        itkstream.read_transform(f"{bucket}/nothing")


@pytest.mark.parametrize(
    ("words", "unset", "says"),
    [
        (["check", "s3://nobody-made-this/run"], (), "no transform s3://nobody-made-this/run"),
        (["check", "s3://a/run"], ("AWS_ACCESS_KEY_ID",), "credentials"),
        (["register", "ftp://a/b.n5", "b.n5", "--out", "c"], (), "not read; known are s3"),
    ],
)
def test_the_command_line_ends_with_one_line(s3_server, command, monkeypatch, words, unset, says):
    if unset:
        # This process has its connections, with their credentials.
        for name in unset:
            monkeypatch.delenv(name)
        call = [sys.executable, "-m", "itkstream", *words]
        done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    else:
        done = command(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_another_computation_does_not_take_a_place(bucket):
    array = da.from_array(np.arange(8), chunks=4)
    execute(array, f"{bucket}/a")
    execute(array, f"{bucket}/a")
    with pytest.raises(ExistingOutputError, match="other inputs, parameters or code"):
        execute(array + 1, f"{bucket}/a")
    execute(array + 1, f"{bucket}/a", overwrite=True)
    ledger = Ledger(Location.parse(f"{bucket}/a"))
    lock = Lock(ledger.lock_place, ledger.array)
    with pytest.raises(BusyOutputError, match="is writing to s3://"):
        execute(array + 1, f"{bucket}/a")
    lock.release()


@pytest.mark.nightly
def test_every_command_takes_places_there(in_s3, bucket):
    run = str(in_s3.out)
    images = [f"s3://a-whole-registration/{name}" for name in ("fix.n5/s0", "mov.zarr")]
    (Location.parse(bucket) / "cells.csv").write_bytes(b"x,y,z\n20,20,20\n30,25,20\n")
    bundle = ("--fixed", images[0], "--moving", images[1])
    calls = (
        ("plan", *images, "--probe", "1"),
        ("apply", run, images[1], f"{bucket}/warped.ome.zarr", "--like", images[0]),
        ("points", run, f"{bucket}/cells.csv", "--out", f"{bucket}/moved.csv"),
        ("export", run, f"{bucket}/field.nrrd"),
        ("export", run, f"{bucket}/again.ome.zarr"),
        ("export", run, "--slicer", f"{bucket}/slicer", *bundle),
        ("export", run, "--ants", f"{bucket}/ants"),
        ("invert", run, f"{bucket}/inverse.ome.zarr"),
        ("repair", run, f"{bucket}/repaired.ome.zarr"),
        ("check", run),
    )
    for words in calls:
        done = CliRunner().invoke(commands, words)
        assert done.exit_code == 0, (words, done.output, done.exception)
    root = Location.parse(bucket)
    # Stored in the order z, y, x; the registered one as the fixed image is.
    warped = open_image(f"{bucket}/warped.ome.zarr").read()
    np.testing.assert_array_equal(warped.T, in_s3.aligned.read())
    moved = np.loadtxt(io.BytesIO((root / "moved.csv").read_bytes()), delimiter=",", skiprows=1)
    points = np.array([[20.0, 20.0, 20.0], [20.0, 25.0, 30.0]])
    expected = itkstream.read_transform(run, ("z", "y", "x")).apply(points)[:, ::-1]
    # Six digits after the point are written at least.
    np.testing.assert_allclose(moved[:, :3], expected, atol=1e-6)
    names = {"fixed.nrrd", "moving.nrrd", "transform.h5", "READ ME.txt"}
    assert names <= set((root / "slicer").names())


def test_a_network_that_is_gone_stops_a_run_at_once(s3_server, bucket, tmp_path):
    far = fsspec.filesystem(
        "s3", endpoint_url="http://127.0.0.1:9", config_kwargs={"retries": {"max_attempts": 1}}
    )
    far.retries = 1

    class Unreachable(Location):
        filesystem = far

    array = zarr.create_array(str(tmp_path / "a"), shape=(4,), chunks=(4,), dtype=float)
    sink = BlockSink(ChunkFiles(location_of(array)), Unreachable(f"{bucket}/lock.json"), "mine")
    # An error of the output stops all blocks; one of the block would let the others try as well.
    with pytest.raises(OutputError, match="cannot be reached"):
        sink((slice(0, 4),), np.ones(4))
