"""The look of a written image in viewers: labels, colours and intensities of its channels."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from itkstream.io import open_series
from itkstream.io.images.stores.ngff_metadata import ChannelLook, hexadecimal
from itkstream.io.images.stores.ome_zarr_writer import name_channels

__all__ = ["Colour", "show_channels", "spread_hues"]

Colour: TypeAlias = tuple[float, float, float]
"""Red, green and blue, from 0 to 1."""

# Percentiles of the coarsest level that viewers show black and bright.
_SHOWN = (0.5, 99.8)


def spread_hues(names: Sequence[str]) -> list[tuple[str, Colour, bool]]:
    """Channels with evenly spread hues, which add up to white; all are shown."""
    hues = [colorsys.hsv_to_rgb(k / len(names), 1.0, 1.0) for k in range(len(names))]
    labels = [name or str(number) for number, name in enumerate(names)]
    return [(label, hue, True) for label, hue in zip(labels, hues, strict=True)]


def show_channels(
    path: str | os.PathLike[str],
    channels: Sequence[tuple[str, Colour, bool]],
    axes: Sequence[str],
) -> None:
    """Tell viewers the labels and colours of a complete image, and which channels to show first.

    `axes` are those of the stored arrays; intensities are those of the coarsest level.
    """
    looks = []
    for number, (label, colour, active) in enumerate(channels):
        coarsest = open_series(path, "level", channel=number, axes=[*axes])[-1]
        window = _window_of(coarsest.read())
        looks.append(ChannelLook(label, hexadecimal(colour), window, active))
    name_channels(path, looks)


def _window_of(voxels: NDArray[Any]) -> tuple[float, float, float, float]:
    """The least and the greatest intensity there may be, and those shown black and bright."""
    low, high = (float(v) for v in np.percentile(voxels[np.isfinite(voxels)], _SHOWN))
    if voxels.dtype.kind == "f":
        least, most = float(np.nanmin(voxels)), float(np.nanmax(voxels))
    else:
        least, most = 0.0, float(np.iinfo(voxels.dtype).max) if voxels.dtype != bool else 1.0
    return least, most, low, max(high, low + 1.0)
