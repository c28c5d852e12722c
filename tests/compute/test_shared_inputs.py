"""Arrays in memory reach workers once, beside the graph, and nothing of them stays."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster

from itkstream.apply.resampling import prepare_apply_transform
from itkstream.blocks.graph import Result, map_blocks
from itkstream.compute.execute import execute
from itkstream.compute.shared_inputs import LENT_BYTES, Parcel, _Held, lent
from itkstream.geometry import Block, BlockGrid, DisplacementField, Grid, Image
from itkstream.transform import prepare_apply_local_affines, prepare_apply_position_field

SHAPE = (160, 128, 128)
GRID = Grid(SHAPE, (1.0, 1.0, 1.0))
SIZE = (80, 64, 128)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    """More than dask takes in a graph without a word, 10 MB; with its axes turned."""
    rng = np.random.default_rng(3)
    return rng.integers(0, 4000, SHAPE[::-1]).astype(np.float32).transpose(2, 1, 0)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every graph that is handed to a scheduler."""
    sizes: list[int] = []
    get = Client.get

    def measured(self: Client, graph: Any, *more: Any, **options: Any) -> Any:
        sizes.append(len(cloudpickle.dumps(graph)))
        return get(self, graph, *more, **options)

    monkeypatch.setattr(Client, "get", measured)
    return sizes


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this test go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def here() -> Iterator[Client]:
    """Two processes of this machine, known to be such."""
    with (
        SubprocessCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2)
        yield client


@pytest.fixture(scope="module")
def elsewhere(here: Client) -> Iterator[Client]:
    """The same workers, known by an address alone: they could be anywhere."""
    with Client(here.scheduler.address, set_as_default=False) as client:
        yield client


def prepared(voxels: np.ndarray) -> dict[str, da.Array]:
    """A large array as moving image, as source of blocks, inside a transform."""
    affines = np.tile(np.eye(4), (2, 2, 1, 1, 1))
    affines[0, ..., 3] += 2.5
    pair = (voxels, voxels, GRID.spacing, GRID.spacing)
    image = Image(voxels, GRID)
    moves = DisplacementField(np.stack([voxels] * 3, -1) / 4000, GRID)
    return {
        "moving": prepare_apply_local_affines(*pair, affines, SIZE),
        "source": prepare_apply_position_field(*pair, GRID.positions() + 0.25, SIZE),
        "transform": prepare_apply_transform(image, image, moves, SIZE),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "where"),
    [("moving", "here"), ("source", "here"), ("transform", "here"), ("moving", "elsewhere")],
)
def test_workers_give_the_same_bits(
    voxels: np.ndarray,
    sent: list[int],
    temporary: Path,
    request: pytest.FixtureRequest,
    kind: str,
    where: str,
) -> None:
    lazy, client = prepared(voxels)[kind], request.getfixturevalue(where)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        there = execute(lazy, cluster=client)
    np.testing.assert_array_equal(there, execute(lazy))
    assert sum(sent) < 20_000
    assert left(temporary) == []
    assert set(client.run(lambda: len(_Held.arrays)).values()) == {0}


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_worker_that_comes_later_has_the_arrays(
    voxels: np.ndarray, tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    blocks = BlockGrid(SHAPE, SIZE, (0, 0, 0))
    shared = {"note": tmp_path / "died", "add": voxels}
    lazy = map_blocks(_die_once, blocks, voxels, shared, Result(voxels.dtype))
    found = execute(lazy, cluster=request.getfixturevalue(where))
    np.testing.assert_array_equal(found, 2 * voxels)
    assert (tmp_path / "died").exists()


def _die_once(part: np.ndarray, block: Block, *, note: Path, add: np.ndarray) -> np.ndarray:
    if not note.exists():
        note.touch()
        os._exit(1)
    return part + add[block.core]


def test_blocks_that_are_large_arrays_themselves_come_back(
    voxels: np.ndarray, here: Client
) -> None:
    lazy = da.from_array(np.ascontiguousarray(voxels[:80]), chunks=(40, 128, 128))
    np.testing.assert_array_equal(execute(lazy, cluster=here), voxels[:80])


def left(temporary: Path) -> list[Path]:
    return list(temporary.glob("itkstream-*"))


def test_each_array_is_lent_once_and_small_ones_are_not(
    voxels: np.ndarray, temporary: Path, here: Client
) -> None:
    small = np.zeros(LENT_BYTES // 8 - 1)
    values = {1: (voxels, {"a": voxels[:]}), 2: Image(voxels, GRID), 3: small}
    with lent(here, values) as parcels:
        assert set(parcels) == {1, 2}
        assert len(list(temporary.rglob("*.npy"))) == 1
        opened = cloudpickle.loads(cloudpickle.dumps(parcels[2]))
        assert isinstance(opened, Parcel)
        found = opened.open()
        assert opened.open() is found
        assert type(found.data) is np.ndarray
        np.testing.assert_array_equal(found.data, voxels)
        found.data[0, 0, 0] += 1  # stays in this process
        again = cloudpickle.loads(cloudpickle.dumps(parcels[1])).open()
        np.testing.assert_array_equal(again[1]["a"], voxels)
    assert left(temporary) == []
