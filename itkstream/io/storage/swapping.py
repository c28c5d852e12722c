"""Files and folders on a disk that get their name when they are complete, in one step."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import psutil

from itkstream.io.storage.stamps import this_host

__all__ = ["left_behind", "partial_name", "swap_in"]

_REPLACED = ".replaced-"
_OWNED = re.compile(r"(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.[0-9a-f]{8}-")
# Of Linux's renameat2: relative to the working directory, and both names at once.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def partial_name(name: str) -> str:
    """Make a unique name for what is being written, which says by whom and keeps the ending."""
    stem, ending = re.fullmatch(r"(.*?)((?:\.\w+){0,2})", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{_host()}.{os.getpid()}.{uuid4().hex[:8]}-{stem}{ending.lower()}"


def left_behind(folder: Path, prefix: str, name: str) -> Iterator[Path]:
    """Yield what dead processes of this machine did not finish to write under a name."""
    ending = partial_name(name).partition("-")[2]
    for found in folder.glob(f"{prefix}*") if folder.is_dir() else ():
        owned = _OWNED.match(found.name, len(prefix))
        if owned is None or found.name[owned.end() :] != ending or owned["host"] != _host():
            continue
        if not psutil.pid_exists(int(owned["pid"])):
            yield found


def swap_in(new: Path, place: Path) -> None:
    """Give a complete file or folder its name; what had the name is removed.

    Where the system cannot exchange two folders at once, there is none of that name for a moment.
    """
    if place.is_dir() and any(place.iterdir()):
        old = place.with_name(f"{_REPLACED}{uuid4().hex}-{place.name}")
        if _exchange(new, place):
            os.rename(new, old)
        else:
            os.rename(place, old)
            os.rename(new, place)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            place.rmdir()
        os.replace(new, place)
    for left in place.parent.glob(f"{_REPLACED}*"):
        if re.fullmatch(
            rf"{re.escape(_REPLACED)}[0-9a-f]{{32}}-{re.escape(place.name)}", left.name
        ):
            shutil.rmtree(left, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names at once; False where the system or the disk cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


@cache
def _host() -> str:
    return blake2b(this_host().encode(), digest_size=4).hexdigest()
