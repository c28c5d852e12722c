"""Sampling against scipy and against the rules of the border."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from itkstream.errors import InputError
from itkstream.numerics.sampling.interpolate import (
    INTERPOLATORS,
    Part,
    as_voxel,
    round_to,
    sample_field,
    warp,
)
from itkstream.numerics.threads import using_threads


def some_map(ndim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    matrix = np.hstack(
        [np.eye(ndim) + rng.normal(0, 0.1, (ndim, ndim)), rng.normal(0, 1, (ndim, 1))]
    )
    return matrix, np.eye(ndim) + rng.normal(0, 0.1, (ndim, ndim))


def positions(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ matrix[:, :-1].T + matrix[:, -1]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("moved", [False, True])
def test_linear_equals_scipy_inside(ndim: int, moved: bool) -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(17, 13, 11)[:ndim])
    shape = (12, 15, 9)[:ndim]
    matrix, vector = some_map(ndim)
    at = positions(matrix, shape)
    moves = rng.normal(0, 1, (*shape, ndim)) if moved else None
    if moves is not None:
        at = at + moves @ vector.T
    wanted = map_coordinates(image, np.moveaxis(at, -1, 0), order=1, mode="nearest")
    inside = ((at >= -0.5) & (at < np.array(image.shape) - 0.5)).all(-1)
    found = warp(image, matrix, shape, moves, vector, background=-7.0)
    np.testing.assert_allclose(found[inside], wanted[inside], atol=1e-12)
    assert (found[~inside] == -7).all()
    assert 0 < np.count_nonzero(~inside) < inside.size / 2


@pytest.mark.parametrize("name", INTERPOLATORS)
def test_border_is_half_a_voxel_beyond_the_centres(name: str) -> None:
    image = np.array([[1.0, 2.0, 4.0]])
    places = (-0.6, -0.5, -0.2, 0.5, 2.2, 2.49, 2.5)
    found = [
        warp(image, np.array([[1.0, 0, 0], [0, 1, x]]), (1, 1), interpolator=name, background=9.0)[
            0, 0
        ]
        for x in places
    ]
    assert found == [9, 1, 1, (1.5 if name == "linear" else 2), 4, 4, 9]


def test_a_position_just_below_a_half_stays_in_an_image_of_one_plane() -> None:
    # 0.49999999999999994 + 0.5 is 1.0 in doubles: one past the only plane.
    image = np.full((1, 4), 5, np.uint8)
    shift = np.array([[1.0, 0, np.nextafter(0.5, 0)], [0, 1, 0]])
    assert (warp(image, shift, (1, 4), interpolator="nearest") == 5).all()


@given(st.integers(0, 2**32 - 1))
def test_nearest_returns_only_labels_that_were_there(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Above 2^53 no double holds them.
    labels = rng.choice(rng.integers(2**60, 2**63, 5, dtype=np.uint64), (5, 6, 7))
    matrix, _ = some_map(3, seed % 1000)
    found = warp(labels, matrix, (6, 6, 6), interpolator="nearest")
    assert found.dtype == np.uint64
    assert set(np.unique(found)) <= {*np.unique(labels), 0}


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_label_wins_by_its_linear_weight(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    ids = np.sort(rng.integers(2**60, 2**63, 4, dtype=np.uint64))
    labels = rng.choice(ids, (9, 8, 7)[:ndim])
    shape = (12, 11, 13)[:ndim]
    matrix, vector = some_map(ndim, 3)
    moves = rng.normal(0, 1, (*shape, ndim))
    at = positions(matrix, shape) + moves @ vector.T
    # Beyond the outermost centres, where they are clamped, weights may be equal to the last bit.
    inside = ((at >= 0) & (at <= np.array(labels.shape) - 1)).all(-1)
    places = np.moveaxis(at, -1, 0)
    shares = [map_coordinates((labels == one).astype(float), places, order=1) for one in ids]
    found = warp(labels, matrix, shape, moves, vector, interpolator="label-linear")
    assert inside.sum() > 30
    np.testing.assert_array_equal(found[inside], ids[np.argmax(shares, axis=0)][inside])


def test_of_labels_of_equal_weight_the_upper_one_wins() -> None:
    labels = np.array([[3, 9, 4]], np.uint8)
    half = np.array([[1.0, 0, 0], [0, 1, 0.5]])
    for name in ("nearest", "label-linear"):
        assert warp(labels, half, (1, 2), interpolator=name).tolist() == [[9, 4]]


DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "?", ">u2", ">i4", ">f4", ">f8"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", INTERPOLATORS)
def test_every_type_keeps_its_values_under_identity(dtype: str, name: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 100, (5, 6, 7)).astype(dtype)
    found = warp(image, np.eye(3, 4), image.shape, interpolator=name)
    assert found.dtype == image.dtype
    np.testing.assert_array_equal(found, image)


def test_half_way_values_are_rounded_not_cut() -> None:
    image = np.array([[10, 13, 17]], np.uint8)
    found = warp(image, np.array([[1.0, 0, 0], [0, 1, 0.4]]), (1, 2))
    assert found.tolist() == [[11, 15]]  # 11.2 and 14.6


def test_integers_of_double_size_keep_their_bits_through_doubles() -> None:
    image = np.array([[2**40 + 1, 2**40 + 3]], np.int64)
    assert warp(image, np.array([[1.0, 0, 0], [0, 1, 0.5]]), (1, 1)).item() == 2**40 + 2


@pytest.mark.parametrize("dtype", ["u1", "i2", "u8", "i8"])
def test_rounding_clips_and_never_wraps(dtype: str) -> None:
    info = np.iinfo(dtype)
    found = round_to(np.array([-1e30, -0.6, 0.4, 99.6, 1e30]), dtype)
    low = info.min
    assert found[[0, 2, 3]].tolist() == [low, 0, 100]
    assert found[1] == max(low, -1)
    # The largest 64-bit integers have no double; the nearest one below is less than 2^11 away.
    assert info.max - int(found[4]) < 2**11
    assert found.dtype == dtype


INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]


@pytest.mark.parametrize("start", ["f4", "f8"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_floats_beyond_the_range_take_its_ends(dtype: str, start: str) -> None:
    info = np.iinfo(dtype)
    # The second and third are the first floats beyond four and eight bytes.
    values = np.array([1e5, 2.0**32, 2.0**64, np.inf], start)
    wanted = [min(10**5, info.max), min(2**32, info.max), info.max, info.max]
    assert round_to(values, dtype).tolist() == wanted
    lowest = [max(-(10**5), info.min), max(-(2**32), info.min), info.min, info.min]
    assert round_to(-values, dtype).tolist() == lowest
    assert round_to(np.array([np.nan, 1.0], start), dtype).tolist() == [0, 1]
    assert round_to(np.array([65504, np.inf, np.nan], np.float16), dtype).tolist() == [
        min(65504, info.max),
        info.max,
        0,
    ]


@given(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS), st.integers(-(2**63), 2**64 - 1))
def test_integers_become_others_without_wrapping(start: str, end: str, value: int) -> None:
    has, holds = np.iinfo(start), np.iinfo(end)
    given_value = min(max(value, has.min), has.max)
    wanted = min(max(given_value, holds.min), holds.max)
    assert int(round_to(np.array([given_value], start), end)[0]) == wanted
    assert int(as_voxel(value, end)) == min(max(value, holds.min), holds.max)
    image = np.full((1, 3), given_value, start)
    assert (warp(image, np.eye(2, 3), (1, 3), interpolator="nearest", dtype=end) == wanted).all()


def test_nearest_values_are_rounded_to_another_type() -> None:
    image = np.array([[2.7, -5.0, 300.2]], np.float32)
    assert warp(image, np.eye(2, 3), (1, 3), interpolator="nearest", dtype=np.uint8).tolist() == [
        [3, 0, 255]
    ]


def test_a_background_keeps_its_digits_or_is_refused() -> None:
    away = np.array([[1.0, 0, 9], [0, 1, 9]])
    labels = np.full((2, 2), 2**63 + 7, np.uint64)
    outside = partial(warp, labels, away, (2, 2), interpolator="nearest")
    assert (outside(background=2**63 + 5) == 2**63 + 5).all()
    assert (outside(background=-1) == 0).all()
    assert (outside(background=-1, dtype=np.int16) == -1).all()
    assert as_voxel(np.inf, np.int8) == 127
    assert np.isnan(as_voxel(np.nan, np.float16))
    for dtype in (np.uint8, bool):
        with pytest.raises(InputError, match="cannot hold NaN, the background asked for"):
            warp(labels.astype(dtype), away, (2, 2), background=np.nan)


def test_truth_values_split_at_a_half() -> None:
    assert round_to(np.array([0.0, 0.49, 0.5, 1.0]), bool).tolist() == [False, False, True, True]


def test_strided_arrays_and_other_output_types() -> None:
    base = np.random.default_rng(0).integers(0, 2000, (12, 10, 8)).astype(np.uint16)
    image = base[::2, ::-1].transpose(2, 0, 1)
    matrix, _ = some_map(3)
    wanted = warp(np.ascontiguousarray(image), matrix, (8, 6, 10), dtype=np.float32)
    np.testing.assert_array_equal(warp(image, matrix, (8, 6, 10), dtype=np.float32), wanted)
    assert warp(image, matrix, (8, 6, 10), dtype=np.uint8).max() == 255


def test_an_empty_image_gives_background() -> None:
    found = warp(np.zeros((0, 4), np.int16), np.eye(2, 3), (3, 3), background=-5)
    assert (found == -5).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_fields_are_sampled_linearly_and_held_at_their_edge(ndim: int) -> None:
    rng = np.random.default_rng(2)
    field = rng.normal(size=(*(9, 8, 7)[:ndim], ndim))
    shape = (12, 11, 13)[:ndim]
    matrix, vector = some_map(ndim, 3)
    moves = rng.normal(0, 1, (*shape, ndim))
    at = np.moveaxis(positions(matrix, shape) + moves @ vector.T, -1, 0)
    wanted = np.stack(
        [map_coordinates(field[..., c], at, order=1, mode="nearest") for c in range(ndim)], -1
    )
    found = sample_field(field, matrix, shape, moves, vector)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)  # float32 of values about 1


@pytest.mark.parametrize("name", INTERPOLATORS)
def test_threads_do_not_change_a_bit(name: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(14, 15, 16)).astype(np.float32)
    moves = rng.normal(0, 1, (13, 12, 11, 3)).astype(np.float32)
    matrix, vector = some_map(3)
    results: list[Any] = []
    for threads in (1, 2, 5):
        with using_threads(threads):
            found = warp(image, matrix, moves.shape[:3], moves, vector, interpolator=name)
            field = sample_field(moves, matrix, (9, 9, 9), moves[:9, :9, :9], vector)
        results.append(found.tobytes() + field.tobytes())
    assert results[0] == results[1] == results[2]


def test_refuses_other_interpolators() -> None:
    with pytest.raises(
        InputError, match="must be one of 'linear', 'nearest', 'label-linear' here; got 'cubic'"
    ):
        warp(np.zeros((3, 3)), np.eye(2, 3), (3, 3), interpolator="cubic")


@pytest.mark.parametrize("components", [2, 3])
def test_fields_on_parallel_lattices_are_sampled_as_any_other(components: int) -> None:
    rng = np.random.default_rng(3)
    lattice = (9, 12, 7)[-components:]
    field = rng.normal(size=(*lattice, components)).astype(np.float32)
    index = np.eye(components, components + 1) * 0.4
    index[:, -1] = (-1.3, 0.2, 2.0)[-components:]
    shape = (30, 24, 25)[-components:]
    found = sample_field(field, index, shape)
    # Vectors that lead nowhere make it take the way for any lattices.
    nowhere = np.zeros((*shape, components), np.float32)
    general = sample_field(field, index, shape, nowhere)
    # Sums in another order are rounded elsewhere: a unit in the last place of numbers up to 4.
    np.testing.assert_allclose(found, general, rtol=0, atol=2.5e-7)
    part = Part(field[2:], (2, *(0,) * (components - 1)), lattice)
    index[0, -1] = 2.1
    whole = sample_field(field, index, (4, *shape[1:]))
    np.testing.assert_array_equal(sample_field(part, index, (4, *shape[1:])), whole)
