"""Places to write to: claimed before work begins, never taken from somebody else's results.

What replaces a result is written beside it and gets its place when it is complete; whoever fails
or is killed before leaves the old one. That the inputs of a command are not touched is seen to by
`itkstream.io.storage.inputs.check_apart`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from itkstream.errors import (
    AccessError,
    ExistingOutputError,
    InputError,
    ItkstreamError,
    OutputError,
)
from itkstream.geometry.itk_bridge import what_itk_says
from itkstream.io.storage.attributes import is_zarr_array, zarr_attributes
from itkstream.io.storage.locations import Location

__all__ = [
    "check_file",
    "check_folder",
    "check_folder_name",
    "check_store",
    "check_store_name",
    "claim_file",
    "claim_folder",
    "claim_store",
    "claim_whole_store",
    "write_text",
]

_OME_KEYS = {"ome", "multiscales"}
# No folder of a run is called like one of these: whoever sees the name would take it for a file.
_OF_FILES = (
    *(".nii", ".gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".hdr", ".raw", ".zarr", ".n5"),
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".svg", ".pdf", ".czi", ".lif", ".nd2", ".ims"),
    *(".tfm", ".txt", ".mat", ".h5", ".hdf5", ".csv", ".tsv", ".npy", ".npz", ".parquet", ".xlsx"),
    *(".json", ".yaml", ".yml", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z"),
)


def check_store_name(folder: str | os.PathLike[str], what: str = "a Zarr store") -> Location:
    """Refuse a name for a Zarr store (`what` in the message) with the ending of another format.

    An ending that begins with a digit is none.
    """
    place = Location.parse(folder)
    ending = place.settled.suffix
    if ending.lower() != ".zarr" and ending[1:2].isalpha():
        raise InputError(
            f"{place} would be {what}, and its name ends in {ending}: end it in .ome.zarr or .zarr"
        )
    return place


def check_folder_name(folder: str | os.PathLike[str]) -> Location:
    """Refuse a name for a folder of results that ends like an image's, a table's, a store's..."""
    place = Location.parse(folder)
    if place.suffix.lower() in _OF_FILES:
        raise InputError(
            f"{place} would be a folder of several results, and its name ends in {place.suffix}: "
            "choose a name without that ending"
        )
    return place


def check_store(folder: str | os.PathLike[str], overwrite: bool) -> Location:
    """See whether a new Zarr store may take a place; change nothing.

    `overwrite` replaces an array or OME-Zarr image. A plain group may hold many images, so it is
    never replaced.
    """
    place = Location.parse(folder)
    _check_room(place)
    if place.is_vacant():
        return check_store_name(place)
    if not is_zarr_array(place) and not _OME_KEYS & zarr_attributes(place).keys():
        raise ExistingOutputError(
            f"{place} is there and is no Zarr array or OME-Zarr group, so it is never replaced; "
            "choose another path"
        )
    if not overwrite:
        raise ExistingOutputError(
            f"{place} is there already; choose another path or pass overwrite=True to replace it"
        )
    return check_store_name(place)


def claim_store(folder: str | os.PathLike[str], overwrite: bool) -> Location:
    """Clear the place of a new Zarr store, as `check_store` allows."""
    place = check_store(folder, overwrite)
    place.remove()
    return place


def check_folder(folder: str | os.PathLike[str], proof: str, overwrite: bool) -> Location:
    """See whether a folder may take the results of one run; change nothing.

    `proof` is a file that shows an earlier run of the same kind, which `overwrite` replaces.
    """
    target = Location.parse(folder)
    _check_room(target)
    vacant = target.is_vacant()
    if not vacant and not target.child(proof).is_file():
        raise ExistingOutputError(
            f"{target} holds something other than an earlier run (there is no {proof} in it), "
            "so it is never replaced; choose another folder"
        )
    check_folder_name(target)
    if vacant:
        return target
    if not overwrite:
        raise ExistingOutputError(
            f"{target} holds an earlier run; choose another folder or ask to overwrite it"
        )
    _ = target.draft  # refuses what cannot be replaced
    return target


def check_file(target: str | os.PathLike[str], overwrite: bool) -> Location:
    """See whether a new file may take a place; change nothing."""
    place = Location.parse(target)
    _check_room(place)
    if place.is_vacant():
        return place
    if not overwrite:
        raise ExistingOutputError(
            f"{place} is there already; choose another path or pass overwrite=True to replace it"
        )
    if place.is_dir():
        raise ExistingOutputError(
            f"{place} is a folder, which is never replaced by a file; choose another path"
        )
    return place


def claim_folder(
    folder: str | os.PathLike[str], proof: str, overwrite: bool
) -> AbstractContextManager[Path]:
    """Yield an empty folder for results, which appears under its name when complete."""
    return _folder_appearing(check_folder(folder, proof, overwrite))


def claim_file(target: str | os.PathLike[str], overwrite: bool) -> AbstractContextManager[Path]:
    """Yield a path for a file, which appears under its name when complete."""
    return _appearing(check_file(target, overwrite))


def claim_whole_store(
    folder: str | os.PathLike[str], overwrite: bool
) -> AbstractContextManager[Path]:
    """Yield a path for a Zarr store, which appears under its name when complete."""
    return _appearing(check_store(folder, overwrite))


def _check_room(place: Location) -> None:
    """Refuse a place on a disk below a file, or in a folder where nothing may be made."""
    if not place.is_local:
        return
    above = next(way for way in (*place.path.parents, place.path) if os.path.lexists(way))
    if not above.is_dir():
        raise InputError(
            f"{above} is a file, so there is no room for {place} below it; choose another path"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise AccessError(
            f"{place} cannot be written: nothing may be made in {above}. Change its permissions or "
            "choose another path"
        )


@contextmanager
def _appearing(place: Location) -> Iterator[Path]:
    """Yield where to write; what the system or ITK refuses becomes an `OutputError`."""
    try:
        if place.is_local:
            place.path.parent.mkdir(parents=True, exist_ok=True)
        place.remove_left_behind()
        with place.replacing() as partial:
            yield partial
    except (ItkstreamError, FileNotFoundError):
        raise  # what is not found was to be read
    except OSError as error:
        raise OutputError(f"{place} cannot be written: {error}") from error
    except RuntimeError as error:
        if "SimpleITK" not in str(error):
            raise
        raise OutputError(f"{place} cannot be written: {what_itk_says(error)}") from error


@contextmanager
def _folder_appearing(place: Location) -> Iterator[Path]:
    with _appearing(place) as partial:
        partial.mkdir(parents=True)
        yield partial


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file at once: it is complete or not there."""
    Location.parse(target).write_bytes(text.encode())
