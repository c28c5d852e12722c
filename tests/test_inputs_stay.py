"""No command, and no function, writes over what it reads: by whatever path, in whatever order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

from itkstream.apply.bundles import export_ants, export_slicer
from itkstream.apply.products import Series, write_inverse, write_resampled
from itkstream.apply.resampling import prepare_apply_transform
from itkstream.cli.app import commands
from itkstream.compute.execute import execute, store
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.io import create_ome_zarr, open_image, write_n5
from itkstream.io.images.files.itk_images import write_itk
from itkstream.io.storage.inputs import check_apart
from itkstream.io.transforms.files import read_transform, write_transform
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.overlay import save_overlay
from itkstream.pipelines import register

GRID = Grid((12, 14, 16), (1.0, 1.0, 1.0), axes=("z", "y", "x"))
VOXELS = np.random.default_rng(0).integers(1, 200, GRID.shape).astype(np.uint8)
AFFINE = AffineTransform(np.eye(4), GRID.axes)
FIELD = CompositeTransform((DisplacementField(np.zeros((*GRID.shape, 3), "f4"), GRID), AFFINE))


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One input of every kind, and links to the folder."""
    there = tmp_path_factory.mktemp("inputs") / "there"
    there.mkdir()
    turned = Grid(GRID.shape[::-1], (1.0, 1.0, 1.0), axes=("x", "y", "z"))
    write_n5(there / "fix.n5", "s0", VOXELS.transpose(), turned, chunks=(8, 8, 8))
    create_ome_zarr(there / "mov.ome.zarr", GRID, np.uint8, chunks=(8, 8, 8))[:] = VOXELS
    zarr.create_array(str(there / "a.zarr"), data=VOXELS, chunks=(8, 8, 8))
    VOXELS.tofile(there / "v.png")
    write_itk(there / "mask.nrrd", Image(VOXELS, GRID))
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(there / "i.mhd"))
    write_transform(there / "t.h5", FIELD)
    write_transform(there / "t.nrrd", FIELD)
    write_transform(there / "t.ome.zarr", FIELD)
    write_transform(there / "a.tfm", AFFINE)
    (there / "p.csv").write_text("x,y,z\n3,4,5\n")
    (there / "run.yaml").write_text("steps: [ransac-affine]\n")
    run = there / "run"
    run.mkdir()
    write_transform(run / "transform.ome.zarr", FIELD)
    sides = {"fixed": "fix.n5/s0", "moving": "mov.ome.zarr"}
    grids = {s: {"name": str(there / n), "grid": asdict(GRID)} for s, n in sides.items()}
    (run / "registration.json").write_text(json.dumps(grids))
    (there.parent / "by link").symlink_to(there)
    return there


def digest(folder: Path) -> str:
    """Of the names and contents of all that is in a folder."""
    found = hashlib.blake2b()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)} {path.is_symlink()}".encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


# What each command reads, and how it is called.
COMMANDS: list[tuple[list[str], str]] = [
    (["fix.n5/s0", "mov.ome.zarr"], "register {0} {1} --out OUT --overwrite"),
    (["mask.nrrd", "i.mhd"], "register {0} {1} --out OUT --overwrite"),
    (["mask.nrrd", "a.tfm", "run.yaml", "i.mhd"], "register fix.n5/s0 mov.ome.zarr --fixed-mask {0}"
     " --initial {1} --config {2} --moving-mask {3} --out OUT --overwrite"),
    (["t.h5", "mov.ome.zarr", "fix.n5/s0"], "apply {0} {1} OUT --like {2} --overwrite"),
    (["run", "mask.nrrd"], "apply {0} {1} OUT --overwrite"),
    (["t.ome.zarr", "i.mhd", "a.zarr"], "apply {0} {1} OUT --like {2} --overwrite"),
    (["t.h5", "p.csv"], "points {0} {1} --out OUT --overwrite"),
    (["t.nrrd"], "export {0} OUT --overwrite"),
    (["run", "mov.ome.zarr"], "export {0} OUT --like {1} --overwrite"),
    (["run"], "export {0} --ants OUT --overwrite"),
    (["run", "fix.n5/s0", "mask.nrrd"],
     "export {0} --slicer OUT --fixed {1} --moving {2} --overwrite"),
    (["t.h5", "i.mhd"], "invert {0} OUT --like {1} --overwrite"),
    (["a.tfm"], "invert {0} OUT --overwrite"),
    (["t.ome.zarr"], "repair {0} OUT --overwrite"),
    (["t.h5"], "repair {0} OUT --overwrite"),
    (["mask.nrrd"], "info {0} --png OUT --overwrite"),
    (["fix.n5/s0", "mov.ome.zarr"], "rounds {0} {1} --out OUT --overwrite"),
    (["p.csv", "mask.nrrd"], "count {0} {1} --out OUT --overwrite"),
    (["fix.n5/s0", "mov.ome.zarr", "mask.nrrd"], "atlas {0} {1} {2} --out OUT --overwrite"),
]  # fmt: skip


def paths_to(file: Path, there: Path, links: Path) -> Iterator[str]:
    """Every kind of path to a file or folder, into it, and around it."""
    by_link = there.parent / "by link"
    yield str(file)
    yield os.path.relpath(file, there.parent)
    yield f"{file.parent}/../{file.parent.name}//./{file.name}"
    yield f"{file}/"
    yield f"file://{file}"
    yield str(by_link / file.relative_to(there))
    link = links / f"link to {file.name}"
    link.symlink_to(file)
    yield str(link)
    again = links / f"link to a link to {file.name}"
    again.symlink_to(link.name)
    yield str(again)
    if file.is_file():
        hard = links / f"hard link to {file.name}"
        os.link(file, hard)
        yield str(hard)
    yield str(file / "inside")
    yield str(file / "inside" / file.name)
    yield str(file.parent)
    yield str(by_link)


@pytest.mark.parametrize(("inputs", "call"), COMMANDS, ids=lambda given: str(given)[:40])
def test_every_command_and_path(
    there: Path,
    tmp_path: Path,
    command: Callable[..., SimpleNamespace],
    inputs: list[str],
    call: str,
) -> None:
    before = digest(there)
    for name in inputs:
        for out in paths_to(there / name, there, tmp_path):
            words = [word.format(*inputs) if "{" in word else word for word in call.split()]
            words = [str(there / w) if (there / w).exists() else w for w in words]
            words = [out if word == "OUT" else word for word in words]
            done = command(*words, cwd=there.parent)
            assert done.returncode == 2, (words, done.stdout)
            assert "choose another output" in done.stderr, words
            assert "Traceback" not in done.stderr
            assert digest(there) == before, words


def test_the_input_may_be_the_link(there: Path, tmp_path: Path, command: Any) -> None:
    """Here the output is named plainly, and the input by a path of links."""
    before = digest(there)
    (tmp_path / "one").symlink_to(there.parent / "by link")
    moving = tmp_path / "one/mov.ome.zarr"
    out = there / "mov.ome.zarr"
    done = command("apply", there / "t.h5", moving, out, "--overwrite", cwd=tmp_path)
    assert (done.returncode, "choose another output" in done.stderr) == (2, True)
    # A folder that holds the link to an input: the way to it would be gone.
    (tmp_path / "out").mkdir()
    (tmp_path / "out/registration.json").write_text("{}")
    (tmp_path / "out/m.ome.zarr").symlink_to(out)
    done = command(
        "register", there / "fix.n5/s0", tmp_path / "out/m.ome.zarr", "--out", tmp_path / "out",
        "--overwrite", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, "choose another output" in done.stderr) == (2, True)
    # A folder whose parts are links to the data.
    (tmp_path / "parts").mkdir()
    for part in out.iterdir():
        (tmp_path / "parts" / part.name).symlink_to(part)
    parts = tmp_path / "parts"
    done = command("apply", there / "t.h5", parts, out, "--overwrite", cwd=tmp_path)
    assert (done.returncode, "choose another output" in done.stderr) == (2, True)
    assert digest(there) == before


def test_data_behind_a_header(there: Path, tmp_path: Path, command: Any) -> None:
    values = VOXELS.astype(np.uint8)
    (tmp_path / "some data.nrrd").write_bytes(values.tobytes())
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 16 14 12\nencoding: raw\n"
    header += "space dimension: 3\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
    (tmp_path / "head.nhdr").write_text(header + "data file: some data.nrrd\n")
    before = digest(tmp_path)
    for name, out in (("head.nhdr", tmp_path / "some data.nrrd"), ("i.mhd", there / "i.raw")):
        image = tmp_path / name if name == "head.nhdr" else there / name
        assert open_image(image).shape == GRID.shape
        done = command("apply", there / "t.h5", image, out, "--overwrite", cwd=tmp_path)
        assert (done.returncode, "choose another output" in done.stderr) == (2, True)
    assert digest(tmp_path) == before


def test_images_that_a_folder_names(there: Path, command: Any) -> None:
    """The images of a bundle are those of the registration's report, unless others are named."""
    before = digest(there)
    out = there / "fix.n5/s0/bundle"
    done = command("export", there / "run", "--slicer", out, "--overwrite", cwd=there)
    assert (done.returncode, "choose another output" in done.stderr) == (2, True)
    assert digest(there) == before


def test_images_that_were_registered_stay(there: Path, tmp_path: Path, command: Any) -> None:
    """Not even a command that only needs their lattice replaces them."""
    before = digest(there)
    calls = [f"apply run i.mhd {name}" for name in ("fix.n5/s0", "mov.ome.zarr")]
    for words in map(str.split, [*calls, "invert run mov.ome.zarr", "export run mov.ome.zarr"]):
        done = command(*words, "--overwrite", cwd=there)
        assert (done.returncode, "choose another output" in done.stderr) == (2, True), done.stderr
    assert digest(there) == before


def test_outputs_of_one_command_are_apart(there: Path, tmp_path: Path, command: Any) -> None:
    for words in (
        ("x", "--ants", "x"),
        ("x/t.h5", "--ants", "x"),
        ("--ants", "x", "--slicer", "x"),
    ):
        done = command("export", there / "run", *words, "--overwrite", cwd=tmp_path)
        assert (done.returncode, "choose another output" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_no_command_is_left_out() -> None:
    """Each command that writes has its line above; `demo` and `examples` read nothing."""
    writing = {
        name
        for name, made in commands.commands.items()
        for option in made.params
        if isinstance(option, click.Parameter) and option.name in ("out", "overwrite", "slicer")
    }
    assert writing == {call.split()[0] for _, call in COMMANDS} | {"demo", "examples"}


def image(there: Path) -> Image:
    return open_image(there / "mov.ome.zarr")


def doors() -> dict[str, tuple[str, Callable[[Path, Path], Any]]]:
    """Functions that write, each given a place that it reads."""
    warp = WarpSettings()
    size = (8, 8, 8)

    def resampled(there: Path) -> da.Array:
        return prepare_apply_transform(image(there), image(there), AFFINE, size)

    def of_zarr(there: Path) -> da.Array:
        return da.from_zarr(str(there / "a.zarr")) + 1

    def enclosing(there: Path) -> da.Array:
        array = zarr.open_array(str(there / "a.zarr"), mode="r")
        return da.ones((8, 8, 8), chunks=4).map_blocks(lambda block: block + array[:4, :4, :4])

    def mapped(there: Path) -> np.memmap:
        return np.memmap(there / "v.png", np.uint8, "r", shape=GRID.shape)

    return {
        "execute": ("mov.ome.zarr", lambda t, o: execute(resampled(t), o, overwrite=True)),
        "execute on zarr": ("a.zarr", lambda t, o: execute(of_zarr(t), o, overwrite=True)),
        "execute a closure": ("a.zarr", lambda t, o: execute(enclosing(t), o, overwrite=True)),
        "store": (
            "a.zarr",
            lambda t, o: store(da.from_zarr(str(t / "a.zarr")) + 1, zarr.open_array(str(o))),
        ),
        "write_transform": (
            "t.ome.zarr", lambda t, o: write_transform(o, read_transform(t / "t.ome.zarr"),
                                                       overwrite=True)),
        "transform.write": (
            "t.h5", lambda t, o: read_transform(t / "t.h5").write(o, overwrite=True)),
        "write_resampled": (
            "mov.ome.zarr",
            lambda t, o: write_resampled(o, image(t), AFFINE, GRID, warp, overwrite=True)),
        "write_resampled series": (
            "mov.ome.zarr",
            lambda t, o: write_resampled(o, Series((image(t),), (("t", 1),)), AFFINE, GRID, warp,
                                         overwrite=True)),
        "write_resampled field": (
            "t.ome.zarr",
            lambda t, o: write_resampled(o, Image(VOXELS, GRID), read_transform(t / "t.ome.zarr"),
                                         GRID, warp, overwrite=True)),
        "write_inverse": (
            "t.ome.zarr",
            lambda t, o: write_inverse(o, read_transform(t / "t.ome.zarr"), GRID, overwrite=True)),
        "export_slicer": (
            "mov.ome.zarr",
            lambda t, o: export_slicer(o, AFFINE, (image(t), image(t)), overwrite=True)),
        "export_ants": (
            "t.ome.zarr",
            lambda t, o: export_ants(o, read_transform(t / "t.ome.zarr"), overwrite=True)),
        "write_itk": ("mask.nrrd", lambda t, o: write_itk(o, open_image(t / "mask.nrrd"),
                                                          overwrite=True)),
        "write_n5": ("fix.n5/s0", lambda t, o: write_n5(o, "in", open_image(t / "fix.n5/s0").data,
                                                        Grid((16, 14, 12), (1.0,) * 3))),
        "register": ("mov.ome.zarr", lambda t, o: register(image(t), image(t), o, overwrite=True)),
        "register arrays": (
            "a.zarr",
            lambda t, o: register(Image(zarr.open_array(str(t / "a.zarr"), mode="r"), GRID),
                                  Image(VOXELS, GRID), o, overwrite=True)),
        "register by paths": (
            "t.h5",
            lambda t, o: register(image(t), image(t), o, initial_transform=t / "t.h5",
                                  overwrite=True)),
        "save_overlay": ("v.png", lambda t, o: save_overlay(o, *[mapped(t)] * 3, GRID)),
    }  # fmt: skip


@pytest.mark.parametrize("door", doors())
def test_every_function(there: Path, tmp_path: Path, door: str) -> None:
    name, write = doors()[door]
    before = digest(there)
    link = tmp_path / f"link to {Path(name).name}"
    link.symlink_to(there / name)
    for out in (there / name, link):
        with pytest.raises(InputError, match="choose another output"):
            write(there, out)
        assert digest(there) == before


def test_beside_an_input_there_is_room(there: Path, tmp_path: Path, command: Any) -> None:
    """In a container, a dataset beside the one that is read is nobody's input."""
    array = da.from_array(open_image(there / "fix.n5/s0").data, chunks=8)
    write_n5(tmp_path / "m.n5", "s0", array, Grid((16, 14, 12), (1.0,) * 3))
    before = digest(tmp_path / "m.n5/s0")
    out = tmp_path / "m.n5/aligned.ome.zarr"
    words = ("apply", there / "a.tfm", tmp_path / "m.n5/s0", out, "--like", there / "mask.nrrd")
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert open_image(out).shape == GRID.shape
    assert digest(tmp_path / "m.n5/s0") == before


@pytest.mark.parametrize(
    ("output", "given", "apart"),
    [
        ("s3://b/x", "s3://b/x/", False),
        ("s3://b//x", "s3://b/x", False),
        ("S3://b/x/in", "s3://b/x", False),
        ("gcs://b/x", "gs://b/x/0", False),
        ("s3://b", "s3://b/x", False),
        ("s3://b/x", "s3://b/x2", True),
        ("s3://b/x", "gs://b/x", True),
        ("/b/x", "s3://b/x", True),
    ],
)
def test_places_in_object_stores(output: str, given: str, apart: bool) -> None:
    if apart:
        check_apart(output, given)
    else:
        with pytest.raises(InputError, match="choose another output"):
            check_apart(output, given)


def test_names_that_differ_in_case(tmp_path: Path) -> None:
    """Where the disk does not tell them apart, as those of macOS; else they are two files."""
    (tmp_path / "Image.nrrd").write_text("x")
    if (tmp_path / "image.NRRD").exists():
        with pytest.raises(InputError, match="choose another output"):
            check_apart(tmp_path / "image.NRRD", tmp_path / "Image.nrrd")
    else:
        check_apart(tmp_path / "image.NRRD", tmp_path / "Image.nrrd")
