"""Object stores through fsspec: opened with their users' options, their errors made this package's.

Endpoints, credentials and other options come from where their users keep them: the environment
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``GOOGLE_APPLICATION_CREDENTIALS``, ...), ``~/.aws``,
and fsspec's own configuration (``FSSPEC_S3_ENDPOINT_URL``, ``FSSPEC_S3_ANON``,
``~/.config/fsspec``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from itkstream.errors import AccessError, InputError, MissingDataError
from itkstream.io.storage.disk import LEDGER_FOLDER

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["SCHEMES", "check_bucket", "object_stamps", "open_options", "open_store", "reaching"]

SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs", "memory": "memory"}
"""Kinds of URLs that are read, and how this package spells them."""

_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs"}
# Packages whose exceptions mean that a store did not let us in or was not there to ask.
_CLIENTS = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs"}
# In which field each kind of store says that an object was written anew.
_STAMPS = ("ETag", "etag", "generation", "mtime", "LastModified", "modified", "created")


def open_store(address: str) -> AbstractFileSystem:
    """Open the object store of a URL; `InputError` where the library for it is not installed."""
    import fsspec

    scheme = _scheme(address)
    try:
        return fsspec.filesystem(scheme, **open_options(address))
    except ImportError as error:
        library = _LIBRARIES.get(scheme, "fsspec")
        raise InputError(
            f"{address} needs {library}, which is not installed: pip install 'itkstream[cloud]'"
        ) from error


def open_options(address: str) -> dict[str, Any]:
    """Return the options for fsspec beside its users' own."""
    # Other processes write to the same store, so a listing is stale as soon as it is made.
    options: dict[str, Any] = {"use_listings_cache": False}
    if _scheme(address) == "s3":
        # Else every chunk is asked for its size first, lest it be read in several parts.
        options["max_concurrency"] = 1
    return options


@contextmanager
def reaching(address: str, opener: Callable[[], Any]) -> Iterator[Any]:
    """Yield what is opened at a path or URL, and turn a store's errors into this package's."""
    is_local = "://" not in address
    try:
        yield opener()
    except (InputError, MissingDataError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "" if is_local else ", or no bucket of that name"
        raise MissingDataError(f"there is no {address}{what}; check the name") from error
    except Exception as error:
        client = type(error).__module__.partition(".")[0] in _CLIENTS
        if is_local or not (client or isinstance(error, OSError)):
            raise
        raise AccessError(
            f"{address} cannot be reached or does not let us in: {error}. "
            f"{_advice(_scheme(address))}"
        ) from error


def check_bucket(address: str, store: AbstractFileSystem) -> None:
    """Refuse to write where there is no bucket of that name."""
    scheme, _, key = address.partition("://")
    bucket = key.partition("/")[0]
    # Asked so, a bucket is not there either if nobody may ask for it: then a listing tells.
    if scheme == "memory" or store.exists(bucket):
        return
    try:
        store.ls(bucket)
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{address} cannot be written: there is no bucket {bucket}; make it or correct the name"
        ) from error


def object_stamps(
    found: Mapping[str, Mapping[str, Any]], key: str
) -> Iterator[tuple[str, int, str]]:
    """Yield relative name, size and ETag or time of every object at a key and below."""
    for name, facts in found.items():
        inside = PurePosixPath(name.rstrip("/")).relative_to(key)
        if LEDGER_FOLDER not in inside.parts:
            stamp = next((str(facts[k]) for k in _STAMPS if facts.get(k)), "")
            yield str(inside), int(facts.get("size") or 0), stamp


def _scheme(address: str) -> str:
    return address.partition("://")[0]


def _advice(scheme: str) -> str:
    if scheme == "gs":
        return (
            "Check the bucket and your credentials (gcloud auth application-default login, or "
            "GOOGLE_APPLICATION_CREDENTIALS); for a public bucket set FSSPEC_GS_TOKEN=anon"
        )
    return (
        "Check the bucket, your credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE) and the endpoint (AWS_ENDPOINT_URL); for a public bucket set "
        "FSSPEC_S3_ANON=true"
    )
