"""Headers of MetaImage files: unit, data files, and whether they are whole."""

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

__all__ = ["read_meta_header"]

_LONGEST_HEADER = 2**20
_BYTES = {
    **dict.fromkeys(("CHAR", "UCHAR"), 1),
    **dict.fromkeys(("SHORT", "USHORT"), 2),
    **dict.fromkeys(("INT", "UINT", "LONG", "ULONG", "FLOAT"), 4),
    **dict.fromkeys(("LONG_LONG", "ULONG_LONG", "DOUBLE"), 8),
}
_TRUE = ("true", "t", "1", "yes", "y")


def read_meta_header(path: Path) -> FileHeader:
    """Read and check the header of a MetaImage file, ``.mha`` or ``.mhd`` with data beside it."""
    fields, names, length = _fields(path)
    sizes = whole_numbers(fields.get("DimSize", "").split(), "DimSize", path)
    if str(len(sizes)) != fields.get("NDims"):
        raise InputError(f"{path}: NDims is {fields.get('NDims')!r} and DimSize has {len(sizes)}")
    if len(sizes) > 4:
        raise InputError(f"{path} has {len(sizes)} axes; images of 2 to 4 are read")
    _check_numbers(fields, len(sizes), path)
    needed = math.prod(sizes) * _voxel_bytes(fields, path)
    files = _data_files(path, fields, names, sizes)
    packed = fields.get("CompressedData", "").lower() in _TRUE
    there = sum(file.stat().st_size for file in files) or path.stat().st_size - length
    check_length(path, needed, there, packed=packed)
    return FileHeader(
        files=files,
        unit=_unit(fields.get("DistanceUnits", ""), path),
        spaced="ElementSpacing" in fields or "ElementSize" in fields,
        streams=not packed and len(files) < 2,
        packed=(tuple((file, 0) for file in files) or ((path, length),)) if packed else (),
        needed=needed,
    )


def _fields(path: Path) -> tuple[dict[str, str], list[str], int]:
    """Split into fields by key, lines after ``ElementDataFile = LIST``, bytes of the header."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    last = re.search(rb"(?m)^\s*ElementDataFile\s*[=:][^\n]*\n?", start)
    if last is None:
        raise InputError(f"{path} is no MetaImage file: it has no ElementDataFile")
    fields = {}
    for line in start[: last.end()].decode("utf-8", "replace").splitlines():
        key, sign, value = line.partition("=" if "=" in line else ":")
        if sign:
            fields[key.strip()] = value.strip()
    names = start[last.end() :].decode("utf-8", "replace").splitlines()
    return fields, names, last.end()


def _check_numbers(fields: Mapping[str, str], ndim: int, path: Path) -> None:
    counts = {"ElementSpacing": ndim, "ElementSize": ndim, "Offset": ndim, "Position": ndim}
    counts |= {"Origin": ndim, "CenterOfRotation": ndim}
    counts |= dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), ndim * ndim)
    for key, count in counts.items():
        words = fields[key].split() if key in fields else ["0"] * count
        if len(words) != count or not all(_finite(word) for word in words):
            raise InputError(f"{path}: {key} must be {count} numbers; got {fields[key]!r}")


def _finite(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _voxel_bytes(fields: Mapping[str, str], path: Path) -> int:
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _BYTES:
        raise InputError(
            f"{path}: ElementType {fields.get('ElementType')!r} is no type of numbers that is read"
        )
    for key in ("BinaryData",):
        if fields.get(key, "True").lower() not in _TRUE:
            raise InputError(f"{path}: {key} = {fields[key]}; voxels as text are not read")
    (channels,) = whole_numbers(
        fields.get("ElementNumberOfChannels", "1").split()[:1], "ElementNumberOfChannels", path
    )
    if not re.fullmatch(r"-1|\d{1,12}", fields.get("HeaderSize", "0")):
        raise InputError(f"{path}: HeaderSize must be a number; got {fields['HeaderSize']!r}")
    return _BYTES[kind] * channels


def _data_files(
    path: Path, fields: Mapping[str, str], names: Sequence[str], sizes: Sequence[int]
) -> tuple[Path, ...]:
    said = fields["ElementDataFile"]
    if said.upper() == "LOCAL":
        return ()
    words = said.split()
    if words[:1] == ["LIST"]:
        depth = int(words[1]) if words[1:] and words[1].isdecimal() else len(sizes) - 1
        count = math.prod(sizes[depth:])
        found = [name.strip() for name in names if name.strip()][:count]
        if len(found) < count:
            raise InputError(f"{path}: ElementDataFile lists {len(found)} files for {count} slices")
    elif "%" in said:
        found = _numbered(words, path)
    else:
        found = [said]
    files = tuple(path.parent / name for name in found if name)
    if not files:
        raise InputError(f"{path}: ElementDataFile names no file")
    require_files(path, files, "ElementDataFile")
    return files


def _numbered(words: Sequence[str], path: Path) -> list[str]:
    """List the files of a pattern such as ``slice%03d.raw 1 10 1``."""
    pattern, numbers = take_pattern_apart(words, r"\d{1,6}", "ElementDataFile", path)
    first, last, step = (*numbers, *(1, 1, 1)[len(numbers) :])[:3]
    return [pattern % k for k in range(first, last + 1, max(step, 1))]


def _unit(said: str, path: Path) -> str | None:
    if said in ("", "?", "??"):
        return None
    try:
        return parse_unit(said)
    except InputError as error:
        raise InputError(f"{path}: DistanceUnits: {error}") from error
