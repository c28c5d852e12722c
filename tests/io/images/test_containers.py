"""Containers as Zarr's own N5 store gave them, and those of Zarr as they are."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr
from dask.base import tokenize
from hypothesis import given
from hypothesis import strategies as st

import itkstream
from itkstream.compute.execute import execute
from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import ArraySource, Grid
from itkstream.io import write_n5
from itkstream.io.images.stores.containers import Container, ContainerArray, open_container
from itkstream.transform import apply_global_affine, prepare_apply_local_affines

SHAPE = (9, 8, 7)
VOXELS = np.random.default_rng(5).integers(0, 60000, SHAPE).astype(np.uint16)
ATTRIBUTES = {"pixelResolution": [0.92, 0.92, 0.84], "downsamplingFactors": [2, 2, 1]}


@pytest.fixture(scope="module")
def n5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, one of them in groups within groups that have no attributes."""
    root = tmp_path_factory.mktemp("containers") / "fix.n5"
    for name in ("lowres", "rounds/1/high"):
        write_n5(root, name, VOXELS, Grid(SHAPE, (1.0, 1.0, 1.0)), chunks=(4, 5, 6))
        file = root / name / "attributes.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **ATTRIBUTES}))
    return root


@pytest.fixture(scope="module", params=[2, 3])
def zarrs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("containers") / "fix.zarr"
    group = zarr.open_group(str(root), mode="w", zarr_format=request.param)
    group.attrs["name"] = "rounds"
    inner = group.create_group("rounds").create_array("low", data=VOXELS, chunks=(4, 5, 6))
    inner.attrs.update(ATTRIBUTES)
    return root


def test_n5_comes_as_zarr_gave_it(n5: Path) -> None:
    fix_zarr = itkstream.open_container(n5)
    lowres = fix_zarr["/lowres"]
    assert (lowres.shape, lowres.ndim, lowres.dtype) == (SHAPE[::-1], 3, np.uint16)
    assert lowres.chunks == (6, 5, 4)
    # Not how the voxels are stored.
    assert lowres.attrs.asdict() == ATTRIBUTES
    assert lowres.attrs["pixelResolution"] == [0.92, 0.92, 0.84]
    assert "dimensions" not in lowres.attrs
    np.testing.assert_array_equal(lowres[...].transpose(2, 1, 0), VOXELS)
    np.testing.assert_array_equal(lowres[3, ...], VOXELS.T[3])
    np.testing.assert_array_equal(lowres[..., -2], VOXELS.T[..., -2])
    np.testing.assert_array_equal(np.asarray(lowres), VOXELS.T)
    # How long a voxel is, as scripts work it out.
    found = np.array(lowres.attrs.asdict()["pixelResolution"]) * ATTRIBUTES["downsamplingFactors"]
    np.testing.assert_allclose(found, [1.84, 1.84, 0.84])


@given(
    st.tuples(*(st.tuples(st.integers(-12, 12), st.integers(-12, 12)) for _ in SHAPE)),
    st.integers(1, 3),
)
def test_slices_like_numpy(n5: Path, ends: tuple[tuple[int, int], ...], step: int) -> None:
    key = tuple(slice(a, b, step) for a, b in ends)
    np.testing.assert_array_equal(open_container(n5)["lowres"][key], VOXELS.T[key])


def test_zarr_comes_as_stored(zarrs: Path) -> None:
    container = open_container(zarrs)
    assert container.attrs.asdict() == {"name": "rounds"}
    low = container["rounds/low"]
    assert (low.shape, low.chunks) == (SHAPE, (4, 5, 6))
    assert low.attrs.asdict() == ATTRIBUTES
    np.testing.assert_array_equal(low[2:, ::2], VOXELS[2:, ::2])


def test_groups_hold_groups(n5: Path, zarrs: Path) -> None:
    for root, deep in ((n5, "rounds/1/high"), (zarrs, "rounds/low")):
        container = open_container(root)
        for name in (deep, f"/{deep}", f"{deep}/", deep.replace("/", "//")):
            assert name in container
            np.testing.assert_array_equal(container[name][...], container[deep][...])
        first, _, rest = deep.partition("/")
        assert container[first][rest] == container[deep]
        assert open_container(root / first)[rest] == container[deep]
        assert isinstance(container[first], Container)
        assert dict(container.groups()) == {"rounds": container["rounds"]}
    assert list(open_container(n5)) == list(open_container(n5).keys()) == ["lowres", "rounds"]
    assert len(open_container(n5)) == 2
    assert list(dict(open_container(n5).arrays())) == ["lowres"]


@pytest.mark.parametrize(
    "name", ["lowers", "/low", "lowres/0", "rounds/2", "../fix.n5/lowres", ".hidden", "rounds/.."]
)
def test_says_what_is_there(n5: Path, name: str) -> None:
    container = open_container(n5)
    assert name not in container
    with pytest.raises(MissingDataError, match=r"datasets there: lowres, rounds/1/high"):
        container[name]
    with pytest.raises(MissingDataError, match="did you mean 'lowres'"):
        container["lowers"]


def test_refuses_what_is_no_container(n5: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="does not exist"):
        open_container(n5.parent / "mov.n5")
    with pytest.raises(InputError, match=r"is a dataset.*fix\.n5'\)\['lowres'\], or"):
        open_container(n5 / "lowres")
    (tmp_path / "image.nrrd").touch()
    with pytest.raises(InputError, match="is an image file, not a container"):
        open_container(tmp_path / "image.nrrd")
    assert 3 not in open_container(n5)


def test_an_array_goes_wherever_images_go(n5: Path, tmp_path: Path) -> None:
    low = open_container(n5)["lowres"]
    assert isinstance(low, ArraySource)
    spacing = (1.0, 1.0, 1.0)
    affines = np.tile(np.eye(4), (2, 1, 1, 1, 1))
    affines[..., 0, 3] = 1
    prepared = prepare_apply_local_affines(
        low, low, spacing, spacing, affines, [4, 8, 7], transpose=[True, True, False]
    )
    found = execute(prepared, write_path=tmp_path / "out.zarr")
    shifted = np.concatenate([VOXELS[1:], np.zeros_like(VOXELS[:1])])
    np.testing.assert_array_equal(found[...], shifted)
    for turned in (low, da.from_array(low), da.from_array(low, chunks=3)):
        aligned = apply_global_affine(turned, turned, spacing, spacing, np.eye(4))
        np.testing.assert_array_equal(aligned, VOXELS.T)


def test_the_same_array_has_the_same_name_in_every_process(n5: Path) -> None:
    low = open_container(n5)["lowres"]
    again = pickle.loads(pickle.dumps(open_container(n5)))["/lowres"]
    assert isinstance(pickle.loads(pickle.dumps(low)), ContainerArray)
    assert tokenize(low) == tokenize(again) == tokenize(pickle.loads(pickle.dumps(low)))
    assert tokenize(low) != tokenize(open_container(n5)["rounds/1/high"])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(low))[...], VOXELS.T)
    spacing = (1.0, 1.0, 1.0)
    names = [
        prepare_apply_local_affines(a, a, spacing, spacing, np.eye(4)[None, None, None], SHAPE).name
        for a in (low, again)
    ]
    assert names[0] == names[1]


def test_notices_that_a_dataset_was_written_anew(tmp_path: Path) -> None:
    write_n5(tmp_path / "a.n5", "s", VOXELS, Grid(SHAPE, (1.0, 1.0, 1.0)), chunks=SHAPE)
    array = open_container(tmp_path / "a.n5")["s"]
    before = tokenize(array)
    array.source.write((0, 0, 0), VOXELS + 1)
    assert tokenize(array) != before
