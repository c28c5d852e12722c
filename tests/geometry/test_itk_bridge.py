"""The two orders of axes: everything here is held against what SimpleITK itself answers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BlockGrid,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    PiecewiseAffine,
    default_axes,
)
from itkstream.geometry.itk_bridge import (
    INTERPOLATORS,
    from_itk_image,
    from_itk_transform,
    resample,
    sample_transform,
    to_itk_image,
    to_itk_transform,
    transform_token,
)

MakeGrid = Callable[..., Grid]
Make = Callable[..., CompositeTransform]
ORDERS = [*permutations("xy"), ("x", "y", "z"), ("z", "y", "x"), ("y", "z", "x")]


def xyz(grid: Grid) -> list[int]:
    """Where x, y, z stand among the array axes."""
    return [grid.axes.index(a) for a in default_axes(grid.ndim)]


@pytest.mark.parametrize("axes", ORDERS)
def test_images_keep_every_voxel_where_it_is(odd_grid: MakeGrid, axes: tuple[str, ...]) -> None:
    grid = odd_grid(1, len(axes), axes)
    voxels = np.random.default_rng(0).integers(0, 60000, grid.shape).astype(np.uint16)
    image = to_itk_image(voxels, grid)
    order = xyz(grid)
    for index in np.random.default_rng(1).integers(0, min(grid.shape), (20, grid.ndim)):
        itk_index = index[order].tolist()
        assert image[itk_index] == voxels[tuple(index)]
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(itk_index),
            grid.to_physical(index)[order],
            atol=1e-9,
        )
    back = from_itk_image(image, axes)
    np.testing.assert_array_equal(back.read(), voxels)
    assert back.grid.axes == axes
    np.testing.assert_allclose(back.grid.matrix, grid.matrix, atol=1e-12)


@pytest.mark.parametrize("axes", ORDERS)
def test_vectors_turn_their_components(odd_grid: MakeGrid, axes: tuple[str, ...]) -> None:
    grid = odd_grid(2, len(axes), axes)
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, grid.ndim))
    image = to_itk_image(vectors, grid)
    order = xyz(grid)
    index = np.array([2, 5, 3][: grid.ndim])
    np.testing.assert_array_equal(image[index[order].tolist()], vectors[tuple(index)][order])


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", ">u2", "f2", ">f4", "u8", "i8", "f8"])
def test_every_type_reaches_itk_with_its_values(dtype: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 2, (5, 6, 7)).astype(dtype)[:, ::-1]
    image = to_itk_image(voxels, Grid(voxels.shape, (1, 1, 1)))
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), voxels.transpose(2, 1, 0))


@pytest.mark.parametrize("axes", ORDERS)
def test_transforms_map_the_same_points_both_ways(
    odd_grid: MakeGrid, smooth_transform: Make, axes: tuple[str, ...]
) -> None:
    grid = odd_grid(3, len(axes), axes)
    composite = smooth_transform(grid)
    order = xyz(grid)
    inside = np.random.default_rng(0).uniform(1, min(grid.shape) - 2, (50, grid.ndim))
    points = grid.to_physical(inside)
    for transform in (*composite.transforms, composite):
        itk = to_itk_transform(transform, axes)
        wanted = transform.apply(points)[:, order]
        found = np.array([itk.TransformPoint(p.tolist()) for p in points[:, order]])
        np.testing.assert_allclose(found, wanted, atol=1e-9)
        again = from_itk_transform(itk, axes)
        np.testing.assert_allclose(again.apply(points), transform.apply(points), atol=1e-9)


@pytest.mark.parametrize(
    "itk",
    [
        sitk.Euler3DTransform((3, 4, 5), 0.1, 0.2, 0.3, (1, 2, 3)),
        sitk.Similarity3DTransform(1.2, (0, 1, 0), 0.4, (1, 2, 3), (9, 8, 7)),
        sitk.ScaleTransform(3, (1, 2, 3)),
        sitk.ComposeScaleSkewVersor3DTransform(
            (1, 2, 1.5), (0.1, 0.2, 0.3), (0, 0, 1), 0.3, (1, 2, 3), (4, 5, 6)
        ),
        sitk.AffineTransform((1.1, 0.2, 0, 0, 0.9, 0, 0.1, 0, 1), (1, 2, 3), (7, 8, 9)),
        sitk.TranslationTransform(3, (4, 5, 6)),
        sitk.AffineTransform(2),
        sitk.Transform(),
        sitk.CompositeTransform(
            [sitk.TranslationTransform(3, (4, 5, 6)), sitk.ScaleTransform(3, (1, 2, 3))]
        ),
    ],
    ids=lambda t: t.GetName(),
)
def test_every_linear_transform_of_itk_comes_in(itk: sitk.Transform) -> None:
    n = itk.GetDimension()
    points = np.random.default_rng(0).uniform(-50, 50, (10, n))
    axes = default_axes(n)[::-1]
    found = from_itk_transform(itk, axes).apply(points[:, ::-1])
    wanted = np.array([itk.TransformPoint(p.tolist()) for p in points])[:, ::-1]
    np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_other_transforms_are_sampled(odd_grid: MakeGrid) -> None:
    grid = odd_grid(4, axes=("z", "y", "x"))
    centre = grid.to_physical((np.array(grid.shape) - 1) / 2)
    spline = sitk.BSplineTransform(3, 3)
    spline.SetTransformDomainOrigin((centre[::-1] - 100).tolist())
    spline.SetTransformDomainPhysicalDimensions((200.0, 200.0, 200.0))
    spline.SetTransformDomainMeshSize((4, 4, 4))
    spline.SetParameters(np.random.default_rng(0).normal(0, 2, spline.GetNumberOfParameters()))
    moves = sample_transform(spline, grid)
    index = (3, 7, 5)
    p = grid.to_physical(index)
    wanted = np.array(spline.TransformPoint(p[::-1].tolist()))[::-1] - p
    np.testing.assert_allclose(moves[index], wanted, atol=1e-6)


@pytest.mark.parametrize("axes", ORDERS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_b_splines_map_the_same_points(
    odd_grid: MakeGrid, axes: tuple[str, ...], order: int
) -> None:
    grid = odd_grid(5, len(axes), axes, (7,) * len(axes))
    coefficients = np.random.default_rng(0).normal(0, 3, (*grid.shape, grid.ndim))
    spline = BSplineTransform(coefficients, grid, order)
    itk = to_itk_transform(spline, axes)
    # Also beyond the lattice, where points stay.
    points = grid.to_physical(np.random.default_rng(1).uniform(-2, 8, (300, grid.ndim)))
    there = np.array([itk.TransformPoint(p.tolist()) for p in points[:, xyz(grid)]])
    np.testing.assert_allclose(spline.apply(points)[:, xyz(grid)], there, atol=1e-9)
    assert 0.05 < np.isclose(spline.apply(points), points).all(axis=1).mean() < 0.99
    again = from_itk_transform(itk, axes)
    assert isinstance(again, BSplineTransform)
    np.testing.assert_array_equal(again.coefficients, coefficients)
    assert again.order == order


def test_resample_knows_every_interpolator() -> None:
    grid = Grid((12, 11, 10), (1, 1.5, 2))
    voxels = np.random.default_rng(0).integers(0, 9, grid.shape).astype(np.int16)
    for name in INTERPOLATORS:
        found = resample(
            Image(voxels, grid), sitk.Transform(3, sitk.sitkIdentity), grid, interpolator=name
        )
        assert found.shape == grid.shape
        assert found.dtype == (np.int16 if "nearest" in name or "label" in name else np.float64)
        if name not in ("gaussian", "label-gaussian"):
            # All others interpolate: at the voxels they give the voxels back.
            np.testing.assert_allclose(found, voxels, atol=1e-6)


def test_refuses() -> None:
    grid = Grid((4, 4), (1, 1))
    image = Image(np.zeros(grid.shape), grid)
    vector = to_itk_image(np.zeros((4, 4, 2)), grid)
    local = PiecewiseAffine(np.eye(3).reshape(1, 1, 3, 3), BlockGrid((4, 4), (4, 4)), grid)
    with pytest.raises(InputError, match="one value per voxel; got 2"):
        from_itk_image(vector)
    with pytest.raises(InputError, match="unknown interpolator 'cubic'; known: nearest"):
        resample(image, sitk.Transform(2, sitk.sitkIdentity), grid, interpolator="cubic")
    with pytest.raises(InputError, match="no ITK transform stands for a PiecewiseAffine"):
        to_itk_transform(local, ("x", "y"))
    with pytest.raises(InputError, match="3-D transform cannot act on a 2-D image"):
        sample_transform(sitk.Transform(3, sitk.sitkIdentity), grid)


def test_an_array_larger_than_its_grid_is_a_field() -> None:
    # A composite of two fields applies the first of the list first.
    grid = Grid((8, 8), (1, 1))
    right, up = np.zeros((2, 8, 8, 2))
    right[..., 0] = np.arange(8)[None, :] / 8
    up[..., 1] = 0.5
    chain = CompositeTransform((DisplacementField(up, grid), DisplacementField(right, grid)))
    itk = to_itk_transform(chain, grid.axes)
    np.testing.assert_allclose(itk.TransformPoint((2.0, 3.0)), (2 + 3.5 / 8, 3.5), atol=1e-12)
    assert AffineTransform(np.eye(3)).ndim == itk.GetDimension()


def test_a_kind_without_a_class_in_simpleitk_is_read(tmp_path) -> None:
    # What c3d_affine_tool and greedy write, and ANTs reads and wrote.
    text = """#Insight Transform File V1.0
#Transform 0
Transform: MatrixOffsetTransformBase_double_3_3
Parameters: 1 0.1 0 0 1 0 0 0.2 1 4 5 6
FixedParameters: 1 2 3
"""
    (tmp_path / "a.tfm").write_text(text)
    itk = sitk.ReadTransform(str(tmp_path / "a.tfm"))
    shift = sitk.TranslationTransform(3, (1, 2, 3))
    points = np.random.default_rng(0).uniform(-50, 50, (10, 3))
    for given in (itk, sitk.CompositeTransform([shift, itk]), sitk.CompositeTransform([itk])):
        wanted = [given.TransformPoint(p.tolist()) for p in points]
        found = from_itk_transform(given, ("x", "y", "z"))
        np.testing.assert_allclose(found.apply(points), wanted, atol=1e-10)
        assert transform_token(given) == transform_token(sitk.Transform(given))
    other = sitk.Transform(itk)
    other.SetParameters((1.5, *itk.GetParameters()[1:]))
    assert transform_token(other) != transform_token(itk)
