"""One transform on images of every type, labels, series and other lattices."""

from __future__ import annotations

from collections.abc import Callable

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from itkstream.apply.products import Series
from itkstream.apply.resampling import (
    apply_transform,
    prepare_apply_to_series,
    prepare_apply_transform,
)
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.geometry.itk_bridge import to_itk_image, to_itk_transform
from itkstream.io import create_ome_zarr, open_image
from itkstream.io.images.files.itk_images import write_itk
from itkstream.io.transforms.files import write_transform
from itkstream.numerics.sampling.mapping import GridMap, map_on
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.transform import apply_global_affine, invert_transform

MakeGrid = Callable[..., Grid]
Make = Callable[..., CompositeTransform]
GRID = Grid((26, 24, 22), (1.0, 1.2, 1.5), axes=("z", "y", "x"))
LABELS = ("nearest", "label-gaussian")


def gentle(seed: int, grid: Grid = GRID) -> CompositeTransform:
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=(*grid.shape, 3)), (4, 4, 4, 0), mode="nearest")
    matrix = np.eye(4)
    matrix[:3, :3] += rng.uniform(-0.03, 0.03, (3, 3))
    matrix[:3, 3] = rng.uniform(-1, 1, 3)
    field = DisplacementField((noise / np.abs(noise).max()).astype(np.float32), grid)
    return CompositeTransform((field, AffineTransform(matrix)))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_points_and_images_go_the_same_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    transform = gentle(int(rng.integers(1000)))
    centre = GRID.to_physical(rng.uniform(10, 14, 3))
    there = transform.apply(centre)
    # A blob where the point goes must be seen where the point comes from.
    far = ((GRID.positions() - there) ** 2).sum(-1)
    blob = Image(np.exp(-far / (2 * 1.8**2)), GRID)
    seen = apply_transform(GRID, blob, transform)
    found = (GRID.positions() * seen[..., None]).sum((0, 1, 2)) / seen.sum()
    # The blob is some voxels wide: over it the map bends, and its middle moves by less than this.
    np.testing.assert_allclose(found, centre, atol=0.15)


@given(st.sampled_from(LABELS), st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_no_label_is_made_up_and_every_bit_is_kept(interpolator: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = rng.integers(2**63, 2**64 - 1, 6, dtype=np.uint64)
    voxels = known[rng.integers(0, 6, GRID.shape)]
    chosen = WarpSettings(interpolator)
    moving, transform = Image(voxels, GRID), gentle(seed % 1000)
    whole = apply_transform(GRID, moving, transform, chosen)
    assert whole.dtype == np.uint64
    assert np.isin(whole, [0, *known]).all()
    blocks = prepare_apply_transform(GRID, moving, transform, (13, 12, 11), chosen).compute()
    np.testing.assert_array_equal(blocks, whole)


TYPES = ["bool", "int8", "int16", "uint16", "int64", "uint64", "float16", "float32", ">u2"]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_in_blocks_as_in_one(dtype: str, ndim: int) -> None:
    rng = np.random.default_rng(1)
    grid = Grid((12, 11, 10)[:ndim], (1.0, 1.5, 2.0)[:ndim])
    matrix = np.eye(ndim + 1)
    matrix[:-1, -1] = 0.3
    voxels = Image((rng.integers(0, 2, grid.shape) * 100).astype(dtype), grid)
    for interpolator in ("nearest", "linear", "quadratic-bspline", "bspline", "label-gaussian"):
        given = (grid, voxels, AffineTransform(matrix))
        chosen = WarpSettings(interpolator, background=7)
        whole = apply_transform(*given, chosen)
        blocks = prepare_apply_transform(*given, (5,) * ndim, chosen).compute()
        assert whole.dtype == blocks.dtype == dtype
        # Splines of a part end where their poles have decayed to single precision.
        atol = 1e-4 if "bspline" in interpolator else 0
        np.testing.assert_allclose(blocks.astype(float), whole.astype(float), rtol=0, atol=atol)


@pytest.mark.parametrize("interpolator", [*LABELS, "linear", "bspline"])
@pytest.mark.parametrize("engine", [None, "itk"])
def test_a_narrower_type_is_never_wrapped_into(interpolator: str, engine: str | None) -> None:
    identity = AffineTransform(np.eye(4))
    away = np.eye(4)
    away[0, 3] = 20.0
    for start, value, end, wanted in (
        ("uint16", 300, "uint8", 255),
        ("int16", -5, "uint8", 0),
        ("float32", 2.7, "uint8", 3),
        ("float32", 3e9, "int32", 2**31 - 1),
        ("uint64", 2**64 - 1, "int64", 2**63 - 1),
        ("float32", np.nan, "uint8", 0),
    ):
        chosen = WarpSettings(interpolator, engine, background=-1, dtype=end)
        moving = Image(np.full(GRID.shape, value, start), GRID)
        assert (apply_transform(GRID, moving, identity, chosen) == wanted).all()
        beyond = apply_transform(GRID, moving, AffineTransform(away), chosen)
        assert beyond[-1, 0, 0] == (0 if end == "uint8" else -1)
        assert beyond[0, 0, 0] == wanted


@pytest.mark.parametrize("interpolator", LABELS)
def test_the_background_of_labels_keeps_its_bits(interpolator: str) -> None:
    away = np.eye(4)
    away[0, 3] = 15.0
    moving = Image(np.full(GRID.shape, 2**63 + 7, np.uint64), GRID)
    for shift in (15.0, 99.0):
        away[0, 3] = shift
        for engine in (None, "itk"):
            chosen = WarpSettings(interpolator, engine, background=2**63 + 5)
            found = apply_transform(GRID, moving, AffineTransform(away), chosen)
            assert {*np.unique(found).tolist()} <= {2**63 + 5, 2**63 + 7}
            assert found[-1, 0, 0] == 2**63 + 5


def test_what_no_image_holds() -> None:
    moving = Image(np.zeros(GRID.shape, np.uint8), GRID)
    identity = AffineTransform(np.eye(4))
    with pytest.raises(InputError, match="cannot hold NaN, the background"):
        prepare_apply_transform(GRID, moving, identity, (9, 9, 9), WarpSettings(background=np.nan))
    for wrong in (np.complex64, np.longdouble, "U3"):
        with pytest.raises(InputError, match="images that are resampled hold truth values"):
            WarpSettings(dtype=wrong)
        odd = Image(np.zeros(GRID.shape, wrong), GRID)
        with pytest.raises(InputError, match="images that are resampled hold truth values"):
            apply_transform(GRID, odd, identity)
    with pytest.raises(InputError, match="'colour' is no voxel type"):
        WarpSettings(dtype="colour")


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_order_and_type_as_simpleitk(order: int, dtype: str) -> None:
    rng = np.random.default_rng(order)
    smooth = gaussian_filter(rng.normal(size=GRID.shape), 1.0)
    scaled = 90 * smooth / np.abs(smooth).max()
    voxels = (scaled + (100 if dtype.startswith("u") else 0)).astype(dtype)
    affine = gentle(3).transforms[1]
    found = apply_global_affine(
        Image(voxels, GRID), Image(voxels, GRID), None, None, affine.matrix, order=order
    )
    assert found.dtype == dtype
    kinds = (sitk.sitkNearestNeighbor, sitk.sitkLinear, sitk.sitkBSpline2, sitk.sitkBSpline3)
    image = to_itk_image(voxels.astype(np.float64), GRID)
    itk = sitk.Resample(image, image, to_itk_transform(affine, GRID.axes), kinds[order], 0.0)
    wanted = sitk.GetArrayFromImage(itk)
    # Integers are rounded; a cubic spline's own margin decays to single precision.
    atol = 0.5001 if np.dtype(dtype).kind in "iu" else 1e-4
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(found[inner].astype(float), wanted[inner], atol=atol)


def test_integers_are_clipped_and_never_wrapped() -> None:
    voxels = np.zeros(GRID.shape, np.uint8)
    voxels[8:18, 8:16, 8:14] = 255
    moving = Image(voxels, GRID)
    half = np.eye(4)
    half[:3, 3] = 0.4, 0.5, 0.6
    for order in (2, 3):
        found = apply_global_affine(moving, moving, None, None, half, order=order)
        # Splines overshoot at edges: what wrapped would be far from both of its neighbours.
        assert found[12, 12, 11] >= 250
        assert found[8:16, 9:15, 9:13].min() > 200
        assert found[:6].max() < 40


def test_a_series_is_mapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = gentle(5)
    evaluated = []

    def counted(mapped: CompositeTransform, grid: Grid) -> GridMap:
        evaluated.append(grid.size)
        return map_on(mapped, grid)

    monkeypatch.setattr("itkstream.apply.resampling.map_on", counted)
    rng = np.random.default_rng(0)
    series = [Image(rng.integers(0, 9999, GRID.shape).astype(np.uint16), GRID) for _ in range(4)]
    lazy = prepare_apply_to_series(GRID, series, transform, (13, 12, 22))
    assert lazy.shape == (4, *GRID.shape)
    found = lazy.compute(scheduler="synchronous")
    assert sum(evaluated) == GRID.size
    for image, aligned in zip(series, found, strict=True):
        wanted = apply_transform(GRID, image, transform)
        # Maps that differ in the last digits of float32 may round to the next integer.
        assert np.abs(aligned.astype(int) - wanted).max() <= 1
    odd = Image(series[0].data.astype(np.float32), GRID)
    for wrong in ([], [series[0], odd]):
        with pytest.raises(InputError, match="a series has at least one image"):
            prepare_apply_to_series(GRID, wrong, transform, (8, 8, 8))


def test_lattices_other_than_the_fixed_one() -> None:
    transform = gentle(6)
    voxels = gaussian_filter(np.random.default_rng(1).normal(size=GRID.shape), 1.5)
    moving = Image(voxels, GRID)
    half = GRID.shrink((2, 2, 2))
    part = GRID.crop((slice(3, 20), slice(5, 9), slice(0, 22)))
    whole = apply_transform(GRID, moving, transform)
    np.testing.assert_allclose(
        apply_transform(part, moving, transform), whole[3:20, 5:9], atol=1e-6
    )
    itk = sitk.Resample(
        to_itk_image(voxels, GRID),
        to_itk_image(np.zeros(half.shape), half),
        to_itk_transform(transform, GRID.axes),
        sitk.sitkLinear,
    )
    # ITK's own background.
    coarse = prepare_apply_transform(half, moving, transform, (7, 7, 7), WarpSettings()).compute()
    np.testing.assert_allclose(coarse, sitk.GetArrayFromImage(itk), atol=1e-5)


def test_images_there_and_back() -> None:
    transform = gentle(7)
    voxels = gaussian_filter(np.random.default_rng(2).normal(size=GRID.shape), 2.5)
    aligned = apply_transform(GRID, Image(voxels, GRID), transform)
    back = apply_transform(GRID, Image(aligned, GRID), invert_transform(transform, GRID))
    inner = (slice(6, -6),) * 3
    # Two linear interpolations of a texture 2.5 voxels wide lose some of its peaks.
    assert np.abs(back[inner] - voxels[inner]).max() < 0.25 * voxels.std()


def test_the_command(tmp_path, command) -> None:
    transform = gentle(8)
    write_transform(tmp_path / "t.h5", transform)
    labels = np.random.default_rng(3).integers(0, 2**40, GRID.shape).astype(np.uint64)
    create_ome_zarr(tmp_path / "m.ome.zarr", GRID, np.uint64, chunks=(13, 12, 11))[:] = labels
    half = GRID.shrink((2, 2, 2))
    write_itk(tmp_path / "like.nrrd", Image(np.zeros(half.shape, np.uint8), half))
    words = ["apply", "t.h5", "m.ome.zarr", "out.ome.zarr", "--like", "like.nrrd", "--labels"]
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = open_image(tmp_path / "out.ome.zarr")
    assert found.grid.shape == half.shape
    np.testing.assert_allclose(found.grid.matrix, half.matrix)
    wanted = apply_transform(half, Image(labels, GRID), transform, WarpSettings("nearest"))
    np.testing.assert_array_equal(found.read(), wanted)
    again = command(*words, cwd=tmp_path)
    assert (again.returncode, "is there already" in again.stderr) == (3, True)


def test_the_command_on_channels_and_types(tmp_path, command) -> None:
    transform = gentle(9)
    write_transform(tmp_path / "t.h5", transform)
    rng = np.random.default_rng(4)
    voxels = rng.integers(0, 999, (2, 3, *GRID.shape)).astype(np.uint16)
    series = {"t": 2, "c": 3}
    create_ome_zarr(tmp_path / "m.ome.zarr", GRID, np.uint16, chunks=(26, 24, 22), series=series)[
        :
    ] = voxels
    words = ["apply", "t.h5", "m.ome.zarr", "--like", "m.ome.zarr"]
    for options in (("--time", "all", "--channel", "all"), ("--time", "1", "--channel", "all")):
        done = command(*words, "all.ome.zarr", *options, "--overwrite", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for time, channel in np.ndindex(2, 3):
            if options[1] == "1" and time:
                continue
            found = open_image(tmp_path / "all.ome.zarr", time=time, channel=channel)
            which = 1 if options[1] == "1" else time
            wanted = apply_transform(GRID, Image(voxels[which, channel], GRID), transform)
            # The file holds the field in doubles, the test in singles.
            assert np.abs(found.read().astype(int) - wanted).max() <= 1
    labels = rng.choice(np.array([1, 2**53 + 1, 2**64 - 1], np.uint64), GRID.shape)
    create_ome_zarr(tmp_path / "l.ome.zarr", GRID, np.uint64, chunks=(26, 24, 22))[:] = labels
    words[2] = "l.ome.zarr"
    options = ["--label-gaussian", "--background", str(2**53 + 3)]
    assert command(*words, "g.ome.zarr", *options, cwd=tmp_path).returncode == 0
    found = np.unique(open_image(tmp_path / "g.ome.zarr").read())
    assert found.tolist() == [1, 2**53 + 1, 2**53 + 3, 2**64 - 1]
    assert command(*words, "n.ome.zarr", "--dtype", "uint8", cwd=tmp_path).returncode == 0
    assert open_image(tmp_path / "n.ome.zarr").dtype == np.uint8
    for wrong, message in (
        (("--background", "nan"), "cannot hold NaN"),
        (("--background", "x"), "is not a valid float"),
        (("--dtype", "complex64"), "hold truth values"),
        (("--time", "x"), "is not a valid integer"),
        (("--channel", "4"), "has no channel"),
    ):
        done = command(*words, "w.ome.zarr", *wrong, cwd=tmp_path)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    done = command("apply", "t.h5", "m.ome.zarr", "w.ome.zarr", cwd=tmp_path)
    assert (done.returncode, "say --like IMAGE" in done.stderr) == (2, True)


def test_a_series_counts_its_images() -> None:
    with pytest.raises(InputError, match=r"a series along {'c': 2} has as many images; got 1"):
        Series((Image(np.zeros(GRID.shape), GRID),), (("c", 2),))


def test_a_dask_series() -> None:
    data = da.random.default_rng(0).random((3, *GRID.shape), chunks=(1, 13, 12, 11))
    series = [Image(data[k], GRID) for k in range(3)]
    identity = AffineTransform(np.eye(4))
    found = prepare_apply_to_series(GRID, series, identity, (13, 12, 11)).compute()
    np.testing.assert_allclose(found, data.compute(), atol=1e-12)
