"""The small formats of ITK's transform files: text, MATLAB's and MNI's, as entries.

ITK itself takes what a file lacks for 0, drops what it does not expect, and may crash: here a file
is understood to its last line, or refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.io.transforms.itk.parameters import Entry, is_composite

__all__ = ["CANNOT_READ", "read_entries"]

CANNOT_READ = (
    "is no transform that ITK can read: expected .tfm, .txt, .mat or .h5, whole (ITK writes "
    "composites to .mat, but cannot read them)"
)
"""Message over a file of no known format."""

_KEYS = ("Parameters", "FixedParameters")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
# Numbers of MATLAB's version 4: type and machine, rows, columns, imaginary part, length of name.
_HEADER = 20
_MATLAB_TYPES = {0: "f8", 1: "f4"}
_LONGEST_NAME = 256
# What ITK's writer of .xfm says of itself: its coordinates are ITK's, those of MNI's are not.
_ITK_MINC = "ITK-XFM writer"
_MINC = re.compile(r"Transform_Type\s*=\s*Linear\s*;\s*Linear_Transform\s*=([^;=]*);")

_FOREIGN = {
    "a plain matrix, as FSL's flirt writes them": (
        "it says neither in which coordinates its points are (FSL's are scaled voxels) nor which "
        "way it leads: convert it (c3d_affine_tool -fsl2ras ... -oitk), or give the matrix as "
        "AffineTransform(matrix, axes)"
    ),
    "FreeSurfer's transform": "convert it by lta_convert --outitk",
    "a transform of MNI's tools": (
        "its coordinates are RAS, and it leads from moving to fixed points: convert it to .tfm"
    ),
    "a file of MATLAB 5 or later, as SPM writes them": "ITK's .mat is of version 4: write .tfm",
}


def read_entries(path: Path) -> list[Entry]:
    """Read the entries, at least one, of a ``.tfm``, ``.txt``, ``.mat`` or ``.xfm`` file."""
    content = path.read_bytes()
    foreign = _foreign(content)
    if foreign:
        raise InputError(f"it is {foreign}, which is not read: {_FOREIGN[foreign]}")
    read = _FORMATS.get(path.suffix.lower())
    entries = read(content) if read else []
    if not entries:
        raise InputError(CANNOT_READ)
    return entries


def _foreign(content: bytes) -> str | None:
    """Name a file of another program, if it is a known one."""
    head = content[:4096].decode("latin-1")
    if head.startswith("MATLAB"):
        return "a file of MATLAB 5 or later, as SPM writes them"
    if head.startswith("MNI Transform File") and _ITK_MINC not in head:
        return "a transform of MNI's tools"
    if re.search(r"^\s*nxforms\s*=", head, re.MULTILINE):
        return "FreeSurfer's transform"
    rows = [line.split() for line in head.splitlines() if line.strip()]
    square = len(rows) in (3, 4) and all(len(row) in (3, 4) for row in rows)
    if square and all(_NUMBER.fullmatch(word) for row in rows for word in row):
        return "a plain matrix, as FSL's flirt writes them"
    return None


def _values(text: str, what: str) -> NDArray[np.float64]:
    words = text.split()
    try:
        if "_" in text:
            raise ValueError("'_' is no digit")
        return np.array(words, dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{what} hold no number: {error}") from error


def _text_entries(content: bytes) -> list[Entry]:
    """ITK's own text: a line for the kind, for the parameters, and for the fixed ones."""
    entries: list[Entry] = []
    kind, numbers = "", dict[str, NDArray[np.float64]]()
    for line in content.decode("latin-1").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, colon, value = (part.strip() for part in line.partition(":"))
        if key == "Transform" and colon:
            entries += [_whole(kind, numbers)] if kind else []
            kind, numbers = value, {}
        elif key in _KEYS and colon and kind and key not in numbers:
            numbers[key] = _values(value, f"{key} of a {kind}")
        elif not entries and not kind:
            return []
        else:
            raise InputError(f"the line {line.strip()[:60]!r} is not understood there")
    return [*entries, _whole(kind, numbers)] if kind else entries


def _whole(kind: str, numbers: dict[str, NDArray[np.float64]]) -> Entry:
    found = [numbers.get(key) for key in _KEYS]
    if is_composite(kind):
        if any(values is not None and values.size for values in found):
            raise InputError("its CompositeTransform has parameters; those of its parts follow it")
        return Entry(kind, np.empty(0), np.empty(0))
    parameters, fixed = found
    if parameters is None or fixed is None:
        raise InputError("it is cut off: it lacks the fixed parameters of a transform")
    return Entry(kind, parameters, fixed)


def _matlab_entries(content: bytes) -> list[Entry]:
    """Pairs of arrays: one that is called as the kind, and one that is called ``fixed``."""
    arrays: list[tuple[str, NDArray[np.float64]]] = []
    place = 0
    while place < len(content):
        found = _matlab_array(content, place)
        if found is None:
            if not arrays:
                return []
            raise InputError("it is cut off: it lacks the fixed parameters of a transform")
        name, values, place = found
        arrays.append((name, values))
    if any(is_composite(name) for name, _ in arrays):
        return []
    kinds, fixed = arrays[::2], arrays[1::2]
    if len(kinds) != len(fixed) or any(name != "fixed" for name, _ in fixed):
        raise InputError("it is cut off: it lacks the fixed parameters of a transform")
    return [Entry(k[0], k[1], f[1]) for k, f in zip(kinds, fixed, strict=True)]


def _matlab_array(content: bytes, place: int) -> tuple[str, NDArray[np.float64], int] | None:
    """Name and numbers of an array, and where the next one begins; None if it is not whole."""
    if len(content) < place + _HEADER:
        return None
    order = next((o for o in "<>" if 0 <= _ints(content, place, o)[0] < 2000), "<")
    kind, rows, columns, imaginary, length = _ints(content, place, order)
    number = _MATLAB_TYPES.get(kind % 1000 // 10)
    if number is None or kind % 10 or imaginary or not 0 < length <= _LONGEST_NAME:
        return None
    dtype = np.dtype(f"{order}{number}")
    start = place + _HEADER + length
    stop = start + rows * columns * dtype.itemsize
    if min(rows, columns) < 0 or stop > len(content):
        return None
    name = content[place + _HEADER : start].rstrip(b"\0").decode("latin-1")
    return name, np.frombuffer(content[start:stop], dtype).astype(np.float64), stop


def _ints(content: bytes, place: int, order: str) -> tuple[int, ...]:
    return struct.unpack_from(f"{order}5i", content, place)


def _minc_entries(content: bytes) -> list[Entry]:
    """The affines of a file that ITK wrote in MNI's format, in ITK's coordinates."""
    lines = content.decode("latin-1").splitlines()
    if not lines or lines[0].strip() != "MNI Transform File":
        return []
    body = " ".join(line for line in lines[1:] if not line.lstrip().startswith("%"))
    if _MINC.sub("", body).strip():
        raise InputError("of MNI's transforms only linear ones are read: convert it to .tfm")
    rows = [_values(found, "the rows of its Linear_Transform") for found in _MINC.findall(body)]
    if any(values.size != 12 for values in rows):
        raise InputError("its Linear_Transform is not 3 rows of 4 numbers: is the file whole?")
    tables = [values.reshape(3, 4) for values in rows]
    return [
        Entry("AffineTransform_double_3_3", np.append(t[:, :3].ravel(), t[:, 3]), np.zeros(3))
        for t in tables
    ]


_FORMATS: dict[str, Callable[[bytes], list[Entry]]] = {
    ".tfm": _text_entries,
    ".txt": _text_entries,
    ".mat": _matlab_entries,
    ".xfm": _minc_entries,
}
