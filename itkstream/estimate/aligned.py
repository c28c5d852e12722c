"""A coarse look whether a moving image was aligned already: affines applied twice are noticed.

Affines that a deformation starts from were either applied to the image that is given with them, or
they were not. Taken for the other, the deformation is sought from a place far off, and nothing in
the result tells. Local correlation does: it is high one way and next to nothing the other.
"""

from __future__ import annotations

import logging
from typing import Literal, TypeAlias, get_args

import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.blocks.graph import once
from itkstream.blocks.levels import Levels, factors_to_fit, read_coarse
from itkstream.errors import InputError, RefusedInputError
from itkstream.geometry import AffineTransform, Image, Transform
from itkstream.numerics.deformation.correlation import local_correlation
from itkstream.numerics.evidence.quality import WINDOW_RADIUS_VOX, tissue_mask
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.numerics.threads import threads_for, using_threads

__all__ = ["MovIs", "checked_mov_is", "prepare_start_of"]

logger = logging.getLogger(__name__)

MovIs: TypeAlias = Literal["aligned", "original"]
"""State of a moving image that comes with affines: resampled through them, or as it was taken."""

# Voxels of the level that is looked at; both readings are compared within a second or two.
_VOXELS = 2e6

# The other reading is clearly better where its correlation is so many times as high, and by so
# much; images that do not match at all reach some hundredths, by chance.
_CLEARLY, _BY = 2.0, 0.05
_MILDLY, _BY_LITTLE = 1.1, 0.01

_ADVICE: dict[MovIs, str] = {
    "aligned": (
        "mov seems to be the original moving image: give the one that the affines aligned, as "
        "itkstream.transform.prepare_apply_local_affines makes it, or say mov_is='original'"
    ),
    "original": (
        "mov seems to be aligned already: give the original moving image, or say mov_is='aligned'"
    ),
}


def checked_mov_is(value: str) -> MovIs:
    """Refuse what says nothing of a moving image."""
    if value not in get_args(MovIs):
        raise InputError(
            "mov_is must be 'aligned' (mov was resampled through the affines) or 'original' "
            f"(it was not); got {value!r}"
        )
    return value  # type: ignore[return-value]


def prepare_start_of(levels: Levels, affines: Transform, mov_is: MovIs) -> Delayed:
    """Prepare where a deformation starts from affines to the original moving image, after a look.

    The transform leads to points of the moving image as it is said to be; where the images show
    that it is the other, a `RefusedInputError` is raised as it is computed.
    """
    return once(_start, *levels, affines, mov_is)


def _start(fixed: Image, moving: Image, affines: Transform, mov_is: MovIs) -> Transform:
    as_it_is = AffineTransform(np.eye(fixed.ndim + 1))
    given, other = (as_it_is, affines) if mov_is == "aligned" else (affines, as_it_is)
    with using_threads(threads_for(fixed.grid.size)):
        small, near = (read_coarse(i, factors_to_fit(i.grid, _VOXELS)) for i in (fixed, moving))
        tissue = tissue_mask(small.read())
        found, instead = (_correlation(small, near, way, tissue) for way in (given, other))
    names = ("as it is", "through the affines")
    first, second = names if mov_is == "aligned" else reversed(names)
    seen = (
        f"the local correlation of fix with mov is {found:.3f} {first}, and {instead:.3f} {second}"
    )
    if instead >= max(_CLEARLY * found, found + _BY):
        raise RefusedInputError(f"{seen}: {_ADVICE[mov_is]}")
    if instead >= max(_MILDLY * found, found + _BY_LITTLE):
        logger.warning("%s: look whether %s", seen, _ADVICE[mov_is])
    else:
        logger.debug("%s", seen)
    return given


def _correlation(
    fixed: Image, moving: Image, transform: Transform, tissue: NDArray[np.bool_]
) -> float:
    """Mean squared local correlation in the tissue, 0 where the moving image does not reach."""
    aligned = warp_block(moving, transform, fixed.grid, NAN_OUTSIDE)
    values = local_correlation(fixed.read(), aligned, WINDOW_RADIUS_VOX)
    return float(np.nan_to_num(values)[tissue].mean())
