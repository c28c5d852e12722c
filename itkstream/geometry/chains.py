"""Transforms one after the other: joined, simplified and taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError
from itkstream.geometry.splines import LandmarkSpline
from itkstream.geometry.transforms import (
    AffineTransform,
    BSplineTransform,
    DisplacementField,
    PiecewiseAffine,
    Transform,
)

__all__ = ["CompositeTransform", "compose", "named_axes", "steps_of", "with_axes"]


@dataclass(frozen=True, eq=False)
class CompositeTransform(Transform):
    """Several transforms one after the other; the first of the list acts first.

    Parameters
    ----------
    transforms : sequence of Transform
        At least one, all of the same dimension.

    Raises
    ------
    InputError
        Where the list is empty, or mixes dimensions or orders of axes.
    """

    transforms: tuple[Transform, ...]

    def __post_init__(self) -> None:
        steps = tuple(self.transforms)
        for step in steps:
            if not hasattr(step, "apply"):
                raise InputError(
                    f"a composite is made of transforms; got {type(step).__name__}: give a matrix "
                    "as AffineTransform(matrix)"
                )
        if not steps:
            raise InputError("a composite transform needs at least one transform; got none")
        if len({t.ndim for t in steps}) > 1:
            raise InputError(
                f"transforms of different dimension cannot follow each other; "
                f"got {[t.ndim for t in steps]}"
            )
        orders = {axes for axes in map(named_axes, steps) if axes}
        if len(orders) > 1:
            raise InputError(
                f"transforms with the axes {' and '.join(map(str, sorted(orders)))} cannot follow "
                "each other: read all with the same axes=, or reorder their affines and grids"
            )
        object.__setattr__(self, "transforms", steps)

    @property
    def ndim(self) -> int:
        """Dimensions of the space."""
        return self.transforms[0].ndim

    @property
    def axes(self) -> tuple[str, ...] | None:
        """What the coordinates of its points are called; None where no step knows."""
        return next((axes for axes in map(named_axes, self.transforms) if axes), None)

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points through every transform in turn.

        Parameters
        ----------
        points : array_like, (..., n)
            Fixed positions.

        Returns
        -------
        ndarray, (..., n)
            Moving positions.
        """
        mapped = np.asarray(points, float)
        for transform in self.transforms:
            mapped = transform.apply(mapped)
        return mapped


def compose(*transforms: Transform) -> Transform:
    """One transform after the other, in its simplest form; the first acts first. Exact.

    Parameters
    ----------
    *transforms : Transform
        At least one, all of the same dimension.

    Returns
    -------
    Transform
        Composites are taken apart, affines that follow each other multiplied, and identities left
        out. What remains is a composite, or, if it is one transform, that itself.

    Raises
    ------
    InputError
        Where nothing is given, or dimensions differ.
    """
    chain = CompositeTransform(transforms)
    identity = np.eye(chain.ndim + 1)
    steps: list[Transform] = []
    for step in steps_of(chain):
        if isinstance(step, AffineTransform):
            before = steps[-1] if steps else None
            if isinstance(before, AffineTransform):
                step = AffineTransform(step.matrix @ before.matrix, step.axes or before.axes)
                steps.pop()
            if np.array_equal(step.matrix, identity):
                continue
        steps.append(step)
    if not steps:
        return AffineTransform(identity, chain.axes)
    return steps[0] if len(steps) == 1 else CompositeTransform(tuple(steps))


def steps_of(transform: Transform) -> tuple[Transform, ...]:
    """What a transform is made of.

    Parameters
    ----------
    transform : Transform
        Any.

    Returns
    -------
    tuple of Transform
        In the order in which they act, composites in composites taken apart; itself, if it is no
        composite.
    """
    if not isinstance(transform, CompositeTransform):
        return (transform,)
    return tuple(inner for step in transform.transforms for inner in steps_of(step))


def named_axes(transform: Transform) -> tuple[str, ...] | None:
    """What the coordinates of a transform's points are called, as far as it knows.

    Parameters
    ----------
    transform : Transform
        Any; one of another package need not know.

    Returns
    -------
    tuple of str or None
        One name per axis.
    """
    axes: tuple[str, ...] | None = getattr(transform, "axes", None)
    return axes


def with_axes(transform: Transform, axes: Sequence[str]) -> Transform:
    """State what the coordinates of a transform's points are called; the map stays the same.

    Parameters
    ----------
    transform : Transform
        One that knows no axes, or these.
    axes : sequence of str
        The names, first to last.

    Returns
    -------
    Transform
        It knows them.

    Raises
    ------
    InputError
        Where it has other axes.
    """
    known = named_axes(transform)
    if known not in (None, tuple(axes)):
        raise InputError(
            f"the transform has points with the axes {known}, not {tuple(axes)}: leave axes out, "
            "or read all its parts with the same axes"
        )
    if isinstance(transform, CompositeTransform):
        return CompositeTransform(tuple(with_axes(t, axes) for t in transform.transforms))
    if isinstance(transform, (AffineTransform, LandmarkSpline)):
        return replace(transform, axes=tuple(axes))
    if isinstance(transform, (BSplineTransform, DisplacementField, PiecewiseAffine)):
        return replace(transform, grid=transform.grid.named(axes))
    return transform
