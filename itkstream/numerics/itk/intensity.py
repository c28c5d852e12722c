"""Affines by intensities: ITK's registration methods on a pyramid, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.geometry import AffineTransform, CompositeTransform, Grid, Image, default_axes
from itkstream.geometry.itk_bridge import from_itk_transform, to_itk_transform, what_itk_says
from itkstream.numerics.checks import counting_voxels
from itkstream.numerics.deformation.descent import Frame
from itkstream.numerics.itk.normalisation import normalise_locally
from itkstream.numerics.itk.search import ItkImage, ItkSearch
from itkstream.numerics.itk.settings import IntensitySettings
from itkstream.numerics.sampling.pyramid import shrink
from itkstream.numerics.threads import each_of

__all__ = ["IntensityEstimate", "fit_intensity_affine", "intensity_block"]


# A better metric on less than this share of the voxels compared before is an escape, not a gain.
_KEPT_OVERLAP = 0.7


@dataclass(frozen=True, eq=False)
class IntensityEstimate:
    """A refined affine, or the initial one and why it was kept.

    Parameters
    ----------
    matrix : ndarray, (n + 1, n + 1)
        From fixed to moving points.
    before, after : float
        Metric of the initial and of the refined transform on the finest level, over all voxels;
        ITK's metrics fall as images grow alike. NaN where it could not be measured.
    reason : str
        Why the initial matrix was kept; empty where it was refined.
    """

    matrix: NDArray[np.float64]
    before: float
    after: float
    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


def fit_intensity_affine(
    fixed: NDArray[Any],
    moving: NDArray[Any],
    frame: Frame,
    settings: IntensitySettings,
) -> IntensityEstimate:
    """Refine an affine until intensities agree best.

    What the model allows is put before the initial affine, so that even a translation keeps all
    the initial one holds. Sums run in one order, whatever the threads: the same bits on any
    machine.

    Mattes et al., IEEE Transactions on Medical Imaging 22 (2003) 120-128,
    doi:10.1109/TMI.2003.809072, for mutual information. Avants et al., Frontiers in
    Neuroinformatics 8 (2014) 44, doi:10.3389/fninf.2014.00044, for the framework.
    """
    images = (
        counting_voxels("fixed", fixed, frame.fixed_grid.shape),
        counting_voxels("moving", moving, frame.moving_grid.shape),
    )
    length = _radius(frame.fixed_grid)
    small, scaled = _in_lengths_of(length, frame), settings.scaled(1 / length)
    change = nothing = _starting_change(settings, small.fixed_grid)
    try:
        for number in range(len(settings.shrink_factors)):
            search = _search(images, small, scaled, number)
            change = search.find(change)
        before, after = each_of(search.measure, (nothing, change))
    except RuntimeError as error:
        reason = f"the images could not be compared: {what_itk_says(error)}"
        return IntensityEstimate(frame.affine, np.nan, np.nan, reason)
    found = _after_change(change, small)
    found[:-1, -1] *= length
    reason = _objection(frame, found, before, after)
    return IntensityEstimate(frame.affine if reason else found, before, after, reason)


_MODELS: dict[tuple[str, int], Callable[[], sitk.Transform]] = {
    ("translation", 2): partial(sitk.TranslationTransform, 2),
    ("translation", 3): partial(sitk.TranslationTransform, 3),
    ("rigid", 2): sitk.Euler2DTransform,
    ("rigid", 3): sitk.Euler3DTransform,
    ("similarity", 2): sitk.Similarity2DTransform,
    ("similarity", 3): sitk.Similarity3DTransform,
    ("affine", 2): partial(sitk.AffineTransform, 2),
    ("affine", 3): partial(sitk.AffineTransform, 3),
}


def _radius(grid: Grid) -> float:
    """Distance of the corners of an image from its middle."""
    return float(np.linalg.norm(np.array(grid.shape) * grid.spacing)) / 2


def _in_lengths_of(length: float, frame: Frame) -> Frame:
    """The frame in another unit of length.

    With the image's radius as unit, a turn by 1, a stretch by 1 and a shift by 1 move voxels about
    equally far: L-BFGS-B, which knows no scales, needs that.
    """
    matrix = frame.affine.copy()
    matrix[:-1, -1] /= length
    return Frame(_grid_in(length, frame.fixed_grid), _grid_in(length, frame.moving_grid), matrix)


def _grid_in(length: float, grid: Grid) -> Grid:
    spacing, origin = (tuple(v / length for v in of) for of in (grid.spacing, grid.origin))
    return replace(grid, spacing=spacing, origin=origin)


def _search(
    images: tuple[NDArray[np.float32], NDArray[np.float32]],
    frame: Frame,
    settings: IntensitySettings,
    number: int,
) -> ItkSearch:
    factor, sigma = settings.shrink_factors[number], settings.smooth_sigmas[number]
    length, radius = factor * min(frame.fixed_grid.spacing), settings.local_normalisation
    grids = frame.fixed_grid, frame.moving_grid
    fixed, moving = each_of(
        lambda given: _itk_image(*given, (length, sigma), radius), zip(images, grids, strict=True)
    )
    return ItkSearch(
        fixed,
        moving,
        _itk_affine(frame),
        settings,
        settings.iterations[number],
        settings.step * factor,
    )


def _itk_image(
    image: NDArray[np.float32], grid: Grid, scale: tuple[float, float], radius: int | None
) -> ItkImage:
    """An image blurred and shrunk to voxels of about a length, locally normalised where asked."""
    length, sigma = scale
    factors = [max(1, round(length / h)) for h in grid.spacing]
    small, lattice = shrink(image, grid, factors, sigma)
    return ItkImage.of(small if radius is None else normalise_locally(small, radius), lattice)


def _itk_affine(frame: Frame) -> sitk.Transform:
    return to_itk_transform(AffineTransform(frame.affine), frame.fixed_grid.axes)


def _starting_change(settings: IntensitySettings, grid: Grid) -> sitk.Transform:
    """Identity of the model, turning about the middle of the fixed image."""
    change = _MODELS[settings.model, grid.ndim]()
    if settings.model != "translation":
        itk_grid = grid.reorder(default_axes(grid.ndim))
        middle = itk_grid.to_physical((np.array(itk_grid.shape) - 1) / 2)
        change.SetCenter(middle.tolist())
    return change


def _after_change(change: sitk.Transform, frame: Frame) -> NDArray[np.float64]:
    matrix = from_itk_transform(change, frame.fixed_grid.axes)
    if isinstance(matrix, CompositeTransform):
        (matrix,) = matrix.transforms
    assert isinstance(matrix, AffineTransform)
    return np.asarray(frame.affine @ matrix.matrix)


def _objection(frame: Frame, found: NDArray[np.float64], before: float, after: float) -> str:
    """Why the initial matrix is the better one; empty where it is not."""
    if not np.isfinite(found).all() or not after < before:
        return f"the metric did not improve: {before:.6g} before, {after:.6g} after"
    kept, had = _overlap(frame, found), _overlap(frame, frame.affine)
    if kept < _KEPT_OVERLAP * had:
        return (
            f"the images were driven apart: they share {kept:.0%} of the voxels, before {had:.0%}"
        )
    return ""


def _overlap(frame: Frame, matrix: NDArray[np.float64]) -> float:
    """Share of the fixed voxels that a matrix puts inside the moving image."""
    to_index = frame.moving_grid.inverse_matrix @ matrix @ frame.fixed_grid.matrix
    strides = [max(1, n // 32) for n in frame.fixed_grid.shape]
    steps = (np.arange(0, n, s) for n, s in zip(frame.fixed_grid.shape, strides, strict=True))
    voxels = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1)
    index = voxels @ to_index[:-1, :-1].T + to_index[:-1, -1]
    inside = (index >= -0.5) & (index < np.array(frame.moving_grid.shape) - 0.5)
    return float(inside.all(axis=-1).mean())


def intensity_block(
    fixed: Image,
    moving: Image,
    initial: NDArray[np.float64],
    settings: IntensitySettings,
) -> IntensityEstimate:
    """Refine an affine between two images in memory by their intensities.

    Shapes: `initial` (n + 1, n + 1).
    """
    frame = Frame(fixed.grid, moving.grid, initial)
    return fit_intensity_affine(fixed.read(), moving.read(), frame, settings)
