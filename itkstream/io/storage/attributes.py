"""Metadata that stores keep as JSON: read in one place, and checked as they are taken.

Whoever wrote a file may have put anything under any key. What is asked for here comes in the
wanted type, or an `InputError` names the file and the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from itkstream.errors import AccessError, InputError, MissingDataError
from itkstream.io.storage.locations import Location

__all__ = [
    "Attributes",
    "has_zarr_metadata",
    "is_array",
    "is_zarr_array",
    "n5_attributes",
    "read_attributes",
    "read_object",
    "zarr_attributes",
    "zarr_metadata",
]

_SHOWN = 80


@dataclass(frozen=True)
class Attributes:
    """A JSON object of a file; getters check types and raise `InputError` with file and key.

    `way` is its path inside: "multiscales[0]", "" for the whole.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    way: str = ""

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def error(self, key: str, expected: str, given: Any = None) -> InputError:
        """Make the error for a value that cannot be used; `expected` completes "must be ..."."""
        found = self.values.get(key) if given is None else given
        shown = repr(found) if found is not None else "nothing"
        if len(shown) > _SHOWN:
            shown = f"{shown[:_SHOWN]}..."
        return InputError(
            f"{self.file}: {self._key(key)} must be {expected}; got {shown}. Correct the file"
        )

    def need(self, key: str, expected: str) -> None:
        """Refuse an object without a key."""
        if key not in self:
            raise self.error(key, expected)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """Return a list of numbers (one number is a list of one), None without the key."""
        given = self.values.get(key)
        if given is None:
            return None
        found = given if isinstance(given, list) else [given]
        if not found or not all(_is_number(value) for value in found):
            raise self.error(key, "a list of numbers")
        return tuple(map(float, found))

    def rows(self, key: str, columns: int) -> tuple[tuple[float, ...], ...] | None:
        """Return a matrix of so many columns, None without the key."""
        given = self.values.get(key)
        if given is None:
            return None
        good = isinstance(given, list) and all(
            isinstance(row, list) and len(row) == columns and all(map(_is_number, row))
            for row in given
        )
        if not good:
            raise self.error(key, f"rows of {columns} numbers")
        return tuple(tuple(map(float, row)) for row in given)

    def text(self, key: str) -> str | None:
        """Return a text, None without the key."""
        given = self.values.get(key)
        if given is None or isinstance(given, str):
            return given
        raise self.error(key, "text")

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return a list of texts (one text is a list of one, null is ""), None without the key."""
        given = self.values.get(key)
        if given is None:
            return None
        found = given if isinstance(given, list) else [given]
        if not all(value is None or isinstance(value, str) for value in found):
            raise self.error(key, "a list of texts")
        return tuple(value or "" for value in found)

    def below(self, key: str) -> Attributes | None:
        """Return an object inside this one, None without the key."""
        given = self.values.get(key)
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise self.error(key, "an object")
        return Attributes(given, self.file, self._key(key))

    def listed(self, key: str) -> list[Attributes]:
        """Return a list of objects, empty without the key."""
        given = self.values.get(key)
        if given is None:
            return []
        if not isinstance(given, list) or not all(isinstance(item, Mapping) for item in given):
            raise self.error(key, "a list of objects")
        way = self._key(key)
        return [Attributes(item, self.file, f"{way}[{k}]") for k, item in enumerate(given)]

    def _key(self, key: str) -> str:
        return f"{self.way}.{key}" if self.way else key


def read_attributes(file: Location) -> Attributes:
    """Read a JSON file that holds an object; empty where there is no such file."""
    return Attributes(read_object(file) or {}, str(file))


def read_object(file: Location) -> dict[str, Any] | None:
    """Read a JSON file that holds an object, as it is; None where there is no such file."""
    try:
        found = json.loads(file.read_bytes())
    except MissingDataError:
        return None
    except AccessError:
        raise
    except OSError as error:
        raise AccessError(f"{file} cannot be read: {error}. Check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file} is not valid JSON ({error}): it is cut short or was edited; restore it from "
            "its source or write it anew"
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{file} must hold a JSON object; it holds a {type(found).__name__}: restore it from "
            "its source"
        )
    return found


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def zarr_attributes(folder: Location) -> dict[str, Any]:
    """Read the attributes of a Zarr array or group, unchecked; empty for other folders."""
    return dict(zarr_metadata(folder).values)


_ZARR_FILES = ("zarr.json", ".zgroup", ".zarray")


def n5_attributes(folder: Location) -> Attributes:
    """Read the attributes of an N5 dataset or group; empty for other folders."""
    return read_attributes(folder / "attributes.json")


def zarr_metadata(folder: Location) -> Attributes:
    """Read the attributes of a Zarr array or group from its own file; empty for other folders.

    A consolidated copy in a group above may be out of date.
    """
    node = folder / "zarr.json"
    if node.is_file():
        return read_attributes(node).below("attributes") or Attributes({}, str(node), "attributes")
    file = folder / ".zattrs"
    return read_attributes(file) if has_zarr_metadata(folder) else Attributes({}, str(file))


def is_zarr_array(folder: Location) -> bool:
    """Whether a folder is a Zarr array, version 2 or 3."""
    node = folder / "zarr.json"
    if node.is_file():
        return read_attributes(node).text("node_type") == "array"
    return (folder / ".zarray").is_file()


def has_zarr_metadata(folder: Location) -> bool:
    """Whether a folder is a Zarr array or group, version 2 or 3."""
    return any((folder / name).is_file() for name in _ZARR_FILES)


def is_array(folder: Location) -> bool:
    """Whether a folder is a dataset of N5 or an array of Zarr."""
    return is_zarr_array(folder) or "dimensions" in n5_attributes(folder)
