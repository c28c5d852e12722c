"""Values say in one line what they are, and never their voxels."""

from __future__ import annotations

import numpy as np

from itkstream.geometry import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
)

GRID = Grid((4, 5, 6), (2.0, 0.5, 0.25), axes=("z", "y", "x"))


def test_values_are_named_in_a_line() -> None:
    said = "zyx 4 x 5 x 6, 2 x 0.5 x 0.25 micrometer"
    assert str(GRID) == said
    image = Image(np.zeros(GRID.shape, np.uint8), GRID, "round1.tif")
    assert repr(image) == f"Image({said}, uint8, 'round1.tif')"
    field = DisplacementField(np.zeros((*GRID.shape, 3), np.float32), GRID)
    assert repr(field) == f"DisplacementField({said})"
    chain = repr(CompositeTransform((field, AffineTransform(np.eye(4)))))
    assert repr(field) in chain
    assert "AffineTransform" in chain
