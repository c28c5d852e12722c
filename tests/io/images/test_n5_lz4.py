"""LZ4 in N5 against streams put together here, as Java's library lays them out."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash
from numcodecs import lz4

from itkstream.errors import InputError, UnreadableDataError
from itkstream.io import open_image
from itkstream.io.images.stores.n5_lz4 import decompressed
from itkstream.io.storage.stored import tiles

SEED = 0x9747B28C


def stream(content: bytes, step: int, raw: bool = False) -> bytes:
    """Blocks of `step` bytes and the end mark."""
    out = b""
    for at in range(0, len(content), step):
        part = content[at : at + step]
        # numcodecs puts the length before the block, which Java keeps in its header.
        body = part if raw else lz4.compress(part)[4:]
        check = xxhash.xxh32_intdigest(part, SEED) & 0x0FFFFFFF
        token = 0x16 if raw else 0x26
        out += struct.pack("<8sBiiI", b"LZ4Block", token, len(body), len(part), check) + body
    return out + struct.pack("<8sBiiI", b"LZ4Block", 0x16, 0, 0, 0)


def write(folder: Path, array: np.ndarray, chunks: tuple[int, ...], raw: bool) -> None:
    folder.mkdir(parents=True)
    about = {
        "dimensions": array.shape,
        "blockSize": chunks,
        "dataType": array.dtype.name,
        "compression": {"type": "lz4", "blockSize": 65536},
        "pixelResolution": [1, 2, 3],
    }
    (folder / "attributes.json").write_text(json.dumps(about))
    for box in tiles(array.shape, chunks):
        if not array[box].any():
            continue
        header = struct.pack(">HH3I", 0, 3, *array[box].shape)
        body = array[box].astype(array.dtype.newbyteorder(">")).tobytes(order="F")
        file = folder.joinpath(*(str(s.start // c) for s, c in zip(box, chunks, strict=True)))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(header + stream(body, 100, raw))


@pytest.fixture
def array() -> np.ndarray:
    values = np.random.default_rng(2).integers(0, 9, (13, 10, 7)).astype(np.uint16)
    values[:5, :4, :3] = 0  # a block that nobody wrote
    return values


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_reads_what_java_writes(tmp_path, array, dtype, raw):
    array = array.astype(dtype)
    write(tmp_path / "a.n5" / "x", array, (5, 4, 3), raw)
    image = open_image(tmp_path / "a.n5" / "x")
    assert image.spacing == (1, 2, 3)
    assert image.dtype == array.dtype
    assert image.chunk_shape == (5, 4, 3)
    np.testing.assert_array_equal(image.read(), array)
    np.testing.assert_array_equal(image[3:11, 3:9, 2:7].read(), array[3:11, 3:9, 2:7])


def test_damage_is_noticed(tmp_path, array):
    write(tmp_path / "a.n5" / "x", array, (5, 4, 3), raw=True)
    image = open_image(tmp_path / "a.n5" / "x")
    file = tmp_path / "a.n5" / "x" / "1" / "1" / "1"
    whole = file.read_bytes()
    for broken in (
        whole[:-30],  # the end mark and a bit more
        whole[:10],
        whole[:16] + b"XXX" + whole[19:],
        whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],  # one bit of a voxel
        b"\0\1" + whole[2:],  # a mode for other kinds of data
    ):
        file.write_bytes(broken)
        with pytest.raises(UnreadableDataError, match=r"a\.n5/x cannot be read"):
            image.read()
    file.write_bytes(whole)
    np.testing.assert_array_equal(image.read(), array)
    (tmp_path / "a.n5" / "x" / "attributes.json").unlink()
    file.unlink()
    with pytest.raises(UnreadableDataError, match="is gone"):
        image.read()


def test_a_stream_ends_at_its_end_mark():
    assert decompressed(stream(b"abc" * 99, 64) + b"more") == b"abc" * 99
    assert decompressed(stream(b"", 64)) == b""


def test_sizes_of_blocks_are_checked(tmp_path, array):
    write(tmp_path / "x.n5", array, (5, 4, 3), raw=True)
    file = tmp_path / "x.n5" / "attributes.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "blockSize": [5, 4]}))
    with pytest.raises(InputError, match="blockSize"):
        open_image(tmp_path / "x.n5")
