"""The door: a registration, or any transform and images, served until it is told to stop."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from itkstream.apply.products import Series
from itkstream.errors import InputError, ItkstreamError, MissingDataError
from itkstream.geometry import Grid, Image, Transform
from itkstream.io import open_image
from itkstream.io.images.units import itk_unit
from itkstream.io.storage.attributes import read_object
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.files import read_transform
from itkstream.io.transforms.ngff.store import stored_axes
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.numerics.threads import get_threads, using_threads
from itkstream.registration.folder import (
    ERROR,
    find_registration,
    read_report,
    registered_grids,
    registered_image,
    registered_options,
    registered_path,
)
from itkstream.serving.documents import Documents
from itkstream.serving.http_server import HttpServer
from itkstream.serving.images import ServedImage, contrast_of
from itkstream.serving.neuroglancer import VIEWER, link_to, unseen_by_neuroglancer
from itkstream.serving.pyramids import levels_to_view
from itkstream.serving.tiles import TileCache
from itkstream.serving.warped import tile_of, warped_levels

__all__ = ["ImageServer", "serve"]

logger = logging.getLogger(__name__)

Pathlike: TypeAlias = str | os.PathLike[str]

_MAGENTA = "#ff00ff"
# The moving image's one channel, or each of several.
_COLOURS = ("#00ff00", "#00ffff", "#ffff00", "#ff8000", "#ffffff")
_NUMBERS = "report.json"


class ImageServer:
    """Images over HTTP, as virtual OME-Zarr, until it is closed; a ``with`` block closes it.

    Parameters
    ----------
    images : dict of ServedImage
        What is served, under the names of their groups.
    host, port : str, int
        Where it listens; 0 for any free port.
    viewer : str
        Address of the neuroglancer that may read from it.
    cache_bytes : int
        Room for chunks that are kept.

    Examples
    --------
    >>> server = itkstream.serve("registered")
    >>> server.link.startswith("https://neuroglancer")
    True
    >>> server.close()
    """

    def __init__(
        self,
        images: dict[str, ServedImage],
        host: str = "127.0.0.1",
        port: int = 0,
        viewer: str = VIEWER,
        cache_bytes: int = 512_000_000,
    ) -> None:
        self._images, self._viewer = images, viewer
        self._closing = ExitStack()
        # Tiles are computed beside each other, each on one thread.
        self._tiles = TileCache(cache_bytes, get_threads())
        self._http = HttpServer(Documents(images, self._tiles).find, host, port, viewer)
        self._closing.callback(self._tiles.close)
        self._closing.callback(self._http.close)
        self._closing.enter_context(using_threads(1))

    @property
    def address(self) -> str:
        """Address of the server: ``http://127.0.0.1:`` and the port."""
        return self._http.address

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses of the images, each an OME-Zarr 0.5."""
        return tuple(f"{self.address}/{group}" for group in self._images)

    @property
    def link(self) -> str:
        """A link that opens all of them in neuroglancer."""
        return link_to(self.address, self._images, self._viewer)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the chunks that are kept now."""
        return self._tiles.kept_bytes

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of the images whose voxel type neuroglancer does not read."""
        return tuple(i.name for i in self._images.values() if unseen_by_neuroglancer(i))

    def wait(self) -> None:
        """Wait until it is closed, or Ctrl-C comes.

        Examples
        --------
        >>> server = itkstream.serve("registered")
        >>> server.wait()  # doctest: +SKIP
        >>> server.close()
        """
        self._http.wait()

    def close(self) -> None:
        """Serve no more.

        Examples
        --------
        >>> server = itkstream.serve("registered")
        >>> server.close()
        """
        self._closing.close()

    def __enter__(self) -> ImageServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def serve(
    transform: Pathlike | Transform,
    moving: Pathlike | Image | Series | None = None,
    fixed: Pathlike | Image | None = None,
    settings: WarpSettings | None = None,
    *,
    labels: bool = False,
    host: str = "127.0.0.1",
    port: int = 0,
    viewer: str = VIEWER,
    cache_bytes: int = 512_000_000,
) -> ImageServer:
    """Serve the moving image, aligned as it is looked at, to neuroglancer and readers of OME-Zarr.

    Nothing is written: chunks of 64 voxels an axis are computed when they are asked for, and those
    asked for last are kept in memory. The finest level has the bits that `itkstream apply` writes.
    Coarser ones are resampled on their own lattices, from the level of the moving image that has
    about as many voxels; where its file has none, groups of voxels are averaged as they are
    looked at, which for the coarsest reads all of the image. The fixed image is served as it is,
    and so is the error map of a registration.

    Only programs of this machine, and in a browser only the page of `viewer`, can read: there is
    nothing but the images, under ``fixed.ome.zarr``, ``aligned.ome.zarr`` and ``error.ome.zarr``.
    While it runs, each kernel of this process computes on one thread.

    Parameters
    ----------
    transform : path or Transform
        A folder that `register` wrote, a transform file, or a transform, from fixed to moving
        points.
    moving : path, Image or Series, optional
        Any image in the space of the moving one; a `Series` of channels becomes a layer each.
        Default the registered one.
    fixed : path or Image, optional
        The image on whose voxels it is shown. Default the registered one.
    settings : WarpSettings, optional
        Interpolation, background and type; default linear, or nearest for labels.
    labels : bool
        Whether voxels are labels, which are never mixed.
    host : str
        Address to listen on; any but that of this machine lets others of the network read.
    port : int
        Port to listen on; 0 for any free one.
    viewer : str
        Address of a neuroglancer.
    cache_bytes : int
        Room for chunks that are kept.

    Returns
    -------
    ImageServer
        It runs until it is closed: `ImageServer.link` opens it in neuroglancer.

    Raises
    ------
    InputError
        For a transform without images, images of other dimensions, a voxel type that cannot be
        resampled, or a port that is taken.
    MissingDataError
        Where an image or the transform is not there.

    Examples
    --------
    >>> server = itkstream.serve("registered")
    >>> [url.rpartition("/")[2] for url in server.urls]
    ['fixed.ome.zarr', 'aligned.ome.zarr', 'error.ome.zarr']
    >>> server.close()
    """
    opened = _open(transform, moving, fixed)
    settings = settings or WarpSettings("nearest" if labels else "linear", background=None)
    images = _served_fixed(opened) | _served_moving(opened, settings, labels)
    return ImageServer(images | _served_error(opened), host, port, viewer, cache_bytes)


@dataclass(frozen=True, eq=False)
class _Opened:
    """All that a server is made of; the fixed image is None where it is gone."""

    folder: Location | None
    transform: Transform
    grid: Grid
    fixed: Image | None
    moving: Image | Series
    is_registered: bool

    def contrast(self, side: str, image: Image) -> tuple[float, float]:
        """The contrast of the report for the images that were registered; else a look tells."""
        if self.folder is None or not self.is_registered:
            return contrast_of(image)
        numbers = read_object(self.folder / _NUMBERS)
        if numbers is None:
            return contrast_of(image)
        low, high = numbers["contrast"][side]
        return float(low), float(high)


def _open(
    given: Pathlike | Transform,
    moving: Pathlike | Image | Series | None,
    fixed: Pathlike | Image | None,
) -> _Opened:
    folder = None if isinstance(given, Transform) else _folder_of(given)
    shown = _open_fixed(folder, fixed)
    grid = registered_grids(str(folder))[0] if shown is None else shown.grid
    transform = given
    if not isinstance(transform, Transform):
        transform = read_transform(folder or transform, unit=itk_unit(grid))
    moved = _open_moving(given, folder, moving)
    return _Opened(folder, transform, grid, shown, moved, moving is None and fixed is None)


def _folder_of(given: Pathlike) -> Location | None:
    """The registration folder that a path leads to; None for any other transform."""
    try:
        return find_registration(given)
    except MissingDataError:
        return None


def _open_fixed(folder: Location | None, fixed: Pathlike | Image | None) -> Image | None:
    """The image on whose voxels all is shown; None where that of a registration is gone."""
    if fixed is not None:
        return fixed if isinstance(fixed, Image) else open_image(fixed)
    if folder is None:
        raise InputError(
            "a transform alone does not say on which voxels: give a fixed image (--like IMAGE)"
        )
    try:
        return registered_image(folder, "fixed")
    except ItkstreamError as error:
        logger.warning("%s; the aligned image is shown without it", error)
        return None


def _open_moving(
    given: Pathlike | Transform, folder: Location | None, moving: Pathlike | Image | Series | None
) -> Image | Series:
    """The image that is moved: of a registration as a whole, and at full resolution."""
    if isinstance(moving, (Image, Series)):
        return moving
    if moving is None:
        if folder is None:
            raise InputError(
                "a transform alone does not say which image it moves: give one (MOVING)"
            )
        if not read_report(folder)["moving"].get("opened"):
            return registered_image(folder, "moving")
        given, moving = folder, registered_path(folder, "moving")
    if isinstance(given, Transform):
        return open_image(moving)
    return registered_options(given, str(moving)).open(moving)


def _served_fixed(opened: _Opened) -> dict[str, ServedImage]:
    """The fixed image as it is."""
    if opened.fixed is None:
        return {}
    levels = [_as_stored(level) for level in levels_to_view(opened.fixed)]
    contrast = opened.contrast("fixed", levels[0])
    return {
        "fixed.ome.zarr": ServedImage("fixed", tuple(levels), colour=_MAGENTA, contrast=contrast)
    }


def _served_moving(opened: _Opened, settings: WarpSettings, labels: bool) -> dict[str, ServedImage]:
    """The moving image, or each channel of it, aligned."""
    several = isinstance(opened.moving, Series)
    images = opened.moving.images if isinstance(opened.moving, Series) else (opened.moving,)
    served = {}
    for number, image in enumerate(images):
        name = f"aligned-{number}" if several else "aligned"
        levels = warped_levels(image, opened.transform, opened.grid, settings, labels=labels)
        served[f"{name}.ome.zarr"] = ServedImage(
            (several and image.channel) or name,
            tuple(levels),
            tile_of(opened.transform, opened.grid, settings),
            _COLOURS[number % len(_COLOURS)],
            (0.0, 1.0) if labels else opened.contrast("moving", _as_stored(image)),
            labels,
        )
    return served


def _served_error(opened: _Opened) -> dict[str, ServedImage]:
    """The error map of a registration, hidden at first."""
    if opened.folder is None or not (opened.folder / ERROR).exists():
        return {}
    error = open_image(opened.folder / ERROR, axes=stored_axes(opened.grid)).in_unit("micrometer")
    radii = error.read()
    most = float(np.nanmax(radii)) if np.isfinite(radii).any() else 1.0
    shown = ServedImage(
        "error (µm)", (error,), contrast=(0.0, most), colour="#ffffff", visible=False
    )
    return {"error.ome.zarr": shown}


def _as_stored(image: Image) -> Image:
    return image.reorder(stored_axes(image.grid)).in_unit("micrometer")
