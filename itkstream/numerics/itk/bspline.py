"""SimpleITK's B-spline registration as one more engine of deformations.

The moving image is first sampled on the fixed lattice through what is known; the B-spline is then
searched in front of that, level by level on one or several lattices of control points, and sampled
as a displacement field, whose folds are repaired.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from attrs import evolve
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import DisplacementField, Grid, Landmarks
from itkstream.geometry.grid import voxels_spanning
from itkstream.geometry.itk_bridge import sample_transform, what_itk_says
from itkstream.numerics.checks import counting_voxels
from itkstream.numerics.deformation.correlation import mean_local_correlation
from itkstream.numerics.deformation.descent import Descent, Frame, LevelReport
from itkstream.numerics.itk.landmarks import bend_to
from itkstream.numerics.itk.normalisation import normalise_locally
from itkstream.numerics.itk.search import ItkImage, ItkSearch
from itkstream.numerics.itk.settings import BsplineSettings, IntensitySettings
from itkstream.numerics.sampling.fields import compose, resize_field
from itkstream.numerics.sampling.folds import repair_folds
from itkstream.numerics.sampling.interpolate import warp
from itkstream.numerics.sampling.mapping import GridMap
from itkstream.numerics.sampling.pyramid import shrink

__all__ = ["descend_bspline"]

Floats = NDArray[np.float32]

_ORDER = 3


def descend_bspline(
    fixed: NDArray[Any],
    moving: NDArray[Any],
    frame: Frame,
    settings: BsplineSettings,
    *,
    initial: DisplacementField | NDArray[np.floating[Any]] | None = None,
    landmarks: Landmarks | None = None,
) -> Descent:
    """Find the displacement that registers two images after an affine, by a B-spline.

    It is bent to landmarks.

    Shapes: `initial` fixed shape + (n,).

    Rueckert et al., IEEE Transactions on Medical Imaging 18 (1999) 712-721, doi:10.1109/42.796284.
    """
    pair = _Pair.of(fixed, moving, frame, _start(initial, frame.fixed_grid))
    spline: sitk.Transform | None = None
    reports = []
    for number in range(len(settings.shrink_factors)):
        spline, report = _descend_level(pair, settings, number, spline)
        reports.append(report)
    u = pair.start if spline is None else pair.total(spline)
    repair = repair_folds(u, frame.fixed_grid, settings.minimum_jacobian)
    found = Descent(repair.displacement, tuple(reports), repair.folded_before)
    return found if landmarks is None else bend_to(landmarks, found, fixed, moving, frame)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Both images on the fixed lattice, and what already lies between them."""

    fixed: Floats
    warped: Floats
    moving: Floats
    frame: Frame
    start: Floats

    @classmethod
    def of(cls, fixed: NDArray[Any], moving: NDArray[Any], frame: Frame, start: Floats) -> _Pair:
        images = (
            counting_voxels("fixed", fixed, frame.fixed_grid.shape),
            counting_voxels("moving", moving, frame.moving_grid.shape),
        )
        return cls(images[0], _warped(images[1], frame, start), images[1], frame, start)

    def total(self, spline: sitk.Transform) -> Floats:
        """The displacement of a B-spline followed by the start."""
        grid = self.frame.fixed_grid
        moves = np.ascontiguousarray(sample_transform(spline, grid), np.float32)
        return compose(moves, self.start, grid)


def _descend_level(
    pair: _Pair, settings: BsplineSettings, number: int, before: sitk.Transform | None
) -> tuple[sitk.Transform | None, LevelReport]:
    """Search on one level; what was known where nothing better is found."""
    factor, sigma = settings.shrink_factors[number], settings.smooth_sigmas[number]
    grid = pair.frame.fixed_grid
    factors = voxels_spanning(factor * min(grid.spacing), grid.spacing)
    known = pair.warped if before is None else _warped(pair.moving, pair.frame, pair.total(before))
    correlations = [_correlation(pair.fixed, known, grid, factors, settings)]
    if correlations[0] == 0:
        reason = "no texture" if np.isfinite(known).any() else "no overlap"
        return before, LevelReport(factor, 0.0, 0.0, 0, reason)
    sides = _sides(pair, factors, sigma, settings.local_normalisation)
    spacings: Any = settings.control_spacing
    start = _on_lattice(before, sides[0].image, grid, spacings[number])
    search = ItkSearch(
        *sides,
        sitk.Transform(grid.ndim, sitk.sitkIdentity),
        _comparison(settings, factor, grid.ndim),
        settings.iterations[number],
        # A step is the length of the vector of all parameters.
        settings.step * factor * float(np.sqrt(start.GetNumberOfParameters())),
        scaled=False,
    )
    try:
        found = sitk.BSplineTransform(search.find(start))
    except RuntimeError as error:
        raise InputError(f"the images could not be compared: {what_itk_says(error)}") from error
    after = _warped(pair.moving, pair.frame, pair.total(found))
    correlations.append(_correlation(pair.fixed, after, grid, factors, settings))
    better = correlations[1] > correlations[0]
    report = LevelReport(factor, correlations[0], max(correlations), settings.iterations[number],
                         "iterations" if better else "converged")  # fmt: skip
    return (found if better else before), report


def _comparison(settings: BsplineSettings, factor: int, ndim: int) -> IntensitySettings:
    """The settings of a level, with as many samples as the finest has.

    With fewer samples than control points, noise decides where these go.
    """
    finer = (factor / settings.shrink_factors[-1]) ** ndim
    fraction = min(1.0, settings.sampling_fraction * finer)
    return evolve(settings.comparison, sampling_fraction=fraction)


def _start(initial: DisplacementField | NDArray[np.floating[Any]] | None, grid: Grid) -> Floats:
    """The starting displacement on the fixed lattice."""
    if initial is None:
        return np.zeros((*grid.shape, grid.ndim), np.float32)
    if isinstance(initial, DisplacementField):
        return resize_field(np.asarray(initial.data), initial.grid, grid)
    return np.ascontiguousarray(initial, np.float32)


def _warped(moving: Floats, frame: Frame, displacement: Floats) -> Floats:
    """The moving image on the fixed lattice; NaN outside it."""
    mapping = GridMap(frame.fixed_grid, frame.affine, displacement)
    return warp(
        moving,
        mapping.index_matrix(frame.moving_grid),
        frame.fixed_grid.shape,
        displacement,
        mapping.vector_matrix(frame.moving_grid),
        background=np.nan,
        dtype=np.dtype(np.float32),
    )


def _correlation(
    fixed: Floats, warped: Floats, grid: Grid, factors: tuple[int, ...], settings: BsplineSettings
) -> float:
    """Mean squared local correlation of both on a level; 0 where there is nothing to compare."""
    small = [shrink(image, grid, factors)[0] for image in (fixed, warped)]
    if not (np.isfinite(small[0]) & np.isfinite(small[1])).any():
        return 0.0
    found = mean_local_correlation(small[0], small[1], settings.cc_radius)
    return found if np.isfinite(found) else 0.0


def _sides(
    pair: _Pair, factors: tuple[int, ...], sigma: float, radius: int | None
) -> tuple[ItkImage, ItkImage]:
    """Both images of a level, locally normalised over the voxels they share."""
    small = [shrink(im, pair.frame.fixed_grid, factors, sigma) for im in (pair.fixed, pair.warped)]
    apart = ~(np.isfinite(small[0][0]) & np.isfinite(small[1][0]))
    sides = []
    for voxels, lattice in small:
        even = normalise_locally(np.where(apart, np.float32(np.nan), voxels), radius)
        sides.append(ItkImage.of(even, lattice))
    return sides[0], sides[1]


def _on_lattice(
    before: sitk.Transform | None, image: sitk.Image, grid: Grid, spacing: float
) -> sitk.BSplineTransform:
    """A B-spline with control points about so far apart, equal to the one before."""
    lengths = [n * h for n, h in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    mesh = [max(1, round(length / spacing)) for length in lengths]
    new = sitk.BSplineTransformInitializer(image, mesh, _ORDER)
    if before is None:
        return new
    old = sitk.BSplineTransform(before)
    finer = []
    for coefficients, lattice in zip(
        old.GetCoefficientImages(), new.GetCoefficientImages(), strict=True
    ):
        values = sitk.Resample(coefficients, lattice, sitk.Transform(), sitk.sitkBSplineResampler)
        finer.append(sitk.BSplineDecomposition(values))
    return sitk.BSplineTransform(finer, _ORDER)
