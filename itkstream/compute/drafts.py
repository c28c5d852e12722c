"""Results that are written beside their place and get it when they are complete.

Whatever was there stays as it is until then. A run that fails or is killed leaves its draft, named
``.draft-`` and the name of the result; the next one goes on with it, or removes it if it was of
another computation. Until the new result is complete, both take their space on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from itkstream.compute.lock import holding
from itkstream.io.storage.chunk_files import writing_to
from itkstream.io.storage.locations import Location

__all__ = ["drafted", "staged"]


@contextmanager
def drafted(place: Location) -> Iterator[Location]:
    """A draft for a with block to fill, or to finish, and then put in its place.

    Raises `BusyOutputError` where another process is writing it, and `InputError` where nothing
    can be put in this place.
    """
    with _held(place, place.draft):
        yield place.draft
        with writing_to(place):
            place.take(place.draft)


@contextmanager
def staged(place: Location) -> Iterator[Location]:
    """A draft, a Zarr store, for a with block to fill, or to finish, and to make the result of.

    It is removed at the end. Raises as `drafted` does.
    """
    draft = (place.parents[0] / f"{place.name}.zarr").draft
    with _held(place, draft):
        yield draft
        with writing_to(place):
            draft.remove()


@contextmanager
def _held(place: Location, draft: Location) -> Iterator[None]:
    """Keep other processes away from a draft."""
    lock = draft.parents[0] / f"{draft.name}.lock"
    with ExitStack() as stack:
        with writing_to(place):
            stack.enter_context(holding(lock, place))
        yield
