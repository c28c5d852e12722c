"""Facts of image files' headers that ITK does not pass on, checked before ITK sees the file.

ITK reads a header that lies as it is: it allocates what is meant, whatever the file holds.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from itkstream.errors import InputError, MissingDataError, UnreadableDataError

__all__ = [
    "FileHeader",
    "check_length",
    "check_streams",
    "require_files",
    "take_pattern_apart",
    "whole_numbers",
]

# No deflate stream unpacks to more than this many times its size.
_DEFLATED = 1032
_LARGEST_SIZE = 2**31
_PIECE = 2**20
_GZIP_OR_ZLIB = 47


@dataclass(frozen=True)
class FileHeader:
    """The facts of a header that decide how a file is read."""

    files: tuple[Path, ...] = ()  # that hold the voxels; empty where the file itself does
    unit: str | None = None  # of ITK's numbers; None where none is stated
    itk_scale: float = 1.0  # what ITK multiplies the file's numbers by
    own_unit: str | None = None  # of the file's numbers, where ITK multiplies them
    spaced: bool = True  # whether the file says how far its voxels lie apart
    streams: bool = False  # whether ITK reads a region of it without reading all
    raw_offset: int | None = None  # of voxels as numpy has them: little-endian, in one piece
    packed: tuple[tuple[Path, int], ...] = ()  # files with a gzip or zlib stream, and its start
    needed: int = 0  # bytes that the streams unpack to at least


def whole_numbers(words: Sequence[str], what: str, path: Path) -> tuple[int, ...]:
    """Parse the sizes of axes, as a header spells them under the key `what`."""
    bad = [w for w in words if not w.isdecimal() or not 0 < int(w) < _LARGEST_SIZE]
    if bad or not words:
        raise InputError(
            f"{path}: {what} must be whole numbers of voxels, one per axis; got {' '.join(words)!r}"
        )
    return tuple(int(w) for w in words)


def take_pattern_apart(
    words: Sequence[str], number: str, what: str, path: Path
) -> tuple[str, list[int]]:
    """Split a pattern of files such as ``slice%03d.raw 1 10 1``: a name, and its numbers.

    `number` is the expression that each number must match.
    """
    pattern, *numbers = words
    if not re.fullmatch(r"[^%]*%0?\d{0,2}d[^%]*", pattern) or not all(
        re.fullmatch(number, n) for n in numbers
    ):
        raise InputError(
            f"{path}: {what} must be a name without blanks with one number, such as "
            f"slice%03d.raw 1 10 1; got {' '.join(words)!r}"
        )
    return pattern, [int(n) for n in numbers]


def check_length(path: Path, needed: int, there: int, *, packed: bool = False) -> None:
    """Refuse a file with fewer bytes than its header means; `packed` by gzip or zlib."""
    if needed > there * (_DEFLATED if packed else 1):
        raise UnreadableDataError(
            f"{path} is cut short, or its header is damaged: it means {needed} bytes of voxels, "
            f"and {there} {'compressed ' if packed else ''}bytes are there"
        )


def require_files(path: Path, files: Sequence[Path], key: str) -> None:
    """Require the files that a header names under a key."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise MissingDataError(
            f"{path} names {missing[0].name} in {key!r}, and there is no {missing[0]}: put the "
            "files of the image side by side"
        )


def check_streams(header: FileHeader) -> None:
    """Unpack compressed files once, and compare their lengths and checksums.

    ITK fills what is missing of a stream with zeros, and takes one with a wrong checksum as it is.
    """
    length = sum(_unpacked_length(path, start) for path, start in header.packed)
    if header.packed and length < header.needed:
        raise UnreadableDataError(
            f"{header.packed[0][0]} is cut short: it unpacks to {length} bytes, and its header "
            f"means {header.needed}. Restore it from its source"
        )


def _unpacked_length(path: Path, start: int) -> int:
    length = 0
    stream = zlib.decompressobj(_GZIP_OR_ZLIB)
    with path.open("rb") as file:
        file.seek(start)
        try:
            while piece := file.read(_PIECE):
                while piece:
                    length += len(stream.decompress(piece))
                    piece = stream.unused_data
                    if not stream.eof:
                        break
                    if not piece.startswith(b"\x1f\x8b"):
                        return length  # what follows belongs to no stream
                    stream = zlib.decompressobj(_GZIP_OR_ZLIB)
        except zlib.error as error:
            raise UnreadableDataError(
                f"{path} is damaged: it does not unpack ({error}). Restore it from its source"
            ) from error
    if not stream.eof:
        raise UnreadableDataError(
            f"{path} is cut short: its compressed data have no end. Restore it from its source"
        )
    return length
