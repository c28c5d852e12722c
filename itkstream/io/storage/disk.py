"""This machine's disks: what tells files from others, and files that appear when complete."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import psutil

__all__ = [
    "LEDGER_FOLDER",
    "files_stamp",
    "left_behind",
    "partial_name",
    "swap_in",
    "this_host",
]

LEDGER_FOLDER = ".itkstream"
"""Folder of a run's notes beside its results; it is no part of what tells them from others."""

_DIGEST_BYTES = 16

_REPLACED = ".replaced-"
_OWNED = re.compile(r"(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.[0-9a-f]{8}-")
# Of Linux's renameat2: relative to the working directory, and both names at once.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def this_host() -> str:
    """Name this machine and its process table (of a container), which process numbers belong to."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} -"


def files_stamp(*paths: str | os.PathLike[str]) -> str:
    """Digest names, sizes and times of files, or of all in folders but a `LEDGER_FOLDER`."""
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for path in paths:
        for name, status in _files(os.fspath(path), ""):
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _files(path: str, name: str) -> Iterator[tuple[str, os.stat_result]]:
    if not os.path.isdir(path):
        yield name, os.stat(path)
        return
    with os.scandir(path) as entries:
        below = sorted(entries, key=lambda entry: entry.name)
    for entry in below:
        if entry.name == LEDGER_FOLDER:
            continue
        inner = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _files(entry.path, inner)
        else:
            yield inner, entry.stat()


def partial_name(name: str) -> str:
    """Make a unique name for what is being written, with its writer and the ending in it."""
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
    # Elsewhere there is no such call, and Windows has no library without a name to look for it in.
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


@cache
def _host() -> str:
    return blake2b(this_host().encode(), digest_size=4).hexdigest()
