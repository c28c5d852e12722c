"""The coarse level of an image: averaged once, by the workers, and kept for whoever needs it.

For an image too large for memory this is a pass over all of it, unless its file holds a level that
proves to be right (`itkstream.blocks.proven_levels`). The level is stored in the folder of the run,
block by block, so that a run that is continued reads what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from itkstream.blocks.levels import factors_to_fit, prepare_coarse
from itkstream.blocks.proven_levels import finest_needed
from itkstream.blocks.sources import readable
from itkstream.compute.execute import compute, continues
from itkstream.compute.tally import Progress
from itkstream.geometry import Image, LazyArray
from itkstream.io.storage.locations import Location
from itkstream.io.storage.zarr_arrays import ZarrArray
from itkstream.workers import Resources

__all__ = ["Keeping", "LevelMaker", "make_level"]

Keeping: TypeAlias = Callable[[str, Callable[[Location], bool]], Location]
"""Says where a level is kept: ``place = keeping(name, known)``.

``known(place)`` tells whether the level, or a part of it, is there already.
"""


def make_level(
    image: Image,
    voxels: float,
    resources: Resources,
    progress: Progress,
    place: Callable[[Callable[[Location], bool]], Location] | None = None,
) -> Image:
    """An image at a resolution that fits in memory.

    Parameters
    ----------
    image : Image
        Numpy, stored or dask.
    voxels : float
        Most voxels of the level.
    resources : Resources
        Workers and threads that average the image.
    progress : callable
        Told the blocks done and the blocks in all.
    place : callable, optional
        Where to keep it, see `Keeping`; default in memory.

    Returns
    -------
    Image
        The image itself where it is small enough; else in memory or stored.
    """
    factors = factors_to_fit(image.grid, voxels)
    if max(factors) == 1:
        return readable(image)
    lazy, grid = prepare_coarse(*finest_needed(image, factors)), image.grid.shrink(factors)
    if place is None:
        return Image(compute(lazy, resources, progress), grid, image.name)
    kept = place(lambda there: continues(lazy, there))
    if not continues(lazy, kept):
        kept.remove()
    compute(lazy, resources, progress, keep=kept)
    return Image(_KeptLevel(ZarrArray.open(kept), str(lazy.name)), grid, image.name)


@dataclass(frozen=True, eq=False)
class LevelMaker:
    """Makes the levels of a run, or finds those that an earlier run left.

    Parameters
    ----------
    voxels : float
        Most voxels of each level.
    resources : callable
        Gives the workers that average an image; called when one must be.
    progress : callable
        Told the blocks done and the blocks in all.
    keeping : Keeping
        Says where.
    """

    voxels: float
    resources: Callable[[], Resources]
    progress: Progress
    keeping: Keeping

    def __call__(self, image: Image, name: str) -> Image:
        """The level of an image.

        Parameters
        ----------
        image : Image
            Numpy, stored or dask.
        name : str
            By which it is kept.

        Returns
        -------
        Image
            As `make_level` gives it.
        """
        if max(factors_to_fit(image.grid, self.voxels)) == 1:
            return readable(image)
        return make_level(
            image,
            self.voxels,
            self.resources(),
            self.progress,
            lambda known: self.keeping(name, known),
        )


@dataclass(frozen=True, eq=False)
class _KeptLevel(LazyArray):
    """A stored level, known by what it was made of: made again, it is the same one."""

    stored: ZarrArray
    computation: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.stored.dtype

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.computation)

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        return self.stored[tuple(map(slice, start, stop))]
