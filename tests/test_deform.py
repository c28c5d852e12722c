"""Deformations: against the truth of a phantom, in one block and in many, without seams."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from attrs import evolve

from itkstream.apply.folds import prepare_fold_count
from itkstream.blocks.inputs import block_grid
from itkstream.compute.execute import compute
from itkstream.deform import deformable_align, prepare_piecewise_deformable_align
from itkstream.errors import InputError, RegistrationError
from itkstream.estimate.deformation import field_factors, prepare_displacement
from itkstream.geometry import AffineTransform, DisplacementField, Grid, Image
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.itk.settings import BsplineSettings, DemonsSettings
from itkstream.numerics.sampling.fields import jacobian_determinant, resize_field, shrink_field
from itkstream.numerics.threads import using_threads
from itkstream.phantoms import PhantomPair
from itkstream.transform import apply_global_affine

LIGHT: dict[str, Any] = {"cc_radius": 4, "iterations": (25, 6), "smooth_sigmas": (1.5, 0.5)}
SIZE = (32, 28, 24)
OVERLAP = (8, 7, 6)
MIDDLE = (slice(4, -4),) * 3


@pytest.fixture(scope="module")
def affine(pair: PhantomPair) -> np.ndarray:
    return np.array(pair.truth.matrix)


@pytest.fixture(scope="module")
def aligned(pair: PhantomPair, affine: np.ndarray) -> Image:
    """The moving image through the true affine: what is left is the smooth warp."""
    voxels = apply_global_affine(pair.fixed, pair.moving, None, None, affine, dtype=np.float32)
    return Image(voxels, pair.fixed.grid, "aligned")


@pytest.fixture(scope="module")
def direct(pair: PhantomPair, aligned: Image) -> np.ndarray:
    return deformable_align(pair.fixed, aligned, None, None, **LIGHT)


@pytest.fixture(scope="module")
def blocks(pair: PhantomPair, affine: np.ndarray) -> np.ndarray:
    """Positions of many blocks, on the original moving image."""
    lazy = prepare_piecewise_deformable_align(
        pair.fixed, pair.moving, None, None, SIZE, global_affine=affine, **LIGHT, overlap=OVERLAP,
        mov_is="original",
    )  # fmt: skip
    assert (lazy.shape, lazy.dtype) == ((*pair.fixed.shape, 3), np.float64)
    return compute(lazy)


def truth(pair: PhantomPair) -> np.ndarray:
    return pair.truth(pair.fixed.grid.positions())


def median_error(pair: PhantomPair, positions: np.ndarray) -> float:
    """Median distance from the truth over the tissue, away from the border of the image."""
    off = np.linalg.norm(positions - truth(pair), axis=-1)
    return float(np.median(off[MIDDLE][pair.tissue[MIDDLE]]))


def test_finds_the_warp(pair: PhantomPair, affine: np.ndarray, direct: np.ndarray) -> None:
    assert (direct.shape, direct.dtype) == ((*pair.fixed.shape, 3), np.float32)
    p = pair.fixed.grid.positions()
    after = median_error(pair, AffineTransform(affine).apply(p + direct))
    before = median_error(pair, AffineTransform(affine).apply(p))
    assert after < 0.5 * before
    assert jacobian_determinant(direct, pair.fixed.grid).min() > 0


def test_one_block_is_the_direct_call(
    stored: Callable[..., Any], pair: PhantomPair, aligned: Image, direct: np.ndarray
) -> None:
    grid = pair.fixed.grid
    for kind, threads in (("numpy", 2), ("dask", 1), ("zarr", 2)):
        fixed, moving = (stored(kind, im.read(), grid) for im in (pair.fixed, aligned))
        lazy = prepare_piecewise_deformable_align(
            fixed, moving, grid.spacing, grid.spacing, grid.shape, **LIGHT
        )
        with using_threads(threads):
            np.testing.assert_array_equal(lazy.compute(), grid.positions() + direct)


def test_direct_calls_give_the_same_bits(
    stored: Callable[..., Any], pair: PhantomPair, aligned: Image, direct: np.ndarray
) -> None:
    grid = pair.fixed.grid
    for kind, threads in (("dask", 1), ("n5", 2)):
        fixed, moving = (stored(kind, im.read(), grid) for im in (pair.fixed, aligned))
        with using_threads(threads):
            found = deformable_align(fixed, moving, grid.spacing, grid.spacing, **LIGHT)
        np.testing.assert_array_equal(found, direct)


def test_many_blocks_are_as_good_as_one(
    pair: PhantomPair, affine: np.ndarray, direct: np.ndarray, blocks: np.ndarray
) -> None:
    p = pair.fixed.grid.positions()
    one = median_error(pair, AffineTransform(affine).apply(p + direct))
    # Blocks see the original moving image, the direct call a resampled one: not worse by a tenth
    # of a voxel.
    assert median_error(pair, blocks) < one + 0.1


def test_many_blocks_leave_no_seam(pair: PhantomPair, blocks: np.ndarray) -> None:
    u = blocks - truth(pair)
    for axis, border in enumerate(SIZE):
        steps = np.linalg.norm(np.diff(u, axis=axis), axis=-1)
        across = np.take(steps, border - 1, axis=axis)
        inside = np.delete(steps, range(border - 3, border + 2), axis=axis)
        # The field's own steepness bounds what happens at the borders of blocks.
        assert across.max() <= 1.25 * inside.max()
        assert np.median(across) <= 2 * np.median(inside)


def test_many_blocks_agree_in_every_container(
    stored: Callable[..., Any], pair: PhantomPair, affine: np.ndarray, blocks: np.ndarray
) -> None:
    spacing = pair.fixed.spacing
    for kind in ("dask", "zarr"):
        fixed, moving = (stored(kind, im.read(), im.grid) for im in (pair.fixed, pair.moving))
        lazy = prepare_piecewise_deformable_align(
            fixed, moving, spacing, spacing, SIZE, global_affine=affine, **LIGHT, overlap=OVERLAP,
            mov_is="original",
        )  # fmt: skip
        np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), blocks)


def test_flags_turn_stored_zyx_arrays(
    pair: PhantomPair, affine: np.ndarray, blocks: np.ndarray
) -> None:
    lazy = prepare_piecewise_deformable_align(
        pair.fixed.read().T, pair.moving.read().T, pair.fixed.spacing, pair.moving.spacing, SIZE,
        (True, True), affine, **LIGHT, overlap=OVERLAP, mov_is="original",
    )  # fmt: skip
    np.testing.assert_array_equal(lazy.compute(), blocks)


def test_local_affines_are_composed_not_added(pair: PhantomPair, affine: np.ndarray) -> None:
    # A strong turn before the global affine that undoes it: a sum would be far off.
    turn = np.eye(4)
    turn[:2, :2] = [[0.9, -0.3], [0.3, 0.9]]
    local = np.broadcast_to(turn, (2, 2, 2, 4, 4))
    rest = affine @ np.linalg.inv(turn)
    lazy = prepare_piecewise_deformable_align(
        pair.fixed, pair.moving, None, None, SIZE, global_affine=rest, local_affines=local,
        **{**LIGHT, "iterations": (0, 0)}, overlap=OVERLAP, coarse_voxels=0, mov_is="original",
    )  # fmt: skip
    p = pair.fixed.grid.positions()
    # No iteration adds anything: blended equal affines are one; displacements of 40 in float32.
    wanted = AffineTransform(affine).apply(p)
    assert np.abs(lazy.compute() - wanted)[MIDDLE].max() < 0.05


@pytest.mark.parametrize("coarse_voxels", [0, 20e6])
def test_a_textureless_block_continues_its_neighbours(
    pair: PhantomPair,
    affine: np.ndarray,
    blocks: np.ndarray,
    caplog: pytest.LogCaptureFixture,
    coarse_voxels: float,
) -> None:
    fixed = pair.fixed.read().copy()
    fixed[:44, :40, :36] = 100
    with caplog.at_level(logging.INFO, "itkstream"):
        lazy = prepare_piecewise_deformable_align(
            Image(fixed, pair.fixed.grid), pair.moving, None, None, SIZE, global_affine=affine,
            **LIGHT, overlap=OVERLAP, coarse_voxels=coarse_voxels, mov_is="original",
        )  # fmt: skip
        found = lazy.compute()
    assert "the block at x 0-31, y 0-27, z 0-23 has no deformation of its own" in caplog.text
    assert "continues its neighbours" in caplog.text
    assert np.isfinite(found).all()
    start = AffineTransform(affine).apply(pair.fixed.grid.positions())
    moves = np.linalg.norm(found - start, axis=-1)
    assert moves[:24, :20, :16].max() < 1.5 * np.linalg.norm(blocks - start, axis=-1).max()
    determinant = jacobian_determinant(
        (found - pair.fixed.grid.positions()).astype(np.float32), pair.fixed.grid
    )
    assert determinant.min() > 0


def test_displacement_and_positions_are_one_transform(
    pair: PhantomPair, affine: np.ndarray, blocks: np.ndarray
) -> None:
    settings = DescentSettings(**LIGHT)
    start = AffineTransform(affine)
    lazy = prepare_displacement(pair.fixed, pair.moving, start, SIZE, settings, OVERLAP)
    positions = start.apply(pair.fixed.grid.positions() + lazy.compute())
    np.testing.assert_allclose(positions, blocks, atol=1e-10)


@pytest.mark.parametrize("size", [SIZE, (64, 56, 48)])
def test_a_coarse_field_is_the_mean_of_the_fine_one(
    pair: PhantomPair, affine: np.ndarray, size: tuple[int, ...]
) -> None:
    settings = DescentSettings(**LIGHT)
    arguments = (pair.fixed, pair.moving, AffineTransform(affine), size, settings)
    fine, coarse = (prepare_displacement(*arguments, factors=f) for f in (None, (2, 2, 2)))
    assert coarse.shape == (32, 28, 24, 3)
    assert coarse.chunks[:-1] == tuple(tuple(n // 2 for n in c) for c in fine.chunks[:-1])
    # Measured 0.003 and 0.054: the field has a kink at every node, where the value at the middle
    # of a group is not the mean of the group. The field of a single block is averaged as such.
    off = np.abs(compute(coarse) - shrink_field(compute(fine), (2, 2, 2)))
    assert np.median(off) < 0.005
    assert off.max() < (0.1 if size == SIZE else 1e-6)


@pytest.mark.parametrize("size", [SIZE, (64, 56, 48)])
def test_the_lattice_that_loses_nothing(
    pair: PhantomPair, affine: np.ndarray, size: tuple[int, ...]
) -> None:
    """A fraction of the vectors makes the field of all voxels again; means do not."""
    settings, grid = DescentSettings(**LIGHT), pair.fixed.grid
    factors = field_factors(settings, grid, block_grid(grid.shape, size, None))
    # Spacings of 1, 1 and 1.2 on nodes of 4; blocks of 28 and 24 voxels join on nodes of 2.
    assert factors == ((4, 2, 3) if size == SIZE else (4, 4, 3))
    arguments = (pair.fixed, pair.moving, AffineTransform(affine), size, settings)
    kept = {"coarse_voxels": 0}
    fine = compute(prepare_displacement(*arguments, **kept))
    coarse = compute(prepare_displacement(*arguments, **kept, factors=factors))
    again = resize_field(coarse, grid.shrink(factors), grid)
    # Vectors of micrometers in float32.
    np.testing.assert_allclose(again, fine, atol=2e-5)
    means = shrink_field(fine, factors)
    assert np.abs(resize_field(means, grid.shrink(factors), grid) - fine).max() > 0.01


def test_fine_or_unknown_lattices_are_stored_at_half_resolution() -> None:
    grid = Grid((64, 56, 48), (1.0, 1.0, 4.0))
    whole = block_grid(grid.shape, grid.shape, 0)
    for settings in (DescentSettings(**LIGHT, node_stride=1), DemonsSettings(), BsplineSettings()):
        assert field_factors(settings, grid, whole) == (2, 2, 2)
    # Deep voxels: fewer vectors than half the resolution along all axes has.
    assert field_factors(DescentSettings(**LIGHT), grid, whole) == (4, 4, 1)


def test_groups_that_span_two_blocks_are_refused(pair: PhantomPair) -> None:
    start = AffineTransform(np.eye(4))
    with pytest.raises(InputError, match=r"blocks of 28 voxels on axis 1.*multiple of 3"):
        prepare_displacement(
            pair.fixed, pair.moving, start, SIZE, DescentSettings(), factors=(2, 3, 2)
        )


@pytest.mark.parametrize("lazy", [False, True])
def test_folds_are_counted_once(odd_grid: Callable[..., Grid], lazy: bool) -> None:
    grid = odd_grid(1)
    u = np.random.default_rng(0).normal(0, 0.4 * min(grid.spacing), (*grid.shape, 3))
    determinant = jacobian_determinant(u, grid)
    assert 0 < np.count_nonzero(determinant <= 0) < determinant.size / 2
    field = DisplacementField(da.from_array(u, chunks=5) if lazy else u, grid)
    counted = prepare_fold_count(field, (7, 6, 8)).compute()
    assert counted[..., 1].sum() == np.count_nonzero(determinant <= 0)
    assert counted[..., 0].min() == pytest.approx(determinant.min(), rel=1e-5)


CUBE = (40, 40, 40)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"mov": np.zeros((9, 9)), "mov_spacing": (1, 1)}, InputError, "and the moving image 2"),
        ({"fix": np.full(CUBE, 7)}, RegistrationError, "no correlation window holds texture"),
        ({"mov": np.full(CUBE, 7)}, RegistrationError, "is one constant there"),
        ({"fix": np.full(CUBE, np.nan)}, RegistrationError, "fixed image holds.*nothing but NaN"),
        ({"mov": np.full(CUBE, np.nan)}, RegistrationError, "moving image holds.*nothing but NaN"),
        ({"fix_spacing": (1, 1, 0)}, InputError, "spacing must be positive"),
        ({"mov_spacing": (-1, 1, 1)}, InputError, "spacing must be positive"),
        ({"iterations": (1, 2, 3)}, InputError, "iterations needs one number per level"),
        ({"cc_radius": 0}, InputError, "cc_radius"),
        ({"step": -1.0}, InputError, "step must be a positive length"),
    ],
)  # fmt: skip
def test_bad_input(
    pair: PhantomPair, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    spacing = pair.fixed.spacing
    good = {"fix": pair.fixed.read(), "mov": pair.moving.read(), **LIGHT}
    with pytest.raises(kind, match=message):
        deformable_align(**{**good, "fix_spacing": spacing, "mov_spacing": spacing, **change})


def test_a_moving_image_smaller_than_the_window(pair: PhantomPair) -> None:
    part = pair.moving[slice(20, 26), slice(20, 26), slice(20, 26)]
    with pytest.raises(RegistrationError, match="smaller than the window"):
        deformable_align(pair.fixed, part, None, None, **{**LIGHT, "cc_radius": 12})


@pytest.mark.parametrize("size", [CUBE, (64, 56, 48), SIZE])
def test_an_empty_overlap(pair: PhantomPair, size: tuple[int, ...]) -> None:
    away = replace(pair.moving, grid=replace(pair.moving.grid, origin=(9e3, 0, 0)))
    with pytest.raises(RegistrationError, match="outside the moving image"):
        deformable_align(pair.fixed, away, None, None, **LIGHT)
    lazy = prepare_piecewise_deformable_align(pair.fixed, away, None, None, size, **LIGHT)
    with pytest.raises(RegistrationError, match="outside the moving image"):
        lazy.compute()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocksize": (32, 28)}, "blocksize needs 3"),
        ({"overlap": 9}, "more than a quarter"),
        ({"global_affine": np.full((4, 4), np.nan)}, "did its fit fail"),
        ({"local_affines": np.full((2, 2, 2, 4, 4), np.nan)}, "fill the failed blocks"),
        ({"local_affines": np.zeros((1, 2, 2, 4, 4))}, "another blocksize"),
        ({"mov_is": "moving"}, "'aligned' .* or 'original'"),
        ({"coarse_voxels": -1}, "coarse_voxels"),
        ({"coarse_voxels": 0.5}, "coarse_voxels"),
    ],
)
def test_bad_blocks(pair: PhantomPair, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_piecewise_deformable_align(
            pair.fixed, pair.moving, None, None, **{"blocksize": SIZE, **LIGHT, **change}
        )


DEMONS = DemonsSettings(
    "diffeomorphic-demons", iterations=(20, 10), shrink_factors=(2, 1), smooth_sigmas=(0.0, 0.0)
)


def test_demons_align_in_one_block_and_in_many(pair: PhantomPair, affine: np.ndarray) -> None:
    p = pair.fixed.grid.positions()
    errors = []
    for size in (pair.fixed.shape, SIZE):
        lazy = prepare_piecewise_deformable_align(
            pair.fixed, pair.moving, None, None, size, global_affine=affine, settings=DEMONS,
            mov_is="original",
        )  # fmt: skip
        errors.append(median_error(pair, compute(lazy)))
    before = median_error(pair, AffineTransform(affine).apply(p))
    assert errors[0] < 0.5 * before
    # Blocks start from the coarse level of the whole image: not worse by a tenth of a voxel.
    assert errors[1] < errors[0] + 0.1


def test_a_block_of_demons_is_the_direct_call(pair: PhantomPair, aligned: Image) -> None:
    few = evolve(DEMONS, iterations=(4, 2))
    direct = deformable_align(pair.fixed, aligned, None, None, settings=few)
    lazy = prepare_piecewise_deformable_align(
        pair.fixed, aligned, None, None, pair.fixed.shape, settings=few
    )
    with using_threads(1):
        np.testing.assert_array_equal(compute(lazy), pair.fixed.grid.positions() + direct)


@pytest.mark.slow
def test_bsplines_align_in_one_block_and_in_many(pair: PhantomPair, affine: np.ndarray) -> None:
    spline = BsplineSettings(control_spacing=12.0, iterations=(10, 6), sampling_fraction=0.2)
    errors = []
    for size in (pair.fixed.shape, SIZE):
        lazy = prepare_piecewise_deformable_align(
            pair.fixed, pair.moving, None, None, size, global_affine=affine, settings=spline,
            mov_is="original",
        )  # fmt: skip
        errors.append(median_error(pair, compute(lazy)))
    before = median_error(pair, AffineTransform(affine).apply(pair.fixed.grid.positions()))
    assert errors[0] < 0.7 * before
    # Blocks start from the coarse level of the whole image: not worse by a tenth of a voxel.
    assert errors[1] < errors[0] + 0.1


def test_a_method_has_defaults_of_its_own(pair: PhantomPair, aligned: Image) -> None:
    box = (slice(16, 48),) * 3
    images = (pair.fixed[box], aligned[box], None, None)
    named = deformable_align(*images, method="demons")
    given = deformable_align(*images, settings=DemonsSettings("demons"))
    assert min(pair.fixed.spacing) == 1
    np.testing.assert_array_equal(named, given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "optical-flow"}, "unknown method .optical-flow.; known: lcc, demons"),
        ({"method": "demons", "cc_radius": 4}, "give settings=DemonsSettings"),
        ({"method": "demons", "settings": DescentSettings()}, "contradict"),
        ({"method": "demons", "settings": DEMONS}, "contradict"),
    ],
)
def test_methods_that_make_no_sense_are_refused(
    pair: PhantomPair, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        deformable_align(pair.fixed, pair.moving, None, None, **arguments)
    with pytest.raises(InputError, match=message):
        prepare_piecewise_deformable_align(pair.fixed, pair.moving, None, None, SIZE, **arguments)


def far_apart(pair: PhantomPair) -> tuple[Image, Image]:
    """The pair with four times the room around it, of background and noise."""
    images = []
    for image in (pair.fixed, pair.moving):
        shape = tuple(4 * n for n in SIZE)
        rng = np.random.default_rng(len(images))
        voxels = rng.normal(100, 3, shape).astype(np.float32)
        inside = tuple(slice(0, n) for n in image.shape)
        voxels[inside] = image.read()
        images.append(Image(voxels, replace(image.grid, shape=shape)))
    return images[0], images[1]


class Recorded:
    """An array that tells which of its parts were read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.read: list[tuple[int, ...]] = []

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        part = self.array[key]
        self.read.append(part.shape)
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[(slice(None),) * self.array.ndim]


@pytest.mark.nightly
def test_empty_blocks_cost_nothing(pair: PhantomPair, affine: np.ndarray) -> None:
    fixed, moving = far_apart(pair)
    settings = DescentSettings(**{**LIGHT, "iterations": (2, 1)})
    seconds, fields, reads = [], [], []
    for skip in (True, False):
        watched = Image(Recorded(fixed.read()), fixed.grid)
        lazy = prepare_displacement(
            watched, moving, AffineTransform(affine), SIZE, settings, OVERLAP, 1e5, skip_empty=skip
        )
        began = time.process_time()
        fields.append(lazy.compute(scheduler="synchronous"))
        seconds.append(time.process_time() - began)
        # Slabs of the coarse level are read whole; blocks are not.
        reads.append([r for r in watched.data.read if r[2] < fixed.shape[2]])
    assert len(reads[1]) == 64
    # 8 blocks hold the pair; its neighbours are within reach of their overlap.
    assert len(reads[0]) <= 27
    assert seconds[0] < 0.75 * seconds[1]
    assert np.isfinite(fields[0]).all()
    # The tissue itself is registered as if nothing had been left out, away from the edge.
    inside = tuple(slice(4, n - 14) for n in pair.fixed.shape)
    assert np.abs(fields[0] - fields[1])[inside].max() < 0.05
