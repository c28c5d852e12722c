"""A search by SimpleITK's registration method on one level: metric, optimizer and sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.geometry.itk_bridge import quiet_itk, to_itk_image
from itkstream.numerics.itk.settings import IntensitySettings
from itkstream.numerics.threads import get_threads

__all__ = ["ItkImage", "ItkSearch"]

# Shortest step of the descents, as a share of the first one.
_LAST_STEP = 1e-3


@dataclass(frozen=True, eq=False)
class ItkImage:
    """An image of one level in ITK's hands, and which of its voxels count.

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
    def of(cls, voxels: NDArray[np.float32], grid: Grid) -> ItkImage:
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
class ItkSearch:
    """A search for the best transform between both images of one level.

    Parameters
    ----------
    fixed, moving : ItkImage
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

    fixed: ItkImage
    moving: ItkImage
    initial: sitk.Transform
    settings: IntensitySettings
    iterations: int
    step: float
    scaled: bool = True

    def find(self, start: sitk.Transform) -> sitk.Transform:
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
        method.SetNumberOfWorkUnits(_WORK_UNITS.get(self.settings.metric, 1))
        # Who asks does the units, and beside it so many threads of ITK's.
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(get_threads())
        _METRICS[self.settings.metric](method, self.settings)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetMovingInitialTransform(self.initial)
        if self.fixed.mask is not None:
            method.SetMetricFixedMask(self.fixed.mask)
        if self.moving.mask is not None:
            method.SetMetricMovingMask(self.moving.mask)
        return method


Method: TypeAlias = sitk.ImageRegistrationMethod

# These metrics add what the units of work found in the order of the units; the others in that in
# which threads end. As many on each machine: results do not depend on its threads.
_WORK_UNITS = {"correlation": 4, "mean-squares": 4}

_METRICS: dict[str, Callable[[Method, IntensitySettings], None]] = {
    "correlation": lambda method, _: method.SetMetricAsCorrelation(),
    "mean-squares": lambda method, _: method.SetMetricAsMeanSquares(),
    "mutual-information": lambda method, s: method.SetMetricAsMattesMutualInformation(s.bins),
    "neighbourhood-correlation": lambda method, s: method.SetMetricAsANTSNeighborhoodCorrelation(
        s.radius
    ),
}


def _by_gradient(method: Method, search: ItkSearch) -> None:
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=search.step,
        minStep=search.step * _LAST_STEP,
        numberOfIterations=search.iterations,
        gradientMagnitudeTolerance=1e-12,
        estimateLearningRate=method.EachIteration if search.scaled else method.Never,
        maximumStepSizeInPhysicalUnits=search.step,
    )
    if search.scaled:
        method.SetOptimizerScalesFromPhysicalShift()


def _by_lbfgsb(method: Method, search: ItkSearch) -> None:
    method.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-8,
        numberOfIterations=search.iterations,
        maximumNumberOfFunctionEvaluations=4 * search.iterations,
        costFunctionConvergenceFactor=1e5,
    )


def _by_powell(method: Method, search: ItkSearch) -> None:
    method.SetOptimizerAsPowell(
        numberOfIterations=search.iterations,
        stepLength=search.step,
        stepTolerance=search.step * _LAST_STEP,
        valueTolerance=1e-7,
    )
    method.SetOptimizerScalesFromPhysicalShift()


def _by_lattice(method: Method, search: ItkSearch) -> None:
    steps = [search.settings.search_steps] * search.initial.GetDimension()
    method.SetOptimizerAsExhaustive(steps, search.step)


_OPTIMIZERS: dict[str, Callable[[Method, ItkSearch], None]] = {
    "gradient-descent": _by_gradient,
    "lbfgsb": _by_lbfgsb,
    "powell": _by_powell,
    "exhaustive": _by_lattice,
}
