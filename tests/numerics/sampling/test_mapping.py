"""A transform reduced to displacement and affine maps the voxels as the transform does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BlockGrid,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    PiecewiseAffine,
    Transform,
)
from itkstream.numerics.sampling.fields import to_positions
from itkstream.numerics.sampling.mapping import GridMap, affine_part, can_map_boxes, map_on
from itkstream.numerics.sampling.warping import WarpSettings, warp_block, warp_part

Make = Callable[..., CompositeTransform]
MakeGrid = Callable[..., Grid]


def mapped(mapping: GridMap) -> np.ndarray:
    still = np.zeros((*mapping.grid.shape, mapping.grid.ndim), np.float32)
    moves = still if mapping.displacement is None else mapping.displacement
    return to_positions(moves, mapping.grid, mapping.affine)


@pytest.mark.parametrize("ndim", [2, 3])
def test_composites_map_as_points(odd_grid: MakeGrid, smooth_transform: Make, ndim: int) -> None:
    grid = odd_grid(1, ndim)
    one, two = smooth_transform(grid, 1), smooth_transform(grid, 2, 4)
    nested = CompositeTransform((one, CompositeTransform((two, one.transforms[1]))))
    for transform in (one.transforms[0], one.transforms[1], one, nested):
        # float32 vectors of a few micrometers.
        np.testing.assert_allclose(
            mapped(map_on(transform, grid)), transform.apply(grid.positions()), atol=1e-5
        )


def test_local_affines_come_anywhere(odd_grid: MakeGrid, smooth_transform: Make) -> None:
    grid = odd_grid(2)
    blocks = BlockGrid(grid.shape, (7, 6, 8), (1, 1, 2))
    rng = np.random.default_rng(0)
    matrices = np.tile(np.eye(4), (*blocks.numblocks, 1, 1))
    matrices[..., :3, :] += rng.normal(0, 0.01, matrices[..., :3, :].shape)
    local = PiecewiseAffine(matrices, blocks, grid)
    field, affine = smooth_transform(grid).transforms
    for order in ((local, field, affine), (affine, local), (field, local, affine), (local, local)):
        chain = CompositeTransform(order)
        mapping = map_on(chain, grid)
        np.testing.assert_allclose(mapped(mapping), chain.apply(grid.positions()), atol=1e-5)
        np.testing.assert_allclose(mapping.affine, affine_part(chain).matrix, atol=1e-12)


def test_a_part_of_the_grid_maps_as_in_the_whole(
    odd_grid: MakeGrid, smooth_transform: Make
) -> None:
    grid = odd_grid(3)
    transform = smooth_transform(grid)
    box = (slice(3, 9), slice(5, 12), slice(0, 4))
    np.testing.assert_allclose(
        mapped(map_on(transform, grid.crop(box))), mapped(map_on(transform, grid))[box], atol=1e-5
    )


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("affine_only", [False, True])
def test_bounds_are_those_of_every_voxel(
    odd_grid: MakeGrid, smooth_transform: Make, ndim: int, affine_only: bool
) -> None:
    grid, moving = odd_grid(4, ndim), odd_grid(5, ndim)
    transform = smooth_transform(grid)
    mapping = map_on(transform.transforms[1] if affine_only else transform, grid)
    index = moving.to_index(mapped(mapping)).reshape(-1, ndim)
    wanted = [index.min(0), index.max(0)]
    np.testing.assert_allclose(mapping.bounds(moving), wanted, atol=1e-4)


def test_a_bulge_in_the_middle_counts() -> None:
    # The corners alone stay where they are.
    grid = Grid((9, 9), (1, 1))
    u = np.zeros((9, 9, 2), np.float32)
    u[4, 4] = (20, -30)
    mapping = GridMap(grid, np.eye(3), u)
    np.testing.assert_array_equal(mapping.bounds(grid), [[0, -26], [24, 8]])
    assert mapping.crop_of(Grid((50, 50), (1, 1))) == (slice(0, 26), slice(0, 10))


def test_crops_hold_all_that_interpolation_reads() -> None:
    grid, moving = Grid((4, 4), (1, 1)), Grid((100, 100), (1, 1))
    shift = np.array([[1.0, 0, 20.5], [0, 1, 30], [0, 0, 1]])
    mapping = GridMap(grid, shift)
    assert mapping.crop_of(moving) == (slice(19, 26), slice(29, 35))
    assert mapping.crop_of(moving, 5) == (slice(14, 31), slice(24, 40))


@pytest.mark.parametrize(
    ("shift", "empty"), [(-3.6, True), (-3.4, False), (9.4, False), (9.5, True)]
)
def test_a_map_beside_the_image_has_no_crop(shift: float, empty: bool) -> None:
    mapping = GridMap(Grid((4, 4), (1, 1)), np.array([[1, 0, shift], [0, 1, 0], [0, 0, 1]]))
    assert (mapping.crop_of(Grid((10, 10), (1, 1))) is None) == empty


def test_refuses_what_cannot_act(odd_grid: MakeGrid, smooth_transform: Make) -> None:
    grid = odd_grid(6)
    with pytest.raises(InputError, match="2-D transform cannot act on a 3-D image"):
        map_on(AffineTransform(np.eye(3)), grid)
    field = np.zeros((*grid.shape, 3))
    field[2, 2, 2] = np.nan
    with pytest.raises(InputError, match="NaN: is the field finite"):
        map_on(DisplacementField(field, grid), grid).crop_of(grid)
    other = replace(grid, axes=grid.axes[::-1])
    with pytest.raises(InputError, match="cannot act on an image with the axes"):
        map_on(DisplacementField(np.zeros((*grid.shape, 3)), other), grid)
    elsewhere = replace(grid, unit="millimeter")
    with pytest.raises(InputError, match="in millimeter cannot act on an image in micrometer"):
        map_on(DisplacementField(np.zeros((*grid.shape, 3)), elsewhere), grid)


class Strange(Transform):
    """A transform this package knows nothing of."""

    ndim = 3

    def apply(self, points: np.ndarray) -> np.ndarray:
        return points + 0.1 * np.sin(points)


def test_any_map_of_points_maps_a_grid(odd_grid: MakeGrid, smooth_transform: Make) -> None:
    grid = odd_grid(2)
    field, affine = smooth_transform(grid).transforms
    for chain in ((Strange(),), (affine, Strange()), (field, affine, Strange(), affine)):
        transform = CompositeTransform(chain)
        found = map_on(transform, grid)
        mapped = AffineTransform(found.affine).apply(grid.positions() + found.displacement)
        # Vectors of some voxels in float32.
        np.testing.assert_allclose(mapped, transform.apply(grid.positions()), atol=1e-5)


class Recorded:
    """A stored field that notes how many vectors are read at a time."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.reads = vectors, list[int]()
        self.shape, self.dtype = vectors.shape, vectors.dtype

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        part = self.vectors[key]
        self.reads.append(part[..., 0].size)
        return part


@pytest.mark.parametrize("order", ["alone", "after another"])
def test_a_coarse_grid_on_a_large_field_is_read_in_parts(
    odd_grid: MakeGrid, smooth_transform: Make, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """As at once, which would not fit in memory where the field is that of terabytes."""
    field, affine = smooth_transform(odd_grid(5, shape=(96, 90, 84)), 3).transforms
    coarse = field.grid.shrink((8, 8, 8))
    recorded = Recorded(np.asarray(field.data))
    large = DisplacementField(recorded, field.grid)
    before = () if order == "alone" else smooth_transform(coarse, 4, 4).transforms
    transform = CompositeTransform((*before, large, affine))
    whole = map_on(transform, coarse)
    assert len(recorded.reads) == 1
    monkeypatch.setattr("itkstream.numerics.sampling.mapping._FIELD_VECTORS", 4000)
    recorded.reads.clear()
    parts = map_on(transform, coarse)
    assert len(recorded.reads) > 3
    assert max(recorded.reads) <= 4000
    # float32 vectors of a few micrometers, between nodes weighed to a part in 10^7.
    np.testing.assert_allclose(mapped(parts), mapped(whole), atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("interpolator", ["linear", "nearest"])
def test_a_box_has_the_bits_of_the_whole(
    odd_grid: MakeGrid, smooth_transform: Make, ndim: int, interpolator: str
) -> None:
    """A block that begins elsewhere has not: its indices are sums of other numbers."""
    grid = odd_grid(5, ndim)
    voxels = np.random.default_rng(0).random(grid.shape)
    moving, settings = Image(voxels, grid), WarpSettings(interpolator, background=None)
    chain = smooth_transform(grid, 6)
    field, affine = chain.transforms
    assert all(can_map_boxes(t, grid) for t in (chain, field, affine))
    late = CompositeTransform((affine, field))
    assert not can_map_boxes(late, grid)
    differ = 0
    for first in np.ndindex(*(3,) * ndim):
        box = tuple(slice(5 * a, 5 * a + 2 + a) for a in first)
        for transform in (chain, field, affine, late):
            whole = warp_block(moving, transform, grid, settings)[box]
            np.testing.assert_array_equal(warp_part(moving, transform, grid, box, settings), whole)
            differ += (warp_block(moving, transform, grid.crop(box), settings) != whole).sum()
    assert interpolator == "nearest" or differ > 0
