"""Arrays and images of other libraries, taken as they are; voxels lie where they lay."""

from __future__ import annotations

from doctest import testmod
from typing import Any

import dask.array as da
import itk
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

import itkstream
from itkstream import Grid, Image, IntensityAffine, RegisterSettings
from itkstream.errors import InputError
from itkstream.io.images.plain import in_memory
from itkstream.phantoms import PhantomPair

VOXELS = np.random.default_rng(0).integers(0, 99, (4, 5, 6), np.uint16)
SPACING, ORIGIN = (2.0, 1.0, 0.5), (7.0, -3.0, 11.0)
TURN = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))  # x, y, z


@pytest.mark.parametrize("make", [np.asarray, da.from_array, zarr.array])
def test_arrays_take_a_spacing_and_stay_where_they_are(make: Any) -> None:
    given = make(VOXELS)
    image = itkstream.as_image(given, SPACING, "zyx")
    assert image.data is given
    assert image.grid == Grid(VOXELS.shape, SPACING, axes=("z", "y", "x"))
    assert itkstream.as_image(given, 0.3, unit="millimeter").grid.spacing == (0.3, 0.3, 0.3)


@pytest.mark.parametrize("library", ["SimpleITK", "itk"])
def test_images_of_itk_say_where_they_lie(library: str) -> None:
    if library == "SimpleITK":
        given = sitk.GetImageFromArray(VOXELS)
        given.SetDirection(np.ravel(TURN).tolist())
    else:
        given = itk.image_from_array(VOXELS)
        given.SetDirection(itk.matrix_from_array(np.array(TURN)))
    given.SetSpacing(SPACING[::-1])
    given.SetOrigin(ORIGIN[::-1])
    image = itkstream.as_image(given)
    np.testing.assert_array_equal(image.read(), VOXELS)
    index = (3, 1, 4)
    there = list(given.TransformIndexToPhysicalPoint(index[::-1]))
    np.testing.assert_allclose(image.grid.to_physical(index), there[::-1])
    assert image.grid.axes == ("z", "y", "x")
    with pytest.raises(InputError, match="says its own spacing"):
        itkstream.as_image(given, 1.0)


def data_array(**changes: Any) -> Any:
    xarray = pytest.importorskip("xarray")
    places = zip(ORIGIN, SPACING, VOXELS.shape, strict=True)
    coords = {
        name: (name, start + step * np.arange(n), {"units": "um"})
        for name, (start, step, n) in zip("zyx", places, strict=True)
    }
    return xarray.DataArray(VOXELS[None], dims=("c", *"zyx"), coords={**coords, **changes})


def test_xarray_says_axes_spacing_origin_and_unit() -> None:
    image = itkstream.as_image(data_array())
    assert image.grid == Grid(VOXELS.shape, SPACING, ORIGIN, axes=("z", "y", "x"))
    np.testing.assert_array_equal(image.read(), VOXELS)
    # Coordinates that descend: voxel 0 is the last place.
    turned = itkstream.as_image(data_array()[..., ::-1]).grid
    index = np.array([1, 2, 4])
    np.testing.assert_allclose(
        turned.to_physical([1, 2, 1]), np.add(ORIGIN, np.multiply(index, SPACING))
    )


def test_xarray_without_coordinates_needs_a_spacing() -> None:
    bare = data_array().drop_vars(("z", "y", "x"))
    with pytest.raises(InputError, match="along z: give it a coordinate, or pass spacing"):
        itkstream.as_image(bare)
    assert itkstream.as_image(bare, SPACING).grid.spacing == SPACING


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": ("x", [0.0, 1, 2, 4, 8, 16])}, "not evenly spaced: from 1 to 8"),
        ({"x": ("x", np.arange(6.0), {"units": "mm"})}, "several units"),
        ({"x": ("x", list("abcdef"))}, "must be finite numbers"),
    ],
)
def test_xarray_that_is_no_lattice_is_refused(change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        itkstream.as_image(data_array(**change))


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"got builtins\.dict"):
        itkstream.as_image({})
    with pytest.raises(InputError, match="pass spacing"):
        itkstream.as_image(VOXELS)


def test_arrays_are_registered_directly(pair: PhantomPair, tmp_path: Any) -> None:
    """As the same images on their grids, to the last bit."""
    grid, steps = pair.fixed.grid, [IntensityAffine("translation", iterations=(9, 9))]
    settings = RegisterSettings(error_map=False, report=False)
    arrays = pair.fixed.read(), pair.moving.read()
    told = {"spacing": grid.spacing, "axes": grid.axes}
    found = itkstream.register(*arrays, tmp_path / "a", steps, settings, **told)
    images = (Image(array, Grid(array.shape, grid.spacing, axes=grid.axes)) for array in arrays)
    want = itkstream.register(*images, tmp_path / "b", steps, settings)
    np.testing.assert_array_equal(found.aligned.read(), want.aligned.read())
    assert itkstream.plan(*arrays, steps, settings, **told).fits


def test_the_example_runs() -> None:
    found = testmod(in_memory)
    assert (found.failed, found.attempted) == (0, 3)
