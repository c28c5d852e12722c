"""N5 blocks compressed with LZ4, as Java writes them; tensorstore reads all other compressions.

Java's stream of LZ4 blocks is of its own: before each block stand the word ``LZ4Block``, how it
is compressed, both lengths and a checksum.

References
----------
https://github.com/saalfeldlab/n5 (specification, "lz4"), https://github.com/lz4/lz4-java
(LZ4BlockOutputStream)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import xxhash
from numcodecs import lz4
from numpy.typing import NDArray

from itkstream.errors import MissingDataError
from itkstream.io.storage.attributes import n5_attributes
from itkstream.io.storage.locations import Location
from itkstream.io.storage.stored import StoredArray

__all__ = ["Lz4Array", "decompressed"]

# Magic, method and level, stored bytes, bytes after decompression, checksum.
_HEADER = struct.Struct("<8sBiiI")
_MAGIC = b"LZ4Block"
_RAW, _LZ4 = 0x10, 0x20
_SEED = 0x9747B28C
_CHECKED_BITS = 0x0FFFFFFF  # Java keeps 28 of the 32


@dataclass(frozen=True)
class Lz4Array(StoredArray):
    """A lazy N5 dataset whose blocks are compressed with LZ4; it is read and not written."""

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """Elements of a block of the dataset per axis."""
        attributes = n5_attributes(Location(self.path))
        sizes = attributes.numbers("blockSize")
        if sizes is None or len(sizes) != self.ndim or min(sizes) < 1:
            raise attributes.error("blockSize", f"{self.ndim} positive whole numbers")
        return tuple(map(int, sizes))

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box; 0 where a block was never written."""
        out = np.zeros([b - a for a, b in zip(start, stop, strict=True)], self.dtype)
        spans = zip(start, stop, self.chunks, strict=True)
        for index in product(*(range(a // c, -(-b // c)) for a, b, c in spans)):
            block = self._block(index)
            if block is None:
                continue
            first = [k * c for k, c in zip(index, self.chunks, strict=True)]
            low = [max(a, f) for a, f in zip(start, first, strict=True)]
            ends = [f + n for f, n in zip(first, block.shape, strict=True)]
            high = [min(b, e) for b, e in zip(stop, ends, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                out[_box(low, high, start)] = block[_box(low, high, first)]
        return out

    def _block(self, index: tuple[int, ...]) -> NDArray[Any] | None:
        folder = Location(self.path)
        try:
            content = folder.child(*map(str, index)).read_bytes()
        except MissingDataError:
            if not (folder / "attributes.json").is_file():
                raise OSError("the array is gone, there is no attributes.json any more") from None
            return None
        mode, ndim = struct.unpack_from(">HH", content)
        if mode != 0 or ndim != self.ndim:
            raise OSError(f"block {index} has mode {mode} and {ndim} axes: expected 0, {self.ndim}")
        shape = struct.unpack_from(f">{ndim}I", content, 4)
        values = np.frombuffer(decompressed(content[4 + 4 * ndim :]), self.dtype.newbyteorder(">"))
        return values.reshape(shape, order="F")


def decompressed(stream: bytes) -> bytes:
    """Decompress a stream of Java's LZ4 blocks to its end mark; `OSError` for a damaged one."""
    parts, at = [], 0
    while at < len(stream):
        if len(stream) - at < _HEADER.size:
            raise OSError("an LZ4 stream is cut short in a header")
        magic, token, stored, size, checksum = _HEADER.unpack_from(stream, at)
        method = token & 0xF0
        if magic != _MAGIC or method not in (_RAW, _LZ4) or stored < 0 or size < 0:
            raise OSError("this is no stream of LZ4 blocks as Java writes them")
        at += _HEADER.size
        if size == 0:
            break
        body = stream[at : at + stored]
        if len(body) < stored:
            raise OSError(f"an LZ4 block has {len(body)} of {stored} bytes")
        parts.append(body if method == _RAW else _unpacked(body, size))
        if len(parts[-1]) != size or xxhash.xxh32_intdigest(parts[-1], _SEED) & _CHECKED_BITS != (
            checksum & _CHECKED_BITS
        ):
            raise OSError("an LZ4 block does not have the length and checksum it was written with")
        at += stored
    return b"".join(parts)


def _unpacked(body: bytes, size: int) -> bytes:
    # numcodecs wants the length before the block.
    return bytes(lz4.decompress(struct.pack("<I", size) + body))


def _box(low: Any, high: Any, origin: Any) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
