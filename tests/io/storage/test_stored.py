"""Lazy slicing equals slicing the whole array, in every format and in another process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from itkstream.geometry import Grid, Image
from itkstream.io import create_ome_zarr, open_image, write_n5

SHAPE = (9, 10, 11)
FORMATS = (
    *("n5", "zarr2", "zarr3", "ome4", "ome5", "sharded"),
    *("nii", "nii.gz", "nrrd", "mha", "mhd", "tif", "vector.mha"),
)


class Case(NamedTuple):
    image: Image
    whole: np.ndarray


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Case]:
    whole = np.random.default_rng(10).integers(0, 60000, SHAPE).astype(np.uint16)
    root = tmp_path_factory.mktemp("stored")
    return {kind: Case(make(kind, root / kind, whole), whole) for kind in FORMATS}


def make(kind, path, whole):
    grid = Grid(SHAPE, (1.0, 2.0, 3.0))
    if kind == "n5":
        write_n5(path, "deep/low", whole, grid, chunks=(4, 5, 6))
        return open_image(path / "deep/low")
    if kind.startswith("zarr"):
        zarr.create_array(str(path), data=whole, chunks=(4, 5, 6), zarr_format=int(kind[-1]))
        return open_image(path, voxel_spacing=1)
    if kind.startswith("ome") or kind == "sharded":
        version = "0.4" if kind == "ome4" else "0.5"
        shards = (8, 10, 6) if kind == "sharded" else None
        create_ome_zarr(path, grid, whole.dtype, chunks=(4, 5, 6), shards=shards, version=version)[
            :
        ] = whole
        return open_image(path)
    path.mkdir()
    file = path / f"a.{kind}"
    vector = kind.startswith("vector")
    array = np.stack([whole // 2, whole], axis=-1) if vector else whole
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(file))
    return open_image(file, channel=int(vector), voxel_spacing=1)


def cuts(step):
    ends = st.none() | st.integers(-12, 12)
    return st.builds(slice, ends, ends, step)


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_slicing_lazily_equals_slicing_the_whole(cases, kind, data):
    image, whole = cases[kind]
    steps = st.none() | st.integers(-3, -1) | st.integers(1, 3)
    key = data.draw(st.tuples(*[cuts(steps)] * 3))
    np.testing.assert_array_equal(image.data[key], whole[key])
    order = data.draw(st.permutations(range(3)))
    turned = image.data.transpose(order)
    np.testing.assert_array_equal(turned[key], whole.transpose(order)[key])
    assert image.data[key].dtype == image.dtype == whole.dtype


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_stored_arrays_take_keys_as_numpy_does(cases, data):
    image, whole = cases["n5"]
    one = st.integers(-9, 8) | cuts(st.none() | st.integers(1, 4))
    key = tuple(data.draw(st.lists(one, max_size=3)))
    if data.draw(st.booleans()):
        key = (*key[:1], Ellipsis, *key[1:])
    np.testing.assert_array_equal(image.data.source[key], whole[key])


def test_keys_that_numpy_refuses_too(cases):
    source = cases["n5"].image.data.source
    np.testing.assert_array_equal(np.asarray(source), cases["n5"].whole)
    for key in ((0, 0, 0, 0), (9,), (slice(None), -11)):
        with pytest.raises(IndexError):
            source[key]
    np.testing.assert_array_equal(source[::-1, 7:2:-2], cases["n5"].whole[::-1, 7:2:-2])


@pytest.mark.parametrize("kind", FORMATS)
def test_pickles_before_and_after_reading(cases, kind):
    image, whole = cases[kind]
    image.read()
    sent = pickle.dumps(image)
    assert len(sent) < whole.nbytes  # the path travels, not the voxels
    back = pickle.loads(sent)
    assert back.grid == image.grid
    np.testing.assert_array_equal(back.read(), whole)


def test_another_process_reads_the_same(cases):
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        sent = {kind: client.submit(np.asarray, case.image.data) for kind, case in cases.items()}
        for kind, future in sent.items():
            np.testing.assert_array_equal(future.result(), cases[kind].whole, err_msg=kind)


def test_importing_io_loads_no_format():
    code = "import sys, itkstream.io; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    names = set(loaded.stdout.split())
    assert not names & {"zarr", "tensorstore", "SimpleITK", "ngff_zarr", "dask"}
