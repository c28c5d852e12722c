"""Transforms one after the other: joined, simplified and taken apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError
from itkstream.geometry.transforms import AffineTransform, Transform

__all__ = ["CompositeTransform", "compose", "steps_of"]


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
        Where the list is empty or mixes dimensions.
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
        object.__setattr__(self, "transforms", steps)

    @property
    def ndim(self) -> int:
        """Dimensions of the space."""
        return self.transforms[0].ndim

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
                step = AffineTransform(step.matrix @ before.matrix)
                steps.pop()
            if np.array_equal(step.matrix, identity):
                continue
        steps.append(step)
    if not steps:
        return AffineTransform(identity)
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
