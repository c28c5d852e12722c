"""Where an image lies: its file or its folder inside a container, and the format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from itkstream.errors import InputError, MissingDataError
from itkstream.io.locations import Location

__all__ = [
    "ITK_SUFFIXES",
    "Dataset",
    "has_zarr_metadata",
    "is_array",
    "list_datasets",
    "locate",
    "n5_attributes",
    "no_dataset",
]

ITK_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff")
_ZARR_FILES = ("zarr.json", ".zgroup", ".zarray")
_LISTED = 20


@dataclass(frozen=True)
class Dataset:
    """An image file, or an array or group inside a container.

    Parameters
    ----------
    location : Location
        The file, array or group itself.
    root : Location
        The container it belongs to; the file itself where there is none.
    format : str
        ``"n5"``, ``"zarr"`` or ``"itk"``.
    """

    location: Location
    root: Location
    format: str

    @property
    def lineage(self) -> tuple[Location, ...]:
        """The location itself, then the folders around it up to the container."""
        above = [folder for folder in self.location.parents if folder.is_below(self.root)]
        return (self.location, *above)


def locate(path: str | os.PathLike[str], dataset: str | None = None) -> Dataset:
    """Find an image and tell its format; reads no voxels.

    Parameters
    ----------
    path : str or PathLike
        A file, a container, or a dataset inside a container; a path or a URL.
    dataset : str, optional
        The dataset, relative to `path`.

    Returns
    -------
    Dataset
        What is there.

    Raises
    ------
    MissingDataError
        Where nothing is; the message lists the datasets that the container does hold.
    InputError
        Where the format is unknown, or ITK would have to read from an object store.
    """
    full = Location.parse(path)
    full = Location.parse(str(full.child(dataset))) if dataset else full
    if not full.exists():
        raise _missing(full)
    if full.is_file():
        if not full.name.lower().endswith(ITK_SUFFIXES):
            raise _unknown(full)
        return Dataset(Location.parse(full.path), full, "itk")
    for folder in (full, *full.parents):
        kind = _container_format(folder)
        if kind is not None:
            return Dataset(full, _root(folder, kind), kind)
    raise _unknown(full)


def n5_attributes(folder: Location) -> dict[str, Any]:
    """The attributes of an N5 dataset or group.

    Parameters
    ----------
    folder : Location
        The dataset or group.

    Returns
    -------
    dict
        The content of its ``attributes.json``; empty where it has none.
    """
    file = folder / "attributes.json"
    try:
        found = json.loads(file.read_bytes())
    except MissingDataError:
        return {}
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error}); repair or rewrite it") from error
    return found if isinstance(found, dict) else {}


def has_zarr_metadata(folder: Location) -> bool:
    """Whether a folder is the root of a Zarr array or group.

    Parameters
    ----------
    folder : Location
        Any folder.

    Returns
    -------
    bool
        True for Zarr versions 2 and 3.
    """
    return any((folder / name).is_file() for name in _ZARR_FILES)


def is_array(folder: Location) -> bool:
    """Whether a folder is a dataset of N5 or an array of Zarr.

    Parameters
    ----------
    folder : Location
        Any folder.

    Returns
    -------
    bool
        From its metadata.
    """
    if (folder / ".zarray").is_file():
        return True
    node = folder / "zarr.json"
    if node.is_file():
        return bool(json.loads(node.read_bytes()).get("node_type") == "array")
    return "dimensions" in n5_attributes(folder)


def list_datasets(root: Location) -> list[str]:
    """The arrays inside a container, as paths relative to it.

    Parameters
    ----------
    root : Location
        An N5 or Zarr container.

    Returns
    -------
    list of str
        Sorted; the first 20 at most.
    """
    below = (array for array in _arrays(root) if array != root)
    return sorted(array.relative_to(root) for array in islice(below, _LISTED))


def no_dataset(folder: Location, root: Location, wanted: str) -> MissingDataError:
    """The error for a container that does not hold what was asked for.

    Parameters
    ----------
    folder : Location
        What was asked for.
    root : Location
        Its container.
    wanted : str
        What `folder` is not, "an N5 dataset" for instance.

    Returns
    -------
    MissingDataError
        With the datasets that the container does hold in its message.
    """
    there = list_datasets(root)
    listing = ", ".join(there) if there else "none"
    return MissingDataError(
        f"{folder} is not {wanted}; datasets in {root}: {listing}. "
        "Name one of them in the path or with dataset="
    )


def _container_format(folder: Location) -> str | None:
    if has_zarr_metadata(folder):
        return "zarr"
    attributes = folder / "attributes.json"
    if folder.suffix.lower() == ".n5" or attributes.is_file():
        return "n5"
    return None


def _root(folder: Location, kind: str) -> Location:
    root = folder
    for above in _lineage(folder):
        if _container_format(above) == kind:
            root = above
    return root


def _lineage(folder: Location) -> Iterator[Location]:
    # Zarr 2 and N5 groups may stand without metadata of their own inside a container.
    chain = (folder, *folder.parents)
    inside = next(
        (f for f in chain if f.suffix.lower() in (".n5", ".zarr") or "n5" in n5_attributes(f)), None
    )
    for above in chain:
        if inside is None and _container_format(above) is None:
            return
        yield above
        if above == inside:
            return


def _arrays(folder: Location) -> Iterator[Location]:
    """Arrays here and below, in the order of their names."""
    if is_array(folder):
        yield folder  # what lies below an array is chunks, possibly millions
        return
    for name in folder.names():
        if (folder / name).is_dir():
            yield from _arrays(folder / name)


def _missing(full: Location) -> MissingDataError:
    near = next((folder for folder in full.parents if folder.exists()), None)
    if near is None:
        return MissingDataError(f"{full} does not exist: there is no bucket of that name")
    if near.is_file():
        return MissingDataError(f"{full} does not exist: {near} is a file and holds no datasets")
    for folder in (near, *near.parents):
        kind = _container_format(folder)
        if kind is not None:
            return no_dataset(full, _root(folder, kind), "there")
    return MissingDataError(
        f"{full} does not exist; the last folder on the way that does is {near}. Check the path"
    )


def _unknown(full: Location) -> InputError:
    return InputError(
        f"{full} is no image this package reads. Known: N5 containers (attributes.json), Zarr and "
        f"OME-Zarr (zarr.json, .zarray, .zgroup), and files ending in {', '.join(ITK_SUFFIXES)}"
    )
