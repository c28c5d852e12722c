"""The doors that apply transforms: one block is the whole, many blocks have no seams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from itkstream.apply.resampling import apply_transform, piecewise_transform, prepare_apply_transform
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BlockGrid,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    PiecewiseAffine,
)
from itkstream.numerics.sampling.fields import shrink_field, to_positions
from itkstream.numerics.sampling.interpolate import INTERPOLATORS, warp
from itkstream.numerics.sampling.mapping import GridMap, map_on
from itkstream.numerics.sampling.warping import WarpSettings, warp_mapped
from itkstream.numerics.threads import using_threads
from itkstream.phantoms import PhantomPair
from itkstream.transform import (
    apply_global_affine,
    prepare_apply_local_affines,
    prepare_apply_position_field,
)

SPACING = (1.0, 1.2, 0.9)
SHAPE = (40, 36, 30)
SIZE = (16, 12, 15)
FLIP = (True, True, True)
Stored = Callable[[str, np.ndarray, Grid], Any]


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid(SHAPE, SPACING)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(100, 4000, SHAPE).astype(np.uint16)


@pytest.fixture(scope="module")
def affine() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3] += np.random.default_rng(1).normal(0, 0.03, (3, 4))
    return matrix


@pytest.fixture(scope="module")
def locals_() -> np.ndarray:
    matrices = np.tile(np.eye(4), (3, 3, 2, 1, 1))
    matrices[..., :3, :] += np.random.default_rng(2).normal(0, 0.02, (3, 3, 2, 3, 4))
    return matrices


def wave(grid: Grid) -> np.ndarray:
    """A smooth displacement of up to 2 micrometers."""
    p = grid.positions()
    rows = [np.sin(p[..., k] / 8 + k) * np.cos(p[..., (k + 1) % 3] / 9) for k in range(3)]
    return 2 * np.stack(rows, -1).astype(np.float32)


def test_one_block_is_the_direct_call(voxels: np.ndarray, affine: np.ndarray) -> None:
    spacings = (voxels, voxels, SPACING, SPACING)
    whole = apply_global_affine(*spacings, affine)
    same = np.eye(4)[None, None, None]
    local = prepare_apply_local_affines(*spacings, same, SHAPE, affine)
    np.testing.assert_array_equal(local.compute(), whole)
    given = prepare_apply_position_field(*spacings, AffineTransform(affine), SHAPE)
    np.testing.assert_array_equal(given.compute(), whole)
    positions = AffineTransform(affine).apply(Grid(SHAPE, SPACING).positions())
    field = prepare_apply_position_field(*spacings, positions, SHAPE, dtype=np.float64)
    exact = apply_global_affine(*spacings, affine, dtype=np.float64)
    # Positions pass through float32 displacements: 1e-6 voxels of steps of 3900.
    close = np.abs(field.compute() - exact) < 0.02
    assert close.mean() > 0.999
    assert given.shape == local.shape == field.shape == SHAPE


def test_many_blocks_are_the_whole(
    voxels: np.ndarray, grid: Grid, locals_: np.ndarray, affine: np.ndarray
) -> None:
    image = Image(voxels, grid)
    transform = piecewise_transform(grid, locals_, SIZE, affine)
    exact = WarpSettings(dtype=np.float64)
    whole = apply_transform(image, image, transform, exact)
    blocks = prepare_apply_transform(image, image, transform, SIZE, exact).compute()
    # Each block has an origin of its own: the rounding of positions differs by 1e-6.
    assert np.mean(np.abs(blocks - whole) < 0.02) > 0.999
    door = prepare_apply_local_affines(
        voxels, voxels, SPACING, SPACING, locals_, SIZE, affine, dtype=np.float64
    )
    np.testing.assert_array_equal(door.compute(), blocks)
    assert door.chunks == ((16, 16, 8), (12, 12, 12), (15, 15))


def test_local_affines_leave_no_seam(grid: Grid, locals_: np.ndarray, affine: np.ndarray) -> None:
    # The image's value is its own position: what comes out is the map, axis by axis.
    big = Grid((60, 60, 60), (1.0, 1.0, 1.0), (-10.0, -10.0, -10.0))
    transform = piecewise_transform(grid, locals_, SIZE, affine, overlap=(4, 3, 3))
    fixed = Image(np.zeros(SHAPE, np.uint8), grid)
    for axis in range(3):
        ramp = Image(big.positions()[..., axis], big)
        found = prepare_apply_transform(fixed, ramp, transform, SIZE).compute()
        np.testing.assert_allclose(found, transform.apply(grid.positions())[..., axis], atol=1e-4)
        for k, border in ((0, 16), (0, 32), (1, 12), (1, 24), (2, 15)):
            steps = np.diff(found, axis=k)
            steps = np.abs(steps - np.median(steps))
            across = np.take(steps, border - 1, axis=k).max()
            beside = np.take(steps, [border - 2, border], axis=k).max()
            # 3t^2 - 2t^3 over 6 or 8 voxels is 1.2 times as steep in its middle as beside it; a
            # jump would have nothing beside it.
            assert across <= 1.5 * beside


@pytest.mark.parametrize("engine", ["fast", "itk"])
def test_every_container_and_thread_count_gives_the_same_bits(
    stored: Stored, voxels: np.ndarray, grid: Grid, locals_: np.ndarray, engine: str
) -> None:
    field = grid.positions() + wave(grid)
    results = set()
    for kind in ("numpy", "dask", "zarr", "n5"):
        moving = stored(kind, voxels, grid)
        part = stored("dask" if kind == "dask" else "zarr", field, grid)
        for threads in (1, 2):
            with using_threads(threads):
                one = prepare_apply_local_affines(
                    moving, moving, SPACING, SPACING, locals_, SIZE, engine=engine
                )
                two = prepare_apply_position_field(
                    moving, moving, SPACING, SPACING, part, SIZE, engine=engine
                )
                pair = da.compute(one, two, scheduler="threads", num_workers=threads)
            results.add(pair[0].tobytes() + pair[1].tobytes())
        direct = apply_global_affine(moving, moving, SPACING, SPACING, np.eye(4), engine=engine)
        np.testing.assert_array_equal(direct, voxels)
    assert len(results) == 1


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_coarse_fields_in_every_container(
    stored: Stored, voxels: np.ndarray, grid: Grid, factor: int
) -> None:
    fine = wave(grid)
    small = grid.shrink((factor,) * 3)
    coarse = to_positions(shrink_field(fine, (factor,) * 3), small)
    arguments = (voxels, voxels, SPACING, SPACING)
    found = [
        prepare_apply_position_field(
            *arguments, stored(kind, coarse, grid), SIZE, dtype=np.float32
        ).compute()
        for kind in ("numpy", "zarr", "dask")
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    # The oracle: the same coarse field as a transform, on the whole image at once.
    image = Image(voxels, grid)
    field = DisplacementField(shrink_field(fine, (factor,) * 3), small)
    whole = apply_transform(image, image, field, WarpSettings(dtype=np.float32))
    assert np.mean(np.abs(found[0] - whole) < 0.05) > 0.999
    # And close to the fine field: positions differ by the wave's curvature over a coarse voxel.
    bound = 2 * 3 * (factor * 1.2 / 8) ** 2 / 4
    moved = field.apply(grid.positions()) - grid.positions()
    inner = (slice(factor, -factor),) * 3
    assert np.abs(moved - fine)[inner].max() < bound


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 40, 3)])
def test_blocks_smaller_than_a_coarse_voxels_halo(
    voxels: np.ndarray, grid: Grid, size: tuple[int, ...]
) -> None:
    coarse = to_positions(shrink_field(wave(grid), (8, 8, 8)), grid.shrink((8, 8, 8)))
    arguments = (voxels, voxels, SPACING, SPACING)
    one, two = (
        prepare_apply_position_field(*arguments, c, size).compute()
        for c in (coarse, da.from_array(coarse, chunks=2))
    )
    np.testing.assert_array_equal(one, two)


def test_a_field_of_few_voxels_is_told_its_factors(voxels: np.ndarray, grid: Grid) -> None:
    # 40, 36 and 30 voxels in groups of 20, 16, 16 are 2, 3, 2: other groups would give the same.
    factors = (20, 16, 16)
    vectors = shrink_field(wave(grid), factors)
    coarse = to_positions(vectors, grid.shrink(factors))
    arguments = (voxels, voxels, SPACING, SPACING, coarse, SIZE)
    image = Image(voxels, grid)
    whole = apply_transform(image, image, DisplacementField(vectors, grid.shrink(factors)))
    found = prepare_apply_position_field(*arguments, factors=factors).compute()
    assert np.mean(found != whole) < 1e-2
    with pytest.raises(InputError, match="does not fit a fixed image"):
        prepare_apply_position_field(*arguments, factors=(4, 4, 4))


def test_factors_may_differ_from_axis_to_axis(voxels: np.ndarray, grid: Grid) -> None:
    factors = (4, 1, 2)
    coarse = to_positions(shrink_field(wave(grid), factors), grid.shrink(factors))
    image = Image(voxels, grid)
    field = DisplacementField(shrink_field(wave(grid), factors), grid.shrink(factors))
    whole = apply_transform(image, image, field, WarpSettings(dtype=np.float32))
    found = prepare_apply_position_field(
        voxels, voxels, SPACING, SPACING, da.from_array(coarse), SIZE, dtype=np.float32
    ).compute()
    assert np.mean(np.abs(found - whole) < 0.05) > 0.999


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_flags_turn_stored_zyx_arrays(
    stored: Stored,
    voxels: np.ndarray,
    grid: Grid,
    locals_: np.ndarray,
    affine: np.ndarray,
    kind: str,
) -> None:
    plain = (voxels, voxels, SPACING, SPACING)
    other = stored(kind, np.ascontiguousarray(voxels.T), Grid(SHAPE[::-1], SPACING[::-1]))
    turned = (other, other, SPACING, SPACING)
    wanted = prepare_apply_local_affines(*plain, locals_, SIZE, affine).compute()
    # Reversed blocks and reversed rows and columns: how a z, y, x pipeline would write them.
    order = [2, 1, 0, 3]
    zyx = locals_.transpose(2, 1, 0, 3, 4)[..., order, :][..., :, order]
    found = prepare_apply_local_affines(*turned, zyx, SIZE, affine, FLIP)
    np.testing.assert_array_equal(found.compute(), wanted)
    half = prepare_apply_local_affines(*turned, locals_, SIZE, affine, (True, True, False))
    np.testing.assert_array_equal(half.compute(), wanted)

    for field in (grid.positions() + wave(grid), to_positions(
        shrink_field(wave(grid), (2, 2, 2)), grid.shrink((2, 2, 2))
    )):  # fmt: skip
        wanted = prepare_apply_position_field(*plain, field, SIZE).compute()
        flipped = stored(kind, np.ascontiguousarray(field.transpose(2, 1, 0, 3)[..., ::-1]), grid)
        found = prepare_apply_position_field(*turned, flipped, SIZE, FLIP).compute()
        np.testing.assert_array_equal(found, wanted)


def test_images_bring_their_own_axes_and_units(voxels: np.ndarray, affine: np.ndarray) -> None:
    grid = Grid(SHAPE, SPACING, (5, -3, 8))
    wanted = apply_global_affine(Image(voxels, grid), Image(voxels, grid), None, None, affine)
    moving = Image(voxels, grid).reorder(("z", "y", "x")).in_unit("nanometer")
    found = apply_global_affine(Image(voxels, grid), moving, None, None, affine)
    np.testing.assert_array_equal(found, wanted)
    fixed = Image(voxels, grid).in_unit("millimeter")
    # The affine is in micrometers, whatever the image's metadata count in.
    found = apply_global_affine(fixed, moving, None, None, affine)
    assert np.mean(found != wanted) < 1e-3


def test_any_transform_goes_through_the_position_door(voxels: np.ndarray, grid: Grid) -> None:
    arguments = (voxels, voxels, SPACING, SPACING)
    move = np.eye(4)
    move[:3, 3] = (2.0, 2.4, -0.9)
    itk = sitk.TranslationTransform(3, (2.0, 2.4, -0.9))
    chain = CompositeTransform((AffineTransform(move), AffineTransform(np.eye(4))))
    wanted = np.zeros_like(voxels)
    wanted[:-2, :-2, 1:] = voxels[2:, 2:, :-1]
    for transform in (itk, chain):
        found = prepare_apply_position_field(*arguments, transform, SIZE, order=0)
        np.testing.assert_array_equal(found.compute(), wanted)


def test_orders_and_interpolators(voxels: np.ndarray) -> None:
    arguments = (voxels, voxels, SPACING, SPACING, np.eye(4))
    for order in (0, 1, 3):
        # All pass through the voxels; a cubic spline within its own rounding.
        np.testing.assert_array_equal(apply_global_affine(*arguments, order=order), voxels)
    named = apply_global_affine(*arguments, interpolator="gaussian", dtype=np.float32)
    assert named.dtype == np.float32
    assert named.std() < voxels.std()


def test_the_truth_aligns_a_phantom(pair: PhantomPair) -> None:
    grid = pair.fixed.grid
    positions = pair.truth(grid.positions())
    door = prepare_apply_position_field(
        pair.fixed,
        pair.moving,
        None,
        None,
        positions,
        (32, 28, 24),
        dtype=np.float32,
        background=-1,
    )
    aligned = door.compute()
    seen = pair.tissue & (aligned >= 0)
    before = np.corrcoef(pair.fixed.read()[seen], pair.moving.read()[seen])[0, 1]
    after = np.corrcoef(pair.fixed.read()[seen], aligned[seen])[0, 1]
    assert after > 0.75 > before + 0.2


SAME = (SPACING, SPACING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mov": np.zeros(SHAPE[:2]), "mov_spacing": (1, 1)}, "3 axes and the moving image 2"),
        ({"affine": np.eye(3)}, "2-D transform cannot act on a 3-D image"),
        ({"affine": np.full((4, 4), np.nan)}, "did its fit fail"),
        ({"fix_spacing": (0, 1, 1)}, "spacing must be positive"),
        ({"mov_spacing": (1, 1, -1)}, "spacing must be positive"),
        ({"order": 4}, "order must be one of"),
        ({"fix": "fix.n5"}, "open files with itkstream.open_image"),
        ({"fix_spacing": None}, "pass fix_spacing"),
    ],
)
def test_bad_input_to_an_affine(voxels: np.ndarray, change: dict[str, Any], message: str) -> None:
    good = {"fix": voxels, "mov": voxels, "affine": np.eye(4)}
    with pytest.raises(InputError, match=message):
        apply_global_affine(**{**good, "fix_spacing": SPACING, "mov_spacing": SPACING, **change})


@pytest.mark.parametrize(
    ("matrices", "size", "message"),
    [
        (np.zeros((2, 2, 2, 4, 4)), SIZE, r"shape \(2, 2, 2, 4, 4\).*another blocksize"),
        (np.full((3, 3, 2, 4, 4), np.nan), SIZE, "fill the failed blocks first"),
        (np.eye(4), (16, 12), "blocksize needs 3"),
    ],
)
def test_bad_local_affines(
    voxels: np.ndarray, matrices: np.ndarray, size: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare_apply_local_affines(voxels, voxels, *SAME, matrices, size)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            np.zeros((9, 36, 30, 3)),
            r"\(9, 36, 30, 3\) does not fit a fixed image of shape \(40, 36",
        ),
        (np.zeros((41, 36, 30, 3)), "does not fit a fixed image"),
        (np.zeros((40, 36, 30, 2)), "has 4 axes, of which the last holds 3 components"),
        ("field", "must be a position field"),
    ],
)
def test_bad_fields(voxels: np.ndarray, field: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_apply_position_field(voxels, voxels, *SAME, field, SIZE)


def test_a_field_of_nan_is_an_error_and_no_picture(voxels: np.ndarray, grid: Grid) -> None:
    field = grid.positions()
    field[20, 20, 20] = np.nan
    lazy = prepare_apply_position_field(voxels, voxels, SPACING, SPACING, field, SIZE)
    with pytest.raises(InputError, match="NaN: is the field finite"):
        lazy.compute()


class Guarded:
    """A moving image that must not be read, or is counted."""

    def __init__(self, array: np.ndarray, allowed: bool) -> None:
        self.array, self.shape, self.dtype, self.allowed = array, array.shape, array.dtype, allowed
        self.reads = 0

    def __getitem__(self, key: Any) -> np.ndarray:
        assert self.allowed, "a block outside the moving image was read"
        self.reads += 1
        return self.array[key]


@pytest.mark.parametrize("interpolator", ["linear", "nearest", "bspline", "hamming-sinc"])
def test_blocks_outside_the_moving_image_read_nothing(
    voxels: np.ndarray, grid: Grid, interpolator: str
) -> None:
    away = np.eye(4)
    away[:3, 3] = 500
    far = AffineTransform(away)
    moving = Guarded(voxels, allowed=False)
    field = grid.positions() + 500
    pair, options = (voxels, moving, *SAME), {"interpolator": interpolator, "background": 7}
    ways = [
        prepare_apply_local_affines(*pair, np.tile(away, (3, 3, 2, 1, 1)), SIZE, **options),
        prepare_apply_position_field(*pair, field, SIZE, **options),
        prepare_apply_position_field(
            *pair, CompositeTransform((DisplacementField(wave(grid), grid), far)), SIZE, **options
        ),
        prepare_apply_position_field(
            *pair, sitk.TranslationTransform(3, (500.0,) * 3), SIZE, **options
        ),
    ]
    for lazy in ways:
        assert (lazy.compute(scheduler="synchronous") == 7).all()


def test_a_block_reads_its_part_of_a_field_once(voxels: np.ndarray, grid: Grid) -> None:
    field = Guarded(wave(grid), allowed=True)
    image = Image(voxels, grid)
    lazy = prepare_apply_transform(image, image, DisplacementField(field, grid), SIZE)
    lazy.compute(scheduler="synchronous")
    assert field.reads == lazy.npartitions


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(["affine", "field", "composite", "local"]))
def test_what_a_crop_gives_is_what_the_whole_image_gives(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    fixed = Grid((12, 10, 9), tuple(rng.uniform(0.5, 2, 3)), tuple(rng.uniform(-9, 9, 3)))
    image = Grid((30, 28, 26), tuple(rng.uniform(0.3, 1.5, 3)), tuple(rng.uniform(-30, 0, 3)))
    voxels = rng.normal(size=image.shape)
    matrix = np.eye(4)
    matrix[:3] += rng.normal(0, 0.1, (3, 4))
    last = AffineTransform(matrix)
    coarse = fixed.shrink((2, 3, 2))
    field = DisplacementField(rng.normal(0, 3, (*coarse.shape, 3)).astype(np.float32), coarse)
    blocks = BlockGrid(fixed.shape, (6, 5, 5), (1, 1, 1))
    turns = np.tile(np.eye(4), (*blocks.numblocks, 1, 1))
    turns[..., :3, :] += rng.normal(0, 0.1, turns[..., :3, :].shape)
    local = CompositeTransform((PiecewiseAffine(turns, blocks, fixed), last))
    chains = {"affine": last, "field": field, "local": local}
    chains["composite"] = CompositeTransform((field, last, field))
    mapping = map_on(chains[kind], fixed)
    index, vector = mapping.index_matrix(image), mapping.vector_matrix(image)
    for name in INTERPOLATORS:
        moves = mapping.displacement
        whole = warp(voxels, index, fixed.shape, moves, vector, interpolator=name)
        found = warp_mapped(Image(voxels, image), mapping, WarpSettings(name))
        np.testing.assert_array_equal(found, whole)
    # ITK counts from the corner of what it is given: 1e-9 of rounding; the poles of a cubic spline
    # have decayed to 1e-7 at the margin.
    cubic = warp_mapped(Image(voxels, image), mapping, WarpSettings("bspline"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridMap, "crop_of", lambda *_: (slice(None),) * 3)
        wanted = warp_mapped(Image(voxels, image), mapping, WarpSettings("bspline"))
    np.testing.assert_allclose(cubic, wanted, atol=1e-5)
