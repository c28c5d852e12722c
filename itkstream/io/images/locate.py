"""The search for an image: its file or its folder inside a container, and the format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from itkstream.errors import InputError, MissingDataError
from itkstream.io.storage.attributes import has_zarr_metadata, is_array, n5_attributes
from itkstream.io.storage.locations import Location

__all__ = [
    "ITK_SUFFIXES",
    "TIFF_SUFFIXES",
    "Dataset",
    "list_datasets",
    "locate",
    "no_dataset",
    "planes_inside",
]


ITK_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd")
TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".stk")
NUMPY_SUFFIXES = (".npy",)
_LISTED = 20


@dataclass(frozen=True)
class Dataset:
    """An image file, a folder of planes, or an array or group inside a container.

    `format` is "n5", "zarr", "tiff", "itk", "npy" or "planes". `root` is the container around
    `location`; the file or folder itself where there is none.
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
    """Find an image and tell its format; read no voxels."""
    named = Location.named(path)
    named = Location.named(str(named.child(dataset))) if dataset else named
    if not named.exists():
        return _series_of_tiff(named)
    full = _followed(named)
    if full.is_file():
        return _image_file(full)
    for folder in (full, *full.parents):
        kind = _container_format(folder)
        if kind is not None:
            return Dataset(full, _root(folder, kind), kind)
    if planes_inside(full):
        return Dataset(full, full, "planes")
    raise _unknown(full)


def planes_inside(folder: Location) -> list[str]:
    """List the TIFF files in a folder, where nothing else that is an image lies in it, sorted."""
    shown = [name for name in folder.names() if not name.startswith(".")]
    found = [name for name in shown if name.lower().endswith(TIFF_SUFFIXES)]
    others = (*ITK_SUFFIXES, *NUMPY_SUFFIXES)
    return [] if any(name.lower().endswith(others) for name in shown) else found


def list_datasets(root: Location) -> list[str]:
    """List the arrays inside a container, relative to it, sorted; the first 20 at most."""
    below = (array for array in _arrays(root) if array != root)
    return sorted(array.relative_to(root) for array in islice(below, _LISTED))


def no_dataset(folder: Location, root: Location, wanted: str) -> MissingDataError:
    """Make the error for a container without what was asked for; it lists what is there.

    `wanted` is what `folder` is not, "an N5 dataset" for instance.
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
    """Yield the arrays here and below, in the order of their names."""
    if is_array(folder):
        yield folder  # what lies below an array is chunks, possibly millions
        return
    for name in folder.names():
        if (folder / name).is_dir():
            yield from _arrays(folder / name)


def _followed(named: Location) -> Location:
    """Follow a link, unless its own name or place tells what it leads to."""
    if not named.is_local:
        return named
    if named.is_file():
        place = named
        known = (*ITK_SUFFIXES, *TIFF_SUFFIXES, *NUMPY_SUFFIXES)
        while not place.name.lower().endswith(known) and place.path.is_symlink():
            place = Location.named(str(place.path.parent / place.path.readlink()))
        return place
    target = Location.parse(named.address)
    inside = any(f.suffix.lower() in (".n5", ".zarr") for f in (named, *named.parents))
    kinds = [_container_format(folder) for folder in (target, *target.parents)]
    kind = next((k for k in kinds if k is not None), None)
    # A link to a dataset of a container elsewhere: what is around it there counts.
    return target if kind and not inside and _root(target, kind) != target else named


def _image_file(full: Location) -> Dataset:
    kinds = ((ITK_SUFFIXES, "itk"), (TIFF_SUFFIXES, "tiff"), (NUMPY_SUFFIXES, "npy"))
    for suffixes, kind in kinds:
        if full.name.lower().endswith(suffixes):
            here = Location(str(full.path))
            return Dataset(here, here, kind)
    raise _unknown(full)


def _series_of_tiff(full: Location) -> Dataset:
    """Find a series inside a TIFF file; whatever else is not there is an error."""
    for above in full.parents:
        if above.name.lower().endswith(TIFF_SUFFIXES) and above.is_file():
            return Dataset(Location.parse(full.path), Location.parse(above.path), "tiff")
    raise _missing(full)


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
        f"OME-Zarr (zarr.json, .zarray, .zgroup), folders of TIFF planes, and files ending in "
        f"{', '.join((*ITK_SUFFIXES, *TIFF_SUFFIXES, *NUMPY_SUFFIXES))}"
    )
