"""Parameters of the deformable descent, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from itkstream.errors import InputError
from itkstream.numerics.deformation.kernels import SmoothingKernel
from itkstream.numerics.sampling.folds import MINIMUM_JACOBIAN

__all__ = ["PIPELINE_DEFAULTS", "DescentSettings", "LevelSettings"]

Abcd = tuple[float, float, float, float]

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class LevelSettings:
    """The part of `DescentSettings` that differs from level to level.

    Parameters
    ----------
    cc_radius : int
        As in `DescentSettings`, and so are the others without a word here.
    gradient_smoothing, field_smoothing : SmoothingKernel
        Operators for the force and for the displacement.
    iterations, shrink_factor : int
        Of this level.
    smooth_sigma : float
        Gaussian before shrinking, micrometres.
    node_stride : int
        Of this level.
    """

    cc_radius: int
    gradient_smoothing: SmoothingKernel
    field_smoothing: SmoothingKernel
    iterations: int
    shrink_factor: int
    smooth_sigma: float
    node_stride: int


@dataclass(frozen=True)
class DescentSettings:
    """Parameters of `descend`; every value is checked once, here.

    Lengths are in micrometres (the unit of the fixed grid) and areas in its square: the same
    images with all spacings s times as large are registered alike, voxel by voxel, by
    ``settings.scaled(s)``. Settings that suit cubic voxels of edge 1 suit others by
    ``settings.for_voxels(spacing)``.

    Parameters
    ----------
    cc_radius : int or sequence of int
        Radius of the correlation window in voxels of the level; one number or one per level.
    gradient_smoothing, field_smoothing : four floats, or a sequence of them
        (a, b, c, d) of the operators (`kernels.SmoothingKernel`) for the force and for the
        displacement; one or one per level.
    iterations : sequence of int
        At most so many per level, coarse to fine.
    shrink_factors : sequence of int
        Of each level, coarse to fine; 1 is full resolution.
    smooth_sigmas : sequence of float
        Gaussian before shrinking, micrometres.
    step : float, optional
        Longest displacement an iteration adds at full resolution, micrometres; a level shrunk by
        f takes steps up to f times as long. Default: the smallest fixed voxel spacing.
    update : {"newton", "gradient"}
        ``"newton"``: force and Gauss-Newton matrix are smoothed alike and solved per node, which
        needs a tenth of the iterations; the step is only a bound. ``"gradient"``: the smoothed
        force, scaled so that its longest vector is the step, as in the 2021 code; the step is
        halved when correlation falls for several iterations. With the tutorial's smoothing, 20 and
        10 iterations left a median error of 0.69 voxel by gradient and 0.28 by Newton.
    node_stride : int or sequence of int, optional
        Voxels per node of the displacement along the axis of smallest spacing; one or one per
        level. Other axes take as many as fit the same length. Default 4 at full resolution and 2
        on shrunk levels. One node per voxel costs eight times the smoothing and 100 instead of 30
        bytes per voxel, and registers no better.
    isotropic : bool
        Whether shrink factors and radius count in smallest voxel spacings, so that windows and
        coarse voxels become as near to cubes as whole numbers allow, or in voxels of every axis.
        Windows of deep voxels are widened as long as they hold no more voxels than one of cubes.
    damping : float
        Of the Gauss-Newton matrix, relative to squared correlation per squared voxel spacing:
        displacement is not trusted where texture is weaker than this.
    tolerance : float
        A level ends when squared correlation gains less than this per iteration.
    minimum_jacobian : float
        The result is repaired where its Jacobian determinant does not exceed this.

    Raises
    ------
    InputError
        For an invalid value; the message names it.
    """

    cc_radius: int | Sequence[int] = 12
    gradient_smoothing: Abcd | Sequence[Abcd] = (3.0, 0.0, 1.0, 2.0)
    field_smoothing: Abcd | Sequence[Abcd] = (0.5, 0.0, 1.0, 6.0)
    iterations: Sequence[int] = (200, 100)
    shrink_factors: Sequence[int] = (2, 1)
    smooth_sigmas: Sequence[float] = (4.0, 2.0)
    step: float | None = None
    update: Literal["newton", "gradient"] = "newton"
    node_stride: int | Sequence[int] | None = None
    isotropic: bool = False
    damping: float = 0.05
    tolerance: float = 1e-5
    minimum_jacobian: float = MINIMUM_JACOBIAN

    def __post_init__(self) -> None:
        shrinks = _sequence("shrink_factors", self.shrink_factors)
        levels = len(shrinks)
        if self.node_stride is None:
            object.__setattr__(self, "node_stride", tuple(4 if f == 1 else 2 for f in shrinks))
        whole = {"cc_radius": 1, "iterations": 0, "shrink_factors": 1, "node_stride": 1}
        values: dict[str, Any] = {
            name: per_level(name, getattr(self, name), levels, least, int)
            for name, least in whole.items()
        }
        values["smooth_sigmas"] = per_level("smooth_sigmas", self.smooth_sigmas, levels, 0, float)
        for name in ("gradient_smoothing", "field_smoothing"):
            values[name] = _kernels_per_level(name, getattr(self, name), levels)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_scalars()

    def _check_scalars(self) -> None:
        if self.step is not None and not (finite(self.step) and self.step > 0):
            raise InputError(f"step must be a positive length or None; got {self.step}")
        if self.update not in ("gradient", "newton"):
            raise InputError(f'update must be "gradient" or "newton"; got {self.update!r}')
        if not isinstance(self.isotropic, (bool, np.bool_)):
            raise InputError(f"isotropic must be True or False; got {self.isotropic!r}")
        for name in ("damping", "tolerance", "minimum_jacobian"):
            value = getattr(self, name)
            if not finite(value) or value < 0:
                raise InputError(f"{name} must be a number >= 0; got {value}")
        if self.damping == 0 and self.update == "newton":
            raise InputError("damping must be above 0: without it textureless nodes have no step")
        if self.minimum_jacobian >= 1:
            raise InputError(f"minimum_jacobian must be below 1; got {self.minimum_jacobian}")

    def level(self, number: int) -> LevelSettings:
        """What holds for one level.

        Parameters
        ----------
        number : int
            0 is the coarsest.

        Returns
        -------
        LevelSettings
            Its own values.
        """
        values: Any = self
        return LevelSettings(
            cc_radius=values.cc_radius[number],
            gradient_smoothing=SmoothingKernel(*values.gradient_smoothing[number]),
            field_smoothing=SmoothingKernel(*values.field_smoothing[number]),
            iterations=values.iterations[number],
            shrink_factor=values.shrink_factors[number],
            smooth_sigma=values.smooth_sigmas[number],
            node_stride=values.node_stride[number],
        )

    def select(self, levels: slice) -> DescentSettings:
        """The settings of some levels only: coarse ones for a whole image, fine ones for blocks.

        Parameters
        ----------
        levels : slice
            Of the levels, coarse to fine; at least one must remain.

        Returns
        -------
        DescentSettings
            With the values of those levels.
        """
        names = (
            "cc_radius",
            "gradient_smoothing",
            "field_smoothing",
            "iterations",
            "shrink_factors",
            "smooth_sigmas",
            "node_stride",
        )
        return replace(self, **{name: getattr(self, name)[levels] for name in names})

    def scaled(self, length: float) -> DescentSettings:
        """The settings for images whose spacings are `length` times as large.

        Parameters
        ----------
        length : float
            Ratio of the spacings.

        Returns
        -------
        DescentSettings
            With sigmas and step multiplied by it and the areas a and b by its square.
        """
        return with_lengths(self, length)

    def for_voxels(self, spacing: Sequence[float]) -> DescentSettings:
        """The settings for images of any voxels, out of those for cubes of edge 1.

        Deep voxels sample a volume less densely: a kernel that was the best of cubes lets too much
        of their noise through. With n voxels per volume in d dimensions, a kernel of width w has a
        bias of w^2 and a noise of (n w^d)^(-1/2); their squares add up to least where w grows as
        n^(-1 / (4 + d)), the rule of kernel smoothers.

        Parameters
        ----------
        spacing : sequence of float
            Of the fixed voxels.

        Returns
        -------
        DescentSettings
            Scaled by the smallest spacing, times the (4 + d)-th root of how many cubes of it a
            voxel holds.

        References
        ----------
        Scott, Multivariate Density Estimation (1992), doi:10.1002/9780470316849.
        """
        least = min(spacing)
        cubes = math.prod(h / least for h in spacing)
        return self.scaled(least * cubes ** (1 / (4 + len(spacing))))


def finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def _sequence(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)) or not len(values):
        raise InputError(f"{name} must be a sequence of one number per level; got {values!r}")
    return tuple(values)


def per_level(
    name: str, values: Any, levels: int, least: float, kind: type[int] | type[float]
) -> tuple[Any, ...]:
    """One checked number of a kind per level, out of one for each or, for some names, for all."""
    scalar = isinstance(values, (int, float, np.number))
    given = (values,) * levels if scalar and name in ("cc_radius", "node_stride") else values
    numbers = _sequence(name, given)
    if len(numbers) != levels:
        raise InputError(
            f"{name} needs one number per level, {levels} as shrink_factors has; got {values!r}"
        )
    for number in numbers:
        if not finite(number) or number < least or kind(number) != number:
            what = "whole numbers" if kind is int else "numbers"
            raise InputError(f"{name} must be {what} >= {least}; got {values!r}")
    return tuple(kind(number) for number in numbers)


def _kernels_per_level(name: str, values: Any, levels: int) -> tuple[Abcd, ...]:
    """One checked (a, b, c, d) per level, out of one for each or one for all."""
    given = _sequence(name, values)
    kernels = (given,) * levels if np.ndim(given[0]) == 0 else given
    if len(kernels) != levels or any(np.shape(k) != (4,) for k in kernels):
        raise InputError(
            f"{name} must be four numbers (a, b, c, d), or {levels} such, one per level; "
            f"got {values!r}"
        )
    try:
        checked = [SmoothingKernel(*map(float, k)) for k in kernels]
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from error
    return tuple((k.a, k.b, k.c, k.d) for k in checked)


def with_lengths(settings: Settings, length: float) -> Settings:
    """Settings of a deformation with all their lengths multiplied.

    Parameters
    ----------
    settings : DescentSettings or DemonsSettings
        Which have the same smoothing operators, sigmas and step.
    length : float
        The factor.

    Returns
    -------
    DescentSettings or DemonsSettings
        With sigmas and step multiplied by it and the areas a and b by its square.
    """
    given: Any = settings
    return replace(
        given,
        gradient_smoothing=_scaled_kernels(given.gradient_smoothing, length),
        field_smoothing=_scaled_kernels(given.field_smoothing, length),
        smooth_sigmas=tuple(s * length for s in given.smooth_sigmas),
        step=None if given.step is None else given.step * length,
    )


def _scaled_kernels(kernels: Any, length: float) -> tuple[Abcd, ...]:
    """The operators for spacings `length` times as large."""
    scaled = [SmoothingKernel(*k).scaled(length) for k in kernels]
    return tuple((k.a, k.b, k.c, k.d) for k in scaled)


PIPELINE_DEFAULTS = DescentSettings(
    cc_radius=4,
    gradient_smoothing=((48.0, 0.0, 1.0, 2.0), (24.0, 0.0, 1.0, 2.0), (24.0, 0.0, 1.0, 2.0)),
    field_smoothing=((8.0, 0.0, 1.0, 2.0), (8.0, 0.0, 1.0, 2.0), (2.0, 0.0, 1.0, 2.0)),
    iterations=(15, 10, 5),
    shrink_factors=(4, 2, 1),
    smooth_sigmas=(0.0, 0.0, 0.0),
    update="newton",
    node_stride=(1, 2, 4),
    isotropic=True,
    damping=0.001,
)
"""Settings for cubic voxels of edge 1; use ``PIPELINE_DEFAULTS.for_voxels(spacing)``.

Chosen on known truth. Blocks: 160 x 160 x 149 voxels of nuclei at 1.84 x 1.84 x 1.68 micrometres,
warped by sums of two random smooth fields, then gamma 0.8, a bias field of 30 % and Poisson noise
with 150 counts at the brightest; error inside tissue, 16 voxels off the border; lengths scaled by
the smallest spacing, 3 % less than `for_voxels` does there. Pair: the tutorial's phantom, where 4 %
of the nuclei are missing in the second round. Errors in voxels, median / 95th percentile, for
Gaussian scales (maxima) of the fields of

==============================  ===========  ===========  ===========  ===========  ===========
settings                        24, 12       32, 12       12, 7        10, 5        pair
                                (5, 1.5)     (10, 2)      (4, 2)       (3, 1.5)
==============================  ===========  ===========  ===========  ===========  ===========
these                           0.07 / 0.16  0.08 / 0.16  0.13 / 0.27  0.16 / 0.32  0.08 / 0.30
field a = 8, 4, 2               0.08 / 0.17               0.13 / 0.26  0.16 / 0.31  0.10 / 0.40
field a = 24, 8, 4              0.07 / 0.14               0.16 / 0.31  0.18 / 0.35  0.08 / 0.26
field a = 8, 8, 8               0.07 / 0.14               0.21 / 0.40  0.22 / 0.42  0.06 / 0.20
field a = 4, 4, 4               0.07 / 0.14               0.15 / 0.30  0.18 / 0.35  0.08 / 0.34
field a = 2, 2, 2               0.08 / 0.18  0.09 / 0.18  0.13 / 0.26  0.16 / 0.31  0.16 / 0.92
- and field a = 1, 1, 1         0.11 / 0.23  0.12 / 0.24  0.13 / 0.28  0.15 / 0.31
- and gradient a = 48, 12, 12   0.11 / 0.24  0.11 / 0.25  0.13 / 0.28  0.15 / 0.31
- and radius 3                  0.09 / 0.19  0.09 / 0.19  0.13 / 0.27  0.16 / 0.31
- and radius 5                  0.08 / 0.17  0.09 / 0.18  0.13 / 0.26  0.16 / 0.31
- and iterations 10, 6, 3       0.09 / 0.19  0.09 / 0.19  0.14 / 0.28  0.16 / 0.32
- and Gaussian 0.5 at level 1   0.09 / 0.19  0.09 / 0.20  0.14 / 0.28  0.16 / 0.32
==============================  ===========  ===========  ===========  ===========  ===========

The rows that begin with a dash differ from the one with field a = 2, 2, 2. A nucleus that is
missing in one image draws the field towards its neighbour; a stiff field on the coarse levels
holds it, and full resolution may still follow short waves. No result had a fold. Without full
resolution the errors nearly double. Weaker smoothing raises the local correlation of a real pair
further, but known truth says that the gain is noise.

Deep voxels. 72 x 72 x 24 voxels of the same nuclei, three times as deep as wide, errors in their
widths; "clean" has neither gamma nor bias nor noise. Narrow windows reach four smallest spacings;
wide ones hold no more voxels than one of cubes, full ones about as many. Most of the error is noise
along the deep axis: more iterations or a softer field (a = 2, 2, 2: 0.19 / 0.43) make it worse.

==============================  ===========  ===========  ===========  ===========  ===========
lengths and windows             24, 12       24, 12       32, 12       12, 7        10, 5
                                (5, 1.5)     clean        (8.5, 1.5)   (4, 2)       (3, 1.5)
==============================  ===========  ===========  ===========  ===========  ===========
for_voxels, wide: these         0.11 / 0.27  0.07 / 0.21  0.09 / 0.22  0.24 / 0.47  0.21 / 0.39
for_voxels, full                0.11 / 0.27  0.08 / 0.21  0.10 / 0.22  0.24 / 0.46  0.20 / 0.39
smallest spacing, narrow        0.17 / 0.40  0.09 / 0.23  0.11 / 0.25  0.24 / 0.48  0.21 / 0.42
smallest spacing, full          0.14 / 0.30  0.09 / 0.25  0.10 / 0.25  0.22 / 0.44  0.19 / 0.38
geometric mean, narrow          0.12 / 0.32  0.08 / 0.19  0.11 / 0.24  0.30 / 0.58  0.24 / 0.48
geometric mean, wide            0.10 / 0.24  0.07 / 0.18  0.10 / 0.21  0.28 / 0.54  0.23 / 0.44
==============================  ===========  ===========  ===========  ===========  ===========

Full windows suit nuclei that are missing in one image less well: 0.09 / 0.32 for the pair, whose
voxels are 1.5 times as deep as wide, against 0.08 / 0.27 with these.
"""
