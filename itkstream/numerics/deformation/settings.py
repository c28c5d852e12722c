"""Parameters of the deformable descent, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import attrs
import numpy as np
from attrs import Attribute, Converter, evolve, frozen

from itkstream.errors import InputError
from itkstream.numerics.deformation.kernels import SmoothingKernel
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
    scale_each,
    scale_one,
)
from itkstream.numerics.sampling.folds import MINIMUM_JACOBIAN

__all__ = [
    "PIPELINE_DEFAULTS",
    "PIPELINE_MIND",
    "Abcd",
    "DescentSettings",
    "LevelSettings",
    "Similarity",
    "kernels",
    "node_strides",
    "scaled_kernels",
]

Abcd: TypeAlias = tuple[float, float, float, float]
Update = Literal["newton", "gradient"]
Similarity = Literal["lcc", "mind"]


@dataclass(frozen=True)
class LevelSettings:
    """The part of `DescentSettings` for one level."""

    cc_radius: int
    gradient_smoothing: SmoothingKernel
    field_smoothing: SmoothingKernel
    iterations: int
    shrink_factor: int
    smooth_sigma: float
    node_stride: int


def _kernels_per_level(name: str, values: Any, count: int) -> tuple[Abcd, ...]:
    """One checked (a, b, c, d) per level, out of one for each or one for all."""
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)) or not len(values):
        raise InputError(f"{name} must be four numbers (a, b, c, d); got {values!r}")
    given = (tuple(values),) * count if np.ndim(values[0]) == 0 else tuple(values)
    if len(given) != count or any(np.shape(k) != (4,) for k in given):
        raise InputError(
            f"{name} must be four numbers (a, b, c, d), or {count} such, one per level; "
            f"got {values!r}"
        )
    try:
        checked = [SmoothingKernel(*map(float, k)) for k in given]
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from error
    return tuple((k.a, k.b, k.c, k.d) for k in checked)


def scaled_kernels(values: tuple[Abcd, ...], length: float) -> tuple[Abcd, ...]:
    """The operators for spacings `length` times as large."""
    scaled = [SmoothingKernel(*k).scaled(length) for k in values]
    return tuple((k.a, k.b, k.c, k.d) for k in scaled)


def kernels(default: Any) -> Any:
    """A field for (a, b, c, d) of a smoothing operator per level, or one for all levels."""

    def convert(values: Any, settings: Any, field: Attribute[Any]) -> tuple[Abcd, ...]:
        return _kernels_per_level(field.name, values, len(settings.shrink_factors))

    return per_level_field(
        default, Converter(convert, takes_self=True, takes_field=True), scaled_kernels
    )


def node_strides(default: Any) -> Any:
    """A field for voxels per node; None: 4 at full resolution and 2 on shrunk levels."""

    def convert(values: Any, settings: Any, field: Attribute[Any]) -> tuple[int, ...]:
        shrinks = settings.shrink_factors
        if values is None:
            values = [4 if factor == 1 else 2 for factor in shrinks]
        given = (values,) * len(shrinks) if finite(values) else values
        return per_level(field.name, given, len(shrinks), 1, int)

    return per_level_field(default, Converter(convert, takes_self=True, takes_field=True))


minimum_jacobian = check(lambda v: finite(v) and 0 <= v < 1, "be at least 0 and below 1")


@frozen(kw_only=True)
class DescentSettings(Settings):
    """Parameters of `descend`; every value is checked once, here.

    Lengths are in µm (the unit of the fixed grid) and areas in its square: the same
    images with all spacings s times as large are registered alike, voxel by voxel, by
    ``settings.scaled(s)``. Settings that suit cubic voxels of edge 1 suit others by
    ``settings.for_voxels(spacing)``.

    Parameters
    ----------
    shrink_factors : sequence of int
        Of each level, coarse to fine; 1 is full resolution.
    cc_radius : int or sequence of int
        Radius of the correlation window in voxels of the level; one number or one per level.
    gradient_smoothing, field_smoothing : four floats, or a sequence of them
        (a, b, c, d) of the operators (`kernels.SmoothingKernel`) for the force and for the
        displacement; one or one per level.
    iterations : sequence of int
        At most so many per level, coarse to fine.
    smooth_sigmas : sequence of float
        Gaussian before shrinking, µm.
    step : float, optional
        Longest displacement an iteration adds at full resolution, µm; a level shrunk by
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
    similarity : {"lcc", "mind"}
        What is correlated in the windows. ``"lcc"``: intensities, where what is bright in one image
        is bright in the other, or all of it dark. ``"mind"``: self-similarity descriptors (Heinrich
        et al., doi:10.1016/j.media.2012.05.008 and doi:10.1007/978-3-642-40811-3_24), where two
        stains or two microscopes show the same edges in other ways; it takes four times as long,
        and is less exact where ``"lcc"`` serves.

    Raises
    ------
    InputError
        For an invalid value; the message names it.

    Examples
    --------
    >>> itkstream.deform.DescentSettings(iterations=(30, 20)).update
    'newton'
    """

    shrink_factors: tuple[int, ...] = levels((2, 1))
    cc_radius: tuple[int, ...] = each_level(12, int, 1, shared=True)
    gradient_smoothing: tuple[Abcd, ...] = kernels((3.0, 0.0, 1.0, 2.0))
    field_smoothing: tuple[Abcd, ...] = kernels((0.5, 0.0, 1.0, 6.0))
    iterations: tuple[int, ...] = each_level((200, 100), int, 0)
    smooth_sigmas: tuple[float, ...] = each_level((4.0, 2.0), float, 0, scale=scale_each)
    step: float | None = attrs.field(
        default=None, validator=length_or_none, metadata={"scale": scale_one}
    )
    update: Update = attrs.field(default="newton", validator=one_of(Update))
    node_stride: tuple[int, ...] = node_strides(None)
    isotropic: bool = attrs.field(
        default=False,
        validator=check(lambda v: isinstance(v, (bool, np.bool_)), "be True or False"),
    )
    damping: float = attrs.field(default=0.05, validator=at_least(0))
    tolerance: float = attrs.field(default=1e-5, validator=at_least(0))
    minimum_jacobian: float = attrs.field(default=MINIMUM_JACOBIAN, validator=minimum_jacobian)
    similarity: Similarity = attrs.field(default="lcc", validator=one_of(Similarity))

    def __attrs_post_init__(self) -> None:
        if self.damping == 0 and self.update == "newton":
            raise InputError("damping must be above 0: without it textureless nodes have no step")

    def level(self, number: int) -> LevelSettings:
        """Take the values of one level.

        Parameters
        ----------
        number : int
            Of the level; 0 is the coarsest.

        Returns
        -------
        LevelSettings
            One value of each.

        Examples
        --------
        >>> itkstream.deform.DescentSettings(iterations=(20, 10)).level(1).iterations
        10
        """
        return LevelSettings(
            cc_radius=self.cc_radius[number],
            gradient_smoothing=SmoothingKernel(*self.gradient_smoothing[number]),
            field_smoothing=SmoothingKernel(*self.field_smoothing[number]),
            iterations=self.iterations[number],
            shrink_factor=self.shrink_factors[number],
            smooth_sigma=self.smooth_sigmas[number],
            node_stride=self.node_stride[number],
        )

    def for_voxels(self, spacing: Sequence[float]) -> Self:
        """The settings for images of any voxels, out of those for cubes of edge 1.

        Deep voxels sample a volume less densely: a kernel that was the best of cubes lets too much
        of their noise through. With n voxels per volume in d dimensions, a kernel of width w has a
        bias of w^2 and a noise of (n w^d)^(-1/2); their squares add up to least where w grows as
        n^(-1 / (4 + d)), the rule of kernel smoothers (Scott, Multivariate Density Estimation,
        1992, doi:10.1002/9780470316849): scaled by the smallest spacing, times the (4 + d)-th root
        of how many cubes of it a voxel holds.
        """
        least = min(spacing)
        cubes = math.prod(h / least for h in spacing)
        return self.scaled(least * cubes ** (1 / (4 + len(spacing))))


PIPELINE_DEFAULTS = DescentSettings(
    cc_radius=(4, 4, 4),
    gradient_smoothing=((48.0, 0.0, 1.0, 2.0), (24.0, 0.0, 1.0, 2.0), (24.0, 0.0, 1.0, 2.0)),
    field_smoothing=((8.0, 0.0, 1.0, 2.0), (8.0, 0.0, 1.0, 2.0), (2.0, 0.0, 1.0, 2.0)),
    iterations=(15, 10, 5),
    shrink_factors=(4, 2, 1),
    smooth_sigmas=(0.0, 0.0, 0.0),
    update="newton",
    node_stride=(1, 2, 4),
    isotropic=True,
    damping=0.001,
    minimum_jacobian=0.1,
)
"""Settings for cubic voxels of edge 1; use ``PIPELINE_DEFAULTS.for_voxels(spacing)``.

Chosen on known truth. Blocks: 160 x 160 x 149 voxels of nuclei at 1.84 x 1.84 x 1.68 µm,
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

PIPELINE_MIND = evolve(
    PIPELINE_DEFAULTS,
    field_smoothing=((24.0, 0.0, 1.0, 2.0), (24.0, 0.0, 1.0, 2.0), (8.0, 0.0, 1.0, 2.0)),
    similarity="mind",
)
"""`PIPELINE_DEFAULTS` for images whose contrasts differ: descriptors are noisier than intensities.

Errors in voxels, median / 95th percentile, of 80^3 nuclei at 1.84 x 1.84 x 1.68 µm (inverted;
random contrast, two seeds; random with short waves; random with 40 counts at the brightest) and of
two real stains of a fish after an affine by information (2.9 / 6.0):

==================  ===========  ===========  ===========  ===========  ===========  ===========
field a             inverted     random       random       short        noisy        stains
==================  ===========  ===========  ===========  ===========  ===========  ===========
24, 24, 8: these    0.15 / 0.32  0.11 / 0.22  0.10 / 0.19  0.25 / 0.42  0.15 / 0.27  1.54 / 3.11
8, 8, 2, as "lcc"   0.22 / 0.45  0.13 / 0.30  0.12 / 0.23  0.16 / 0.32  0.19 / 0.38  2.52 / 5.72
24, 24, 24          0.15 / 0.30  0.15 / 0.25  0.15 / 0.27  0.38 / 0.64  0.20 / 0.30  1.62 / 3.14
==================  ===========  ===========  ===========  ===========  ===========  ===========

Local correlation leaves 0.10, 0.15, 0.17, 0.22, 0.17 there, with 95th percentiles up to 0.72, and
7.3 / 12.6 on the stains.
"""
