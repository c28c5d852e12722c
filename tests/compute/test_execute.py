"""Running prepared computations: the same bits everywhere, and nobody's results overwritten."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

from itkstream.apply.resampling import prepare_apply_transform
from itkstream.compute.execute import compute, execute, store
from itkstream.deform import prepare_piecewise_deformable_align
from itkstream.errors import BlockErrors, ExistingOutputError, InputError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io.storage import stored
from itkstream.numerics.threads import get_threads
from itkstream.phantoms import PhantomPair
from itkstream.workers import Resources

ARRAY = np.arange(20 * 18).reshape(20, 18)


def lazy() -> da.Array:
    return da.from_array(ARRAY, chunks=(8, 6))


def fingerprint(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_memory_and_zarr(tmp_path: Path) -> None:
    found = execute(lazy())
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, ARRAY)
    written = execute(lazy(), tmp_path / "out.zarr")
    assert isinstance(written, zarr.Array)
    assert written.chunks == (8, 6)
    np.testing.assert_array_equal(written[:], ARRAY)
    assert written.read_only
    smaller = execute(lazy(), tmp_path / "small.zarr", chunks=(4, 3))
    assert smaller.chunks == (4, 3)
    np.testing.assert_array_equal(smaller[:], ARRAY)


def test_last_blocks_may_be_longer(tmp_path: Path) -> None:
    # As BlockGrid cuts: what remains joins the block before it.
    uneven = da.from_array(ARRAY, chunks=((8, 12), (6, 6, 6)))
    np.testing.assert_array_equal(execute(uneven, tmp_path / "a.zarr")[:], ARRAY)


def test_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    execute(lazy(), path)
    before = fingerprint(tmp_path)

    def never(_block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    hopeless = lazy().map_blocks(never, dtype=int, meta=np.empty((0, 0), int))
    with pytest.raises(ExistingOutputError, match="overwrite=True"):
        execute(hopeless, path)
    assert fingerprint(tmp_path) == before
    found = execute(lazy() + 1, path, overwrite=True)
    np.testing.assert_array_equal(found[:], ARRAY + 1)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_zarr_array_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("more work")
    before = fingerprint(tmp_path)
    for path in (folder, tmp_path / "file"):
        with pytest.raises(ExistingOutputError, match="never replaced"):
            execute(lazy(), path, overwrite=overwrite)
    assert fingerprint(tmp_path) == before


def test_bad_arguments_leave_the_disk_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    execute(lazy(), path)
    before = fingerprint(tmp_path)
    for change in ({"n_workers": 0}, {"chunks": (5, 6)}):
        with pytest.raises(InputError):
            execute(lazy(), path, overwrite=True, **change)
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_workers": 0}, "n_workers must be at least 1; got 0"),
        ({"threads_per_worker": 0}, "threads_per_worker must be at least 1"),
        ({"cores": 0}, "cores must be at least 1"),
        ({"cores": 4, "processes": -1}, "processes must be at least 1"),
        ({"min_workers": 0}, "min_workers must be at least 1"),
        ({"max_workers": -3}, "max_workers must be at least 1; got -3"),
        ({"chunks": (8,)}, "chunks needs 2 numbers"),
        ({"chunks": (0, 6)}, "chunks needs 2 numbers >= 1"),
        ({"chunks": (5, 6)}, "chunks of 5 on axis 0 do not divide the blocks of 8"),
        ({"chunks": (16, 6)}, "use a divisor of 8"),
    ],
)
def test_refuses(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        execute(lazy(), tmp_path / "out.zarr", **change)
    assert not list(tmp_path.iterdir())


def test_runs_the_tutorials_calls_without_a_cluster(tmp_path: Path) -> None:
    none = dict.fromkeys(("n_workers", "threads_per_worker", "memory_limit"))
    np.testing.assert_array_equal(execute(lazy(), **none, config={}), ARRAY)
    written = execute(lazy(), write_path=tmp_path / "out.zarr", project="multifish")
    np.testing.assert_array_equal(written[...], ARRAY)
    found = execute(lazy(), cores=4, processes=1, min_workers=1, max_workers=2, config={})
    np.testing.assert_array_equal(found, ARRAY)


def test_refuses_what_is_not_lazy() -> None:
    with pytest.raises(InputError, match="prepare_ function returned, a dask array; got ndarray"):
        execute(ARRAY)


def test_blocks_must_not_share_chunks_of_a_target(tmp_path: Path) -> None:
    target = zarr.create_array(str(tmp_path / "t.zarr"), shape=(20, 18), chunks=(16, 6), dtype=int)
    with pytest.raises(InputError, match="two blocks would write to one chunk"):
        store(lazy(), target)
    inside = np.zeros((20, 18), int)
    store(lazy(), inside)
    np.testing.assert_array_equal(inside, ARRAY)


@pytest.mark.parametrize("write", [False, True])
def test_progress_runs_to_the_end(tmp_path: Path, write: bool) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "out.zarr" if write else None
    execute(lazy(), path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 9) for k in range(10)]


def test_config_stays_inside() -> None:
    key = "array.slicing.split-large-chunks"
    before = dask.config.get(key, None)
    inside: list[Any] = []

    def look(block: np.ndarray) -> np.ndarray:
        inside.append(dask.config.get(key, None))
        return block

    execute(lazy().map_blocks(look, dtype=int, meta=np.empty((0, 0), int)), config={key: True})
    assert set(inside) == {True}
    assert dask.config.get(key, None) == before
    with pytest.raises(BlockErrors, match="ZeroDivisionError"):
        execute(
            lazy().map_blocks(lambda b: 1 // 0, dtype=int, meta=np.empty((0, 0), int)),
            config={key: True},
        )
    assert dask.config.get(key, None) == before


class Chunked:
    """A stored image of 24 x 16 x 16 chunks that counts what it decodes."""

    shape, dtype, chunks = (96, 64, 64), np.dtype(np.uint16), (4, 4, 4)

    def __init__(self) -> None:
        self.boxes: list[Any] = []

    def __getitem__(self, key: Any) -> np.ndarray:
        self.boxes.append(key)
        return np.zeros([cut.stop - cut.start for cut in key], self.dtype)


@pytest.mark.slow
def test_blocks_follow_one_another_so_that_chunks_are_decoded_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Chunked()
    image = Image(source, Grid(source.shape, (1.0,) * 3))
    # A block of one chunk's size touches eight; two layers of three by three are kept.
    monkeypatch.setattr(stored, "KEPT_BYTES", 18 * 4**3 * 2)
    shift = np.eye(4)
    shift[:3, 3] = 1.6
    moved = prepare_apply_transform(image, image, AffineTransform(shift), source.chunks)
    compute(moved, Resources(cores=1, threads_per_worker=1))
    decoded, blocks = len(source.boxes), len(moved.chunks[0]) * 16 * 16
    # 9 chunks for 4 blocks, and the first layers; in index order 3.8, in any order 8.
    assert decoded < 2.5 * blocks


def test_threads_are_shared_between_blocks_and_kernels() -> None:
    before, seen, at_once = get_threads(), [], []
    gate = threading.Lock()

    def look(block: np.ndarray) -> np.ndarray:
        at_once.append(gate.acquire(blocking=False))
        seen.append(get_threads())
        if at_once[-1]:
            gate.release()
        return block

    look_lazy = lazy().map_blocks(look, dtype=int, meta=np.empty((0, 0), int))
    compute(look_lazy, Resources(threads_per_worker=1))
    assert set(seen) == {before}
    assert all(at_once)
    seen.clear()
    compute(look_lazy, Resources(threads_per_worker=before))
    assert set(seen) == {1}
    assert get_threads() == before


def test_worker_processes_hand_blocks_back() -> None:
    found = execute(lazy(), max_workers=1, cores=2, processes=2)
    np.testing.assert_array_equal(found, ARRAY)


@pytest.mark.slow
def test_worker_processes_give_the_same_bits(pair: PhantomPair, tmp_path: Path) -> None:
    # The last, and dearest: real processes, stored images, the whole chain of blocks.
    images = []
    for name, image in (("fix", pair.fixed), ("mov", pair.moving)):
        part = image.read()[:48, :48, :40]
        images.append(zarr.create_array(str(tmp_path / name), data=part, chunks=(16, 16, 16)))
    prepared = prepare_piecewise_deformable_align(
        *images, pair.fixed.spacing, pair.moving.spacing, (24, 24, 40),
        global_affine=np.array(pair.truth.matrix), cc_radius=4, iterations=(6, 2),
        mov_is="original",
    )  # fmt: skip
    here = execute(prepared, threads_per_worker=1)
    seen: list[tuple[int, int]] = []
    there = execute(
        prepared, tmp_path / "out.zarr", n_workers=2, memory_limit="2GB",
        progress=lambda *counts: seen.append(counts), chunks=(12, 24, 20, 3),
    )  # fmt: skip
    np.testing.assert_array_equal(there[:], here)
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
