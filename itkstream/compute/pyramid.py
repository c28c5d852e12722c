"""The coarser levels of an OME-Zarr image, computed by the workers."""

from __future__ import annotations

import os

from itkstream.blocks.levels import prepare_level_below
from itkstream.compute.execute import store
from itkstream.io.images.stores.ome_zarr_writer import begin_levels
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.workers import Resources

__all__ = ["compute_pyramid"]


def compute_pyramid(
    path: str | os.PathLike[str], *, labels: bool = False, resources: Resources | None = None
) -> None:
    """Compute the levels below the finest of an image made by `create_ome_zarr`.

    They have the bytes that `itkstream.io.write_pyramid` writes in this process.
    """
    levels = begin_levels(path, labels=labels)
    next(levels)
    for level in levels:
        store(prepare_level_below(ZarrArray.open(level.above), level), level.array, resources)
