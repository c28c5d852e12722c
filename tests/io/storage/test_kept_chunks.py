"""Kept chunks: the same voxels as from the store, each chunk decoded once while there is room."""

import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from itkstream.errors import UnreadableDataError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.io import open_image, write_n5
from itkstream.io.storage import stored
from itkstream.io.storage.stored import KeptChunks, keeping_chunks
from itkstream.io.storage.zarr_arrays import ZarrArray

SHAPE, CHUNKS = (23, 17, 11), (8, 5, 4)
VOXELS = np.random.default_rng(0).integers(0, 60000, SHAPE).astype(np.uint16)


class Counting:
    """A stored array that notes the boxes it is asked for."""

    def __init__(self, voxels=VOXELS, chunks=CHUNKS):
        self.voxels, self.chunks = voxels, chunks
        self.shape, self.dtype = voxels.shape, voxels.dtype
        self.boxes = []

    def __getitem__(self, key):
        self.boxes.append(key)
        return self.voxels[key]


spans = [
    st.tuples(st.integers(0, n), st.integers(0, n)).map(lambda ab: slice(min(ab), max(ab)))
    for n in SHAPE
]


@given(boxes=st.lists(st.tuples(*spans), min_size=1, max_size=6))
def test_voxels_are_those_of_the_store(boxes):
    kept = keeping_chunks(Counting())
    for box in boxes:
        np.testing.assert_array_equal(kept[box], VOXELS[box])


def test_other_keys_are_served_as_well():
    kept = keeping_chunks(Counting())
    np.testing.assert_array_equal(kept[...], VOXELS)
    np.testing.assert_array_equal(kept[3, 1:9, ::2], VOXELS[3, 1:9, ::2])
    np.testing.assert_array_equal(np.asarray(kept), VOXELS)


def test_a_chunk_is_decoded_once():
    source = Counting()
    kept = keeping_chunks(source)
    for a in range(15):
        _ = kept[a : a + 6, 2:12, 1:9]
    # Rows 0 to 20 touch 3 chunks of 8, columns 3 of 5, the last axis 3 of 4.
    assert len(source.boxes) == len(set(map(str, source.boxes))) == 27


def test_whole_chunks_are_read_together_and_not_kept():
    source = Counting()
    kept = keeping_chunks(source)
    _ = kept[8:23, 0:10, 4:11], kept[8:23, 0:10, 4:11]
    assert len(source.boxes) == 2


def test_what_does_not_fit_is_read_together(monkeypatch):
    monkeypatch.setattr(stored, "KEPT_BYTES", 7 * VOXELS.itemsize * math.prod(CHUNKS))
    source = Counting()
    kept = keeping_chunks(source)
    np.testing.assert_array_equal(kept[1:15, 1:9, 1:7], VOXELS[1:15, 1:9, 1:7])
    assert len(source.boxes) == 1
    # Seven chunks fit; of the six of the other side, those used longest ago make room.
    for side in (slice(1, 9), slice(11, 16)) * 2:
        box = (slice(1, 23), side, slice(0, 4))
        np.testing.assert_array_equal(kept[box], VOXELS[box])
    assert 1 + 3 * 6 <= len(source.boxes) <= 1 + 4 * 6


def test_threads_that_want_one_chunk_wait_for_it():
    class Slow(Counting):
        def __getitem__(self, key):
            began.wait(0.2)
            return super().__getitem__(key)

    began = threading.Event()
    source = Slow()
    kept = keeping_chunks(source)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: kept[1:3, 1:3, 1:3], range(8)))
    assert len(source.boxes) == 1
    assert all((part == VOXELS[1:3, 1:3, 1:3]).all() for part in parts)


def test_more_threads_keep_more():
    room = []
    for threads in (1, 4, 12):
        source = Counting()
        kept = keeping_chunks(source)
        started = threading.Barrier(threads)

        def read(_number, kept=kept, started=started):
            started.wait()
            return kept[1:3, 1:3, 1:7]

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(threads)))
        room.append(kept._recent.room)
    # Two chunks are touched; nine for eight, in two layers, or in four for twelve threads.
    assert room == [5, 5, 9]


def test_what_could_not_be_read_is_tried_again():
    class Broken(Counting):
        def __getitem__(self, key):
            voxels = super().__getitem__(key)
            if len(self.boxes) == 1:
                raise OSError("the network is away")
            return voxels

    kept = keeping_chunks(Broken())
    with pytest.raises(UnreadableDataError, match="the network is away"):
        kept[1:3, 1:3, 1:3]
    np.testing.assert_array_equal(kept[1:3, 1:3, 1:3], VOXELS[1:3, 1:3, 1:3])


@pytest.mark.parametrize("shards", [None, (16, 10, 8)])
def test_stores_tell_their_chunks_and_pickle_without_them(tmp_path, shards):
    zarr.create_array(str(tmp_path / "a.zarr"), data=VOXELS, chunks=CHUNKS, shards=shards)
    own = open_image(tmp_path / "a.zarr", voxel_spacing=1.0).data
    plain = zarr.open_array(str(tmp_path / "a.zarr"), mode="r")
    for source in (own, plain):
        kept = keeping_chunks(Image(source, Grid(SHAPE, (1.0,) * 3))).data
        inner = kept if isinstance(kept, KeptChunks) else kept.source
        assert inner.chunk == CHUNKS
        np.testing.assert_array_equal(kept[1:15, 2:9, 3:10], VOXELS[1:15, 2:9, 3:10])
        again = pickle.loads(pickle.dumps(kept))
        assert len(pickle.dumps(kept)) < 5000
        np.testing.assert_array_equal(again[1:15, 2:9, 3:10], VOXELS[1:15, 2:9, 3:10])


def test_n5_tells_its_chunks(tmp_path):
    write_n5(tmp_path / "a.n5", "s0", VOXELS, Grid(SHAPE, (1.0,) * 3), chunks=CHUNKS)
    source = open_image(tmp_path / "a.n5" / "s0").data
    kept = keeping_chunks(source)
    kept = kept if isinstance(kept, KeptChunks) else kept.source
    assert kept.chunk == CHUNKS


@dataclass(frozen=True)
class Holder:
    one: object
    many: tuple


def test_arrays_are_found_wherever_they_are():
    grid = Grid(SHAPE, (1.0,) * 3)
    vectors = Counting(np.zeros((*SHAPE, 3), np.float32), (*CHUNKS, 3))
    field, affine = DisplacementField(vectors, grid), AffineTransform(np.eye(4))
    holder = Holder(CompositeTransform((field, affine)), (Image(Counting(), grid), 5))
    after = keeping_chunks({"holder": holder, "plain": 3})["holder"]
    assert isinstance(after.one.transforms[0].data, KeptChunks)
    assert isinstance(after.many[0].data, KeptChunks)
    assert after.one.transforms[1] is affine


def test_what_holds_no_stored_array_stays_itself():
    grid = Grid(SHAPE, (1.0,) * 3)
    for value in (Image(VOXELS, grid), AffineTransform(np.eye(4)), ZarrArray, "text", (1, 2), None):
        assert keeping_chunks(value) is value
