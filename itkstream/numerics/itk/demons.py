"""Deformations by ITK's demons, a short burst an iteration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.geometry import DisplacementField, Grid, Landmarks
from itkstream.geometry.itk_bridge import from_itk_transform, quiet_itk, to_itk_image
from itkstream.numerics.deformation.descent import Descent, Frame, descend
from itkstream.numerics.itk.landmarks import bend_to
from itkstream.numerics.itk.normalisation import normalise_locally
from itkstream.numerics.itk.settings import DemonsSettings
from itkstream.numerics.threads import get_threads

__all__ = ["descend_demons"]


def descend_demons(
    fixed: NDArray[Any],
    moving: NDArray[Any],
    frame: Frame,
    settings: DemonsSettings,
    *,
    initial: DisplacementField | NDArray[np.floating[Any]] | None = None,
    landmarks: Landmarks | None = None,
) -> Descent:
    """Find the displacement that registers two images after an affine, by ITK's demons.

    The coarse-to-fine loop is that of `descent.descend`: only the small step of an iteration
    comes from a short burst of a demons filter. The loop smooths it, composes it with the
    displacement, smooths that, keeps the iterate of highest local correlation and repairs folds.
    The result is bent to landmarks.

    Shapes: `initial` fixed shape + (n,).

    Thirion, Medical Image Analysis 2 (1998) 243-260, doi:10.1016/S1361-8415(98)80022-4. Vercauteren
    et al., NeuroImage 45 (2009) S61-S72, doi:10.1016/j.neuroimage.2008.10.040.
    """
    found = descend(
        fixed,
        moving,
        frame,
        settings.descent,
        initial=initial,
        propose=partial(_burst, settings),
    )
    return found if landmarks is None else bend_to(landmarks, found, fixed, moving, frame)


_DEMONS: dict[str, Callable[[], Any]] = {
    "demons": sitk.DemonsRegistrationFilter,
    "symmetric-demons": sitk.FastSymmetricForcesDemonsRegistrationFilter,
    "diffeomorphic-demons": sitk.DiffeomorphicDemonsRegistrationFilter,
}


def _burst(
    settings: DemonsSettings,
    fixed: NDArray[np.float32],
    warped: NDArray[np.float32],
    lattice: Grid,
) -> NDArray[np.float32]:
    """The displacement that a few demons iterations find, on the lattice of the images."""
    kept = _long_axes(lattice.shape)
    grid = Grid(
        tuple(lattice.shape[a] for a in kept),
        tuple(lattice.spacing[a] for a in kept),
        unit=lattice.unit,
    )
    apart = ~(np.isfinite(fixed) & np.isfinite(warped)).reshape(grid.shape)
    sides, radius = [], settings.local_normalisation
    for image in (fixed, warped):
        # Windows see the same voxels of both; where one image ends, equal values make no force.
        shared = np.where(apart, np.float32(np.nan), image.reshape(grid.shape))
        side = normalise_locally(shared, radius)
        side[apart] = 0.0
        sides.append(side)
    demons = _DEMONS[settings.method]()
    demons.SetNumberOfIterations(settings.burst)
    demons.SetMaximumRMSError(0.0)
    demons.SetSmoothDisplacementField(False)
    demons.SetSmoothUpdateField(False)
    demons.SetNumberOfWorkUnits(get_threads())
    with quiet_itk():
        found = demons.Execute(*(to_itk_image(side, grid) for side in sides))
    field = from_itk_transform(sitk.DisplacementFieldTransform(found), grid.axes)
    assert isinstance(field, DisplacementField)
    moves = np.zeros((*grid.shape, lattice.ndim), np.float32)
    moves[..., kept] = field.data
    return moves.reshape((*lattice.shape, lattice.ndim))


def _long_axes(shape: tuple[int, ...]) -> list[int]:
    """The axes of an image that is 2-D but for axes of one plane; ITK's demons want two."""
    axes = [a for a, n in enumerate(shape) if n > 1]
    return axes if len(axes) > 1 else [1, 2]
