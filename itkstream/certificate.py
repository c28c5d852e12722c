"""Is a transform sound: no folds, and an inverse that leads back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from itkstream.cluster import compute
from itkstream.deform import prepare_fold_count
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Transform
from itkstream.transform import apply_to_points

__all__ = ["Certificate", "check_transform"]

_BLOCK = 128
# What an inverse may be off, in voxels of the field: at the middle point, and at the worst.
_MEDIAN_VOX, _WORST_VOX = 0.01, 0.1


@dataclass(frozen=True)
class Certificate:
    """What was found out about a transform.

    Parameters
    ----------
    least_jacobian : float
        Least local volume ratio of the displacement (of the affine, where there is no field).
    folded_voxels, voxels : int
        Voxels of the field whose ratio is 0 or less, of so many.
    median_inverse_error_vox, largest_inverse_error_vox : float
        Distance from x to ``T^-1(T(x))`` at points drawn inside the field, in its smallest voxel
        spacing.
    """

    least_jacobian: float
    folded_voxels: int
    voxels: int
    median_inverse_error_vox: float
    largest_inverse_error_vox: float

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the transform is not sound; empty where it is."""
        reasons = []
        if self.folded_voxels or self.least_jacobian <= 0:
            reasons.append(f"{self.folded_voxels} of {self.voxels} voxels are folded")
        if not self.median_inverse_error_vox <= _MEDIAN_VOX:
            reasons.append(
                f"the inverse is {self.median_inverse_error_vox:.3g} voxels off at the median "
                f"point; at most {_MEDIAN_VOX} is sound"
            )
        if not self.largest_inverse_error_vox <= _WORST_VOX:
            reasons.append(
                f"the inverse is {self.largest_inverse_error_vox:.3g} voxels off at the worst "
                f"point; at most {_WORST_VOX} is sound"
            )
        return tuple(reasons)


def check_transform(transform: Transform, *, samples: int = 2000, seed: int = 0) -> Certificate:
    """Check a transform: folds over the whole field, block by block, and its inverse at points.

    Parameters
    ----------
    transform : Transform
        An affine, a displacement field, or a field followed by affines; it may be stored.
    samples : int
        Points at which the inverse is tried.
    seed : int
        Seed of their choice.

    Returns
    -------
    Certificate
        Numbers, and what is wrong.

    Raises
    ------
    InputError
        Where the field holds NaN, or the transform is of another kind.
    """
    steps = transform.transforms if isinstance(transform, CompositeTransform) else (transform,)
    first, linear = steps[0], [s for s in steps if isinstance(s, AffineTransform)]
    if isinstance(first, DisplacementField) and len(linear) == len(steps) - 1:
        return _check_field(transform, first, samples, seed)
    if len(linear) != len(steps):
        kinds = ", ".join(type(step).__name__ for step in steps)
        raise InputError(
            f"an affine, a displacement field, or a field followed by affines can be checked; got "
            f"{kinds}"
        )
    ratio = float(np.prod([np.linalg.det(s.matrix) for s in linear]))
    # An affine that mirrors the image folds nothing and has an exact inverse.
    return Certificate(abs(ratio), 0, 0, 0.0, 0.0)


def _check_field(
    transform: Transform, field: DisplacementField, samples: int, seed: int
) -> Certificate:
    grid = field.grid
    stretch = compute(prepare_fold_count(field, (_BLOCK,) * grid.ndim))
    least = float(stretch[..., 0].min())
    if not np.isfinite(least):
        raise InputError("the displacement field holds NaN or infinity: it is no transform")
    inside = np.random.default_rng(seed).uniform(0, 1, (samples, grid.ndim))
    points = grid.to_physical(inside * (np.asarray(grid.shape) - 1))
    there = apply_to_points(transform, points).points
    back = apply_to_points(transform, there, inverse=True).points
    error = np.linalg.norm(back - points, axis=1) / min(grid.spacing)
    return Certificate(
        least,
        int(stretch[..., 1].sum()),
        grid.size,
        float(np.median(error)),
        float(error.max()),
    )
