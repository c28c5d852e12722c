"""Stamps of files and of this machine, which tell them from others without reading them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b

__all__ = ["LEDGER_FOLDER", "files_stamp", "this_host"]


LEDGER_FOLDER = ".itkstream"
"""What a run notes beside its results; it is no part of what tells them from others."""

_DIGEST_BYTES = 16


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
