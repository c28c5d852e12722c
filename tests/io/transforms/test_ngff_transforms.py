"""OME-Zarr scenes, parsed by ngff-zarr and evaluated with scipy."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import ngff_zarr
import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from scipy.interpolate import RegularGridInterpolator

from itkstream.errors import ExistingOutputError, InputError, MissingDataError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid
from itkstream.geometry.itk_bridge import to_itk_transform
from itkstream.io.transforms.itk.hdf5_files import write_hdf5_transform
from itkstream.io.transforms.ngff.store import (
    as_stored,
    create_transform,
    read_transform,
    stored_axes,
)
from itkstream.numerics.sampling.mapping import map_on

MakeGrid = Callable[..., Grid]
Make = Callable[..., CompositeTransform]
AXES = [("x", "y", "z"), ("z", "y", "x"), ("y", "z", "x"), ("x", "y"), ("y", "x")]


def write(path: Path, transform: CompositeTransform, **options: Any) -> None:
    field, affine = transform.transforms
    chunks = (5,) * field.grid.ndim
    target = create_transform(path, affine, field.grid, chunks=chunks, **options)
    target[:] = as_stored(field.data, field.grid)


@pytest.mark.parametrize("axes", AXES, ids="".join)
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_written_reads_back(
    odd_grid: MakeGrid, smooth_transform: Make, tmp_path: Path, axes: tuple[str, ...], turned: bool
) -> None:
    grid = odd_grid(1, len(axes), axes)
    if not turned:
        grid = Grid(grid.shape, grid.spacing, grid.origin, axes=axes)
    transform = smooth_transform(grid)
    write(tmp_path / "t.ome.zarr", transform)
    points = grid.positions()
    again = read_transform(tmp_path / "t.ome.zarr", axes)
    np.testing.assert_allclose(again.apply(points), transform.apply(points), atol=1e-9)
    assert again.transforms[0].grid.axes == axes
    # Without axes it comes with those it was written with, whatever the order on disk.
    default = read_transform(tmp_path / "t.ome.zarr")
    assert default.axes == axes
    np.testing.assert_array_equal(default.apply(points), again.apply(points))
    stored = stored_axes(grid)
    order = list(grid.axis_order(stored))
    turned_back = read_transform(tmp_path / "t.ome.zarr", stored)
    np.testing.assert_allclose(
        turned_back.apply(points[..., order]), transform.apply(points)[..., order], atol=1e-9
    )


@pytest.mark.parametrize("axes", AXES, ids="".join)
def test_ngff_zarr_reads_the_same_transform(
    odd_grid: MakeGrid, smooth_transform: Make, tmp_path: Path, axes: tuple[str, ...]
) -> None:
    odd = odd_grid(2, len(axes), axes)
    grid = Grid(odd.shape, odd.spacing, odd.origin, axes=axes)
    transform = smooth_transform(grid)
    path = tmp_path / "t.ome.zarr"
    write(path, transform)

    scene = ngff_zarr.from_ome_zarr(str(path), kind="scene")
    (sequence,) = scene.coordinateTransformations
    assert (sequence.input.name, sequence.output.name) == ("fixed", "moving")
    field, affine = sequence.transformations
    assert (field.type, affine.type) == ("displacements", "affine")
    (system,) = (s for s in scene.coordinateSystems if s.name == "fixed")
    names = [a.name for a in system.axes]
    assert {a.unit for a in system.axes} == {"micrometer"}

    (image,) = ngff_zarr.from_ome_zarr(str(path / field.path), kind="multiscales").images
    assert list(image.dims) == ["c", *names]
    vectors = np.asarray(image.data)
    centres = [
        image.translation[a] + image.scale[a] * np.arange(n)
        for a, n in zip(names, vectors.shape[1:], strict=True)
    ]
    sample = RegularGridInterpolator(centres, np.moveaxis(vectors, 0, -1))
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(c[0], c[-1], 200) for c in centres], -1)
    matrix = np.array(affine.affine)
    wanted = (points + sample(points)) @ matrix[:, :-1].T + matrix[:, -1]

    order = [names.index(a) for a in axes]
    found = transform.apply(points[:, order])
    np.testing.assert_allclose(found, wanted[:, order], atol=1e-6)


def test_store_and_itk_file_are_one_transform(
    odd_grid: MakeGrid, smooth_transform: Make, tmp_path: Path
) -> None:
    grid = odd_grid(3, axes=("z", "y", "x"))
    write(tmp_path / "t.ome.zarr", smooth_transform(grid, factor=2))
    read = read_transform(tmp_path / "t.ome.zarr")
    write_hdf5_transform(tmp_path / "c.h5", read.transforms, grid.axes)
    file = sitk.ReadTransform(str(tmp_path / "c.h5"))
    bridge = to_itk_transform(read, grid.axes)
    for p in grid.positions()[::4, ::4, ::4].reshape(-1, 3):
        wanted = read.apply(p)[::-1]
        np.testing.assert_allclose(file.TransformPoint(p[::-1].tolist()), wanted, atol=1e-9)
        np.testing.assert_allclose(bridge.TransformPoint(p[::-1].tolist()), wanted, atol=1e-9)


def test_the_field_stays_on_disk_and_pickles(
    odd_grid: MakeGrid, smooth_transform: Make, tmp_path: Path
) -> None:
    grid = odd_grid(4)
    transform = smooth_transform(grid)
    write(tmp_path / "t.ome.zarr", transform)
    read = read_transform(tmp_path / "t.ome.zarr", grid.axes)
    field = read.transforms[0]
    assert isinstance(field, DisplacementField)
    assert not isinstance(field.data, np.ndarray)
    packed = pickle.dumps(read)
    assert len(packed) < 4000
    again = pickle.loads(packed)
    one, two = (map_on(t, grid) for t in (again, transform))
    np.testing.assert_array_equal(one.displacement, two.displacement)
    np.testing.assert_array_equal(np.asarray(field.data), transform.transforms[0].data)


def test_lazy_fields_turn_as_arrays_do(odd_grid: MakeGrid) -> None:
    grid = odd_grid(5, axes=("y", "z", "x"))
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, 3))
    wanted = as_stored(vectors, grid)
    lazy = as_stored(da.from_array(vectors, chunks=7), grid)
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(), wanted)
    # Component and axis z stand first, then y, then x.
    np.testing.assert_array_equal(wanted[0], vectors.transpose(1, 0, 2, 3)[..., 1])


def test_refuses(odd_grid: MakeGrid, smooth_transform: Make, tmp_path: Path) -> None:
    transform = smooth_transform(odd_grid(6))
    path = tmp_path / "t.ome.zarr"
    with pytest.raises(MissingDataError, match="no transform store"):
        read_transform(path)
    write(path, transform)
    with pytest.raises(ExistingOutputError, match="overwrite=True"):
        write(path, transform)
    write(path, transform, overwrite=True)
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["ome"]["scene"]["coordinateTransformations"] = []
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="lists no coordinate transformations"):
        read_transform(path)
    shutil.rmtree(path)
    zarr.create_array(str(path), data=np.ones((3, 3)), chunks=(3, 3))
    with pytest.raises(InputError, match="lists no coordinate transformations"):
        read_transform(path)


def test_the_affine_alone_is_no_composite_of_two(tmp_path: Path) -> None:
    grid = Grid((4, 4), (1, 1))
    still = DisplacementField(np.zeros((4, 4, 2), np.float32), grid)
    write(tmp_path / "t", CompositeTransform((still, AffineTransform(np.eye(3)))))
    assert len(read_transform(tmp_path / "t").transforms) == 2
