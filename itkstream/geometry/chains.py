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
    DisplacementField,
    GridTransform,
    Transform,
)

__all__ = [
    "CompositeTransform",
    "FieldChain",
    "compose",
    "kinds_of",
    "links_of",
    "named_axes",
    "steps_of",
    "with_axes",
]


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

    Examples
    --------
    >>> twice = itkstream.AffineTransform(np.diag([2, 2, 2, 1]))
    >>> itkstream.CompositeTransform((twice, twice)).apply([1, 2, 3])
    array([ 4.,  8., 12.])
    """

    transforms: tuple[Transform, ...]

    def __post_init__(self) -> None:
        steps = tuple(self.transforms)
        for step in steps:
            if not isinstance(step, Transform):
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
        orders = {step.axes for step in steps if step.axes}
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
        """Names of the coordinates of its points; None where no step knows them."""
        return next((step.axes for step in self.transforms if step.axes), None)

    def _lines(self) -> tuple[str, ...]:
        return tuple(map(repr, self.transforms))

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points through every transform in turn."""
        mapped = np.asarray(points, float)
        for transform in self.transforms:
            mapped = transform.apply(mapped)
        return mapped


@dataclass(frozen=True, eq=False)
class FieldChain:
    """A displacement field and the affine after it; the identity where none follows."""

    field: DisplacementField
    affine: AffineTransform

    @classmethod
    def of(
        cls,
        transform: Transform,
        refusal: str = "expected a displacement field followed by an affine; got {kinds}",
    ) -> FieldChain:
        """Take a field, or one followed by affines, apart.

        Anything else raises an `InputError` with the text `refusal`, in which ``{kinds}`` stands
        for what was given.
        """
        first, *others = links_of(transform)
        if isinstance(first, FieldChain) and not others:
            return first
        raise InputError(refusal.format(kinds=kinds_of(transform)))


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

    Examples
    --------
    >>> twice = itkstream.AffineTransform(np.diag([2, 2, 2, 1]))
    >>> itkstream.geometry.compose(twice, twice.inverse()).is_identity
    True
    """
    chain = CompositeTransform(transforms)
    steps: list[Transform] = []
    for step in steps_of(chain):
        if isinstance(step, AffineTransform):
            before = steps[-1] if steps else None
            if isinstance(before, AffineTransform):
                step = AffineTransform(step.matrix @ before.matrix, step.axes or before.axes)
                steps.pop()
            if step.is_identity:
                continue
        steps.append(step)
    if not steps:
        return AffineTransform(np.eye(chain.ndim + 1), chain.axes)
    return steps[0] if len(steps) == 1 else CompositeTransform(tuple(steps))


def steps_of(transform: Transform) -> tuple[Transform, ...]:
    """Take a chain of transforms apart.

    Parameters
    ----------
    transform : Transform
        Any.

    Returns
    -------
    tuple of Transform
        In the order in which they act, composites in composites taken apart; itself, if it is no
        composite.

    Examples
    --------
    >>> [type(step).__name__ for step in itkstream.geometry.steps_of(registration.transform)]
    ['DisplacementField', 'AffineTransform']
    """
    if not isinstance(transform, CompositeTransform):
        return (transform,)
    return tuple(inner for step in transform.transforms for inner in steps_of(step))


def links_of(transform: Transform) -> tuple[Transform | FieldChain, ...]:
    """The steps of a transform in its simplest form, each field with the affine after it."""
    links: list[Transform | FieldChain] = []
    for step in steps_of(compose(transform)):
        before = links[-1] if links else None
        if isinstance(step, DisplacementField):
            links.append(FieldChain(step, AffineTransform(np.eye(step.ndim + 1))))
        elif isinstance(step, AffineTransform) and isinstance(before, FieldChain):
            links[-1] = replace(before, affine=step)
        else:
            links.append(step)
    return tuple(links)


def kinds_of(transform: Transform) -> str:
    """The kinds of transform in a chain, as messages list them."""
    return ", ".join(type(step).__name__ for step in steps_of(compose(transform)))


def named_axes(transform: Transform) -> tuple[str, ...] | None:
    """Names of the coordinates of a transform's points: its `axes`.

    Parameters
    ----------
    transform : Transform
        Any.

    Returns
    -------
    tuple of str or None
        One name per axis; None where nothing says them.

    Examples
    --------
    >>> itkstream.geometry.named_axes(itkstream.AffineTransform(np.eye(4))) is None
    True
    """
    return transform.axes


def with_axes(transform: Transform, axes: Sequence[str]) -> Transform:
    """Name the coordinates of a transform's points; the map stays the same.

    Parameters
    ----------
    transform : Transform
        One without names, or with these.
    axes : sequence of str
        The names, first to last.

    Returns
    -------
    Transform
        With the names.

    Raises
    ------
    InputError
        Where it has other axes.

    Examples
    --------
    >>> itkstream.geometry.with_axes(itkstream.AffineTransform(np.eye(3)), "yx").axes
    ('y', 'x')
    """
    known = transform.axes
    if known not in (None, tuple(axes)):
        raise InputError(
            f"the transform has points with the axes {known}, not {tuple(axes)}: leave axes out, "
            "or read all its parts with the same axes"
        )
    if isinstance(transform, CompositeTransform):
        return CompositeTransform(tuple(with_axes(t, axes) for t in transform.transforms))
    if isinstance(transform, (AffineTransform, LandmarkSpline)):
        return replace(transform, axes=tuple(axes))
    if isinstance(transform, GridTransform):
        return replace(transform, grid=transform.grid.named(axes))  # type: ignore[type-var]
    return transform
