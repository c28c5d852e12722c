"""Transforms calculated with: against points mapped one after the other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from itkstream.apply.fields import (
    as_field,
    crop_transform,
    fold_affine,
    prepare_jacobian,
    prepare_sample,
    sample_transform,
)
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BlockGrid,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    PiecewiseAffine,
    Transform,
    compose,
)
from itkstream.geometry.chains import FieldChain
from itkstream.io.transforms.files import read_transform
from itkstream.io.transforms.ngff.store import write_store
from itkstream.transform import apply_to_points, invert_transform

MakeGrid = Callable[..., Grid]
Make = Callable[..., CompositeTransform]


def random_affine(rng: np.random.Generator, n: int, shift: float = 20.0) -> AffineTransform:
    matrix = np.eye(n + 1)
    matrix[:-1, :-1] += rng.uniform(-0.1, 0.1, (n, n))
    matrix[:-1, -1] = rng.uniform(-shift, shift, n)
    return AffineTransform(matrix)


def smooth_field(seed: int, grid: Grid, size: float = 1.0, sigma: float = 3.0) -> DisplacementField:
    noise = np.random.default_rng(seed).normal(size=(*grid.shape, grid.ndim))
    smooth = gaussian_filter(noise, (*(sigma,) * grid.ndim, 0), mode="nearest")
    return DisplacementField(smooth * (size / np.abs(smooth).max()), grid)


def random_transform(rng: np.random.Generator, n: int) -> Transform:
    """An affine, a field or both; fields are about the origin."""
    seed = int(rng.integers(1000))
    grid = Grid((9, 8, 7)[:n], tuple(rng.uniform(2, 4, n)), tuple(rng.uniform(-15, -10, n)))
    kinds: list[Transform] = [random_affine(rng, n), smooth_field(seed, grid, 2.0)]
    kinds.append(CompositeTransform((kinds[1], kinds[0])))
    return kinds[rng.integers(3)]


@given(st.sampled_from((2, 3)), st.integers(0, 2**32 - 1))
def test_composition_is_associative_and_exact(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (random_transform(rng, n) for _ in range(3))
    points = rng.uniform(-20, 20, (30, n))
    wanted = c.apply(b.apply(a.apply(points)))
    for chain in (compose(compose(a, b), c), compose(a, compose(b, c)), compose(a, b, c)):
        # Doubles of some tens, through three maps.
        np.testing.assert_allclose(chain.apply(points), wanted, atol=1e-10)
        steps = chain.transforms if isinstance(chain, CompositeTransform) else (chain,)
        linear = [isinstance(step, AffineTransform) for step in steps]
        assert not any(x and y for x, y in pairwise(linear))


@given(st.sampled_from((2, 3)), st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_the_inverse_of_a_chain_is_the_chain_of_inverses(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing = (14, 13, 12)[:n], (1.0, 1.5, 2.0)[:n]
    grid = Grid(shape, spacing)
    # Some points are moved off the grid, where the fields and their inverses must be known too.
    wide = Grid(tuple(k + 8 for k in shape), spacing, tuple(-4 * h for h in spacing))
    a, b = (
        compose(smooth_field(seed % 1000 + k, wide, 0.6), random_affine(rng, n, 0.5))
        for k in range(2)
    )
    both = invert_transform(compose(a, b), wide)
    one = compose(invert_transform(b, wide), invert_transform(a, wide))
    inner = grid.to_physical(rng.uniform(3, np.subtract(shape, 4), (40, n)))
    moved = b.apply(a.apply(inner))
    np.testing.assert_array_equal(both.apply(moved), one.apply(moved))
    # The inverse sampled on the lattice: linear between nodes of a smooth field of half a voxel.
    np.testing.assert_allclose(both.apply(moved), inner, atol=0.06)
    # Solved at the points themselves: to 0.01 voxels for each of the two.
    back = apply_to_points(compose(a, b), moved, inverse=True)
    np.testing.assert_allclose(back.points[~back.outside], inner[~back.outside], atol=0.02)
    assert back.outside.mean() < 0.1


def test_identities_vanish() -> None:
    identity = AffineTransform(np.eye(4))
    grid = Grid((4, 4, 4), (1, 1, 1))
    field = DisplacementField(np.zeros((4, 4, 4, 3)), grid)
    assert compose(identity, CompositeTransform((field, identity))) is field
    turn = random_affine(np.random.default_rng(0), 3)
    np.testing.assert_allclose(compose(turn, turn.inverse()).matrix, np.eye(4), atol=1e-12)
    assert isinstance(invert_transform(compose(identity, identity)), AffineTransform)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("axes", [("x", "y", "z"), ("z", "y", "x"), ("y", "x")])
def test_folding_an_affine_in_is_exact(
    odd_grid: MakeGrid, smooth_transform: Make, axes: tuple[str, ...], stored: bool
) -> None:
    grid = odd_grid(3, len(axes), axes, (100, 20, 18)[: len(axes)])
    field, affine = smooth_transform(grid, factor=1).transforms
    vectors = np.asarray(field.data, np.float64)
    data = da.from_array(vectors, chunks=40) if stored else vectors
    folded = fold_affine(CompositeTransform((DisplacementField(data, field.grid), affine)))
    assert isinstance(folded.data, da.Array) == stored
    inside = np.random.default_rng(0).uniform(0, np.subtract(grid.shape, 1), (100, grid.ndim))
    points = grid.to_physical(inside)
    wanted = affine.apply(DisplacementField(vectors, field.grid).apply(points))
    np.testing.assert_allclose(folded.apply(points), wanted, atol=1e-10)
    assert fold_affine(field) is field


def test_any_transform_becomes_a_field(odd_grid: MakeGrid, smooth_transform: Make) -> None:
    grid = odd_grid(4, shape=(12, 11, 10))
    blocks = BlockGrid(grid.shape, (6, 6, 5), (1, 1, 1))
    rng = np.random.default_rng(0)
    near = [random_affine(rng, 3, 1.0).matrix for _ in range(8)]
    lattice = grid.shrink((3, 3, 3))
    for transform in (
        random_affine(rng, 3),
        PiecewiseAffine(np.reshape(near, (2, 2, 2, 4, 4)), blocks, grid),
        BSplineTransform(rng.normal(size=(*lattice.shape, 3)), lattice, 2),
        smooth_transform(grid),
        compose(random_affine(rng, 3, 2.0), smooth_transform(grid)),
    ):
        field = sample_transform(transform, grid)
        wanted = transform.apply(grid.positions())
        # Vectors of up to some hundreds in float32.
        np.testing.assert_allclose(field.apply(grid.positions()), wanted, atol=1e-4)
        lazy = prepare_sample(transform, grid, (6, 7, 8)).compute()
        np.testing.assert_allclose(lazy, field.data, atol=1e-4)
        read = as_field(transform, grid)
        np.testing.assert_array_equal(np.asarray(read.data), field.data)
        some = grid.positions()[2:5, 3:6, 1:9]
        np.testing.assert_allclose(read.apply(some), wanted[2:5, 3:6, 1:9], atol=1e-4)
        whole = prepare_jacobian(read, (20, 20, 20)).compute()
        blocks = prepare_jacobian(read, (5, 6, 4)).compute()
        np.testing.assert_allclose(blocks, whole, atol=1e-4)


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_cropping_keeps_what_the_region_needs(
    odd_grid: MakeGrid, smooth_transform: Make, tmp_path, kind: str
) -> None:
    grid = odd_grid(5, axes=("z", "y", "x"))
    transform = smooth_transform(grid, factor=2)
    field, affine = transform.transforms
    if kind == "dask":
        lazy = DisplacementField(da.from_array(field.data, chunks=4), field.grid)
        transform = CompositeTransform((lazy, affine))
    if kind == "zarr":
        write_store(tmp_path / "t.zarr", FieldChain(field, affine))
        transform = read_transform(tmp_path / "t.zarr", grid.axes)
    part = grid.crop((slice(2, 9), slice(0, 5), slice(6, 14)))
    cropped = crop_transform(transform, part)
    assert cropped.transforms[0].grid.size < field.grid.size / 2
    np.testing.assert_array_equal(
        cropped.apply(part.positions()), transform.apply(part.positions())
    )
    assert crop_transform(affine, part) is affine
    nested = crop_transform(CompositeTransform((transform, affine)), part)
    assert nested.transforms[0].grid == cropped.transforms[0].grid
    alone = crop_transform(transform.transforms[0], part)
    assert isinstance(alone, DisplacementField)


@pytest.mark.parametrize("axes", [("x", "y", "z"), ("z", "y", "x"), ("y", "x")])
def test_jacobian_of_a_linear_map(odd_grid: MakeGrid, axes: tuple[str, ...]) -> None:
    grid = odd_grid(6, len(axes), axes)
    rng = np.random.default_rng(0)
    one, two = random_affine(rng, grid.ndim), random_affine(rng, grid.ndim)
    field = DisplacementField(one.apply(grid.positions()) - grid.positions(), grid)
    found = prepare_jacobian(compose(field, two), (7,) * grid.ndim).compute()
    assert found.shape == grid.shape
    wanted = np.linalg.det(one.matrix) * np.linalg.det(two.matrix)
    # Vectors of tens in float32, differences of one voxel.
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_refuses(odd_grid: MakeGrid, smooth_transform: Make) -> None:
    transform = smooth_transform(odd_grid(0))
    field, affine = transform.transforms
    for wrong in (affine, CompositeTransform((affine, field)), CompositeTransform((field, field))):
        with pytest.raises(InputError, match="affine can be folded into a displacement field, or"):
            fold_affine(wrong)
        with pytest.raises(InputError, match="local volume is known of a displacement field"):
            prepare_jacobian(wrong, (8, 8, 8))
    with pytest.raises(InputError, match="a composite is made of transforms; got ndarray"):
        compose(np.eye(4), affine)
    with pytest.raises(InputError, match="at least one"):
        compose()
