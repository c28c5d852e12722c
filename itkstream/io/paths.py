"""Where an image lies: its file or its dataset inside a container, and the format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itkstream.errors import InputError, MissingDataError

__all__ = [
    "ITK_SUFFIXES",
    "Location",
    "has_zarr_metadata",
    "list_datasets",
    "locate",
    "n5_attributes",
    "no_dataset",
]

ITK_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff")
_ZARR_FILES = ("zarr.json", ".zgroup", ".zarray")
_LISTED = 20


@dataclass(frozen=True)
class Location:
    """A file, or a folder inside a container.

    Parameters
    ----------
    path : Path
        The file, dataset or group itself.
    root : Path
        The container it belongs to; the file itself where there is none.
    format : str
        ``"n5"``, ``"zarr"`` or ``"itk"``.
    """

    path: Path
    root: Path
    format: str

    @property
    def lineage(self) -> tuple[Path, ...]:
        """The path itself, then the folders around it up to the container."""
        above = [folder for folder in self.path.parents if folder.is_relative_to(self.root)]
        return (self.path, *above)


def locate(path: str | os.PathLike[str], dataset: str | None = None) -> Location:
    """Find an image and tell its format; reads no voxels.

    Parameters
    ----------
    path : str or PathLike
        A file, a container, or a dataset inside a container.
    dataset : str, optional
        The dataset, relative to `path`.

    Returns
    -------
    Location
        What is there.

    Raises
    ------
    MissingDataError
        Where nothing is; the message lists the datasets that the container does hold.
    InputError
        Where the format is unknown.
    """
    full = Path(path).expanduser()
    full = (full / dataset.strip("/") if dataset else full).resolve()
    if not full.exists():
        raise _missing(full)
    if full.is_file():
        if not full.name.lower().endswith(ITK_SUFFIXES):
            raise _unknown(full)
        return Location(full, full, "itk")
    for folder in (full, *full.parents):
        kind = _container_format(folder)
        if kind is not None:
            return Location(full, _root(folder, kind), kind)
    raise _unknown(full)


def n5_attributes(folder: Path) -> dict[str, Any]:
    """The attributes of an N5 dataset or group.

    Parameters
    ----------
    folder : Path
        The dataset or group.

    Returns
    -------
    dict
        The content of its ``attributes.json``; empty where it has none.
    """
    file = folder / "attributes.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error}); repair or rewrite it") from error
    return found if isinstance(found, dict) else {}


def has_zarr_metadata(folder: Path) -> bool:
    """Whether a folder is the root of a Zarr array or group.

    Parameters
    ----------
    folder : Path
        Any folder.

    Returns
    -------
    bool
        True for Zarr versions 2 and 3.
    """
    return any((folder / name).is_file() for name in _ZARR_FILES)


def list_datasets(root: Path) -> list[str]:
    """The arrays inside a container, as paths relative to it.

    Parameters
    ----------
    root : Path
        An N5 or Zarr container.

    Returns
    -------
    list of str
        Sorted; the first 20 at most.
    """
    found: list[str] = []
    for folder, below, _ in os.walk(root):
        below.sort()
        here = Path(folder)
        if _is_array(here):
            below.clear()  # what lies below an array is chunks, possibly millions
            if here != root:
                found.append(here.relative_to(root).as_posix())
        if len(found) >= _LISTED:
            break
    return sorted(found)


def no_dataset(folder: Path, root: Path, wanted: str) -> MissingDataError:
    """The error for a container that does not hold what was asked for.

    Parameters
    ----------
    folder : Path
        What was asked for.
    root : Path
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


def _container_format(folder: Path) -> str | None:
    if has_zarr_metadata(folder):
        return "zarr"
    attributes = folder / "attributes.json"
    if folder.suffix.lower() == ".n5" or attributes.is_file():
        return "n5"
    return None


def _root(folder: Path, kind: str) -> Path:
    root = folder
    for above in _lineage(folder):
        if _container_format(above) == kind:
            root = above
    return root


def _lineage(folder: Path) -> Iterator[Path]:
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


def _is_array(folder: Path) -> bool:
    if (folder / ".zarray").is_file():
        return True
    node = folder / "zarr.json"
    if node.is_file():
        return bool(json.loads(node.read_text(encoding="utf-8")).get("node_type") == "array")
    return "dimensions" in n5_attributes(folder)


def _missing(full: Path) -> MissingDataError:
    near = next(folder for folder in full.parents if folder.exists())
    if near.is_file():
        return MissingDataError(f"{full} does not exist: {near} is a file and holds no datasets")
    for folder in (near, *near.parents):
        kind = _container_format(folder)
        if kind is not None:
            return no_dataset(full, _root(folder, kind), "there")
    return MissingDataError(
        f"{full} does not exist; the last folder on the way that does is {near}. Check the path"
    )


def _unknown(full: Path) -> InputError:
    return InputError(
        f"{full} is no image this package reads. Known: N5 containers (attributes.json), Zarr and "
        f"OME-Zarr (zarr.json, .zarray, .zgroup), and files ending in {', '.join(ITK_SUFFIXES)}"
    )
