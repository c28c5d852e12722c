"""Chains taken apart: a displacement field, and the affine after it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    LandmarkSpline,
    Transform,
    compose,
)
from itkstream.geometry.chains import FieldChain, kinds_of, links_of

CORNERS = np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9], [5, 5, 5]])
SHIFT = AffineTransform([[1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_a_field_takes_all_affines_after_it(
    odd_grid: Callable[..., Grid], smooth_transform: Callable[..., CompositeTransform]
) -> None:
    grid = odd_grid(1)
    field, affine = smooth_transform(grid).transforms
    points = grid.positions()[::3, ::3, ::3]
    for given in (field, compose(field, affine), CompositeTransform((field, affine, SHIFT))):
        chain = FieldChain.of(given)
        assert chain.field is field
        assert chain.affine.is_identity == (given is field)
        mapped = chain.affine.apply(chain.field.apply(points))
        np.testing.assert_allclose(mapped, given.apply(points), atol=1e-9)


def test_links_are_the_steps_in_their_order(
    odd_grid: Callable[..., Grid], smooth_transform: Callable[..., CompositeTransform]
) -> None:
    field, affine = smooth_transform(odd_grid(2)).transforms
    spline = LandmarkSpline(CORNERS, CORNERS + 1)
    first, second, third, last = links_of(
        CompositeTransform((SHIFT, field, affine, SHIFT, spline, affine))
    )
    assert isinstance(first, AffineTransform)
    assert isinstance(second, FieldChain)
    np.testing.assert_array_equal(second.affine.matrix, SHIFT.matrix @ affine.matrix)
    assert third is spline
    assert last is affine


def test_refuses_in_the_words_of_the_caller() -> None:
    field = DisplacementField(np.zeros((4, 4, 2)), Grid((4, 4), (1, 1)))
    turned = AffineTransform([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    backwards = CompositeTransform((turned, field))
    with pytest.raises(InputError, match="got AffineTransform, DisplacementField: turn it"):
        FieldChain.of(backwards, "got {kinds}: turn it around")
    with pytest.raises(InputError, match="a displacement field followed by an affine"):
        FieldChain.of(turned)
    assert kinds_of(backwards) == "AffineTransform, DisplacementField"


def test_what_is_no_transform() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Transform()  # type: ignore[abstract]
    with pytest.raises(InputError, match="made of transforms; got ndarray: give a matrix"):
        CompositeTransform((np.eye(4),))  # type: ignore[arg-type]
