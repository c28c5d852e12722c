"""Parameters of the methods that SimpleITK runs, checked once; no ITK is needed to make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from itkstream.errors import InputError
from itkstream.numerics.deformation.settings import (
    Abcd,
    DescentSettings,
    finite,
    per_level,
    with_lengths,
)
from itkstream.numerics.sampling.folds import MINIMUM_JACOBIAN

__all__ = [
    "BsplineSettings",
    "DeformSettings",
    "DemonsMethod",
    "DemonsSettings",
    "IntensitySettings",
    "Metric",
    "Model",
    "Optimizer",
]

Model = Literal["translation", "rigid", "similarity", "affine"]
Metric = Literal["correlation", "mutual-information", "mean-squares", "neighbourhood-correlation"]
Optimizer = Literal["gradient-descent", "lbfgsb", "powell", "exhaustive"]
Sampling = Literal["none", "regular", "random"]
DemonsMethod = Literal["demons", "symmetric-demons", "diffeomorphic-demons"]


@dataclass(frozen=True)
class IntensitySettings:
    """How an affine is refined by comparing intensities; every value is checked once, here.

    Lengths are in micrometres, and the defaults suit a smallest fixed voxel spacing of 1: use
    ``settings.scaled(min(spacing))`` for others.

    Parameters
    ----------
    model : {'translation', 'rigid', 'similarity', 'affine'}
        What may be added to the initial transform.
    metric : {'correlation', 'mutual-information', 'mean-squares', 'neighbourhood-correlation'}
        How alike two images are. 'mutual-information' needs no linear relation between their
        intensities; 'neighbourhood-correlation' is by far the slowest.
    optimizer : {'gradient-descent', 'lbfgsb', 'powell', 'exhaustive'}
        How the best transform is searched. 'gradient-descent' takes regular steps, shortened where
        it turns back; 'lbfgsb' is quick near the solution, but its first step may leave the image
        where the metric is flat; 'powell' needs no gradient and ten times as long; 'exhaustive'
        tries a lattice of shifts and knows translations only.
    sampling : {'none', 'regular', 'random'}
        Which fixed voxels are compared; 'none' takes all. Samples are 'regular' up to a random
        shift inside their voxel.
    sampling_fraction : float
        Share of the voxels that are sampled, above 0 and at most 1.
    seed : int
        Of the samples.
    shrink_factors : sequence of int
        Of the levels, coarse to fine, counted in smallest fixed voxel spacings.
    smooth_sigmas : sequence of float
        Gaussian before shrinking, one per level.
    iterations : sequence of int
        At most so many per level; 'exhaustive' has none.
    step : float
        First step of 'gradient-descent' and 'powell', distance of the shifts of 'exhaustive', at
        full resolution; a level shrunk by f takes steps f times as long. 'lbfgsb' finds its own.
    search_steps : int
        Shifts that 'exhaustive' tries on either side, per axis and level.
    bins : int
        Of the histograms of 'mutual-information', per image.
    radius : int
        Of the window of 'neighbourhood-correlation', in voxels of the level.
    local_normalisation : int, optional
        Radius, in voxels of the level, of the window in which both images are first brought to
        mean 0 and deviation 1, so that 'correlation' and 'mean-squares' follow local correlation;
        default None compares intensities as they are.

    Raises
    ------
    InputError
        For an invalid value; the message names it.
    """

    model: Model = "affine"
    metric: Metric = "correlation"
    optimizer: Optimizer = "gradient-descent"
    sampling: Sampling = "regular"
    sampling_fraction: float = 0.2
    seed: int = 0
    shrink_factors: Sequence[int] = (4, 2)
    smooth_sigmas: Sequence[float] = (2.0, 1.0)
    iterations: Sequence[int] = (100, 100)
    step: float = 1.0
    search_steps: int = 4
    bins: int = 32
    radius: int = 4
    local_normalisation: int | None = None

    def __post_init__(self) -> None:
        kinds = {"model": Model, "metric": Metric, "optimizer": Optimizer, "sampling": Sampling}
        for name, kind in kinds.items():
            _check_choice(name, getattr(self, name), get_args(kind))
        if self.optimizer == "exhaustive" and self.model != "translation":
            raise InputError(
                f"optimizer 'exhaustive' knows model 'translation' only, as a lattice over more "
                f"parameters never ends; got model {self.model!r}: choose another optimizer"
            )
        wholes = {"seed": 0, "search_steps": 1, "bins": 5, "radius": 1}
        if self.local_normalisation is not None:
            wholes["local_normalisation"] = 1
        for name, least in wholes.items():
            value = getattr(self, name)
            if not finite(value) or value != int(value) or value < least:
                raise InputError(f"{name} must be a whole number >= {least}; got {value!r}")
        if not finite(self.sampling_fraction) or not 0 < self.sampling_fraction <= 1:
            raise InputError(
                f"sampling_fraction must be above 0 and at most 1; got {self.sampling_fraction!r}"
            )
        _check_step(self.step)
        levels = _levels(self.shrink_factors)
        wanted: dict[str, tuple[int, type[Any]]] = {
            "shrink_factors": (1, int),
            "smooth_sigmas": (0, float),
            "iterations": (1, int),
        }
        for name, (least, of) in wanted.items():
            object.__setattr__(self, name, per_level(name, getattr(self, name), levels, least, of))

    def scaled(self, length: float) -> IntensitySettings:
        """The settings for images whose spacings are `length` times as large.

        Parameters
        ----------
        length : float
            Ratio of the spacings.

        Returns
        -------
        IntensitySettings
            With sigmas and step multiplied by it.
        """
        sigmas = tuple(s * length for s in self.smooth_sigmas)
        return replace(self, smooth_sigmas=sigmas, step=self.step * length)


@dataclass(frozen=True)
class DemonsSettings:
    """How SimpleITK's demons deform an image; every value is checked once, here.

    Lengths are in micrometres and areas in its square; the defaults suit a smallest fixed voxel
    spacing of 1: use ``settings.for_voxels(spacing)`` for others.

    Parameters
    ----------
    method : {'demons', 'symmetric-demons', 'diffeomorphic-demons'}
        Which of ITK's filters gives the force: Thirion's, the symmetric one, or the symmetric one
        whose steps are exponentials.
    gradient_smoothing, field_smoothing : four floats, or a sequence of them
        (a, b, c, d) of the operators (`kernels.SmoothingKernel`) for the update and for the
        displacement; one or one per level.
    iterations : sequence of int
        At most so many demons iterations per level, coarse to fine.
    shrink_factors : sequence of int
        Of each level, counted in smallest fixed voxel spacings; 1 is full resolution.
    smooth_sigmas : sequence of float
        Gaussian before shrinking, micrometres.
    burst : int
        Demons iterations between two smoothings.
    local_normalisation : int or None
        Radius, in voxels of the level, of the window in which both images are brought to mean 0
        and deviation 1, so that their squared difference follows local correlation; None where
        intensities agree already.
    cc_radius : int or sequence of int
        Radius of the window of local correlation, by which the best iterate is chosen.
    step : float, optional
        Longest displacement a burst adds at full resolution, micrometres; a level shrunk by f
        takes steps up to f times as long. Default: the smallest fixed voxel spacing.
    node_stride : int or sequence of int
        Voxels per node of the displacement, as in `DescentSettings`.
    tolerance : float
        A level ends when squared correlation gains less than this per burst.

    Raises
    ------
    InputError
        For an invalid value; the message names it.
    """

    method: DemonsMethod = "symmetric-demons"
    gradient_smoothing: Abcd | Sequence[Abcd] = (24.0, 0.0, 1.0, 2.0)
    field_smoothing: Abcd | Sequence[Abcd] = (4.0, 0.0, 1.0, 2.0)
    iterations: Sequence[int] = (60, 40, 20)
    shrink_factors: Sequence[int] = (4, 2, 1)
    smooth_sigmas: Sequence[float] = (0.0, 0.0, 0.0)
    burst: int = 2
    local_normalisation: int | None = 4
    cc_radius: int | Sequence[int] = 4
    step: float | None = None
    node_stride: int | Sequence[int] = 2
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        _check_choice("method", self.method, get_args(DemonsMethod))
        wholes = [("burst", self.burst)]
        if self.local_normalisation is not None:
            wholes.append(("local_normalisation", self.local_normalisation))
        for name, value in wholes:
            if not finite(value) or value != int(value) or value < 1:
                raise InputError(f"{name} must be a whole number >= 1; got {value!r}")
        levels = _levels(self.shrink_factors)
        iterations = per_level("iterations", self.iterations, levels, 0, int)
        object.__setattr__(self, "iterations", iterations)
        checked = self.descent
        for name in _PER_LEVEL:
            object.__setattr__(self, name, getattr(checked, name))

    @property
    def isotropic(self) -> bool:
        """Shrink factors and radii count in smallest voxel spacings."""
        return True

    @property
    def descent(self) -> DescentSettings:
        """The coarse-to-fine loop around the bursts."""
        bursts = tuple(-(-n // self.burst) for n in self.iterations)
        return DescentSettings(
            iterations=bursts,
            # The loop's rules for small steps that overshoot: it shortens them.
            update="gradient",
            step=self.step,
            isotropic=True,
            tolerance=self.tolerance,
            **{name: getattr(self, name) for name in _PER_LEVEL},
        )

    def select(self, levels: slice) -> DemonsSettings:
        """The settings of some levels only: coarse ones for a whole image, fine ones for blocks.

        Parameters
        ----------
        levels : slice
            Of the levels, coarse to fine; at least one must remain.

        Returns
        -------
        DemonsSettings
            With the values of those levels.
        """
        names = ("iterations", *_PER_LEVEL)
        return replace(self, **{name: getattr(self, name)[levels] for name in names})

    def scaled(self, length: float) -> DemonsSettings:
        """The settings for images whose spacings are `length` times as large.

        Parameters
        ----------
        length : float
            Ratio of the spacings.

        Returns
        -------
        DemonsSettings
            With sigmas and step multiplied by it and the areas a and b by its square.
        """
        return with_lengths(self, length)

    def for_voxels(self, spacing: Sequence[float]) -> DemonsSettings:
        """The settings for images of any voxels, out of those for a smallest spacing of 1.

        Demons gain nothing from wider smoothing where voxels are deep.

        Parameters
        ----------
        spacing : sequence of float
            Of the fixed voxels.

        Returns
        -------
        DemonsSettings
            Scaled by the smallest spacing.
        """
        return self.scaled(min(spacing))


@dataclass(frozen=True)
class BsplineSettings:
    """How SimpleITK deforms an image by a B-spline; every value is checked once, here.

    Lengths are in micrometres, and the defaults suit a smallest fixed voxel spacing of 1: use
    ``settings.for_voxels(spacing)`` for others.

    Parameters
    ----------
    control_spacing : float or sequence of float
        Distance of the control points; one or one per level.
    metric : {'mean-squares', 'correlation', 'mutual-information', 'neighbourhood-correlation'}
        How alike two images are. With `local_normalisation`, 'mean-squares' follows local
        correlation, at a hundredth of the time of 'neighbourhood-correlation'.
    optimizer : {'lbfgsb', 'gradient-descent'}
        How the best control points are searched.
    sampling : {'regular', 'random', 'none'}
        Which fixed voxels are compared; 'none' takes all.
    sampling_fraction : float
        Share of the voxels of the finest level that are sampled, above 0 and at most 1; coarser
        levels take as many samples, or all. Time grows with the samples times the control points.
    seed : int
        Of the samples.
    shrink_factors : sequence of int
        Of the levels, coarse to fine, counted in smallest fixed voxel spacings.
    smooth_sigmas : sequence of float
        Gaussian before shrinking, one per level.
    iterations : sequence of int
        At most so many per level.
    step : float
        First step of 'gradient-descent', by which control points move on average, at full
        resolution; a level shrunk by f takes steps f times as long. 'lbfgsb' finds its own.
    bins : int
        Of the histograms of 'mutual-information', per image.
    radius : int
        Of the window of 'neighbourhood-correlation', in voxels of the level.
    local_normalisation : int or None
        Radius, in voxels of the level, of the window in which both images are brought to mean 0
        and deviation 1; None where intensities agree already, or for 'mutual-information' of
        images whose contrasts differ.
    cc_radius : int
        Radius of the window of local correlation, by which the result is judged.
    minimum_jacobian : float
        The result is repaired where its Jacobian determinant does not exceed this.

    Raises
    ------
    InputError
        For an invalid value; the message names it.
    """

    control_spacing: float | Sequence[float] = 24.0
    metric: Metric = "mean-squares"
    optimizer: Optimizer = "lbfgsb"
    sampling: Sampling = "regular"
    sampling_fraction: float = 0.03
    seed: int = 0
    shrink_factors: Sequence[int] = (4, 2)
    smooth_sigmas: Sequence[float] = (0.0, 0.0)
    iterations: Sequence[int] = (10, 15)
    step: float = 0.25
    bins: int = 32
    radius: int = 4
    local_normalisation: int | None = 4
    cc_radius: int = 4
    minimum_jacobian: float = MINIMUM_JACOBIAN

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.optimizer, ("lbfgsb", "gradient-descent"))
        wholes = [("cc_radius", self.cc_radius)]
        if self.local_normalisation is not None:
            wholes.append(("local_normalisation", self.local_normalisation))
        for name, value in wholes:
            if not finite(value) or value != int(value) or value < 1:
                raise InputError(f"{name} must be a whole number >= 1; got {value!r}")
        if not finite(self.minimum_jacobian) or not 0 <= self.minimum_jacobian < 1:
            raise InputError(
                f"minimum_jacobian must be at least 0 and below 1; got {self.minimum_jacobian!r}"
            )
        levels = _levels(self.shrink_factors)
        given = self.control_spacing
        spacings = per_level(
            "control_spacing", (given,) * levels if finite(given) else given, levels, 0, float
        )
        if min(spacings) <= 0:
            raise InputError(f"control_spacing must be positive; got {given!r}")
        object.__setattr__(self, "control_spacing", spacings)
        checked = self.comparison
        for name in ("shrink_factors", "smooth_sigmas", "iterations"):
            object.__setattr__(self, name, getattr(checked, name))

    @property
    def isotropic(self) -> bool:
        """Shrink factors and radii count in smallest voxel spacings."""
        return True

    @property
    def node_stride(self) -> tuple[int, ...]:
        """Voxels of each level per node that holds all of the displacement's detail."""
        return (1,) * len(self.shrink_factors)

    @property
    def comparison(self) -> IntensitySettings:
        """How images are compared, as for an affine."""
        names = (
            *("metric", "optimizer", "sampling", "sampling_fraction", "seed", "shrink_factors"),
            *("smooth_sigmas", "iterations", "step", "bins", "radius"),
        )
        return IntensitySettings(**{name: getattr(self, name) for name in names})

    def select(self, levels: slice) -> BsplineSettings:
        """The settings of some levels only: coarse ones for a whole image, fine ones for blocks.

        Parameters
        ----------
        levels : slice
            Of the levels, coarse to fine; at least one must remain.

        Returns
        -------
        BsplineSettings
            With the values of those levels.
        """
        names = ("control_spacing", "shrink_factors", "smooth_sigmas", "iterations")
        return replace(self, **{name: getattr(self, name)[levels] for name in names})

    def scaled(self, length: float) -> BsplineSettings:
        """The settings for images whose spacings are `length` times as large.

        Parameters
        ----------
        length : float
            Ratio of the spacings.

        Returns
        -------
        BsplineSettings
            With spacings of control points, sigmas and step multiplied by it.
        """
        spacings: Any = self.control_spacing
        return replace(
            self,
            control_spacing=tuple(s * length for s in spacings),
            smooth_sigmas=tuple(s * length for s in self.smooth_sigmas),
            step=self.step * length,
        )

    def for_voxels(self, spacing: Sequence[float]) -> BsplineSettings:
        """The settings for images of any voxels, out of those for a smallest spacing of 1.

        Parameters
        ----------
        spacing : sequence of float
            Of the fixed voxels.

        Returns
        -------
        BsplineSettings
            Scaled by the smallest spacing.
        """
        return self.scaled(min(spacing))


DeformSettings: TypeAlias = DescentSettings | DemonsSettings | BsplineSettings

_PER_LEVEL = (
    "cc_radius",
    "gradient_smoothing",
    "field_smoothing",
    "shrink_factors",
    "smooth_sigmas",
    "node_stride",
)


def _check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _check_step(step: Any) -> None:
    if not finite(step) or step <= 0:
        raise InputError(f"step must be a positive length; got {step!r}")


def _levels(shrink_factors: Any) -> int:
    if isinstance(shrink_factors, str) or not hasattr(shrink_factors, "__len__"):
        raise InputError(f"shrink_factors must be one number per level; got {shrink_factors!r}")
    return len(shrink_factors)
