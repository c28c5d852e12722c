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

__all__ = ["drafted"]


@contextmanager
def drafted(place: Location) -> Iterator[Location]:
    """A draft for a with block to fill, or to finish, and then put in its place.

    Raises `BusyOutputError` where another process is writing it, and `InputError` where nothing
    can be put in this place.
    """
    draft = place.draft
    lock = draft.parents[0] / f"{draft.name}.lock"
    with ExitStack() as stack:
        with writing_to(place):
            stack.enter_context(holding(lock, place))
        yield draft
        with writing_to(place):
            place.take(draft)
