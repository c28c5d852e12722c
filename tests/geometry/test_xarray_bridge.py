"""Images and fields as xarray has them: there and back, in µm, without reading what is lazy."""

from __future__ import annotations

import sys
from collections.abc import Callable

import dask.array as da
import numpy as np
import pytest

from itkstream import as_image
from itkstream.errors import InputError
from itkstream.geometry import DisplacementField, Grid, Image, LazyArray

xarray = pytest.importorskip("xarray")

GRID = Grid((4, 5, 6), (2.0, 0.5, 0.25), (10.0, -3.0, 0.5), axes=("z", "y", "x"))


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 99, GRID.shape).astype(np.uint16)


def test_an_image_comes_back_as_it_was() -> None:
    labelled = Image(voxels(), GRID, "round1").to_xarray()
    assert (labelled.dims, labelled.name) == (("z", "y", "x"), "round1")
    assert labelled.coords["z"].attrs == {"units": "micrometer"}
    np.testing.assert_allclose(labelled.coords["x"], 0.5 + 0.25 * np.arange(6))
    back = as_image(labelled)
    assert back.grid == GRID
    np.testing.assert_array_equal(back.read(), voxels())


def test_lengths_are_micrometers_and_turned_axes_descend() -> None:
    turned = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    grid = Grid((4, 5, 6), (2.0, 0.5, 0.25), (10.0, -3.0, 0.5), turned, GRID.axes, "millimeter")
    labelled = Image(voxels(), grid).to_xarray()
    np.testing.assert_allclose(labelled.coords["z"], [10_000, 8_000, 6_000, 4_000])
    np.testing.assert_allclose(as_image(labelled).grid.matrix, grid.in_unit("micrometer").matrix)


class Counting(LazyArray):
    """Counts the voxels that are read."""

    shape, dtype, count = GRID.shape, np.dtype(np.uint16), 0

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
        part = voxels()[tuple(map(slice, start, stop))]
        self.count += part.size
        return part


def test_dask_stays_dask_and_of_stored_images_is_read_what_is_used() -> None:
    lazy = Image(da.from_array(voxels(), chunks=2), GRID).to_xarray()
    assert isinstance(lazy.data, da.Array)
    stored = Counting()
    labelled = Image(stored, GRID).to_xarray()
    part = labelled.sel(z=14.0)[1:3, ::2]
    assert stored.count == 0
    np.testing.assert_array_equal(part.to_numpy(), voxels()[2, 1:3, ::2])
    assert 0 < stored.count <= 12
    np.testing.assert_array_equal(labelled.chunk(2).compute().to_numpy(), voxels())


def test_a_field_names_the_axis_that_a_number_leads_along() -> None:
    moves = np.zeros((*GRID.shape, 3), np.float32)
    moves[..., 2] = 4
    grid = Grid(GRID.shape, GRID.spacing, axes=GRID.axes, unit="millimeter")
    labelled = DisplacementField(moves, grid).to_xarray()
    assert labelled.dims == ("z", "y", "x", "component")
    assert labelled.attrs == {"units": "micrometer"}
    assert labelled.dtype == np.float32
    assert float(labelled.sel(component="x").max()) == pytest.approx(4000)
    assert float(labelled.sel(component="z").max()) == 0


def test_axes_aslant_are_refused(odd_grid: Callable[..., Grid]) -> None:
    grid = odd_grid(3)
    with pytest.raises(InputError, match="aslant"):
        Image(np.zeros(grid.shape), grid).to_xarray()


def test_without_xarray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    monkeypatch.delitem(sys.modules, "itkstream.geometry.xarray_bridge", raising=False)
    with pytest.raises(InputError, match="pip install xarray"):
        Image(voxels(), GRID).to_xarray()
