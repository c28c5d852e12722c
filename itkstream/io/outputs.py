"""Places to write to: claimed before work begins, never taken from somebody else's results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from itkstream.errors import ExistingOutputError
from itkstream.io.locations import Location
from itkstream.io.zarr_arrays import is_zarr_array, zarr_attributes

__all__ = [
    "check_folder",
    "check_store",
    "claim_file",
    "claim_folder",
    "claim_store",
    "write_text",
]

_OME_KEYS = {"ome", "multiscales"}


def check_store(folder: str | os.PathLike[str], overwrite: bool) -> Location:
    """See whether a new Zarr store may take a place; change nothing.

    A plain Zarr group may hold many images, so it is never replaced.

    Parameters
    ----------
    folder : path
        Where the store will be: a path or a URL.
    overwrite : bool
        Whether an array or OME-Zarr group that is there may be replaced.

    Returns
    -------
    Location
        The place.

    Raises
    ------
    ExistingOutputError
        Where something is there that may not be replaced.
    """
    place = Location.parse(folder)
    if place.is_vacant():
        return place
    if not is_zarr_array(place) and not _OME_KEYS & zarr_attributes(place).keys():
        raise ExistingOutputError(
            f"{place} is there and is no Zarr array or OME-Zarr group, so it is never replaced; "
            "choose another path"
        )
    if not overwrite:
        raise ExistingOutputError(
            f"{place} is there already; choose another path or pass overwrite=True to replace it"
        )
    return place


def claim_store(folder: str | os.PathLike[str], overwrite: bool) -> Location:
    """Clear the place of a new Zarr store; only an array or an OME-Zarr group is ever removed.

    Parameters
    ----------
    folder : path
        Where the store will be: a path or a URL.
    overwrite : bool
        Whether an array or OME-Zarr group that is there may be replaced.

    Returns
    -------
    Location
        The place, with nothing there.

    Raises
    ------
    ExistingOutputError
        Where something is there that may not be replaced.
    """
    place = check_store(folder, overwrite)
    place.remove()
    return place


def check_folder(folder: str | os.PathLike[str], proof: str, overwrite: bool) -> Location:
    """See whether a folder may take the results of one run; change nothing.

    Parameters
    ----------
    folder : path
        New, or empty; a path or a URL.
    proof : str
        A file that shows an earlier run of the same kind, whose results may be replaced.
    overwrite : bool
        Whether to replace them.

    Returns
    -------
    Location
        The folder.

    Raises
    ------
    ExistingOutputError
        Where the folder holds something that may not be replaced.
    """
    target = Location.parse(folder)
    if target.is_vacant():
        return target
    if not target.child(proof).is_file():
        raise ExistingOutputError(
            f"{target} holds something other than an earlier run (there is no {proof} in it), "
            "so it is never replaced; choose another folder"
        )
    if not overwrite:
        raise ExistingOutputError(
            f"{target} holds an earlier run; choose another folder or ask to overwrite it"
        )
    return target


def claim_folder(folder: str | os.PathLike[str], proof: str, overwrite: bool) -> Location:
    """Make a folder for the results of one run.

    Parameters
    ----------
    folder : path
        New, or empty; a path or a URL.
    proof : str
        A file that shows an earlier run of the same kind, whose results may be replaced.
    overwrite : bool
        Whether to replace them.

    Returns
    -------
    Location
        The folder, empty.

    Raises
    ------
    ExistingOutputError
        Where the folder holds something that may not be replaced.
    """
    target = check_folder(folder, proof, overwrite)
    if not target.is_vacant():
        target.remove()
    target.make_folder()
    return target


@contextmanager
def claim_file(target: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A file, or a store, that appears under its name only when it is complete.

    Parameters
    ----------
    target : path
        The file's name: a path or a URL.
    overwrite : bool
        Whether a file that is there may be replaced.

    Yields
    ------
    Path
        Where to write it on this machine, a file or a new folder; moved or uploaded to its name
        at the end, removed after an error.

    Raises
    ------
    ExistingOutputError
        Where the file is there and may not be replaced.
    """
    place = Location.parse(target)
    if not place.is_vacant() and not overwrite:
        raise ExistingOutputError(
            f"{place} is there already; choose another path or pass overwrite=True to replace it"
        )
    with place.replacing() as partial:
        yield partial


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file at once: it is complete or not there.

    Parameters
    ----------
    target : path
        The file, a path or a URL; replaced if it is there.
    text : str
        Its contents.
    """
    Location.parse(target).write_bytes(text.encode())
