"""Bundles for other programs, judged by SimpleITK; the inverse as a store; napari's layers."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from itkstream.apply.bundles import coarsened, export_ants, export_slicer
from itkstream.apply.products import write_inverse
from itkstream.apply.resampling import apply_transform
from itkstream.errors import ExistingOutputError, InputError, MissingDataError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.io import create_ome_zarr, write_pyramid
from itkstream.io.transforms.files import read_transform, write_transform
from itkstream.io.transforms.ngff.inverses import read_error_map
from itkstream.napari_reader import get_reader, read_layers
from itkstream.registration.folder import registered_images

FIXED = Grid((48, 64, 80), (2.0, 1.0, 1.0), (5.0, -7.0, 3.0), axes=("z", "y", "x"))
MOVING = Grid((50, 70, 82), (2.0, 1.0, 1.0), (4.0, -9.0, 2.0), axes=("z", "y", "x"))


def smooth(shape: tuple[int, ...], sigma: float, seed: int) -> np.ndarray:
    blurred = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma, axes=(0, 1, 2))
    return blurred / np.abs(blurred).max()


def make_transform() -> CompositeTransform:
    matrix = np.eye(4)
    matrix[:3, :3] += np.random.default_rng(0).uniform(-0.02, 0.02, (3, 3))
    matrix[:3, 3] = 0.5, -1.0, 1.5
    field = (3 * smooth((*FIXED.shape, 3), 9, 1)).astype(np.float32)
    return CompositeTransform((DisplacementField(field, FIXED), AffineTransform(matrix)))


def put(path: Path, voxels: np.ndarray, grid: Grid) -> None:
    target = create_ome_zarr(path, grid, voxels.dtype, chunks=(32, 32, 32))
    target[:] = voxels
    write_pyramid(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What register leaves, without its run."""
    here = tmp_path_factory.mktemp("registered")
    folder = here / "run"
    folder.mkdir()
    transform = make_transform()
    voxels = {
        "fixed": (1000 * smooth(FIXED.shape, 2, 2) + 2000).astype(np.uint16),
        "moving": (1000 * smooth(MOVING.shape, 2, 3) + 2000).astype(np.uint16),
    }
    report = {}
    for name, grid in (("fixed", FIXED), ("moving", MOVING)):
        put(here / f"{name}.ome.zarr", voxels[name], grid)
        report[name] = {"name": str(here / f"{name}.ome.zarr"), "grid": asdict(grid)}
    (folder / "registration.json").write_text(json.dumps(report))
    write_transform(folder / "transform.ome.zarr", transform)
    pair = (Image(voxels["fixed"], FIXED), Image(voxels["moving"], MOVING))
    put(folder / "aligned.ome.zarr", apply_transform(*pair, transform), FIXED)
    return folder


def points_inside() -> np.ndarray:
    inside = np.random.default_rng(5).uniform(2, np.subtract(FIXED.shape, 3), (200, 3))
    return FIXED.to_physical(inside)


def by_itk(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(p[::-1].tolist()) for p in points])[:, ::-1]


def test_a_bundle_for_slicer(run: Path, tmp_path: Path) -> None:
    transform = read_transform(run)
    images = registered_images(run)
    bundle = export_slicer(tmp_path / "s", transform, images, limit_mb=1.0)
    # Whether the limit holds, the text beside it left out.
    size = sum((tmp_path / "s" / f).stat().st_size for f in bundle.files if ".nrrd" in f)
    assert 0.3 * 2**20 < size < 2**20
    found = sitk.ReadTransform(str(tmp_path / "s" / "transform.h5"))
    points = points_inside()
    error = np.abs(by_itk(found, points) - transform.apply(points)).max()
    # The affine stretches by up to 5 %.
    assert 1e-4 < error <= 1.05 * bundle.field_error_vox < 0.2
    assert min(bundle.field_factors) > 1
    for name, image in zip(("fixed", "moving"), images, strict=True):
        shown = sitk.ReadImage(str(tmp_path / "s" / f"{name}.nrrd"))
        assert shown.GetPixelID() == sitk.sitkUInt16
        low = np.array(shown.TransformContinuousIndexToPhysicalPoint([-0.5] * 3))[::-1]
        first = image.grid.to_physical([-0.5] * 3)
        np.testing.assert_allclose(low, first, atol=1e-9)
    export_slicer(tmp_path / "least", transform, images, limit_mb=0.1)
    # All of it: the images do not compress well, and HDF5 adds tables of its own.
    assert sum(f.stat().st_size for f in (tmp_path / "least").iterdir()) <= 0.1 * 2**20
    text = (tmp_path / "s" / "READ ME.txt").read_text()
    assert f"within {bundle.field_error_vox:.2g} voxels" in text
    with pytest.raises(ExistingOutputError):
        export_slicer(tmp_path / "s", transform, images)
    whole = export_slicer(tmp_path / "s", transform, images, overwrite=True)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "s" / "fixed.nrrd"))), images[0].read()
    )
    assert whole.field_error_vox <= 0.05


def test_a_bundle_for_ants(run: Path, tmp_path: Path) -> None:
    transform = read_transform(run)
    bundle = export_ants(tmp_path / "a", transform)
    call = (tmp_path / "a" / "apply.sh").read_text().replace("\\\n", " ").splitlines()[-1]
    words = shlex.split(call)
    assert words[:3] == ["antsApplyTransforms", "-d", "3"]
    listed = [words[k + 1] for k, word in enumerate(words) if word == "-t"]
    # That ANTs lets the first of its list act first is checked, with ANTs, by tests/clients.
    points = points_inside()
    mapped = points
    for name in listed:
        path = str(tmp_path / "a" / name)
        if name.endswith("nii.gz"):
            image = sitk.ReadImage(path, sitk.sitkVectorFloat64)
            mapped = by_itk(sitk.DisplacementFieldTransform(image), mapped)
        else:
            mapped = by_itk(sitk.ReadTransform(path), mapped)
    assert np.abs(mapped - transform.apply(points)).max() <= 1.05 * bundle.field_error_vox + 1e-5
    affine = export_ants(tmp_path / "b", transform.transforms[1])
    assert affine.files == ("affine.tfm", "apply.sh")
    plane = DisplacementField(np.zeros((9, 8, 2)), Grid((9, 8), (1, 1), axes=("y", "x")))
    assert export_ants(tmp_path / "c", plane).files == ("displacement.nrrd", "apply.sh")


def test_affines_need_no_thinning_and_bad_input_is_told(run: Path, tmp_path: Path) -> None:
    affine = AffineTransform(np.eye(4))
    assert coarsened(affine)[1:] == ((1, 1, 1), 0.0)
    images = registered_images(run)
    assert export_slicer(tmp_path / "s", affine, images).field_error_vox == 0
    for limit in (0.0, np.nan, 0.09):
        with pytest.raises(InputError, match=r"limit_mb must be at least 0\.1"):
            export_slicer(tmp_path / "t", affine, images, limit_mb=limit)
    with pytest.raises(MissingDataError, match=r"has no registration\.json"):
        registered_images(tmp_path)
    report = json.loads((run / "registration.json").read_text())
    report["moving"]["name"] = "/gone.n5/s0"
    (tmp_path / "registration.json").write_text(json.dumps(report))
    with pytest.raises(MissingDataError, match=r"moving image .* was /gone\.n5/s0"):
        registered_images(tmp_path)


def test_a_stored_inverse_has_an_error_for_every_voxel(run: Path, tmp_path: Path) -> None:
    transform = read_transform(run)
    worst = write_inverse(tmp_path / "i.ome.zarr", transform, MOVING, blocksize=64)
    back = read_transform(tmp_path / "i.ome.zarr")
    errors = read_error_map(tmp_path / "i.ome.zarr")
    assert errors.grid == back.transforms[0].grid == MOVING
    assert errors.read().max() == pytest.approx(worst)
    assert worst < 0.01
    points = FIXED.to_physical(
        np.random.default_rng(5).uniform(8, np.subtract(FIXED.shape, 9), (200, 3))
    )
    again = back.apply(transform.apply(points))
    # Linear between the voxels of a field whose bends are 9 voxels wide.
    np.testing.assert_allclose(again, points, atol=0.03)
    turned = read_error_map(tmp_path / "i.ome.zarr", ("x", "y", "z"))
    np.testing.assert_array_equal(turned.read(), errors.read().transpose())
    with pytest.raises(MissingDataError, match="only stored inverses"):
        read_error_map(run / "transform.ome.zarr")
    with pytest.raises(InputError, match="multiple of 64"):
        write_inverse(tmp_path / "j.ome.zarr", transform, MOVING, blocksize=100)


def test_commands(run: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    assert command("export", run, cwd=tmp_path).returncode == 2
    done = command("export", run, "--slicer", "s", "--ants", "a", "--limit-mb", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s" / "transform.h5").is_file()
    assert (tmp_path / "a" / "apply.sh").is_file()
    thin = command("export", run, "t.h5", "--tolerance", "0.05", cwd=tmp_path)
    assert "field thinned out by" in thin.stdout
    found = read_transform(tmp_path / "t.h5")
    assert found.transforms[0].grid.size < FIXED.size / 3
    points = points_inside()
    np.testing.assert_allclose(found.apply(points), make_transform().apply(points), atol=0.06)
    done = command("invert", run, "i.ome.zarr", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_error_map(tmp_path / "i.ome.zarr").grid == MOVING
    done = command("invert", run, "j.ome.zarr", "--like", "none.n5/s0", cwd=tmp_path)
    assert (done.returncode, "does not exist" in done.stderr) == (2, True)
    done = command("invert", run, "j.h5", cwd=tmp_path)
    assert (done.returncode, "such as inverse.ome.zarr; got j.h5" in done.stderr) == (2, True)
    affine = make_transform().transforms[1]
    write_transform(tmp_path / "a.mat", affine, ("z", "y", "x"))
    assert command("invert", "a.mat", "b.tfm", cwd=tmp_path).returncode == 0
    inverse = read_transform(tmp_path / "b.tfm")
    np.testing.assert_allclose(inverse.matrix @ affine.matrix, np.eye(4), atol=1e-12)
    done = command("invert", "t.h5", "k.ome.zarr", cwd=tmp_path)
    assert (done.returncode, "say --like IMAGE" in done.stderr) == (2, True)


def test_whatever_a_transform_is_it_becomes_a_field(
    run: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    spline = sitk.BSplineTransformInitializer(sitk.Image(200, 200, 200, sitk.sitkUInt8), [4, 4, 4])
    moves = np.random.default_rng(0).uniform(-2, 2, len(spline.GetParameters()))
    spline.SetParameters(moves.tolist())
    sitk.WriteTransform(spline, str(tmp_path / "b.tfm"))
    assert command("check", "b.tfm", cwd=tmp_path).returncode == 2
    like = str(run / "aligned.ome.zarr")
    done = command("export", "b.tfm", "b.ome.zarr", "--like", like, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_transform(tmp_path / "b.ome.zarr")
    assert found.transforms[0].grid == FIXED
    nodes = FIXED.positions()[::7, ::9, ::11].reshape(-1, 3)
    # Vectors of 2 in float32.
    np.testing.assert_allclose(found.apply(nodes), by_itk(spline, nodes), atol=1e-5)
    assert command("check", "b.ome.zarr", cwd=tmp_path).returncode == 0


def test_layers_for_napari(run: Path, tmp_path: Path) -> None:
    assert get_reader(str(tmp_path)) is None
    assert get_reader([str(run), str(run)]) is None
    reader = get_reader([str(run)])
    assert reader is read_layers
    layers = {attributes["name"]: (data, attributes) for data, attributes, _ in reader(str(run))}
    assert list(layers) == ["fixed", "moving", "aligned", "displacement"]
    # Vectors are tried where registrations are viewed.
    del layers["displacement"]
    transform = make_transform()
    for name, (data, attributes) in layers.items():
        levels = data if attributes["multiscale"] else [data]
        assert all(isinstance(level, da.Array) for level in levels)
        path = run / "aligned.ome.zarr" if name == "aligned" else run.parent / f"{name}.ome.zarr"
        image = Image(np.asarray(levels[0]), MOVING if name == "moving" else FIXED, str(path))
        corner = [*np.subtract(image.shape, 1), 1]
        wanted = image.grid.to_physical(corner[:3])
        if name == "moving":
            wanted = transform.transforms[1].inverse().apply(wanted)
        scaled = np.multiply(corner, [*attributes["scale"], 1])
        np.testing.assert_allclose((attributes["affine"] @ scaled)[:3], wanted, atol=1e-9)
        assert attributes["scale"] == image.grid.spacing
        assert attributes["units"] == ("micrometer",) * 3
        assert attributes["axis_labels"] == ("z", "y", "x")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("transform.ome.zarr", "aligned.ome.zarr"):
        (moved / name).symlink_to(run / name)
    report = json.loads((run / "registration.json").read_text())
    report["fixed"]["name"] = "/gone.n5/s0"
    (moved / "registration.json").write_text(json.dumps(report))
    assert [layer[1]["name"] for layer in read_layers(str(moved))] == ["aligned", "displacement"]


def test_napari_finds_the_reader(run: Path) -> None:
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(
        Path(sys.modules["itkstream"].__file__).parent / "napari.yaml"
    )
    manifest.validate_imports()
    manager = npe2.PluginManager()
    manager.register(manifest)
    manager.activate("itkstream")
    names = [reader.command for reader in manager.iter_compatible_readers([str(run)])]
    assert names == ["itkstream.get_reader"]
    reader = manager.commands.execute("itkstream.get_reader", kwargs={"path": str(run)})
    assert [layer[2] for layer in reader(str(run))] == ["image"] * 3 + ["vectors"]
