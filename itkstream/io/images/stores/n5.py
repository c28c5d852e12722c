"""N5 containers: read and write, in N5's own axis order, x first."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from itkstream.errors import ExistingOutputError, InputError
from itkstream.geometry import ArraySource, Grid, Image, default_axes
from itkstream.io.images.locate import Dataset, no_dataset
from itkstream.io.images.selection import Opened, Selection
from itkstream.io.images.stores.dialects import Node, read_axes, read_placement
from itkstream.io.images.stores.levels import Level, keep_error, open_level
from itkstream.io.images.stores.n5_lz4 import Lz4Array
from itkstream.io.images.stores.ngff_metadata import level_paths
from itkstream.io.images.stores.placement import Layout
from itkstream.io.storage.attributes import Attributes, n5_attributes
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.stored import StoredArray, tiles
from itkstream.numerics.threads import get_threads

__all__ = [
    "N5Array",
    "check_n5",
    "create_n5",
    "key_value_store",
    "n5_shape",
    "open_n5",
    "write_n5",
    "write_n5_levels",
]

_N5_VERSION = "2.0.0"
_TYPES = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float32", "float64"),
)
_LONGEST = 2**62
_FORMAT = ("dimensions", "blockSize", "dataType", "compression")
_LEVEL_NAME = re.compile(r"s(\d+)")


@dataclass(frozen=True)
class N5Array(StoredArray):
    """A lazy N5 dataset, x first."""

    @classmethod
    def open(cls, folder: Location) -> N5Array | Lz4Array:
        """Read the metadata of a dataset; `InputError` for an unknown type or compression."""
        attributes = n5_attributes(folder)
        kind = attributes.values.get("dataType")
        if kind not in _TYPES:
            raise attributes.error("dataType", f"one of {', '.join(_TYPES)}")
        if attributes.values.get("isLabelMultiset"):
            raise attributes.error("isLabelMultiset", "false: multisets of labels are not read")
        shape = n5_shape(attributes)
        compression = _compression(attributes)
        array: N5Array | Lz4Array
        if compression.text("type") == "lz4":
            array = Lz4Array(str(folder), shape, np.dtype(kind))
            _ = array.chunks
        else:
            array = cls(str(folder), shape, np.dtype(kind))
            # Refuses an unknown compression now rather than in the middle of a run.
            _ = array.store
        return array

    @cached_property
    def store(self) -> Any:
        """The open tensorstore of this process."""
        import tensorstore

        folder = Location(self.path)
        attributes = n5_attributes(folder)
        metadata = {key: attributes.values.get(key) for key in _FORMAT}
        metadata["compression"] = dict(_compression(attributes).values)
        spec = {
            "driver": "n5",
            "kvstore": key_value_store(folder),
            "context": {"data_copy_concurrency": {"limit": get_threads()}},
            # tensorstore has its own idea of attributes that other tools write beside these.
            "metadata": metadata,
            "open": True,
            "assume_metadata": True,
        }
        try:
            return tensorstore.open(spec).result()
        except ValueError as error:
            raise InputError(
                f"{folder / 'attributes.json'} describes no N5 dataset that can be read: {error}"
            ) from error

    @property
    def chunks(self) -> tuple[int, ...]:
        """Elements of a block of the dataset per axis."""
        return tuple(self.store.chunk_layout.read_chunk.shape)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box."""
        values = np.asarray(self.store[_box(start, stop)].read().result())
        # A block that is not there holds zeros; an array that is gone must not.
        if not (Location(self.path) / "attributes.json").is_file():
            raise OSError("the array is gone, there is no attributes.json any more")
        return values

    def write(self, start: Sequence[int], values: NDArray[Any]) -> None:
        """Write a box; boxes written at the same time must not share a chunk."""
        stop = tuple(a + n for a, n in zip(start, values.shape, strict=True))
        self.store[_box(start, stop)].write(values.astype(self.dtype, copy=False)).result()


def open_n5(dataset: Dataset, selection: Selection) -> Opened:
    """Open an N5 dataset, or one level of an N5 group, with the spatial axes in stored order.

    What attributes of the dataset and of the groups around it state of axes, spacing, origin and
    units is understood as `itkstream.io.images.stores.dialects` says. The levels of a group are
    those of its ``multiscales``, else ``s0, s1, ...``.
    """
    folders = _Folders()
    found = _levels(dataset, folders)
    damaged = [folder for folder in found if not folders.is_dataset(folder)]

    def opener(folder: Location) -> N5Array | Lz4Array:
        if folder in damaged:
            raise no_dataset(folder, dataset.root, "an N5 dataset, as those beside it are")
        return N5Array.open(folder)

    if damaged and selection.spacing is not None:
        opener(damaged[0])  # no level is known to be the nearest
    levels = [_level(folder, dataset, folders, selection) for folder in found]
    return open_level(levels, selection, opener, str(dataset.location))


def key_value_store(location: Location) -> dict[str, Any]:
    """Specify a folder for tensorstore (``kvstore``), with fsspec's endpoint and anonymity."""
    if location.is_local:
        return {"driver": "file", "path": location.address}
    scheme, _, key = location.address.partition("://")
    bucket, _, path = key.partition("/")
    if scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}
    if scheme != "s3":
        raise InputError(f"N5 is read from disk, s3:// and gs://; got {location}")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": f"{path}/"}
    settings = location.filesystem
    named = settings.endpoint_url or settings.client_kwargs.get("endpoint_url")
    endpoint = named or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        # Servers other than Amazon's rarely care for the region, but it is part of the signature.
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        spec |= {"endpoint": endpoint, "aws_region": region}
    if settings.key:
        raise InputError(
            f"N5 in S3 is read with Amazon's own settings (AWS_ACCESS_KEY_ID, AWS_PROFILE), not "
            f"with a key in fsspec's configuration: put the credentials for {location} there"
        )
    if settings.anon:
        spec["aws_credentials"] = {"type": "anonymous"}
    elif "AWS_ACCESS_KEY_ID" in os.environ:
        # The default looks into files first and complains on stderr if there are none.
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def create_n5(
    path: str | os.PathLike[str],
    dataset: str,
    grid: Grid,
    dtype: DTypeLike,
    chunks: Sequence[int],
    downsampling_factors: Sequence[int] = (),
) -> N5Array:
    """Create an empty N5 dataset for block writers to fill, gzip compressed.

    Parameters
    ----------
    path : str or PathLike
        The container; made where it is not there.
    dataset : str
        Path of the dataset inside it.
    grid : Grid
        Lattice with axes x, y, z (x, y in 2-D). An origin other than what averaging
        ``downsampling_factors`` voxels makes of 0 is written as COSEM's ``transform``.
    dtype : dtype
        Element type.
    chunks : sequence of int
        Voxels per chunk and axis.
    downsampling_factors : sequence of int, optional
        How many fine voxels one voxel covers per axis; ``pixelResolution`` is the spacing divided
        by it. Default 1.

    Returns
    -------
    N5Array
        The empty dataset.

    Raises
    ------
    ExistingOutputError
        Where something is there.
    InputError
        Where N5 cannot hold such an image.

    Examples
    --------
    >>> grid = itkstream.Grid((8, 8, 4), (0.5, 0.5, 2), axes=("x", "y", "z"))
    >>> array = itkstream.io.create_n5("new.n5", "s0", grid, "uint8", (8, 8, 4))
    >>> array.shape
    (8, 8, 4)
    >>> itkstream.open_image("new.n5/s0").spacing
    (0.5, 0.5, 2.0)
    """
    import tensorstore

    root = Location.parse(path)
    folder = root.child(dataset)
    if root.suffix.lower() != ".n5" and root.suffix[1:2].isalpha():
        raise InputError(f"an N5 container has a name that ends in .n5; got {root.name}")
    if folder.exists():
        raise ExistingOutputError(f"{folder} is there already; choose another dataset name")
    check_n5(grid, dtype)
    described = _describe(grid, tuple(downsampling_factors) or (1,) * grid.ndim)
    array = N5Array(str(folder), grid.shape, np.dtype(dtype))
    metadata = {
        "dimensions": list(grid.shape),
        "blockSize": [min(c, n) for c, n in zip(chunks, grid.shape, strict=True)],
        "dataType": array.dtype.name,
        "compression": {"type": "gzip"},
    }
    kvstore = key_value_store(folder)
    tensorstore.open(
        {"driver": "n5", "kvstore": kvstore, "metadata": metadata, "create": True}
    ).result()
    _add_attributes(folder, described)
    if "n5" not in n5_attributes(root):
        _add_attributes(root, {"n5": _N5_VERSION})
    return array


def write_n5(
    path: str | os.PathLike[str],
    dataset: str,
    array: ArraySource,
    grid: Grid,
    downsampling_factors: Sequence[int] = (),
    chunks: Sequence[int] = (128, 128, 64),
) -> N5Array:
    """Write an array as an N5 dataset, chunk by chunk.

    Parameters
    ----------
    path : str or PathLike
        The container; made where it is not there.
    dataset : str
        Path of the dataset inside it.
    array : ArraySource
        The voxels, in memory or lazy.
    grid : Grid
        Their lattice, with axes x, y, z (x, y in 2-D).
    downsampling_factors : sequence of int, optional
        See `create_n5`.
    chunks : sequence of int
        Voxels per chunk and axis.

    Returns
    -------
    N5Array
        The dataset.

    Raises
    ------
    ExistingOutputError
        Where something is there.
    InputError
        Where N5 cannot hold such an image.

    Examples
    --------
    >>> grid = itkstream.Grid((8, 8, 4), (0.5, 0.5, 2), axes=("x", "y", "z"))
    >>> written = itkstream.io.write_n5("array.n5", "s0", np.ones((8, 8, 4), np.uint8), grid)
    >>> itkstream.open_image("array.n5/s0").shape
    (8, 8, 4)
    """
    image = Image(array, grid, dataset)
    check_apart(Location.parse(path).child(dataset), array)
    chunks = tuple(chunks)[: grid.ndim]
    out = create_n5(path, dataset, grid, image.dtype, chunks, downsampling_factors)
    for box in tiles(grid.shape, chunks):
        out.write([s.start for s in box], np.asarray(array[box]))
    return out


def check_n5(grid: Grid, dtype: DTypeLike) -> None:
    """Refuse an image that N5 cannot hold."""
    if np.dtype(dtype).name not in _TYPES:
        raise InputError(f"N5 holds {', '.join(_TYPES)}; got {np.dtype(dtype)}. Cast the image")
    _describe(grid, (1,) * grid.ndim)


def write_n5_levels(place: Location, levels: Sequence[Image]) -> None:
    """Write a new container of one image with levels ``s0`` and on, which appears when complete.

    Levels have axes x, y, z and chunks; they are the finest averaged by whole factors.
    """
    finest = levels[0].in_unit("micrometer").spacing
    with place.replacing() as partial:
        for number, level in enumerate(levels):
            spacing = level.in_unit("micrometer").spacing
            factors = [round(c / f) for c, f in zip(spacing, finest, strict=True)]
            chunks = level.chunk_shape or level.shape
            write_n5(partial, f"s{number}", level.data, level.grid, factors, chunks)


def n5_shape(attributes: Attributes) -> tuple[int, ...]:
    """Read the elements per axis of a dataset, in stored order."""
    shape = attributes.numbers("dimensions")
    if shape is None or any(n < 1 or n != int(n) or n > _LONGEST for n in shape):
        raise attributes.error("dimensions", "a list of positive whole numbers")
    return tuple(map(int, shape))


class _Folders(dict[Location, Attributes]):
    """The attributes of folders, each read once while an image is opened."""

    def __missing__(self, folder: Location) -> Attributes:
        self[folder] = n5_attributes(folder)
        return self[folder]

    def is_dataset(self, folder: Location) -> bool:
        """Whether a folder is an array."""
        return "dimensions" in self[folder]


def _levels(dataset: Dataset, folders: _Folders) -> list[Location]:
    folder = dataset.location
    if folders.is_dataset(folder):
        return [folder]
    for multiscale in folders[folder].listed("multiscales"):
        found = [folder / path for path in level_paths(multiscale)]
        missing = next((level for level in found if not folders.is_dataset(level)), None)
        if missing is not None:
            raise no_dataset(missing, dataset.root, "there, though its group lists it")
        return found
    numbered = {}
    for name in folder.names():
        match = _LEVEL_NAME.fullmatch(name)
        if match and (folder / name).is_dir():
            numbered[int(match[1])] = folder / name
    if any(map(folders.is_dataset, numbered.values())):
        return [numbered[k] for k in sorted(numbered)]
    if "painteraData" in folders[folder] and (folder / "data").is_dir():
        return _levels(replace(dataset, location=folder / "data"), folders)
    raise no_dataset(folder, dataset.root, "an N5 dataset")


def _level(folder: Location, dataset: Dataset, folders: _Folders, selection: Selection) -> Level:
    if not folders.is_dataset(folder):
        # A damaged level keeps its number, and is an error for whoever asks for it.
        return Level(folder, (), None)
    lineage = Dataset(folder, dataset.root, "n5").lineage
    chain = [Node(folders[around], folder.relative_to(around)) for around in lineage]
    shape = n5_shape(folders[folder])
    names = _names(chain, len(shape), selection, folder)
    match = _LEVEL_NAME.fullmatch(folder.name)
    number = int(match[1]) if match else None
    finest = lineage[1] / "s0" if number and len(lineage) > 1 else folder
    first = None
    if finest != folder and folders.is_dataset(finest):
        first = Node(folders[finest])
        shape = n5_shape(folders[finest])
    names = selection.planar(names, shape)
    place = keep_error(lambda: read_placement(chain, Layout(names), number, first))
    return Level(folder, names, place)


def _names(
    chain: Sequence[Node], ndim: int, selection: Selection, folder: Location
) -> tuple[str, ...]:
    usual = default_axes(ndim) if ndim in (2, 3) else ("",) * ndim
    if selection.axes is not None:
        return selection.axes_of(usual, str(folder))
    found = read_axes(chain, ndim, reverse=True)
    if found is None and ndim not in (2, 3):
        raise InputError(
            f"{folder} has {ndim} axes without names; give it an attribute axes, for instance "
            "['x', 'y', 'z', 'c'], or pass axes= (--axes)"
        )
    return found or usual


def _compression(attributes: Attributes) -> Attributes:
    """Read how blocks are compressed; before N5 2.0 it was a word of its own."""
    found = attributes.below("compression")
    if found is None and "compressionType" in attributes:
        found = Attributes({"type": attributes.text("compressionType")}, attributes.file)
    if found is None:
        raise attributes.error("compression", "an object with a type")
    return found


def _describe(grid: Grid, factors: tuple[int, ...]) -> dict[str, Any]:
    """Describe spacing and origin by attributes for N5 readers."""
    if grid.axes != default_axes(grid.ndim):
        raise InputError(
            f"N5 images have axes {default_axes(grid.ndim)}; got {grid.axes}. Reorder the image"
        )
    if not np.allclose(grid.direction, np.eye(grid.ndim)):
        raise InputError("N5 cannot hold a rotated grid; write OME-Zarr instead")
    if len(factors) != grid.ndim:
        raise InputError(f"downsampling_factors needs {grid.ndim} numbers; got {factors}")
    placed = grid.in_unit("micrometer")
    fine = [s / f for s, f in zip(placed.spacing, factors, strict=True)]
    described: dict[str, Any] = {
        "pixelResolution": {"dimensions": fine, "unit": "um"},
        "downsamplingFactors": list(factors),
    }
    implied = [(f - 1) / 2 * s for f, s in zip(factors, fine, strict=True)]
    if not np.allclose(implied, placed.origin, rtol=0, atol=1e-9 * max(placed.spacing)):
        # COSEM's words say where the first voxel lies; N5's own leave that to the factors.
        described["transform"] = {
            "axes": list(placed.axes[::-1]),
            "scale": list(placed.spacing[::-1]),
            "translate": list(placed.origin[::-1]),
            "units": ["um"] * placed.ndim,
        }
    return described


def _add_attributes(folder: Location, attributes: dict[str, Any]) -> None:
    content = json.dumps({**n5_attributes(folder).values, **attributes}, indent=2)
    (folder / "attributes.json").write_bytes(content.encode())


def _box(start: Sequence[int], stop: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
