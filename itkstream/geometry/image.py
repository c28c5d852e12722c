"""An image: an array, in memory or not, and the grid its voxels lie on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry.grid import Grid
from itkstream.geometry.lazy_array import (
    ArrayView,
    chunk_shape_of,
    complete_key,
    span_slice,
    transposed,
)
from itkstream.geometry.shown.html import card

__all__ = ["ChannelPair", "Image", "joined_channels"]


@dataclass(frozen=True, repr=False)
class Image:
    """Voxels and where they lie.

    Parameters
    ----------
    data : ArraySource
        numpy, dask or stored array of 2 or 3 axes; never read before it is asked for.
    grid : Grid
        Its lattice; the shapes must agree.
    name : str
        How messages call the image; a path, say.
    recipe : dict
        The arguments of `itkstream.open_image` that give the image again; empty where it was made
        in another way.
    channel : str
        What its file calls the channel; "" where it has no name.
    others : tuple of Image
        Further channels of the same voxels, which `itkstream.register` compares as well.
    weight : float, optional
        How much the channel counts there beside others; as much as any where it is None.

    Raises
    ------
    InputError
        Where the shapes of data and grid differ, or another channel lies on another grid.

    Examples
    --------
    >>> grid = itkstream.Grid((4, 20, 30), (2, 0.5, 0.5), axes=("z", "y", "x"))
    >>> image = itkstream.Image(np.zeros((4, 20, 30), np.uint16), grid, "empty")
    >>> image[:2]
    Image(zyx 2 x 20 x 30, 2 x 0.5 x 0.5 micrometer, uint16, 'empty')
    >>> image.to_xarray().dims
    ('z', 'y', 'x')
    """

    data: Any
    grid: Grid
    name: str = ""
    recipe: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    channel: str = field(default="", repr=False, compare=False)
    others: tuple[Image, ...] = field(default=(), repr=False, compare=False)
    weight: float | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if tuple(self.data.shape) != self.grid.shape:
            raise InputError(
                f"data of shape {tuple(self.data.shape)} do not fit a grid of shape "
                f"{self.grid.shape}"
            )
        for other in self.others:
            if other.grid != self.grid:
                raise InputError(
                    f"all channels of an image lie on the same voxels; those of {self.name!r} are "
                    f"{self.grid}, and those of {other.name!r} {other.grid}: resample one of them, "
                    "or register by one channel"
                )

    @property
    def channels(self) -> tuple[Image, ...]:
        """All channels, each as an image of its own; of most images, the image."""
        return (replace(self, others=()), *self.others) if self.others else (self,)

    def __repr__(self) -> str:
        named = f", {self.name!r}" if self.name else ""
        return f"Image({self.grid}, {self.dtype}{named})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.grid.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.grid.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type."""
        return np.dtype(self.data.dtype)

    @property
    def chunk_shape(self) -> tuple[int, ...] | None:
        """Voxels per axis of the chunks in which they are stored or computed; None in memory."""
        return chunk_shape_of(self.data)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel spacing per axis, in the grid's unit."""
        return self.grid.spacing

    def __getitem__(self, key: Any) -> Image:
        """A part of the image: slices, one per axis, ``...`` allowed; lazy where the data are.

        A step makes the lattice coarser; a negative one turns the direction of its axis.
        """
        spans = _spans(key, self.shape)
        cut = tuple(map(span_slice, spans))
        # numpy and dask slice for themselves.
        slices_itself = hasattr(self.data, "__array_function__")
        data = self.data[cut] if slices_itself else ArrayView.of(self.data).crop(cut)
        others = tuple(other[key] for other in self.others)
        grid = self.grid.subsample(spans)
        return Image(data, grid, self.name, others=others, weight=self.weight)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The voxels."""
        return np.array(self.data, dtype, copy=copy)

    def read(self) -> NDArray[Any]:
        """Load the voxels.

        Returns
        -------
        ndarray
            The whole image in memory.

        Examples
        --------
        >>> type(fixed.read()).__name__
        'ndarray'
        """
        return np.asarray(self.data)

    def to_xarray(self) -> Any:
        """The image as an xarray.DataArray, for which xarray must be installed.

        Returns
        -------
        xarray.DataArray
            With the names of the axes as dimensions, and the places of the voxels in µm as
            coordinates, whose attribute ``units`` says so. Arrays of numpy and dask stay what they
            are; of stored ones is read what is used.

        Raises
        ------
        InputError
            Where xarray is not installed, or the axes lie aslant in space.

        Examples
        --------
        >>> labelled = fixed.to_xarray()
        >>> labelled.dims, labelled.coords["z"].attrs
        (('z', 'y', 'x'), {'units': 'micrometer'})
        """
        from itkstream.geometry.xarray_bridge import to_data_array

        return to_data_array(self.data, self.grid, self.channel or self.name)

    def to_sitk(self) -> Any:
        """The image as a SimpleITK.Image, in memory.

        Returns
        -------
        SimpleITK.Image
            Its spacing and origin are in the unit of the grid.

        Examples
        --------
        >>> fixed.to_sitk().GetSize() == fixed.shape[::-1]
        True
        """
        from itkstream.geometry.itk_bridge import to_itk_image

        return to_itk_image(self.read(), self.grid)

    def _repr_html_(self) -> str:
        """Name, grid and the middle plane, as Jupyter shows them."""
        from itkstream.geometry.shown.pictures import thumbnail

        named = [text for text in (self.name, self.channel) if text]
        return card("Image", (*named, f"{self.grid}, {self.dtype}"), picture=thumbnail(self))

    def reorder(self, axes: Sequence[str]) -> Image:
        """The image with its array axes in another order; reads nothing.

        Parameters
        ----------
        axes : sequence of str
            The wanted order of the axis names.

        Returns
        -------
        Image
            Data and grid reordered together.

        Examples
        --------
        >>> fixed.reorder("xyz").grid.axes
        ('x', 'y', 'z')
        """
        if tuple(axes) == self.grid.axes:
            return self
        order = self.grid.axis_order(axes)
        others = tuple(other.reorder(axes) for other in self.others)
        data, grid = transposed(self.data, order), self.grid.reorder(axes)
        return replace(self, data=data, grid=grid, others=others)

    def in_unit(self, unit: str) -> Image:
        """The image with its lengths in another unit.

        Parameters
        ----------
        unit : str
            A length unit, see `Grid`.

        Returns
        -------
        Image
            The same data on the converted grid.

        Examples
        --------
        >>> fixed.in_unit("millimeter").spacing
        (0.0012, 0.001, 0.001)
        """
        others = tuple(other.in_unit(unit) for other in self.others)
        return replace(self, grid=self.grid.in_unit(unit), others=others)


@dataclass(frozen=True, eq=False)
class ChannelPair:
    """One channel of both images, and its weight beside the pair that leads.

    Parameters
    ----------
    fixed, moving : Image
        The images, each on the grid of the other channels.
    weight : float
        How much it counts, where the pair that leads counts for 1.
    sought : (Image or None, Image or None)
        Where key points are sought in both images, masks on their grids; None for everywhere.

    Examples
    --------
    >>> itkstream.geometry.ChannelPair(fixed, moving, weight=2.0).weight
    2.0
    """

    fixed: Image
    moving: Image
    weight: float = 1.0
    sought: tuple[Image | None, Image | None] = (None, None)

    def __getitem__(self, box: Any) -> ChannelPair:
        """A part of the fixed image, with all of the moving one."""
        here, there = self.sought
        part = None if here is None else here[box]
        return replace(self, fixed=self.fixed[box], sought=(part, there))


def joined_channels(images: Sequence[Image]) -> Image:
    """The first of some images of the same voxels, with the others as its further channels.

    Parameters
    ----------
    images : sequence of Image
        The channels, with one grid; those that an image has already come after it.

    Returns
    -------
    Image
        For `itkstream.register`.

    Raises
    ------
    InputError
        Where there are none, or their grids differ.

    Examples
    --------
    >>> genes = itkstream.io.open_series("examples/round1.ome.zarr", "channel")
    >>> [image.channel for image in itkstream.geometry.joined_channels(genes).channels]
    ['DAPI', 'GeneA', 'GeneB']
    """
    if not images:
        raise InputError("there are no channels: give at least one image")
    first, *rest = (channel for image in images for channel in image.channels)
    return replace(first, others=tuple(rest))


def _spans(key: Any, shape: tuple[int, ...]) -> tuple[range, ...]:
    cuts = [cut for cut in complete_key(key, len(shape)) if cut is not Ellipsis]
    others = [type(cut).__name__ for cut in cuts if not isinstance(cut, slice)]
    if others:
        raise InputError(
            "an image keeps its axes and is cut by slices, such as image[5:6, :, ::2]; got "
            f"{', '.join(others)}: image.data[5] is a plane of voxels"
        )
    spans = tuple(range(n)[cut] for cut, n in zip(cuts, shape, strict=True))
    if not all(map(len, spans)):
        raise InputError(f"the part {key!r} of an image of shape {shape} holds no voxel")
    return spans
