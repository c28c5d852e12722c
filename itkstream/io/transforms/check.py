"""Check of a transform file that was just written: it maps points as it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, ItkstreamError
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    DisplacementField,
    Grid,
    Transform,
    compose,
    steps_of,
)
from itkstream.io.transforms.itk.transform_files import largest_difference

__all__ = ["TransformReader", "check_written", "grids_of"]

TransformReader = Callable[[Path], Transform]

_POINTS = 100
# Stored fields of so many numbers in all are read as a whole.
_SMALL = 2**22
# How often points are drawn anew where none passes through every lattice of a chain.
_ROUNDS = 20
# The outermost cells may lie beyond the grid once a format has rounded its geometry.
_EDGE_VOX = 0.01


def check_written(
    path: Path,
    transform: Transform,
    axes: tuple[str, ...],
    read: TransformReader | None,
    tolerance: float,
) -> float:
    """Read a file back: how far it maps points, with these axes, from `transform`, at most.

    SimpleITK reads it where no `read`, which need not read its fields whole, is given. More than
    the share `tolerance` of the coordinates is an error.
    """
    points = _points(steps_of(compose(transform)))
    wanted = _mapped(transform, points)
    try:
        if read is None:
            error = largest_difference(path, transform, points, axes)
        else:
            error = float(np.abs(_mapped(read(path), points) - wanted).max())
    except (InputError, RuntimeError) as reason:
        raise ItkstreamError(f"{path.name} was written but cannot be read: {reason}") from reason
    grids = grids_of(transform)
    spacing = min((min(grid.spacing) for grid in grids), default=1.0)
    allowed = tolerance * max(float(np.abs(points).max()), float(np.abs(wanted).max()), spacing)
    if not error <= allowed:
        unit = grids[0].unit if grids else "micrometer"
        raise ItkstreamError(
            f"{path.name} was written but maps points {error:.3g} {unit} off, where "
            f"{allowed:.3g} was expected: the disk or the ITK library is faulty"
        )
    return error


def grids_of(transform: Transform) -> list[Grid]:
    """The lattices of the fields and B-splines of a transform, in the order in which they act."""
    steps = steps_of(transform)
    return [s.grid for s in steps if isinstance(s, (BSplineTransform, DisplacementField))]


def _mapped(transform: Transform, points: NDArray[np.float64]) -> NDArray[np.float64]:
    if sum(grid.size * grid.ndim for grid in grids_of(transform)) <= _SMALL:
        return transform.apply(points)
    # One point at a time, so that little of a stored field is read.
    return np.concatenate([transform.apply(p[None]) for p in points])


def _points(steps: Sequence[Transform]) -> NDArray[np.float64]:
    """Points that stay within every lattice on their way; beyond them ITK continues otherwise."""
    rng = np.random.default_rng(0)
    reaches = [_reach(step) for step in steps]
    first = next((reach for reach in reaches if reach is not None), None)
    if first is None:
        return rng.uniform(0, 100, (_POINTS, steps[0].ndim))
    before = steps[0].inverse() if isinstance(steps[0], AffineTransform) else None
    for _ in range(_ROUNDS):
        points = first.draw(rng)
        if before is not None:
            points = before.apply(points)
        points = points[_stay(steps, reaches, points)]
        if len(points):
            return points
    raise InputError(
        "no point passes through all lattices of this transform, so that nothing could be "
        "compared: are its steps in the right order, and in one unit?"
    )


@dataclass(frozen=True, eq=False)
class _Reach:
    """The part of a lattice in which all readers agree: its first and last index per axis."""

    grid: Grid
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Random points in it."""
        share = rng.uniform(0, 1, (_POINTS, self.grid.ndim))
        return self.grid.to_physical(self.low + share * (self.high - self.low))

    def holds(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Mark the points that lie in it."""
        index = self.grid.to_index(points)
        return np.asarray(((index >= self.low) & (index <= self.high)).all(axis=-1))


def _reach(step: Transform) -> _Reach | None:
    """The reach of a step; None where it holds everywhere."""
    if not isinstance(step, (BSplineTransform, DisplacementField)):
        return None
    last = np.asarray(step.grid.shape) - 1.0
    edge = np.zeros(step.ndim)
    if isinstance(step, BSplineTransform):
        edge += 0.5 * (step.order - 1)
    edge += np.minimum(_EDGE_VOX, (last - 2 * edge) / 2)
    return _Reach(step.grid, edge, last - edge)


def _stay(
    steps: Sequence[Transform], reaches: Sequence[_Reach | None], points: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Mark the points that are within every lattice when they come to it."""
    inside = np.ones(len(points), bool)
    if sum(reach is not None for reach in reaches) < 2:
        # They were drawn in the only one.
        return inside
    for step, reach in zip(steps, reaches, strict=True):
        if reach is not None:
            inside &= reach.holds(points)
        points = _mapped(step, points)
    return inside
