"""Disagreement of two deformations of one pair, each found on half of the voxels.

What both halves show, both find; what a field made up of one half's noise, the other knows nothing
of. Jan Kybic, "Bootstrap resampling for image registration uncertainty estimation without ground
truth", IEEE Transactions on Image Processing 19 (2010) 64-73, doi:10.1109/TIP.2009.2030955.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Image, Transform
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.engines import deform_block
from itkstream.numerics.evidence.stiffness import hide_cubes
from itkstream.numerics.sampling.mapping import affine_part, map_on
from itkstream.numerics.threads import each_of

__all__ = ["compare_halves"]


def compare_halves(
    fixed: Image, moving: Image, transform: Transform, settings: DescentSettings
) -> NDArray[np.float32]:
    """Distances of two deformations on halves, and of their mean from a transform.

    Both start from the affine of the transform. Returns fixed shape + (2,), physical units; NaN
    where nothing could be found.
    """
    voxels = np.asarray(fixed.read(), np.float32)
    cubes = hide_cubes(fixed.shape, fixed.spacing, 0.5)
    start = affine_part(transform)
    first, second = each_of(
        lambda seen: _follow(voxels, seen, fixed, moving, start, settings), (cubes, ~cubes)
    )
    out = np.full((*fixed.shape, 2), np.nan, np.float32)
    if first is None or second is None:
        return out
    known = map_on(transform, fixed.grid).displacement
    mean = (first + second) / 2
    out[..., 0] = np.linalg.norm(first - second, axis=-1)
    out[..., 1] = np.linalg.norm(mean if known is None else mean - known, axis=-1)
    return out


def _follow(
    voxels: NDArray[np.float32],
    seen: NDArray[np.bool_],
    fixed: Image,
    moving: Image,
    start: Transform,
    settings: DescentSettings,
) -> NDArray[Any] | None:
    """The displacement that some of the fixed voxels lead to."""
    shown = Image(np.where(seen, voxels, np.float32(np.nan)), fixed.grid)
    return deform_block(shown, moving, start, settings).displacement
