"""Files of tables that are to be written: checked before anything is read for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from itkstream.errors import InputError
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_file

__all__ = ["check_table"]


def check_table(
    path: str | os.PathLike[str],
    what: str,
    endings: Mapping[str, Callable[[], Any] | None],
    overwrite: bool,
) -> Location:
    """See whether a table can be written to a file.

    `endings` are those of the formats, each with what imports a library that may be missing.
    """
    place = Location.parse(path)
    kind = place.suffix.lower()
    if kind not in endings:
        *others, last = endings
        raise InputError(f"{what} are written as {', '.join(others)} or {last}; got {place.name}")
    needed = endings[kind]
    if needed is not None:
        needed()
    return check_file(place, overwrite)
