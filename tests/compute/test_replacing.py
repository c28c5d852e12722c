"""What replaces a result is written beside it: who fails or is killed leaves the old one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

from itkstream.apply.bundles import export_ants, export_slicer
from itkstream.apply.products import Series, write_inverse, write_resampled
from itkstream.cli.demo import run_demo
from itkstream.compute.execute import execute
from itkstream.compute.ledger import Ledger
from itkstream.compute.lock import Lock
from itkstream.errors import (
    BlockErrors,
    BusyOutputError,
    ExistingOutputError,
    InputError,
    ItkstreamError,
    PlanError,
)
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.io import create_ome_zarr, open_image
from itkstream.io.images.files.itk_images import write_itk
from itkstream.io.storage.disk import partial_name, swap_in
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_file
from itkstream.io.transforms.files import read_transform, write_transform
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.overlay import save_overlay
from itkstream.phantoms import PhantomSettings, make_pair
from itkstream.pipelines import register
from itkstream.registration.folder import REPORT, RunFolder, registered_images
from itkstream.registration.steps import Deformable

HERE = Path(__file__).parent
GRID = Grid((16, 24, 20), (2.0, 1.0, 1.5), (5.0, -3.0, 2.0), axes=("z", "y", "x"))
VOXELS = np.random.default_rng(0).integers(1, 60000, GRID.shape).astype(np.uint16)
AFFINE = AffineTransform(np.eye(4), GRID.axes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Broken:
    """An array whose last rows cannot be read until it is mended."""

    def __init__(self, values: np.ndarray, row: int) -> None:
        self.values, self.row = values, row
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = key[0] if isinstance(key, tuple) else key
        if rows.stop is None or rows.stop > self.row:
            raise OSError("a disk that is broken")
        return self.values[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise OSError("a disk that is broken")


def field(of: float, broken: bool = False) -> CompositeTransform:
    vectors = np.full((*GRID.shape, 3), of, np.float32)
    data: Any = Broken(vectors, 8) if broken else vectors
    return CompositeTransform((DisplacementField(data, GRID), AFFINE))


def slow_runs(source: Path, out: Path, kills: int, seed: int) -> list[int]:
    words = [source, out, kills, seed, "overwrite"]
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_runs.py"), *map(str, words)],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return [int(number) for number in done.stdout.split()]


@pytest.mark.slow
def test_a_killed_run_leaves_the_old_result(tmp_path: Path) -> None:
    """Killed at random moments, a dozen times: the old values, until all the new ones are there."""
    values = np.random.default_rng(1).random((48, 48, 48), np.float32)
    zarr.create_array(str(tmp_path / "in.zarr"), data=values, chunks=(8, 8, 8))
    zarr.create_array(str(tmp_path / "out"), data=values, chunks=(16, 16, 16))
    # The program looks after each kill whether these are what is there.
    killed, code = slow_runs(tmp_path / "in.zarr", tmp_path / "out", 12, 3)
    assert code == 0
    assert killed >= 3
    assert zarr.open_array(str(tmp_path / "out"), mode="r").chunks == (4, 8, 8)
    assert names(tmp_path) == ["in.zarr", "out"]


def test_a_failed_run_leaves_the_old_result_and_is_continued(tmp_path: Path) -> None:
    seen: list[Any] = []

    def lazy(mended: bool) -> da.Array:
        def function(block: np.ndarray, block_info: Any = None) -> np.ndarray:
            seen.append(block_info[0]["chunk-location"])
            if seen[-1] == (1, 0) and not mended:
                raise ValueError("no")
            return block + 1

        ones = da.ones((8, 8), chunks=4)
        return ones.map_blocks(function, dtype=float, meta=np.ones((0, 0)), name="new")

    out = tmp_path / "a.zarr"
    execute(da.zeros((8, 8), chunks=4), out)
    with pytest.raises(BlockErrors):
        execute(lazy(False), out, overwrite=True)
    assert not zarr.open_array(str(out), mode="r")[:].any()
    assert names(tmp_path) == [".draft-a.zarr", "a.zarr"]
    # Neither another run that may not overwrite, nor the old one, changes any of this.
    with pytest.raises(ExistingOutputError):
        execute(lazy(True), out)
    execute(da.zeros((8, 8), chunks=4), out)
    seen.clear()
    found = execute(lazy(True), out, overwrite=True)
    assert seen == [(1, 0)]
    assert (found[:] == 2).all()
    assert names(tmp_path) == ["a.zarr"]
    assert not (out / ".itkstream/lock.json").exists()
    # The draft of another computation is not taken for this one's.
    with pytest.raises(BlockErrors):
        seen.clear(), execute(lazy(False) * 3, out, overwrite=True)
    assert (execute(lazy(True) * 5, out, overwrite=True)[:] == 10).all()
    assert names(tmp_path) == ["a.zarr"]


def test_two_runs_do_not_replace_one_result(tmp_path: Path) -> None:
    out = tmp_path / "a"
    zarr.create_array(str(out), data=np.ones(4), chunks=(4,))
    ledger = Ledger(Location.parse(out))
    lock = Lock(ledger.lock_place, ledger.array)
    with pytest.raises(BusyOutputError):
        execute(da.zeros(4), out, overwrite=True)
    lock.release()
    assert names(tmp_path) == ["a"]


def test_an_array_of_somebody_else_is_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "a"
    zarr.create_array(str(out), data=np.ones(4), chunks=(4,))
    broken = da.zeros(4).map_blocks(lambda block: 1 // 0, dtype=float, meta=np.ones(0))
    with pytest.raises(BlockErrors):
        execute(broken, out, overwrite=True)
    assert names(out) == ["c", "zarr.json"]


@pytest.mark.parametrize("name", ["t.h5", "t.nrrd", "t.mha", "t.nii.gz", "t.ome.zarr"])
def test_a_transform_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    write_transform(tmp_path / name, field(1.0))
    with pytest.raises((OSError, ItkstreamError)):
        write_transform(tmp_path / name, field(2.0, broken=True), overwrite=True)
    assert names(tmp_path) == [name]
    point = np.full((1, 3), 6.0)
    np.testing.assert_allclose(read_transform(tmp_path / name).apply(point), point + 1, atol=1e-6)
    write_transform(tmp_path / name, field(2.0), overwrite=True)
    np.testing.assert_allclose(read_transform(tmp_path / name).apply(point), point + 2, atol=1e-6)
    assert names(tmp_path) == [name]


def test_bundles(tmp_path: Path) -> None:
    out, image = tmp_path / "b", Image(VOXELS, GRID)
    export_slicer(out, field(1.0), (image, image))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    gone = Image(Broken(VOXELS, 1), GRID)
    with pytest.raises((OSError, ItkstreamError)):
        export_slicer(out, field(1.0), (image, gone), overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    export_ants(out, field(1.0), overwrite=True)
    assert names(out) == ["apply.sh", "bundle.json", "displacement.nii.gz"]
    assert names(tmp_path) == ["b"]


def put(path: Path, voxels: np.ndarray) -> None:
    create_ome_zarr(path, GRID, voxels.dtype, chunks=(8, 8, 8))[:] = voxels


def test_a_resampled_image(tmp_path: Path) -> None:
    put(tmp_path / "m.ome.zarr", VOXELS)
    chunk = tmp_path / "m.ome.zarr/0/c/1/1/1"
    good = chunk.read_bytes()
    out = tmp_path / "o.ome.zarr"
    put(out, VOXELS + 1)

    def run(overwrite: bool = True) -> None:
        moving = open_image(tmp_path / "m.ome.zarr")
        write_resampled(
            out, moving, AFFINE, GRID, WarpSettings("nearest"), blocksize=8, overwrite=overwrite
        )

    chunk.write_bytes(good[:-4])
    with pytest.raises(BlockErrors, match="run the same again to compute only these"):
        run()
    np.testing.assert_array_equal(open_image(out).read(), VOXELS + 1)
    with pytest.raises(ExistingOutputError):
        run(overwrite=False)
    chunk.write_bytes(good)
    run()
    np.testing.assert_array_equal(open_image(out).read(), VOXELS)
    metadata = json.loads((out / "zarr.json").read_text())["attributes"]["ome"]
    assert metadata["multiscales"][0]["name"] == "o"
    assert names(tmp_path) == ["m.ome.zarr", "o.ome.zarr"]


def test_an_inverse(tmp_path: Path) -> None:
    out = tmp_path / "i.ome.zarr"
    write_inverse(out, field(1.0), GRID)
    with pytest.raises((OSError, ItkstreamError)):
        write_inverse(out, field(2.0, broken=True), GRID, overwrite=True)
    point = np.array([[20.0, 8.0, 15.0]])
    np.testing.assert_allclose(read_transform(out).apply(point), point - 1, atol=1e-3)
    write_inverse(out, field(2.0), GRID, overwrite=True)
    np.testing.assert_allclose(read_transform(out).apply(point), point - 2, atol=1e-3)
    assert names(tmp_path) == ["i.ome.zarr"]


def test_an_inverse_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "i.ome.zarr"
    write_inverse(tmp_path / "whole.ome.zarr", field(1.0), GRID)
    with monkeypatch.context() as patch:
        patch.setattr("itkstream.apply.products._largest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_inverse(out, field(1.0), GRID)
    assert names(tmp_path) == [".draft-i.ome.zarr", "whole.ome.zarr"]
    # A block counts as done only where both its vectors and its errors are as they were written.
    chunk = tmp_path / ".draft-i.ome.zarr" / "inverse_error" / "c" / "0" / "0" / "0"
    chunk.parent.mkdir(parents=True, exist_ok=True)  # no error at all is a fill value
    chunk.write_bytes(b"damaged")
    with caplog.at_level("INFO"):
        write_inverse(out, field(1.0), GRID)
    assert "is not as it was written; it is computed again" in caplog.text
    for name in ("displacement/0", "inverse_error"):
        one, other = (
            zarr.open_array(str(tmp_path / store / name))[:]
            for store in ("i.ome.zarr", "whole.ome.zarr")
        )
        np.testing.assert_array_equal(one, other)


def test_a_registration_folder(tmp_path: Path) -> None:
    """The notes of a run that replaces another are beside it, then in its place."""
    out, draft = tmp_path / "out", tmp_path / ".draft-out"
    out.mkdir()
    (out / REPORT).write_text("old")

    def attempt(key: str, found: Any, done: bool) -> None:
        folder = RunFolder(out, ("a", "b"), overwrite=True)
        with folder.locked():
            folder.settle(key)
            assert folder.recall("1", "new") == found
            folder.note("1", key, {"found": 1})
            assert (out / REPORT).read_text() == "old"
            with pytest.raises(BusyOutputError), RunFolder(out, ("a", "b"), True).locked():
                pass
            if done:
                (folder.claim() / REPORT).write_bytes(b"new")
                assert folder.finish() == Location.parse(out)
                with pytest.raises(BusyOutputError), RunFolder(out, ("a", "b"), True).locked():
                    pass

    attempt("new", None, done=False)
    assert names(draft) == ["steps"]
    with RunFolder(out, ("a", "b"), overwrite=True).locked():
        pass
    attempt("new", {"found": 1}, done=False)
    # Killed when all was written: another run does not take it for its own.
    (draft / REPORT).write_text("whole")
    attempt("other", {"found": 1}, done=False)
    assert not (draft / REPORT).exists()
    attempt("new", None, done=True)
    assert (out / REPORT).read_text() == "new"
    assert names(tmp_path) == ["out"]
    assert names(out / ".itkstream") == []


class Stopping:
    """Tells what steps were begun, and stops a run as one is."""

    def __init__(self, at: str = "") -> None:
        self.at, self.told = at, list[str]()

    def step(self, title: str) -> None:
        self.told.append(title)
        if title == self.at:
            raise KeyboardInterrupt

    def expect(self, parts: object) -> None:
        pass

    def blocks(self, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.mark.slow
def test_a_registration_is_replaced_when_the_new_one_is_complete(tmp_path: Path) -> None:
    rounds = make_pair(PhantomSettings((40, 40, 32), (1.0, 1.0, 1.0), 3))
    out = tmp_path / "out"

    def run(at: str = "", overwrite: bool = True, strength: float = 1.0) -> Stopping:
        steps = (Deformable(iterations=(4,), shrink_factors=(2,), smooth_sigmas=(strength,)),)
        heard, images = Stopping(at), (rounds.fixed, rounds.moving)
        start = rounds.truth.matrix
        made = register(
            *images, out, steps, initial_transform=start, overwrite=overwrite, reporter=heard
        )
        assert made.out == Location.parse(out)
        with pytest.raises(InputError, match="choose another output"):
            check_apart(out, made.transform)  # it is read from there, and not from a draft
        assert made.aligned.read().any()
        return heard

    run(strength=2.0)
    old = stamps(out)
    with pytest.raises(KeyboardInterrupt):
        run(at="certificate")
    assert stamps(out) == old
    assert names(tmp_path) == [".draft-out", "out"]
    heard = run()
    assert heard.told.count("done by an earlier run") == 4  # read, deformation, field, aligned
    assert names(tmp_path) == ["out"]
    new = stamps(out)
    assert new != old
    report = json.loads((out / REPORT).read_text())
    assert ".draft" not in json.dumps(report)
    # What lay in the draft is known again where it lies now.
    again = run(overwrite=False)
    assert again.told.count("done by an earlier run") == 8
    chunks = {name: time for name, time in new.items() if "/c/" in name}
    assert chunks.items() <= stamps(out).items()


@pytest.mark.slow
def test_a_demo_that_is_stopped_is_continued(tmp_path: Path) -> None:
    rounds = make_pair(PhantomSettings((40, 40, 32), (1.0, 1.0, 1.0), 3))
    steps = (Deformable(iterations=(4,), shrink_factors=(2,), smooth_sigmas=(1.0,)),)
    out = tmp_path / "out"

    def run(heard: Stopping, overwrite: bool) -> None:
        made = run_demo(out, pair=rounds, steps=steps, overwrite=overwrite, reporter=heard)
        assert made.overlay.is_file()
        assert made.registration.out == Location.parse(out / "registration")
        assert made.registration.aligned.read().any()

    with pytest.raises(KeyboardInterrupt):
        run(Stopping("certificate"), overwrite=False)
    assert names(tmp_path) == [".draft-out"]
    heard = Stopping()
    run(heard, overwrite=False)
    assert heard.told.count("done by an earlier run") == 4
    assert names(tmp_path) == ["out"]
    old = stamps(out)
    with pytest.raises(KeyboardInterrupt):
        run(Stopping("ITK files"), overwrite=True)
    assert stamps(out) == old
    heard = Stopping()
    run(heard, overwrite=True)
    # What is said of files is where they are in the end.
    page = out / "registration" / "report.html"
    assert str(page) in heard.told
    assert ".draft-" not in page.read_text()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["fixed.ome.zarr", "moving.ome.zarr", "overlay.png", "registration"]
    fixed, _ = registered_images(out / "registration")
    np.testing.assert_array_equal(fixed.read(), rounds.fixed.read())


def stamps(folder: Path) -> dict[str, int]:
    """When each file was written."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and ".itkstream" not in path.parts
    )
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def test_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", "pass"])
    program.wait()
    own = partial_name("t.tfm")
    dead = own.replace(f".{os.getpid()}.", f".{program.pid}.")
    for name in (own, dead, "mine-t.tfm", dead.replace("t.tfm", "other.tfm")):
        (tmp_path / f".partial-{name}").write_text("half")
    write_transform(tmp_path / "t.tfm", AFFINE)
    assert f".partial-{dead}" not in names(tmp_path)
    assert len(names(tmp_path)) == 4


WRITER = """
import os, signal, sys
from itkstream.io.storage.outputs import claim_file
with claim_file(sys.argv[1], True) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_is_killed(tmp_path: Path) -> None:
    target = tmp_path / "t.csv"
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", WRITER, str(target)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(names(tmp_path)) == 2
    with claim_file(target, True) as partial:
        partial.write_text("new")
    assert (target.read_text(), names(tmp_path)) == ("new", ["t.csv"])


def test_folders_change_places_without_an_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on disks that cannot, such as NFS: and what was left of older ones goes too."""
    monkeypatch.setattr("itkstream.io.storage.disk._exchange", lambda one, other: False)
    for name in ("old", "new", f".replaced-{'0' * 32}-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    swap_in(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/which").read_text() == "new"
    assert names(tmp_path) == ["old"]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_folders_change_places_on_other_systems(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no library to ask: on Windows the question itself is an error."""
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("ctypes.CDLL", None)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    swap_in(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/which").read_text() == "new"
    assert names(tmp_path) == ["old"]


def test_killed_between_two_renames(tmp_path: Path) -> None:
    """Where the system cannot exchange two folders: the next run finds the new one."""
    values = da.ones(8, chunks=4) * 3
    execute(values, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / ".draft-a")
    seen: list[Any] = []
    execute(values, tmp_path / "a", progress=lambda *counts: seen.append(counts))
    assert seen == [(2, 2)]
    assert names(tmp_path) == ["a"]


def test_a_whole_disk_is_not_replaced() -> None:
    with pytest.raises(InputError, match="whole bucket or disk"):
        _ = Location.parse("/proc").draft
    with pytest.raises(InputError, match="whole bucket or disk"):
        _ = Location.parse("s3://bucket").draft


@pytest.mark.parametrize("name", ["o.nii.gz", "o.nii", "o.nrrd", "o.mha", "O.NRRD"])
@pytest.mark.parametrize("kind", ["uint8", "int16", "float64"])
def test_an_image_as_a_file_of_itk(tmp_path: Path, name: str, kind: str) -> None:
    turn = ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    grid = Grid(GRID.shape, GRID.spacing, GRID.origin, turn, GRID.axes)
    values = (VOXELS % 200).astype(kind)
    write_resampled(tmp_path / name, Image(values, grid), AFFINE, grid, WarpSettings("nearest"))
    found = sitk.ReadImage(str(tmp_path / name))
    assert sitk.GetArrayFromImage(found).dtype == kind
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), values)
    np.testing.assert_allclose(found.GetSpacing(), grid.spacing[::-1], rtol=1e-6)
    np.testing.assert_allclose(found.GetOrigin(), grid.origin[::-1], rtol=1e-6)
    np.testing.assert_allclose(
        np.reshape(found.GetDirection(), (3, 3)), np.array(turn)[::-1, ::-1], atol=1e-6
    )
    again = open_image(tmp_path / name)
    assert again.grid.unit == "micrometer"
    np.testing.assert_allclose(again.grid.origin, grid.origin, rtol=1e-6)
    np.testing.assert_array_equal(again.read(), values)


def test_what_a_file_of_itk_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, warp = Image(VOXELS, GRID), WarpSettings()
    series = Series((image, image), (("c", 2),))
    with pytest.raises(InputError, match="would hold one image, and 2 channels or times"):
        write_resampled(tmp_path / "o.nrrd", series, AFFINE, GRID, warp)
    monkeypatch.setattr("itkstream.apply.products.free_memory", lambda: 10_000)
    with pytest.raises(PlanError, match=r"o.nrrd takes 45.00 kiB .* 9.77 kiB are free"):
        write_resampled(tmp_path / "o.nrrd", image, AFFINE, GRID, warp)
    assert not names(tmp_path)


COMMANDS = {
    "register": "register m.nrrd m.nrrd --out {}",
    "demo": "demo --out {}",
    "apply": "apply t.h5 m.nrrd {} --like m.nrrd",
    "points": "points t.h5 p.csv --out {}",
    "export": "export t.h5 {}",
    "slicer": "export t.h5 --slicer {} --fixed m.nrrd --moving m.nrrd",
    "ants": "export t.h5 --ants {}",
    "invert": "invert t.h5 {} --like m.nrrd",
    "repair": "repair t.h5 {}",
}
FOLDERS = ("register", "demo", "slicer", "ants")


@pytest.mark.parametrize("which", COMMANDS)
def test_endings_that_are_not_written(
    tmp_path: Path, command: Callable[..., Any], which: str
) -> None:
    write_itk(tmp_path / "m.nrrd", Image(VOXELS, GRID))
    write_transform(tmp_path / "t.h5", field(1.0))
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    before = names(tmp_path)
    endings = ["tif", "tiff", "png", "czi", "n5", "xlsx", "mhd", "zip", "ome.tif", "txt"]
    endings += ["nii.gz", "zarr", "ome.zarr"] if which in FOLDERS else ["xyz", "zarr.old"]
    written = {"tif", "tiff", "n5", "ome.tif"} if which == "apply" else set()
    for ending in (e for e in endings if e not in written):
        words = COMMANDS[which].format(f"out.{ending}").split()
        done = command(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert f"out.{ending}" in done.stderr
        assert "Traceback" not in done.stderr
        assert names(tmp_path) == before, words


@pytest.mark.parametrize("ending", ["tif", "n5", "nii.gz", "h5", "xyz", "zarr.zip"])
def test_functions_refuse_them_too(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    calls: list[Callable[[], Any]] = [
        lambda: execute(da.ones(3), out),
        lambda: create_ome_zarr(out, GRID, np.uint8, chunks=(8, 8, 8)),
    ]
    if ending != "nii.gz":
        calls.append(lambda: write_itk(out, Image(VOXELS, GRID)))
    if ending not in ("nii.gz", "tif", "n5"):
        calls.append(
            lambda: write_resampled(out, Image(VOXELS, GRID), AFFINE, GRID, WarpSettings())
        )
    if ending != "n5":
        calls.append(lambda: save_overlay(out, VOXELS, VOXELS, VOXELS, GRID))
    for call in calls:
        with pytest.raises(InputError, match="out"):
            call()
    assert not names(tmp_path)


def test_a_name_may_have_dots(tmp_path: Path) -> None:
    for name in ("sigma_0.5", "of.2024", "plain", "a.ZARR"):
        assert execute(da.ones(3), tmp_path / name)[:].sum() == 3


@pytest.mark.slow
def test_in_an_object_store(bucket: str) -> None:
    root = Location.parse(bucket)
    out = f"{bucket}/a.zarr"
    execute(da.ones((8, 8), chunks=2), out)
    fails = da.zeros((8, 8), chunks=4).map_blocks(
        lambda block: 1 // 0, dtype=float, meta=np.ones((0, 0))
    )
    with pytest.raises(BlockErrors):
        execute(fails, out, overwrite=True)
    assert zarr.open_array(Location.parse(out).store(), mode="r")[:].sum() == 64
    found = execute(da.ones((8, 8), chunks=4) * 3, out, overwrite=True)
    assert found[:].sum() == 3 * 64
    # Nothing is left of the smaller chunks, nor of the draft.
    assert root.names() == ["a.zarr"]
    assert not (root / "a.zarr/c/3").exists()
    write_transform(f"{bucket}/t.ome.zarr", field(1.0))
    with pytest.raises((OSError, ItkstreamError)):
        write_transform(f"{bucket}/t.ome.zarr", field(2.0, broken=True), overwrite=True)
    point = np.full((1, 3), 6.0)
    np.testing.assert_allclose(read_transform(f"{bucket}/t.ome.zarr").apply(point), point + 1)
    write_transform(f"{bucket}/t.ome.zarr", field(2.0), overwrite=True)
    np.testing.assert_allclose(read_transform(f"{bucket}/t.ome.zarr").apply(point), point + 2)
    assert root.names() == ["a.zarr", "t.ome.zarr"]
