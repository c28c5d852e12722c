"""Every lazy array slices as numpy does, whatever the key, directly and through dask."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import dask.array as da
import numpy as np
import pytest
import zarr
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st

from itkstream.apply import coarsening, folds
from itkstream.apply import fields as algebra
from itkstream.blocks import camera, masks
from itkstream.blocks import sources as lazy
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    ArraySource,
    ArrayView,
    DisplacementField,
    Grid,
    Image,
    LazyArray,
    lazy_array,
    steps_of,
)
from itkstream.io import open_image, write_n5
from itkstream.io.images import units
from itkstream.io.images.files.itk_images import write_itk
from itkstream.io.storage.stored import KeptChunks, StoredArray
from itkstream.io.transforms.files import read_transform, write_transform
from itkstream.io.transforms.vectors import OrderedVectors
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.registration import scene as kept_levels
from itkstream.serving import pyramids
from itkstream.serving import warped as served

SHAPE = (7, 9, 8)
GRID = Grid(SHAPE, (1.5, 2.0, 0.7), (3.0, -2.0, 10.0), axes=("z", "y", "x"))
VOXELS = np.random.default_rng(0).integers(0, 60000, SHAPE).astype(np.uint16)
VECTORS = np.random.default_rng(1).normal(size=(*SHAPE, 3)).astype(np.float32)


class Case(NamedTuple):
    lazy: LazyArray
    whole: np.ndarray

    def __repr__(self) -> str:
        return f"{type(self.lazy).__name__} of shape {self.whole.shape}"


def stored_zarr(folder: Path) -> Any:
    zarr.create_array(str(folder / "a.zarr"), data=VOXELS, chunks=(3, 4, 5))
    return open_image(folder / "a.zarr", voxel_spacing=1).data


def raw_zarr(folder: Path) -> zarr.Array[Any]:
    return zarr.create_array({}, data=VOXELS, chunks=(3, 4, 5))


def stored_n5(folder: Path) -> Any:
    write_n5(folder / "a.n5", "s0", VOXELS, Grid(SHAPE, (1, 1, 1)), chunks=(3, 4, 5))
    return open_image(folder / "a.n5/s0").data.source


def itk_file(folder: Path, ending: str) -> Any:
    write_itk(folder / f"a{ending}", Image(VOXELS, GRID))
    return open_image(folder / f"a{ending}").data.source


def vectors_in(folder: Path, name: str) -> Any:
    write_transform(folder / name, DisplacementField(VECTORS, GRID))
    return steps_of(read_transform(folder / name, GRID.axes))[0].data


def turned(folder: Path) -> Case:
    view = stored_zarr(folder).crop((slice(6, 0, -2), slice(1, None), slice(None, None, 3)))
    whole = VOXELS[6:0:-2, 1:, ::3].transpose(2, 0, 1)
    return Case(view.transpose(2, 0, 1), whole)


def masked(folder: Path) -> Case:
    keep = VOXELS % 3 > 0
    image = Image(VOXELS, GRID)
    return Case(masks.masked(image, keep).data, np.where(keep, VOXELS.astype(np.float32), np.nan))


def patched(folder: Path) -> Case:
    box = (slice(2, 5), slice(0, 3), slice(4, 8))
    whole = VECTORS.copy()
    whole[box] = 5
    return Case(folds._Patched(VECTORS, ((box, whole[box]),)), whole)


def decimated(folder: Path) -> Case:
    kept = coarsening.decimate(DisplacementField(VECTORS, GRID), (2, 2, 7))
    return Case(kept.data, VECTORS[::2, ::2, ::7])


def repaired(folder: Path) -> Case:
    """A plane across z of which one pixel is too bright by 7."""
    pattern = np.zeros(SHAPE[1:], np.float32)
    pattern[3, 2] = 7
    image = Image(VOXELS + pattern, GRID)
    return Case(camera.without_pattern(image, pattern).data, VOXELS.astype(np.float32))


def inverted(folder: Path) -> Case:
    image = Image(stored_zarr(folder), GRID)
    return Case(lazy.inverted(image).data, -VOXELS.astype(np.float32))


def sampled(folder: Path) -> Case:
    matrix = np.eye(4)
    matrix[:3, :3] += np.random.default_rng(2).normal(0, 0.1, (3, 3))
    array = algebra._Sampled(AffineTransform(matrix), GRID)
    return Case(array, algebra._sample(array.transform, GRID))


def warped(folder: Path) -> Case:
    """Shifted by one voxel along z: the last plane is outside."""
    matrix = np.eye(4)
    matrix[0, 3] = GRID.spacing[0]
    shift = AffineTransform(matrix)
    array = served._Warped(Image(VOXELS, GRID), shift, GRID, WarpSettings(background=0))
    return Case(array, np.concatenate([VOXELS[1:], np.zeros_like(VOXELS[:1])]))


def coarsened(folder: Path) -> Case:
    return Case(pyramids._Coarsened(VOXELS, (2, 1, 4), labels=True), VOXELS[::2, :, ::4])


MAKERS: dict[str, Callable[[Path], Case]] = {
    "zarr": lambda folder: Case(stored_zarr(folder), VOXELS),
    "zarr's own": lambda folder: Case(ArrayView.whole(raw_zarr(folder)), VOXELS),
    "zarr's own, turned": lambda folder: Case(
        ArrayView.whole(raw_zarr(folder)).crop((slice(None, None, -2), slice(8, 1), slice(1, 7))),
        VOXELS[::-2, 8:1, 1:7],
    ),
    "n5": lambda folder: Case(stored_n5(folder), VOXELS),
    "nrrd": lambda folder: Case(itk_file(folder, ".nrrd"), VOXELS),
    "nii.gz": lambda folder: Case(itk_file(folder, ".nii.gz"), VOXELS),
    "kept chunks": lambda folder: Case(KeptChunks.of(stored_n5(folder), (3, 4, 5)), VOXELS),
    "kept level": lambda folder: Case(
        kept_levels._Kept(stored_zarr(folder).source, "some name"), VOXELS
    ),
    "view": lambda folder: Case(
        ArrayView(VOXELS, (slice(1, 6), 4, slice(0, 8)), (1, 0)), VOXELS[1:6, 4].T
    ),
    "turned view": turned,
    "dask": lambda folder: Case(lazy.DaskSource(da.from_array(VOXELS, chunks=4)), VOXELS),
    "foreign": lambda folder: Case(lazy_array._Foreign(raw_zarr(folder)), VOXELS),
    "derived": lambda folder: Case(lazy_array.DerivedArray(VOXELS), VOXELS),
    "masked": masked,
    "vectors of nrrd": lambda folder: Case(vectors_in(folder, "t.nrrd"), VECTORS),
    "vectors of hdf5": lambda folder: Case(vectors_in(folder, "t.h5"), VECTORS.astype(float)),
    "vectors of ngff": lambda folder: Case(vectors_in(folder, "t.ome.zarr"), VECTORS),
    "patched": patched,
    "decimated": decimated,
    "repaired": repaired,
    "inverted": inverted,
    "sampled": sampled,
    "warped": warped,
    "coarsened": coarsened,
    "scaled": lambda folder: Case(units._Scaled(VECTORS, 0.001), VECTORS * np.float32(0.001)),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {name: make(tmp_path_factory.mktemp("lazy")) for name, make in MAKERS.items()}


def test_every_lazy_array_is_tried_here(cases: dict[str, Case]) -> None:
    # Formats are tried in tests/io/storage/test_stored.py.
    formats = set(heirs(StoredArray)) - {KeptChunks}
    abstract = {StoredArray, OrderedVectors}
    tried = {type(case.lazy) for case in cases.values()}
    assert set(heirs(LazyArray)) - formats - abstract <= tried


def heirs(kind: type) -> list[type]:
    below = [k for k in kind.__subclasses__() if k.__module__.startswith("itkstream.")]
    return [*below, *(deeper for k in below for deeper in heirs(k))]


def on_axis(n: int, beyond: int = 2) -> st.SearchStrategy[Any]:
    """An entry of a key without arrays, for an axis of n elements."""
    ends = st.none() | st.integers(-n - beyond, n + beyond)
    cut = st.builds(slice, ends, ends, st.none() | st.integers(1, 4) | st.integers(-4, -1))
    if not n:
        return cut
    index = st.integers(-n, n - 1)
    return cut | cut | index | index.map(np.int64)


@st.composite
def keys(draw: st.DrawFn, shape: tuple[int, ...], *, arrays: bool = True) -> Any:
    # dask itself is wrong where a slice begins before the first element.
    beyond = 2 if arrays else 0
    used = draw(st.integers(0, len(shape)))
    key = [draw(on_axis(n, beyond)) for n in shape[:used]]
    if draw(st.booleans()):
        # What stands behind the ellipsis belongs to the last axes.
        behind = draw(st.integers(0, used))
        tail = [draw(on_axis(n, beyond)) for n in shape[len(shape) - behind :]]
        key = [*key[: used - behind], Ellipsis, *tail]
    if arrays and used and draw(st.booleans()):
        axis = draw(st.integers(0, len(key) - 1))
        if key[axis] is not Ellipsis:
            at = (
                axis
                if Ellipsis not in [k for k in key[:axis] if k is Ellipsis]
                else axis - len(key)
            )
            key[axis] = draw(picked(shape[at]))
    if draw(st.integers(0, 4)) == 0:
        key.insert(draw(st.integers(0, len(key))), None)
    return key[0] if len(key) == 1 and draw(st.booleans()) else tuple(key)


def picked(n: int) -> st.SearchStrategy[Any]:
    truth = st.lists(st.booleans(), min_size=n, max_size=n)
    if not n:
        return truth.map(lambda t: np.array(t, bool))
    index = st.integers(-n, n - 1)
    some = st.lists(index, max_size=4)
    return (
        index.map(np.array)
        | some
        | some.map(lambda k: np.array(k, np.int32))
        | truth
        | truth.map(np.array)
    )


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_key_gives_what_numpy_gives(
    cases: dict[str, Case], name: str, data: st.DataObject
) -> None:
    array, whole = cases[name]
    key = data.draw(keys(whole.shape))
    # Small boxes, so that what is spread out is read in several.
    with patch.object(lazy_array, "_LOOSE_ELEMENTS", data.draw(st.sampled_from([1, 40, 2**24]))):
        found = array[key]
    assert found.dtype == whole.dtype
    assert np.shape(found) == whole[key].shape
    np.testing.assert_array_equal(found, whole[key])


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_dask_slices_it_as_numpy_does(
    cases: dict[str, Case], name: str, data: st.DataObject
) -> None:
    array, whole = cases[name]
    key = data.draw(keys(whole.shape, arrays=False))
    found = da.from_array(array, chunks=data.draw(st.integers(2, 9)))[key]
    np.testing.assert_array_equal(found.compute(scheduler="synchronous"), whole[key])


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_an_array_in_all_else(cases: dict[str, Case], name: str) -> None:
    array, whole = cases[name]
    assert isinstance(array, ArraySource)
    assert (array.shape, array.dtype, array.ndim) == (whole.shape, whole.dtype, whole.ndim)
    assert (array.size, len(array)) == (whole.size, len(whole))
    np.testing.assert_array_equal(np.asarray(array), whole)
    assert np.array(array, np.float64).dtype == np.float64
    np.testing.assert_array_equal(list(array), whole)
    for order in ((), ([0, *range(1, whole.ndim)][::-1],), range(-1, whole.ndim - 1)):
        np.testing.assert_array_equal(array.transpose(*order), whole.transpose(*order))
    with pytest.raises(ValueError, match=r"once|Repeated"):
        array.transpose([0] * whole.ndim)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(array, copy=False)


@pytest.mark.parametrize(
    "name", [name for name in MAKERS if "own" not in name and name != "foreign"]
)
def test_pickled_it_is_the_same_array(cases: dict[str, Case], name: str) -> None:
    array, whole = cases[name]
    again = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(again, whole)
    if isinstance(array, (ArrayView, StoredArray)):
        assert (
            tokenize(again)
            == tokenize(array)
            != tokenize(array.crop([slice(1, None)] * array.ndim))
        )


@pytest.mark.parametrize(
    "key", [np.s_[:, 0, ..., []], np.s_[[1, 2], ..., 0, 0], np.s_[0, :, [1, 2]]]
)
def test_the_axis_of_an_array_stands_where_numpy_puts_it(cases: dict[str, Case], key: Any) -> None:
    array, whole = cases["zarr"]
    assert array[key].shape == whole[key].shape
    np.testing.assert_array_equal(array[key], whole[key])


@pytest.mark.parametrize(
    "key",
    [
        (0, 0, 0, 0),
        (Ellipsis, Ellipsis),
        7,
        (slice(None), -10),
        [0, 7],
        1.5,
        "z",
        True,
        np.True_,
        [True, False],
        VOXELS > 9,
        ([0, 1], [0, 1]),
        [slice(0, 1)],
    ],
    ids=lambda key: str(key)[:20],
)
def test_what_cannot_be_taken_is_an_index_error(cases: dict[str, Case], key: Any) -> None:
    with pytest.raises(IndexError):
        cases["zarr"].lazy[key]


class Counted(LazyArray):
    """Remembers which boxes were read."""

    shape = (1000, 1000, 1000)
    dtype = np.dtype(np.uint8)
    chunk_shape = (100, 50, 50)

    def __init__(self) -> None:
        self.boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
        self.boxes.append((start, stop))
        return np.zeros([b - a for a, b in zip(start, stop, strict=True)], np.uint8)


@pytest.mark.parametrize("key", [slice(5, None, 250), [5, 255, 505, 755], slice(755, None, -250)])
def test_planes_that_lie_far_apart_are_read_alone(key: Any) -> None:
    array = Counted()
    assert array[key].shape == (4, 1000, 1000)
    planes = [5, 255, 505, 755]
    assert sorted(array.boxes) == [((k, 0, 0), (k + 1, 1000, 1000)) for k in planes]


def test_every_second_voxel_is_read_in_boxes_of_whole_chunks() -> None:
    array = Counted()
    assert array[::2, ::2, ::2].shape == (500, 500, 500)
    assert sum(np.prod(np.subtract(b, a)) for a, b in array.boxes) <= 1000**3
    assert max(np.prod(np.subtract(b, a)) for a, b in array.boxes) <= 2**24
    starts = np.array([start for start, _ in array.boxes])
    assert not (starts % array.chunk_shape).any()


def test_a_plain_slice_is_not_copied() -> None:
    view = ArrayView.whole(VOXELS)
    assert np.shares_memory(view[2:5, :, 1:4], VOXELS)
    assert not np.shares_memory(np.array(view, copy=True), VOXELS)


@st.composite
def parts(draw: st.DrawFn, n: int) -> slice:
    """Some of n elements, up or down, counted from either end."""
    first, last = (draw(st.integers(0, n - 1)) for _ in range(2))
    step = draw(st.integers(1, 4)) * (1 if first <= last else -1)
    beyond = last + (1 if first <= last else -1)
    stop = beyond if 0 <= beyond < n else None
    start = first - n if draw(st.booleans()) else first
    return slice(start, stop, None if step == 1 else step)


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_part_of_an_image_lies_where_it_was(data: st.DataObject) -> None:
    """Whatever the steps, each voxel keeps its position."""
    keys_ = [data.draw(parts(n)) for n in SHAPE]
    used = tuple(keys_[: data.draw(st.integers(0, 3))])
    key = data.draw(st.sampled_from([used, (Ellipsis, *keys_[3 - len(used) :])]))
    every = key if key[:1] == (Ellipsis,) else (*used, Ellipsis)
    every = (*every, *[slice(None)] * (Ellipsis in key))
    sources = (VOXELS, da.from_array(VOXELS, chunks=4), ArrayView.whole(VOXELS), raw_zarr(Path()))
    for source in sources:
        part = Image(source, GRID, "brain")[key]
        assert part.name == "brain"
        np.testing.assert_array_equal(part.read(), VOXELS[key])
        np.testing.assert_array_equal(np.asarray(part), VOXELS[key])
        np.testing.assert_allclose(part.grid.positions(), GRID.positions()[every], atol=1e-9)


def test_a_step_makes_the_lattice_coarser() -> None:
    image = Image(ArrayView.whole(VOXELS), GRID)
    part = image[1::2, ..., ::-3]
    assert part.spacing == pytest.approx((3.0, 2.0, 2.1))
    assert part.grid.origin == pytest.approx((4.5, -2.0, 10 + 7 * 0.7))
    assert part.grid.direction == ((1, 0, 0), (0, 1, 0), (0, 0, -1))
    assert isinstance(part.data, ArrayView)


@pytest.mark.parametrize("key", [5, (slice(None), 0), np.int64(3), [1, 2], VOXELS > 0, None])
def test_an_image_keeps_its_axes(key: Any) -> None:
    with pytest.raises(InputError, match=r"cut by slices.*image\.data\[5\] is a plane"):
        Image(VOXELS, GRID)[key]


def test_an_image_has_a_voxel() -> None:
    with pytest.raises(InputError, match="holds no voxel"):
        Image(VOXELS, GRID)[3:3]


def test_numpy_takes_an_image_for_its_voxels() -> None:
    image = Image(ArrayView.whole(VOXELS), GRID)
    assert np.asarray(image).shape == SHAPE
    assert np.asarray(image, np.float32).dtype == np.float32
    assert np.mean(image) == VOXELS.mean()
