"""Parameters of the methods that SimpleITK runs, checked once; no ITK is needed to make them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs
from attrs import Attribute, Converter, frozen

from itkstream.errors import InputError
from itkstream.numerics.deformation.settings import (
    Abcd,
    DescentSettings,
    kernels,
    minimum_jacobian,
    node_strides,
)
from itkstream.numerics.parameters import (
    Settings,
    at_least,
    check,
    each_level,
    finite,
    length_or_none,
    levels,
    one_of,
    per_level,
    per_level_field,
    positive_length,
    scale_each,
    scale_one,
    whole,
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
SplineOptimizer = Literal["lbfgsb", "gradient-descent"]
Sampling = Literal["none", "regular", "random"]
DemonsMethod = Literal["demons", "symmetric-demons", "diffeomorphic-demons"]

_fraction = check(lambda v: finite(v) and 0 < v <= 1, "be above 0 and at most 1")


@frozen
class IntensitySettings(Settings):
    """Parameters of an affine by intensities; every value is checked once, here.

    Lengths are in µm, and the defaults suit a smallest fixed voxel spacing of 1: use
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

    Examples
    --------
    >>> itkstream.affine.IntensitySettings("rigid", iterations=(50, 50)).iterations
    (50, 50)
    """

    model: Model = attrs.field(default="affine", validator=one_of(Model))
    metric: Metric = attrs.field(default="correlation", validator=one_of(Metric))
    optimizer: Optimizer = attrs.field(default="gradient-descent", validator=one_of(Optimizer))
    sampling: Sampling = attrs.field(default="regular", validator=one_of(Sampling))
    sampling_fraction: float = attrs.field(default=0.2, validator=_fraction)
    seed: int = attrs.field(default=0, validator=whole(0))
    shrink_factors: tuple[int, ...] = levels((4, 2))
    smooth_sigmas: tuple[float, ...] = each_level((2.0, 1.0), float, 0, scale=scale_each)
    iterations: tuple[int, ...] = each_level((100, 100), int, 1)
    step: float = attrs.field(default=1.0, validator=positive_length, metadata={"scale": scale_one})
    search_steps: int = attrs.field(default=4, validator=whole(1))
    bins: int = attrs.field(default=32, validator=whole(5))
    radius: int = attrs.field(default=4, validator=whole(1))
    local_normalisation: int | None = attrs.field(default=None, validator=whole(1, optional=True))

    def __attrs_post_init__(self) -> None:
        if self.optimizer == "exhaustive" and self.model != "translation":
            raise InputError(
                f"optimizer 'exhaustive' knows model 'translation' only, as a lattice over more "
                f"parameters never ends; got model {self.model!r}: choose another optimizer"
            )


@frozen
class DemonsSettings(Settings):
    """Parameters of SimpleITK's demons; every value is checked once, here.

    Lengths are in µm and areas in its square; the defaults suit a smallest fixed voxel
    spacing of 1: use ``settings.for_voxels(spacing)`` for others.

    Parameters
    ----------
    method : {'demons', 'symmetric-demons', 'diffeomorphic-demons'}
        Which of ITK's filters gives the force: Thirion's, the symmetric one, or the symmetric one
        whose steps are exponentials.
    shrink_factors : sequence of int
        Of each level, counted in smallest fixed voxel spacings; 1 is full resolution.
    gradient_smoothing, field_smoothing : four floats, or a sequence of them
        (a, b, c, d) of the operators (`kernels.SmoothingKernel`) for the update and for the
        displacement; one or one per level.
    iterations : sequence of int
        At most so many demons iterations per level, coarse to fine.
    smooth_sigmas : sequence of float
        Gaussian before shrinking, µm.
    burst : int
        Demons iterations between two smoothings.
    local_normalisation : int or None
        Radius, in voxels of the level, of the window in which both images are brought to mean 0
        and deviation 1, so that their squared difference follows local correlation; None where
        intensities agree already.
    cc_radius : int or sequence of int
        Radius of the window of local correlation, by which the best iterate is chosen.
    step : float, optional
        Longest displacement a burst adds at full resolution, µm; a level shrunk by f
        takes steps up to f times as long. Default: the smallest fixed voxel spacing.
    node_stride : int or sequence of int
        Voxels per node of the displacement, as in `DescentSettings`.
    tolerance : float
        A level ends when squared correlation gains less than this per burst.

    Raises
    ------
    InputError
        For an invalid value; the message names it.

    Examples
    --------
    >>> itkstream.deform.DemonsSettings("demons").method
    'demons'
    """

    method: DemonsMethod = attrs.field(default="symmetric-demons", validator=one_of(DemonsMethod))
    shrink_factors: tuple[int, ...] = levels((4, 2, 1))
    gradient_smoothing: tuple[Abcd, ...] = kernels((24.0, 0.0, 1.0, 2.0))
    field_smoothing: tuple[Abcd, ...] = kernels((4.0, 0.0, 1.0, 2.0))
    iterations: tuple[int, ...] = each_level((60, 40, 20), int, 0)
    smooth_sigmas: tuple[float, ...] = each_level((0.0, 0.0, 0.0), float, 0, scale=scale_each)
    burst: int = attrs.field(default=2, validator=whole(1))
    local_normalisation: int | None = attrs.field(default=4, validator=whole(1, optional=True))
    cc_radius: tuple[int, ...] = each_level(4, int, 1, shared=True)
    step: float | None = attrs.field(
        default=None, validator=length_or_none, metadata={"scale": scale_one}
    )
    node_stride: tuple[int, ...] = node_strides(2)
    tolerance: float = attrs.field(default=1e-4, validator=at_least(0))

    @property
    def isotropic(self) -> bool:
        """Shrink factors and radii count in smallest voxel spacings."""
        return True

    @property
    def descent(self) -> DescentSettings:
        """The coarse-to-fine loop around the bursts."""
        names = (
            *("cc_radius", "gradient_smoothing", "field_smoothing", "shrink_factors"),
            *("smooth_sigmas", "node_stride", "step", "tolerance"),
        )
        return DescentSettings(
            iterations=tuple(-(-n // self.burst) for n in self.iterations),
            # The loop's rules for small steps that overshoot: it shortens them.
            update="gradient",
            isotropic=True,
            **{name: getattr(self, name) for name in names},
        )


def _control_spacings(given: Any, settings: Any, field: Attribute[Any]) -> tuple[float, ...]:
    """One positive distance per level."""
    count = len(settings.shrink_factors)
    each = (given,) * count if finite(given) else given
    spacings = per_level(field.name, each, count, 0, float)
    if min(spacings) <= 0:
        raise InputError(f"{field.name} must be positive; got {given!r}")
    return spacings


@frozen(kw_only=True)
class BsplineSettings(Settings):
    """Parameters of SimpleITK's B-spline deformation; every value is checked once, here.

    Lengths are in µm, and the defaults suit a smallest fixed voxel spacing of 1: use
    ``settings.for_voxels(spacing)`` for others.

    Parameters
    ----------
    shrink_factors : sequence of int
        Of the levels, coarse to fine, counted in smallest fixed voxel spacings.
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

    Examples
    --------
    >>> itkstream.deform.BsplineSettings(control_spacing=40.0).control_spacing[0]
    40.0
    """

    shrink_factors: tuple[int, ...] = levels((4, 2))
    control_spacing: tuple[float, ...] = per_level_field(
        24.0, Converter(_control_spacings, takes_self=True, takes_field=True), scale_each
    )
    metric: Metric = attrs.field(default="mean-squares", validator=one_of(Metric))
    optimizer: SplineOptimizer = attrs.field(default="lbfgsb", validator=one_of(SplineOptimizer))
    sampling: Sampling = attrs.field(default="regular", validator=one_of(Sampling))
    sampling_fraction: float = attrs.field(default=0.03, validator=_fraction)
    seed: int = attrs.field(default=0, validator=whole(0))
    smooth_sigmas: tuple[float, ...] = each_level((0.0, 0.0), float, 0, scale=scale_each)
    iterations: tuple[int, ...] = each_level((10, 15), int, 1)
    step: float = attrs.field(
        default=0.25, validator=positive_length, metadata={"scale": scale_one}
    )
    bins: int = attrs.field(default=32, validator=whole(5))
    radius: int = attrs.field(default=4, validator=whole(1))
    local_normalisation: int | None = attrs.field(default=4, validator=whole(1, optional=True))
    cc_radius: int = attrs.field(default=4, validator=whole(1))
    minimum_jacobian: float = attrs.field(default=MINIMUM_JACOBIAN, validator=minimum_jacobian)

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
        """The comparison of images, as for an affine."""
        names = (
            *("metric", "optimizer", "sampling", "sampling_fraction", "seed", "shrink_factors"),
            *("smooth_sigmas", "iterations", "step", "bins", "radius"),
        )
        return IntensitySettings(**{name: getattr(self, name) for name in names})


DeformSettings: TypeAlias = DescentSettings | DemonsSettings | BsplineSettings
