"""Images and views against numpy's own slicing; laziness by counting reads."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.errors import InputError
from itkstream.geometry import ArraySource, ArrayView, Grid, Image, transposed


@dataclass
class Counted:
    """An array that remembers how many elements were read from it."""

    array: np.ndarray
    reads: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        part = self.array[key]
        self.reads.append(part.size)
        return part


@given(st.data())
def test_views_slice_as_numpy_does(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 6)) for _ in range(4))
    array = np.arange(np.prod(shape)).reshape(shape)
    channel = data.draw(st.integers(0, shape[1] - 1))
    order = data.draw(st.permutations(range(3)))
    picks = tuple(channel if k == 1 else slice(0, n) for k, n in enumerate(shape))
    view, wanted = ArrayView(array, picks, tuple(order)), array[:, channel].transpose(order)
    for _ in range(2):
        cuts = tuple(
            slice(a, data.draw(st.integers(a, n)))
            for n in wanted.shape
            for a in [data.draw(st.integers(0, n))]
        )
        assert view.crop(cuts).shape == wanted[cuts].shape
        view, wanted = view.crop(cuts), wanted[cuts]
        turn = data.draw(st.permutations(range(3)))
        view, wanted = view.transpose(turn), wanted.transpose(turn)
    np.testing.assert_array_equal(np.asarray(view), wanted)
    assert view.ndim == 3


def test_nothing_is_read_before_it_is_asked_for() -> None:
    source = Counted(np.arange(4 * 5 * 6).reshape(4, 5, 6))
    image = Image(ArrayView.whole(source), Grid((4, 5, 6), (1, 1, 1)))
    part = image.reorder(("z", "y", "x"))[slice(1, 3), slice(None), slice(0, 2)]
    assert source.reads == []
    np.testing.assert_array_equal(part.read(), source.array[:2, :, 1:3].transpose(2, 1, 0))
    assert source.reads == [2 * 5 * 2]


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr", "n5"])
def test_crop_and_reorder_in_every_container(
    stored: Callable[..., Any], odd_grid: Callable[..., Grid], kind: str
) -> None:
    grid = odd_grid(3)
    voxels = np.random.default_rng(0).integers(0, 999, grid.shape).astype(np.uint16)
    image = Image(stored(kind, voxels, grid), grid, "brain")
    assert isinstance(image.data, ArraySource)
    turned = image.reorder(("z", "x", "y"))
    np.testing.assert_array_equal(turned.read(), voxels.transpose(2, 0, 1))
    assert turned.grid == grid.reorder(("z", "x", "y"))
    part = turned[slice(2, -3), slice(None), slice(1, None)]
    np.testing.assert_array_equal(part.read(), voxels.transpose(2, 0, 1)[2:-3, :, 1:])
    assert part.shape == part.grid.shape
    assert part.name == "brain"
    assert image.reorder(grid.axes) is image
    assert (image.dtype, image.ndim, image.spacing) == (np.uint16, 3, grid.spacing)


def test_a_crop_of_a_dask_array_is_lazy() -> None:
    image = Image(da.ones((8, 8), chunks=4), Grid((8, 8), (1, 1)))
    assert isinstance(image[slice(0, 3), slice(2, 5)].data, da.Array)


@pytest.mark.parametrize("kind", ["zarr", "n5"])
def test_stored_images_pickle(stored: Callable[..., Any], kind: str) -> None:
    grid = Grid((6, 7, 8), (1, 1, 2))
    voxels = np.arange(336, dtype=np.uint16).reshape(grid.shape)
    image = Image(transposed(stored(kind, voxels, grid), (2, 1, 0)), Grid((8, 7, 6), (2, 1, 1)))
    again = pickle.loads(pickle.dumps(image))
    np.testing.assert_array_equal(again.read(), voxels.transpose(2, 1, 0))


def test_units_leave_the_voxels_alone() -> None:
    image = Image(np.ones((3, 3)), Grid((3, 3), (1, 2), unit="millimeter"))
    micro = image.in_unit("micrometer")
    assert micro.spacing == (1e3, 2e3)
    assert micro.data is image.data


def test_refuses_a_grid_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 4\) do not fit a grid of shape \(4, 3\)"):
        Image(np.zeros((3, 4)), Grid((4, 3), (1, 1)))
