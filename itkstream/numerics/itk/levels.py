"""SimpleITK's registration methods behind this package's values: intensity affine and demons.

Frames and settings come in and plain arrays leave in array-axis order; `itk_bridge` turns axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.geometry.itk_bridge import quiet_itk, to_itk_image
from itkstream.numerics.itk.settings import IntensitySettings

__all__ = ["ItkLevel", "ItkSide", "normalise_locally", "what_itk_says"]


Floats: TypeAlias = NDArray[np.float64]

# What ITK says, and what that means to a user.
_TOO_FEW = "too few voxels that count lie on each other in both images"
_MEANINGS = {
    "map outside moving image buffer": _TOO_FEW,
    "No valid points": _TOO_FEW,
    "number of pixels along direction": "one has fewer than 4 planes along an axis",
}

# Shortest step of the descents, as a share of the first one.
_LAST_STEP = 1e-3

# Variance, relative to that of the image, below which a window holds no texture.
_LEAST_VARIANCE = 1e-3


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

        Shapes: `voxels` grid.shape.
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
        """Find the best change of the initial transform."""
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
        """The metric over all voxels."""
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


def what_itk_says(error: RuntimeError) -> str:
    """The message of an error of ITK in words of ours, or without file, line and object."""
    said = str(error)
    for sign, meaning in _MEANINGS.items():
        if sign in said:
            return meaning
    return "ITK says: " + said.strip().splitlines()[-1].split("): ")[-1]


def normalise_locally(image: NDArray[np.float32], radius: int | None) -> NDArray[np.float32]:
    """The image at mean 0 and deviation 1, of the whole or of the window around each voxel."""
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
