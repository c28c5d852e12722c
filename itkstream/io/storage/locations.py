"""Places of data: paths on this machine's disks, and URLs of object stores.

Paths go through pathlib, URLs through `itkstream.io.storage.object_stores`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from itkstream.errors import InputError, MissingDataError
from itkstream.io.storage.disk import files_stamp, left_behind, partial_name, swap_in
from itkstream.io.storage.object_stores import (
    SCHEMES,
    check_bucket,
    object_stamps,
    open_options,
    open_store,
    reaching,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["Location", "path_as_written"]

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<key>.*)", re.DOTALL)
# A path of this machine, however its URL is written; of more slashes than one, one is left.
_FILE_URL = re.compile(r"(?i:file:(//(localhost)?)?)/*(?P<path>/.*)", re.DOTALL)
_PATH_OF_URL = re.compile(rf"({'|'.join(SCHEMES)}):/[^/]")
# How the name of a file begins that is being written, and of a result that will replace another.
_PARTIAL = ".partial-"
_DRAFT = ".draft-"


@dataclass(frozen=True)
class Location:
    """A file, a folder, or a place where one may be: an absolute path or a URL.

    Object stores know no folders: there a folder is what the names of objects begin with, and it is
    there as long as an object below it is.
    """

    address: str

    @classmethod
    def parse(cls, given: str | os.PathLike[str] | Location) -> Location:
        """Understand a path (also with ``~``) or a URL (``s3://``, ``gs://``, ``file:``)."""
        if isinstance(given, Location):
            return given
        text = os.fspath(given)
        if not isinstance(given, str) and _PATH_OF_URL.match(text):
            raise InputError(f"{text} was a URL before Path took a slash from it: pass it as text")
        written = path_as_written(text)
        if written is not None:
            return cls(_resolved(written))
        url = _URL.fullmatch(text)
        assert url is not None
        scheme, key = url["scheme"].lower(), url["key"]
        if scheme not in SCHEMES:
            raise InputError(
                f"{text} is a kind of URL that is not read; known are s3://, gs:// and file://"
            )
        parts = [part for part in key.split("/") if part]
        if not parts or {".", ".."} & set(parts):
            raise InputError(f"expected {scheme}://bucket/name without . and .. in it; got {text}")
        return cls(f"{SCHEMES[scheme]}://{'/'.join(parts)}")

    @classmethod
    def named(cls, given: str | os.PathLike[str] | Location) -> Location:
        """Understand a path or URL, following links only before a ``..``.

        Stores of contents (git-annex, DVC) hold files under their digests: what a file is called,
        and so its format, is known from the link alone.
        """
        if isinstance(given, Location) or _is_url(os.fspath(given)):
            return cls.parse(given)
        cls.parse(given)  # refuses what is no path
        whole = Path.cwd() / Path(given).expanduser()
        found = Path(whole.anchor)
        for part in whole.parts[1:]:
            found = found.resolve().parent if part == ".." else found / part
        return cls(str(found))

    @classmethod
    def of_store(cls, store: Any) -> Location | None:
        """Find where a store of Zarr's lies; None for memory, a ZIP file..."""
        from zarr.storage import FsspecStore, LocalStore

        if isinstance(store, LocalStore):
            return cls(str(Path(store.root).absolute()))
        if not isinstance(store, FsspecStore):
            return None
        # Zarr wraps what is not asynchronous, as files are when dask opens them.
        named = getattr(store.fs, "sync_fs", store.fs).protocol
        schemes = [named] if isinstance(named, str) else list(named)
        if "file" in schemes:
            return cls(str(Path(store.path).absolute()))
        known = next((SCHEMES[scheme] for scheme in schemes if scheme in SCHEMES), None)
        return None if known is None else cls(f"{known}://{store.path.strip('/')}")

    def __str__(self) -> str:
        return self.address

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Location:
        return self.child(name)

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return "://" not in self.address

    @property
    def path(self) -> Path:
        """The path on this machine; `InputError` in an object store."""
        if not self.is_local:
            raise InputError(f"{self} must be on this machine; copy it to a local disk first")
        return Path(self.address)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self._pure.name

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return self._pure.suffix

    @property
    def parents(self) -> tuple[Location, ...]:
        """The folders around it, the nearest first; in an object store up to the bucket."""
        above = self._pure.parents if self.is_local else list(self._pure.parents)[:-1]
        return tuple(self._at(folder) for folder in above)

    @property
    def is_replaceable(self) -> bool:
        """Whether it is no whole bucket or disk, so that something else can be put in its place."""
        return bool(self.parents) and not (self.is_local and os.path.ismount(self.address))

    @property
    def draft(self) -> Location:
        """The place beside it for its replacement; `InputError` for a whole bucket or disk."""
        if not self.is_replaceable:
            raise InputError(
                f"{self} is a whole bucket or disk, which cannot be replaced: choose a name in it"
            )
        return self.parents[0] / f"{_DRAFT}{self.name}"

    @property
    def settled(self) -> Location:
        """The place that a draft, or what lies in one, will have when it is complete."""
        return self._at(type(self._pure)(*(p.removeprefix(_DRAFT) for p in self._pure.parts)))

    def child(self, *names: str) -> Location:
        """Join names or relative paths to this place."""
        return self._at(self._pure.joinpath(*(name.strip("/") for name in names)))

    def is_below(self, above: Location) -> bool:
        """Whether it is a folder or lies in it, by the addresses alone."""
        same = self._scheme == above._scheme
        return same and self._pure.is_relative_to(above._pure)

    def lies_in(self, above: Location) -> bool:
        """Whether it is a file or folder or lies in it, by whatever path either is named.

        On disks links are followed, and files are known by what they are and not by their names:
        hard links, mounts and names that differ in case are the same.
        """
        if not (self.is_local and above.is_local):
            return self.is_below(above)
        inner, outer = Path(self.address).resolve(), Path(above.address).resolve()
        if inner.is_relative_to(outer):
            return True
        return outer.exists() and any(
            folder.exists() and folder.samefile(outer) for folder in (inner, *inner.parents)
        )

    def overlaps(self, other: Location) -> bool:
        """Whether two places are one, or one lies in the other, as `lies_in` finds it."""
        return self.lies_in(other) or other.lies_in(self)

    def relative_to(self, above: Location) -> str:
        """Join the names from a folder around it by slashes, "." for the folder itself."""
        return self._pure.relative_to(above._pure).as_posix()

    def exists(self) -> bool:
        """Whether a file or folder is there; False in a missing bucket."""
        if self.is_local:
            return Path(self.address).exists()
        with self._reaching() as store:
            return bool(store.exists(self._key))

    def is_file(self) -> bool:
        """Whether a file is there, not a folder."""
        if self.is_local:
            return Path(self.address).is_file()
        with self._reaching() as store:
            return bool(store.isfile(self._key))

    def is_dir(self) -> bool:
        """Whether a folder is there; in object stores, whether an object lies below."""
        if self.is_local:
            return Path(self.address).is_dir()
        with self._reaching() as store:
            return bool(store.isdir(self._key))

    def is_vacant(self) -> bool:
        """Whether nothing is there, or an empty folder; `MissingDataError` without bucket."""
        if not self.is_local:
            with self._reaching() as store:
                check_bucket(self.address, store)
        return not self.exists() or (self.is_dir() and not self.names())

    def names(self) -> list[str]:
        """List what a folder holds, sorted; empty where there is no folder."""
        if self.is_local:
            return sorted(os.listdir(self.address)) if self.is_dir() else []
        with self._reaching() as store:
            try:
                found = store.ls(self._key, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        here = PurePosixPath(self._key)
        # Some tools put an empty object in the place of a folder, and a file lists itself.
        return sorted(p.name for p in map(self._pure_of, found) if p.parent == here)

    def read_bytes(self) -> bytes:
        """Read a file; `MissingDataError` where there is none."""
        with self._reaching() as store:
            if store is None:
                return Path(self.address).read_bytes()
            return bytes(store.cat_file(self._key))

    def write_bytes(self, content: bytes) -> None:
        """Write a file at once, complete or not there; make the folders on the way."""
        if self.is_local:
            Path(self.address).parent.mkdir(parents=True, exist_ok=True)
            with self.replacing() as partial:
                partial.write_bytes(content)
            return
        with self._reaching() as store:
            store.pipe_file(self._key, content)

    @contextmanager
    def replacing(self) -> Iterator[Path]:
        """Yield a path for somebody else to write, which appears here when it is complete.

        It is beside its place, or in a temporary folder for an object store; removed after an
        error.
        """
        if self.is_local:
            target = Path(self.address)
            # Threads of one process, and processes of several hosts, may write the same file.
            partial = target.with_name(f"{_PARTIAL}{partial_name(target.name)}")
            try:
                yield partial
                swap_in(partial, target)
            finally:
                if partial.is_dir():
                    shutil.rmtree(partial)
                partial.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="itkstream-") as folder:
            partial = Path(folder) / self.name
            yield partial
            with self._reaching() as store:
                if not partial.is_dir():
                    store.put(str(partial), self._key)
                    return
                self.draft.remove()
                # With the slash what is in a folder is put, not the folder below the key.
                store.put(f"{partial}/", self.draft._key, recursive=True)
            self.take(self.draft)

    def take(self, new: Location) -> None:
        """Put a complete folder in this place, instead of what is here.

        On disks this is one step, so that there always is a whole folder here. Object stores cannot
        rename: objects are copied one by one, and those of `new` removed when all are here. Whoever
        is killed meanwhile leaves `new` complete, to be taken again.
        """
        if self.is_local:
            swap_in(Path(new.address), Path(self.address))
            return
        with self._reaching() as store:
            names, old = new._objects(store), self._objects(store)
            given = [f"{new._key}/{name}" for name in names]
            store.copy(given, [f"{self._key}/{name}" for name in names])
            stale = [f"{self._key}/{name}" for name in set(old) - set(names)]
            if stale:
                store.rm(stale)
            store.rm(new._key, recursive=True)

    def _objects(self, store: Any) -> list[str]:
        """List the objects below this place of an object store, relative to it."""
        here = PurePosixPath(self._key.lstrip("/"))
        found = (PurePosixPath(key.lstrip("/")) for key in store.find(self._key))
        return sorted(str(key.relative_to(here)) for key in found if here in key.parents)

    def remove_left_behind(self) -> None:
        """Remove what dead processes did not finish to write to this file or folder."""
        if self.is_local:
            target = Path(self.address)
            for left in left_behind(target.parent, _PARTIAL, target.name):
                Location(str(left)).remove()

    def remove_partial_files(self, *names: str) -> None:
        """Remove from a folder what killed writers left."""
        if not self.is_local:
            return
        for found in self.names():
            if found.startswith(_PARTIAL) and found.endswith(tuple(f"-{n}" for n in names) or ""):
                self.child(found).remove()

    def make_folder(self) -> None:
        """Make a folder and those around it; nothing in object stores."""
        if self.is_local:
            Path(self.address).mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove a file or a whole folder, if there is one; `InputError` for a bucket or disk."""
        if not self.parents:
            raise InputError(f"{self} is a whole bucket or disk, which is never removed")
        if self.is_local:
            if self.is_dir():
                shutil.rmtree(self.address)
            else:
                Path(self.address).unlink(missing_ok=True)
        elif self.exists():
            with self._reaching() as store:
                store.rm(self._key, recursive=True)

    def fingerprint(self) -> str:
        """Digest names, sizes and times (ETags) here and below, without `LEDGER_FOLDER`s."""
        with self._reaching() as store:
            if store is None:
                return files_stamp(self.address)
            found = store.find(self._key, detail=True)
        if not found:
            raise MissingDataError(f"there is no {self}; check the name")
        digest = blake2b(digest_size=16)
        for entry in sorted(object_stamps(found, self._key)):
            digest.update(repr(entry).encode())
        return digest.hexdigest()

    def store(self) -> Any:
        """Return what `zarr.open` takes for this place: a path or an `FsspecStore`."""
        if self.is_local:
            return self.address
        from zarr.storage import FsspecStore

        with self._reaching():
            return FsspecStore.from_url(self.address, open_options(self.address))

    @property
    def filesystem(self) -> AbstractFileSystem:
        """The object store through fsspec, with the options of its users."""
        return open_store(self.address)

    @property
    def _scheme(self) -> str:
        return "" if self.is_local else self.address.partition("://")[0]

    @property
    def _key(self) -> str:
        """The name in the object store: bucket and key."""
        key = self.address.partition("://")[2]
        return f"/{key}" if self._scheme == "memory" else key

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.address if self.is_local else self.address.partition("://")[2])

    def _at(self, pure: PurePosixPath) -> Location:
        return Location(str(pure) if self.is_local else f"{self._scheme}://{pure}")

    @staticmethod
    def _pure_of(key: str) -> PurePosixPath:
        return PurePosixPath(key.rstrip("/"))

    def _reaching(self) -> AbstractContextManager[Any]:
        """Yield the object store, None on disk; see `reaching`."""
        return reaching(self.address, lambda: None if self.is_local else self.filesystem)


def path_as_written(text: str) -> Path | None:
    """Return the local path that a text names, links kept; None for a URL of an object store."""
    of_file = _FILE_URL.fullmatch(text)
    if of_file:
        return Path(of_file["path"])
    url = _URL.fullmatch(text)
    if url is None:
        return Path(text).expanduser()
    return Path(url["key"]) if url["scheme"].lower() == "file" else None


def _resolved(path: Path) -> str:
    """Resolve a path, whether something is there or not."""
    try:
        resolved = path.resolve()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            resolved.lstat()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)!r} is no path that can be followed: {reason}") from error
    return str(resolved)


def _is_url(text: str) -> bool:
    return bool(_URL.fullmatch(text) or _FILE_URL.fullmatch(text))
