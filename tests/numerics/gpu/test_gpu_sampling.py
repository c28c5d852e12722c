"""Images and fields sampled on a GPU: the bits of the processors, on kernels that run as C++."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated import EmulatedBackend, needs_compiler
from numpy.typing import NDArray

from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.numerics.gpu.engine import using_engine
from itkstream.numerics.sampling.fields import compose, resize_field
from itkstream.numerics.sampling.interpolate import Part, sample_field, warp
from itkstream.numerics.sampling.warping import WarpSettings, warp_block

pytestmark = needs_compiler

SHAPE = (9, 14, 17)
RNG = np.random.default_rng(0)
# Turned, so that some positions lie outside, on the border, and exactly on voxels.
TURN = np.array([[0.9, 0.2, -0.1, 0.5], [-0.2, 1.0, 0.1, -0.7], [0.1, 0.05, 1.05, 0.0]])
SHIFT = np.array([[1.0, 0, 0, 0.5], [0, 1.0, 0, -0.5], [0, 0, 1.0, 1.0]])
Both = Callable[[Callable[[], NDArray[Any]]], tuple[NDArray[Any], NDArray[Any]]]


def vectors(shape: tuple[int, ...], n: int = 3) -> NDArray[np.float32]:
    return RNG.normal(0, 1.5, (*shape, n)).astype(np.float32)


def voxels(dtype: str, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = RNG.normal(0, 100, shape).astype(kind)
        values[3, 4:6], values[0, 0, 0] = np.nan, np.inf
        return values
    if kind.kind == "b":
        return RNG.random(shape) < 0.5
    info = np.iinfo(kind)
    return RNG.integers(info.min, info.max, shape, kind.newbyteorder("="), endpoint=True).astype(
        kind
    )


def test_the_fixture_computes_on_a_device(both: Both, device: EmulatedBackend) -> None:
    both(lambda: warp(voxels("uint16"), TURN, SHAPE))
    assert device.launched == ["warp_linear_32"]


@pytest.mark.parametrize("interpolator", ["linear", "nearest"])
@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int16", ">u2", "uint32", "int64", "uint64", "float16", "float32", "float64"],
)
def test_voxels_of_all_types_have_the_same_bits(dtype: str, interpolator: str, both: Both) -> None:
    image, moves = voxels(dtype), vectors((8, 9, 10))
    here, there = both(
        lambda: warp(image, TURN, (8, 9, 10), moves, TURN[:, :3], interpolator=interpolator)
    )
    assert here.dtype == there.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(("given", "wanted"), [("int32", "float32"), ("uint16", "float64")])
def test_results_of_another_type_have_the_same_bits(given: str, wanted: str, both: Both) -> None:
    image = voxels(given)
    here, there = both(lambda: warp(image, SHIFT, SHAPE, background=7.0, dtype=wanted))
    assert there.dtype == wanted
    np.testing.assert_array_equal(here, there)


def test_labels_beyond_single_precision_are_unharmed(both: Both) -> None:
    labels = np.array([[2**24 + 1, 2**53 + 1], [2**62 + 3, 1]], np.uint64)
    _, there = both(lambda: warp(labels, np.eye(2, 3), (2, 2), interpolator="nearest"))
    np.testing.assert_array_equal(there, labels)


def test_a_nan_beside_a_voxel_counts_as_on_the_processors(both: Both) -> None:
    image = np.ones((4, 4, 4), np.float32)
    image[1, 1, 1] = np.nan
    here, there = both(lambda: warp(image, np.eye(3, 4), (4, 4, 4), background=np.nan))
    np.testing.assert_array_equal(here, there)
    assert np.isnan(there).sum() == np.isnan(here).sum() > 1


@pytest.mark.parametrize("interpolator", ["linear", "nearest"])
def test_planes_and_parts_have_the_same_bits(interpolator: str, both: Both) -> None:
    plane, moves = voxels("uint16", (20, 30)), vectors((11, 12), 2)
    turn = np.array([[0.9, 0.3, 1.0], [-0.3, 0.9, 2.5]])
    here, there = both(lambda: warp(plane, turn, (11, 12), moves, interpolator=interpolator))
    np.testing.assert_array_equal(here, there)
    whole = voxels("float32", (12, 20, 22))
    part = Part(whole[2:9, 3:18, 5:20], (2, 3, 5), whole.shape)
    at = np.eye(3, 4) * 0.5 + [[0, 0, 0, 1.0]] * 3
    here, there = both(lambda: warp(part, at, (5, 6, 4), first=(4, 5, 9)))
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("index", [SHIFT, TURN, np.eye(3, 4) * 0.3], ids=["shift", "turn", "fine"])
def test_fields_have_the_same_bits(index: NDArray[np.float64], both: Both) -> None:
    field, moves = vectors(SHAPE), vectors((7, 8, 9))
    for moved in (None, moves):
        here, there = both(lambda moved=moved: sample_field(field, index, (7, 8, 9), moved))
        np.testing.assert_array_equal(here, there)


def test_fields_go_to_other_lattices_and_follow_each_other(both: Both) -> None:
    grid, fine = Grid((6, 5, 7), (4.0, 2.0, 2.0)), Grid((12, 11, 15), (2.0, 1.0, 1.0))
    first, second = vectors(grid.shape), vectors(grid.shape)
    for compute in (
        lambda: resize_field(first, grid, fine),
        lambda: compose(first, second, grid),
    ):
        np.testing.assert_array_equal(*both(compute))


def test_transforms_in_a_chain_go_to_the_device(both: Both, device: EmulatedBackend) -> None:
    """What is mapped, by the fields of a chain, and what is then warped."""
    grid = Grid(SHAPE, (2.0, 1.0, 1.0))
    field = DisplacementField(vectors((5, 6, 7)), Grid((5, 6, 7), (4.0, 2.5, 2.5)))
    chain = CompositeTransform((field, AffineTransform(np.vstack([TURN, [0, 0, 0, 1]]))))
    image = Image(voxels("uint16"), grid)
    np.testing.assert_array_equal(*both(lambda: warp_block(image, chain, grid, WarpSettings())))
    assert set(device.launched) == {"stretch_vectors", "warp_linear_32"}


def test_less_memory_takes_fewer_planes_at_a_time_and_changes_no_bit(
    both: Both, device: EmulatedBackend
) -> None:
    image, moves = voxels("int16"), vectors(SHAPE)
    device.largest = 4 * 14 * 17 * 12  # the vectors of four planes of nine
    here, there = both(lambda: warp(image, TURN, SHAPE, moves))
    assert device.launched == ["warp_linear_32"] * 3
    np.testing.assert_array_equal(here, there)


def test_memory_on_the_device_is_at_most_60_bytes_a_voxel(device: EmulatedBackend) -> None:
    """Of the widest types; what numpy takes here is what a device's arrays take."""
    shape = (40, 40, 40)
    image, moves = voxels("int32", shape), vectors(shape)
    with using_engine("gpu"):
        tracemalloc.start()
        warp(image, TURN, shape, moves, dtype="float32")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert device.launched
    assert peak / image.size < 60


@pytest.mark.parametrize(
    "compute",
    [
        lambda: warp(voxels("uint8"), TURN, SHAPE, interpolator="label-linear"),
        lambda: warp(voxels("uint8"), TURN, SHAPE, vectors(SHAPE).astype(float)),
        lambda: sample_field(vectors(SHAPE).astype(float), TURN, SHAPE),
    ],
    ids=["labels", "double moves", "double field"],
)
def test_what_the_processors_keep(
    compute: Callable[[], NDArray[Any]], device: EmulatedBackend
) -> None:
    with using_engine("gpu"):
        compute()
    assert not device.launched
