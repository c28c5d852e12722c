"""The only readers and writers: stores and files to and from images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from itkstream.errors import InputError
from itkstream.geometry import Image, joined_channels
from itkstream.io.images.channels import Channels, several_channels
from itkstream.io.images.crop import crop_slices, crop_text
from itkstream.io.images.locate import locate
from itkstream.io.images.selection import Opened, Selection

if TYPE_CHECKING:
    from itkstream.io.images.options import ImageOptions
    from itkstream.io.images.stores.containers import open_container
    from itkstream.io.images.stores.n5 import create_n5, write_n5
    from itkstream.io.images.stores.ome_zarr_writer import create_ome_zarr, write_pyramid

__all__ = [
    "ImageOptions",
    "create_n5",
    "create_ome_zarr",
    "open_container",
    "open_image",
    "open_series",
    "write_n5",
    "write_pyramid",
]


def __dir__() -> list[str]:
    return __all__


# Formats and their libraries are loaded when they are first used: importing all takes a second.
_HOMES = {
    "ImageOptions": "itkstream.io.images.options",
    "create_n5": "itkstream.io.images.stores.n5",
    "create_ome_zarr": "itkstream.io.images.stores.ome_zarr_writer",
    "open_container": "itkstream.io.images.stores.containers",
    "write_n5": "itkstream.io.images.stores.n5",
    "write_pyramid": "itkstream.io.images.stores.ome_zarr_writer",
}
_READERS = {
    "itk": ("itkstream.io.images.files.itk_images", "open_itk"),
    "n5": ("itkstream.io.images.stores.n5", "open_n5"),
    "npy": ("itkstream.io.images.plain.npy_arrays", "open_npy"),
    "planes": ("itkstream.io.images.plain.plane_folders", "open_planes"),
    "tiff": ("itkstream.io.images.files.tiff_images", "open_tiff"),
    "zarr": ("itkstream.io.images.stores.ome_zarr", "open_zarr"),
}
_SERIES = ("channel", "time", "level")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def open_image(
    path: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    level: int | None = None,
    spacing: float | Sequence[float] | None = None,
    channel: Channels = None,
    time: int = 0,
    unit: str | None = None,
    voxel_spacing: float | Sequence[float] | None = None,
    axes: str | Sequence[str] | None = None,
    crop: str | Sequence[slice] | None = None,
) -> Image:
    """Open an image without reading its voxels.

    N5 (axes x, y, z), Zarr 2 and 3, OME-Zarr 0.1 to 0.6 (axes as stored), NIfTI, NRRD and MetaImage
    files (axes z, y, x, as numpy has them; ITK's direction and origin kept), TIFF, with the
    metadata of OME-TIFF, ImageJ, Zeiss LSM, MetaMorph and Micro-Manager (voxels and axes as
    tifffile has them), folders of TIFF files of one plane each, in the order of the numbers in
    their names, and numpy's ``.npy``. The data of the image slice lazily and pickle.

    TIFF is read strip by strip or tile by tile, ``.npy`` and uncompressed NIfTI, NRRD and MetaImage
    files region by region; a process that slices a compressed one of these holds all of it in
    memory, so convert large ones to OME-Zarr. Where a strip of compressed TIFF is a whole plane, it
    is decoded for every block that touches it, 0.2 s for 72 MB: save large ones in tiles first.

    Parameters
    ----------
    path : str or PathLike
        A file, or a dataset in a container: ``fix.n5/lowres``, ``brain.ome.zarr``,
        ``brain.ome.zarr/2``. Containers may lie in an object store: ``s3://bucket/fix.n5/lowres``,
        ``gs://bucket/brain.ome.zarr``.
    dataset : str, optional
        The dataset inside the container, if `path` does not name it; of a TIFF file that holds
        several images, the number or the name of one.
    level : int, optional
        Resolution level of a multiscale image; default 0, the finest.
    spacing : float or sequence of float, optional
        Choose the level whose voxel spacing is nearest to this one, in µm per array
        axis.
    channel : int, str or sequence, optional
        Channel, counted from 0, or by the name that OME metadata, Zeiss or Micro-Manager give it.
        Of several channels, none needs to be said where a single one is named after a stain of
        nuclei: DAPI, Hoechst, DRAQ5, DRAQ7, or nuclei. A list opens the first of these, with the
        others as `Image.others`, for `itkstream.register`: ``["DAPI", "GFP"]``, or, with weights,
        ``[("DAPI", 2), ("GFP", 1)]``.
    time : int
        Time point, counted from 0.
    unit : str, optional
        Unit of length of the file's numbers, whatever it claims. Where it claims none, they count
        as µm. NIfTI that claims any comes in millimeters, as ITK has it, and in its own
        unit where `voxel_spacing` is given.
    voxel_spacing : float or sequence of float, optional
        Voxel spacing per array axis of the opened image, in the unit of the file, whatever it
        claims; needed where it claims none for one of the axes. The resolution tags of TIFF count
        as a claim where they are finer than any printer's (10 µm), in files that say nothing else.
    axes : str or sequence of str, optional
        Names of the stored axes in the order numpy has them, whatever the file claims: "zyx",
        "czyx", "tczyx".
    crop : str or sequence of slice, optional
        The part of the opened image that is wanted, per axis, as slices of voxels or in words:
        "100:400,0:200um,:" is voxels 100 to 399, the first 200 µm, and all. Its grid lies where it
        lies in the whole.

    Returns
    -------
    Image
        Lazy data and their grid.

    Raises
    ------
    MissingDataError
        Where there is no such file or dataset; the message lists the datasets that are there.
    UnstatedChannelError
        Where there are several channels, and nothing says which is meant; the message lists them.
    InputError
        Where the format is unknown, the spacing is unknown, or level, channel or time are not
        there.

    Examples
    --------
    >>> image = open_image("fix.n5/lowres")  # doctest: +SKIP
    >>> image.spacing  # doctest: +SKIP
    (1.84, 1.84, 1.68)
    """
    part = None if crop is None else crop_text(crop)
    selection = Selection(level, spacing, None, time, unit, voxel_spacing, axes, part)
    return _open_channels(path, dataset, channel, selection).image


def open_series(
    path: str | os.PathLike[str], axis: Literal["channel", "time", "level"], **selection: Any
) -> list[Image]:
    """Open all channels, all time points, or all resolution levels of an image.

    Parameters
    ----------
    path : str or PathLike
        As for `open_image`.
    axis : {'channel', 'time', 'level'}
        What there is one image of.
    **selection
        Further arguments of `open_image`.

    Returns
    -------
    list of Image
        In order, levels from fine to coarse; one for an image without such an axis.

    Raises
    ------
    MissingDataError
        As `open_image`; also where one of those that the metadata state is not there.
    InputError
        As `open_image`, or for another axis.

    Examples
    --------
    >>> genes = itkstream.io.open_series("examples/round1.ome.zarr", "channel")
    >>> [image.channel for image in genes]
    ['DAPI', 'GeneA', 'GeneB']
    """
    if axis not in _SERIES:
        raise InputError(f"axis must be 'channel', 'time' or 'level'; got {axis!r}")
    dataset = selection.pop("dataset", None)
    if axis == "level" and selection.get("crop") is not None:
        raise InputError("a crop is of one level: open the levels without it, and slice them")

    def open_one(number: int) -> Opened:
        said = {**selection, axis: number}
        return _open_channels(path, dataset, said.pop("channel", None), Selection(**said))

    first = open_one(0)
    return [first.image, *(open_one(k).image for k in range(1, getattr(first, axis)))]


def _open_channels(
    path: str | os.PathLike[str], dataset: str | None, channel: Channels, selection: Selection
) -> Opened:
    """Open a channel of an image, with further ones where several are meant."""
    if not isinstance(channel, (list, tuple)):
        return _open(path, dataset, replace(selection, channel=channel))
    wanted = several_channels(channel)
    opened = [_open(path, dataset, replace(selection, channel=name)) for name, _ in wanted]
    images = [
        replace(one.image, weight=weight) for one, (_, weight) in zip(opened, wanted, strict=True)
    ]
    numbers = [image.recipe.get("channel", 0) for image in images]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{path}: one channel is named twice in {channel!r}")
    said = [
        number if weight is None else [number, weight]
        for number, (_, weight) in zip(numbers, wanted, strict=True)
    ]
    joined = joined_channels(images)
    return replace(opened[0], image=replace(joined, recipe={**joined.recipe, "channel": said}))


def _open(path: str | os.PathLike[str], dataset: str | None, selection: Selection) -> Opened:
    """Open an image with the reader of its format."""
    found = locate(path, dataset)
    home, reader = _READERS[found.format]
    try:
        opened: Opened = getattr(import_module(home), reader)(found, selection)
    except InputError as error:
        if str(found.location) in str(error):
            raise
        # What does not know whose numbers it looked at, as the lattice does not.
        raise type(error)(f"{found.location}: {error}") from error
    recipe = {"path": str(found.location), **opened.selection.stated()}
    if opened.time > 1:
        recipe["time"] = selection.time
    image = opened.image
    if selection.crop is not None:
        image = image[crop_slices(selection.crop, image.grid)]
    return replace(opened, image=replace(image, recipe=recipe))
