"""The descent with the operations of a GPU, against the processors: kernels run as C++ here."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from emulated import EmulatedBackend, needs_compiler
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.errors import InputError
from itkstream.geometry import Grid, Landmarks
from itkstream.numerics.deformation.correlation import LocalCorrelation
from itkstream.numerics.deformation.descent import Channel, Descent, Frame, descend
from itkstream.numerics.deformation.gpu.correlation import DeviceCorrelation
from itkstream.numerics.deformation.gpu.operations import DeviceOperations
from itkstream.numerics.deformation.kernels import SmoothingKernel, smooth_field
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS, PIPELINE_MIND
from itkstream.numerics.sampling.fields import pick_vectors

pytestmark = needs_compiler

Image = NDArray[np.float32]
SHAPE = (34, 40, 27)


def make_images(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[Image, Image]:
    """Blobs, and the same through a smooth warp of at most two voxels, both with noise."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros(shape, np.float32)
    seeds[tuple(rng.integers(0, n, seeds.size // 300) for n in shape)] = 1.0
    fixed = ndimage.gaussian_filter(seeds, 1.8) * 300
    u = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), 8.0) for _ in shape])
    u *= 2.0 / np.sqrt((u**2).sum(axis=0)).max()
    moving = ndimage.map_coordinates(fixed, np.indices(shape) + u, order=1, mode="nearest")
    noise = rng.normal(0, 0.3, (2, *shape))
    return (fixed + noise[0]).astype(np.float32), (moving + noise[1]).astype(np.float32)


def turned() -> tuple[Grid, NDArray[np.float64]]:
    grid = Grid(SHAPE, (2.0, 0.8, 0.9))
    affine = np.eye(4)
    affine[:3, :3] += [[0.01, 0.02, 0], [-0.02, 0, 0.01], [0, 0.01, 0.01]]
    affine[:3, 3] = 0.5, -0.3, 0.2
    return grid, affine


def plain(**changes: Any) -> dict[str, Any]:
    fixed, moving = make_images()
    grid = Grid(SHAPE, (1.0, 1.0, 1.0))
    settings = evolve(PIPELINE_DEFAULTS.for_voxels(grid.spacing), **changes)
    frame = Frame(grid, grid, np.eye(4))
    return {"fixed": fixed, "moving": moving, "frame": frame, "settings": settings}


def with_affine() -> dict[str, Any]:
    grid, affine = turned()
    settings = PIPELINE_DEFAULTS.for_voxels(grid.spacing)
    return plain() | {"frame": Frame(grid, grid, affine), "settings": settings}


def masked() -> dict[str, Any]:
    case = plain()
    case["fixed"][:10] = np.nan
    case["moving"][20:24, 10:20] = np.nan
    return case | {"beyond": "affine"}


def with_landmarks() -> dict[str, Any]:
    points = np.array([[10, 10, 10], [20, 30, 20], [30, 12, 15.0]])
    return plain() | {"landmarks": Landmarks(points, points + np.array([0.5, 1, -0.5]))}


def with_channels() -> dict[str, Any]:
    return plain() | {"others": [Channel(*make_images(1), 0.5)]}


def in_planes(shape: tuple[int, int] = (60, 50)) -> dict[str, Any]:
    fixed, moving = make_images(2, shape)
    grid = Grid(fixed.shape, (1.0, 1.0))
    settings = PIPELINE_DEFAULTS.for_voxels(grid.spacing)
    frame = Frame(grid, grid, np.eye(3))
    return {"fixed": fixed, "moving": moving, "frame": frame, "settings": settings}


CASES: list[Callable[[], dict[str, Any]]] = [
    with_affine,
    masked,
    with_landmarks,
    with_channels,
    in_planes,
    lambda: plain(update="gradient"),
]


def on_device(case: dict[str, Any], backend: EmulatedBackend) -> Descent:
    return descend(**case, operations=DeviceOperations(backend))


@pytest.mark.parametrize("make", CASES)
def test_both_engines_find_the_same(make: Callable[[], dict[str, Any]]) -> None:
    here, there = descend(**make()), on_device(make(), EmulatedBackend())
    apart = np.linalg.norm(here.displacement - there.displacement, axis=-1)
    finest = min(make()["frame"].fixed_grid.spacing)
    # The bar between engines is 0.02 and 0.1 voxel; rounding leaves far less on small images.
    assert np.median(apart) < 1e-4 * finest
    assert np.percentile(apart, 95) < 1e-3 * finest
    for one, other in zip(here.levels, there.levels, strict=True):
        assert (one.iterations, one.stopped) == (other.iterations, other.stopped)
        assert one.after == pytest.approx(other.after, abs=1e-5)


def test_results_repeat_to_the_bit() -> None:
    first, second = (on_device(masked(), EmulatedBackend()) for _ in range(2))
    assert first.displacement.tobytes() == second.displacement.tobytes()


def test_correlation_is_that_of_the_processors_to_rounding() -> None:
    """Window sums are exact on both, also where voxels do not count and beside other channels."""
    fixed, moving = make_images()
    fixed[:5, 3:9], moving[20:, :, :7] = np.nan, np.nan
    nodes, stride = (17, 10, 7), (2, 4, 4)
    forces = []
    for likeness in (
        LocalCorrelation(fixed, moving, (3, 4, 2), True),
        DeviceCorrelation(EmulatedBackend(), (fixed, moving), (3, 4, 2), True),
    ):
        alike = likeness.compare(moving)
        out = np.empty((*nodes, 9), np.float32)
        likeness.collect((1.0, 1.5, 2.0), stride, out)
        forces.append((alike, out))
    assert forces[0][0] == pytest.approx(forces[1][0], rel=1e-12)
    np.testing.assert_allclose(forces[1][1], forces[0][1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("spare_affine", [False, True])
@pytest.mark.parametrize("d", [2.0, 0.5])
@pytest.mark.parametrize("shape", [(13, 29, 34), (1, 17, 8)])
def test_smoothing_by_matrices_is_that_of_the_cosine_transform(
    shape: tuple[int, ...], d: float, spare_affine: bool
) -> None:
    field = np.random.default_rng(0).normal(size=(*shape, 9)).astype(np.float32)
    kernel, spacing, lattice = SmoothingKernel(6.0, 0.0, 1.0, d), (4.0, 2.0, 2.0), (1.0, 1.0, 0.9)
    how = spacing, kernel, lattice, spare_affine
    found = DeviceOperations(EmulatedBackend()).smooth(field, *how)
    np.testing.assert_allclose(found, smooth_field(field, *how), atol=2e-6)


class _Watched(EmulatedBackend):
    """Notes the largest array that leaves it."""

    sent = 0

    def get(self, array: NDArray[Any]) -> NDArray[Any]:
        self.sent = max(self.sent, array.size)
        return super().get(array)


@pytest.mark.parametrize("make", [with_affine, in_planes])
def test_what_is_wanted_of_a_field_is_all_that_leaves(make: Callable[[], dict[str, Any]]) -> None:
    case, watched = make(), _Watched()
    shape = case["fixed"].shape
    places = (None, *(np.arange(1.5, n + 3, 4) for n in shape[1:]))
    whole = on_device(case, EmulatedBackend()).displacement
    found = on_device(case | {"places": places}, watched).displacement
    np.testing.assert_array_equal(found, pick_vectors(whole, places))
    assert found.shape[:-1] == (shape[0], *(len(along) for along in places[1:]))
    assert watched.sent == found.size or len(shape) == 2
    here = descend(**case, places=places).displacement
    np.testing.assert_array_equal(here, pick_vectors(descend(**case).displacement, places))


@pytest.mark.parametrize("make", [plain, lambda: in_planes((240, 250))], ids=["volume", "plane"])
def test_memory_on_the_device_is_at_most_60_bytes_a_voxel(
    make: Callable[[], dict[str, Any]],
) -> None:
    """What numpy takes here is what a device's arrays take; the result, which leaves, counts too.

    Fixed and moving image, which are the caller's, are 8 bytes more, as they are copied here.
    """
    case = make()
    on_device(case, EmulatedBackend())
    tracemalloc.start()
    on_device(case, EmulatedBackend())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / case["fixed"].size < 60


class _SmallBackend(EmulatedBackend):
    """Has no room for window sums of more than so many planes."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        backend, self.refused = self, 0

        class Namespace:
            def __getattr__(self, name: str) -> Any:
                return getattr(np, name)

            @staticmethod
            def empty(shape: tuple[int, ...], dtype: Any = float) -> NDArray[Any]:
                if len(shape) == 4 and shape[0] == 6 and shape[1] > planes:
                    backend.refused += 1
                    raise MemoryError
                return np.empty(shape, dtype)

        self.xp = Namespace()


def test_less_memory_takes_fewer_planes_at_a_time_and_changes_no_bit() -> None:
    case = plain()
    whole, small = EmulatedBackend(), _SmallBackend(1)
    expected, found = on_device(case, whole), on_device(case, small)
    assert small.refused
    assert found.displacement.tobytes() == expected.displacement.tobytes()
    with pytest.raises(MemoryError):
        on_device(case, _SmallBackend(0))


def test_self_similarity_is_refused() -> None:
    case = plain() | {"settings": PIPELINE_MIND.for_voxels((1.0, 1.0, 1.0))}
    with pytest.raises(InputError, match="processors"):
        on_device(case, EmulatedBackend())
