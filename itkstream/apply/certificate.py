"""Soundness of transforms: no folds, and an inverse that leads back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.apply.folds import FoldedRegion, count_folds, find_folded_regions, foldable_chain
from itkstream.apply.points import apply_to_points
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Grid, Transform, compose
from itkstream.workers import Resources

__all__ = ["Certificate", "InverseError", "certify", "check_transform"]

# What an inverse may be off, in voxels of the field: at the middle point, and at the worst.
_MEDIAN_VOX, _WORST_VOX = 0.01, 0.1
_REGIONS = 1000
# Points that the report draws: as many as can be told apart.
_WORST = 150


@dataclass(frozen=True)
class InverseError:
    """A point and how far from it, in voxels of the field, the inverse leads back to."""

    point: tuple[float, ...]
    error_vox: float


@dataclass(frozen=True)
class Certificate:
    """Numbers that tell whether a transform is sound.

    Parameters
    ----------
    least_jacobian : float
        Least local volume ratio of the displacement (of the affine, where there is no field).
    folded_voxels, voxels : int
        Voxels of the field whose ratio is 0 or less, of so many.
    median_inverse_error_vox, largest_inverse_error_vox : float
        Distance from x to ``T^-1(T(x))`` at points drawn inside the field, in its smallest voxel
        spacing.
    regions : tuple of FoldedRegion
        Where the folds are, the worst first; a thousand at most.
    inverse_worst : tuple of InverseError
        Of the points that were tried those that come back farthest off, the worst first.

    Examples
    --------
    >>> certificate = itkstream.check_transform(registration.transform)
    >>> certificate.least_jacobian > 0
    True
    """

    least_jacobian: float
    folded_voxels: int
    voxels: int
    median_inverse_error_vox: float
    largest_inverse_error_vox: float
    regions: tuple[FoldedRegion, ...] = ()
    inverse_worst: tuple[InverseError, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Reasons why the transform is not sound; none where it is."""
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


def certify(
    transform: Transform, *, name: str = "TRANSFORM", resources: Resources | None = None
) -> dict[str, Any]:
    """Check a transform; the result as JSON has it.

    Parameters
    ----------
    transform : Transform
        As for `check_transform`.
    name : str
        Its path, for the command that repairs it.
    resources : Resources, optional
        Workers and threads.

    Returns
    -------
    dict
        ``passed``, ``failures``, the numbers and the regions of `Certificate`, and ``repair``: a
        command, where something is folded.

    Raises
    ------
    InputError
        As `check_transform`.

    Examples
    --------
    >>> itkstream.certify(registration.transform)["passed"]
    True
    """
    found = check_transform(transform, resources=resources)
    command = f"itkstream repair {name} repaired.ome.zarr" if found.folded_voxels else None
    return {
        "passed": not found.failures,
        "failures": list(found.failures),
        **asdict(found),
        "repair": command,
    }


def check_transform(
    transform: Transform,
    *,
    samples: int = 2000,
    seed: int = 0,
    resources: Resources | None = None,
) -> Certificate:
    """Check a transform: folds over the whole field, block by block, and its inverse at points.

    Parameters
    ----------
    transform : Transform
        An affine, a displacement field, or a field followed by affines; it may be stored.
    samples : int
        Points at which the inverse is tried.
    seed : int
        Seed of their choice.
    resources : Resources, optional
        Workers and threads.

    Returns
    -------
    Certificate
        Numbers, and what is wrong.

    Raises
    ------
    InputError
        Where the field holds NaN, or the transform is of another kind.

    Examples
    --------
    >>> certificate = itkstream.check_transform(registration.transform)
    >>> certificate.folded_voxels, certificate.failures
    (0, ())
    """
    simple = compose(transform)
    if isinstance(simple, AffineTransform):
        # An affine that mirrors the image folds nothing and has an exact inverse.
        return Certificate(abs(float(np.linalg.det(simple.matrix))), 0, 0, 0.0, 0.0)
    field = foldable_chain(simple, "checked").field
    determinants, counts = count_folds(field, resources)
    least = float(determinants.min())
    if not np.isfinite(least):
        raise InputError("the displacement field holds NaN or infinity: it is no transform")
    points, error = _inverse_errors(transform, field.grid, samples, seed)
    worst = np.argsort(-error, kind="stable")[:_WORST]
    regions = sorted(find_folded_regions(field, counts), key=lambda r: r.least_jacobian)
    return Certificate(
        least,
        int(counts.sum()),
        field.grid.size,
        float(np.median(error)),
        float(error.max()),
        tuple(regions[:_REGIONS]),
        tuple(InverseError(tuple(points[k].tolist()), float(error[k])) for k in worst),
    )


def _inverse_errors(
    transform: Transform, grid: Grid, samples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Random points of a grid, and their distances, in voxels, from where they come back to."""
    inside = np.random.default_rng(seed).uniform(0, 1, (samples, grid.ndim))
    points = grid.to_physical(inside * (np.asarray(grid.shape) - 1))
    there = apply_to_points(transform, points).points
    back = apply_to_points(transform, there, inverse=True).points
    error: NDArray[np.float64] = np.linalg.norm(back - points, axis=1) / min(grid.spacing)
    return points, error
