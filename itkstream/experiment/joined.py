"""The joined image: all channels of all rounds on the voxels of the reference, block by block."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import partial

import dask.array as da
import numpy as np
from attrs import frozen

from itkstream.apply.products import compute_pyramid
from itkstream.apply.resampling import prepare_apply_to_series
from itkstream.compute.execute import open_or_create, store
from itkstream.compute.progress import Progress
from itkstream.errors import InputError
from itkstream.experiment.rounds.manifest import OpenedRound
from itkstream.geometry import Grid, Transform
from itkstream.io import create_ome_zarr
from itkstream.io.images.looks import Colour, show_channels
from itkstream.io.images.stores.ngff_metadata import hexadecimal
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.ngff.store import stored_axes
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.workers import Resources

__all__ = ["JoinedChannel", "JoinedRound", "joined_channels", "joined_type", "write_joined"]


@frozen(eq=False)
class JoinedRound:
    """A round, and the transform from points of the reference to points of it."""

    opened: OpenedRound
    transform: Transform


@frozen
class JoinedChannel:
    """A channel of the joined image: its round, its name in the file, and its colour.

    The colour is red, green and blue from 0 to 1; channels that were `registered` are shown first.
    """

    round: str
    name: str
    colour: Colour
    registered: bool

    @property
    def label(self) -> str:
        """Round and name, as viewers show it."""
        return f"{self.round}:{self.name}"

    @property
    def hexadecimal(self) -> str:
        """The colour as NGFF and CSS write it, without a sign before."""
        return hexadecimal(self.colour)


def joined_channels(rounds: Sequence[OpenedRound]) -> list[JoinedChannel]:
    """Name and colour the channels in their order.

    The registered ones have evenly spread hues, which add up to white where they agree; the others
    of a round have hues beside that, paler.
    """
    found = []
    for k, opened in enumerate(rounds):
        for number, name in enumerate(opened.names):
            ours = number == opened.registered
            beside = 0.0 if ours else (number + 1) / (len(opened.names) + 1)
            hue = (k + beside) / len(rounds)
            colour = colorsys.hsv_to_rgb(hue % 1.0, 1.0 if ours else 0.6, 1.0)
            found.append(JoinedChannel(opened.round.name, name, colour, ours))
    return found


def joined_type(rounds: Sequence[OpenedRound]) -> np.dtype:
    """Find the voxel type that holds all rounds."""
    found = np.result_type(*(opened.image.dtype for opened in rounds))
    if found.kind not in "biuf":
        raise InputError(f"the rounds' voxels go into no common real type: {found}")
    return found


def write_joined(
    place: Location,
    rounds: Sequence[JoinedRound],
    reference: Grid,
    settings: tuple[int, float | None],
    resources: Resources,
    progress: Progress,
    known: str | None = None,
) -> str:
    """Resample all channels of all rounds once onto the reference, into an OME-Zarr 0.5.

    Axes are c, z, y, x (0.6 where the reference is turned). A task holds a block of the channels
    of one round, so that memory does not grow with the rounds. Blocks that an earlier run wrote
    are kept; `known` is the fingerprint of what it completed, and that of the result is returned.
    `settings` are voxels per block and axis, and the background or None.
    """
    blocksize, background = settings
    own = reference.in_unit("micrometer")
    grid = own.reorder(stored_axes(own))
    opened = [given.opened for given in rounds]
    warp = WarpSettings(background=background, dtype=joined_type(opened))
    size = (blocksize,) * grid.ndim
    parts = [
        prepare_apply_to_series(own, given.opened.channels, given.transform, size, warp)
        for given in rounds
    ]
    # On the axes of the registrations, whose aligned images have the same voxels, bit by bit.
    lazy = da.concatenate(parts, axis=0).transpose(0, *(1 + k for k in own.axis_order(grid.axes)))
    chunks = tuple(min(c[0], blocksize) for c in lazy.chunks[1:])
    series = {"c": lazy.shape[0]}
    create = partial(create_ome_zarr, place, grid, lazy.dtype, chunks=chunks, series=series)
    store(lazy, open_or_create(lazy, place, "0", create), resources, progress)
    if known is None or known != place.fingerprint():
        compute_pyramid(place, resources=resources)
        shown = [(c.label, c.colour, c.registered) for c in joined_channels(opened)]
        show_channels(place, shown, ("c", *grid.axes))
    return place.fingerprint()
