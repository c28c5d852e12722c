"""SimpleITK's registration methods behind this package's values: intensity affine and demons.

Frames and settings come in and plain arrays leave in array-axis order; `itk_bridge` turns axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    default_axes,
)
from itkstream.itk_bridge import from_itk_transform, quiet_itk, to_itk_image, to_itk_transform
from itkstream.numerics.descent import Descent, Frame, Progress, descend
from itkstream.numerics.itk_settings import DemonsSettings, IntensitySettings
from itkstream.numerics.pyramid import shrink
from itkstream.numerics.threads import get_threads

__all__ = [
    "IntensityEstimate",
    "ItkLevel",
    "ItkSide",
    "descend_demons",
    "even_out",
    "fit_intensity_affine",
    "what_itk_says",
]

Floats: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

# What ITK says, and what that means to a user.
_TOO_FEW = "too few voxels that count lie on each other in both images"
_MEANINGS = {
    "map outside moving image buffer": _TOO_FEW,
    "No valid points": _TOO_FEW,
    "number of pixels along direction": "one has fewer than 4 planes along an axis",
}

# Shortest step of the descents, as a share of the first one.
_LAST_STEP = 1e-3

# A better metric on less than this share of the voxels compared before is an escape, not a gain.
_KEPT_OVERLAP = 0.7

# Variance, relative to that of the image, below which a window holds no texture.
_LEAST_VARIANCE = 1e-3


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

    matrix: Floats
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
    *,
    fixed_mask: NDArray[Any] | None = None,
    moving_mask: NDArray[Any] | None = None,
) -> IntensityEstimate:
    """Refine an affine until intensities agree best.

    What the model allows is put before the initial affine, so that even a translation keeps all
    the initial one holds. Every sum runs on one thread in one order: the same bits on any machine.

    Parameters
    ----------
    fixed, moving : ndarray
        Real images of two or three axes on the grids of `frame`; NaN voxels do not count.
    frame : Frame
        Grids, and the affine to start from.
    settings : IntensitySettings
        Parameters.
    fixed_mask, moving_mask : ndarray, optional
        Voxels that count are true; default all.

    Returns
    -------
    IntensityEstimate
        The refined matrix where its metric beats the initial one's, else the initial matrix.

    Raises
    ------
    InputError
        Where arrays do not fit their grids or no voxel counts.

    References
    ----------
    Mattes et al., IEEE Transactions on Medical Imaging 22 (2003) 120-128,
    doi:10.1109/TMI.2003.809072, for mutual information. Avants et al., Frontiers in
    Neuroinformatics 8 (2014) 44, doi:10.3389/fninf.2014.00044, for the framework.
    """
    images = (
        _counting("fixed", fixed, frame.fixed_grid, fixed_mask),
        _counting("moving", moving, frame.moving_grid, moving_mask),
    )
    length = _radius(frame.fixed_grid)
    small, scaled = _in_lengths_of(length, frame), settings.scaled(1 / length)
    change = nothing = _starting_change(settings, small.fixed_grid)
    try:
        for number in range(len(settings.shrink_factors)):
            level = _level(images, small, scaled, number)
            change = level.search(change)
        before, after = level.measure(nothing), level.measure(change)
    except RuntimeError as error:
        reason = f"the images could not be compared: {what_itk_says(error)}"
        return IntensityEstimate(frame.affine, np.nan, np.nan, reason)
    found = _after_change(change, small)
    found[:-1, -1] *= length
    reason = _objection(frame, found, before, after)
    return IntensityEstimate(frame.affine if reason else found, before, after, reason)


@dataclass(frozen=True, eq=False)
class ItkSide:
    """An image of one level in ITK's hands.

    Parameters
    ----------
    image : SimpleITK.Image
        Finite everywhere.
    mask : SimpleITK.Image or None
        Not 0 where voxels count; None where all do.
    """

    image: sitk.Image
    mask: sitk.Image | None

    @classmethod
    def of(cls, voxels: NDArray[np.float32], grid: Grid) -> ItkSide:
        """An image whose NaN voxels do not count.

        Parameters
        ----------
        voxels : ndarray, grid.shape
            The image.
        grid : Grid
            Its lattice.

        Returns
        -------
        ItkSide
            NaN filled with the mean of the others.
        """
        counts = np.isfinite(voxels)
        if counts.all():
            return cls(to_itk_image(voxels, grid), None)
        if not counts.any():
            raise InputError("no voxel counts on a coarse level: the masks leave too little")
        filled = np.where(counts, voxels, voxels[counts].mean())
        return cls(to_itk_image(filled, grid), to_itk_image(counts, grid))


@dataclass(frozen=True, eq=False)
class ItkLevel:
    """Both images of one level and how they are compared.

    Parameters
    ----------
    fixed, moving : ItkSide
        The images.
    initial : SimpleITK.Transform
        Acts after what is searched.
    settings : IntensitySettings
        Metric, optimizer and sampling.
    iterations : int
        At most so many.
    step : float
        First step of the optimizers that take one.
    scaled : bool
        Whether parameters differ in kind, as angles and shifts do.
    """

    fixed: ItkSide
    moving: ItkSide
    initial: sitk.Transform
    settings: IntensitySettings
    iterations: int
    step: float
    scaled: bool = True

    def search(self, start: sitk.Transform) -> sitk.Transform:
        """Find the best change of the initial transform.

        Parameters
        ----------
        start : SimpleITK.Transform
            Where the search begins; its kind is what is searched.

        Returns
        -------
        SimpleITK.Transform
            A copy, changed.
        """
        method = self._method()
        strategies = {"regular": method.REGULAR, "random": method.RANDOM, "none": method.NONE}
        method.SetMetricSamplingStrategy(strategies[self.settings.sampling])
        if self.settings.sampling != "none":
            # ITK takes seed 0 for the time of day.
            fraction, seed = self.settings.sampling_fraction, self.settings.seed + 1
            method.SetMetricSamplingPercentage(fraction, seed)
        _OPTIMIZERS[self.settings.optimizer](method, self)
        method.SetInitialTransform(sitk.Transform(start), inPlace=True)
        with quiet_itk():
            return method.Execute(self.fixed.image, self.moving.image)

    def measure(self, change: sitk.Transform) -> float:
        """The metric over all voxels.

        Parameters
        ----------
        change : SimpleITK.Transform
            Acts before the initial transform.

        Returns
        -------
        float
            The lower, the more alike.
        """
        method = self._method()
        method.SetInitialTransform(sitk.Transform(change))
        with quiet_itk():
            return float(method.MetricEvaluate(self.fixed.image, self.moving.image))

    def _method(self) -> sitk.ImageRegistrationMethod:
        method = sitk.ImageRegistrationMethod()
        # The metrics add what each thread found in the order the threads end.
        method.SetNumberOfWorkUnits(1)
        _METRICS[self.settings.metric](method, self.settings)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetMovingInitialTransform(self.initial)
        if self.fixed.mask is not None:
            method.SetMetricFixedMask(self.fixed.mask)
        if self.moving.mask is not None:
            method.SetMetricMovingMask(self.moving.mask)
        return method


Method: TypeAlias = sitk.ImageRegistrationMethod

_METRICS: dict[str, Callable[[Method, IntensitySettings], None]] = {
    "correlation": lambda method, _: method.SetMetricAsCorrelation(),
    "mean-squares": lambda method, _: method.SetMetricAsMeanSquares(),
    "mutual-information": lambda method, s: method.SetMetricAsMattesMutualInformation(s.bins),
    "neighbourhood-correlation": lambda method, s: method.SetMetricAsANTSNeighborhoodCorrelation(
        s.radius
    ),
}


def _by_gradient(method: Method, level: ItkLevel) -> None:
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=level.step,
        minStep=level.step * _LAST_STEP,
        numberOfIterations=level.iterations,
        gradientMagnitudeTolerance=1e-12,
        estimateLearningRate=method.EachIteration if level.scaled else method.Never,
        maximumStepSizeInPhysicalUnits=level.step,
    )
    if level.scaled:
        method.SetOptimizerScalesFromPhysicalShift()


def _by_lbfgsb(method: Method, level: ItkLevel) -> None:
    method.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-8,
        numberOfIterations=level.iterations,
        maximumNumberOfFunctionEvaluations=4 * level.iterations,
        costFunctionConvergenceFactor=1e5,
    )


def _by_powell(method: Method, level: ItkLevel) -> None:
    method.SetOptimizerAsPowell(
        numberOfIterations=level.iterations,
        stepLength=level.step,
        stepTolerance=level.step * _LAST_STEP,
        valueTolerance=1e-7,
    )
    method.SetOptimizerScalesFromPhysicalShift()


def _by_lattice(method: Method, level: ItkLevel) -> None:
    steps = [level.settings.search_steps] * level.initial.GetDimension()
    method.SetOptimizerAsExhaustive(steps, level.step)


_OPTIMIZERS: dict[str, Callable[[Method, ItkLevel], None]] = {
    "gradient-descent": _by_gradient,
    "lbfgsb": _by_lbfgsb,
    "powell": _by_powell,
    "exhaustive": _by_lattice,
}

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


def _counting(name: str, array: NDArray[Any], grid: Grid, mask: Any) -> NDArray[np.float32]:
    """The image as numbers, NaN where it does not count."""
    if array.shape != grid.shape or array.dtype.kind not in "buif":
        raise InputError(
            f"the {name} image must hold real numbers on its grid of {grid.shape} voxels; got "
            f"shape {array.shape} of {array.dtype}"
        )
    image = np.where(np.isfinite(array), array, np.nan).astype(np.float32)
    if mask is not None:
        if np.shape(mask) != grid.shape:
            raise InputError(f"the {name} mask has shape {np.shape(mask)}; wanted {grid.shape}")
        image[~np.asarray(mask, bool)] = np.nan
    if np.isnan(image).all():
        raise InputError(
            f"no voxel of the {name} image counts: all are NaN, infinite or left out by the "
            f"{name} mask"
        )
    return image


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


def _level(
    images: tuple[NDArray[np.float32], NDArray[np.float32]],
    frame: Frame,
    settings: IntensitySettings,
    number: int,
) -> ItkLevel:
    factor, sigma = settings.shrink_factors[number], settings.smooth_sigmas[number]
    length, radius = factor * min(frame.fixed_grid.spacing), settings.local_normalisation
    return ItkLevel(
        _side(images[0], frame.fixed_grid, (length, sigma), radius),
        _side(images[1], frame.moving_grid, (length, sigma), radius),
        _itk_affine(frame),
        settings,
        settings.iterations[number],
        settings.step * factor,
    )


def _side(
    image: NDArray[np.float32], grid: Grid, scale: tuple[float, float], radius: int | None
) -> ItkSide:
    """An image blurred and shrunk to voxels of about a length, locally normalised where asked."""
    length, sigma = scale
    factors = [max(1, round(length / h)) for h in grid.spacing]
    small, lattice = shrink(image, grid, factors, sigma)
    return ItkSide.of(small if radius is None else even_out(small, radius), lattice)


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


def _after_change(change: sitk.Transform, frame: Frame) -> Floats:
    matrix = from_itk_transform(change, frame.fixed_grid.axes)
    if isinstance(matrix, CompositeTransform):
        (matrix,) = matrix.transforms
    assert isinstance(matrix, AffineTransform)
    return np.asarray(frame.affine @ matrix.matrix)


def _objection(frame: Frame, found: Floats, before: float, after: float) -> str:
    """Why the initial matrix is the better one; empty where it is not."""
    if not np.isfinite(found).all() or not after < before:
        return f"the metric did not improve: {before:.6g} before, {after:.6g} after"
    kept, had = _overlap(frame, found), _overlap(frame, frame.affine)
    if kept < _KEPT_OVERLAP * had:
        return (
            f"the images were driven apart: they share {kept:.0%} of the voxels, before {had:.0%}"
        )
    return ""


def _overlap(frame: Frame, matrix: Floats) -> float:
    """Share of the fixed voxels that a matrix puts inside the moving image."""
    to_index = frame.moving_grid.inverse_matrix @ matrix @ frame.fixed_grid.matrix
    strides = [max(1, n // 32) for n in frame.fixed_grid.shape]
    steps = (np.arange(0, n, s) for n, s in zip(frame.fixed_grid.shape, strides, strict=True))
    voxels = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1)
    index = voxels @ to_index[:-1, :-1].T + to_index[:-1, -1]
    inside = (index >= -0.5) & (index < np.array(frame.moving_grid.shape) - 0.5)
    return float(inside.all(axis=-1).mean())


def what_itk_says(error: RuntimeError) -> str:
    """The message of an error of ITK in words of ours, or without file, line and object.

    Parameters
    ----------
    error : RuntimeError
        As SimpleITK raises it.

    Returns
    -------
    str
        One line.
    """
    said = str(error)
    for sign, meaning in _MEANINGS.items():
        if sign in said:
            return meaning
    return "ITK says: " + said.strip().splitlines()[-1].split("): ")[-1]


def descend_demons(
    fixed: NDArray[Any],
    moving: NDArray[Any],
    frame: Frame,
    settings: DemonsSettings,
    *,
    initial: DisplacementField | NDArray[np.floating[Any]] | None = None,
    fixed_mask: Mask | None = None,
    moving_mask: Mask | None = None,
    progress: Progress | None = None,
) -> Descent:
    """Find the displacement that registers two images after an affine, by ITK's demons.

    The coarse-to-fine loop is that of `descent.descend`: only the small step of an iteration
    comes from a short burst of a demons filter. The loop smooths it, composes it with the
    displacement, smooths that, keeps the iterate of highest local correlation and repairs folds.

    Parameters
    ----------
    fixed, moving : ndarray
        Real images of two or three axes on the grids of `frame`; NaN voxels do not count.
    frame : Frame
        Grids, and the affine the displacement is followed by.
    settings : DemonsSettings
        Parameters.
    initial : DisplacementField or ndarray, fixed shape + (n,), optional
        Where to start: a coarser solution on its own grid, or one on the fixed grid.
    fixed_mask, moving_mask : ndarray of bool, optional
        Voxels that count; default all.
    progress : callable, optional
        Called with level, burst and squared correlation after each evaluation.

    Returns
    -------
    Descent
        The displacement, whose map has a positive Jacobian determinant at every voxel, and a
        report per level.

    Raises
    ------
    InputError
        Where arrays do not fit their grids or hold no numbers.

    References
    ----------
    Thirion, Medical Image Analysis 2 (1998) 243-260, doi:10.1016/S1361-8415(98)80022-4.
    Vercauteren et al., NeuroImage 45 (2009) S61-S72, doi:10.1016/j.neuroimage.2008.10.040.
    """
    return descend(
        fixed,
        moving,
        frame,
        settings.descent,
        initial=initial,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        progress=progress,
        propose=partial(_burst, settings),
    )


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
        side = even_out(np.where(apart, np.float32(np.nan), image.reshape(grid.shape)), radius)
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


def even_out(image: NDArray[np.float32], radius: int | None) -> NDArray[np.float32]:
    """The image at mean 0 and deviation 1, of the whole or of the window around each voxel.

    Parameters
    ----------
    image : ndarray, float32
        NaN voxels do not count.
    radius : int or None
        Of the window, in voxels; None for the whole image.

    Returns
    -------
    ndarray, float32
        NaN where the image is.
    """
    counts = np.isfinite(image)
    values = image[counts].astype(np.float64)
    mean, deviation = (values.mean(), values.std()) if values.size else (0.0, 0.0)
    if deviation == 0:
        return np.where(counts, np.float32(0), image)
    image = ((image - mean) / deviation).astype(np.float32)
    if radius is None:
        return image
    filled = np.where(counts, image, np.float32(0))
    size = 2 * int(radius) + 1
    share = np.maximum(uniform_filter(counts.astype(np.float32), size), 1e-6)
    local = uniform_filter(filled, size) / share
    square = uniform_filter(filled * filled, size) / share
    spread = np.sqrt(np.maximum(square - local**2, _LEAST_VARIANCE))
    return np.asarray((image - local) / spread, np.float32)
