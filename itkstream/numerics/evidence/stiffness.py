"""Stiffness: one number for how little a displacement field may bend, judged on hidden voxels.

A field that bends to noise, or towards a nucleus that the other image lacks, raises the correlation
that it was made to raise. So cubes of the fixed image are hidden from the descent, and correlation
is measured in them alone: it rises with what the field foretells, and falls with what it made up.
Choosing a model by what it foretells of hidden data: Stone, Journal of the Royal Statistical
Society B 36 (1974) 111-147, doi:10.1111/j.2517-6161.1974.tb00994.x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from itkstream.geometry.grid import voxels_spanning
from itkstream.numerics.deformation.correlation import local_correlation
from itkstream.numerics.deformation.settings import Abcd, DescentSettings, scaled_kernels

__all__ = [
    "LEAST_STIFFNESS",
    "NARROW_BELOW",
    "climb",
    "for_trial",
    "gain_in_cubes",
    "hidden_correlation",
    "hide_cubes",
    "mean_score",
    "number_cubes",
    "prolonged",
    "stiffened",
]

STEP = 4.0
"""Each stiffness that is tried is so many times the one before: a field bends half as sharply."""

LEAST_STIFFNESS = STEP**-3
"""The softest field that is tried."""

_GREATEST = STEP**2
NARROW_BELOW = 0.2
"""Stiffness of fields that bend within few voxels: windows and the finest nodes are narrower."""

# A stiffness is left for another that takes so much of what hidden voxels leave unexplained. Where
# truth is known (nuclei in nine cases, membranes, vessels, a neuron) softer fields take at most 1 %
# and are worse; of two brains the first factor of four takes 11 %, the next 4 %, and the overlap of
# their labels rises from 0.61 to 0.66 and 0.70.
_LEAST_GAIN = 0.03
# Where one was left for another, the pair has been told apart from those where softer fields follow
# noise, and a further one of that kind may foretell a little less, as it is damped more in the end:
# of two lungs 1/16 leaves 0.7 % more than 1/4, and the overlap of lobes is 0.907, not 0.863. Of the
# two brains, on an affine a little different, it takes 1.7 %: 0.702, not 0.673.
_FURTHER_GAIN = -0.01
# Power of the stiffness by which the smoothing of the force grows.
_FORCE = 0.75
# And of the damping of a softer field, which noise leads astray where there is little texture: at
# 1/16, 0.03 instead of 0.001 raises the overlap of lobes of two lungs from 0.868 to 0.884, that of
# labels of two brains from 0.647 to 0.649 (at half resolution). At 1 it costs nuclei 6 %. Hidden
# voxels do not tell it, and damped fields foretell less the softer they are: of two lungs 1/16 was
# then not chosen (0.843), so stiffnesses are compared without it.
_DAMPING = -1.25
# A softer field has further to go on the coarsest level, and large parts move apart there: softer
# by so great a power, the overlap of lobes of two lungs rises from 0.880 to 0.897 at 1/16, that of
# labels of two brains stays (0.638), the error between two heads falls from 3.6 / 10.1 to 3.4 / 9.7
# voxels, and at 1/4 from 4.2 / 13.5 to 4.1 / 10.7. At 1 membranes would lose a fifth.
_MORE_ITERATIONS, _COARSEST = 5 / 3, 2
# Damped, it goes on longer on the finer levels: labels of two brains overlap by 0.847 / 0.700
# (union, mean) with twice as many iterations and by 0.843 / 0.696 with as many, lobes of two lungs
# by 0.960 / 0.903 and 0.958 / 0.907.
_TWICE = 2

_HIDDEN_SHARE = 0.25
_HIDDEN_EDGE = 8
# Windows around hidden voxels span a hidden cube.
_RADIUS = 4
_SEED = 1
# Fewer voxels tell nothing, nor do fewer cubes with so many.
_LEAST_HIDDEN, _LEAST_CUBES, _LEAST_IN_CUBE = 500, 8, 60


def stiffened(settings: DescentSettings, stiffness: float) -> DescentSettings:
    """Settings for a field that is so many times as stiff as theirs; a softer one is damped more.

    The field's (a), a squared length, grows with the stiffness; that of the force a little less.
    Below 1 those of the coarsest level go with its square.
    """
    found = for_trial(settings, stiffness)
    if stiffness < 1:
        found = evolve(found, damping=settings.damping * stiffness**_DAMPING)
    return found


def prolonged(settings: DescentSettings, stiffness: float) -> DescentSettings:
    """Settings with which a stiffened field is found once it is judged: a softer one goes on.

    Not before: of two unrelated textures, what went on foretold hidden voxels by five deviations.
    """
    if stiffness >= 1:
        return settings
    first, *others = settings.iterations
    return evolve(settings, iterations=(first, *(_TWICE * count for count in others)))


def for_trial(settings: DescentSettings, stiffness: float) -> DescentSettings:
    """Settings for a field that is so many times as stiff as theirs, and damped alike."""
    if stiffness == 1:
        return settings
    changes: dict[str, Any] = {
        "field_smoothing": _kernels(settings.field_smoothing, stiffness),
        "gradient_smoothing": _kernels(settings.gradient_smoothing, stiffness, _FORCE),
    }
    if stiffness < 1:
        first, *others = settings.iterations
        changes["iterations"] = (round(first * _MORE_ITERATIONS), *others)
    if stiffness < NARROW_BELOW:
        changes["cc_radius"] = tuple(max(1, r - 1) for r in settings.cc_radius)
        *others, finest = settings.node_stride
        changes["node_stride"] = (*others, max(1, finest // 2))
    return evolve(settings, **changes)


def _kernels(values: tuple[Abcd, ...], stiffness: float, power: float = 1) -> tuple[Abcd, ...]:
    """The smoothing operators of all levels at a stiffness; softer ones more so on the coarsest."""
    each = [stiffness] * len(values)
    if stiffness < 1 < len(values):
        each[0] = stiffness**_COARSEST
    return tuple(
        kernel
        for value, own in zip(values, each, strict=True)
        for kernel in scaled_kernels((value,), math.sqrt(own**power))
    )


def hide_cubes(
    shape: tuple[int, ...], spacing: tuple[float, ...], share: float = _HIDDEN_SHARE
) -> NDArray[np.bool_]:
    """A share of an image, in random cubes of eight voxels of its smallest spacing."""
    counts = _cubes(shape, spacing)
    return _spread(np.random.default_rng(_SEED).random(counts) < share, shape, spacing)


def number_cubes(shape: tuple[int, ...], spacing: tuple[float, ...]) -> NDArray[np.int64]:
    """The number of the cube that each voxel of an image lies in, of those that may be hidden."""
    counts = _cubes(shape, spacing)
    return _spread(np.arange(math.prod(counts)).reshape(counts), shape, spacing)


def _cubes(shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(-(-n // edge) for n, edge in zip(shape, _edges(spacing), strict=True))


def _edges(spacing: tuple[float, ...]) -> tuple[int, ...]:
    return voxels_spanning(_HIDDEN_EDGE * min(spacing), spacing)


def _spread(
    values: NDArray[Any], shape: tuple[int, ...], spacing: tuple[float, ...]
) -> NDArray[Any]:
    """Give every voxel the value of its cube."""
    for axis, edge in enumerate(_edges(spacing)):
        values = np.repeat(values, edge, axis=axis)
    return values[tuple(slice(0, n) for n in shape)]


def hidden_correlation(
    fixed: NDArray[np.float32],
    warped: NDArray[np.float32],
    hidden: NDArray[np.bool_],
    spacing: tuple[float, ...],
) -> NDArray[np.float64]:
    """Squared local correlation at the hidden voxels, seeing none of the others; NaN for none."""
    radius = voxels_spanning(_RADIUS * min(spacing), spacing)
    none = np.float32(np.nan)
    found: NDArray[np.float64] = local_correlation(
        np.where(hidden, fixed, none), np.where(hidden, warped, none), radius
    )[hidden]
    return found


def gain_in_cubes(
    before: NDArray[np.float64], after: NDArray[np.float64], cubes: NDArray[np.int64]
) -> float:
    """The mean gain of hidden cubes in its standard errors; NaN where there are too few.

    Both are of the same hidden voxels, and `cubes` are the numbers of their cubes.
    """
    gain = after - before
    told = np.isfinite(gain)
    number, place = np.unique(cubes[told], return_inverse=True)
    voxels = np.bincount(place, minlength=number.size)
    sums = np.bincount(place, weights=gain[told], minlength=number.size)
    means = (sums / np.maximum(voxels, 1))[voxels >= _LEAST_IN_CUBE]
    if means.size < _LEAST_CUBES:
        return math.nan
    error = float(means.std(ddof=1)) / math.sqrt(means.size)
    return float(means.mean()) / max(error, 1e-12)


def climb(score: Callable[[float], NDArray[np.float64]]) -> tuple[float, dict[float, float]]:
    """Find the stiffness that explains hidden voxels best, from 1 on: softer, or else stiffer.

    `score` gives the squared correlation of hidden voxels. Returns the stiffness, and the mean
    score of each that was tried.
    """
    scores = {1.0: mean_score(score(1.0))}
    best = 1.0
    for step in (1 / STEP, STEP):
        while LEAST_STIFFNESS <= best * step <= _GREATEST:
            tried = best * step
            scores[tried] = mean_score(score(tried))
            least = _LEAST_GAIN if best == 1 else _FURTHER_GAIN
            if 1 - scores[tried] > (1 - least) * (1 - scores[best]):
                break
            best = tried
        if best != 1:
            break
    return best, scores


def mean_score(values: NDArray[np.float64]) -> float:
    """The mean over hidden voxels that can be compared; 0 where there are too few."""
    told = values[np.isfinite(values)]
    return float(told.mean()) if told.size >= _LEAST_HIDDEN else 0.0
