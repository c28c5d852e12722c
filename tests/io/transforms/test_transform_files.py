"""Every format there and back, judged by SimpleITK; and what cannot be, refused."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import (
    ExistingOutputError,
    InputError,
    ItkstreamError,
    MissingDataError,
    UnreadableDataError,
)
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    PiecewiseAffine,
)
from itkstream.geometry.blocks import BlockGrid
from itkstream.geometry.itk_bridge import to_itk_image, to_itk_transform
from itkstream.io.transforms import check, displacement_images
from itkstream.io.transforms import files as transform_files
from itkstream.io.transforms.files import read_transform, write_transform
from itkstream.io.transforms.itk.hdf5_files import Hdf5Vectors, write_hdf5_transform
from itkstream.io.transforms.ngff import store as ngff_transforms
from itkstream.io.transforms.ngff.store import as_stored, create_transform

AXES = [("x", "y", "z"), ("z", "y", "x"), ("x", "y"), ("y", "x")]
IMAGES = [".nii.gz", ".nii", ".nrrd", ".mha"]


def inside(grid: Grid) -> np.ndarray:
    rng = np.random.default_rng(0)
    return grid.to_physical(rng.uniform(0.1, np.array(grid.shape) - 1.1, (100, grid.ndim)))


def by_itk(path: Path, points: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
    """Points through the file as SimpleITK alone reads it."""
    order = np.argsort(axes)
    if path.suffix in (".h5", ".tfm", ".txt", ".mat"):
        transform = sitk.ReadTransform(str(path))
    else:
        image = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
        transform = sitk.DisplacementFieldTransform(image)
    mapped = np.array([transform.TransformPoint(p.tolist()) for p in points[:, order]])
    return mapped[:, np.argsort(order)]


@pytest.mark.parametrize("axes", AXES, ids="".join)
@pytest.mark.parametrize("suffix", [".h5", *IMAGES])
@pytest.mark.parametrize("with_affine", [False, True])
def test_fields(odd_grid, smooth_transform, tmp_path, axes, suffix, with_affine) -> None:
    if suffix.startswith(".nii") and len(axes) == 2:
        pytest.skip("refused, see below")
    grid = odd_grid(1, len(axes), axes)
    transform = smooth_transform(grid, factor=2)
    if not with_affine:
        transform = transform.transforms[0]
    coarse = getattr(transform, "grid", None) or transform.transforms[0].grid
    path = tmp_path / f"t{suffix}"
    said = write_transform(path, transform)
    points = inside(coarse)
    wanted = transform.apply(points)
    # Vectors of some voxels in float32; NIfTI keeps the geometry (here +-200) in float32 as well.
    atol = 1e-9 if suffix == ".h5" else 2e-4
    assert said < atol
    np.testing.assert_allclose(by_itk(path, points, axes), wanted, atol=atol)
    again = read_transform(path, axes)
    np.testing.assert_allclose(again.apply(points), wanted, atol=atol)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("axes", AXES, ids="".join)
@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5"])
def test_affines(odd_grid, smooth_transform, tmp_path, axes, suffix) -> None:
    grid = odd_grid(2, len(axes), axes)
    affine = smooth_transform(grid).transforms[1]
    path = tmp_path / f"a{suffix}"
    assert write_transform(path, affine, axes) < 1e-9
    np.testing.assert_allclose(by_itk(path, inside(grid), axes), affine.apply(inside(grid)))
    np.testing.assert_array_equal(read_transform(path, axes).matrix, affine.matrix)
    twice = CompositeTransform((affine, affine))
    write_transform(path, twice, axes, overwrite=True)
    np.testing.assert_allclose(
        read_transform(path, axes).matrix, affine.matrix @ affine.matrix, rtol=1e-12
    )


@pytest.mark.parametrize("axes", AXES, ids="".join)
def test_hdf5_fields_stay_on_disk_and_keep_every_bit(odd_grid, tmp_path, monkeypatch, axes) -> None:
    grid = odd_grid(5, len(axes), axes)
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, grid.ndim))
    # As for a file too large for ITK to check.
    monkeypatch.setattr(transform_files, "_LARGE", 0)
    assert write_transform(tmp_path / "t.h5", DisplacementField(vectors, grid)) < 1e-9
    found = read_transform(tmp_path / "t.h5", axes)
    assert isinstance(found.data, Hdf5Vectors)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(found.data))), vectors)
    part = tuple(slice(k + 1, k + 6) for k in range(len(axes)))
    np.testing.assert_array_equal(found.data[(*part, slice(None))], vectors[part])
    np.testing.assert_array_equal(found.data[(*part, slice(1, 2))], vectors[(*part, slice(1, 2))])


def test_what_itk_wrote_is_read_alike(odd_grid, smooth_transform, tmp_path) -> None:
    grid = odd_grid(6, axes=("z", "y", "x"))
    field = smooth_transform(grid, factor=2).transforms[0]
    points = inside(field.grid)
    turn = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.3, (4.0, 5.0, 6.0))
    about = sitk.AffineTransform(3)
    about.SetMatrix((np.eye(3) + 0.1 * np.arange(9).reshape(3, 3)).ravel().tolist())
    about.SetCenter((10.0, -20.0, 5.0))
    for name, linear in (("turn.h5", turn), ("about.h5", about)):
        path = tmp_path / name
        chain = sitk.CompositeTransform([linear, to_itk_transform(field, grid.axes)])
        sitk.WriteTransform(chain, str(path))
        wanted = by_itk(path, points, grid.axes)
        np.testing.assert_allclose(read_transform(path).apply(points), wanted, atol=1e-9)


@pytest.mark.parametrize("axes", AXES, ids="".join)
@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_b_splines_of_simpleitk(odd_grid, tmp_path, axes, suffix) -> None:
    n = len(axes)
    lattice = odd_grid(3, n, axes, (8,) * n)
    vectors = np.random.default_rng(0).normal(0, 2, (*lattice.shape, n))
    spline = to_itk_transform(BSplineTransform(vectors, lattice), axes)
    turn = sitk.Similarity2DTransform(1.1, 0.2, (3.0, 4.0)) if n == 2 else sitk.AffineTransform(3)
    sitk.WriteTransform(sitk.CompositeTransform([turn, spline]), str(tmp_path / f"t{suffix}"))
    found = read_transform(tmp_path / f"t{suffix}", axes)
    points = inside(lattice)
    wanted = by_itk(tmp_path / f"t{suffix}", points, axes)
    np.testing.assert_allclose(found.apply(points), wanted, atol=1e-9)
    assert isinstance(found.transforms[0], BSplineTransform)


def splines(grid: Grid, order: int = 3, seed: int = 0) -> BSplineTransform:
    vectors = np.random.default_rng(seed).normal(
        0, 0.5 * min(grid.spacing), (*grid.shape, grid.ndim)
    )
    return BSplineTransform(vectors, grid, order)


def within(spline: BSplineTransform) -> np.ndarray:
    """Points that all B-splines reach."""
    rng, last = np.random.default_rng(0), np.array(spline.grid.shape) - 1
    edge = 0.5 * (spline.order - 1) + 0.01
    return spline.grid.to_physical(rng.uniform(edge, last - edge, (100, spline.ndim)))


@pytest.mark.parametrize("axes", AXES, ids="".join)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".h5"])
def test_b_splines_are_written(odd_grid, tmp_path, axes, order, suffix) -> None:
    n = len(axes)
    spline = splines(odd_grid(3, n, axes, (8, 7, 9)[:n]), order)
    path = tmp_path / f"t{suffix}"
    # Doubles, or their text, whole.
    assert write_transform(path, spline) < 1e-9
    points = within(spline)
    np.testing.assert_allclose(by_itk(path, points, axes), spline.apply(points), atol=1e-9)
    found = read_transform(path, axes)
    assert isinstance(found, BSplineTransform)
    assert found.order == order
    np.testing.assert_allclose(found.coefficients, spline.coefficients, rtol=1e-15)
    np.testing.assert_allclose(found.apply(points), spline.apply(points), atol=1e-9)


@pytest.mark.parametrize("axes", AXES, ids="".join)
@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".h5"])
def test_b_splines_between_affines(odd_grid, smooth_transform, tmp_path, axes, suffix) -> None:
    n = len(axes)
    spline = splines(odd_grid(3, n, axes, (9, 8, 10)[:n]))
    before, after = (smooth_transform(spline.grid, k).transforms[1] for k in (0, 1))
    points = before.inverse().apply(within(spline))
    path = tmp_path / f"t{suffix}"
    for steps in ((before, spline, after), (spline, after, before), (before, spline)):
        whole = CompositeTransform(steps)
        where = points if steps[0] is before else within(spline)
        assert write_transform(path, whole, overwrite=True) < 1e-9
        np.testing.assert_allclose(by_itk(path, where, axes), whole.apply(where), atol=1e-9)
        again = read_transform(path, axes).apply(where)
        np.testing.assert_allclose(again, whole.apply(where), atol=1e-9)


def test_a_wrong_file_is_noticed_behind_an_affine(odd_grid, tmp_path, monkeypatch) -> None:
    spline = splines(odd_grid(3, axes=("z", "y", "x"), shape=(9, 8, 10)))
    far = np.eye(4)
    far[:3, 3] = 1e4
    wrong = BSplineTransform(spline.coefficients * 1.01, spline.grid)

    def spoilt(path, steps, axes) -> None:
        write_hdf5_transform(path, (steps[0], wrong), axes)

    monkeypatch.setattr(transform_files, "write_hdf5_transform", spoilt)
    with pytest.raises(ItkstreamError, match="maps points"):
        write_transform(tmp_path / "t.h5", CompositeTransform((AffineTransform(far), spline)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("large", [False, True])
def test_chains_of_fields_and_b_splines(
    odd_grid, smooth_transform, tmp_path, monkeypatch, large
) -> None:
    if large:
        monkeypatch.setattr(transform_files, "_LARGE", 0)
    grid = odd_grid(6, axes=("z", "y", "x"))
    field, affine = smooth_transform(grid, factor=1).transforms
    spline = splines(grid, 2)
    nested = CompositeTransform((affine, CompositeTransform((field, spline))))
    whole = CompositeTransform((nested, affine, affine))
    assert write_transform(tmp_path / "t.h5", whole) < 1e-9
    found = read_transform(tmp_path / "t.h5")
    kinds = [AffineTransform, DisplacementField, BSplineTransform, AffineTransform]
    assert [type(step) for step in found.transforms] == kinds
    assert isinstance(found.transforms[1].data, Hdf5Vectors)
    middle = grid.to_physical(np.random.default_rng(0).uniform(5, 9, (50, 3)))
    points = affine.inverse().apply(middle)
    np.testing.assert_allclose(found.apply(points), whole.apply(points), atol=1e-9)
    wanted = by_itk(tmp_path / "t.h5", points, grid.axes)
    np.testing.assert_allclose(found.apply(points), wanted, atol=1e-9)


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".h5"])
def test_fields_that_itk_wrote_keep_every_bit(odd_grid, tmp_path, suffix) -> None:
    grid = odd_grid(8, axes=("z", "y", "x"))
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, 3))
    itk = to_itk_transform(DisplacementField(vectors, grid), grid.axes)
    sitk.WriteTransform(itk, str(tmp_path / f"t{suffix}"))
    found = read_transform(tmp_path / f"t{suffix}")
    np.testing.assert_array_equal(np.asarray(found.data), vectors)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_images_keep_every_bit(odd_grid, tmp_path, suffix, dtype) -> None:
    grid = odd_grid(9, axes=("y", "z", "x"))
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, 3)).astype(dtype)
    sitk.WriteImage(to_itk_image(vectors, grid), str(tmp_path / f"itk{suffix}"))
    paths = [tmp_path / f"itk{suffix}"]
    if dtype == np.float32:
        write_transform(tmp_path / f"own{suffix}", DisplacementField(vectors, grid))
        paths.append(tmp_path / f"own{suffix}")
    for path in paths:
        found = read_transform(path, grid.axes)
        np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(found.data))), vectors)
        np.testing.assert_array_equal(found.data[2:5, :, 3:9], vectors[2:5, :, 3:9])
        assert found.data.dtype == dtype


def test_slicers_nifti_vectors_point_the_other_way(odd_grid, smooth_transform, tmp_path) -> None:
    field = smooth_transform(odd_grid(7)).transforms[0]
    write_transform(tmp_path / "itk.nii", field)
    content = bytearray((tmp_path / "itk.nii").read_bytes())
    assert content[68:70] == (1007).to_bytes(2, "little")
    content[68:70] = (1006).to_bytes(2, "little")
    (tmp_path / "slicer.nii").write_bytes(content)
    found = read_transform(tmp_path / "slicer.nii", field.grid.axes)
    flipped = np.asarray(field.data) * np.float32([-1, -1, 1])
    np.testing.assert_array_equal(np.asarray(found.data), flipped)


def test_images_are_streamed(odd_grid, smooth_transform, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(displacement_images, "_SLAB", 500)
    monkeypatch.setattr(check, "_SMALL", 0)
    transform = smooth_transform(odd_grid(3, axes=("y", "z", "x")))
    seen = []

    class Watched:
        def __init__(self, data: np.ndarray) -> None:
            self.data, self.shape, self.dtype = data, data.shape, data.dtype

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            seen.append(self.data[key].size)
            return self.data[key]

    field, affine = transform.transforms
    watched = CompositeTransform((DisplacementField(Watched(field.data), field.grid), affine))
    for suffix in (".nrrd", ".mha"):
        write_transform(tmp_path / f"t{suffix}", watched)
        assert max(seen) <= 500 < field.data.size
        points = inside(field.grid)
        found = read_transform(tmp_path / f"t{suffix}", field.grid.axes).apply(points)
        np.testing.assert_allclose(found, transform.apply(points), atol=1e-4)


@pytest.mark.parametrize("axes", AXES, ids="".join)
def test_stores(odd_grid, smooth_transform, tmp_path, monkeypatch, axes) -> None:
    monkeypatch.setattr(ngff_transforms, "_CHUNK", 4)
    grid = odd_grid(4, len(axes), axes)
    path = tmp_path / "t.ome.zarr"
    for transform in (smooth_transform(grid), smooth_transform(grid).transforms[0]):
        write_transform(path, transform, overwrite=True)
        points = inside(grid)
        found = read_transform(path, axes)
        np.testing.assert_allclose(found.apply(points), transform.apply(points), atol=1e-9)
    with pytest.raises(ExistingOutputError):
        write_transform(path, transform)
    assert [p.name for p in tmp_path.iterdir()] == ["t.ome.zarr"]


def test_long_vectors_are_as_right_as_their_format(odd_grid, smooth_transform, tmp_path) -> None:
    field = smooth_transform(odd_grid(7)).transforms[0]
    far = np.eye(4)
    far[:3, 3] = 1e5
    for suffix in IMAGES:
        write_transform(tmp_path / f"t{suffix}", CompositeTransform((field, AffineTransform(far))))


def test_folders_and_stores(odd_grid, smooth_transform, tmp_path) -> None:
    grid = odd_grid(1, axes=("z", "y", "x"))
    transform = smooth_transform(grid)
    field, affine = transform.transforms
    path = tmp_path / "run" / "transform.ome.zarr"
    target = create_transform(path, affine, field.grid, chunks=(5, 5, 5))
    target[:] = as_stored(field.data, field.grid)
    points = inside(grid)
    for place in (path, path.parent):
        found = read_transform(place)
        np.testing.assert_allclose(found.apply(points), transform.apply(points), atol=1e-9)
        xyz = read_transform(place, ("x", "y", "z"))
        np.testing.assert_allclose(
            xyz.apply(points[:, ::-1]), transform.apply(points)[:, ::-1], atol=1e-9
        )
    # A stored field goes to a file as one in memory does.
    write_transform(tmp_path / "t.h5", found)
    np.testing.assert_allclose(
        read_transform(tmp_path / "t.h5").apply(points), transform.apply(points), atol=1e-6
    )


@pytest.mark.parametrize("name", ["t.nrrd", "t.ome.zarr", "t.h5"])
def test_identities_are_not_written(odd_grid, smooth_transform, tmp_path, name) -> None:
    grid = odd_grid(5)
    field = smooth_transform(grid).transforms[0]
    still = AffineTransform(np.eye(4))
    write_transform(tmp_path / name, CompositeTransform((still, field, still)))
    found = read_transform(tmp_path / name, grid.axes)
    points = inside(grid)
    # Vectors of some micrometers in float32.
    np.testing.assert_allclose(found.apply(points), field.apply(points), atol=1e-6)


def test_refuses_to_write(odd_grid, smooth_transform, tmp_path) -> None:
    transform = smooth_transform(odd_grid(0))
    field, affine = transform.transforms
    plane = DisplacementField(np.zeros((3, 3, 2)), Grid((3, 3), (1.0, 1.0)))
    spline = BSplineTransform(np.zeros((5, 5, 5, 3)), Grid((5, 5, 5), (1.0, 1.0, 1.0)))
    far = Grid((5, 5, 5), (1.0, 1.0, 1.0), (1e6, 0, 0))
    elsewhere = DisplacementField(np.zeros((5, 5, 5, 3)), far)
    for name, what, message in (
        ("t.tfm", transform, "write it as .h5"),
        ("t.mat", field, "write it as .h5"),
        ("t.nrrd", affine, "this transform is an affine"),
        ("t.ome.zarr", affine, "this transform is an affine"),
        ("t.xyz", affine, "no transform format ends like t.xyz"),
        ("t.nii.gz", plane, "wrong values from NIfTI"),
        ("t.mha", CompositeTransform((affine, field)), "got AffineTransform, DisplacementField"),
        ("t.h5", piecewise(), "got PiecewiseAffine: sample it"),
        ("t.mat", spline, r"has B-splines: write it as .tfm, .txt or .h5"),
        (
            "t.nrrd",
            spline,
            r"got BSplineTransform: write it as .h5 \(B-splines and affines as .tfm",
        ),
        ("t.ome.zarr", CompositeTransform((spline, affine)), "got BSplineTransform, Affine"),
        ("t.tfm", CompositeTransform((spline, field)), "has a displacement field: write it as .h5"),
        ("t.h5", CompositeTransform((field, elsewhere)), "no point passes through all lattices"),
    ):
        with pytest.raises(InputError, match=message):
            write_transform(tmp_path / name, what)
    with pytest.raises(InputError, match="points with the axes"):
        write_transform(tmp_path / "t.h5", field, ("z", "y", "x"))
    assert not list(tmp_path.iterdir())
    affine = AffineTransform(affine.matrix, ("x", "y", "z"))
    for name, what in (("t.tfm", affine), ("t.h5", transform)):
        write_transform(tmp_path / name, what)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ExistingOutputError, match="overwrite=True"):
            write_transform(tmp_path / name, what)
        assert (tmp_path / name).read_bytes() == before


def piecewise() -> PiecewiseAffine:
    return PiecewiseAffine(
        np.eye(4)[None, None, None], BlockGrid((8,) * 3, (8,) * 3), Grid((8,) * 3, (1.0,) * 3)
    )


@pytest.mark.parametrize("name", ["a.tfm", "a.txt", "a.mat", "a.h5", "s.tfm", "s.txt", "s.h5"])
def test_what_is_cut_off_is_never_read_as_something_else(tmp_path, name) -> None:
    lattice = Grid((4, 4, 4), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), axes=("z", "y", "x"))
    about = sitk.AffineTransform(3)
    about.SetCenter((10.0, 20.0, 30.0))
    about.SetMatrix((np.eye(3) * 1.25).ravel().tolist())
    spline = to_itk_transform(splines(lattice), lattice.axes)
    path = tmp_path / name
    sitk.WriteTransform(about if name.startswith("a") else spline, str(path))
    whole = path.read_bytes()
    points = np.random.default_rng(0).uniform(5, 9, (20, 3))
    wanted = read_transform(path).apply(points)
    for size in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:size])
        try:
            found = read_transform(path).apply(points)
        except InputError:
            continue
        # Only a line's end, or what nobody reads, was missing.
        np.testing.assert_array_equal(found, wanted)


def test_refuses_to_read(odd_grid, smooth_transform, tmp_path) -> None:
    grid = odd_grid(0, shape=(24, 24, 24))
    transform = smooth_transform(grid, factor=1)
    field = transform.transforms[0]
    with pytest.raises(MissingDataError, match="there is no transform"):
        read_transform(tmp_path / "none.h5")
    with pytest.raises(MissingDataError, match="no transform store"):
        read_transform(tmp_path)
    sitk.WriteTransform(to_itk_transform(transform, grid.axes), str(tmp_path / "c.mat"))
    with pytest.raises(InputError, match=r"composites to \.mat, but cannot read"):
        read_transform(tmp_path / "c.mat")
    write_transform(tmp_path / "t.h5", transform)
    whole = (tmp_path / "t.h5").read_bytes()
    (tmp_path / "t.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="no transform that ITK can read"):
        read_transform(tmp_path / "t.h5")
    write_transform(tmp_path / "plane.tfm", AffineTransform(np.eye(3)), ("y", "x"))
    with pytest.raises(InputError, match="a 2-D transform; it cannot have the axes"):
        read_transform(tmp_path / "plane.tfm", ("z", "y", "x"))
    holes = np.array(field.data)
    holes[1, 2, 3] = np.nan
    image = sitk.GetImageFromArray(holes, isVector=True)
    write_hdf5_transform(tmp_path / "n.h5", (DisplacementField(holes, field.grid),), grid.axes)
    with pytest.raises(InputError, match="holds NaN"):
        read_transform(tmp_path / "n.h5")
    for name in ("n.nrrd", "n.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        with pytest.raises(InputError, match="holds NaN"):
            read_transform(tmp_path / name)
    sitk.WriteImage(sitk.GetImageFromArray(holes[..., 0]), str(tmp_path / "scalar.nrrd"))
    with pytest.raises(InputError, match="is it an image rather than a transform"):
        read_transform(tmp_path / "scalar.nrrd")
    for name in ("n.nii", "n.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / name))
        with pytest.raises(InputError, match="holds NaN"):
            read_transform(tmp_path / name)
    write_transform(tmp_path / "cut.mha", field)
    write_transform(tmp_path / "cut.nrrd", field)
    write_transform(tmp_path / "cut.nii.gz", field)
    for path in tmp_path.glob("cut.*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises((InputError, UnreadableDataError), match=r"cut (off|short)"):
            read_transform(path)
    (tmp_path / "text.nrrd").write_text("hello")
    with pytest.raises(InputError, match="no image that ITK can read"):
        read_transform(tmp_path / "text.nrrd")


def test_a_compressed_image_is_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid((6, 5, 4), (1, 1, 1), axes=("z", "y", "x"))
    write_transform(tmp_path / "t.nii.gz", DisplacementField(np.ones((6, 5, 4, 3)), grid))
    opened = []

    def counting(path: Path, mode: str) -> Any:
        opened.append(path)
        return gzip.GzipFile(path, mode)

    monkeypatch.setattr(displacement_images, "gzip", SimpleNamespace(open=counting))
    read_transform(tmp_path / "t.nii.gz")
    assert len(opened) == 1
