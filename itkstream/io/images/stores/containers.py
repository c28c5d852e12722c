"""Containers as a whole, N5 or Zarr: groups and datasets by name, nothing read before it is sliced.

Datasets come as Zarr's own N5 store gave them: the axes of N5 in numpy's order, so z, y, x; the
attributes without the keys that say how the voxels are stored. Those of Zarr come as stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.io.images.locate import list_datasets, locate
from itkstream.io.images.stores.n5 import N5Array
from itkstream.io.storage.attributes import is_array, n5_attributes, zarr_attributes
from itkstream.io.storage.locations import Location
from itkstream.io.storage.stored import StoredArray
from itkstream.io.storage.zarr_arrays import ZarrArray

__all__ = ["Container", "ContainerArray", "NodeAttributes", "open_container"]

# How voxels are stored, and in which version of N5: no attributes of the user's.
_N5_KEYS = frozenset({"n5", "dimensions", "blockSize", "dataType", "compression"})


class NodeAttributes(Mapping[str, Any]):
    """The attributes of a group or dataset, as its file has them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Attributes({self._values})"

    def asdict(self) -> dict[str, Any]:
        """Copy them into a dict."""
        return dict(self._values)


@dataclass(frozen=True)
class ContainerArray(StoredArray):
    """A dataset of a container: sliced like numpy, read when it is sliced.

    Axes are z, y, x of N5, as stored of Zarr.
    """

    source: StoredArray

    @classmethod
    def open(cls, folder: Location, kind: str) -> ContainerArray:
        """Read the metadata of a dataset of an "n5" or "zarr" container."""
        source = N5Array.open(folder) if kind == "n5" else ZarrArray.open(folder)
        shape = source.shape[::-1] if kind == "n5" else source.shape
        return cls(source.path, shape, source.dtype, source)

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Elements of a chunk per axis."""
        return self._turned(self.source.chunks or ()) or None

    @property
    def attrs(self) -> NodeAttributes:
        """Its attributes; pixelResolution and downsamplingFactors of N5 stay x first."""
        return _attributes(Location(self.path), self._kind)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box."""
        values = self.source.read(self._turned(start), self._turned(stop))
        return values.T if self._kind == "n5" else values

    @property
    def _kind(self) -> str:
        return "n5" if isinstance(self.source, N5Array) else "zarr"

    def _turned(self, per_axis: tuple[int, ...]) -> tuple[int, ...]:
        return per_axis[::-1] if self._kind == "n5" else per_axis


@dataclass(frozen=True)
class Container(Mapping[str, "Container | ContainerArray"]):
    """A group of an "n5" or "zarr" container: a mapping from names to groups and datasets.

    Names may be paths, with or without a slash before them: ``container["/round1/lowres"]``.
    Iteration gives the names of this group alone. It pickles as its path.
    """

    path: str
    kind: str

    def __getitem__(self, name: str) -> Container | ContainerArray:
        place = self._place(name)
        if place is None or not place.is_dir():
            raise self._missing(name)
        if is_array(place):
            return ContainerArray.open(place, self.kind)
        return Container(str(place), self.kind)

    def __contains__(self, name: object) -> bool:
        place = self._place(name) if isinstance(name, str) else None
        return place is not None and place.is_dir()

    def __iter__(self) -> Iterator[str]:
        return (name for name in Location(self.path).names() if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def attrs(self) -> NodeAttributes:
        """Its attributes."""
        return _attributes(Location(self.path), self.kind)

    def arrays(self) -> Iterator[tuple[str, ContainerArray]]:
        """Yield the datasets of this group with their names, in the order of these."""
        for name, value in self.items():
            if isinstance(value, ContainerArray):
                yield name, value

    def groups(self) -> Iterator[tuple[str, Container]]:
        """Yield the groups in this group with their names, in the order of these."""
        for name, value in self.items():
            if isinstance(value, Container):
                yield name, value

    def _place(self, name: str) -> Location | None:
        """Place of something of that name; None where that is not in this group."""
        parts = [part for part in name.split("/") if part]
        here = Location(self.path)
        steps = [here.child(*parts[:k]) for k in range(len(parts))]
        # What lies below a dataset is chunks; hidden folders are notes of programs.
        if any(part.startswith(".") for part in parts) or any(map(is_array, steps)):
            return None
        return here.child(*parts) if parts else here

    def _missing(self, name: str) -> MissingDataError:
        there = list_datasets(Location(self.path))
        near = get_close_matches(name.strip("/"), there, 1, 0.5)
        hint = f": did you mean {near[0]!r}?" if near else ""
        return MissingDataError(
            f"{self.path} holds no {name!r}{hint}; datasets there: {', '.join(there) or 'none'}"
        )


def open_container(path: str | os.PathLike[str]) -> Container:
    """Open an N5 or Zarr container, or a group in one; reads no voxels.

    It takes the place of ``zarr.open(store=zarr.N5Store(path), mode="r")``, which Zarr 3 has no
    more.

    Parameters
    ----------
    path : str or PathLike
        The container; a path or a URL such as ``s3://bucket/fix.n5``.

    Returns
    -------
    Container
        Its datasets by name. Those of N5 have the axes z, y, x, as Zarr gave them; `open_image`
        gives them x first, with their spacing.

    Raises
    ------
    MissingDataError
        Where nothing is there.
    InputError
        Where it is a dataset, an image file, or no container that is known.

    Examples
    --------
    >>> fix_zarr = open_container("resources/fix.n5")  # doctest: +SKIP
    >>> fix_zarr["/lowres"].shape  # doctest: +SKIP
    (72, 112, 128)
    >>> fix_zarr["/lowres"].attrs.asdict()  # doctest: +SKIP
    {'pixelResolution': [0.8, 0.8, 1.2], 'downsamplingFactors': [2, 2, 2]}
    """
    found = locate(path)
    place = found.location
    if found.format not in ("n5", "zarr"):
        raise InputError(f"{place} is an image file, not a container: use itkstream.open_image")
    if is_array(place):
        above, name = found.root, place.relative_to(found.root)
        inside = "" if name == "." else f" open_container({str(above)!r})[{name!r}], or"
        raise InputError(
            f"{place} is a dataset, not a container: use{inside} "
            f"itkstream.open_image({str(place)!r})"
        )
    return Container(str(place), found.format)


def _attributes(folder: Location, kind: str) -> NodeAttributes:
    if kind == "zarr":
        return NodeAttributes(zarr_attributes(folder))
    found = n5_attributes(folder)
    return NodeAttributes(
        {name: value for name, value in found.values.items() if name not in _N5_KEYS}
    )
