"""Headers of NRRD files: unit, data files, and whether they are whole."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from itkstream.errors import InputError
from itkstream.io.images.files.headers import (
    FileHeader,
    check_length,
    require_files,
    take_pattern_apart,
    whole_numbers,
)
from itkstream.io.units import parse_unit

__all__ = ["read_nrrd_header"]

_LONGEST_HEADER = 2**20
_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8"), 1),
    **dict.fromkeys(("uint8_t", "char"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16"), 2),
    **dict.fromkeys(("int16_t", "ushort", "unsigned short", "unsigned short int"), 2),
    **dict.fromkeys(("uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int"), 4),
    **dict.fromkeys(("uint32", "uint32_t", "float"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long"), 8),
    **dict.fromkeys(("signed long long int", "int64", "int64_t", "ulonglong", "uint64"), 8),
    **dict.fromkeys(("unsigned long long", "unsigned long long int", "uint64_t", "double"), 8),
}
_PACKED = ("gzip", "gz")
_TEXT = ("txt", "text", "ascii", "hex")
_NO_UNIT = ("", "???", "none")
_DOMAINS = ("domain", "space", "time")


def read_nrrd_header(path: Path) -> FileHeader:
    """Read and check the header of a NRRD file, ``.nrrd`` or ``.nhdr`` with its data beside it."""
    fields, names, length = _fields(path)
    sizes = whole_numbers(fields.get("sizes", "").split(), "sizes", path)
    if str(len(sizes)) != fields.get("dimension"):
        raise InputError(
            f"{path}: dimension is {fields.get('dimension')!r} and sizes has {len(sizes)}"
        )
    item, encoding = _voxel_type(fields, path)
    _check_kinds(fields, path)
    files = _data_files(path, fields, names)
    skips = [fields.get(key, "0") for key in ("line skip", "byte skip")]
    if not all(re.fullmatch(r"-?\d{1,12}", s) for s in skips):
        raise InputError(f"{path}: line skip and byte skip must be whole numbers; got {skips}")
    there = sum(file.stat().st_size for file in files) or path.stat().st_size - length
    there -= max(0, int(skips[1])) * max(1, len(files))
    voxels = math.prod(sizes)
    needed = (
        voxels * item if encoding not in _TEXT else voxels * (2 * item if encoding == "hex" else 1)
    )
    check_length(path, needed, there, packed=encoding in _PACKED)
    plain = encoding == "raw" and not files and skips == ["0", "0"] and there == needed
    as_numpy = plain and (item == 1 or fields.get("endian") == "little")
    return FileHeader(
        files=files,
        unit=_unit(fields, path),
        spaced=_spaced(fields),
        packed=_packed(path, files, length) if encoding in _PACKED and skips[0] == "0" else (),
        needed=needed,
        # Components come first, as numpy has them last; elsewhere ITK moves them.
        raw_offset=length if as_numpy and not any(_ranges(fields)[1:]) else None,
    )


def _fields(path: Path) -> tuple[dict[str, str], list[str], int]:
    """Split into fields by lower-case key, lines after ``data file: LIST``, bytes of the header."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    if not re.match(rb"NRRD000[1-6]\r?\n", start):
        raise InputError(f"{path} is no NRRD file: it must begin with NRRD0001 to NRRD0006")
    end = re.search(rb"\r?\n\r?\n", start)
    text = start[: end.start() if end else len(start)].decode("utf-8", "replace")
    fields: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines()[1:]:
        key, colon, value = line.partition(":")
        if fields.get("data file", "").upper().startswith("LIST"):
            names.append(line.strip())
        elif colon and not line.startswith("#") and not value.startswith("="):
            fields[_key(key)] = value.strip()
    return fields, names, end.end() if end else len(start)


def _key(text: str) -> str:
    key = text.strip().lower()
    spellings = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
    return spellings.get(key, key)


def _voxel_type(fields: Mapping[str, str], path: Path) -> tuple[int, str]:
    kind, encoding = fields.get("type", "").lower(), fields.get("encoding", "").lower()
    if kind not in _BYTES:
        raise InputError(f"{path}: type {kind!r} is no type of numbers that is read")
    if encoding not in ("raw", *_PACKED, *_TEXT):
        raise InputError(
            f"{path} has the encoding {encoding!r}, which ITK does not read: save it as raw or gzip"
        )
    wanted = encoding not in ("txt", "text", "ascii") and _BYTES[kind] > 1
    if wanted and fields.get("endian", "").lower() not in ("little", "big"):
        raise InputError(f"{path}: endian must be little or big; got {fields.get('endian')!r}")
    return _BYTES[kind], encoding


def _ranges(fields: Mapping[str, str]) -> list[bool]:
    """Find which axes hold components of a voxel instead of places."""
    kinds = fields.get("kinds", "").lower().split()
    return [kind not in (*_DOMAINS, "???", "none") for kind in kinds]


def _check_kinds(fields: Mapping[str, str], path: Path) -> None:
    kinds, sizes = fields.get("kinds", "").split(), fields["sizes"].split()
    if kinds and len(kinds) != len(sizes):
        raise InputError(f"{path}: kinds has {len(kinds)} words for {len(sizes)} axes")
    if sum(r and n != "1" for r, n in zip(_ranges(fields), sizes, strict=False)) > 1:
        raise InputError(f"{path} has several axes of components ({fields['kinds']}); one is read")
    if "time" in [kind.lower() for kind in kinds[:-1]]:
        raise InputError(f"{path}: time must be the last axis of kinds; got {fields['kinds']}")
    for key in ("spacings", "units", "labels"):
        words = re.findall(r'"[^"]*"|\S+', fields.get(key, ""))
        if words and len(words) != len(sizes):
            raise InputError(f"{path}: {key} has {len(words)} entries for {len(sizes)} axes")


def _data_files(path: Path, fields: Mapping[str, str], names: Sequence[str]) -> tuple[Path, ...]:
    said = fields.get("data file")
    if said is None:
        if path.suffix.lower() == ".nhdr":
            raise InputError(f"{path}: a detached header names its data in 'data file'")
        return ()
    words = said.split()
    if said.upper().startswith("LIST"):
        found = list(names)
    elif "%" in said and len(words) >= 4:
        found = _numbered(words, path)
    else:
        found = [said]
    files = tuple(path.parent / name for name in found if name)
    if not files:
        raise InputError(f"{path}: 'data file' names no file; got {said!r}")
    require_files(path, files, "data file")
    return files


def _numbered(words: Sequence[str], path: Path) -> list[str]:
    """List the files of a pattern such as ``slice%03d.raw 1 10 1``."""
    pattern, numbers = take_pattern_apart(words, r"-?\d{1,9}", "'data file'", path)
    first, last, step = numbers[:3]
    if not step or (last - first) // step not in range(_LONGEST_HEADER):
        raise InputError(f"{path}: 'data file' counts from {first} to {last} by {step}")
    return [pattern % k for k in range(first, last + (1 if step > 0 else -1), step)]


def _packed(path: Path, files: Sequence[Path], length: int) -> tuple[tuple[Path, int], ...]:
    return tuple((file, 0) for file in files) or ((path, length),)


def _spaced(fields: Mapping[str, str]) -> bool:
    """Whether every axis in space has a spacing; ITK takes 1 where it has none."""
    if "space directions" in fields:
        return True
    words = fields.get("spacings", "").lower().split()
    ranges = _ranges(fields) or [False] * len(words)
    return bool(words) and all(
        r or w not in ("nan", "none") for w, r in zip(words, ranges, strict=False)
    )


def _unit(fields: Mapping[str, str], path: Path) -> str | None:
    said = fields.get("space units") or fields.get("units") or ""
    ranges = _ranges(fields) if "space units" not in fields else []
    words = [w.strip('"').strip() for w in re.findall(r'"[^"]*"|\S+', said)]
    kinds = fields.get("kinds", "").lower().split() or [""] * len(words)
    lengths = [not r and k != "time" for r, k in zip(ranges, kinds, strict=False)]
    lengths += [True] * (len(words) - len(lengths))
    kept = [
        w for w, is_length in zip(words, lengths, strict=False) if is_length and w not in _NO_UNIT
    ]
    if not kept:
        return None
    try:
        units = {parse_unit(word) for word in kept[:3]}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if len(units) > 1:
        raise InputError(
            f"{path} states several units of length, {said}: correct it, or pass unit= and "
            "voxel_spacing="
        )
    return units.pop()
