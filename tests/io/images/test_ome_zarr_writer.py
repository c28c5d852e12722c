"""Written images against ngff-zarr, Grid.shrink and plain averages."""

from __future__ import annotations

import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import ngff_zarr
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from itkstream.errors import ExistingOutputError, InputError, MissingDataError
from itkstream.geometry import Grid
from itkstream.io import create_ome_zarr, open_image, write_pyramid
from itkstream.io.images.stores.ome_zarr_writer import pyramid_factors

TURN = ((0.8, -0.6, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
LAYOUTS = [("0.5", None), ("0.5", (64, 64, 32)), ("0.4", None)]


def grid_of(shape=(70, 300, 41), **changes):
    given = {"spacing": (2.0, 0.5, 1.0), "origin": (5.0, -6.0, 7.0), "axes": ("z", "y", "x")}
    return Grid(shape, **{**given, **changes})


@pytest.mark.parametrize(("version", "shards"), LAYOUTS)
@pytest.mark.parametrize("axes", [("z", "y", "x"), ("x", "y", "z")])
def test_reads_back_as_written_here_and_by_ngff_zarr(tmp_path, version, shards, axes):
    grid = grid_of((9, 8, 7), direction=TURN, axes=axes, unit="nanometer")
    path = tmp_path / "brain.ome.zarr"
    level = create_ome_zarr(
        path, grid, np.int16, chunks=(32, 32, 32), shards=shards, version=version
    )
    assert level.fill_value == 0
    data = np.random.default_rng(6).integers(-500, 500, grid.shape).astype(np.int16)
    level[:] = data
    image = open_image(path)
    assert image.grid == grid
    np.testing.assert_array_equal(image.read(), data)
    assert open_image(path / "0").grid == grid
    # Both versions of NGFF ask for chunks in nested folders.
    assert (path / ("0/0/0/0" if version == "0.4" else "0/c/0/0/0")).is_file()
    # NGFF wants z, y, x; readers that are not strict take any order.
    peer = ngff_zarr.from_ome_zarr(str(path), validate=axes == ("z", "y", "x"))
    assert peer.metadata.name == "brain"
    assert [peer.images[0].scale[a] for a in axes] == list(grid.spacing)
    assert [peer.images[0].translation[a] for a in axes] == list(grid.origin)
    np.testing.assert_array_equal(np.asarray(peer.images[0].data), data)


def averaged(array, factors):
    """Average groups of voxels one by one; those at the end hold what is left."""
    out = np.empty([-(-n // f) for n, f in zip(array.shape, factors, strict=True)])
    for index in np.ndindex(*out.shape):
        group = tuple(slice(k * f, (k + 1) * f) for k, f in zip(index, factors, strict=True))
        out[index] = array[group].mean()
    return out


@pytest.mark.parametrize(("version", "shards"), LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_pyramid_averages_and_says_where_it_lies(tmp_path, version, shards, dtype):
    grid = grid_of((9, 515, 7), direction=TURN)
    path = tmp_path / "a.zarr"
    level = create_ome_zarr(path, grid, dtype, chunks=(8, 32, 8), version=version,
                            shards=shards and (8, 64, 16))  # fmt: skip
    data = np.random.default_rng(7).integers(0, 255, grid.shape).astype(dtype)
    level[:] = data
    grids = write_pyramid(path)
    # 2, .5, 1: only y shrinks; then y and x are both 1; then all are 2.
    factors = [(1, 2, 1), (1, 2, 2)]
    assert grids == [grid, grid.shrink((1, 2, 1)), grid.shrink((1, 2, 1)).shrink((1, 2, 2))]
    for number, (factor, expected_grid) in enumerate(zip(factors, grids[1:], strict=True), 1):
        image = open_image(path, level=number)
        assert image.grid == expected_grid
        assert image.dtype == dtype
        expected = averaged(data, factor)
        data = image.read()
        if np.issubdtype(dtype, np.integer):
            assert np.abs(data - expected).max() <= 0.5  # rounded, not truncated
        else:
            np.testing.assert_allclose(data, expected, rtol=1e-6)  # float32
    assert len(ngff_zarr.from_ome_zarr(str(path), validate=True).images) == 3
    with pytest.raises(InputError):
        open_image(path, level=3)


def test_the_mean_of_a_linear_ramp_lies_where_the_grid_says(tmp_path):
    grid = Grid((64, 300), (1.0, 1.0), (3.0, 4.0), axes=("y", "x"))
    level = create_ome_zarr(tmp_path / "a.zarr", grid, np.float64, chunks=(16, 64))
    level[:] = grid.positions() @ [2.0, 3.0]
    write_pyramid(tmp_path / "a.zarr")
    coarse = open_image(tmp_path / "a.zarr", level=1)
    np.testing.assert_allclose(coarse.read(), coarse.grid.positions() @ [2.0, 3.0], rtol=1e-14)


def test_labels_keep_their_values_and_places(tmp_path):
    grid = Grid((33, 520), (1.0, 1.0), (3.0, 4.0), axes=("y", "x"))
    labels = np.random.default_rng(8).integers(2**24, 2**32, grid.shape, dtype=np.uint32)
    create_ome_zarr(tmp_path / "a.zarr", grid, np.uint32, chunks=(32, 32))[:] = labels
    write_pyramid(tmp_path / "a.zarr", labels=True)
    for level, stride in enumerate((1, 2, 4)):
        image = open_image(tmp_path / "a.zarr", level=level)
        np.testing.assert_array_equal(image.read(), labels[::stride, ::stride])
        np.testing.assert_allclose(image.grid.to_physical((2, 3)), (3 + 2 * stride, 4 + 3 * stride))


def test_any_mapper_gives_the_same_pyramid(tmp_path):
    grid = grid_of((20, 600, 30), spacing=(1, 1, 1))
    data = np.random.default_rng(9).integers(0, 65535, grid.shape).astype(np.uint16)
    results = []
    for name, mapper in (("serial", map), ("threads", ThreadPoolExecutor(4).map)):
        create_ome_zarr(tmp_path / name, grid, data.dtype, chunks=(8, 64, 8))[:] = data
        write_pyramid(tmp_path / name, mapper=mapper)
        write_pyramid(tmp_path / name, mapper=mapper)  # again, over what is there
        results.append([open_image(tmp_path / name, level=k).read() for k in range(3)])
    for a, b in itertools.pairwise(results):
        for one, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [None, (32, 64, 64)])
def test_memory_is_that_of_a_shard_not_of_the_image(tmp_path, shards):
    grid = Grid((64, 600, 400), (1, 1, 1))
    chunks = (32, 32, 32)
    level = create_ome_zarr(tmp_path / "a", grid, np.uint16, chunks=chunks, shards=shards)
    level[:] = np.broadcast_to(np.arange(400, dtype=np.uint16), grid.shape)
    tracemalloc.start()
    write_pyramid(tmp_path / "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A coarse chunk needs 64**3 fine voxels, twice (0.5 MB each, and their chunks as read), sums
    # in float64 (0.26 MB) and, where there are shards, one of 0.26 MB; the image has 31 MB.
    assert peak < 4e6


@given(
    shape=st.tuples(*[st.integers(1, 5000)] * 3),
    spacing=st.tuples(*[st.floats(0.05, 20)] * 3),
)
@settings(max_examples=50, deadline=None)
def test_pyramids_end_and_approach_cubic_voxels(shape, spacing):
    grid = Grid(shape, spacing)
    levels = 0
    while max(grid.shape) > 256:
        coarse = grid.shrink(pyramid_factors(grid))
        assert coarse.size < grid.size
        if min(grid.shape) > 1:
            ratio = max(grid.spacing) / min(grid.spacing)
            # 2 / sqrt(2): the worst that can come of shrinking an axis just within the bound.
            assert max(coarse.spacing) / min(coarse.spacing) <= max(ratio, 2) + 1e-9
        grid, levels = coarse, levels + 1
    assert levels < 40


def test_nothing_is_replaced_that_was_not_meant(tmp_path):
    grid = grid_of((4, 4, 4))
    path = tmp_path / "a.zarr"
    create_ome_zarr(path, grid, np.uint8, chunks=(4, 4, 4))[:] = 3
    with pytest.raises(ExistingOutputError, match="overwrite=True"):
        create_ome_zarr(path, grid, np.uint8, chunks=(4, 4, 4))
    assert open_image(path).read().min() == 3
    create_ome_zarr(path, grid, np.uint8, chunks=(4, 4, 4), overwrite=True)
    assert open_image(path).read().max() == 0
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("years of work")
    zarr.create_group(str(tmp_path / "container"))
    for precious in ("folder", "file", "container"):
        with pytest.raises(ExistingOutputError, match="never replaced"):
            create_ome_zarr(tmp_path / precious, grid, np.uint8, chunks=(4, 4, 4), overwrite=True)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunks": (4, 4)},
        {"chunks": (4, 4, 0)},
        {"shards": (8, 8, 6)},
        {"shards": (8, 8, 8), "version": "0.4"},
        {"version": "0.3"},
    ],
)
def test_refuses_layouts_that_cannot_be(tmp_path, wrong):
    with pytest.raises(InputError):
        create_ome_zarr(tmp_path / "a.zarr", grid_of(), np.uint8, **{"chunks": (4, 4, 4), **wrong})
    assert not (tmp_path / "a.zarr").exists()


def test_only_images_made_here_get_a_pyramid(tmp_path):
    zarr.create_group(str(tmp_path / "a.zarr"))
    for path in ("a.zarr", "none.zarr"):
        with pytest.raises(MissingDataError):
            write_pyramid(tmp_path / path)


@pytest.mark.parametrize(("version", "shards"), LAYOUTS)
def test_series_have_axes_of_their_own(tmp_path, version, shards):
    grid = grid_of((9, 300, 7))
    path = tmp_path / "s.ome.zarr"
    chunks, shards = (9, 64, 7), shards and (9, 128, 7)
    level = create_ome_zarr(path, grid, np.uint16, chunks=chunks, shards=shards,
                            series={"t": 2, "c": 3}, version=version)  # fmt: skip
    data = np.random.default_rng(9).integers(0, 9999, (2, 3, *grid.shape)).astype(np.uint16)
    level[:] = data
    assert level.chunks == (1, 1, *chunks)
    assert write_pyramid(path) == [grid, grid.shrink((1, 2, 1))]
    for time, channel in np.ndindex(2, 3):
        image = open_image(path, time=time, channel=channel)
        assert image.grid == grid
        np.testing.assert_array_equal(image.read(), data[time, channel])
        coarse = open_image(path, time=time, channel=channel, level=1)
        expected = averaged(data[time, channel], (1, 2, 1))
        assert np.abs(coarse.read() - expected).max() <= 0.5
    peer = ngff_zarr.from_ome_zarr(str(path), validate=True)
    assert tuple(peer.images[0].dims) == ("t", "c", "z", "y", "x")
    for wrong in ({"w": 2}, {"c": 0}):
        with pytest.raises(InputError, match="a series has axes t and c"):
            create_ome_zarr(tmp_path / "w", grid, np.uint8, chunks=chunks, series=wrong)


def test_the_largest_integers_do_not_wrap_in_a_pyramid(tmp_path):
    grid = Grid((300, 8), (1.0, 1.0), axes=("y", "x"))
    level = create_ome_zarr(tmp_path / "a.zarr", grid, np.uint64, chunks=(64, 8))
    level[:] = 2**64 - 1
    write_pyramid(tmp_path / "a.zarr")
    assert (open_image(tmp_path / "a.zarr", level=1).read() == 2**64 - 1).all()


@pytest.mark.parametrize("series", [None, {"t": 2, "c": 3}])
@pytest.mark.parametrize("turn", [TURN, ((0, 0, -1), (0, 1, 0), (1, 0, 0)), np.diag((-1, 1, 1))])
def test_a_turned_image_lies_in_the_right_place_for_readers_of_0_6(tmp_path, series, turn):
    grid = grid_of((9, 515, 300), direction=turn)
    path = tmp_path / "turned.ome.zarr"
    level = create_ome_zarr(path, grid, np.uint8, chunks=(9, 128, 128), series=series)
    level[...] = 7
    grids = write_pyramid(path)
    assert len(grids) > 1
    peer = ngff_zarr.from_ome_zarr(str(path), validate=True)
    metadata = peer.metadata
    (step,) = metadata.coordinateTransformations
    assert step.input.name == metadata.intrinsic_coordinate_system.name
    assert step.output.name in [system.name for system in metadata.coordinateSystems]
    affine = np.asarray(step.affine)[-3:]
    for number, (image, expected) in enumerate(zip(peer.images, grids, strict=True)):
        for voxel in itertools.product((0, 3), (0, 5), (0, 7)):
            scale, shift = ([of[a] for a in "zyx"] for of in (image.scale, image.translation))
            along = np.multiply(voxel, scale) + shift
            placed = affine[:, -4:-1] @ along + affine[:, -1]
            np.testing.assert_allclose(placed, expected.to_physical(voxel), atol=1e-9)
        found = open_image(path, level=number, channel=0).grid
        np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-12)
        assert found.shape == expected.shape
    assert ngff_zarr.from_ome_zarr(str(path)).metadata.coordinateSystems


def test_versions_without_a_word_for_a_direction_say_so(tmp_path, caplog):
    grid = grid_of((9, 8, 7), direction=TURN)
    create_ome_zarr(tmp_path / "a.zarr", grid, np.uint8, chunks=(9, 8, 7), version="0.5")
    assert "other programs show it along its own axes" in caplog.text
    assert open_image(tmp_path / "a.zarr").grid == grid
    caplog.clear()
    create_ome_zarr(tmp_path / "b.zarr", grid_of((9, 8, 7)), np.uint8, chunks=(9, 8, 7))
    assert not caplog.text
    assert zarr.open_group(tmp_path / "b.zarr").attrs["ome"]["version"] == "0.5"


def test_a_stack_of_one_plane_keeps_its_pyramid(tmp_path):
    grid = grid_of((1, 600, 300))
    create_ome_zarr(tmp_path / "a.zarr", grid, np.uint8, chunks=(1, 128, 128))
    assert [g.shape for g in write_pyramid(tmp_path / "a.zarr")][-1] == (1, 150, 150)
    assert open_image(tmp_path / "a.zarr", level=1).ndim == 2
    assert open_image(tmp_path / "a.zarr", axes="zyx").grid == grid
