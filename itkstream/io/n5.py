"""N5 containers: read and write through tensorstore, in N5's own axis order x, y, z."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from itkstream.errors import ExistingOutputError, InputError
from itkstream.geometry import ArraySource, Grid, Image, default_axes
from itkstream.io.inputs import check_apart
from itkstream.io.locations import Location
from itkstream.io.paths import Dataset, n5_attributes, no_dataset
from itkstream.io.selection import Selection
from itkstream.io.stored import StoredArray, tiles
from itkstream.numerics.threads import get_threads

__all__ = ["N5Array", "create_n5", "key_value_store", "open_n5", "write_n5"]

_N5_VERSION = "2.0.0"
_TYPES = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float32", "float64"),
)
_LEVEL_NAME = re.compile(r"s(\d+)")


@dataclass(frozen=True)
class N5Array(StoredArray):
    """A lazy N5 dataset.

    Parameters
    ----------
    path : str
        Absolute path or URL of the dataset.
    shape : tuple of int
        Elements per axis, x first.
    dtype : numpy.dtype
        Element type.
    """

    @classmethod
    def open(cls, folder: Location) -> N5Array:
        """Read the metadata of a dataset and check that it can be read.

        Parameters
        ----------
        folder : Location
            The dataset.

        Returns
        -------
        N5Array
            Lazy.

        Raises
        ------
        InputError
            Where its type or compression is unknown.
        """
        kind = n5_attributes(folder).get("dataType")
        if kind not in _TYPES:
            raise InputError(f"{folder} holds {kind}; N5 data of {', '.join(_TYPES)} are read")
        array = cls(str(folder), _shape(folder), np.dtype(kind))
        _ = array.store  # refuses an unknown compression now rather than in the middle of a run
        return array

    @cached_property
    def store(self) -> Any:
        """The open tensorstore of this process."""
        import tensorstore

        spec = {
            "driver": "n5",
            "kvstore": key_value_store(Location(self.path)),
            "context": {"data_copy_concurrency": {"limit": get_threads()}},
            # A block that is not there holds zeros; an array that is gone must not.
            "recheck_cached_metadata": True,
        }
        try:
            return tensorstore.open(spec).result()
        except ValueError as error:
            raise InputError(f"tensorstore cannot open {self.path} as N5: {error}") from error

    @property
    def chunks(self) -> tuple[int, ...]:
        """Elements of a block of the dataset per axis."""
        return tuple(self.store.chunk_layout.read_chunk.shape)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box.

        Parameters
        ----------
        start, stop : tuple of int
            First element, and one past the last, per axis.

        Returns
        -------
        ndarray, stop - start
            The elements.
        """
        return np.asarray(self.store[_box(start, stop)].read().result())

    def write(self, start: Sequence[int], values: NDArray[Any]) -> None:
        """Write a box; boxes written at the same time must not share a chunk.

        Parameters
        ----------
        start : sequence of int
            First element per axis.
        values : ndarray
            The elements.
        """
        stop = tuple(a + n for a, n in zip(start, values.shape, strict=True))
        self.store[_box(start, stop)].write(values.astype(self.dtype, copy=False)).result()


@dataclass(frozen=True)
class _Stated:
    """Voxel spacing and unit as attributes state them; None where they do not."""

    spacing: tuple[float, ...] | None
    unit: str | None


def open_n5(dataset: Dataset, selection: Selection) -> Image:
    """Open an N5 dataset, or one level ``s0, s1, ...`` of an N5 group.

    The spacing is ``pixelResolution`` (or ``resolution``) times ``downsamplingFactors``, looked up
    in the dataset's attributes and then in those of the groups around it; a level without factors
    of its own takes them from the group's ``scales``. The origin is 0 at every level, as N5 tools
    have it, although averaging moves the centre of the first voxel by ``(f - 1) / 2`` fine voxels.

    Parameters
    ----------
    dataset : Dataset
        Array or group.
    selection : Selection
        Level, and what to believe instead of the metadata.

    Returns
    -------
    Image
        Lazy, with axes x, y, z.

    Raises
    ------
    MissingDataError
        Where there is no dataset.
    InputError
        Where the spacing is unknown or the selection does not fit.
    """
    folders = _levels(dataset)
    stated = [_stated(folder, dataset) for folder in folders]
    unit = selection.unit_of(next((s.unit for s in stated if s.unit), None))
    chosen = selection.choose_level([s.spacing for s in stated], unit, str(dataset.location))
    folder = folders[chosen]
    source = N5Array.open(folder)
    spacing = stated[chosen].spacing
    grid = None if spacing is None else Grid(source.shape, spacing, unit=unit)
    return selection.image(source, default_axes(source.ndim), grid, str(folder))


def key_value_store(location: Location) -> dict[str, Any]:
    """What tensorstore calls a place: a folder on disk or in an object store.

    Parameters
    ----------
    location : Location
        On this machine, in S3 or in GCS.

    Returns
    -------
    dict
        A ``kvstore`` specification, with the endpoint and the anonymity that fsspec uses too.

    Raises
    ------
    InputError
        Where tensorstore has no access to that kind of store.
    """
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
        Lattice with axes x, y, z (x, y in 2-D). N5 keeps its spacing and not its origin.
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
    """
    import tensorstore

    root = Location.parse(path)
    folder = root.child(dataset)
    if root.suffix.lower() != ".n5" and root.suffix[1:2].isalpha():
        raise InputError(f"an N5 container has a name that ends in .n5; got {root.name}")
    if folder.exists():
        raise ExistingOutputError(f"{folder} is there already; choose another dataset name")
    if np.dtype(dtype).name not in _TYPES:
        raise InputError(f"N5 holds {', '.join(_TYPES)}; got {np.dtype(dtype)}. Cast the image")
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
    """
    image = Image(array, grid, dataset)
    check_apart(Location.parse(path).child(dataset), array)
    chunks = tuple(chunks)[: grid.ndim]
    out = create_n5(path, dataset, grid, image.dtype, chunks, downsampling_factors)
    for box in tiles(grid.shape, chunks):
        out.write([s.start for s in box], np.asarray(array[box]))
    return out


def _levels(dataset: Dataset) -> list[Location]:
    folder = dataset.location
    if "dimensions" in n5_attributes(folder):
        return [folder]
    numbered = {}
    for name in folder.names():
        match = _LEVEL_NAME.fullmatch(name)
        if match and "dimensions" in n5_attributes(folder / name):
            numbered[int(match[1])] = folder / name
    if not numbered:
        raise no_dataset(folder, dataset.root, "an N5 dataset")
    return [numbered[k] for k in sorted(numbered)]


def _shape(folder: Location) -> tuple[int, ...]:
    shape = tuple(int(n) for n in n5_attributes(folder)["dimensions"])
    if len(shape) not in (2, 3):
        raise InputError(f"N5 images of 2 or 3 axes are read; {folder} has shape {shape}")
    return shape


def _stated(folder: Location, dataset: Dataset) -> _Stated:
    """What the attributes of a dataset and of the groups around it say of its voxels."""
    chain = [n5_attributes(f) for f in Dataset(folder, dataset.root, "n5").lineage]
    keys = ("pixelResolution", "resolution")
    resolution = next((a[key] for a in chain for key in keys if a.get(key)), None)
    if resolution is None:
        return _Stated(None, None)
    unit = None
    if isinstance(resolution, dict):
        resolution, unit = resolution.get("dimensions", ()), resolution.get("unit")
    ndim = len(_shape(folder))
    factors = _factors(folder, chain) or (1,) * ndim
    if not len(resolution) == len(factors) == ndim:
        raise InputError(
            f"{folder} has {ndim} axes, but its pixelResolution is {resolution} and its "
            f"downsamplingFactors {factors}: correct its attributes"
        )
    spacing = tuple(float(r) * float(f) for r, f in zip(resolution, factors, strict=True))
    return _Stated(spacing, unit)


def _factors(folder: Location, chain: list[dict[str, Any]]) -> Sequence[float] | None:
    own = chain[0].get("downsamplingFactors")
    level = _LEVEL_NAME.fullmatch(folder.name)
    if own or not level:
        return own
    scales = next((a["scales"] for a in chain[1:] if a.get("scales")), ())
    return scales[int(level[1])] if int(level[1]) < len(scales) else None


def _describe(grid: Grid, factors: tuple[int, ...]) -> dict[str, Any]:
    """The attributes that tell N5 readers the spacing."""
    if grid.axes != default_axes(grid.ndim):
        raise InputError(
            f"N5 images have axes {default_axes(grid.ndim)}; got {grid.axes}. Reorder the image"
        )
    if not np.allclose(grid.direction, np.eye(grid.ndim)):
        raise InputError("N5 cannot hold a rotated grid; write OME-Zarr instead")
    if len(factors) != grid.ndim:
        raise InputError(f"downsampling_factors needs {grid.ndim} numbers; got {factors}")
    spacing = grid.in_unit("micrometer").spacing
    fine = [s / f for s, f in zip(spacing, factors, strict=True)]
    return {
        "pixelResolution": {"dimensions": fine, "unit": "um"},
        "downsamplingFactors": list(factors),
    }


def _add_attributes(folder: Location, attributes: dict[str, Any]) -> None:
    content = json.dumps({**n5_attributes(folder), **attributes}, indent=2)
    (folder / "attributes.json").write_bytes(content.encode())


def _box(start: Sequence[int], stop: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
