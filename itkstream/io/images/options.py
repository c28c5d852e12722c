"""Options of an image file: facts that it does not state, and the part of it that is meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from itkstream.errors import InputError
from itkstream.geometry import Image
from itkstream.io.images.channels import Channels, several_channels
from itkstream.io.images.crop import crop_text
from itkstream.io.images.selection import Selection

__all__ = ["ImageOptions"]


@dataclass(frozen=True)
class ImageOptions:
    """Options of an image, on the command line, in YAML, or in Python.

    Parameters
    ----------
    spacing : float or sequence of float, optional
        Distance of neighbouring voxels, one number or one per axis of the opened image, whatever
        the file states; `open_image` calls it ``voxel_spacing``.
    unit : str, optional
        Unit of the numbers of the file and of `spacing`, whatever the file states.
    axes : str or sequence of str, optional
        Names of the stored axes, slowest first, whatever the file states: "zyx", "tczyx".
    channel : int, str or sequence, optional
        Channel, counted from 0, or its name; `open_image` says where it need not be said, and how
        several are given.
    time : int
        Time point, counted from 0.
    level : int, optional
        Resolution level; 0, the finest, where it is not said.
    crop : str, optional
        The part of the image that is wanted, per axis of the opened image, in voxels or µm:
        "100:400,0:200um,:".

    Raises
    ------
    InputError
        For a value that cannot be.

    Examples
    --------
    >>> ImageOptions(spacing=(2, 0.5, 0.5), channel=1).open("round1.tif")  # doctest: +SKIP
    """

    spacing: float | Sequence[float] | None = None
    unit: str | None = None
    axes: str | Sequence[str] | None = None
    channel: Channels = None
    time: int = 0
    level: int | None = None
    crop: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel", _channel(self.channel))
        object.__setattr__(self, "time", _counted("time", self.time))
        if self.level is not None:
            object.__setattr__(self, "level", _counted("level", self.level))
        for name in ("unit", "axes"):
            object.__setattr__(self, name, _text(name, getattr(self, name)))
        object.__setattr__(self, "spacing", _numbers(self.spacing))
        if self.crop is not None:
            object.__setattr__(self, "crop", crop_text(self.crop))
        Selection(unit=self.unit, axes=self.axes)

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as keywords of `itkstream.open_image`."""
        return {
            "level": self.level,
            "channel": self.channel,
            "time": self.time,
            "unit": self.unit,
            "voxel_spacing": self.spacing,
            "axes": self.axes,
            "crop": self.crop,
        }

    def open(self, path: str | os.PathLike[str]) -> Image:
        """Open an image, as `itkstream.open_image` does.

        Parameters
        ----------
        path : path
            A file, or a dataset in a container.

        Returns
        -------
        Image
            Lazy.

        Raises
        ------
        MissingDataError, InputError
            As `itkstream.open_image`.

        Examples
        --------
        >>> options = itkstream.ImageOptions(channel="GeneA")
        >>> options.open("examples/round1.ome.zarr").channel
        'GeneA'
        """
        from itkstream.io import open_image

        return open_image(path, **self.arguments)


def _channel(given: Any) -> Channels:
    if given is None or (isinstance(given, str) and given.strip()):
        return given
    if isinstance(given, (list, tuple)):
        return tuple(n if w is None else (n, w) for n, w in several_channels(given))
    return _counted("channel", given, "a name, or a whole number")


def _counted(name: str, given: Any, words: str = "a whole number") -> int:
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 0:
        raise InputError(f"{name} must be {words}, counted from 0; got {given!r}")
    return int(given)


def _text(name: str, given: Any) -> str | None:
    if isinstance(given, (list, tuple)) and all(isinstance(part, str) for part in given):
        given = "".join(given)
    if given is not None and not isinstance(given, str):
        raise InputError(f"{name} must be a word; got {given!r}")
    return given


def _numbers(given: Any) -> float | tuple[float, ...] | None:
    if given is None:
        return None
    try:
        numbers = np.asarray(given)
    except ValueError:
        numbers = np.array(None)
    real = numbers.dtype.kind in "iuf" and numbers.ndim < 2 and numbers.size
    if not real or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise InputError(
            f"spacing must be a positive number, or one per axis of the image; got {given!r}"
        )
    return tuple(map(float, numbers)) if numbers.ndim else float(numbers)
