"""Warping against SimpleITK, the oracle: both engines, every kind of transform, type and layout."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from attrs import evolve

from itkstream.blocks.masks import masked
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import (
    AffineTransform,
    ChannelPair,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Transform,
    default_axes,
)
from itkstream.geometry.itk_bridge import (
    INTERPOLATORS,
    from_itk_image,
    to_itk_image,
    to_itk_transform,
)
from itkstream.io.transforms.itk.hdf5_files import write_hdf5_transform
from itkstream.io.transforms.itk.transform_files import write_itk_transform
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.engines import deform_block
from itkstream.numerics.itk.settings import DeformSettings, DemonsSettings
from itkstream.numerics.matching.affine import AffineSettings, affine_block
from itkstream.numerics.matching.contexts import ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings
from itkstream.numerics.matching.matches import MatchSettings
from itkstream.numerics.sampling.fields import pick_vectors
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.phantoms import PhantomPair

MakeGrid = Callable[..., Grid]
Make = Callable[..., CompositeTransform]
AXES = [("x", "y", "z"), ("z", "y", "x"), ("x", "y"), ("y", "x")]
KINDS = ["affine", "field", "composite"]


def near_grid(grid: Grid, seed: int = 1) -> Grid:
    """Another lattice over nearly the same region, turned otherwise."""
    rng = np.random.default_rng(seed)
    n = grid.ndim
    turn = np.linalg.qr(np.eye(n) + rng.normal(0, 0.1, (n, n)))[0]
    turn *= np.sign(np.diag(turn))
    spacing = np.array(grid.spacing) * rng.uniform(0.8, 1.3, n)
    centre = grid.to_physical((np.array(grid.shape) - 1) / 2)
    corner = centre - turn @ (spacing * (np.array(grid.shape) - 1) / 2)
    return Grid(grid.shape, spacing, corner, tuple(map(tuple, turn)), grid.axes)


def by_itk(moving: Image, transform: sitk.Transform, grid: Grid, interpolator: int) -> np.ndarray:
    """Plain SimpleITK, in double precision, with no help of the package but the wrapping."""
    reference = grid.reorder(default_axes(grid.ndim))
    image = to_itk_image(moving.read(), moving.grid)
    kind = image.GetPixelID() if interpolator == sitk.sitkNearestNeighbor else sitk.sitkFloat64
    done = sitk.Resample(
        image, reference.shape, transform, interpolator, reference.origin, reference.spacing,
        np.ravel(reference.direction).tolist(), 0.0, kind,
    )  # fmt: skip
    return from_itk_image(done, grid.axes).read()


def of_kind(composite: CompositeTransform, kind: str) -> Transform:
    return {"field": composite.transforms[0], "affine": composite.transforms[1]}.get(
        kind, composite
    )


def texture(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(10, 250, shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", AXES, ids="".join)
@pytest.mark.parametrize("engine", ["fast", "itk"])
def test_linear_equals_simpleitk(
    odd_grid: MakeGrid, smooth_transform: Make, axes: tuple[str, ...], kind: str, engine: str
) -> None:
    grid = odd_grid(1, len(axes), axes)
    moving = Image(texture(grid.shape), near_grid(grid))
    transform = of_kind(smooth_transform(grid), kind)
    wanted = by_itk(moving, to_itk_transform(transform, axes), grid, sitk.sitkLinear)
    settings = WarpSettings(engine=engine, dtype=np.float64)
    found = warp_block(moving, transform, grid, settings)
    assert 0.2 < np.mean(wanted != 0) < 1
    # Displacements are float32: 1e-6 of some voxels times steps of 240 grey values; and at most
    # a voxel in a thousand may fall on the other side of the image's border by that.
    different = np.abs(found - wanted) > 2e-3
    assert different.mean() < 1e-3
    assert different[(found != 0) & (wanted != 0)].sum() == 0


@pytest.mark.parametrize("axes", AXES, ids="".join)
@pytest.mark.parametrize("engine", ["fast", "itk"])
def test_nearest_equals_simpleitk_on_labels(
    odd_grid: MakeGrid, smooth_transform: Make, axes: tuple[str, ...], engine: str
) -> None:
    grid = odd_grid(2, len(axes), axes)
    labels = np.random.default_rng(0).integers(1, 2**53, grid.shape, dtype=np.uint64)
    moving = Image(labels, near_grid(grid))
    transform = smooth_transform(grid)
    itk = to_itk_transform(transform, axes)
    wanted = by_itk(moving, itk, grid, sitk.sitkNearestNeighbor)
    found = warp_block(moving, transform, grid, WarpSettings("nearest", engine))
    assert found.dtype == np.uint64
    # A position within 1e-6 of half-way may go either way.
    assert np.mean(found != wanted) < 1e-3


@pytest.mark.parametrize("name", ["nearest", "label-gaussian"])
@pytest.mark.parametrize("engine", ["fast", "itk"])
@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_labels_out_are_labels_in(
    odd_grid: MakeGrid, smooth_transform: Make, name: str, engine: str, dtype: type
) -> None:
    if (name, engine) == ("label-gaussian", "fast"):
        pytest.skip("the fast engine has no such interpolator")
    grid = odd_grid(2)
    rng = np.random.default_rng(0)
    # More than 53 bits: any passage through floating point shows. ITK itself fails this.
    labels = rng.choice(rng.integers(2**60, 2**62, 50), grid.shape).astype(dtype)
    moving = Image(labels, near_grid(grid))
    settings = WarpSettings(name, engine, background=7)
    found = warp_block(moving, smooth_transform(grid), grid, settings)
    assert found.dtype == dtype
    assert {*np.unique(found)} <= {*np.unique(labels), 7}
    assert 0.2 < np.mean(found != 7) < 1


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8", "?", ">u2", ">f4", "f2", "u8"])
@pytest.mark.parametrize("engine", ["fast", "itk"])
@pytest.mark.parametrize("order", [0, 1])
def test_every_type_and_layout_equals_simpleitk(
    odd_grid: MakeGrid, smooth_transform: Make, dtype: str, engine: str, order: int
) -> None:
    grid = odd_grid(3)
    base = np.zeros((2 * grid.shape[2], grid.shape[1], grid.shape[0]), dtype)
    voxels = base[::2].transpose(2, 1, 0)[:, ::-1]  # strided, reversed, in Fortran's order
    voxels[...] = texture(grid.shape) > 130 if dtype == "?" else texture(grid.shape)
    moving = Image(voxels, near_grid(grid))
    transform = smooth_transform(grid)
    interpolator = (sitk.sitkNearestNeighbor, sitk.sitkLinear)[order]
    wanted = by_itk(moving, to_itk_transform(transform, grid.axes), grid, interpolator)
    settings = WarpSettings(("nearest", "linear")[order], engine)
    found = warp_block(moving, transform, grid, settings)
    assert found.dtype == np.dtype(dtype)
    inside = (found != 0) & (wanted != 0)
    if order == 0:
        assert np.mean(found != wanted) < 1e-3
    elif dtype == "?":
        sure = np.abs(wanted - 0.5) > 1e-3
        np.testing.assert_array_equal(found[sure], wanted[sure] > 0.5)
    else:
        # Integers are rounded: half a grey value; half precision has 11 bits: 0.07 of 250.
        slack = 0.5 if np.dtype(dtype).kind in "ui" else {"f2": 0.07}.get(dtype, 0.0)
        assert np.abs(found.astype(float) - wanted)[inside].max() <= slack + 2e-3
        assert np.mean((found != 0) != (wanted >= 0.5)) < 1e-2


@pytest.mark.parametrize("name", sorted(INTERPOLATORS))
def test_every_itk_interpolator_in_blocks_equals_the_whole(
    odd_grid: MakeGrid, smooth_transform: Make, name: str
) -> None:
    # Spacings near each other, so that a margin counted in the widest is none too wide.
    grid = replace(odd_grid(4, shape=(70, 12, 10)), spacing=(1.0, 1.1, 0.9))
    moving = Image(texture(grid.shape), near_grid(grid))
    transform = smooth_transform(grid)
    itk = to_itk_transform(transform, grid.axes)
    # ITK has no label interpolation of reals: it gives the voxels' own type.
    moving = replace(moving, data=moving.data.astype(np.uint8)) if "label" in name else moving
    interpolator = INTERPOLATORS[name]
    wanted = by_itk(moving, itk, grid, interpolator)
    for part in (slice(0, 9), slice(30, 38)):
        box = (part, slice(None), slice(None))
        found = warp_block(moving, transform, grid.crop(box), WarpSettings(name, "itk"))
        if "label" in name:
            assert np.mean(found != np.rint(wanted[box])) < 0.01
        else:
            # A block reads 12 voxels around what it needs: the spline's tail is 1e-7 of 250 there;
            # displacements are float32, 6e-8 voxels of steps of 240.
            inside = (found != 0) & (wanted[box] != 0)
            assert np.abs(found - wanted[box])[inside].max() < 2e-4


@pytest.mark.parametrize("axes", AXES[:2], ids="".join)
def test_exported_files_resample_alike(
    odd_grid: MakeGrid, smooth_transform: Make, axes: tuple[str, ...], tmp_path: Path
) -> None:
    grid = odd_grid(5, 3, axes)
    moving = Image(texture(grid.shape), near_grid(grid))
    transform = smooth_transform(grid, factor=2)
    field, affine = transform.transforms
    write_itk_transform(tmp_path / "affine.tfm", affine, axes)
    write_hdf5_transform(tmp_path / "composite.h5", (field, affine), field.grid.axes)
    for name, meant in (("affine.tfm", affine), ("composite.h5", transform)):
        read = sitk.ReadTransform(str(tmp_path / name))
        wanted = by_itk(moving, read, grid, sitk.sitkLinear)
        for engine in ("fast", "itk"):
            found = warp_block(moving, meant, grid, WarpSettings(engine=engine, dtype=np.float64))
            inside = (found != 0) & (wanted != 0)
            assert inside.mean() > 0.2
            assert np.abs(found - wanted)[inside].max() < 2e-3
            assert np.mean((found != 0) != (wanted != 0)) < 1e-3


def test_itk_transforms_go_through_both_engines(odd_grid: MakeGrid) -> None:
    grid = odd_grid(6)
    moving = Image(texture(grid.shape), near_grid(grid))
    centre = grid.to_physical((np.array(grid.shape) - 1) / 2)
    spline = sitk.BSplineTransform(3, 3)
    spline.SetTransformDomainOrigin((centre - 100).tolist())
    spline.SetTransformDomainPhysicalDimensions((200.0, 200.0, 200.0))
    spline.SetTransformDomainMeshSize((5, 5, 5))
    spline.SetParameters(np.random.default_rng(0).normal(0, 2, spline.GetNumberOfParameters()))
    wanted = by_itk(moving, spline, grid, sitk.sitkLinear)
    for engine in ("fast", "itk"):
        found = warp_block(moving, spline, grid, WarpSettings(engine=engine))
        inside = (found != 0) & (wanted != 0)
        assert np.abs(found - wanted)[inside].max() < 2e-3


@pytest.mark.parametrize("engine", ["fast", "itk"])
def test_background_and_a_map_beside_the_image(engine: str) -> None:
    grid = Grid((6, 6), (1, 1))
    moving = Image(np.ones((6, 6), np.uint8), grid)
    shift = np.array([[1.0, 0, 3], [0, 1, 0], [0, 0, 1]])
    settings = WarpSettings(engine=engine, background=300)
    found = warp_block(moving, AffineTransform(shift), grid, settings)
    assert (found[:3] == 1).all()
    assert (found[3:] == 255).all()  # 300 clipped, not wrapped
    shift[0, 2] = 99
    assert (warp_block(moving, AffineTransform(shift), grid, settings) == 255).all()


def test_only_the_needed_part_is_read(odd_grid: MakeGrid) -> None:
    class Counted:
        """Remembers how much was read."""

        shape, dtype, read = (400, 400), np.dtype(np.uint8), 0

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            shape = [s.stop - s.start for s in key]
            self.read += int(np.prod(shape))
            return np.ones(shape, np.uint8)

    source = Counted()
    moving = Image(source, Grid((400, 400), (1, 1)))
    shift = AffineTransform(np.array([[1.0, 0, 200.5], [0, 1, 100], [0, 0, 1]]))
    warp_block(moving, shift, Grid((10, 10), (1, 1)), WarpSettings())
    assert source.read == 13 * 12


def test_a_blob_and_its_centre_move_alike(odd_grid: MakeGrid, smooth_transform: Make) -> None:
    # The moving image shows a blob at T(p): resampled through T it must lie at p.
    grid = odd_grid(7, shape=(24, 22, 20))
    transform = smooth_transform(grid, factor=12)
    moving_grid = near_grid(grid)
    p = grid.to_physical((11.3, 10.2, 9.6))
    there = transform.apply(p)
    width = 2.5 * max(grid.spacing)
    blob = np.exp(-np.sum((moving_grid.positions() - there) ** 2, -1) / (2 * width**2))
    found = warp_block(Image(blob, moving_grid), transform, grid, WarpSettings())
    centre = (grid.positions() * found[..., None]).sum((0, 1, 2)) / found.sum()
    # The map bends a little across the blob, and the blob is cut at the border.
    assert np.abs(centre - p).max() < 0.25 * min(grid.spacing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cubic",), "unknown interpolator 'cubic'"),
        (("linear", "gpu"), "engine must be one of .*'gpu'"),
        (("bspline", "fast"), "use engine='itk' for 'bspline'"),
    ],
)
def test_refuses_settings(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WarpSettings(*arguments)


def test_the_engine_is_the_fastest_that_can() -> None:
    assert WarpSettings().engine == WarpSettings("nearest").engine == "fast"
    assert WarpSettings("bspline").engine == "itk"


SETTINGS = DescentSettings(cc_radius=4, iterations=(20, 5))


def test_a_block_refines_its_start(pair: PhantomPair) -> None:
    start = AffineTransform(np.array(pair.truth.matrix))
    estimate = deform_block(pair.fixed, pair.moving, start, SETTINGS)
    assert estimate
    assert estimate.reason == ""
    field = DisplacementField(estimate.displacement, pair.fixed.grid)
    found = pair.error(CompositeTransform((field, start)).apply).summary()
    before = pair.error(start.apply).summary()
    assert found["median_vox"] < 0.6 * before["median_vox"]
    np.testing.assert_array_equal(estimate.refinement(), estimate.displacement)


def test_a_block_that_starts_from_a_field_returns_the_whole(pair: PhantomPair) -> None:
    affine = AffineTransform(np.array(pair.truth.matrix))
    p = pair.fixed.grid.positions()
    true = affine.inverse().apply(pair.truth(p)) - p
    begun = DisplacementField(true.astype(np.float32), pair.fixed.grid)
    start = CompositeTransform((begun, affine))
    estimate = deform_block(pair.fixed, pair.moving, start, evolve(SETTINGS, iterations=(0, 0)))
    # With no iteration nothing is added: only the field's own passage through coarser nodes.
    middle = (slice(4, -4),) * 3
    assert np.abs(estimate.displacement - true)[middle].max() < 0.1
    assert np.abs(estimate.refinement()[middle]).max() < 0.1


@pytest.mark.parametrize("settings", [SETTINGS, DemonsSettings()])
def test_a_block_adds_at_the_wanted_places_what_it_adds_there(
    pair: PhantomPair, settings: DeformSettings
) -> None:
    affine = AffineTransform(np.array(pair.truth.matrix))
    grid = pair.fixed.grid
    # Between the nodes that a descent begins on it is linear.
    begun = DisplacementField((0.01 * grid.positions()).astype(np.float32), grid)
    block = pair.fixed, pair.moving, CompositeTransform((begun, affine)), settings
    places = (None, *(np.arange(1.5, n, 4) for n in grid.shape[1:]))
    found, whole = deform_block(*block, places=places), deform_block(*block)
    assert found.mapping is None
    assert whole.mapping is not None
    # Differences of vectors before and after they are picked are rounded apart.
    wanted = pick_vectors(whole.refinement(), places)
    inner = (slice(8, -8), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(found.refinement()[inner], wanted[inner], atol=1e-3)
    assert np.abs(wanted[inner]).max() > 0.1


@pytest.mark.parametrize(
    ("fixed", "shift", "reason"),
    [
        (np.full((32, 32, 32), 7.0), 0, "no correlation window holds texture"),
        (np.full((32, 32, 32), np.nan), 0, "nothing but NaN"),
        (texture((32, 32, 32)), 500, "outside the moving image"),
    ],
)
def test_a_block_without_a_deformation_says_why(
    fixed: np.ndarray, shift: float, reason: str
) -> None:
    grid = Grid((32, 32, 32), (1, 1, 1))
    matrix = np.eye(4)
    matrix[0, 3] = shift
    moving = Image(texture(grid.shape, 1), grid)
    estimate = deform_block(Image(fixed, grid), moving, AffineTransform(matrix), SETTINGS)
    assert not estimate
    assert estimate.displacement is None
    assert estimate.refinement() is None
    assert reason in estimate.reason


def test_affine_of_a_block(pair: PhantomPair) -> None:
    settings = AffineSettings(
        KeyPointSettings(2, 6), ContextWindow((6.0, 6.0, 7.2), 7), MatchSettings(0.6)
    )
    matched = affine_block([ChannelPair(pair.fixed, pair.moving)], settings)
    estimate = matched.estimate
    assert estimate
    assert len(matched.pairs) == len(estimate.inliers)
    found = pair.error(AffineTransform(estimate.matrix).apply).summary()
    # The best affine cannot follow the warp of 2 micrometers, but most of it.
    assert found["median_um"] < 1
    poor = affine_block(
        [ChannelPair(pair.fixed, pair.moving)], replace(settings, matching=MatchSettings(0.999))
    ).estimate
    assert not poor
    assert "key points in the fixed and" in poor.reason
    mask = np.zeros(pair.fixed.shape, bool)
    mask[:20] = True
    part = ChannelPair(masked(pair.fixed, mask), pair.moving)
    left = affine_block([part], settings).estimate
    assert len(left.inliers) < len(estimate.inliers)
    nothing = replace(pair.fixed, data=np.full(pair.fixed.shape, np.nan))
    with pytest.raises(RegistrationError, match="no voxel of the image is finite"):
        affine_block([ChannelPair(nothing, pair.moving)], settings)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("interpolator", ["linear", "nearest", "label-gaussian"])
@pytest.mark.parametrize("engine", ["fast", "itk"])
def test_where_there_is_nothing_there_is_nothing(
    dtype: type, interpolator: str, engine: str
) -> None:
    if (engine, interpolator) == ("fast", "label-gaussian"):
        pytest.skip("ITK's alone")
    grid = Grid((30, 20, 20), (1.0, 1.0, 1.0))
    voxels = np.zeros(grid.shape, dtype)
    voxels[25:] = 100
    settings = WarpSettings(interpolator=interpolator, engine=engine)
    turn = np.eye(4)
    turn[:3, 3] = 0.4, -0.3, 2.2
    upper = grid.crop((slice(0, 20), slice(0, 20), slice(0, 20)))
    whole = warp_block(Image(voxels, grid), AffineTransform(turn), grid, settings)
    part = warp_block(Image(voxels, grid), AffineTransform(turn), upper, settings)
    assert part.dtype == whole.dtype
    np.testing.assert_array_equal(part, whole[:20])
    assert not part.any()
    shown = replace(settings, background=7)
    outside = warp_block(Image(voxels, grid), AffineTransform(turn), upper, shown)
    assert set(np.unique(outside)) == {0, 7}


def test_empty_space_costs_little() -> None:
    grid = Grid((96, 96, 96), (1.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    turn = np.eye(4)
    turn[:3, 3] = 0.4, -0.3, 2.2
    seconds = []
    for most in (500, 1, 500, 1):
        image = Image(rng.integers(0, most, grid.shape).astype(np.uint16), grid)
        began = time.process_time()
        for _ in range(3):
            warp_block(image, AffineTransform(turn), grid, WarpSettings())
        seconds.append(time.process_time() - began)
    # A fortieth, as measured.
    assert seconds[3] < seconds[2] / 4
